//! The blocks of a runner's KV pool: which are free.

use crate::plan::{BlockId, KvSpec};

/// Hands out the blocks of one pool. Tables that hold blocks belong to sequences; a block
/// is in one table or in the free list, never in both.
#[derive(Debug)]
pub(crate) struct BlockPool {
    spec: KvSpec,
    free: Vec<BlockId>,
}

impl BlockPool {
    /// A pool with all its blocks free.
    pub(crate) fn new(spec: KvSpec) -> Self {
        let blocks = u32::try_from(spec.blocks).expect("block ids are 32 bits, checked at placing");
        // The lowest id is handed out first: a small load stays in a small part of the pool.
        Self { spec, free: (0..blocks).rev().map(BlockId).collect() }
    }

    /// Blocks that `tokens` positions need.
    pub(crate) fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.spec.block_tokens)
    }

    /// Extends `table` to cover `tokens` positions. All or nothing: false when too few are free.
    pub(crate) fn extend(&mut self, table: &mut Vec<BlockId>, tokens: usize) -> bool {
        let missing = self.needed(tokens).saturating_sub(table.len());
        if missing > self.free.len() {
            return false;
        }
        let kept = self.free.len() - missing;
        table.extend(self.free.drain(kept..).rev());
        true
    }

    /// Takes back all blocks of `table`.
    pub(crate) fn release(&mut self, table: &mut Vec<BlockId>) {
        self.free.extend(table.drain(..).rev());
        debug_assert!(self.free.len() <= self.spec.blocks, "a block was released twice");
    }

    /// Blocks in tables.
    pub(crate) fn used(&self) -> usize {
        self.spec.blocks - self.free.len()
    }
}
