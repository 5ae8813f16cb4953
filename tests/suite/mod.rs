//! The suites, one for each room.

mod transport;
