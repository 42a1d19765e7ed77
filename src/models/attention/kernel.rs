//! The inner loops: a few queries against blocks of sixteen keys.

use crate::activation::bend;
use crate::kv::{BLOCK_TOKENS, HeadBlock};
use crate::simd::{Kernel, exp, madd};

/// Queries computed side by side, so that a key or value once read serves all of them.
const SIDE: usize = 4;

/// The keys that a row sees, by their places in the blocks; at least one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) from: usize,
    /// The first that it does not see.
    pub(super) to: usize,
}

impl Seen {
    /// Its part of the block that begins at `before`.
    #[inline(always)]
    fn within(self, before: usize) -> Self {
        let place = |at: usize| at.saturating_sub(before).min(BLOCK_TOKENS);
        Self { from: place(self.from), to: place(self.to) }
    }

    #[inline(always)]
    fn is_empty(self) -> bool {
        self.from >= self.to
    }
}

/// One tile's queries over one head's blocks.
pub(super) struct Attend<'a> {
    /// Numbers per head.
    pub(super) head_dim: usize,
    /// What scores are bent to stay within.
    pub(super) cap: Option<f32>,
    /// `[rows, head_dim]`, scaled.
    pub(super) queries: &'a [f32],
    /// For each row, the keys it sees.
    pub(super) visible: &'a [Seen],
    /// The keys and values, block after block.
    pub(super) blocks: &'a [HeadBlock<'a>],
    /// `[rows, head_dim]`, zero.
    pub(super) out: &'a mut [f32],
}

/// The softmax so far of `N` rows: the largest score, and the sum of exponentials over it.
#[derive(Clone, Copy)]
struct Running {
    largest: f32,
    sum: f32,
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let dim = self.head_dim;
        let rows = self.visible.len();
        let mut running = vec![Running { largest: f32::NEG_INFINITY, sum: 0.0 }; rows];
        for (index, block) in self.blocks.iter().enumerate() {
            let before = index * BLOCK_TOKENS;
            let mut row = 0;
            while row < rows {
                let side = if row + SIDE <= rows { SIDE } else { 1 };
                let range = row * dim..(row + side) * dim;
                let queries = &self.queries[range.clone()];
                let out = &mut self.out[range];
                let visible = &self.visible[row..row + side];
                let running = &mut running[row..row + side];
                let shape = (dim, before, self.cap);
                if side == SIDE {
                    step::<FMA, SIDE>(shape, block, queries, visible, running, out);
                } else {
                    step::<FMA, 1>(shape, block, queries, visible, running, out);
                }
                row += side;
            }
        }
        for (row, running) in self.out.chunks_exact_mut(dim).zip(&running) {
            let scale = 1.0 / running.sum;
            for x in row {
                *x *= scale;
            }
        }
    }
}

/// Takes one block into the sums of `N` rows.
#[inline(always)]
fn step<const FMA: bool, const N: usize>(
    (dim, before, cap): (usize, usize, Option<f32>),
    block: &HeadBlock<'_>,
    queries: &[f32],
    visible: &[Seen],
    running: &mut [Running],
    out: &mut [f32],
) {
    let mut seen = [Seen { from: 0, to: 0 }; N];
    let mut slots = 0;
    for n in 0..N {
        seen[n] = visible[n].within(before);
        slots = slots.max(if seen[n].is_empty() { 0 } else { seen[n].to });
    }
    if slots == 0 {
        return;
    }
    let mut weights = scores::<FMA, N>(dim, block.keys, queries);
    if let Some(cap) = cap {
        for row in &mut weights {
            bend::<FMA>(row, cap);
        }
    }
    let mut decay = [1.0; N];
    for n in 0..N {
        decay[n] = soften::<FMA>(&mut weights[n], seen[n], &mut running[n]);
    }
    mix::<FMA, N>(dim, block.values, slots, &weights, decay, out);
}

/// `N` queries times sixteen keys.
#[inline(always)]
fn scores<const FMA: bool, const N: usize>(
    dim: usize,
    keys: &[f32],
    queries: &[f32],
) -> [[f32; BLOCK_TOKENS]; N] {
    let mut sums = [[0.0; BLOCK_TOKENS]; N];
    let queries = &queries[..N * dim];
    for (d, key) in keys.as_chunks::<BLOCK_TOKENS>().0.iter().enumerate().take(dim) {
        for n in 0..N {
            let query = queries[n * dim + d];
            for slot in 0..BLOCK_TOKENS {
                sums[n][slot] = madd::<FMA>(query, key[slot], sums[n][slot]);
            }
        }
    }
    sums
}

/// Turns scores into exponentials over the running maximum, and says by what earlier
/// sums shrink. Slots outside of `seen` weigh nothing.
#[inline(always)]
fn soften<const FMA: bool>(
    scores: &mut [f32; BLOCK_TOKENS],
    seen: Seen,
    running: &mut Running,
) -> f32 {
    if seen.is_empty() {
        *scores = [0.0; BLOCK_TOKENS];
        return 1.0;
    }
    for (slot, score) in scores.iter_mut().enumerate() {
        let sees = seen.from <= slot && slot < seen.to;
        *score = if sees { *score } else { f32::NEG_INFINITY };
    }
    let mut largest = running.largest;
    for score in scores.iter() {
        largest = largest.max(*score);
    }
    let mut sum = 0.0;
    for (slot, score) in scores.iter_mut().enumerate() {
        let weight = exp::<FMA>(*score - largest);
        *score = if seen.from <= slot && slot < seen.to { weight } else { 0.0 };
    }
    for weight in scores.iter() {
        sum += weight;
    }
    // The first block has nothing before it; `exp` of minus infinity is only nearly zero.
    let decay = if running.largest == f32::NEG_INFINITY {
        0.0
    } else {
        exp::<FMA>(running.largest - largest)
    };
    *running = Running { largest, sum: madd::<FMA>(running.sum, decay, sum) };
    decay
}

/// Adds `N` weighted sums of the block's values. Slots beyond `slots` are not read: they
/// may hold what another sequence left.
#[inline(always)]
fn mix<const FMA: bool, const N: usize>(
    dim: usize,
    values: &[f32],
    slots: usize,
    weights: &[[f32; BLOCK_TOKENS]; N],
    decay: [f32; N],
    out: &mut [f32],
) {
    const WIDE: usize = 16;
    let out = &mut out[..N * dim];
    let values = &values[..slots * dim];
    let mut start = 0;
    while start + WIDE <= dim {
        let mut sums = [[0.0; WIDE]; N];
        for n in 0..N {
            for lane in 0..WIDE {
                sums[n][lane] = out[n * dim + start + lane] * decay[n];
            }
        }
        for (slot, value) in values.chunks_exact(dim).enumerate().take(BLOCK_TOKENS) {
            let value = &value[start..start + WIDE];
            for n in 0..N {
                for lane in 0..WIDE {
                    sums[n][lane] = madd::<FMA>(weights[n][slot], value[lane], sums[n][lane]);
                }
            }
        }
        for n in 0..N {
            out[n * dim + start..n * dim + start + WIDE].copy_from_slice(&sums[n]);
        }
        start += WIDE;
    }
    for d in start..dim {
        for n in 0..N {
            let mut sum = out[n * dim + d] * decay[n];
            for (slot, value) in values.chunks_exact(dim).enumerate().take(BLOCK_TOKENS) {
                sum = madd::<FMA>(weights[n][slot], value[d], sum);
            }
            out[n * dim + d] = sum;
        }
    }
}
