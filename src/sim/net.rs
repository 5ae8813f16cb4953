//! The transport of a simulated tree: queues in memory, and what may happen to a message.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rand::Rng as _;
use rand::rngs::StdRng;

use super::counters::Counters;
use super::plan::Rates;
use crate::error::{Error, Result};
use crate::id::ServerId;
use crate::transport::{Consumer, Outcome, Outgoing, Queue, Transport};

/// All queues of the tree, on whichever broker they lie.
pub(super) struct Net {
    pub(super) queues: BTreeMap<Queue, VecDeque<Bytes>>,
    pub(super) counters: Counters,
    pub(super) rates: Rates,
    /// Whether the scheduler lets publishing wait for it.
    pub(super) may_suspend: bool,
    /// Links that are cut now, as (child, parent): the child does not reach the broker.
    pub(super) cut: Vec<(ServerId, ServerId)>,
    /// Servers whose broker is away.
    pub(super) away: Vec<ServerId>,
    /// Links as (child, parent).
    pub(super) links: Vec<(ServerId, ServerId)>,
    /// Published messages whose fate the scheduler has still to decide.
    waiting: BTreeMap<u64, Ticket>,
    next_ticket: u64,
    rng: StdRng,
}

/// Messages on their way to the broker.
struct Ticket {
    from: ServerId,
    messages: Vec<Outgoing>,
    decided: Option<Result<Vec<Outcome>>>,
}

pub(super) type SharedNet = Arc<Mutex<Net>>;

pub(super) fn lock(net: &SharedNet) -> MutexGuard<'_, Net> {
    net.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Net {
    pub(super) fn new(rates: Rates, links: Vec<(ServerId, ServerId)>, rng: StdRng) -> SharedNet {
        Arc::new(Mutex::new(Self {
            queues: BTreeMap::new(),
            counters: Counters::default(),
            rates,
            may_suspend: true,
            cut: Vec::new(),
            away: Vec::new(),
            links,
            waiting: BTreeMap::new(),
            next_ticket: 0,
            rng,
        }))
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.rng.gen_range(0..1_000) < per_mille
    }

    /// Whether `from` reaches the broker of its link with `to`.
    pub(super) fn reaches(&self, from: ServerId, to: ServerId) -> bool {
        let Some(link) = self.links.iter().find(|(child, parent)| {
            (*child, *parent) == (from, to) || (*child, *parent) == (to, from)
        }) else {
            return false;
        };
        let cut = link.0 == from && self.cut.contains(link);
        !(cut || self.away.contains(&link.1))
    }

    /// Takes messages of a server. They are dealt with now, or when the scheduler says so.
    fn offer(&mut self, from: ServerId, messages: Vec<Outgoing>) -> u64 {
        let id = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.insert(id, Ticket { from, messages, decided: None });
        let suspend = self.rates.suspend;
        if !(self.may_suspend && self.chance(suspend)) {
            self.decide(id);
        }
        id
    }

    /// The ticket of the task that was just polled, if it waits for one.
    pub(super) fn undecided_of(&self, from: ServerId, known: &[u64]) -> Option<u64> {
        let mine = |(id, ticket): &(&u64, &Ticket)| {
            ticket.from == from && ticket.decided.is_none() && !known.contains(*id)
        };
        self.waiting.iter().find(mine).map(|(id, _)| *id)
    }

    /// Decides what becomes of the messages of a ticket.
    pub(super) fn decide(&mut self, id: u64) {
        let Some(ticket) = self.waiting.get_mut(&id) else { return };
        let (from, messages) = (ticket.from, std::mem::take(&mut ticket.messages));
        let decided = self.publish(from, messages);
        if let Some(ticket) = self.waiting.get_mut(&id) {
            ticket.decided = Some(decided);
        }
    }

    fn publish(&mut self, from: ServerId, messages: Vec<Outgoing>) -> Result<Vec<Outcome>> {
        let rates = self.rates;
        if let Some(first) = messages.first()
            && !self.reaches(from, first.queue.to)
        {
            self.counters.note("partition: publish refused");
            return Err(Error::unreachable("simulated: the broker is out of reach"));
        }
        let lost_confirm = self.chance(rates.lost_confirm);
        let mut outcomes = Vec::with_capacity(messages.len());
        for message in messages {
            if self.chance(rates.refuse) {
                self.counters.note("fault: refused");
                outcomes.push(Outcome::Refused("simulated: the broker says no".to_owned()));
                continue;
            }
            self.arrive(message.queue, message.body);
            outcomes.push(Outcome::Confirmed);
        }
        if lost_confirm {
            self.counters.note("fault: lost confirm");
            return Err(Error::unreachable("simulated: the confirm is lost"));
        }
        Ok(outcomes)
    }

    /// A message reaches its queue, or does not, or twice, or at another place.
    fn arrive(&mut self, queue: Queue, body: Bytes) {
        let rates = self.rates;
        if self.chance(rates.drop) {
            self.counters.note("fault: dropped");
            return;
        }
        let copies = if self.chance(rates.duplicate) {
            self.counters.note("fault: duplicated");
            2
        } else {
            1
        };
        for _ in 0..copies {
            let length = self.queues.get(&queue).map_or(0, VecDeque::len);
            let at = if length > 0 && self.chance(rates.reorder) {
                self.counters.note("fault: reordered");
                self.rng.gen_range(0..=length)
            } else {
                length
            };
            self.queues.entry(queue).or_default().insert(at, body.clone());
        }
    }

    /// A server was killed: what it was publishing has arrived, or has not.
    pub(super) fn forget(&mut self, from: ServerId) {
        let own: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, ticket)| ticket.from == from)
            .map(|(id, _)| *id)
            .collect();
        for id in own {
            if self.chance(500) {
                self.decide(id);
            }
            self.waiting.remove(&id);
        }
    }

    /// A broker loses everything that lies with it.
    pub(super) fn wipe(&mut self, parent: ServerId) {
        let children: Vec<ServerId> =
            self.links.iter().filter(|link| link.1 == parent).map(|link| link.0).collect();
        for (queue, messages) in &mut self.queues {
            let other = if queue.to == parent { queue.from } else { queue.to };
            if (queue.to == parent || queue.from == parent) && children.contains(&other) {
                messages.clear();
            }
        }
    }
}

/// One server's way to the queues.
pub(super) struct Wire {
    pub(super) net: SharedNet,
    pub(super) server: ServerId,
}

impl Transport for Wire {
    fn declare<'a>(&'a self, _: Queue) -> BoxFuture<'a, Result<()>> {
        async { Ok(()) }.boxed()
    }

    fn publish<'a>(&'a self, messages: Vec<Outgoing>) -> BoxFuture<'a, Result<Vec<Outcome>>> {
        let ticket = lock(&self.net).offer(self.server, messages);
        std::future::poll_fn(move |_| {
            let mut net = lock(&self.net);
            match net.waiting.get_mut(&ticket).and_then(|ticket| ticket.decided.take()) {
                Some(decided) => {
                    net.waiting.remove(&ticket);
                    Poll::Ready(decided)
                }
                None => Poll::Pending,
            }
        })
        .boxed()
    }

    fn consume<'a>(&'a self, _: Queue, _: u16) -> BoxFuture<'a, Result<Box<dyn Consumer>>> {
        async { Ok(Box::new(Idle) as Box<dyn Consumer>) }.boxed()
    }

    fn remove<'a>(&'a self, queue: Queue) -> BoxFuture<'a, Result<()>> {
        lock(&self.net).queues.remove(&queue);
        async { Ok(()) }.boxed()
    }

    fn address(&self) -> &str {
        "simulated"
    }

    fn close<'a>(&'a self) -> BoxFuture<'a, ()> {
        async {}.boxed()
    }
}

/// The scheduler hands messages over by itself.
struct Idle;

impl Consumer for Idle {
    fn next<'a>(
        &'a mut self,
        _: Duration,
    ) -> BoxFuture<'a, Result<Option<crate::transport::Delivery>>> {
        async { Ok(None) }.boxed()
    }

    fn acknowledge<'a>(&'a mut self, _: u64) -> BoxFuture<'a, Result<()>> {
        async { Ok(()) }.boxed()
    }
}
