//! Accounting for pages, against a model that is a set.

use std::collections::BTreeSet;

use dormouse_image::{Coverage, Extent, FormatError, PfnRange, Totals};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::values::{extent, ranges};

fn outside(extent: Extent) -> Result<(), FormatError> {
    let PfnRange { start, end } = extent.range();
    Err(FormatError::OutsideRam { start, end })
}

fn totals(ram: u64, held: u64) -> Totals {
    Totals { ram_pages: ram, stored_pages: held, omitted_pages: ram - held, ..Totals::default() }
}

#[test]
fn pages_outside_the_memory_are_refused() {
    let ram = ranges(0, &[(100, 64), (36, 100)]);
    for refused in [
        extent(99, 1),
        extent(99, 2),
        extent(163, 2),
        extent(164, 1),
        extent(199, 1),
        // Across the gap.
        extent(100, 200),
        extent(299, 2),
        extent(300, 1),
        extent(0, u32::MAX),
        extent(u64::MAX, u32::MAX),
    ] {
        assert_eq!(Coverage::new(&ram).add(refused), outside(refused));
    }
    for kept in [extent(100, 64), extent(163, 1), extent(200, 100), extent(299, 1)] {
        assert_eq!(Coverage::new(&ram).add(kept), Ok(()));
    }
    assert_eq!(Coverage::new(&[]).add(extent(0, 1)), outside(extent(0, 1)));
}

#[test]
fn the_first_page_that_is_there_twice_is_named() {
    let ram = ranges(1000, &[(0, 300)]);
    let mut coverage = Coverage::new(&ram);
    coverage.add(extent(1150, 2)).unwrap();
    for (again, twice) in [
        (extent(1150, 1), 1150),
        (extent(1151, 100), 1151),
        (extent(1000, 300), 1150),
        (extent(1149, 2), 1150),
        (extent(1064, 87), 1150),
    ] {
        assert_eq!(coverage.clone().add(again), Err(FormatError::Twice(twice)));
    }
}

#[test]
fn a_run_may_cross_between_ranges_that_touch() {
    let ram = ranges(10, &[(0, 70), (0, 60), (1, 10)]);
    let mut coverage = Coverage::new(&ram);
    assert_eq!(coverage.add(extent(10, 130)), Ok(()));
    assert_eq!(coverage.add(extent(79, 1)), Err(FormatError::Twice(79)));
    assert_eq!(coverage.add(extent(139, 3)), outside(extent(139, 3)));
    assert_eq!(coverage.finish(&totals(140, 130)), Ok(()));
}

#[test]
fn the_sums_must_be_those_of_the_commit_record() {
    let ram = ranges(0, &[(5, 100)]);
    let mut coverage = Coverage::new(&ram);
    coverage.add(extent(5, 40)).unwrap();
    assert_eq!(coverage.finish(&totals(100, 40)), Ok(()));
    let zero = Totals { stored_pages: 30, zero_pages: 10, ..totals(100, 40) };
    assert_eq!(coverage.finish(&zero), Ok(()));
    let count = |what, expected, found| Err(FormatError::Count { what, expected, found });
    assert_eq!(coverage.finish(&totals(101, 40)), count("pages of memory", 101, 100));
    assert_eq!(coverage.finish(&totals(100, 41)), count("pages", 41, 40));
    assert_eq!(coverage.finish(&totals(100, 39)), count("pages", 39, 40));
}

proptest! {
    #[test]
    fn it_agrees_with_a_set(
        steps in vec((0_u64..150, 1_u64..200), 1..6),
        runs in vec((0_u64..1500, 1_u32..200), 1..60),
    ) {
        let ram = ranges(0, &steps);
        let memory: BTreeSet<u64> = ram.iter().flat_map(|range| range.start..range.end).collect();
        let mut coverage = Coverage::new(&ram);
        let mut held = BTreeSet::new();
        for (pfn, pages) in runs {
            let run = extent(pfn, pages);
            let mut frames = run.range().start..run.range().end;
            let twice = frames.clone().find(|frame| held.contains(frame));
            let expected = match twice {
                _ if !frames.all(|frame| memory.contains(&frame)) => outside(run),
                Some(twice) => Err(FormatError::Twice(twice)),
                None => Ok(()),
            };
            let mut next = coverage.clone();
            prop_assert_eq!(next.add(run), expected.clone());
            // A reader ends at the first error; the model goes on from before it.
            if expected.is_ok() {
                coverage = next;
                held.extend(run.range().start..run.range().end);
            }
        }
        let totals = totals(memory.len() as u64, held.len() as u64);
        prop_assert_eq!(coverage.finish(&totals), Ok(()));
    }
}

#[test]
fn memory_that_a_header_only_claims_costs_nothing() {
    // All that can be claimed: a bit for each page would be 128 GiB.
    let ram = ranges(0, &[(0, 1 << 40)]);
    let mut coverage = Coverage::new(&ram);
    for start in (0..1 << 40).step_by(1 << 32) {
        coverage.add(extent(start, u32::MAX)).unwrap();
    }
    assert_eq!(coverage.add(extent((1 << 32) - 2, 1)), Err(FormatError::Twice((1 << 32) - 2)));
    assert_eq!(coverage.add(extent((1 << 32) - 1, 2)), Err(FormatError::Twice(1 << 32)));
    assert_eq!(coverage.add(extent((1 << 32) - 1, 1)), Ok(()));
}
