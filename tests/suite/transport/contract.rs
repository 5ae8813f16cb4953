//! What both transports promise, by the same functions.

use std::time::{Duration, Instant};

use branchline::Kind;
use branchline::transport::{BODY_BYTES_MAX, Outcome, Settings};

use super::*;

macro_rules! contract {
    ($($test:ident)*) => {
        mod amqp {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                Bench::amqp().run(|bench| Box::pin(super::$test(bench))).await;
            })*
        }
        mod spool {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                Bench::spool().run(|bench| Box::pin(super::$test(bench))).await;
            })*
        }
    };
}

contract! {
    confirmed_means_in_the_queue
    order_is_kept
    what_is_not_acknowledged_comes_again
    an_acknowledgement_takes_all_up_to_its_tag
    an_unknown_tag_is_refused_and_costs_nothing
    a_second_consumer_waits_and_takes_over
    prefetch_bounds_what_is_in_hand
    a_queue_that_is_not_there_refuses
    one_missing_queue_does_not_hold_up_another
    declaring_twice_keeps_what_is_there
    removing_takes_the_queue_away_and_it_can_come_again
    a_removed_queue_ends_its_consumer
    a_message_of_the_largest_size_goes_through
    a_message_over_the_largest_size_is_refused_alone
    an_empty_queue_times_out
    publishing_nothing_is_nothing
    next_may_be_cancelled
    lanes_do_not_mix
    a_full_queue_refuses
    many_publish_at_once
    closing_ends_what_is_open
}

async fn confirmed_means_in_the_queue(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    publish(&*transport, numbered(queue, 0, 3)).await;
    transport.close().await;

    let other = bench.open();
    let mut consumer = other.consume(queue, 10).await.unwrap();
    assert_eq!(take(&mut *consumer, 3).await.0, [0, 1, 2]);
    nothing(&mut *consumer).await;
}

async fn order_is_kept(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    publish(&*transport, numbered(queue, 0, 600)).await;
    publish(&*transport, numbered(queue, 600, 1)).await;
    publish(&*transport, numbered(queue, 601, 99)).await;
    let mut consumer = transport.consume(queue, 100).await.unwrap();
    for part in 0..7 {
        let (numbers, tag) = take(&mut *consumer, 100).await;
        assert!(numbers.into_iter().eq(part * 100..part * 100 + 100));
        consumer.acknowledge(tag).await.unwrap();
    }
    nothing(&mut *consumer).await;
}

async fn what_is_not_acknowledged_comes_again(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    publish(&*transport, numbered(queue, 0, 5)).await;
    let mut first = transport.consume(queue, 10).await.unwrap();
    let (numbers, _) = take(&mut *first, 5).await;
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    drop(first);

    let mut second = transport.consume(queue, 10).await.unwrap();
    let (mut numbers, tag) = take(&mut *second, 5).await;
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    second.acknowledge(tag).await.unwrap();
    nothing(&mut *second).await;
}

async fn an_acknowledgement_takes_all_up_to_its_tag(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    publish(&*transport, numbered(queue, 0, 5)).await;
    let mut consumer = transport.consume(queue, 10).await.unwrap();
    let (_, third) = take(&mut *consumer, 3).await;
    take(&mut *consumer, 2).await;
    consumer.acknowledge(third).await.unwrap();
    consumer.acknowledge(third).await.unwrap(); // again: nothing happens
    drop(consumer);

    let mut consumer = transport.consume(queue, 10).await.unwrap();
    let (mut numbers, _) = take(&mut *consumer, 2).await;
    numbers.sort_unstable();
    assert_eq!(numbers, [3, 4]);
    nothing(&mut *consumer).await;
}

async fn an_unknown_tag_is_refused_and_costs_nothing(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    publish(&*transport, numbered(queue, 0, 2)).await;
    let mut consumer = transport.consume(queue, 10).await.unwrap();
    let (_, tag) = take(&mut *consumer, 2).await;
    assert!(consumer.acknowledge(tag + 1).await.is_err());
    assert!(consumer.acknowledge(0).await.is_err());
    consumer.acknowledge(tag).await.unwrap();
    publish(&*transport, numbered(queue, 2, 1)).await;
    assert_eq!(take(&mut *consumer, 1).await.0, [2]);
}

async fn a_second_consumer_waits_and_takes_over(bench: &Bench) {
    let (transport, other) = (bench.open(), bench.open());
    let queue = bench.declared(&*transport).await;
    publish(&*transport, numbered(queue, 0, 4)).await;
    let mut first = transport.consume(queue, 2).await.unwrap();
    let (_, tag) = take(&mut *first, 1).await;
    let mut second = other.consume(queue, 2).await.unwrap();
    nothing(&mut *second).await;
    first.acknowledge(tag).await.unwrap();
    nothing(&mut *second).await;
    drop(first);
    let (mut numbers, tag) = take(&mut *second, 2).await;
    second.acknowledge(tag).await.unwrap();
    numbers.extend(take(&mut *second, 1).await.0);
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3]);
}

async fn prefetch_bounds_what_is_in_hand(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    publish(&*transport, numbered(queue, 0, 5)).await;
    let mut consumer = transport.consume(queue, 2).await.unwrap();
    let (numbers, tag) = take(&mut *consumer, 2).await;
    assert_eq!(numbers, [0, 1]);
    nothing(&mut *consumer).await;
    consumer.acknowledge(tag).await.unwrap();
    assert_eq!(take(&mut *consumer, 2).await.0, [2, 3]);
}

async fn a_queue_that_is_not_there_refuses(bench: &Bench) {
    let transport = bench.open();
    transport.declare(bench.queue()).await.unwrap(); // the place itself is there
    let missing = bench.queue();
    let outcomes = transport.publish(numbered(missing, 0, 2)).await.unwrap();
    for outcome in outcomes {
        let Outcome::Refused(reason) = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains(&missing.name()), "{reason}");
    }
    let error = transport.consume(missing, 1).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Failed);
    assert!(error.to_string().contains(&missing.name()), "{error}");
}

async fn one_missing_queue_does_not_hold_up_another(bench: &Bench) {
    let transport = bench.open();
    let (here, missing) = (bench.declared(&*transport).await, bench.queue());
    let messages =
        (0..30).map(|n: u32| message([here, missing][n as usize % 2], n.to_be_bytes().to_vec()));
    let outcomes = transport.publish(messages.collect()).await.unwrap();
    for (at, outcome) in outcomes.iter().enumerate() {
        assert_eq!(*outcome == Outcome::Confirmed, at % 2 == 0, "{at}: {outcome:?}");
    }
    let mut consumer = transport.consume(here, 100).await.unwrap();
    assert!(take(&mut *consumer, 15).await.0.into_iter().eq((0..30).step_by(2)));
}

async fn declaring_twice_keeps_what_is_there(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    publish(&*transport, numbered(queue, 0, 1)).await;
    transport.declare(queue).await.unwrap();
    // With other arguments it is taken as it is.
    let settings = Settings { queue_bytes_max: 12_345_678, ..bench.settings.clone() };
    let other = transport::connect(&bench.url, &settings).unwrap();
    other.declare(queue).await.unwrap();
    let mut consumer = other.consume(queue, 1).await.unwrap();
    assert_eq!(take(&mut *consumer, 1).await.0, [0]);
}

async fn removing_takes_the_queue_away_and_it_can_come_again(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    publish(&*transport, numbered(queue, 0, 3)).await;
    transport.remove(queue).await.unwrap();
    transport.remove(queue).await.unwrap(); // not there: fine
    let outcomes = transport.publish(numbered(queue, 3, 1)).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::Refused(_)]), "{outcomes:?}");
    transport.declare(queue).await.unwrap();
    publish(&*transport, numbered(queue, 7, 1)).await;
    let mut consumer = transport.consume(queue, 10).await.unwrap();
    assert_eq!(take(&mut *consumer, 1).await.0, [7]);
}

async fn a_removed_queue_ends_its_consumer(bench: &Bench) {
    let transport = bench.open();
    let (queue, bystander) = (bench.declared(&*transport).await, bench.declared(&*transport).await);
    let mut consumer = transport.consume(queue, 10).await.unwrap();
    let mut unharmed = transport.consume(bystander, 10).await.unwrap();
    nothing(&mut *consumer).await;
    let (ended, removed) = tokio::join!(consumer.next(SOON), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        transport.remove(queue).await
    });
    removed.unwrap();
    let error = ended.expect_err("the queue is gone");
    assert!(error.to_string().contains(&queue.name()), "{error}");
    let again = Instant::now();
    assert!(consumer.next(SOON).await.is_err(), "it stays gone");
    assert!(again.elapsed() < PATIENCE, "and says so at once");
    drop(consumer);

    transport.declare(queue).await.unwrap();
    publish(&*transport, [numbered(queue, 1, 1), numbered(bystander, 2, 1)].concat()).await;
    let mut fresh = transport.consume(queue, 10).await.unwrap();
    assert_eq!(take(&mut *fresh, 1).await.0, [1]);
    assert_eq!(take(&mut *unharmed, 1).await.0, [2]);
}

async fn a_message_of_the_largest_size_goes_through(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    let body: Vec<u8> = (0..BODY_BYTES_MAX).map(|at| (at * 31 % 251) as u8).collect();
    publish(&*transport, vec![message(queue, body.clone()), message(queue, "")]).await;
    let mut consumer = transport.consume(queue, 2).await.unwrap();
    let delivery = consumer.next(SOON).await.unwrap().unwrap();
    assert_eq!(delivery.body, body);
    let delivery = consumer.next(SOON).await.unwrap().unwrap();
    assert!(delivery.body.is_empty());
}

async fn a_message_over_the_largest_size_is_refused_alone(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    let mut messages = numbered(queue, 0, 3);
    messages[1].body = vec![0; BODY_BYTES_MAX + 1].into();
    let outcomes = transport.publish(messages).await.unwrap();
    assert!(
        matches!(outcomes[..], [Outcome::Confirmed, Outcome::Refused(_), Outcome::Confirmed]),
        "{outcomes:?}"
    );
    let mut consumer = transport.consume(queue, 10).await.unwrap();
    assert_eq!(take(&mut *consumer, 2).await.0, [0, 2]);
}

async fn an_empty_queue_times_out(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    let mut consumer = transport.consume(queue, 1).await.unwrap();
    let began = Instant::now();
    assert!(consumer.next(A_WHILE).await.unwrap().is_none());
    assert!(began.elapsed() >= A_WHILE);
    assert!(began.elapsed() < PATIENCE);
    assert!(consumer.next(Duration::ZERO).await.unwrap().is_none());
}

async fn publishing_nothing_is_nothing(bench: &Bench) {
    let transport = bench.open();
    bench.declared(&*transport).await;
    assert!(transport.publish(Vec::new()).await.unwrap().is_empty());
}

async fn next_may_be_cancelled(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    let mut consumer = transport.consume(queue, 100).await.unwrap();
    let mut numbers = Vec::new();
    let publishing = tokio::spawn({
        let transport = transport.clone();
        async move {
            for number in 0..50 {
                publish(&*transport, numbered(queue, number, 1)).await;
            }
        }
    });
    let until = Instant::now() + SOON;
    let mut cancelled = 0_u32;
    while numbers.len() < 50 && Instant::now() < until {
        // Nearly every call is cancelled, at another point each time.
        let patience = Duration::from_micros(u64::from(cancelled % 8) * 40);
        tokio::select! {
            biased;
            next = consumer.next(SOON) => numbers.push(number(&next.unwrap().unwrap().body)),
            () = async {
                if patience.is_zero() {
                    tokio::task::yield_now().await;
                } else {
                    tokio::time::sleep(patience).await;
                }
            } => cancelled += 1,
        }
    }
    publishing.await.unwrap();
    assert!(numbers.into_iter().eq(0..50));
}

async fn lanes_do_not_mix(bench: &Bench) {
    let transport = bench.open();
    let records = bench.queue();
    let acks = Queue { lane: Lane::Acks, ..records };
    let joins = Queue { lane: Lane::Joins, from: records.to, ..records };
    let back = Queue { to: records.from, from: records.to, lane: Lane::Records };
    let all = [records, acks, joins, back];
    bench.queues.lock().unwrap().extend([acks, joins, back]);
    for queue in all {
        transport.declare(queue).await.unwrap();
    }
    let messages = (0..4).flat_map(|at| numbered(all[at as usize], at, 1)).collect();
    publish(&*transport, messages).await;
    for (at, queue) in (0..).zip(all) {
        let mut consumer = transport.consume(queue, 10).await.unwrap();
        assert_eq!(take(&mut *consumer, 1).await.0, [at]);
        nothing(&mut *consumer).await;
    }
}

async fn a_full_queue_refuses(bench: &Bench) {
    let settings = Settings { queue_bytes_max: 100_000, ..bench.settings.clone() };
    let transport = transport::connect(&bench.url, &settings).unwrap();
    let queue = bench.declared(&*transport).await;
    let mut confirmed = 0;
    let reason = loop {
        let body = vec![confirmed; 20_000];
        match &transport.publish(vec![message(queue, body)]).await.unwrap()[..] {
            [Outcome::Confirmed] => confirmed += 1,
            [Outcome::Refused(reason)] => break reason.clone(),
            other => panic!("{other:?}"),
        }
        assert!(confirmed < 20, "it has a bound");
    };
    assert!(reason.contains("full"), "{reason}");
    // What is taken makes room.
    let mut consumer = transport.consume(queue, 100).await.unwrap();
    for at in 0..confirmed {
        let delivery = consumer.next(SOON).await.unwrap().unwrap();
        assert_eq!(delivery.body[0], at);
        consumer.acknowledge(delivery.tag).await.unwrap();
    }
    let room = || async {
        match &transport.publish(vec![message(queue, vec![9; 20_000])]).await?[..] {
            [Outcome::Confirmed] => Ok(()),
            other => Err(branchline::Error::failed(format!("{other:?}"))),
        }
    };
    eventually("a queue with room takes messages", room).await;
}

async fn many_publish_at_once(bench: &Bench) {
    let transport = bench.open();
    let mut publishing = Vec::new();
    let mut queues = Vec::new();
    for _ in 0..8 {
        let queue = bench.declared(&*transport).await;
        queues.push(queue);
        let transport = transport.clone();
        publishing.push(tokio::spawn(async move {
            for part in 0..10 {
                publish(&*transport, numbered(queue, part * 20, 20)).await;
            }
        }));
    }
    for task in publishing {
        task.await.unwrap();
    }
    for queue in queues {
        let mut consumer = transport.consume(queue, 500).await.unwrap();
        assert!(take(&mut *consumer, 200).await.0.into_iter().eq(0..200));
    }
}

async fn closing_ends_what_is_open(bench: &Bench) {
    let transport = bench.open();
    let queue = bench.declared(&*transport).await;
    publish(&*transport, numbered(queue, 0, 1)).await;
    let began = Instant::now();
    transport.close().await;
    transport.close().await;
    assert!(began.elapsed() < PATIENCE);
    assert!(transport.publish(numbered(queue, 1, 1)).await.is_err());
    assert!(transport.consume(queue, 1).await.is_err());
    assert!(transport.declare(queue).await.is_err());
}
