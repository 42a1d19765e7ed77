//! Disentangled attention (He et al. 2021, section 3.1; He et al. 2023): a score is the sum of a
//! query times a key, the query times what the layer makes of their distance as a key, and the key
//! times what it makes of it as a query.

use super::distances::{Products, with_added};
use super::{Heads, Span, Tile};
use crate::simd;

/// How distances between tokens are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach {
    /// Half of the table's rows: distances to one side.
    pub(crate) span: usize,
    /// From half of so many on, distances of about the same logarithm share a row; `None`: all have
    /// rows of their own.
    pub(crate) buckets: Option<usize>,
    /// The distance that has the last of them.
    pub(crate) farthest: usize,
}

impl Reach {
    /// The row of a key that is so far before its query; behind it where that is negative.
    fn row(self, before: i64) -> usize {
        let span = self.span as i64;
        (self.bucket(before) + span).clamp(0, 2 * span - 1) as usize
    }

    fn bucket(self, before: i64) -> i64 {
        let Some(buckets) = self.buckets else { return before };
        let middle = (buckets / 2) as i64;
        if before.abs() <= middle {
            return before;
        }
        // In f32, as the reference computes it: at a boundary, rounding decides.
        let half = middle as f32;
        let most = ((self.farthest as f32 - 1.0) / half).ln();
        let ratio = (before.abs() as f32 / half).ln() / most;
        before.signum() * ((ratio * (half - 1.0)).ceil() as i64 + middle)
    }
}

/// What one layer makes of distances.
#[derive(Debug)]
pub(crate) struct Places {
    rows: usize,
    /// For each head `[head_dim, rows]`: as keys, and as queries.
    keys: Vec<f32>,
    queries: Vec<f32>,
}

impl Places {
    /// Of the projected table, `[rows, packed_width]`.
    pub(crate) fn new(heads: Heads, table: &[f32]) -> Self {
        let width = heads.packed_width();
        let rows = table.len() / width;
        let turned = |first: usize| {
            let mut turned = Vec::with_capacity(rows * heads.query_width());
            for column in first..first + heads.query_width() {
                turned.extend((0..rows).map(|row| table[row * width + column]));
            }
            turned
        };
        Self { rows, keys: turned(heads.query_width()), queries: turned(0) }
    }

    /// Bytes of both.
    pub(crate) fn bytes(&self) -> u64 {
        ((self.keys.len() + self.queries.len()) * size_of::<f32>()) as u64
    }

    /// Attention of each sequence's tokens over all of its own.
    ///
    /// `qkv` is `[tokens, packed_width]`; returns `[tokens, query_width]`. As many key heads as
    /// query heads.
    pub(crate) fn attend(
        &self,
        reach: Reach,
        heads: Heads,
        spans: &[Span<'_>],
        qkv: &[f32],
    ) -> Vec<f32> {
        let dim = heads.head_dim;
        let scale = 1.0 / ((3 * dim) as f32).sqrt();
        let width = heads.packed_width();
        let prepare = |tile: &Tile<'_>| {
            let tokens = tile.span.tokens;
            let last = tokens as i64 - 1;
            // The rows that this sequence can have, and for each distance its row among them.
            let (low, high) = (reach.row(-last), reach.row(last));
            let count = high - low + 1;
            let places: Vec<usize> = (-last..=last).map(|before| reach.row(before) - low).collect();
            let first = tile.kv_head * dim;
            let (start, kv_head) = (tile.span.first, tile.kv_head);
            let part = move |token: usize, first: usize| {
                &qkv[(start + token) * width + first + kv_head * dim..][..dim]
            };
            let against = move |table: &[f32], vector: &[f32], products: &mut [f32]| {
                let keys = &table[first * self.rows + low..];
                let stride = self.rows;
                simd::dispatch(Products { query: vector, scale, keys, stride, scores: products });
            };
            // [tokens, count]
            let mut of_keys = vec![0.0; tokens * count];
            for (token, products) in of_keys.chunks_exact_mut(count).enumerate() {
                against(&self.queries, part(token, heads.query_width()), products);
            }
            let mut of_query = vec![0.0; count];
            move |query: usize, scores: &mut [f32]| {
                of_query.fill(0.0);
                against(&self.keys, part(query, 0), &mut of_query);
                for (key, (score, of_key)) in
                    scores.iter_mut().zip(of_keys.chunks_exact(count)).enumerate()
                {
                    let place = places[query + tokens - 1 - key];
                    *score += of_query[place] + of_key[place];
                }
            }
        };
        with_added(heads, scale, spans, qkv, prepare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_distances_have_rows_of_their_own_and_far_ones_share() {
        let reach = Reach { span: 8, buckets: Some(8), farthest: 64 };
        assert_eq!([-4, -1, 0, 1, 4].map(|before| reach.row(before)), [4, 7, 8, 9, 12]);
        assert_eq!([5, 10, 11, 27, 63].map(|before| reach.row(before)), [13, 13, 14, 15, 15]);
        assert_eq!([-5, -63, -1000].map(|before| reach.row(before)), [3, 1, 0]);
        let all = Reach { span: 4, buckets: None, farthest: 4 };
        assert_eq!([-9, -4, 0, 3, 9].map(|before| all.row(before)), [0, 0, 4, 7, 7]);
    }
}
