//! RabbitMQ only: lapin's traps, and a broker that stalls, resets, and goes away.

use std::time::{Duration, Instant};

use branchline::Kind;
use branchline::transport::{BODY_BYTES_MAX, Outcome, QueueType, Settings};
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};

use super::*;
use crate::support::proxy::Proxy;

/// How long a broker may be silent in these tests before it counts as late.
const LATE: Duration = Duration::from_secs(1);

async fn with_bench(test: impl FnOnce(&Bench) -> BoxFuture<'_, ()>) {
    Bench::amqp().run(test).await;
}

/// The broker's `user:password`, `host:port` and what follows.
fn parts(url: &str) -> (String, String, String) {
    let rest = url.split_once("://").unwrap().1;
    let (user, rest) = rest.rsplit_once('@').unwrap();
    let (host, tail) = rest.split_once('/').unwrap_or((rest, "%2f"));
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:5672") };
    (user.to_owned(), host, tail.to_owned())
}

/// A proxy before the broker, and a transport through it whose waits are short.
async fn through_proxy(bench: &Bench) -> (Proxy, Arc<dyn Transport>) {
    let (user, host, tail) = parts(&bench.url);
    let proxy = Proxy::to(&host).await;
    let url = format!("amqp://{user}@{}/{tail}", proxy.address());
    (proxy, transport::connect(&url, &short(bench)).unwrap())
}

fn short(bench: &Bench) -> Settings {
    Settings {
        connect_timeout: LATE,
        publish_timeout: LATE,
        confirm_timeout: LATE,
        acknowledge_timeout: LATE,
        close_timeout: Duration::from_millis(200),
        backoff_max: Duration::from_millis(400),
        heartbeat_seconds: 1,
        ..bench.settings.clone()
    }
}

async fn plain_connection(bench: &Bench) -> Connection {
    Connection::connect(&bench.url, ConnectionProperties::default()).await.unwrap()
}

fn assert_unreachable<T: std::fmt::Debug>(result: branchline::Result<T>) -> branchline::Error {
    let error = result.expect_err("the broker is out of reach");
    assert_eq!(error.kind(), Kind::Unreachable, "{error:?}");
    assert!(error.to_string().contains("127.0.0.1:"), "names the broker: {error}");
    assert!(!format!("{error:?}").contains("guest"), "no password: {error:?}");
    error
}

/// E1: lapin gives a return to whichever confirm completes next.
#[tokio::test(flavor = "multi_thread")]
async fn returns_are_matched_by_message_id_on_quorum_queues() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queues: Vec<Queue> = {
                let mut queues = Vec::new();
                for _ in 0..3 {
                    queues.push(bench.declared(&*transport).await);
                }
                queues
            };
            let missing = bench.queue();
            let mut tasks = Vec::new();
            for task in 0..6_u32 {
                let (transport, queue) = (transport.clone(), queues[task as usize % 3]);
                tasks.push(tokio::spawn(async move {
                    let mut wrong = 0;
                    for call in 0..10_u32 {
                        let is_lost = |at: u32| (at * 7 + call + task) % 10 < 3;
                        let messages = (0..90)
                            .map(|at| {
                                let to = if is_lost(at) { missing } else { queue };
                                message(to, at.to_be_bytes().to_vec())
                            })
                            .collect();
                        let outcomes = transport.publish(messages).await.unwrap();
                        for (at, outcome) in (0..).zip(&outcomes) {
                            wrong += u32::from((*outcome == Outcome::Confirmed) == is_lost(at));
                        }
                    }
                    wrong
                }));
            }
            for task in tasks {
                assert_eq!(task.await.unwrap(), 0, "outcomes of other messages");
            }
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_deleted_by_another_ends_its_consumer_and_no_other() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            let other = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 0, 1)).await;
            let mut consumer = transport.consume(queue, 5).await.unwrap();
            let mut bystander = transport.consume(other, 5).await.unwrap();
            take(&mut *consumer, 1).await;
            let admin = plain_connection(bench).await;
            let channel = admin.create_channel().await.unwrap();
            channel.queue_delete(queue.name().into(), Default::default()).await.unwrap();
            let began = Instant::now();
            assert!(consumer.next(SOON).await.is_err());
            assert!(began.elapsed() < PATIENCE, "promptly");
            drop(consumer);
            publish(&*transport, numbered(other, 9, 1)).await;
            assert_eq!(take(&mut *bystander, 1).await.0, [9]);
        })
    })
    .await;
}

/// The broker closes channels under us, as it does for an acknowledgement that is 30 minutes late.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_channel_ends_its_consumer() {
    with_bench(|bench| {
        Box::pin(async move {
            let (proxy, transport) = through_proxy(bench).await;
            let queue = bench.declared(&*transport).await;
            let mut consumer = transport.consume(queue, 5).await.unwrap();
            nothing(&mut *consumer).await;
            for channel in 1..=8 {
                proxy.inject(&channel_close(channel, 406, "PRECONDITION_FAILED - test"));
            }
            let began = Instant::now();
            let error = consumer.next(SOON).await.expect_err("its channel is closed");
            assert!(began.elapsed() < PATIENCE, "promptly");
            assert!(error.to_string().contains(&queue.name()), "{error}");
            drop(consumer);
            publish(&*transport, numbered(queue, 3, 1)).await;
            let mut fresh = eventually("reading", || transport.consume(queue, 5)).await;
            assert_eq!(take(&mut *fresh, 1).await.0, [3]);
        })
    })
    .await;
}

/// The same for the channel that publishes.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_channel_does_not_end_publishing() {
    with_bench(|bench| {
        Box::pin(async move {
            let (proxy, transport) = through_proxy(bench).await;
            let queue = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 0, 1)).await;
            for channel in 1..=4 {
                proxy.inject(&channel_close(channel, 406, "PRECONDITION_FAILED - test"));
            }
            let sent = || async {
                let outcomes = transport.publish(numbered(queue, 1, 1)).await?;
                assert_eq!(outcomes, [Outcome::Confirmed]);
                Ok(())
            };
            eventually("publishing goes on", sent).await;
            let mut consumer = bench.open().consume(queue, 10).await.unwrap();
            assert_eq!(take(&mut *consumer, 2).await.0, [0, 1]);
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_broker_is_unreachable_within_the_deadline() {
    with_bench(|bench| {
        Box::pin(async move {
            let (proxy, transport) = through_proxy(bench).await;
            let queue = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 0, 1)).await;
            let mut consumer = transport.consume(queue, 10).await.unwrap();
            let (_, tag) = take(&mut *consumer, 1).await;

            proxy.stall();
            let began = Instant::now();
            assert_unreachable(transport.publish(numbered(queue, 1, 3)).await);
            assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
            // A call during the pause, and while connecting stalls, does not hang either.
            for _ in 0..5 {
                let began = Instant::now();
                assert_unreachable(transport.publish(numbered(queue, 4, 1)).await);
                assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
            }
            // The heartbeat finds out about the consumer's connection, whether or not the
            // acknowledgement went into the socket.
            let _ = consumer.acknowledge(tag).await;
            let began = Instant::now();
            assert!(consumer.next(SOON).await.is_err());
            assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
            drop(consumer);

            proxy.resume();
            let sent = || async { transport.publish(numbered(queue, 5, 1)).await };
            assert_eq!(eventually("publishing", sent).await, [Outcome::Confirmed]);
            eventually("declaring", || transport.declare(queue)).await;
            let mut consumer = eventually("reading", || transport.consume(queue, 100)).await;
            let mut seen = Vec::new();
            while let Some(delivery) = consumer.next(Duration::from_secs(2)).await.unwrap() {
                seen.push(number(&delivery.body));
            }
            assert!(seen.contains(&5), "{seen:?}");
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_connection_is_opened_again_and_nothing_confirmed_is_lost() {
    with_bench(|bench| {
        Box::pin(async move {
            let (proxy, transport) = through_proxy(bench).await;
            let queue = bench.declared(&*transport).await;
            let mut confirmed = Vec::new();
            for part in 0..10_u32 {
                let publishing = transport.publish(numbered(queue, part * 100, 100));
                let cutting = async {
                    tokio::time::sleep(Duration::from_millis(u64::from(part))).await;
                    proxy.cut();
                };
                let (outcomes, ()) = tokio::join!(publishing, cutting);
                for (number, outcome) in (part * 100..).zip(outcomes.unwrap_or_default()) {
                    if outcome == Outcome::Confirmed {
                        confirmed.push(number);
                    }
                }
                let sent = || async { transport.publish(numbered(queue, 5_000, 1)).await };
                assert_eq!(eventually("publishing", sent).await, [Outcome::Confirmed]);
            }
            let mut consumer = bench.open().consume(queue, 2_000).await.unwrap();
            let mut seen = std::collections::BTreeSet::new();
            while let Some(delivery) = consumer.next(Duration::from_secs(1)).await.unwrap() {
                seen.insert(number(&delivery.body));
            }
            let lost: Vec<_> = confirmed.iter().filter(|number| !seen.contains(number)).collect();
            assert!(lost.is_empty(), "confirmed and not in the queue: {lost:?}");
            assert!(proxy.accepted() > 10, "every cut was felt");
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_ends_consumers_at_once_and_gives_back_what_was_in_hand() {
    with_bench(|bench| {
        Box::pin(async move {
            let (proxy, transport) = through_proxy(bench).await;
            let queue = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 0, 3)).await;
            let mut consumer = transport.consume(queue, 10).await.unwrap();
            let (_, tag) = take(&mut *consumer, 3).await;
            proxy.cut();
            let began = Instant::now();
            let error = consumer.next(SOON).await.expect_err("the connection is gone");
            assert_eq!(error.kind(), Kind::Unreachable);
            assert!(began.elapsed() < PATIENCE);
            assert!(consumer.acknowledge(tag).await.is_err(), "what is lost cannot be taken");
            drop(consumer);
            let mut consumer = eventually("reading", || transport.consume(queue, 10)).await;
            let (mut numbers, tag) = take(&mut *consumer, 3).await;
            numbers.sort_unstable();
            assert_eq!(numbers, [0, 1, 2]);
            consumer.acknowledge(tag).await.unwrap();
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_unreachable_and_found_again() {
    with_bench(|bench| {
        Box::pin(async move {
            let (mut proxy, transport) = through_proxy(bench).await;
            proxy.go_away().await;
            let queue = bench.queue();
            assert_unreachable(transport.declare(queue).await);
            // The pause answers at once.
            let began = Instant::now();
            assert_unreachable(transport.declare(queue).await);
            assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
            // However long it takes: there is no limit of attempts.
            let until = Instant::now() + Duration::from_secs(3);
            while Instant::now() < until {
                assert_unreachable(transport.publish(numbered(queue, 0, 1)).await);
                assert_unreachable(transport.consume(queue, 1).await.map(drop));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            proxy.come_back().await;
            eventually("declaring", || transport.declare(queue)).await;
            let sent = || async { transport.publish(numbered(queue, 1, 1)).await };
            assert_eq!(eventually("publishing", sent).await, [Outcome::Confirmed]);
            let mut consumer = eventually("reading", || transport.consume(queue, 1)).await;
            assert_eq!(take(&mut *consumer, 1).await.0, [1]);
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_during_the_pause_do_not_connect() {
    with_bench(|bench| {
        Box::pin(async move {
            let (user, host, tail) = parts(&bench.url);
            let proxy = Proxy::to(&host).await;
            proxy.stall();
            let url = format!("amqp://{user}@{}/{tail}", proxy.address());
            let settings = Settings {
                backoff_min: SOON,
                backoff_max: SOON,
                connect_timeout: Duration::from_millis(200),
                ..short(bench)
            };
            let transport = transport::connect(&url, &settings).unwrap();
            let queue =
                Queue { to: ServerId::random(), from: ServerId::random(), lane: Lane::Acks };
            for _ in 0..20 {
                assert_unreachable(transport.declare(queue).await);
            }
            assert_eq!(proxy.accepted(), 1);
        })
    })
    .await;
}

/// A broker short of memory or disk: it says so, and reads no more from who publishes.
#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_connection_stops_publishing_and_nothing_else() {
    with_bench(|bench| {
        Box::pin(async move {
            let (proxy, transport) = through_proxy(bench).await;
            let queue = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 0, 2)).await; // only it is connected to publish
            let direct = bench.open();
            let mut consumer = direct.consume(queue, 1).await.unwrap();
            let (_, tag) = take(&mut *consumer, 1).await;

            proxy.inject(&blocked("low on memory"));
            let told = || async {
                match transport.publish(numbered(queue, 2, 1)).await {
                    Err(error) if error.to_string().contains("low on memory") => Ok(()),
                    other => Err(branchline::Error::failed(format!("{other:?}"))),
                }
            };
            eventually("publishing says that the broker blocks it", told).await;
            let began = Instant::now();
            let error = assert_unreachable(transport.publish(numbered(queue, 2, 1)).await);
            assert!(error.to_string().contains("low on memory"), "{error}");
            assert!(began.elapsed() < PATIENCE, "at once");
            consumer.acknowledge(tag).await.unwrap();
            assert_eq!(take(&mut *consumer, 1).await.0, [1]);

            proxy.inject(&unblocked());
            let sent = || async { transport.publish(numbered(queue, 3, 1)).await };
            assert_eq!(eventually("publishing", sent).await, [Outcome::Confirmed]);
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_connection_can_be_closed() {
    with_bench(|bench| {
        Box::pin(async move {
            let (proxy, transport) = through_proxy(bench).await;
            let queue = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 0, 1)).await;
            proxy.inject(&blocked("low on disk"));
            tokio::time::sleep(Duration::from_millis(100)).await;
            let began = Instant::now();
            transport.close().await;
            assert!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
        })
    })
    .await;
}

/// A broker that accepts and says nothing must not cost a thread for each attempt.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn attempts_on_a_mute_broker_leave_no_threads_behind() {
    with_bench(|bench| {
        Box::pin(async move {
            let (user, host, tail) = parts(&bench.url);
            let proxy = Proxy::to(&host).await;
            proxy.stall();
            let url = format!("amqp://{user}@{}/{tail}", proxy.address());
            let settings = Settings {
                connect_timeout: Duration::from_millis(50),
                backoff_min: Duration::from_millis(1),
                backoff_max: Duration::from_millis(1),
                ..short(bench)
            };
            let transport = transport::connect(&url, &settings).unwrap();
            let before = lapin_threads();
            for _ in 0..40 {
                assert_unreachable(transport.declare(bench.queue()).await);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!(proxy.accepted() >= 30, "it was tried: {}", proxy.accepted());
            bench.queues.lock().unwrap().clear();
            let gone = || async {
                // Other tests of this binary have threads too.
                let more = lapin_threads().saturating_sub(before);
                if more < 25 {
                    return Ok(());
                }
                Err(branchline::Error::failed(format!("{more} threads more")))
            };
            eventually("threads end", gone).await;
        })
    })
    .await;
}

#[cfg(target_os = "linux")]
fn lapin_threads() -> usize {
    let named = |task: &std::fs::DirEntry| {
        std::fs::read_to_string(task.path().join("comm"))
            .is_ok_and(|name| name.starts_with("lapin"))
    };
    std::fs::read_dir("/proc/self/task").unwrap().flatten().filter(|task| named(task)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_or_vhost_is_a_mistake_of_configuration() {
    let url = services::amqp_url();
    let (user, host, tail) = parts(url);
    let name = user.split(':').next().unwrap();
    for url in [
        format!("amqp://{name}:wr0ng@{host}/{tail}"),
        format!("amqp://{user}@{host}/no-such-vhost"),
    ] {
        let transport = transport::connect(&url, &Settings::default()).unwrap();
        let queue = Queue { to: ServerId::random(), from: ServerId::random(), lane: Lane::Acks };
        for _ in 0..2 {
            let error = transport.declare(queue).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{error:?}");
            assert!(error.to_string().contains(&host), "{error}");
            assert!(!format!("{error:?}").contains("wr0ng"), "{error:?}");
        }
        let error = transport.publish(numbered(queue, 0, 1)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Config, "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_to_a_broker_that_speaks_none_is_an_error() {
    let (user, host, tail) = parts(services::amqp_url());
    let url = format!("amqps://{user}@{host}/{tail}");
    let transport = transport::connect(&url, &Settings::default()).unwrap();
    let queue = Queue { to: ServerId::random(), from: ServerId::random(), lane: Lane::Acks };
    assert_unreachable(transport.declare(queue).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_without_a_password_is_shown() {
    let transport =
        transport::connect("amqp://clinic:s3cret@127.0.0.1:1/tree", &Settings::default()).unwrap();
    assert_eq!(transport.address(), "amqp://127.0.0.1:1/tree");
    for url in ["http://127.0.0.1", "amqp", "", "postgres://x"] {
        let error = transport::connect(url, &Settings::default()).err().unwrap();
        assert_eq!(error.kind(), Kind::Config);
    }
}

/// A server's own user, as `RELIABILITY` would have it: it may make nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_make_nothing_uses_what_an_administrator_made() {
    with_bench(|bench| {
        Box::pin(async move {
            let Some(user) = Restricted::new() else { return }; // not on the broker's machine
            let (_, host, tail) = parts(&bench.url);
            let url = format!("amqp://{0}:{0}@{host}/{tail}", user.0);
            let (restricted, admin) =
                (transport::connect(&url, &bench.settings).unwrap(), bench.open());
            let queue = bench.declared(&*admin).await;
            let missing = bench.queue();
            let error = restricted.declare(missing).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Config, "{error:?}");
            assert!(error.to_string().contains("administrator"), "{error}");
            assert!(error.to_string().contains(&missing.name()), "{error}");

            restricted.declare(queue).await.unwrap();
            publish(&*restricted, numbered(queue, 0, 1)).await;
            let mut consumer = restricted.consume(queue, 1).await.unwrap();
            assert_eq!(take(&mut *consumer, 1).await.0, [0]);
            assert_eq!(restricted.remove(queue).await.unwrap_err().kind(), Kind::Config);
        })
    })
    .await;
}

/// A user of the broker, whose password is its name, gone in the end.
struct Restricted(String);

impl Restricted {
    fn new() -> Option<Self> {
        let user = Self(format!("branchline-test-{}", Uuid::new_v4()));
        if !rabbitmqctl(&["add_user", &user.0, &user.0]) {
            std::mem::forget(user);
            return None;
        }
        let may = ["^$", "^branchline$", "^branchline[.]"];
        assert!(rabbitmqctl(&[&["set_permissions", &user.0], &may[..]].concat()));
        Some(user)
    }
}

impl Drop for Restricted {
    fn drop(&mut self) {
        rabbitmqctl(&["delete_user", &self.0]);
    }
}

fn rabbitmqctl(arguments: &[&str]) -> bool {
    let command = std::process::Command::new("rabbitmqctl").arg("-q").args(arguments).output();
    command.is_ok_and(|output| output.status.success())
}

/// A queue that an administrator made with other arguments, classic and without our bounds.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_another_kind_is_taken_as_it_is() {
    with_bench(|bench| {
        Box::pin(async move {
            let (queue, transport) = (bench.queue(), bench.open());
            let admin = plain_connection(bench).await;
            let channel = admin.create_channel().await.unwrap();
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            let made = channel.queue_declare(queue.name().into(), options, FieldTable::default());
            made.await.unwrap();
            transport.declare(queue).await.unwrap();
            publish(&*transport, numbered(queue, 0, 2)).await;
            let mut consumer = transport.consume(queue, 5).await.unwrap();
            assert_eq!(take(&mut *consumer, 2).await.0, [0, 1]);
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn classic_queues_can_be_asked_for() {
    with_bench(|bench| {
        Box::pin(async move {
            let settings = Settings { queue_type: QueueType::Classic, ..bench.settings.clone() };
            let transport = transport::connect(&bench.url, &settings).unwrap();
            let queue = bench.declared(&*transport).await;
            publish(&*transport, numbered(queue, 0, 300)).await;
            let mut consumer = transport.consume(queue, 300).await.unwrap();
            assert!(take(&mut *consumer, 300).await.0.into_iter().eq(0..300));
        })
    })
    .await;
}

/// The properties, by which a person reads a queue without decoding.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_says_what_it_is() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            let mut sent = message(queue, "body");
            sent.compressed = true;
            publish(&*transport, vec![sent.clone()]).await;
            let admin = plain_connection(bench).await;
            let channel = admin.create_channel().await.unwrap();
            // Not by basic.get, which a queue with a single active consumer refuses.
            let reading = channel.basic_consume(
                queue.name().into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            let got = reading.await.unwrap().next().await.unwrap().unwrap();
            let properties = got.properties;
            let text = |value: &Option<lapin::types::ShortString>| {
                value.as_ref().map(ToString::to_string).unwrap_or_default()
            };
            assert_eq!(text(properties.message_id()), sent.message_id.to_string());
            assert_eq!(text(properties.kind()), "records");
            assert_eq!(text(properties.content_type()), "application/msgpack");
            assert_eq!(text(properties.content_encoding()), "zstd");
            assert_eq!(text(properties.app_id()), queue.from.to_string());
            assert_eq!(*properties.delivery_mode(), Some(2));
            assert!(properties.timestamp().is_some());
        })
    })
    .await;
}

/// Somebody else publishes what no server of ours would.
#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_message_is_cut_and_can_be_taken() {
    with_bench(|bench| {
        Box::pin(async move {
            let transport = bench.open();
            let queue = bench.declared(&*transport).await;
            let admin = plain_connection(bench).await;
            let channel = admin.create_channel().await.unwrap();
            let body = vec![7; BODY_BYTES_MAX * 3];
            let to = queue.name();
            channel
                .basic_publish(
                    "".into(),
                    to.as_str().into(),
                    BasicPublishOptions::default(),
                    &body,
                    BasicProperties::default(),
                )
                .await
                .unwrap();
            let mut consumer = transport.consume(queue, 5).await.unwrap();
            let delivery = consumer.next(SOON).await.unwrap().unwrap();
            assert_eq!(delivery.body.len(), BODY_BYTES_MAX);
            consumer.acknowledge(delivery.tag).await.unwrap();
            publish(&*transport, numbered(queue, 1, 1)).await;
            assert_eq!(take(&mut *consumer, 1).await.0, [1]);
        })
    })
    .await;
}

/// Frames of AMQP 0-9-1, as the broker would send them.
fn method(channel: u16, class: u16, method: u16, arguments: &[u8]) -> Vec<u8> {
    let mut payload = [class.to_be_bytes(), method.to_be_bytes()].concat();
    payload.extend_from_slice(arguments);
    let mut frame = vec![1];
    frame.extend_from_slice(&channel.to_be_bytes());
    frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(&payload);
    frame.push(0xCE);
    frame
}

fn short_text(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

fn blocked(reason: &str) -> Vec<u8> {
    method(0, 10, 60, &short_text(reason))
}

fn unblocked() -> Vec<u8> {
    method(0, 10, 61, &[])
}

fn channel_close(channel: u16, code: u16, text: &str) -> Vec<u8> {
    let mut arguments = code.to_be_bytes().to_vec();
    arguments.extend(short_text(text));
    arguments.extend([0, 0, 0, 0]);
    method(channel, 20, 40, &arguments)
}
