//! What the suites share.

pub(crate) mod proxy;
pub(crate) mod services;
