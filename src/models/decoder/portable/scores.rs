//! Attention over what was kept, tile by tile.

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::kept::Kept;
use super::places::{Places, Tile};
use crate::attention::Heads;

/// One layer's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attention<'a> {
    pub(super) heads: Heads,
    /// Scores are bent to stay within plus and minus this.
    pub(super) cap: Option<f32>,
    /// `[heads]`: of each the score of a key beside all others, whose value is nothing.
    pub(super) sinks: Option<&'a Tensor>,
    pub(super) layer: usize,
    /// Which of a tile's reaches the layer has.
    pub(super) window: usize,
}

/// What scaled queries `[tokens, heads, head_dim]` see: `[tokens, query_width]`.
pub(super) fn attend(
    of: Attention<'_>,
    queries: &Tensor,
    places: &Places,
    kept: &Kept,
) -> Result<Tensor> {
    let tiles = places.tiles.iter().map(|tile| one(of, queries, tile, kept));
    let tiles = tiles.collect::<Result<Vec<_>>>()?;
    let all = match &tiles[..] {
        [all] => all.clone(),
        several => Tensor::cat(several, 0)?,
    };
    match &places.order {
        Some(order) => all.index_select(order, 0),
        None => Ok(all),
    }
}

/// A tile's, `[spans * tokens, query_width]`.
fn one(of: Attention<'_>, queries: &Tensor, tile: &Tile, kept: &Kept) -> Result<Tensor> {
    let Attention { heads, cap, sinks, layer, window } = of;
    let Heads { kv_heads, head_dim, .. } = heads;
    let group = heads.heads / kv_heads;
    let (spans, tokens) = (tile.spans, tile.tokens);
    let reach = &tile.reaches[window];

    let mut both = kept.read(layer, &reach.parts)?;
    if let Some(order) = &reach.order {
        both = both.index_select(order, 1)?;
    }
    let both = both.to_dtype(DType::F32)?.reshape((2 * kv_heads, spans, reach.keys, head_dim))?;
    let (keys, values) = (both.narrow(0, 0, kv_heads)?, both.narrow(0, kv_heads, kv_heads)?);

    let queries = queries.index_select(&tile.rows, 0)?;
    let queries = queries.reshape((spans, tokens, kv_heads, group, head_dim))?;
    // [kv_heads, spans, group * tokens, head_dim]
    let queries = queries.permute((2, 0, 3, 1, 4))?.contiguous()?;
    let queries = queries.reshape((kv_heads, spans, group * tokens, head_dim))?;

    let mut scores = queries.matmul(&keys.transpose(2, 3)?)?;
    if let Some(cap) = cap {
        scores = (scores * f64::from(1.0 / cap))?;
        scores = scores.tanh()?;
        scores = (scores * f64::from(cap))?;
    }
    scores = scores.reshape((kv_heads, spans, group, tokens, reach.keys))?;
    scores = scores.broadcast_add(&reach.hidden)?;
    scores = match sinks {
        None => softmax_last_dim(&scores)?,
        Some(sinks) => {
            let one = sinks.reshape((kv_heads, 1, group, 1, 1))?;
            let column = one.broadcast_as((kv_heads, spans, group, tokens, 1))?.contiguous()?;
            scores = Tensor::cat(&[&scores, &column], 4)?;
            softmax_last_dim(&scores)?.narrow(4, 0, reach.keys)?.contiguous()?
        }
    };
    scores = scores.reshape((kv_heads, spans, group * tokens, reach.keys))?;
    let mixed = scores.matmul(&values)?;
    drop(scores);

    let mixed = mixed.reshape((kv_heads, spans, group, tokens, head_dim))?;
    let mixed = mixed.permute((1, 3, 0, 2, 4))?.contiguous()?;
    mixed.reshape((spans * tokens, heads.query_width()))
}

#[cfg(test)]
mod tests;
