//! The one task that publishes: in rounds, each of which waits for all its confirms.
//!
//! Rounds, because lapin hands a returned message to whichever confirm completes next, so one
//! confirm says nothing about its own message. When all confirms of a round are in, all returns
//! of the round are in as well (the broker sends a return before its confirm), and they are
//! matched by message id. One task, because lapin's delivery tags swap between concurrent
//! publishers on one channel. A round that breaks off says nothing about any of its messages, so
//! none of them counts as confirmed.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation, PublisherConfirm};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::failure::Failure;
use super::session::Session;
use super::supervisor::Supervisor;
use super::topology::{self, EXCHANGE};
use crate::error::{Error, Result};
use crate::failpoint::crash_point;
use crate::transport::{BODY_BYTES_MAX, Outcome, Outgoing};

/// Bytes in a round, but always one message: what a cut line costs at most.
const ROUND_BYTES_MAX: usize = 1 << 20;

/// The slowest line that is still waited for, in bytes a second.
const LINE_BYTES_PER_SECOND: usize = 4_096;

/// Calls that may wait for the task at once; the next one waits for its turn.
pub(super) const CALLS_MAX: usize = 64;

/// One call of `publish`: its messages, and where the outcomes go.
pub(super) struct Job {
    /// What is not published yet, each with its place in the call.
    waiting: VecDeque<(usize, Outgoing)>,
    outcomes: Vec<Option<Outcome>>,
    /// Whether the broker has answered for any of them.
    heard: bool,
    answer: oneshot::Sender<Result<Vec<Outcome>>>,
}

impl Job {
    pub(super) fn new(messages: Vec<Outgoing>) -> (Self, oneshot::Receiver<Result<Vec<Outcome>>>) {
        let (answer, answered) = oneshot::channel();
        let refuse = |message: &Outgoing| {
            let size = message.body.len();
            (size > BODY_BYTES_MAX).then(|| too_large(size))
        };
        let outcomes: Vec<_> = messages.iter().map(refuse).collect();
        let fits = |(at, _): &(usize, Outgoing)| outcomes[*at].is_none();
        let waiting = messages.into_iter().enumerate().filter(fits).collect();
        (Self { waiting, outcomes, heard: false, answer }, answered)
    }

    /// Answers the call when all is known; else gives the job back.
    fn settled(self) -> Option<Self> {
        if !self.waiting.is_empty() {
            return Some(self);
        }
        self.send("not published");
        None
    }

    /// Answers the call after a failure: what is known of its messages, if anything is.
    fn failed(self, error: &Error) {
        if self.heard {
            return self.send(&error.chain());
        }
        let _ = self.answer.send(Err(Error::new(error.kind(), error.chain())));
    }

    fn send(self, otherwise: &str) {
        let fill = |outcome: Option<Outcome>| {
            outcome.unwrap_or_else(|| Outcome::Refused(otherwise.to_owned()))
        };
        let outcomes = self.outcomes.into_iter().map(fill).collect();
        let _ = self.answer.send(Ok(outcomes)); // the caller may have gone
    }
}

/// The publishing task.
pub(super) struct Publisher {
    supervisor: Arc<Supervisor>,
    window: usize,
    open: Option<(Arc<Session>, Channel)>,
}

impl Publisher {
    pub(super) fn new(supervisor: Arc<Supervisor>, window: usize) -> Self {
        Self { supervisor, window: window.max(1), open: None }
    }

    /// Works until the last sender of jobs is gone.
    pub(super) async fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut queue: VecDeque<Job> = VecDeque::new();
        loop {
            if queue.is_empty() {
                match jobs.recv().await {
                    Some(job) => queue.push_back(job),
                    None => return,
                }
            }
            while queue.len() < self.window
                && let Ok(job) = jobs.try_recv()
            {
                queue.push_back(job);
            }
            let round = Round::take(&mut queue, self.window);
            let result = self.publish(&round.messages).await;
            for job in round.settle(result).into_iter().rev() {
                queue.push_front(job);
            }
        }
    }

    async fn publish(&mut self, messages: &[Outgoing]) -> Result<Vec<Outcome>> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        let (session, channel) = self.channel().await?;
        let result = publish_round(&session, &channel, messages).await;
        result.map_err(|failure| {
            // Whatever it was, this channel is not to be used again, and the connection neither.
            self.open = None;
            session.give_up(failure.to_string());
            session.error(failure, &format!("confirm {} messages", messages.len()))
        })
    }

    async fn channel(&mut self) -> Result<(Arc<Session>, Channel)> {
        let session = self.supervisor.session().await?;
        if let Some((of, channel)) = &self.open
            && Arc::ptr_eq(of, &session)
        {
            return Ok((session, channel.clone()));
        }
        self.open = None;
        topology::declare_exchange(&session).await?;
        let channel = open_channel(&session).await.map_err(|failure| {
            session.give_up(failure.to_string());
            session.error(failure, "open a channel to publish")
        })?;
        self.open = Some((session.clone(), channel.clone()));
        Ok((session, channel))
    }
}

async fn open_channel(session: &Session) -> Result<Channel, Failure> {
    let channel = session.channel().await?;
    session.call(channel.confirm_select(ConfirmSelectOptions::default())).await?;
    Ok(channel)
}

/// Hands all messages over, then waits for all answers.
async fn publish_round(
    session: &Session,
    channel: &Channel,
    messages: &[Outgoing],
) -> Result<Vec<Outcome>, Failure> {
    let settings = &session.broker().settings;
    let bytes: usize = messages.iter().map(|message| message.body.len()).sum();
    let line = Duration::from_secs((bytes / LINE_BYTES_PER_SECOND) as u64);

    let (limit, began) = (settings.publish_timeout + line, Instant::now());
    let mut confirms: Vec<PublisherConfirm> = Vec::with_capacity(messages.len());
    for message in messages {
        let publishing = channel.basic_publish(
            EXCHANGE.into(),
            message.queue.routing_key().into(),
            BasicPublishOptions { mandatory: true, ..Default::default() },
            &message.body,
            properties(message),
        );
        match timeout_at(began + limit, publishing).await {
            Ok(confirm) => confirms.push(confirm.map_err(Failure::Lapin)?),
            Err(_) => return Err(Failure::Late(limit)),
        }
    }

    crash_point!("publish.written");
    let limit = settings.confirm_timeout + line;
    let confirmations = match timeout_at(Instant::now() + limit, join_all(confirms)).await {
        Ok(all) => all.into_iter().collect::<Result<Vec<_>, _>>().map_err(Failure::Lapin)?,
        Err(_) => return Err(Failure::Late(limit)),
    };
    Ok(outcomes(messages, confirmations))
}

/// What became of each message, once every confirm of the round is in.
fn outcomes(messages: &[Outgoing], confirmations: Vec<Confirmation>) -> Vec<Outcome> {
    let mut returned: HashSet<String> = HashSet::new();
    let mut accepted = Vec::with_capacity(confirmations.len());
    for confirmation in confirmations {
        accepted.push(confirmation.is_ack());
        if let Some(message) = confirmation.take_message()
            && let Some(id) = message.properties.message_id()
        {
            returned.insert(id.to_string());
        }
    }
    let outcome = |(message, accepted): (&Outgoing, bool)| {
        let queue = message.queue.name();
        if returned.contains(message.message_id.to_string().as_str()) {
            Outcome::Refused(format!("the broker has no queue `{queue}`, or it is not bound"))
        } else if accepted {
            Outcome::Confirmed
        } else {
            Outcome::Refused(format!("the broker did not take it: queue `{queue}` may be full"))
        }
    };
    messages.iter().zip(accepted).map(outcome).collect()
}

fn properties(message: &Outgoing) -> BasicProperties {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(message.message_id.to_string().into())
        .with_type(message.kind.into())
        .with_content_type("application/msgpack".into())
        .with_timestamp(now.as_secs())
        .with_app_id(message.sender.to_string().into());
    if message.compressed { properties.with_content_encoding("zstd".into()) } else { properties }
}

/// What is published together, and whose it is.
#[derive(Default)]
struct Round {
    messages: Vec<Outgoing>,
    /// For each message its job, by position, and its place in that job's call.
    owners: Vec<(usize, usize)>,
    jobs: Vec<Job>,
    bytes: usize,
}

impl Round {
    /// Takes messages off the jobs, in order, and the jobs that they are of.
    fn take(queue: &mut VecDeque<Job>, window: usize) -> Self {
        let mut round = Self::default();
        while let Some(mut job) = queue.pop_front() {
            let before = round.messages.len();
            while let Some((place, message)) =
                job.waiting.pop_front_if(|(_, message)| round.has_room(message, window))
            {
                round.bytes += message.body.len();
                round.owners.push((round.jobs.len(), place));
                round.messages.push(message);
            }
            let full = !job.waiting.is_empty();
            if full && round.messages.len() == before {
                queue.push_front(job);
                break;
            }
            round.jobs.push(job);
            if full {
                break;
            }
        }
        round
    }

    fn has_room(&self, message: &Outgoing, window: usize) -> bool {
        self.messages.is_empty()
            || (self.messages.len() < window && self.bytes + message.body.len() <= ROUND_BYTES_MAX)
    }

    /// Gives the outcomes to the jobs, answers those that are done, and returns the others.
    fn settle(mut self, result: Result<Vec<Outcome>>) -> Vec<Job> {
        match result {
            Ok(outcomes) => {
                for ((job, place), outcome) in self.owners.into_iter().zip(outcomes) {
                    self.jobs[job].outcomes[place] = Some(outcome);
                    self.jobs[job].heard = true;
                }
                self.jobs.into_iter().filter_map(Job::settled).collect()
            }
            Err(error) => {
                self.jobs.into_iter().for_each(|job| job.failed(&error));
                Vec::new()
            }
        }
    }
}

fn too_large(size: usize) -> Outcome {
    Outcome::Refused(format!("{size} bytes are more than a message may have ({BODY_BYTES_MAX})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::id::ServerId;
    use crate::transport::{Lane, Queue};

    fn job(sizes: &[usize]) -> (Job, oneshot::Receiver<Result<Vec<Outcome>>>) {
        let queue = Queue { to: ServerId::random(), from: ServerId::random(), lane: Lane::Acks };
        let message = |size: &usize| Outgoing {
            queue,
            message_id: uuid::Uuid::new_v4(),
            kind: "acks",
            compressed: false,
            sender: queue.from,
            body: vec![0; *size].into(),
        };
        Job::new(sizes.iter().map(message).collect())
    }

    fn confirmed(round: Round) -> Vec<Job> {
        let count = round.messages.len();
        round.settle(Ok(vec![Outcome::Confirmed; count]))
    }

    #[test]
    fn a_round_keeps_to_its_window_and_its_bytes() {
        let (first, mut answer) = job(&[1; 5]);
        let (second, _answer) = job(&[ROUND_BYTES_MAX, 1, ROUND_BYTES_MAX]);
        let mut queue = VecDeque::from([first, second]);
        let mut sizes = Vec::new();
        while !queue.is_empty() {
            let round = Round::take(&mut queue, 3);
            sizes.push(round.messages.len());
            confirmed(round).into_iter().rev().for_each(|job| queue.push_front(job));
        }
        assert_eq!(sizes, [3, 2, 1, 1, 1]);
        assert_eq!(answer.try_recv().unwrap().unwrap(), vec![Outcome::Confirmed; 5]);
    }

    #[test]
    fn a_broken_round_is_an_error_unless_the_broker_answered_before() {
        let broken = || Err(Error::unreachable("cut"));
        let (unheard, mut answer) = job(&[1]);
        let mut queue = VecDeque::from([unheard]);
        Round::take(&mut queue, 3).settle(broken());
        assert_eq!(answer.try_recv().unwrap().unwrap_err().kind(), Kind::Unreachable);

        let (heard, mut answer) = job(&[1, BODY_BYTES_MAX + 1, 1]);
        let mut queue: VecDeque<_> = VecDeque::from([heard]);
        let rest = confirmed(Round::take(&mut queue, 1));
        Round::take(&mut rest.into(), 1).settle(broken());
        let outcomes = answer.try_recv().unwrap().unwrap();
        assert_eq!(outcomes[0], Outcome::Confirmed);
        assert!(outcomes[1..].iter().all(|outcome| *outcome != Outcome::Confirmed));
    }
}
