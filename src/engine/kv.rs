//! The blocks of a runner's KV pool: which are free, and which hold a prefix that may be asked
//! for again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use roundhouse_types::TenantName;

use crate::plan::{BlockId, KvSpec};

/// Names the tokens of a full block and all that come before it in its sequence, so that equal
/// names mean equal KV. Engines run one version of a model each, so names need not say which;
/// of an adapter they do, by what comes before the first block: its root.
pub(crate) type Prefix = blake3::Hash;

/// What comes before the first block of a sequence. The base model's is zero.
pub(crate) type Root = [u8; 32];

/// The root of what is computed with a version of an adapter; never the base's.
pub(crate) fn root(version: &[u8; 32]) -> Root {
    blake3::derive_key("roundhouse 2026-11-21 prefixes of an adapter's version", version)
}

/// The root of what one tenant alone uses again, under the root that all would share.
pub(crate) fn root_of(root: &Root, tenant: &TenantName) -> Root {
    let mut of =
        blake3::Hasher::new_derive_key("roundhouse 2026-11-21 prefixes of a tenant of a model");
    of.update(root);
    of.update(tenant.as_str().as_bytes());
    *of.finalize().as_bytes()
}

/// Hands out the blocks of one pool. A block is free, or in the tables of sequences, or idle:
/// full, named, and in no table. Idle blocks are handed out when no block is free, the one
/// that left its last table first.
///
/// A block that is in several tables is full and named: nobody writes to it any more.
///
/// Blocks come and go in chunks. Those of chunks that are not open are in none of these states.
/// Free blocks are handed out from the open chunk that has fewest of them, so that chunks without
/// any block in tables come about, which can be closed.
#[derive(Debug)]
pub(crate) struct BlockPool {
    spec: KvSpec,
    chunks: Vec<Chunk>,
    closed: BTreeSet<usize>,
    /// Open chunks with free blocks, by how many.
    fullest: BTreeSet<(usize, usize)>,
    /// Free blocks of open chunks.
    free: usize,
    blocks: Vec<Block>,
    named: HashMap<Prefix, BlockId>,
    /// Idle blocks by when they became so.
    idle: BTreeMap<u64, BlockId>,
    /// Counts what has an order.
    sequence: u64,
}

#[derive(Debug, Clone, Default)]
struct Chunk {
    free: Vec<BlockId>,
    /// Its blocks in tables.
    used: usize,
}

#[derive(Debug, Clone, Default)]
struct Block {
    /// Tables that it is in.
    tables: u32,
    name: Option<Prefix>,
    /// Its place among the idle ones, while it is one of them.
    idle_since: u64,
}

impl BlockPool {
    /// A pool with the chunks open that it always has, all their blocks free.
    pub(crate) fn new(spec: KvSpec) -> Self {
        debug_assert!(u32::try_from(spec.blocks).is_ok(), "checked at placing");
        let mut pool = Self {
            spec,
            chunks: vec![Chunk::default(); spec.chunks()],
            closed: (0..spec.chunks()).collect(),
            fullest: BTreeSet::new(),
            free: 0,
            blocks: vec![Block::default(); spec.blocks],
            named: HashMap::new(),
            idle: BTreeMap::new(),
            sequence: 0,
        };
        pool.open(spec.floor);
        pool
    }

    /// Opens so many chunks more, as far as there are any.
    pub(crate) fn open(&mut self, count: usize) {
        for _ in 0..count {
            let Some(chunk) = self.closed.pop_first() else { return };
            let first = chunk * self.spec.chunk;
            // The lowest id is handed out first: a small load stays in a small part of a chunk.
            let blocks = (first..first + self.spec.chunk).rev();
            let blocks = blocks.map(|id| BlockId(u32::try_from(id).expect("ids are 32 bits")));
            self.chunks[chunk].free = blocks.collect();
            self.fullest.insert((self.spec.chunk, chunk));
            self.free += self.spec.chunk;
        }
    }

    /// Closes up to so many chunks that have no block in tables, those first of which least is
    /// known; what is known of them is forgotten. It stays at its floor at least.
    pub(crate) fn close(&mut self, most: usize) -> Vec<usize> {
        let most = most.min(self.chunks_open() - self.spec.floor);
        let is_open = |chunk: &usize| !self.closed.contains(chunk);
        let unused = (0..self.chunks.len()).filter(|chunk| self.chunks[*chunk].used == 0);
        let mut unused: Vec<_> = unused.filter(is_open).collect();
        // Of equal ones the last: the pool stays in a small part of its range.
        unused.sort_by_key(|chunk| std::cmp::Reverse((self.chunks[*chunk].free.len(), *chunk)));
        unused.truncate(most);
        for chunk in &unused {
            let free = std::mem::take(&mut self.chunks[*chunk].free);
            self.fullest.remove(&(free.len(), *chunk));
            self.free -= free.len();
            for id in chunk * self.spec.chunk..(chunk + 1) * self.spec.chunk {
                let block = &mut self.blocks[id];
                if let Some(name) = block.name.take() {
                    self.named.remove(&name);
                    self.idle.remove(&block.idle_since);
                }
            }
            self.closed.insert(*chunk);
        }
        unused
    }

    /// Chunks that are open.
    pub(crate) fn chunks_open(&self) -> usize {
        self.chunks.len() - self.closed.len()
    }

    /// Blocks of open chunks.
    pub(crate) fn open_blocks(&self) -> usize {
        self.chunks_open() * self.spec.chunk
    }

    fn chunk_of(&self, id: BlockId) -> usize {
        id.0 as usize / self.spec.chunk
    }

    /// A free block of the fullest chunk.
    fn take(&mut self) -> Option<BlockId> {
        let (free, chunk) = self.fullest.pop_first()?;
        let id = self.chunks[chunk].free.pop().expect("it is listed with its free blocks");
        if free > 1 {
            self.fullest.insert((free - 1, chunk));
        }
        self.free -= 1;
        Some(id)
    }

    fn put_back(&mut self, id: BlockId) {
        let chunk = self.chunk_of(id);
        let free = &mut self.chunks[chunk].free;
        self.fullest.remove(&(free.len(), chunk));
        free.push(id);
        self.fullest.insert((free.len(), chunk));
        self.free += 1;
    }

    /// Blocks that `tokens` positions need.
    pub(crate) fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.spec.block_tokens)
    }

    /// Names the full blocks of `tokens` that have no name in `names` yet.
    pub(crate) fn name(&self, root: &Root, tokens: &[u32], names: &mut Vec<Prefix>) {
        let size = self.spec.block_tokens;
        for block in tokens.chunks_exact(size).skip(names.len()) {
            let mut hasher = blake3::Hasher::new();
            let before = names.last().map_or(*root, |name| *name.as_bytes());
            hasher.update(&before);
            for token in block {
                hasher.update(&token.to_le_bytes());
            }
            names.push(hasher.finalize());
        }
    }

    /// Fills an empty table with the blocks that hold the longest known part of a prefix.
    pub(crate) fn find(&mut self, names: &[Prefix], table: &mut Vec<BlockId>) {
        debug_assert!(table.is_empty(), "a prefix begins a table");
        table.extend(names.iter().map_while(|name| self.named.get(name).copied()));
        for id in &*table {
            let block = &mut self.blocks[id.0 as usize];
            if block.tables == 0 {
                self.idle.remove(&block.idle_since);
                self.chunks[id.0 as usize / self.spec.chunk].used += 1;
            }
            block.tables += 1;
        }
    }

    /// The block has been filled with what `name` says. Where another one holds the same, it
    /// stays without a name.
    pub(crate) fn filled(&mut self, id: BlockId, name: Prefix) {
        let block = &mut self.blocks[id.0 as usize];
        debug_assert!(block.tables == 1 || block.name == Some(name), "written by two");
        if block.name.is_none() && !self.named.contains_key(&name) {
            block.name = Some(name);
            self.named.insert(name, id);
        }
    }

    /// Extends `table` to cover `tokens` positions. All or nothing: false when there are too few.
    pub(crate) fn extend(&mut self, table: &mut Vec<BlockId>, tokens: usize) -> bool {
        let missing = self.needed(tokens).saturating_sub(table.len());
        if missing > self.available() {
            return false;
        }
        for _ in 0..missing {
            let id = self.take().unwrap_or_else(|| self.forget());
            self.blocks[id.0 as usize].tables = 1;
            let chunk = self.chunk_of(id);
            self.chunks[chunk].used += 1;
            table.push(id);
        }
        true
    }

    /// Blocks that a table can have: free ones, and those of prefixes that nobody uses.
    pub(crate) fn available(&self) -> usize {
        self.free + self.idle.len()
    }

    /// Takes the longest idle block out of use.
    fn forget(&mut self) -> BlockId {
        let (_, id) = self.idle.pop_first().expect("counted before");
        if let Some(name) = self.blocks[id.0 as usize].name.take() {
            self.named.remove(&name);
        }
        id
    }

    /// Takes back all blocks of `table`. Of those that are kept, the ends of prefixes go
    /// before their beginnings.
    pub(crate) fn release(&mut self, table: &mut Vec<BlockId>) {
        for id in table.drain(..).rev() {
            let block = &mut self.blocks[id.0 as usize];
            debug_assert!(block.tables > 0, "a block was released twice");
            block.tables -= 1;
            if block.tables > 0 {
                continue;
            }
            let is_named = block.name.is_some();
            let chunk = self.chunk_of(id);
            self.chunks[chunk].used -= 1;
            if is_named {
                self.sequence += 1;
                self.blocks[id.0 as usize].idle_since = self.sequence;
                self.idle.insert(self.sequence, id);
            } else {
                self.put_back(id);
            }
        }
    }

    /// Blocks in tables.
    pub(crate) fn used(&self) -> usize {
        self.open_blocks() - self.free - self.idle.len()
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_types::Bytes;

    use super::*;

    /// Chunks of four blocks of one token; one is always there.
    fn pool() -> BlockPool {
        let chunk_bytes = Bytes(4);
        BlockPool::new(KvSpec { block_tokens: 1, blocks: 16, chunk: 4, floor: 1, chunk_bytes })
    }

    fn chunks(pool: &BlockPool, table: &[BlockId]) -> Vec<usize> {
        table.iter().map(|id| pool.chunk_of(*id)).collect()
    }

    #[test]
    fn blocks_fill_the_fullest_chunk_first_so_that_others_become_free() {
        let mut pool = pool();
        pool.open(2);
        let (mut long, mut short) = (Vec::new(), Vec::new());
        assert!(pool.extend(&mut long, 6));
        assert_eq!(chunks(&pool, &long), [0, 0, 0, 0, 1, 1]);
        assert!(pool.extend(&mut short, 3));
        assert_eq!(chunks(&pool, &short), [1, 1, 2]);
        pool.release(&mut long);
        assert!(pool.extend(&mut long, 4));
        assert_eq!(chunks(&pool, &long), [1, 1, 2, 2], "before the one that is wholly free");
        assert_eq!(pool.close(3), [0]);
        assert_eq!((pool.chunks_open(), pool.used()), (2, 7));
        assert!(!pool.extend(&mut short, 5), "one block is left");
        assert!(pool.extend(&mut short, 4));
    }

    #[test]
    fn the_floor_stays_and_what_is_known_least_of_goes_first() {
        let mut pool = pool();
        pool.open(3);
        let mut table = Vec::new();
        assert!(pool.extend(&mut table, 8));
        let tokens: Vec<u32> = (0..8).collect();
        let mut names = Vec::new();
        pool.name(&Root::default(), &tokens, &mut names);
        for (id, name) in table.iter().zip(&names) {
            pool.filled(*id, *name);
        }
        pool.release(&mut table);
        assert_eq!(pool.close(1), [3], "nothing is known of it");
        assert_eq!(pool.close(9), [2, 1]);
        pool.find(&names, &mut table);
        assert_eq!(chunks(&pool, &table), [0, 0, 0, 0], "the beginning is known still");
        assert_eq!(pool.used(), 4);
        pool.release(&mut table);
        pool.open(9);
        assert_eq!(pool.chunks_open(), 4);
        assert!(pool.extend(&mut table, 16) && !pool.extend(&mut table, 17));
    }
}
