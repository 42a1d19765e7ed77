//! Attention whose scores have a number added for each head and distance between two tokens.
//!
//! Distances of about the same size share a bucket (Raffel et al. 2020, section 2.1): half of the
//! buckets are for keys behind the query, half of each for single distances, the others for ranges
//! that grow with their logarithm.

use rayon::prelude::*;

use super::{Heads, SERIAL, Span, Tile, scatter, tiles};
use crate::simd::{self, Kernel, exp, madd};

/// Buckets, in both directions together.
pub(crate) const BUCKETS: usize = 32;
/// Farther distances share the last bucket.
const FARTHEST: f32 = 128.0;

/// A model's numbers.
#[derive(Debug)]
pub(crate) struct Distances {
    /// For each head, those of all buckets.
    by_head: Vec<Vec<f32>>,
}

impl Distances {
    /// Of a table `[buckets][heads]`.
    pub(crate) fn new(table: &[Vec<f32>]) -> Self {
        let heads = table.first().map_or(0, Vec::len);
        let of = |head: usize| table.iter().map(|bucket| bucket[head]).collect();
        Self { by_head: (0..heads).map(of).collect() }
    }

    /// Attention of each sequence's tokens over all of its own.
    ///
    /// `qkv` is `[tokens, packed_width]`; returns `[tokens, query_width]`. As many key heads as
    /// query heads.
    pub(crate) fn attend(&self, heads: Heads, spans: &[Span<'_>], qkv: &[f32]) -> Vec<f32> {
        let longest = spans.iter().map(|span| span.tokens).max().unwrap_or(1).max(1);
        // For each head, by how far the key is behind the first one that any query can see.
        let buckets: Vec<usize> =
            (0..2 * longest - 1).map(|at| bucket(at as i64 - (longest as i64 - 1))).collect();
        let added: Vec<Vec<f32>> = (self.by_head.iter())
            .map(|numbers| buckets.iter().map(|bucket| numbers[*bucket]).collect())
            .collect();
        let prepare = |tile: &Tile<'_>| {
            let added = &added[tile.kv_head];
            move |query: usize, scores: &mut [f32]| {
                for (score, added) in scores.iter_mut().zip(&added[longest - 1 - query..]) {
                    *score += added;
                }
            }
        };
        let scale = 1.0 / (heads.head_dim as f32).sqrt();
        with_added(heads, scale, spans, qkv, prepare)
    }
}

/// The bucket of a key that is so far behind its query; before it where that is negative.
fn bucket(behind: i64) -> usize {
    const HALF: usize = BUCKETS / 2;
    const EXACT: usize = HALF / 2;
    let direction = if behind > 0 { HALF } else { 0 };
    let distance = usize::try_from(behind.unsigned_abs()).unwrap_or(usize::MAX);
    if distance < EXACT {
        return direction + distance;
    }
    // In f32, as the reference computes it: at a boundary, rounding decides.
    let ratio = (distance as f32 / EXACT as f32).ln() / (FARTHEST / EXACT as f32).ln();
    direction + (EXACT + (ratio * (HALF - EXACT) as f32) as usize).min(HALF - 1)
}

/// Attention of whole sequences. What `prepare` gives for a tile, which is one head of a sequence,
/// adds to the scaled scores of one query over all keys.
pub(super) fn with_added<A: FnMut(usize, &mut [f32])>(
    heads: Heads,
    scale: f32,
    spans: &[Span<'_>],
    qkv: &[f32],
    prepare: impl Fn(&Tile<'_>) -> A + Sync,
) -> Vec<f32> {
    let width = heads.packed_width();
    let compute = |tile: &Tile<'_>| {
        let (dim, tokens) = (heads.head_dim, tile.span.tokens);
        let part = |token: usize, start: usize| {
            &qkv[(tile.span.first + token) * width + start + tile.kv_head * dim..][..dim]
        };
        // [head_dim, tokens], so that a query's scores of all keys grow together.
        let mut keys = vec![0.0; dim * tokens];
        let mut values = Vec::with_capacity(tokens * dim);
        for token in 0..tokens {
            for (d, key) in part(token, heads.query_width()).iter().enumerate() {
                keys[d * tokens + token] = *key;
            }
            values.extend_from_slice(part(token, heads.query_width() + heads.kv_width()));
        }
        let mut out = vec![0.0; tokens * dim];
        let mut scores = vec![0.0; tokens];
        let mut add = prepare(tile);
        for (query, out) in out.chunks_exact_mut(dim).enumerate() {
            scores.fill(0.0);
            let own = part(query, 0);
            let (keys, stride) = (&keys, tokens);
            simd::dispatch(Products { query: own, scale, keys, stride, scores: &mut scores });
            add(query, &mut scores);
            simd::dispatch(Mixed { scores: &mut scores, values: &values, out });
        }
        out
    };
    let longest = spans.iter().map(|span| span.tokens).max().unwrap_or(1);
    let tiles = tiles(heads, spans, longest.max(1));
    let products: usize = tiles.iter().map(|tile| tile.tokens * tile.tokens).sum();
    let out = if products * heads.head_dim < SERIAL {
        tiles.iter().map(compute).collect()
    } else {
        tiles.par_iter().map(compute).collect()
    };
    scatter(heads, &tiles, out, qkv.len() / width)
}

/// One query times some keys.
pub(super) struct Products<'a> {
    pub(super) query: &'a [f32],
    pub(super) scale: f32,
    /// `[head_dim, stride]`, of which the first columns are read.
    pub(super) keys: &'a [f32],
    pub(super) stride: usize,
    /// Zeros, as many as there are keys.
    pub(super) scores: &'a mut [f32],
}

impl Kernel for Products<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { query, scale, keys, stride, scores } = self;
        for (query, keys) in query.iter().zip(keys.chunks(stride)) {
            let query = query * scale;
            for (score, key) in scores.iter_mut().zip(keys) {
                *score = madd::<FMA>(query, *key, *score);
            }
        }
    }
}

/// The softmax of scores, and the mean of the values that it weighs.
struct Mixed<'a> {
    scores: &'a mut [f32],
    /// `[tokens, head_dim]`.
    values: &'a [f32],
    /// Zeros.
    out: &'a mut [f32],
}

impl Kernel for Mixed<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { scores, values, out } = self;
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for score in scores.iter_mut() {
            *score = exp::<FMA>(*score - largest);
            sum += *score;
        }
        for (weight, value) in scores.iter().zip(values.chunks_exact(out.len())) {
            for (out, value) in out.iter_mut().zip(value) {
                *out = madd::<FMA>(*weight, *value, *out);
            }
        }
        let scale = 1.0 / sum;
        for out in out {
            *out *= scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_have_buckets_of_their_own_and_far_ones_share() {
        assert_eq!([0, -1, -7].map(bucket), [0, 1, 7]);
        assert_eq!([1, 7].map(bucket), [17, 23]);
        assert_eq!([-8, -11, -12, -127, -128, -100_000].map(bucket), [8, 8, 9, 15, 15, 15]);
        assert_eq!([8, 100_000].map(bucket), [24, 31]);
    }
}
