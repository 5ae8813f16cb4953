//! The publisher: interceptor and relay for an application that embeds them.

pub mod relay;
