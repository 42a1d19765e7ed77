//! How many bytes of the disk are taken where several versions hold the same ones.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::path::PathBuf;

/// What a file system gives away at once.
pub(super) const BLOCK: u64 = 4096;

/// What one version holds of one file of the file system, under one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hold {
    /// Relative to the version's folder.
    pub(super) path: PathBuf,
    pub(super) inode: u64,
    /// The file's length.
    pub(super) size: u64,
    /// Whole blocks, apart from each other.
    pub(super) ranges: Vec<Range<u64>>,
}

impl Hold {
    /// Ranges of bytes, widened to blocks. They need no order.
    pub(super) fn of(
        path: PathBuf,
        (inode, size): (u64, u64),
        ranges: impl Iterator<Item = Range<u64>>,
    ) -> Self {
        let ranges = ranges.filter(|range| !range.is_empty());
        let widened =
            ranges.map(|r| r.start / BLOCK * BLOCK..r.end.div_ceil(BLOCK).saturating_mul(BLOCK));
        let mut widened: Vec<_> = widened.collect();
        widened.sort_unstable_by_key(|range| range.start);
        let mut ranges: Vec<Range<u64>> = Vec::with_capacity(widened.len());
        for range in widened {
            match ranges.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => ranges.push(range),
            }
        }
        Self { path, inode, size, ranges }
    }
}

/// Which bytes of which files are held, and how often.
#[derive(Debug, Default)]
pub(super) struct Extents {
    files: HashMap<u64, Counts>,
    held: u64,
}

impl Extents {
    /// The bytes that anybody holds, each once.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    pub(super) fn hold(&mut self, hold: &Hold) {
        let counts = self.files.entry(hold.inode).or_default();
        for range in &hold.ranges {
            self.held += length(&counts.change(range, true));
        }
    }

    /// Takes a hold back and says which bytes nobody holds any more.
    pub(super) fn release(&mut self, hold: &Hold) -> Vec<Range<u64>> {
        let Some(counts) = self.files.get_mut(&hold.inode) else { return Vec::new() };
        let freed: Vec<_> =
            hold.ranges.iter().flat_map(|range| counts.change(range, false)).collect();
        self.held -= length(&freed);
        if counts.0.is_empty() {
            self.files.remove(&hold.inode);
        }
        freed
    }

    /// A hold's part of the bytes that it holds: those that several hold are split among them.
    pub(super) fn share(&self, hold: &Hold) -> u64 {
        let counts = self.files.get(&hold.inode);
        let of = |range| counts.map_or(0, |counts| counts.share(range));
        hold.ranges.iter().map(of).sum()
    }

    /// The ranges of a file below `size` that nobody holds; `None` where nobody holds any.
    pub(super) fn gaps(&self, inode: u64, size: u64) -> Option<Vec<Range<u64>>> {
        let counts = self.files.get(&inode)?;
        let mut gaps = Vec::new();
        let mut begin = Some(0);
        for (at, count) in &counts.0 {
            match (begin, *count) {
                (Some(start), 1..) => {
                    gaps.push(start..*at);
                    begin = None;
                }
                (None, 0) => begin = Some(*at),
                _ => {}
            }
        }
        gaps.extend(begin.map(|start| start..size.max(start)));
        gaps.retain(|gap| !gap.is_empty());
        Some(gaps)
    }
}

/// Where a count begins, up to the next one. The last is zero.
#[derive(Debug, Default)]
struct Counts(BTreeMap<u64, u32>);

impl Counts {
    /// The part of a range that is one holder's.
    fn share(&self, range: &Range<u64>) -> u64 {
        let first = self.0.range(..=range.start).next_back().map_or(0, |(_, count)| *count);
        let (mut at, mut count, mut sum) = (range.start, first, 0);
        let inside = (Bound::Excluded(range.start), Bound::Excluded(range.end));
        for (bound, next) in self.0.range(inside) {
            sum += (bound - at) / u64::from(count.max(1));
            (at, count) = (*bound, *next);
        }
        sum + (range.end - at) / u64::from(count.max(1))
    }

    /// Counts one more or one less, and says where that was the first or the last.
    fn change(&mut self, range: &Range<u64>, more: bool) -> Vec<Range<u64>> {
        for at in [range.start, range.end] {
            let count = self.0.range(..=at).next_back().map_or(0, |(_, count)| *count);
            self.0.entry(at).or_insert(count);
        }
        let bounds: Vec<u64> = self.0.range(range.start..=range.end).map(|(at, _)| *at).collect();
        let mut turned = Vec::new();
        for pair in bounds.windows(2) {
            let Some(count) = self.0.get_mut(&pair[0]) else { continue };
            debug_assert!(more || *count > 0, "released more often than held");
            let was = *count;
            *count = if more { was + 1 } else { was.saturating_sub(1) };
            if was == 0 || *count == 0 {
                turned.push(pair[0]..pair[1]);
            }
        }
        // Bounds that separate nothing any more.
        for at in bounds {
            let before = self.0.range(..at).next_back().map_or(0, |(_, count)| *count);
            if self.0.get(&at) == Some(&before) {
                self.0.remove(&at);
            }
        }
        turned
    }
}

fn length(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hold(inode: u64, ranges: &[(u64, u64)]) -> Hold {
        let ranges = ranges.iter().map(|(start, end)| *start..*end);
        Hold::of("f".into(), (inode, 1 << 20), ranges)
    }

    #[test]
    fn ranges_are_widened_to_blocks_and_joined() {
        let ranges = [(5000, 8192), (1, 10), (8192, 8193), (20_000, 20_000)];
        assert_eq!(hold(1, &ranges), hold(1, &[(0, 12288)]));
    }

    #[test]
    fn what_several_hold_is_counted_once_and_freed_with_the_last() {
        let mut extents = Extents::default();
        let (whole, part) = (hold(1, &[(0, 40_960)]), hold(1, &[(8192, 16_384)]));
        extents.hold(&whole);
        extents.hold(&part);
        extents.hold(&hold(2, &[(0, 1)]));
        assert_eq!(extents.held(), 40_960 + 4096);
        assert_eq!(extents.gaps(1, 40_960), Some(Vec::new()));
        assert_eq!(extents.release(&whole), [0..8192, 16_384..40_960]);
        assert_eq!(extents.gaps(1, 40_000), Some(vec![0..8192, 16_384..40_000]));
        assert_eq!(extents.held(), 8192 + 4096);
        assert_eq!(extents.release(&part), part.ranges);
        assert_eq!(extents.gaps(1, 40_000), None);
        assert_eq!(extents.held(), 4096);
    }

    #[test]
    fn what_several_hold_is_split_among_them() {
        let mut extents = Extents::default();
        let (whole, part) = (hold(1, &[(0, 40_960)]), hold(1, &[(8192, 16_384)]));
        extents.hold(&whole);
        assert_eq!(extents.share(&whole), 40_960);
        extents.hold(&part);
        extents.hold(&part);
        assert_eq!(extents.share(&part), 8192 / 3);
        assert_eq!(extents.share(&whole), 40_960 - 8192 + 8192 / 3);
        extents.release(&part);
        assert_eq!(extents.share(&part), 4096);
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_blocks_that_anybody_holds(
            holds in prop::collection::vec(
                (0_u64..2, prop::collection::vec((0_u64..40, 1_u64..12), 1..4)), 1..12),
            order in prop::collection::vec(any::<prop::sample::Index>(), 12),
        ) {
            let mut extents = Extents::default();
            let mut alive: Vec<Hold> = Vec::new();
            let blocks = |alive: &[Hold]| {
                let ranges = alive.iter().flat_map(|hold| {
                    hold.ranges.iter().flat_map(move |range| {
                        (range.start / BLOCK..range.end / BLOCK).map(move |block| (hold.inode, block))
                    })
                });
                ranges.collect::<std::collections::BTreeSet<_>>()
            };
            for (inode, ranges) in holds {
                let ranges: Vec<_> =
                    ranges.iter().map(|(at, n)| (at * BLOCK, (at + n) * BLOCK)).collect();
                let hold = hold(inode, &ranges);
                extents.hold(&hold);
                alive.push(hold);
                prop_assert_eq!(extents.held(), blocks(&alive).len() as u64 * BLOCK);
            }
            for index in order {
                if alive.is_empty() { break; }
                let hold = alive.swap_remove(index.index(alive.len()));
                let before = extents.held();
                let freed = length(&extents.release(&hold));
                prop_assert_eq!(before - freed, extents.held());
                prop_assert_eq!(extents.held(), blocks(&alive).len() as u64 * BLOCK);
            }
            if alive.is_empty() {
                prop_assert!(extents.files.is_empty());
            }
        }
    }
}
