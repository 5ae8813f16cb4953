//! The link protocol against real brokers: what is lost on the way is seen, asked for and sent again.
//!
//! Neither the minutely hello nor the resend time helps here: both are set far beyond a test.

mod broker;
mod copies;
mod lost;
mod restore;
mod rows;
mod skew;

use std::time::Duration;

use crate::support::cli::{TestServer, wait_until};
use crate::support::tree::{ARRIVES_WITHIN, Mix, Tree};

use super::tree::clinic;

/// Nothing comes by the clock.
const NO_CLOCK: &str = "hello_every = \"1h\"\nresend_after = \"1h\"";

fn tree(mix: Mix) -> Tree {
    tree_with(mix, NO_CLOCK)
}

fn tree_with(mix: Mix, settings: &str) -> Tree {
    let mut tree = Tree::unconnected(mix, settings, clinic::database);
    tree.connect(&["--all"]);
    tree
}

/// Waits until `server` has this many patients.
#[track_caller]
fn wait_for_patients(server: &TestServer, count: i64) {
    let what = format!("{} has {count} patients", server.nickname());
    wait_until(&what, ARRIVES_WITHIN, || server.count("SELECT count(*) FROM patient") == count);
}

/// Waits until all records of `server` for its parent are committed there.
#[track_caller]
fn wait_for_answers(server: &TestServer) {
    wait_until("all records are committed", Duration::from_secs(60), || {
        server.texts("SELECT DISTINCT state FROM @sync_record") == ["COMMITTED"]
    });
}

/// Each test on three mixes of databases and brokers.
macro_rules! on_mixes {
    ($($test:ident)*) => {
        $crate::suite::link::on_mixes!(@mix postgres_amqp POSTGRES_AMQP $($test)*);
        $crate::suite::link::on_mixes!(@mix sqlite_spool SQLITE_SPOOL $($test)*);
        $crate::suite::link::on_mixes!(@mix mixed_amqp MIXED_AMQP $($test)*);
    };
    (@mix $module:ident $mix:ident $($test:ident)*) => {
        mod $module {
            $(#[test]
            fn $test() {
                super::$test(crate::support::tree::$mix);
            })*
        }
    };
}
use on_mixes;
