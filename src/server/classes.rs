//! Which class goes to whom.

use super::{Server, transaction};
use crate::error::Result;
use crate::store::books::rules::{self, Change, Rule};
use crate::store::books::servers::{self, Neighbour};
use crate::store::books::{self, Attempts};

/// What setting a rule came to.
#[derive(Clone, Debug)]
pub struct RuleSet {
    /// The rule as it stands now.
    pub rule: Rule,
    /// The tracked classes that it names.
    pub named: Vec<String>,
    /// The tracked classes that refer to one of them.
    pub referring: Vec<String>,
}

impl Server {
    /// The rules: the defaults (under no nickname) and each neighbour's own, or one neighbour's.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for an unknown neighbour.
    pub async fn rules(&self, server: Option<&str>) -> Result<Vec<(Option<String>, Rule)>> {
        let mut session = self.read().await?;
        let mut list = Vec::new();
        let chosen = match server {
            Some(name) => vec![servers::find(&mut session, name).await?],
            None => {
                let defaults = rules::defaults(&mut session).await?;
                list.extend(defaults.into_iter().map(|rule| (None, rule)));
                servers::neighbours(&mut session).await?
            }
        };
        for server in chosen {
            let own = rules::rules_of(&mut session, server.id).await?;
            list.extend(own.into_iter().map(|rule| (Some(server.nickname.clone()), rule)));
        }
        session.rollback().await?;
        Ok(list)
    }

    /// Changes rules of one neighbour, or the defaults for servers that join later; all or none.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for an unknown neighbour or a name that cannot be one.
    pub async fn set_rules(
        &self,
        server: Option<&str>,
        changes: &[Change<'_>],
    ) -> Result<(Option<Neighbour>, Vec<RuleSet>)> {
        transaction!(self, session => {
            books::identity(session).await?;
            let server = match server {
                Some(name) => Some(servers::find(session, name).await?),
                None => None,
            };
            let mut done = Vec::new();
            for change in changes {
                let rule = rules::set(session, server.as_ref(), *change, &self.actor).await?;
                let (named, referring) = rules::reach(session, &rule.name).await?;
                done.push(RuleSet { rule, named, referring });
            }
            Ok((server, done))
        })
    }

    /// Copies default rules to the neighbours that are there, or to one of them.
    ///
    /// # Errors
    /// [`Config`](crate::Kind::Config) for an unknown neighbour, or where there is no such rule.
    pub async fn propagate(
        &self,
        names: &[String],
        server: Option<&str>,
    ) -> Result<(Vec<Neighbour>, Vec<Rule>)> {
        transaction!(self, session => {
            books::identity(session).await?;
            let chosen = match server {
                Some(name) => vec![servers::find(session, name).await?],
                None => servers::neighbours(session).await?,
            };
            let mut done = Vec::new();
            for name in names {
                done.push(rules::propagate(session, name, &chosen, &self.actor).await?);
            }
            Ok((chosen, done))
        })
    }
}
