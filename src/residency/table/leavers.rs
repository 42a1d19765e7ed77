//! In which order residents may leave a device. A base comes when all that stand on it have been
//! chosen, never before, so that whoever chooses a base has chosen its adapters.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::vec;

use super::bases::Bases;
use super::event::Key;

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
    in_order: vec::IntoIter<Leaver<'a, C>>,
    next: Option<Leaver<'a, C>>,
    /// Bases with adapters on them, and how many of those were not chosen yet.
    held: BTreeMap<&'a Key, (Leaver<'a, C>, usize)>,
    /// Bases of which all adapters have been chosen.
    released: BinaryHeap<Reverse<Leaver<'a, C>>>,
}

impl<'a, C: Ord + Copy> Leavers<'a, C> {
    pub(super) fn new(bases: &Bases, all: impl Iterator<Item = Leaver<'a, C>>) -> Self {
        let mut held = BTreeMap::new();
        let mut free: Vec<Leaver<'a, C>> = Vec::new();
        for leaver in all {
            match bases.count(leaver.key) {
                0 => free.push(leaver),
                adapters => _ = held.insert(leaver.key, (leaver, adapters)),
            }
        }
        free.sort_unstable();
        let mut in_order = free.into_iter();
        let next = in_order.next();
        Self { in_order, next, held, released: BinaryHeap::new() }
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
        let is_released_first = match (&self.next, self.released.peek()) {
            (Some(next), Some(Reverse(released))) => released < next,
            (next, _) => next.is_none(),
        };
        if is_released_first {
            return self.released.pop().map(|Reverse(leaver)| leaver);
        }
        std::mem::replace(&mut self.next, self.in_order.next())
    }
}
