//! Lists of running numbers as ranges, both ends included, in order, disjoint.

/// From and to, both included.
pub type Range = (u64, u64);

/// What of `range` lies within `bounds`; `None` when nothing does.
#[must_use]
pub fn clip((from, to): Range, bounds: Range) -> Option<Range> {
    let (from, to) = (from.max(bounds.0), to.min(bounds.1));
    (from <= to).then_some((from, to))
}

/// `range` without `hole`: up to two pieces.
#[must_use]
pub fn without((from, to): Range, hole: Range) -> Vec<Range> {
    let Some((first, last)) = clip((from, to), hole) else { return vec![(from, to)] };
    let mut left = Vec::with_capacity(2);
    if from < first {
        left.push((from, first - 1));
    }
    if last < to {
        left.push((last + 1, to));
    }
    left
}

/// Brings ranges into order and joins those that touch; nonsense (from above to) is dropped. Beyond
/// `max` ranges the last ones are taken as one.
#[must_use]
pub fn tidy(mut list: Vec<Range>, max: usize) -> Vec<Range> {
    list.retain(|(from, to)| from <= to);
    list.sort_unstable();
    let mut tidied: Vec<Range> = Vec::with_capacity(list.len());
    for (from, to) in list {
        match tidied.last_mut() {
            Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
            _ => tidied.push((from, to)),
        }
    }
    while tidied.len() > max.max(1) {
        if let Some((_, to)) = tidied.pop()
            && let Some(last) = tidied.last_mut()
        {
            last.1 = to;
        }
    }
    tidied
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(list: &[Range]) -> Vec<u64> {
        list.iter().flat_map(|(from, to)| *from..=*to).collect()
    }

    proptest! {
        #[test]
        fn a_hole_takes_out_its_numbers_and_no_other(from in 0_u64..20, len in 0_u64..20, hole in 0_u64..40, size in 0_u64..20) {
            let (range, hole) = ((from, from + len), (hole, hole + size));
            let expected: Vec<u64> = (range.0..=range.1).filter(|n| !(hole.0..=hole.1).contains(n)).collect();
            prop_assert_eq!(numbers(&without(range, hole)), expected);
        }

        #[test]
        fn tidying_keeps_every_number_and_the_bound(list in prop::collection::vec((0_u64..50, 0_u64..6), 0..30), max in 1_usize..5) {
            let list: Vec<Range> = list.into_iter().map(|(from, len)| (from, from + len)).collect();
            let tidied = tidy(list.clone(), max);
            prop_assert!(tidied.len() <= max);
            prop_assert!(tidied.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
            let kept = numbers(&tidied);
            prop_assert!(numbers(&list).iter().all(|n| kept.contains(n)));
            let exact = numbers(&tidy(list.clone(), usize::MAX));
            let mut all = numbers(&list);
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(exact, all);
        }
    }

    #[test]
    fn nonsense_is_dropped() {
        assert_eq!(
            tidy(vec![(5, 4), (u64::MAX, u64::MAX), (7, 7)], 9),
            [(7, 7), (u64::MAX, u64::MAX)]
        );
        assert_eq!(clip((1, 5), (6, 9)), None);
    }
}
