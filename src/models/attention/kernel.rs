//! The inner loops: a tile of queries against blocks of sixteen keys, four blocks at a time.
//!
//! Online softmax (FlashAttention, Dao et al. 2022): sums are kept over the largest score so far and
//! shrink when a larger one comes. Per four blocks the scores of all rows come first, some rows and two
//! blocks of keys in registers at once; then each row's exponentials; then the sums of values.
//! What a row gives depends on the keys that it sees and their places, not on the rows beside it.

use crate::kv::{BLOCK_TOKENS, HeadBlock, Kept};
use crate::simd::{LANES, LaneKernel, Lanes, exp};

/// Blocks whose scores are taken into the sums together.
pub(super) const CHUNK: usize = 4;
/// Their keys.
const KEYS: usize = CHUNK * BLOCK_TOKENS;

const _: () = assert!(BLOCK_TOKENS == LANES, "a block's keys are one register");

/// The keys that a row sees, by their places in the blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) from: usize,
    /// The first that it does not see.
    pub(super) to: usize,
}

impl Seen {
    /// Its part of the `count` keys from `before` on.
    #[inline(always)]
    pub(super) fn within(self, before: usize, count: usize) -> Self {
        let place = |at: usize| at.saturating_sub(before).min(count);
        Self { from: place(self.from), to: place(self.to) }
    }

    #[inline(always)]
    fn is_empty(self) -> bool {
        self.from >= self.to
    }
}

/// The softmax of some rows over some keys: what is needed to go on with others.
#[derive(Debug)]
pub(super) struct Partial {
    /// Of each row the largest score, and the sum of exponentials over it.
    rows: Vec<(f32, f32)>,
    /// `[rows, head_dim]`: values, weighted by those exponentials.
    values: Vec<f32>,
}

impl Partial {
    /// That of rows that have seen nothing.
    pub(super) fn nothing(rows: usize, head_dim: usize) -> Self {
        Self { rows: vec![(f32::NEG_INFINITY, 0.0); rows], values: vec![0.0; rows * head_dim] }
    }

    /// Takes in what the same rows have over later keys.
    pub(super) fn merge(&mut self, later: &Self) {
        let dim = self.values.len() / self.rows.len().max(1);
        let values = self.values.chunks_exact_mut(dim).zip(later.values.chunks_exact(dim));
        for ((mine, others), (values, other_values)) in
            self.rows.iter_mut().zip(&later.rows).zip(values)
        {
            let ((most, sum), (other_most, other_sum)) = (*mine, *others);
            // No largest score and a sum: scores that are no numbers. They must not vanish by how
            // keys were cut, so they go into the sum below.
            if other_most == f32::NEG_INFINITY && other_sum == 0.0 {
                continue;
            }
            if most == f32::NEG_INFINITY && sum == 0.0 {
                *mine = *others;
                values.copy_from_slice(other_values);
                continue;
            }
            let largest = most.max(other_most);
            let shrink = [most, other_most].map(|most| exp::<false>(most - largest));
            *mine = (largest, sum * shrink[0] + other_sum * shrink[1]);
            for (value, other) in values.iter_mut().zip(other_values) {
                *value = *value * shrink[0] + other * shrink[1];
            }
        }
    }

    /// Takes in a key of nothing with a score for each row, of which `scores` has some in turns.
    pub(super) fn sink(&mut self, scores: &[f32]) {
        let dim = self.values.len() / self.rows.len().max(1);
        let rows = self.rows.iter_mut().zip(self.values.chunks_exact_mut(dim));
        for (((most, sum), values), score) in rows.zip(scores.iter().cycle()) {
            let largest = most.max(*score);
            let shrink = exp::<false>(*most - largest);
            *sum = *sum * shrink + exp::<false>(score - largest);
            *most = largest;
            values.iter_mut().for_each(|value| *value *= shrink);
        }
    }

    /// The weighted means, `[rows, head_dim]`.
    pub(super) fn finish(mut self) -> Vec<f32> {
        let dim = self.values.len() / self.rows.len().max(1);
        for (values, (_, sum)) in self.values.chunks_exact_mut(dim).zip(&self.rows) {
            let scale = 1.0 / sum;
            for value in values {
                *value *= scale;
            }
        }
        self.values
    }
}

/// One tile's queries over one head's blocks.
pub(super) struct Attend<'a, K> {
    /// Numbers per head.
    pub(super) head_dim: usize,
    /// What scores are bent to stay within.
    pub(super) cap: Option<f32>,
    /// `[rows, head_dim]`, scaled.
    pub(super) queries: &'a [f32],
    /// For each row, the keys it sees.
    pub(super) visible: &'a [Seen],
    /// The keys and values, block after block.
    pub(super) blocks: &'a [HeadBlock<'a, K>],
    /// Nothing so far.
    pub(super) out: &'a mut Partial,
}

/// The softmax so far of a row: the largest score, and sums of exponentials over it.
#[derive(Clone, Copy)]
struct Running<V> {
    largest: f32,
    sums: V,
}

impl<K: Kept> LaneKernel for Attend<'_, K> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self { head_dim: dim, cap, queries, visible, blocks, out } = self;
        let rows = visible.len();
        let mut running = vec![Running { largest: f32::NEG_INFINITY, sums: V::splat(0.0) }; rows];
        let mut weights = vec![[0.0; KEYS]; rows];
        let mut decays = vec![1.0; rows];
        for (index, blocks) in blocks.chunks(CHUNK).enumerate() {
            let seen = |row: usize| visible[row].within(index * KEYS, KEYS);
            let last = (0..rows).map(seen).filter(|seen| !seen.is_empty()).map(|seen| seen.to);
            let Some(last) = last.max() else { continue };
            let blocks = &blocks[..last.div_ceil(BLOCK_TOKENS)];
            all_scores::<V, K>(dim, blocks, queries, &mut weights);
            for row in 0..rows {
                let running = &mut running[row];
                decays[row] = soften(&mut weights[row], blocks.len(), cap, seen(row), running);
            }
            // Slots that nobody sees are not read: they may hold what another sequence left.
            all_values::<V, K>(dim, (blocks, last), &weights, &decays, &mut out.values);
        }
        for (row, running) in out.rows.iter_mut().zip(&running) {
            *row = (running.largest, running.sums.total());
        }
    }
}

/// All rows times the keys of up to [`CHUNK`] blocks.
#[inline(always)]
fn all_scores<V: Lanes, K: Kept>(
    dim: usize,
    blocks: &[HeadBlock<'_, K>],
    queries: &[f32],
    weights: &mut [[f32; KEYS]],
) {
    let mut row = 0;
    while row < weights.len() {
        let (queries, weights) = (&queries[row * dim..], &mut weights[row..]);
        row += match weights.len() {
            8.. if V::MANY => row_scores::<V, K, 8>(dim, blocks, queries, weights),
            4.. => row_scores::<V, K, 4>(dim, blocks, queries, weights),
            3 => row_scores::<V, K, 3>(dim, blocks, queries, weights),
            2 => row_scores::<V, K, 2>(dim, blocks, queries, weights),
            _ => row_scores::<V, K, 1>(dim, blocks, queries, weights),
        };
    }
}

/// The same of `N` rows. Says how many rows.
#[inline(always)]
fn row_scores<V: Lanes, K: Kept, const N: usize>(
    dim: usize,
    blocks: &[HeadBlock<'_, K>],
    queries: &[f32],
    weights: &mut [[f32; KEYS]],
) -> usize {
    let mut start = 0;
    for blocks in blocks.chunks(2) {
        match blocks {
            [a, b] if V::MANY => {
                scores::<V, K, N, 2>(dim, start, [a.keys, b.keys], queries, weights);
            }
            [a, b] => {
                scores::<V, K, N, 1>(dim, start, [a.keys], queries, weights);
                scores::<V, K, N, 1>(dim, start + BLOCK_TOKENS, [b.keys], queries, weights);
            }
            [a] => scores::<V, K, N, 1>(dim, start, [a.keys], queries, weights),
            _ => {}
        }
        start += 2 * BLOCK_TOKENS;
    }
    N
}

/// `N` rows times the keys of `M` blocks, into their places from `start` on.
#[inline(always)]
fn scores<V: Lanes, K: Kept, const N: usize, const M: usize>(
    dim: usize,
    start: usize,
    keys: [&[K]; M],
    queries: &[f32],
    weights: &mut [[f32; KEYS]],
) {
    let queries: [&[f32]; N] = std::array::from_fn(|n| &queries[n * dim..(n + 1) * dim]);
    let keys: [&[[K; LANES]]; M] = std::array::from_fn(|m| &keys[m].as_chunks().0[..dim]);
    let mut sums = [[V::splat(0.0); M]; N];
    for d in 0..dim {
        let mut key = [V::splat(0.0); M];
        for m in 0..M {
            key[m] = K::load(&keys[m][d]);
        }
        for n in 0..N {
            let query = V::splat(queries[n][d]);
            for m in 0..M {
                sums[n][m] = query.madd(key[m], sums[n][m]);
            }
        }
    }
    for n in 0..N {
        for m in 0..M {
            sums[n][m].write(&mut weights[n][start + m * LANES..start + (m + 1) * LANES]);
        }
    }
}

/// Turns the scores of a chunk's first blocks into exponentials over the running maximum, and says by
/// what earlier sums shrink. Keys outside of `seen` weigh nothing.
#[inline(always)]
fn soften<V: Lanes>(
    scores: &mut [f32; KEYS],
    blocks: usize,
    cap: Option<f32>,
    seen: Seen,
    running: &mut Running<V>,
) -> f32 {
    if seen.is_empty() {
        *scores = [0.0; KEYS];
        return 1.0;
    }
    let (chunks, _) = scores.as_chunks_mut::<LANES>();
    let least = V::splat(f32::NEG_INFINITY);
    let mut all = [least; CHUNK];
    let mut most = least;
    for block in 0..blocks {
        let mut scores = V::load(&chunks[block]);
        if let Some(cap) = cap {
            scores = bend(scores, cap);
        }
        let Seen { from, to } = seen.within(block * LANES, LANES);
        all[block] = scores.within(from, to, least);
        most = all[block].max(most);
    }
    let largest = running.largest.max(most.largest());
    // The first keys have nothing before them; `exp` of minus infinity is only nearly zero.
    let decay = if running.largest == f32::NEG_INFINITY {
        0.0
    } else if running.largest == largest {
        1.0
    } else {
        exp::<false>(running.largest - largest)
    };
    let mut sums = running.sums.mul(V::splat(decay));
    let (nothing, over) = (V::splat(0.0), V::splat(largest));
    for block in 0..blocks {
        let Seen { from, to } = seen.within(block * LANES, LANES);
        let weights = all[block].sub(over).exp().within(from, to, nothing);
        weights.store(&mut chunks[block]);
        sums = sums.add(weights);
    }
    *running = Running { largest, sums };
    decay
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
fn bend<V: Lanes>(x: V, cap: f32) -> V {
    let all = V::splat;
    let power = x.mul(all(2.0 / cap)).exp();
    all(cap).sub(all(2.0 * cap).div(power.add(all(1.0))))
}

/// Adds all rows' weighted sums of the values of some blocks, whose first `slots` somebody sees.
#[inline(always)]
fn all_values<V: Lanes, K: Kept>(
    dim: usize,
    seen: (&[HeadBlock<'_, K>], usize),
    weights: &[[f32; KEYS]],
    decays: &[f32],
    out: &mut [f32],
) {
    let mut row = 0;
    while row < weights.len() {
        let rows = (&weights[row..], &decays[row..]);
        let out = &mut out[row * dim..];
        row += match weights.len() - row {
            4.. => row_values::<V, K, 4>(dim, seen, rows, out),
            3 => row_values::<V, K, 3>(dim, seen, rows, out),
            2 => row_values::<V, K, 2>(dim, seen, rows, out),
            _ => row_values::<V, K, 1>(dim, seen, rows, out),
        };
    }
}

/// The same of `N` rows, all columns. Says how many rows.
#[inline(always)]
fn row_values<V: Lanes, K: Kept, const N: usize>(
    dim: usize,
    seen: (&[HeadBlock<'_, K>], usize),
    rows: (&[[f32; KEYS]], &[f32]),
    out: &mut [f32],
) -> usize {
    let mut start = 0;
    while start < dim {
        start += match dim - start {
            64.. if V::MANY => values::<V, K, N, 4>((dim, start), seen, rows, out),
            _ => values::<V, K, N, 1>((dim, start), seen, rows, out),
        };
    }
    N
}

/// The same of `N` rows and `M` registers of columns. Says how many columns.
#[expect(clippy::needless_range_loop, reason = "by index, sums stay in registers")]
#[inline(always)]
fn values<V: Lanes, K: Kept, const N: usize, const M: usize>(
    (dim, start): (usize, usize),
    (blocks, slots): (&[HeadBlock<'_, K>], usize),
    (weights, decays): (&[[f32; KEYS]], &[f32]),
    out: &mut [f32],
) -> usize {
    let end = (start + M * LANES).min(dim);
    let weights: [&[f32; KEYS]; N] = std::array::from_fn(|n| &weights[n]);
    let mut sums = [[V::splat(0.0); M]; N];
    for n in 0..N {
        let decay = V::splat(decays[n]);
        let before = registers::<V, f32, M>(&out[n * dim + start..n * dim + end]);
        for m in 0..M {
            sums[n][m] = before[m].mul(decay);
        }
    }
    for (index, block) in blocks.iter().enumerate() {
        let before = index * BLOCK_TOKENS;
        let count = (slots - before).min(BLOCK_TOKENS);
        for (slot, value) in block.values.chunks_exact(dim).take(count).enumerate() {
            let value = &value[start..end];
            let lanes = registers::<V, K, M>(value);
            for n in 0..N {
                let weight = V::splat(weights[n][before + slot]);
                for m in 0..M {
                    sums[n][m] = weight.madd(lanes[m], sums[n][m]);
                }
            }
        }
    }
    for n in 0..N {
        let mut out = out[n * dim + start..n * dim + end].chunks_mut(LANES);
        for m in 0..M {
            if let Some(out) = out.next() {
                sums[n][m].write(out);
            }
        }
    }
    M * LANES
}

/// Numbers in registers; of the last there may be fewer.
#[inline(always)]
fn registers<V: Lanes, K: Kept, const M: usize>(numbers: &[K]) -> [V; M] {
    let mut lanes = [V::splat(0.0); M];
    match numbers.as_chunks::<LANES>().0.first_chunk::<M>() {
        Some(whole) => {
            for m in 0..M {
                lanes[m] = K::load(&whole[m]);
            }
        }
        None => {
            for (lanes, numbers) in lanes.iter_mut().zip(numbers.chunks(LANES)) {
                *lanes = K::read(numbers);
            }
        }
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(most: f32, sum: f32, value: f32) -> Partial {
        Partial { rows: vec![(most, sum)], values: vec![value] }
    }

    #[test]
    fn what_is_no_number_is_merged_like_what_is() {
        let finite = || one(1.0, 2.0, 3.0);
        // What rows are left with whose scores were all no numbers.
        let broken = || one(f32::NEG_INFINITY, f32::NAN, f32::NAN);
        let nothing = || Partial::nothing(1, 1);
        for (first, then) in [(finite(), broken()), (broken(), finite()), (nothing(), broken())] {
            let mut all = first;
            all.merge(&then);
            assert!(all.finish()[0].is_nan());
        }
        for (first, then) in [(finite(), nothing()), (nothing(), finite())] {
            let mut all = first;
            all.merge(&then);
            assert_eq!(all.finish()[0], 1.5);
        }
    }
}
