//! One opaque error for the whole crate.
//!
//! A caller asks [`Error::kind`] what the error leads to; a person reads what happened, to what,
//! and what to do. The text is lower case, without a full stop, and never holds a row's values.

use std::fmt;

/// The result of nearly everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What an error leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The command line, the configuration or a token is wrong: a person mends it.
    Config,
    /// The database or the broker cannot be reached: try again later, nothing is used up.
    Unreachable,
    /// A lock, a deadlock or a serialisation failure: the same work may succeed at once.
    Busy,
    /// A message or a stored record does not decode, or breaks a limit: it is held.
    Decode,
    /// The database refused a row (constraint, type, missing reference): the record is held.
    Constraint,
    /// Anything else: a database or broker error that a retry may or may not cure.
    Failed,
}

/// What went wrong, with its cause chained as the source.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync + 'static>>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    /// A mistake of configuration or use.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    /// Bytes that are not what they should be.
    pub fn decode(message: impl Into<String>) -> Self {
        Self::new(Kind::Decode, message)
    }

    /// Something that the database refused, or that a row needs and does not have.
    pub fn constraint(message: impl Into<String>) -> Self {
        Self::new(Kind::Constraint, message)
    }

    /// Anything that fits no other kind.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// A database or broker that does not answer.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    /// The same error with its cause.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
    ) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The same error, said in a wider context; the kind stays.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Self {
        let kind = self.kind();
        Self::new(kind, message).with_source(self)
    }

    /// What the error leads to.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether trying the same again later, unchanged, is the right answer.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self.0.kind, Kind::Unreachable | Kind::Busy)
    }

    /// Whether the record at hand is to be held, and everything else goes on.
    #[must_use]
    pub fn holds_record(&self) -> bool {
        matches!(self.0.kind, Kind::Decode | Kind::Constraint)
    }

    /// The message with all its causes, joined by `: `, for a log line or a state table.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|cause| cause.as_ref() as _)
    }
}

/// Adds what was being done to an error of this crate.
pub trait Context<T> {
    /// Wraps the error with `message`, made only when there is one.
    fn context(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.context(message()))
    }
}
