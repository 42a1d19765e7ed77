//! The blocks of a runner's KV pool: which are free, and which hold a prefix that may be asked
//! for again.

use std::collections::{BTreeMap, HashMap};

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

/// Hands out the blocks of one pool. A block is free, or in the tables of sequences, or idle:
/// full, named, and in no table. Idle blocks are handed out when no block is free, the one
/// that left its last table first.
///
/// A block that is in several tables is full and named: nobody writes to it any more.
#[derive(Debug)]
pub(crate) struct BlockPool {
    spec: KvSpec,
    free: Vec<BlockId>,
    blocks: Vec<Block>,
    named: HashMap<Prefix, BlockId>,
    /// Idle blocks by when they became so.
    idle: BTreeMap<u64, BlockId>,
    /// Counts what has an order.
    sequence: u64,
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
    /// A pool with all its blocks free.
    pub(crate) fn new(spec: KvSpec) -> Self {
        let blocks = u32::try_from(spec.blocks).expect("block ids are 32 bits, checked at placing");
        Self {
            spec,
            // The lowest id is handed out first: a small load stays in a small part of the pool.
            free: (0..blocks).rev().map(BlockId).collect(),
            blocks: vec![Block::default(); spec.blocks],
            named: HashMap::new(),
            idle: BTreeMap::new(),
            sequence: 0,
        }
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
        if missing > self.free.len() + self.idle.len() {
            return false;
        }
        for _ in 0..missing {
            let id = self.free.pop().unwrap_or_else(|| self.forget());
            self.blocks[id.0 as usize].tables = 1;
            table.push(id);
        }
        true
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
            if block.name.is_some() {
                self.sequence += 1;
                block.idle_since = self.sequence;
                self.idle.insert(self.sequence, id);
            } else {
                self.free.push(id);
            }
        }
    }

    /// Blocks in tables.
    pub(crate) fn used(&self) -> usize {
        self.spec.blocks - self.free.len() - self.idle.len()
    }
}
