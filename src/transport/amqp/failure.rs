//! What an answer of the broker, or its silence, leads to: one table.

use std::fmt;
use std::time::Duration;

use lapin::ErrorKind;

use crate::error::{Error, Kind};

/// Reply codes of AMQP 0-9-1 that are told apart.
pub(super) mod code {
    pub(in crate::transport::amqp) const INVALID_PATH: u16 = 402;
    pub(in crate::transport::amqp) const ACCESS_REFUSED: u16 = 403;
    pub(in crate::transport::amqp) const NOT_FOUND: u16 = 404;
    pub(in crate::transport::amqp) const PRECONDITION_FAILED: u16 = 406;
    pub(in crate::transport::amqp) const NOT_ALLOWED: u16 = 530;
}

/// Why a call to the broker did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// No answer within this time.
    Late(Duration),
    /// lapin or the broker said no.
    Lapin(lapin::Error),
}

impl Failure {
    /// The broker's reply code, when it gave one.
    pub(super) fn code(&self) -> Option<u16> {
        match self {
            Self::Lapin(error) => match error.kind() {
                ErrorKind::ProtocolError(answer) => Some(answer.get_id()),
                _ => None,
            },
            Self::Late(_) => None,
        }
    }

    /// Whether only the channel is gone, and the connection is as good as before.
    pub(super) fn is_of_channel(&self) -> bool {
        matches!(self, Self::Lapin(error) if error.is_amqp_soft_error())
    }

    fn kind(&self) -> Kind {
        match self.code() {
            // At login 403 is a wrong password, 530 (and 402) a vhost that is not there.
            Some(code::ACCESS_REFUSED | code::NOT_ALLOWED | code::INVALID_PATH) => Kind::Config,
            _ if self.is_of_channel() => Kind::Failed,
            _ => Kind::Unreachable,
        }
    }

    /// The error for the caller: `what` was wanted of the broker at `place`.
    pub(super) fn into_error(self, place: &str, what: &str) -> Error {
        let kind = self.kind();
        let hint = match kind {
            Kind::Config => "; check user, password, vhost and what the user may do there",
            _ => "",
        };
        match self {
            Self::Late(limit) => {
                Error::new(kind, format!("broker `{place}` did not {what} within {limit:?}"))
            }
            Self::Lapin(cause) => {
                Error::new(kind, format!("broker `{place}` did not {what}{hint}"))
                    .with_source(cause)
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late(limit) => write!(f, "no answer within {limit:?}"),
            Self::Lapin(error) => error.fmt(f),
        }
    }
}
