//! The links to neighbours: invite, join, evict.

use std::time::Duration;

use uuid::Uuid;

use super::{Server, transaction};
use crate::error::{Error, Result};
use crate::id::ServerId;
use crate::publisher::relay;
use crate::record::header::{self, Header, MessageKind};
use crate::record::messages::Join;
use crate::store::books::joining::{self, Joining};
use crate::store::books::servers::{self, LinkState, Neighbour};
use crate::store::books::{self, Attempts, invites};
use crate::store::time;
use crate::token::Token;
use crate::transport::{self, Lane, Outcome, Outgoing, Queue};

impl Server {
    /// Invites a server to become a child. The token is for one server and one use; whoever has it
    /// can join, so it is as secret as a password.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for a nickname that is taken, and for an address that
    /// children cannot reach.
    pub async fn invite(&self, nickname: &str, load: bool, lifetime: Duration) -> Result<Token> {
        let lifetime = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        transaction!(self, session => {
            let wanted = invites::Wanted {
                nickname,
                load,
                expires_at: time::now().saturating_add(lifetime),
                broker_url: self.config.address_for_children(),
            };
            invites::create(session, wanted, &self.actor).await
        })
    }

    /// Asks the server that made `token` to take this one as a child. Returns once the request is
    /// with the broker; the answer comes by the next exchange. `moving` leaves the present parent.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for a token that is wrong, used, expired or of another tree,
    /// [`Unreachable`](crate::Kind::Unreachable) when the parent's broker is: join again then.
    pub async fn join(&self, token: &str, moving: bool) -> Result<Joining> {
        let token = Token::decode(token)?;
        let joining: Joining = transaction!(self, session => {
            joining::join(session, &token, moving, time::now(), &self.actor).await
        })?;
        self.request(&token, &joining).await?;
        Ok(joining)
    }

    /// Publishes the join request, and returns once the broker has it.
    async fn request(&self, token: &Token, joining: &Joining) -> Result<()> {
        let own = &joining.identity;
        let join = Join {
            invite: token.invite,
            nickname: own.nickname.clone(),
            public_key: own.signing_key.verifying_key().to_bytes(),
            incarnation: own.incarnation,
            session: Uuid::new_v4(),
            format: header::FORMAT,
            clock: u64::try_from(time::now()).unwrap_or(0),
            proof: [0; 64],
        }
        .proven(&token.secret, own.server, token.parent);
        let header = Header {
            kind: MessageKind::Join,
            sender: own.server,
            receiver: token.parent,
            epoch: 0,
            number: 0,
        };
        let level = self.config.zstd_level;
        let sealed = header::seal(&header, &join.encode()?, &own.signing_key, level)?;
        let url = &joining.parent.address;
        let transport = transport::connect(url, &self.config.transport_settings(url))?;
        let queue = Queue { to: token.parent, from: token.parent, lane: Lane::Joins };
        let outgoing =
            Outgoing { queue, ..relay::outgoing(&header, &joining.parent, Lane::Joins, sealed) };
        let published = async {
            // Where the answer will lie: made by whoever may.
            transport.declare(queue).await?;
            transport
                .declare(Queue { to: own.server, from: token.parent, lane: Lane::Records })
                .await?;
            transport.publish(vec![outgoing]).await
        }
        .await;
        transport.close().await;
        match published?.into_iter().next() {
            Some(Outcome::Confirmed) => Ok(()),
            Some(Outcome::Refused(reason)) => {
                Err(Error::unreachable(format!("the broker does not take the request: {reason}")))
            }
            None => Err(Error::failed("the transport said nothing of the request")),
        }
    }

    /// The neighbours, the parent first, invited children included.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) when `init` has not been run.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let mut session = self.read().await?;
        let all = servers::neighbours(&mut session).await?;
        session.rollback().await?;
        Ok(all)
    }

    /// Ends a link. Nothing waits for that neighbour any more, and it has to be invited again. Also
    /// says what stood in the way of removing the link's queues: they stay with a broker that is
    /// away, which harms nobody but takes room.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for an unknown neighbour.
    pub async fn evict(&self, name: &str) -> Result<(Neighbour, Option<Error>)> {
        let (own, server): (_, Neighbour) = transaction!(self, session => {
            let own = books::identity(session).await?;
            let server = servers::find(session, name).await?;
            servers::evict(session, &server, &self.actor).await?;
            Ok((own, server))
        })?;
        let left = match server.state {
            LinkState::Invited => None,
            _ => self.remove_queues(own.server, &server).await.err(),
        };
        Ok((server, left))
    }

    async fn remove_queues(&self, own: ServerId, server: &Neighbour) -> Result<()> {
        // A child's queues lie with our broker, a parent's with its own.
        let url = self.config.broker_of(server);
        let transport = transport::connect(url, &self.config.transport_settings(url))?;
        let mut result = Ok(());
        'all: for (to, from) in [(own, server.server), (server.server, own)] {
            for lane in [Lane::Records, Lane::Acks] {
                result = transport.remove(Queue { to, from, lane }).await;
                if result.is_err() {
                    break 'all;
                }
            }
        }
        transport.close().await;
        result
    }

    /// Stops or resumes the exchange with a neighbour; records for it wait meanwhile.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for an unknown neighbour.
    pub async fn set_disabled(&self, name: &str, disabled: bool) -> Result<Neighbour> {
        transaction!(self, session => {
            let server = servers::find(session, name).await?;
            servers::set_disabled(session, &server, disabled, &self.actor).await?;
            Ok(server)
        })
    }
}
