//! How much of its pool a scheduler needs, and what becomes of the rest.

use super::{Scheduler, Sequence};

impl Scheduler {
    /// Chunks that would let all run that may: the blocks of those that do, one more for each of
    /// them, and those of the next in line as far as there are places. Asked for ahead of need,
    /// because an answer takes a while.
    pub(crate) fn chunks_wanted(&self) -> usize {
        let kv = &self.limits.kv;
        // No sequence is longer than what the floor holds.
        let soon = |s: &Sequence| (self.pool.needed(s.tokens.len() + 1) + 1).min(kv.floor_blocks());
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

    /// Takes up to so many chunks out of use that no sequence has a block in, not below the pool's
    /// floor, and says which.
    pub(crate) fn shrink(&mut self, most: usize) -> Vec<usize> {
        self.pool.close(most)
    }
}
