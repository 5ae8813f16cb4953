//! The laws of the join, on states of any shape.

use proptest::prelude::*;

use super::model::{name, stamp};
use super::{RowState, Seen, Stamp};

fn stamps() -> impl Strategy<Value = Stamp> {
    (0..4_u32, 1..10_u64).prop_map(|(server, time)| stamp(server, time))
}

/// Any state that keeps the invariants of [`RowState`], shadow left out.
pub(super) fn states() -> impl Strategy<Value = RowState> {
    let columns = proptest::collection::btree_map("[a-d]", stamps(), 0..4);
    let more = proptest::collection::vec(stamps(), 0..3);
    let erased = proptest::option::of(proptest::collection::vec(stamps(), 1..4));
    (proptest::option::of(stamps()), columns, more, erased).prop_map(
        |(base, columns, more, erased)| {
            let columns: Vec<(String, Stamp)> =
                columns.into_iter().filter(|(_, stamp)| base != Some(*stamp)).collect();
            let mut seen: Seen = base.into_iter().chain(more).collect();
            seen.join(&columns.iter().map(|(_, stamp)| *stamp).collect());
            let erased: Seen = erased.into_iter().flatten().collect();
            seen.join(&erased);
            let columns = columns.into_iter().map(|(column, stamp)| (name(&column), stamp));
            RowState { base, columns: columns.collect(), seen, erased, shadow: None }
        },
    )
}

fn joined(a: &RowState, b: &RowState) -> RowState {
    let mut joined = a.clone();
    joined.join(b);
    joined
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn joining_is_commutative(a in states(), b in states()) {
        prop_assert_eq!(joined(&a, &b), joined(&b, &a));
    }

    #[test]
    fn joining_is_associative(a in states(), b in states(), c in states()) {
        prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
    }

    #[test]
    fn joining_is_idempotent(a in states(), b in states()) {
        prop_assert_eq!(joined(&a, &a), a.clone());
        prop_assert_eq!(joined(&joined(&a, &b), &b), joined(&a, &b));
    }

    #[test]
    fn a_join_has_the_higher_stamp_of_every_column(a in states(), b in states()) {
        let both = joined(&a, &b);
        for column in ["a", "b", "c", "d", "named by nobody"] {
            prop_assert_eq!(both.stamp_of(column), a.stamp_of(column).max(b.stamp_of(column)));
        }
        prop_assert!(both.seen.covers(&a.seen) && both.erased.covers(&b.erased));
        prop_assert!(both.columns.values().all(|stamp| both.base != Some(*stamp)));
    }
}
