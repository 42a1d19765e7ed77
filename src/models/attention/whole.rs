//! Attention over rows that are whole sequences: nothing is kept, so keys and values are packed into
//! blocks for the kernel and forgotten.

use rayon::prelude::*;

use super::kernel::Seen;
use super::{Heads, SERIAL, Scores, Span, Tile, Work, scatter, tiles, whole};
use crate::kv::{BLOCK_TOKENS, HeadBlock};
use crate::rope::Rope;

/// Which tokens of its sequence a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// All.
    All,
    /// Those up to so far away on either side.
    Around(usize),
    /// Those before it and itself, so many at most.
    Before(Option<usize>),
}

impl Sight {
    /// What the token at a place of a sequence sees.
    fn of(self, place: usize, tokens: usize) -> Seen {
        match self {
            Self::All => Seen { from: 0, to: tokens },
            Self::Around(reach) => {
                let to = place.saturating_add(reach).saturating_add(1).min(tokens);
                Seen { from: place.saturating_sub(reach), to }
            }
            Self::Before(window) => {
                let from = window.map_or(0, |window| (place + 1).saturating_sub(window));
                Seen { from, to: place + 1 }
            }
        }
    }
}

/// Rotates queries and keys of whole sequences, `[tokens, packed_width]`, in place.
pub(crate) fn rotate(heads: Heads, rope: &Rope, spans: &[Span<'_>], qkv: &mut [f32]) {
    let places: Vec<usize> = spans.iter().flat_map(|span| 0..span.tokens).collect();
    let rotated = heads.query_width() + heads.kv_width();
    rope.rotate(qkv, (heads.packed_width(), rotated, heads.head_dim), &places);
}

/// Attention of each sequence's tokens over those of its own that they see.
///
/// `qkv` is `[tokens, packed_width]`; returns `[tokens, query_width]`.
pub(crate) fn whole_rows(
    (heads, scores): (Heads, Scores<'_>),
    sight: Sight,
    spans: &[Span<'_>],
    qkv: &[f32],
) -> Vec<f32> {
    let width = heads.packed_width();
    let compute = |tile: &Tile<'_>| {
        let packed = pack(heads, tile, qkv);
        let floats = heads.head_dim * BLOCK_TOKENS;
        let blocks = packed
            .chunks_exact(2 * floats)
            .map(|block| HeadBlock { keys: &block[..floats], values: &block[floats..] });
        let tokens = tile.span.tokens;
        let seen = (0..tile.tokens).map(|token| sight.of(tile.offset + token, tokens)).collect();
        let work = Work { skipped: 0, blocks: blocks.collect(), seen };
        whole((heads, scores), tile, qkv, &work)
    };
    // A tile is a whole sequence here: its keys are packed once.
    let longest = spans.iter().map(|span| span.tokens).max().unwrap_or(1);
    let tiles = tiles(heads, spans, longest.max(1));
    let products: usize = tiles.iter().map(|tile| tile.tokens * tile.tokens).sum();
    let out = if products * heads.group() * heads.head_dim < SERIAL {
        tiles.iter().map(compute).collect()
    } else {
        tiles.par_iter().map(compute).collect()
    };
    scatter(heads, &tiles, out, qkv.len() / width)
}

/// One head's keys and values of a whole sequence as consecutive blocks.
fn pack(heads: Heads, tile: &Tile<'_>, qkv: &[f32]) -> Vec<f32> {
    let (width, head_dim) = (heads.packed_width(), heads.head_dim);
    let floats = head_dim * BLOCK_TOKENS;
    let mut packed = vec![0.0; tile.span.tokens.div_ceil(BLOCK_TOKENS) * 2 * floats];
    for token in 0..tile.span.tokens {
        let row = &qkv[(tile.span.first + token) * width..][..width];
        let start = heads.query_width() + tile.kv_head * head_dim;
        let keys = &row[start..start + head_dim];
        let values = &row[start + heads.kv_width()..][..head_dim];
        let slot = token % BLOCK_TOKENS;
        let block = &mut packed[token / BLOCK_TOKENS * 2 * floats..][..2 * floats];
        let (key_block, value_block) = block.split_at_mut(floats);
        for (dim, key) in keys.iter().enumerate() {
            key_block[dim * BLOCK_TOKENS + slot] = *key;
        }
        value_block[slot * head_dim..(slot + 1) * head_dim].copy_from_slice(values);
    }
    packed
}
