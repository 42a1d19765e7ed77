//! The pool of KV blocks, addressed by id.

use roundhouse_engine::{BlockId, KvSpec};

use crate::attention::Heads;

/// Positions per block. Sixteen f32 fill one wide register: a query's scores against a
/// whole block are one vector.
pub(crate) const BLOCK_TOKENS: usize = 16;
/// Keys and values of one block and one head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadBlock<'a> {
    /// `[head_dim, BLOCK_TOKENS]`: transposed, so that scores are sums over whole rows.
    pub(crate) keys: &'a [f32],
    /// `[BLOCK_TOKENS, head_dim]`.
    pub(crate) values: &'a [f32],
}

/// Keys and values of all layers. Owned by one runner; blocks are the scheduler's to assign.
///
/// A chunk of blocks is allocated when one of them is first written, and freed when it is given
/// back; the ledger charges it from when the scheduler may use it. Of a chunk, the blocks that were
/// never written take no memory.
#[derive(Debug)]
pub(crate) struct KvPool {
    heads: Heads,
    layers: usize,
    /// Chunks that are never given back.
    floor: usize,
    /// Each `[layers, blocks of a chunk, kv_heads, (keys, values)]`.
    chunks: Vec<Option<Box<[f32]>>>,
    /// The logarithm of a chunk's blocks.
    chunk_shift: u32,
    /// Whether a block was written since its chunk was allocated.
    written: Vec<bool>,
    /// How many were.
    touched: usize,
}

impl KvPool {
    pub(crate) fn new(heads: Heads, layers: usize, kv: &KvSpec) -> Self {
        debug_assert!(kv.chunk.is_power_of_two(), "blocks are found by shifting");
        let chunk_shift = kv.chunk.trailing_zeros();
        let (chunks, written) = (vec![None; kv.chunks()], vec![false; kv.blocks]);
        Self { heads, layers, floor: kv.floor, chunks, chunk_shift, written, touched: 0 }
    }

    /// Bytes of the chunks that it always has when all their blocks were written.
    pub(crate) fn floor_bytes(&self) -> u64 {
        let blocks = self.floor << self.chunk_shift;
        (blocks * block_floats(self.heads, self.layers) * size_of::<f32>()) as u64
    }

    /// The memory of a chunk that nobody reads any more; `None` where it took none.
    pub(crate) fn give_back(&mut self, chunk: usize) -> Option<Box<[f32]>> {
        let blocks = chunk << self.chunk_shift..(chunk + 1) << self.chunk_shift;
        for written in &mut self.written[blocks] {
            self.touched -= usize::from(std::mem::take(written));
        }
        self.chunks[chunk].take()
    }

    /// Bytes of the blocks that were written.
    pub(crate) fn touched(&self) -> u64 {
        (self.touched * block_floats(self.heads, self.layers) * size_of::<f32>()) as u64
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
            let floats = block_floats(self.heads, self.layers) << self.chunk_shift;
            let chunk = &mut self.chunks[index];
            chunk.get_or_insert_with(|| vec![0.0; floats].into_boxed_slice());
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
        let floats = self.head_floats();
        for head in 0..self.heads.kv_heads {
            let (chunk, start) = self.place(layer, block, head);
            let Some(chunk) = self.chunks[chunk].as_mut() else {
                debug_assert!(false, "block {block:?} is written before it is touched");
                return;
            };
            let (key_block, value_block) =
                chunk[start..start + floats].split_at_mut(head_dim * BLOCK_TOKENS);
            let from = head * head_dim..(head + 1) * head_dim;
            for (row, key) in key_block.chunks_exact_mut(BLOCK_TOKENS).zip(&keys[from.clone()]) {
                row[slot] = *key;
            }
            value_block[slot * head_dim..(slot + 1) * head_dim].copy_from_slice(&values[from]);
        }
    }

    /// One head's share of a block that was written.
    pub(crate) fn head_block(&self, layer: usize, block: BlockId, head: usize) -> HeadBlock<'_> {
        let (chunk, start) = self.place(layer, block, head);
        let chunk = self.chunks[chunk].as_ref().expect("blocks are touched before they are read");
        let (keys, values) =
            chunk[start..start + self.head_floats()].split_at(self.heads.head_dim * BLOCK_TOKENS);
        HeadBlock { keys, values }
    }

    fn head_floats(&self) -> usize {
        2 * self.heads.head_dim * BLOCK_TOKENS
    }

    /// The chunk of a block and where in it a head's floats start.
    fn place(&self, layer: usize, block: BlockId, head: usize) -> (usize, usize) {
        let block = block.0 as usize;
        let chunk = block >> self.chunk_shift;
        let within = block - (chunk << self.chunk_shift);
        let index = ((layer << self.chunk_shift) + within) * self.heads.kv_heads + head;
        (chunk, index * self.head_floats())
    }
}

/// Numbers of one block, all layers and heads.
fn block_floats(heads: Heads, layers: usize) -> usize {
    2 * heads.head_dim * BLOCK_TOKENS * heads.kv_heads * layers
}

#[cfg(test)]
mod tests {
    use roundhouse_types::Bytes;

    use super::*;

    const HEADS: Heads = Heads { heads: 2, kv_heads: 2, head_dim: 3 };
    const BLOCK: usize = 16 * 2 * 2 * 2 * 3;

    fn pool(floor: usize, chunk: usize, chunks: usize) -> KvPool {
        let chunk_bytes = Bytes((4 * BLOCK * chunk) as u64);
        let blocks = chunk * chunks;
        KvPool::new(HEADS, 2, &KvSpec { block_tokens: 16, blocks, chunk, floor, chunk_bytes })
    }

    #[test]
    fn an_untouched_pool_takes_no_memory_and_a_touched_block_only_itself() {
        let mut pool = pool(2, 1024, 3);
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
        let mut pool = pool(1, 4, 3);
        pool.touch(&[BlockId(0), BlockId(9), BlockId(11)]);
        assert_eq!(pool.give_back(2).map(|memory| memory.len()), Some(4 * BLOCK));
        assert_eq!(pool.give_back(2), None);
        assert_eq!(pool.touched(), 4 * BLOCK as u64);
        pool.touch(&[BlockId(9)]);
        assert_eq!(pool.touched(), 2 * 4 * BLOCK as u64);
        assert!(pool.head_block(1, BlockId(9), 1).keys.iter().all(|key| *key == 0.0));
    }

    #[test]
    fn what_is_written_to_a_slot_is_read_from_it_and_from_no_other() {
        let mut pool = pool(1, 4, 5);
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
