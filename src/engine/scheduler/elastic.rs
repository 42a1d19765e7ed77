//! How much of its pool a scheduler needs, and what becomes of the rest.

use super::{Scheduler, Sequence};

impl Scheduler {
    /// Chunks that would let all run that may: the blocks of those that do, one more for each of
    /// them, and those of the next in line as far as there are places. Asked for ahead of need,
    /// because an answer takes a while.
    pub(crate) fn chunks_wanted(&self) -> usize {
        let kv = &self.limits.kv;
        // No sequence is longer than what the floor holds.
        let soon = |s: &Sequence| (self.pool.needed(s.length()) + 1).min(kv.floor_blocks());
        let growth = self.running.iter().map(|s| soon(s).saturating_sub(s.blocks.len()));
        let places = self.limits.running - self.running.len().min(self.limits.running);
        let coming = self.waiting.iter().take(places).map(soon);
        let blocks = self.pool.used() + growth.chain(coming).sum::<usize>();
        blocks.div_ceil(kv.chunk).clamp(kv.floor, kv.chunks())
    }

    /// Chunks that the pool has by now.
    pub(crate) fn chunks_open(&self) -> usize {
        self.pool.chunks_open()
    }

    /// The pool may take so many chunks more.
    pub(crate) fn grow(&mut self, chunks: usize) {
        self.pool.open(chunks);
    }

    /// Others need what the pool has beyond its floor, or do not any more.
    pub(crate) fn tighten(&mut self, is_tight: bool) {
        self.is_tight = is_tight;
    }

    /// Whether letting one of those that wait in, which holds what was found of its prefix, would
    /// keep the pool from going down to its floor. While nobody runs, somebody is let in all the same.
    pub(super) fn is_beyond_floor(&self, next: usize) -> bool {
        let sequence = &self.waiting[next];
        let needed = self.pool.needed(sequence.length());
        let missing = needed.saturating_sub(sequence.blocks.len());
        let floor = self.limits.kv.floor_blocks();
        self.is_tight && !self.running.is_empty() && self.pool.used() + missing > floor
    }

    /// Takes up to so many chunks out of use that no sequence has a block in, not below the pool's
    /// floor, and says which.
    pub(crate) fn shrink(&mut self, most: usize) -> Vec<usize> {
        self.pool.close(most)
    }
}
