//! In which order residents may leave a device. A base comes when all that stand on it have been
//! chosen, never before, so that whoever chooses a base has chosen its adapters.

use super::bases::Bases;
use super::event::Key;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::iter::Peekable;
use std::vec;

/// One that may leave, for what it costs; the least goes first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leaver<'a, C> {
    pub(super) cost: C,
    pub(super) worth: f64,
    pub(super) used_sequence: u64,
    pub(super) key: &'a Key,
}

impl<C: Ord> Ord for Leaver<'_, C> {
    fn cmp(&self, other: &Self) -> Ordering {
        let worth = self.worth.total_cmp(&other.worth);
        let cost = self.cost.cmp(&other.cost).then(worth);
        cost.then(self.used_sequence.cmp(&other.used_sequence)).then(self.key.cmp(other.key))
    }
}

impl<C: Ord> PartialOrd for Leaver<'_, C> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<C: Ord> PartialEq for Leaver<'_, C> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<C: Ord> Eq for Leaver<'_, C> {}

/// Those that may leave, in order.
pub(super) struct Leavers<'a, C> {
    few: Peekable<vec::IntoIter<Leaver<'a, C>>>,
    /// Many, of whom the first few will do: in order already.
    many: Peekable<Box<dyn Iterator<Item = Leaver<'a, C>> + 'a>>,
    /// Bases with adapters on them, and how many of those were not chosen yet.
    held: BTreeMap<&'a Key, (Leaver<'a, C>, usize)>,
    /// Bases of which all adapters have been chosen.
    released: BinaryHeap<Reverse<Leaver<'a, C>>>,
}

impl<'a, C: Ord + Copy> Leavers<'a, C> {
    /// Of `few` in any order, among them all bases with adapters on them, and `many` in theirs.
    pub(super) fn new(
        bases: &Bases,
        few: impl Iterator<Item = Leaver<'a, C>>,
        many: impl Iterator<Item = Leaver<'a, C>> + 'a,
    ) -> Self {
        let mut held = BTreeMap::new();
        let mut free: Vec<Leaver<'a, C>> = Vec::new();
        for leaver in few {
            match bases.count(leaver.key) {
                0 => free.push(leaver),
                adapters => _ = held.insert(leaver.key, (leaver, adapters)),
            }
        }
        free.sort_unstable();
        let many: Box<dyn Iterator<Item = Leaver<'a, C>> + 'a> = Box::new(many);
        let (few, many) = (free.into_iter().peekable(), many.peekable());
        Self { few, many, held, released: BinaryHeap::new() }
    }

    /// Notes that this one was chosen: it was the last on its base, where that is `base`.
    pub(super) fn chosen(&mut self, base: Option<&Key>) {
        let Some(base) = base else {
            return;
        };
        if let Some((_, left)) = self.held.get_mut(base) {
            *left -= 1;
            if *left == 0
                && let Some((leaver, _)) = self.held.remove(base)
            {
                self.released.push(Reverse(leaver));
            }
        }
    }
}

impl<'a, C: Ord + Copy> Iterator for Leavers<'a, C> {
    type Item = Leaver<'a, C>;

    fn next(&mut self) -> Option<Self::Item> {
        let (few, many) = (self.few.peek().copied(), self.many.peek().copied());
        let released = self.released.peek().map(|Reverse(leaver)| *leaver);
        let first = [few, many, released].into_iter().flatten().min()?;
        if released == Some(first) {
            self.released.pop();
        } else if few == Some(first) {
            self.few.next();
        } else {
            self.many.next();
        }
        Some(first)
    }
}
