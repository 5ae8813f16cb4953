//! What goes wrong: records that cannot go in, processes that die, lines that are cut, services that
//! are away. After each: nothing lost, nothing doubled, nothing stuck.

mod alarms;
mod broker;
mod chain;
mod crashes;
mod held;
mod kit;
mod unreadable;
