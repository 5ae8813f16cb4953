//! What was captured arrives, whatever becomes of the table, the key or the row meanwhile.

use super::clinic;
use crate::support::tree::{MIXED_AMQP, Mix, POSTGRES_AMQP, SQLITE_SPOOL, Tree};

const MIXES: [Mix; 3] = [POSTGRES_AMQP, SQLITE_SPOOL, MIXED_AMQP];

#[test]
fn what_was_captured_before_untrack_still_travels() {
    for mix in MIXES {
        let mut tree = Tree::unconnected(mix, "", clinic::database);
        tree.connect(&["--all"]);
        clinic::admit(&tree.child, "p1", "Ada");
        clinic::visit(&tree.child, "v1", "p1", "captured");
        tree.child.done(&["untrack", "visit"]);
        assert_eq!(tree.child.count("SELECT count(*) FROM @sync_change"), 0, "{mix:?}");
        clinic::visit(&tree.child, "v2", "p1", "not captured");
        tree.exchange();
        for server in [&tree.parent, &tree.child2] {
            assert_eq!(server.texts("SELECT note FROM visit"), ["captured"], "{mix:?}");
        }
    }
}
