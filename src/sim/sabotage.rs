//! The checker put to the test: with one mechanism taken out, it has to find something.

use std::cell::Cell;

/// A mechanism without which trees do not end equal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sabotage {
    /// A record that is known is dropped.
    Dedupe,
    /// What is not acknowledged is sent again.
    Resend,
    /// A row remembers what its deletes knew of.
    Erased,
    /// A record has one item a row.
    Coalescing,
    /// What builds on a change that is not here waits.
    GapRule,
}

thread_local! {
    static IN_FORCE: Cell<Option<Sabotage>> = const { Cell::new(None) };
}

/// Takes a mechanism out, for what runs on this thread.
pub(crate) fn take_out(what: Option<Sabotage>) {
    IN_FORCE.set(what);
}

/// Whether the mechanism is out.
pub(crate) fn is_out(what: Sabotage) -> bool {
    IN_FORCE.get() == Some(what)
}
