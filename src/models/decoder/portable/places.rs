//! Where a step's keys are written and read: lists that go to the device once, for all layers.
//!
//! Tokens are cut into tiles, for each of which scores are one rectangle: all sequences of one
//! token together, longest first, as many as the bounds allow; of a longer span some tokens at a
//! time. A sequence with fewer keys than its tile's longest reads its last block again, unseen.

use candle_core::{Device, Result, Tensor};

use super::kept::Kept;
use crate::attention::{Heads, Span};
use crate::kv::BLOCK_TOKENS;

/// Scores of a tile, all heads: 64 MiB in f32. One token's are computed even if they are more.
pub(crate) const MOST_SCORES: usize = 1 << 24;
/// Numbers of keys and values of a tile: as much. One sequence's are read even if they are more.
pub(crate) const MOST_KEYS: usize = 1 << 24;

/// How large tiles are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) heads: Heads,
    pub(super) scores: usize,
    pub(super) keys: usize,
}

/// All places of a step.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) writes: Vec<Write>,
    pub(super) tiles: Vec<Tile>,
    /// The tile's result of each token, where those are in another order.
    pub(super) order: Option<Tensor>,
}

/// The tokens whose keys go to one chunk.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) chunk: usize,
    /// Which they are, unless all.
    pub(super) rows: Option<Tensor>,
    /// For each of them its slot, `[2 kv_heads, tokens, head_dim]`.
    pub(super) slots: Tensor,
}

/// Some tokens whose scores are computed together: `tokens` of each of `spans`.
#[derive(Debug)]
pub(super) struct Tile {
    pub(super) spans: usize,
    pub(super) tokens: usize,
    /// Which they are, `[spans * tokens]`.
    pub(super) rows: Tensor,
    /// What they see, by the window that a layer has.
    pub(super) reaches: Vec<Reach>,
}

/// The keys that a tile reads where layers have one window.
#[derive(Debug)]
pub(super) struct Reach {
    /// Chunks with the indices of their blocks.
    pub(super) parts: Vec<(usize, Tensor)>,
    /// Where each block, span after span, lies among what is read of the parts; absent where it lies there in order.
    pub(super) order: Option<Tensor>,
    /// Keys of each span.
    pub(super) keys: usize,
    /// `[spans, 1, tokens, keys]`: nothing for keys that a token sees, else minus infinity.
    pub(super) hidden: Tensor,
}

/// Consecutive tokens of a span.
#[derive(Debug, Clone, Copy)]
struct Piece<'a> {
    span: Span<'a>,
    offset: usize,
    tokens: usize,
}

impl Piece<'_> {
    fn first(&self) -> usize {
        self.span.position + self.offset
    }

    fn end(&self) -> usize {
        self.first() + self.tokens
    }

    /// The first block that it sees, and the one after its last.
    fn blocks(&self, window: Option<usize>) -> (usize, usize) {
        (oldest(self.first(), window) / BLOCK_TOKENS, self.end().div_ceil(BLOCK_TOKENS))
    }
}

/// The first key that the token at a position sees.
fn oldest(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

impl Places {
    pub(super) fn of(
        spans: &[Span<'_>],
        windows: &[Option<usize>],
        bounds: Bounds,
        to: (&Kept, &Device),
    ) -> Result<Self> {
        let tiles = tiles(spans, bounds);
        let rows: Vec<usize> = tiles.iter().flatten().flat_map(Piece::rows).collect();
        let in_order = rows.iter().enumerate().all(|(at, row)| at == *row);
        let mut order = vec![0u32; rows.len()];
        rows.iter().zip(0..).for_each(|(row, at)| order[*row] = at);
        let order = match in_order {
            true => None,
            false => Some(Tensor::new(order, to.1)?),
        };
        let tiles = tiles.iter().map(|pieces| Tile::of(pieces, windows, to));
        Ok(Self {
            writes: writes(spans, bounds.heads, to)?,
            tiles: tiles.collect::<Result<_>>()?,
            order,
        })
    }
}

impl Piece<'_> {
    /// Its tokens among all.
    fn rows(&self) -> std::ops::Range<usize> {
        let first = self.span.first + self.offset;
        first..first + self.tokens
    }
}

/// Cuts all tokens into tiles.
fn tiles<'a>(spans: &[Span<'a>], bounds: Bounds) -> Vec<Vec<Piece<'a>>> {
    let Bounds { heads, scores, keys } = bounds;
    let padded = |span: &Span<'_>| (span.position + span.tokens).next_multiple_of(BLOCK_TOKENS);
    let mut tiles = Vec::new();
    let mut single: Vec<Piece<'_>> = Vec::new();
    for &span in spans {
        if span.tokens == 1 {
            single.push(Piece { span, offset: 0, tokens: 1 });
            continue;
        }
        let some = (scores / (heads.heads * padded(&span))).max(1);
        for offset in (0..span.tokens).step_by(some) {
            let tokens = some.min(span.tokens - offset);
            tiles.push(vec![Piece { span, offset, tokens }]);
        }
    }
    single.sort_by_key(|piece| std::cmp::Reverse(piece.end()));
    let mut rest = &single[..];
    while let Some(longest) = rest.first() {
        // The longest comes first, and all others of its tile read as many keys.
        let each = padded(&longest.span);
        let most = (scores / (heads.heads * each)).min(keys / (2 * heads.kv_width() * each));
        let (tile, others) = rest.split_at(most.clamp(1, rest.len()));
        tiles.push(tile.to_vec());
        rest = others;
    }
    tiles
}

impl Tile {
    fn of(pieces: &[Piece<'_>], windows: &[Option<usize>], to: (&Kept, &Device)) -> Result<Self> {
        let rows: Vec<u32> = pieces.iter().flat_map(Piece::rows).map(|row| row as u32).collect();
        let reaches = windows.iter().map(|window| Reach::of(pieces, *window, to));
        Ok(Self {
            spans: pieces.len(),
            tokens: pieces[0].tokens,
            rows: Tensor::new(rows, to.1)?,
            reaches: reaches.collect::<Result<_>>()?,
        })
    }
}

impl Reach {
    fn of(
        pieces: &[Piece<'_>],
        window: Option<usize>,
        (kept, device): (&Kept, &Device),
    ) -> Result<Self> {
        let reach = |piece: &Piece<'_>| piece.blocks(window);
        let most = pieces.iter().map(|piece| reach(piece).1 - reach(piece).0).max().unwrap_or(0);
        // Chunks in the order in which they are first met, with the blocks of each.
        let mut parts: Vec<(usize, Vec<u32>)> = Vec::new();
        let mut found: Vec<(usize, usize)> = Vec::with_capacity(pieces.len() * most);
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for piece in pieces {
            let (first, after) = reach(piece);
            for at in 0..most {
                let block = piece.span.blocks[(first + at).min(after - 1)];
                let (chunk, within) = kept.place(block);
                let part = parts.iter().position(|(other, _)| *other == chunk);
                let part = part.unwrap_or_else(|| {
                    parts.push((chunk, Vec::new()));
                    parts.len() - 1
                });
                found.push((part, parts[part].1.len()));
                parts[part].1.push(within as u32);
            }
            for token in piece.first()..piece.end() {
                from.push((oldest(token, window) - first * BLOCK_TOKENS) as u32);
                to.push((token + 1 - first * BLOCK_TOKENS) as u32);
            }
        }
        let order = match parts.len() {
            1 => None,
            _ => {
                let mut starts = vec![0];
                for (_, blocks) in &parts {
                    starts.push(starts[starts.len() - 1] + blocks.len());
                }
                let at = |(part, index): (usize, usize)| (starts[part] + index) as u32;
                Some(Tensor::new(found.into_iter().map(at).collect::<Vec<u32>>(), device)?)
            }
        };
        let parts =
            parts.into_iter().map(|(chunk, blocks)| Ok((chunk, Tensor::new(blocks, device)?)));
        let keys = most * BLOCK_TOKENS;
        let shape = (pieces.len(), 1, pieces[0].tokens, keys);
        Ok(Self {
            parts: parts.collect::<Result<_>>()?,
            order,
            keys,
            hidden: hidden(shape, (from, to), device)?,
        })
    }
}

/// What is added to scores, where each token sees the keys from one place up to another.
fn hidden(
    shape: (usize, usize, usize, usize),
    (from, to): (Vec<u32>, Vec<u32>),
    device: &Device,
) -> Result<Tensor> {
    let (spans, _, tokens, keys) = shape;
    let of_tokens = |places| Tensor::from_vec(places, (spans, 1, tokens, 1), device);
    let places = Tensor::arange(0, keys as u32, device)?;
    let after = places.broadcast_ge(&of_tokens(from)?)?;
    let seen = (after * places.broadcast_lt(&of_tokens(to)?)?)?;
    let all = |number: f32| Tensor::new(number, device)?.broadcast_as(shape);
    seen.where_cond(&all(0.0)?, &all(f32::NEG_INFINITY)?)
}

/// Where all tokens' keys go, chunk after chunk.
fn writes(
    spans: &[Span<'_>],
    heads: Heads,
    (kept, device): (&Kept, &Device),
) -> Result<Vec<Write>> {
    let mut chunks: Vec<(usize, Vec<u32>, Vec<u32>)> = Vec::new();
    let mut count = 0;
    for span in spans {
        for token in 0..span.tokens {
            let position = span.position + token;
            let (chunk, within) = kept.place(span.blocks[position / BLOCK_TOKENS]);
            let slot = (within * BLOCK_TOKENS + position % BLOCK_TOKENS) as u32;
            let row = (span.first + token) as u32;
            count += 1;
            match chunks.iter_mut().find(|(other, ..)| *other == chunk) {
                Some((_, rows, slots)) => {
                    rows.push(row);
                    slots.push(slot);
                }
                None => chunks.push((chunk, vec![row], vec![slot])),
            }
        }
    }
    let writes = chunks.into_iter().map(|(chunk, rows, slots)| {
        let all = rows.len() == count;
        let shape = (2 * heads.kv_heads, slots.len(), heads.head_dim);
        let slots = Tensor::from_vec(slots, (1, rows.len(), 1), device)?;
        let rows = match all {
            true => None,
            false => Some(Tensor::new(rows, device)?),
        };
        Ok(Write { chunk, rows, slots: slots.broadcast_as(shape)?.contiguous()? })
    });
    writes.collect()
}
