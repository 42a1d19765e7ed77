//! The attention seam: packed projections in, mixed values out, whatever the rows' lengths.
//!
//! Two entries over one kernel: [`Causal::attend`] reads keys and values of sequences from the
//! pool's blocks, [`whole_rows`] packs each sequence's own into blocks first. Work is
//! cut into tiles of some queries that share a key-value head; each walks the blocks once
//! with the running maximum and sum of a softmax, so nothing of the size of tokens times
//! tokens exists. Keys are cut too, into [`SEGMENT`]s whose sums are merged: where tiles are few,
//! threads share them. Cuts lie at the same positions whoever computes, so that what a token gives
//! depends neither on its chunk, nor on its company, nor on the threads.
//! Neither calls a matmul: that number must not depend on the sequences.

use std::ops::Range;

use rayon::prelude::*;
use roundhouse_engine::BlockId;

use crate::kv::{BLOCK_TOKENS, HeadBlock, Kept, Pool};
use crate::rope::Rope;
use crate::simd::dispatch_lanes;

mod disentangled;
mod distances;
mod kernel;
mod whole;

pub(crate) use disentangled::{Places, Reach};
pub(crate) use distances::{BUCKETS, Distances};
pub(crate) use whole::{Sight, rotate, whole_rows};

use kernel::{Attend, CHUNK, Partial, Seen};

const _: () = assert!(SEGMENT.is_multiple_of(CHUNK), "segments are of whole chunks");

/// Query vectors per tile: every key that comes from memory serves all of them, whose sums and
/// scores stay in a core's second cache.
const TILE: usize = 64;
/// Blocks of keys after which a softmax begins anew, to be merged with the one before.
const SEGMENT: usize = 64;
/// Tiles per thread that keep all threads busy to the end.
const FEW_TILES: usize = 4;
/// Segments per thread that are computed before they are merged.
const UNMERGED: usize = 8;
/// Multiplications below which spreading over threads costs more than it gains.
const SERIAL: usize = 1 << 17;

/// The shape of attention in one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads; divides `heads`.
    pub(crate) kv_heads: usize,
    /// Numbers per head.
    pub(crate) head_dim: usize,
}

impl Heads {
    /// Whether a row of them can be counted at all. Nothing else may be asked where it cannot.
    pub(crate) fn fit(self) -> bool {
        let all = self.kv_heads.checked_mul(2).and_then(|both| both.checked_add(self.heads));
        let width = all.and_then(|all| all.checked_mul(self.head_dim));
        width.is_some_and(|width| u32::try_from(width).is_ok())
    }

    /// Numbers per token of all queries.
    pub(crate) fn query_width(self) -> usize {
        self.heads * self.head_dim
    }

    /// Numbers per token of all keys, and of all values.
    pub(crate) fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Numbers per token of queries, keys and values, in that order.
    pub(crate) fn packed_width(self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }

    /// Rows in which each key head lies behind its queries and before its values, as rows in which all
    /// queries come first and all values last.
    pub(crate) fn separated(self, rows: &[f32]) -> Vec<f32> {
        let (dim, group) = (self.head_dim, self.group());
        let mut out = Vec::with_capacity(rows.len());
        for row in rows.chunks_exact(self.packed_width()) {
            for part in [0..group, group..group + 1, group + 1..group + 2] {
                for heads in row.chunks_exact((group + 2) * dim) {
                    out.extend_from_slice(&heads[part.start * dim..part.end * dim]);
                }
            }
        }
        out
    }

    /// Query heads of one key head.
    pub(crate) fn group(self) -> usize {
        self.heads / self.kv_heads
    }
}

/// What becomes of the products of queries and keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scores<'a> {
    /// What they are multiplied by.
    pub(crate) scale: f32,
    /// They are then bent to stay within plus and minus this.
    pub(crate) cap: Option<f32>,
    /// How many keys a token sees at most, its own included.
    pub(crate) window: Option<usize>,
    /// Of each query head the score, as it is, of a key that all its tokens see beside theirs and whose
    /// value is nothing; empty where there is none.
    pub(crate) sinks: &'a [f32],
}

impl Scores<'_> {
    /// The usual ones: over the root of the head's size, and nothing else.
    pub(crate) fn plain(heads: Heads) -> Self {
        Self { scale: 1.0 / (heads.head_dim as f32).sqrt(), cap: None, window: None, sinks: &[] }
    }
}

/// The causal attention of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Causal<'a> {
    pub(crate) heads: Heads,
    pub(crate) scores: Scores<'a>,
    /// How queries and keys learn their positions, where they do.
    pub(crate) rope: Option<&'a Rope>,
    /// The layer whose keys and values are used.
    pub(crate) layer: usize,
}

/// One sequence's share of the packed rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<'a> {
    /// Its first row among the packed.
    pub(crate) first: usize,
    /// Its rows.
    pub(crate) tokens: usize,
    /// The position of the first of them.
    pub(crate) position: usize,
    /// Its blocks from position 0 on.
    pub(crate) blocks: &'a [BlockId],
}

/// Queries that one task computes: some tokens of a span, all heads of one key-value head.
#[derive(Debug, Clone, Copy)]
struct Tile<'a> {
    span: Span<'a>,
    /// Tokens of the span before the tile's.
    offset: usize,
    tokens: usize,
    kv_head: usize,
}

/// Bytes of what is not merged yet where threads share segments.
pub(crate) fn unmerged(heads: Heads) -> u128 {
    let rows = UNMERGED * rayon::current_num_threads() * TILE.max(heads.group());
    (rows * (heads.head_dim + 2) * size_of::<f32>()) as u128
}

impl Causal<'_> {
    /// Attention of new tokens over all before them that the window shows.
    ///
    /// Rotates queries and keys of `qkv` (`[tokens, packed_width]`) in place, writes keys and
    /// values to the spans' blocks, which must have been touched, and returns
    /// `[tokens, query_width]`. A block that several spans share is never one that a span writes.
    pub(crate) fn attend<K: Kept>(
        &self,
        pool: &mut Pool<K>,
        spans: &[Span<'_>],
        qkv: &mut [f32],
    ) -> Vec<f32> {
        let &Self { heads, scores, rope, layer } = self;
        let width = heads.packed_width();
        if let Some(rope) = rope {
            let positions: Vec<usize> =
                spans.iter().flat_map(|span| span.position..span.position + span.tokens).collect();
            let rotated = heads.query_width() + heads.kv_width();
            rope.rotate(qkv, (width, rotated, heads.head_dim), &positions);
        }
        for span in spans {
            for token in 0..span.tokens {
                let row = &qkv[(span.first + token) * width..][..width];
                let (keys, values) = row[heads.query_width()..].split_at(heads.kv_width());
                let position = span.position + token;
                let place = (span.blocks[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
                pool.write(layer, place, keys, values);
            }
        }

        let pool = &*pool;
        // The first key that the token at a position sees.
        let oldest = |position: usize| match scores.window {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        };
        let work = |tile: &Tile<'_>| {
            let first = tile.span.position + tile.offset;
            // Chunks that lie before all windows of the tile are not looked at.
            let skipped = oldest(first) / BLOCK_TOKENS / CHUNK * CHUNK;
            let blocks = tile.span.blocks[..(first + tile.tokens).div_ceil(BLOCK_TOKENS)].iter();
            let blocks = blocks.map(|block| pool.head_block(layer, *block, tile.kv_head));
            let seen = (0..tile.tokens)
                .map(|token| Seen { from: oldest(first + token), to: first + token + 1 });
            Work { skipped, blocks: blocks.skip(skipped).collect(), seen: seen.collect() }
        };
        let tiles = tiles(heads, spans, (TILE / heads.group()).max(1));
        let keys = |tile: &Tile<'_>| {
            let first = tile.span.position + tile.offset;
            first + tile.tokens - oldest(first)
        };
        let products: usize = tiles.iter().map(|tile| tile.tokens * keys(tile)).sum();
        let out = if products * heads.group() * heads.head_dim < SERIAL {
            tiles.iter().map(|tile| whole((heads, scores), tile, qkv, &work(tile))).collect()
        } else if tiles.len() >= FEW_TILES * rayon::current_num_threads() {
            let whole = |tile| whole((heads, scores), tile, qkv, &work(tile));
            tiles.par_iter().with_max_len(1).map(whole).collect()
        } else {
            shared((heads, scores), &tiles, qkv, work)
        };
        scatter(heads, &tiles, out, qkv.len() / width)
    }
}

fn tiles<'a>(heads: Heads, spans: &[Span<'a>], tokens: usize) -> Vec<Tile<'a>> {
    let mut tiles = Vec::new();
    for &span in spans {
        for offset in (0..span.tokens).step_by(tokens) {
            let tokens = tokens.min(span.tokens - offset);
            tiles.extend((0..heads.kv_heads).map(|kv_head| Tile { span, offset, tokens, kv_head }));
        }
    }
    tiles
}

/// What a tile's queries are multiplied with.
struct Work<'a, K> {
    /// Blocks of the sequence before the first of `blocks`: whole chunks.
    skipped: usize,
    blocks: Vec<HeadBlock<'a, K>>,
    /// For each token, the positions that it sees.
    seen: Vec<Seen>,
}

impl<K> Work<'_, K> {
    /// The segments that its blocks lie in.
    fn segments(&self) -> Range<usize> {
        self.skipped / SEGMENT..(self.skipped + self.blocks.len()).div_ceil(SEGMENT)
    }
}

/// Computes one tile: `[tokens, group, head_dim]`.
fn whole<K: Kept>(
    of: (Heads, Scores<'_>),
    tile: &Tile<'_>,
    qkv: &[f32],
    work: &Work<'_, K>,
) -> Vec<f32> {
    let heads = of.0;
    let some = (TILE / heads.group()).max(1);
    let mut out = Vec::with_capacity(tile.tokens * heads.group() * heads.head_dim);
    for first in (0..tile.tokens).step_by(some) {
        let tokens = first..(first + some).min(tile.tokens);
        let mut all: Option<Partial> = None;
        for index in work.segments() {
            let partial = segment(of, (tile, tokens.clone()), qkv, work, index);
            merge(&mut all, partial);
        }
        out.extend(finished(of, tile, all));
    }
    out
}

/// The means of a tile's rows `[tokens, group]` when they have seen all their keys.
fn finished(
    (heads, scores): (Heads, Scores<'_>),
    tile: &Tile<'_>,
    all: Option<Partial>,
) -> Vec<f32> {
    let Some(mut all) = all else { return Vec::new() };
    let group = heads.group();
    if let Some(sinks) = scores.sinks.get(tile.kv_head * group..(tile.kv_head + 1) * group) {
        all.sink(sinks);
    }
    all.finish()
}

/// Takes in what the same rows have over later keys.
fn merge(all: &mut Option<Partial>, later: Partial) {
    match all {
        Some(all) => all.merge(&later),
        None => *all = Some(later),
    }
}

/// Computes a few tiles, of which threads share the segments: so many at a time that what is not
/// merged yet takes little.
fn shared<'a, K: Kept>(
    of: (Heads, Scores<'_>),
    tiles: &[Tile<'_>],
    qkv: &[f32],
    work: impl Fn(&Tile<'_>) -> Work<'a, K>,
) -> Vec<Vec<f32>> {
    let works: Vec<Work<'_, K>> = tiles.iter().map(work).collect();
    let places: Vec<(usize, usize)> = (works.iter().enumerate())
        .flat_map(|(tile, work)| work.segments().map(move |index| (tile, index)))
        .collect();
    let mut all: Vec<Option<Partial>> = tiles.iter().map(|_| None).collect();
    for places in places.chunks(UNMERGED * rayon::current_num_threads()) {
        let partials: Vec<Partial> = (places.par_iter().with_max_len(1))
            .map(|(tile, index)| {
                let (tile, work) = (&tiles[*tile], &works[*tile]);
                segment(of, (tile, 0..tile.tokens), qkv, work, *index)
            })
            .collect();
        for ((tile, _), partial) in places.iter().zip(partials) {
            merge(&mut all[*tile], partial);
        }
    }
    tiles.iter().zip(all).map(|(tile, all)| finished(of, tile, all)).collect()
}

/// Some of a tile's rows `[tokens, group]` over the keys of one segment.
fn segment<K: Kept>(
    (heads, scores): (Heads, Scores<'_>),
    (tile, tokens): (&Tile<'_>, Range<usize>),
    qkv: &[f32],
    work: &Work<'_, K>,
    index: usize,
) -> Partial {
    let (width, head_dim, group) = (heads.packed_width(), heads.head_dim, heads.group());
    let Scores { scale, cap, .. } = scores;
    let first = (index * SEGMENT).max(work.skipped);
    let after = ((index + 1) * SEGMENT).min(work.skipped + work.blocks.len());
    let blocks = &work.blocks[first - work.skipped..after - work.skipped];
    let mut queries = Vec::with_capacity(tokens.len() * group * head_dim);
    let mut visible = Vec::with_capacity(tokens.len() * group);
    for token in tokens {
        let row = (tile.span.first + tile.offset + token) * width;
        let start = row + tile.kv_head * group * head_dim;
        queries.extend(qkv[start..start + group * head_dim].iter().map(|x| x * scale));
        let seen = work.seen[token].within(first * BLOCK_TOKENS, blocks.len() * BLOCK_TOKENS);
        visible.extend(std::iter::repeat_n(seen, group));
    }
    let mut out = Partial::nothing(visible.len(), head_dim);
    let (queries, visible) = (&queries, &visible);
    dispatch_lanes(Attend { head_dim, cap, queries, visible, blocks, out: &mut out });
    out
}

/// Lays what tiles gave out by token: `[tokens, query_width]`.
fn scatter(heads: Heads, tiles: &[Tile<'_>], parts: Vec<Vec<f32>>, tokens: usize) -> Vec<f32> {
    let (width, part_width) = (heads.query_width(), heads.group() * heads.head_dim);
    let mut out = vec![0.0; tokens * width];
    for (tile, part) in tiles.iter().zip(parts) {
        for (token, row) in part.chunks_exact(part_width).enumerate() {
            let start = (tile.span.first + tile.offset + token) * width + tile.kv_head * part_width;
            out[start..start + part_width].copy_from_slice(row);
        }
    }
    out
}

#[cfg(test)]
mod tests;
