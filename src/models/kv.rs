//! The pool of KV blocks, addressed by id.

use std::any::Any;

use half::{bf16, f16};
use roundhouse_engine::{BlockId, KvSpec};

use crate::attention::{Causal, Heads, Span};

mod number;

pub(crate) use number::Kept;
pub use number::KvDtype;

/// Positions per block. Sixteen f32 fill one wide register: a query's scores against a
/// whole block are one vector.
pub(crate) const BLOCK_TOKENS: usize = 16;

/// Keys and values of one block and one head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadBlock<'a, N> {
    /// `[head_dim, BLOCK_TOKENS]`: transposed, so that scores are sums over whole rows.
    pub(crate) keys: &'a [N],
    /// `[BLOCK_TOKENS, head_dim]`.
    pub(crate) values: &'a [N],
}

/// The pool of one runner, in the type in which its model's keys and values are kept.
#[derive(Debug)]
pub(crate) enum KvPool {
    F32(Pool<f32>),
    F16(Pool<f16>),
    Bf16(Pool<bf16>),
}

/// Does the same whatever the type.
macro_rules! with_pool {
    ($pool:expr, $typed:ident => $work:expr) => {
        match $pool {
            KvPool::F32($typed) => $work,
            KvPool::F16($typed) => $work,
            KvPool::Bf16($typed) => $work,
        }
    };
}

impl KvPool {
    pub(crate) fn new(heads: Heads, layers: usize, kv: &KvSpec, dtype: KvDtype) -> Self {
        match dtype {
            KvDtype::F32 => Self::F32(Pool::new(heads, layers, kv)),
            KvDtype::F16 => Self::F16(Pool::new(heads, layers, kv)),
            KvDtype::Bf16 => Self::Bf16(Pool::new(heads, layers, kv)),
        }
    }

    /// As [`Pool::floor_bytes`].
    pub(crate) fn floor_bytes(&self) -> u64 {
        with_pool!(self, pool => pool.floor_bytes())
    }

    /// As [`Pool::give_back`].
    pub(crate) fn give_back(&mut self, chunk: usize) -> Option<Box<dyn Any + Send>> {
        with_pool!(self, pool => Some(Box::new(pool.give_back(chunk)?)))
    }

    /// As [`Pool::touched`].
    pub(crate) fn touched(&self) -> u64 {
        with_pool!(self, pool => pool.touched())
    }

    /// As [`Pool::touch`].
    pub(crate) fn touch(&mut self, blocks: &[BlockId]) {
        with_pool!(self, pool => pool.touch(blocks));
    }

    /// As [`Causal::attend`].
    pub(crate) fn attend(
        &mut self,
        causal: &Causal<'_>,
        spans: &[Span<'_>],
        qkv: &mut [f32],
    ) -> Vec<f32> {
        with_pool!(self, pool => causal.attend(pool, spans, qkv))
    }
}

/// Keys and values of all layers. Owned by one runner; blocks are the scheduler's to assign.
///
/// A chunk of blocks is allocated when one of them is first written, and freed when it is given
/// back; the ledger charges it from when the scheduler may use it. Of a chunk, the blocks that were
/// never written take no memory.
#[derive(Debug)]
pub(crate) struct Pool<N> {
    heads: Heads,
    layers: usize,
    /// Chunks that are never given back.
    floor: usize,
    /// Each `[layers, blocks of a chunk, kv_heads, (keys, values)]`.
    chunks: Vec<Option<Box<[N]>>>,
    /// The logarithm of a chunk's blocks.
    chunk_shift: u32,
    /// Whether a block was written since its chunk was allocated.
    written: Vec<bool>,
    /// How many were.
    touched: usize,
    /// One position's keys and values on their way: `[2, kv_heads, head_dim]`.
    row: Vec<N>,
}

impl<N: Kept> Pool<N> {
    pub(crate) fn new(heads: Heads, layers: usize, kv: &KvSpec) -> Self {
        debug_assert!(kv.chunk.is_power_of_two(), "blocks are found by shifting");
        let chunk_shift = kv.chunk.trailing_zeros();
        let (chunks, written) = (vec![None; kv.chunks()], vec![false; kv.blocks]);
        let row = vec![N::zeroed(); 2 * heads.kv_width()];
        Self { heads, layers, floor: kv.floor, chunks, chunk_shift, written, touched: 0, row }
    }

    /// Bytes of the chunks that it always has when all their blocks were written.
    pub(crate) fn floor_bytes(&self) -> u64 {
        let blocks = self.floor << self.chunk_shift;
        (blocks * block_numbers(self.heads, self.layers) * size_of::<N>()) as u64
    }

    /// The memory of a chunk that nobody reads any more; `None` where it took none.
    pub(crate) fn give_back(&mut self, chunk: usize) -> Option<Box<[N]>> {
        let blocks = chunk << self.chunk_shift..(chunk + 1) << self.chunk_shift;
        for written in &mut self.written[blocks] {
            self.touched -= usize::from(std::mem::take(written));
        }
        self.chunks[chunk].take()
    }

    /// Bytes of the blocks that were written.
    pub(crate) fn touched(&self) -> u64 {
        (self.touched * block_numbers(self.heads, self.layers) * size_of::<N>()) as u64
    }

    /// Makes room for blocks that a step writes to.
    pub(crate) fn touch(&mut self, blocks: &[BlockId]) {
        for block in blocks {
            let block = block.0 as usize;
            if std::mem::replace(&mut self.written[block], true) {
                continue;
            }
            self.touched += 1;
            let index = block >> self.chunk_shift;
            let numbers = block_numbers(self.heads, self.layers) << self.chunk_shift;
            let chunk = &mut self.chunks[index];
            chunk.get_or_insert_with(|| N::zeros(numbers));
        }
    }

    /// Writes one position's keys and values, `[kv_heads, head_dim]` each.
    pub(crate) fn write(
        &mut self,
        layer: usize,
        (block, slot): (BlockId, usize),
        keys: &[f32],
        values: &[f32],
    ) {
        let head_dim = self.heads.head_dim;
        let numbers = self.head_numbers();
        let (kept_keys, kept_values) = self.row.split_at_mut(self.heads.kv_width());
        N::keep(keys, kept_keys);
        N::keep(values, kept_values);
        for head in 0..self.heads.kv_heads {
            let (chunk, start) = self.place(layer, block, head);
            let (keys, values) = self.row.split_at(self.heads.kv_width());
            let Some(chunk) = self.chunks[chunk].as_mut() else {
                debug_assert!(false, "block {block:?} is written before it is touched");
                return;
            };
            let (key_block, value_block) =
                chunk[start..start + numbers].split_at_mut(head_dim * BLOCK_TOKENS);
            let from = head * head_dim..(head + 1) * head_dim;
            for (row, key) in key_block.chunks_exact_mut(BLOCK_TOKENS).zip(&keys[from.clone()]) {
                row[slot] = *key;
            }
            value_block[slot * head_dim..(slot + 1) * head_dim].copy_from_slice(&values[from]);
        }
    }

    /// One head's share of a block that was written.
    pub(crate) fn head_block(&self, layer: usize, block: BlockId, head: usize) -> HeadBlock<'_, N> {
        let (chunk, start) = self.place(layer, block, head);
        let chunk = self.chunks[chunk].as_ref().expect("blocks are touched before they are read");
        let (keys, values) =
            chunk[start..start + self.head_numbers()].split_at(self.heads.head_dim * BLOCK_TOKENS);
        HeadBlock { keys, values }
    }

    fn head_numbers(&self) -> usize {
        2 * self.heads.head_dim * BLOCK_TOKENS
    }

    /// The chunk of a block and where in it a head's numbers start.
    fn place(&self, layer: usize, block: BlockId, head: usize) -> (usize, usize) {
        let block = block.0 as usize;
        let chunk = block >> self.chunk_shift;
        let within = block - (chunk << self.chunk_shift);
        let index = ((layer << self.chunk_shift) + within) * self.heads.kv_heads + head;
        (chunk, index * self.head_numbers())
    }
}

/// Numbers of one block, all layers and heads.
fn block_numbers(heads: Heads, layers: usize) -> usize {
    2 * heads.head_dim * BLOCK_TOKENS * heads.kv_heads * layers
}

#[cfg(test)]
mod tests {
    use roundhouse_types::Bytes;

    use super::*;

    const HEADS: Heads = Heads { heads: 2, kv_heads: 2, head_dim: 3 };
    const BLOCK: usize = 16 * 2 * 2 * 2 * 3;

    fn pool<N: Kept>(floor: usize, chunk: usize, chunks: usize) -> Pool<N> {
        let chunk_bytes = Bytes((size_of::<N>() * BLOCK * chunk) as u64);
        let blocks = chunk * chunks;
        Pool::new(HEADS, 2, &KvSpec { block_tokens: 16, blocks, chunk, floor, chunk_bytes })
    }

    #[test]
    fn an_untouched_pool_takes_no_memory_and_a_touched_block_only_itself() {
        let mut pool = pool::<f32>(2, 1024, 3);
        assert_eq!(pool.floor_bytes(), 2048 * 4 * BLOCK as u64);
        assert!(pool.chunks.iter().all(Option::is_none));
        pool.touch(&[BlockId(2499), BlockId(2048), BlockId(2499)]);
        let sizes: Vec<usize> =
            pool.chunks.iter().map(|chunk| chunk.as_ref().map_or(0, |chunk| chunk.len())).collect();
        assert_eq!(sizes, [0, 0, 1024 * BLOCK]);
        assert_eq!(pool.touched(), 2 * 4 * BLOCK as u64);
    }

    #[test]
    fn a_chunk_that_is_given_back_takes_no_memory_and_can_be_written_again() {
        let mut pool = pool::<f16>(1, 4, 3);
        pool.touch(&[BlockId(0), BlockId(9), BlockId(11)]);
        assert_eq!(pool.give_back(2).map(|memory| memory.len()), Some(4 * BLOCK));
        assert_eq!(pool.give_back(2), None);
        assert_eq!(pool.touched(), 2 * BLOCK as u64);
        pool.touch(&[BlockId(9)]);
        assert_eq!(pool.touched(), 2 * 2 * BLOCK as u64);
        assert!(pool.head_block(1, BlockId(9), 1).keys.iter().all(|key| *key == f16::ZERO));
    }

    #[test]
    fn what_is_written_to_a_slot_is_read_from_it_and_from_no_other() {
        let mut pool = pool::<f32>(1, 4, 5);
        let blocks: Vec<BlockId> = (0..20).map(BlockId).collect();
        pool.touch(&blocks);
        for layer in 0..2 {
            for block in 0..20 {
                for slot in 0..16 {
                    let mark = (layer * 1000 + block * 20 + slot) as f32;
                    let keys: Vec<f32> = (0..6).map(|i| mark + i as f32 / 8.0).collect();
                    let values: Vec<f32> = keys.iter().map(|key| -key).collect();
                    pool.write(layer, (BlockId(block as u32), slot), &keys, &values);
                }
            }
        }
        for (layer, block, head, slot, dim) in [(0, 0, 0, 0, 0), (1, 19, 1, 15, 2), (1, 7, 0, 3, 1)]
        {
            let found = pool.head_block(layer, BlockId(block as u32), head);
            let mark = (layer * 1000 + block * 20 + slot) as f32 + (head * 3 + dim) as f32 / 8.0;
            assert_eq!(found.keys[dim * 16 + slot], mark);
            assert_eq!(found.values[slot * 3 + dim], -mark);
        }
    }
}
