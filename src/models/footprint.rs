//! What a model will take, in bytes, from its shape alone.
//!
//! Every formula stands here. `weights` and `kv` are exact: they are what the loader then
//! allocates. `workspace` is the largest step's peak of live activations. Units: numbers
//! (f32, four bytes) per token unless said otherwise; `H` hidden, `I` intermediate, `Q` the
//! packed queries, keys and values, `A` the queries alone.

use roundhouse_types::Bytes;

use crate::Error;
use crate::attention;
use crate::blocks::{PANEL, integer};
use crate::config::bert::BertConfig;
use crate::config::decoder::DecoderConfig;
use crate::kv::BLOCK_TOKENS;

/// What a loaded tokenizer takes: a multiple of its `tokenizer.json`, and what it takes whatever
/// its vocabulary (compiled patterns, a template). Counted by the allocator while it was read,
/// for tokenizers trained on the same text, and rounded up:
///
/// | kind | entries | file | memory |
/// |---|---|---|---|
/// | byte pairs | 1 k | 54 KiB | 0.6 MiB |
/// | byte pairs | 8 k | 0.5 MiB | 1.9 MiB |
/// | byte pairs | 49 k | 3.4 MiB | 8.3 MiB |
/// | byte pairs | 128 k | 9.2 MiB | 29 MiB |
/// | word pieces | 2 k | 30 KiB | 0.3 MiB |
/// | word pieces | 30 k | 0.7 MiB | 6.1 MiB |
/// | unigrams | 32 k | 2.0 MiB | 52 MiB |
///
/// Decoders that are served have byte pairs, encoders word pieces. One that has unigrams is
/// charged with what it takes when it is loaded, as all are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TokenizerCost {
    per_byte: u64,
    whatever: u64,
}

/// Of decoders.
pub(crate) const BYTE_PAIRS: TokenizerCost = TokenizerCost { per_byte: 4, whatever: 1 << 20 };
/// Of encoders.
pub(crate) const WORD_PIECES: TokenizerCost = TokenizerCost { per_byte: 10, whatever: 512 << 10 };

/// What a model has beside its tokenizer: labels, the records about it.
const HOST_FLOOR: u64 = 64 << 10;

const F32: u128 = 4;

/// A count of bytes that came from a file's numbers.
fn counted(part: &'static str, bytes: u128) -> Result<Bytes, Error> {
    // An eighth of the range: the sum of four parts then fits without checks.
    match u64::try_from(bytes) {
        Ok(bytes) if bytes < u64::MAX / 8 => Ok(Bytes(bytes)),
        _ => Err(Error::Overflow { part }),
    }
}

/// Tokenizer, template and labels, from the size of `tokenizer.json`, which holds nearly all
/// of it; zero where there is none.
pub(crate) fn host(tokenizer_json: u64, cost: TokenizerCost) -> Result<Bytes, Error> {
    let text = match tokenizer_json {
        0 => 0,
        size => u128::from(size) * u128::from(cost.per_byte) + u128::from(cost.whatever),
    };
    counted("host part", text + u128::from(HOST_FLOOR))
}

/// The same when it is loaded and its tokenizer and template were measured.
pub fn host_measured(text: Bytes) -> Bytes {
    Bytes(text.0.saturating_add(HOST_FLOOR))
}

/// Blocks of the KV pool: whole sequences of the served context.
pub(crate) fn kv_blocks(context: usize, sequences: usize) -> Result<usize, Error> {
    let blocks = context.div_ceil(BLOCK_TOKENS).checked_mul(sequences.max(1));
    blocks.filter(|blocks| *blocks <= u32::MAX as usize).ok_or(Error::Overflow { part: "kv" })
}

/// Bytes of keys and values per token: `2 x layers x kv_heads x head_dim x 4`. Layers with a
/// window keep all of them, too.
pub(crate) fn kv_token(config: &DecoderConfig) -> Result<Bytes, Error> {
    counted("kv", 2 * config.layers as u128 * config.heads.kv_width() as u128 * F32)
}

/// Bytes of the KV pool: a token's times the tokens of all blocks.
pub(crate) fn kv(token: Bytes, blocks: usize) -> Result<Bytes, Error> {
    counted("kv", u128::from(token.0) * (blocks * BLOCK_TOKENS) as u128)
}

/// A decoder step's peak, plus its rope tables.
///
/// Per token: the residual stream and its norm `2 H`, and the larger of attention
/// (projection, its rotated copy, the mixed values twice: `2 Q + 2 A`) and feed-forward
/// (the first projection, gate and up `2 I` or up alone `I`, what its activation makes of it
/// `I`, the result and its sum `2 H`). Biases copy the projection they are added to, norms of
/// results the result; blocks side by side keep the attention's result. When the layers are
/// done, instead of the latter: the last rows and their norm `2 H`, and logits as tensor and as
/// answer, twice the vocabulary, for as many rows as a step can have. Always: the lists of
/// tokens, rows and tiles, in bytes, and what attention has not merged yet.
pub(crate) fn decoder_workspace(
    config: &DecoderConfig,
    context: usize,
    step_tokens: usize,
    rows: usize,
) -> Result<Bytes, Error> {
    let [hidden, intermediate] = [config.hidden, config.intermediate].map(|n| n as u128);
    let packed = config.heads.packed_width() as u128;
    let attended = config.heads.query_width() as u128;
    let up = config.up_width() as u128;
    let if_any = |is: bool, numbers: u128| if is { numbers } else { 0 };
    let activated = match config.gated && !config.activation.gates_in_one_pass() {
        true => 3 * intermediate,
        false => intermediate,
    };
    let attention = 2 * packed + 2 * attended + if_any(config.qkv_bias, packed);
    let feed_forward = up + activated + 2 * hidden + if_any(config.mlp_bias, up);
    let beside =
        if_any(config.names.result_norms.is_some(), hidden) + if_any(config.parallel, hidden);
    let tokens = step_tokens as u128;
    let layer = tokens * (attention.max(feed_forward) + beside);
    let outputs = tokens.min(rows as u128) * 2 * (hidden + config.vocab as u128);
    let rotated: u128 = config.ropes.iter().map(|rope| rope.dims as u128).sum();
    let numbers = tokens * 2 * hidden + layer.max(outputs) + context as u128 * rotated;
    let lists = lists(step_tokens, config.heads.kv_heads);
    counted("workspace", numbers * F32 + lists + attention::unmerged(config.heads))
}

/// What a multiplication needs more where weights are not all f32, the larger of two: a panel of
/// widened weights and what it makes of all tokens (the fewer values a row has, the more rows a
/// panel, up to the most that a projection has); or some rows of inputs, rounded, and each thread's
/// sums for them.
pub(crate) fn panels(
    are_widened: bool,
    step_tokens: usize,
    [narrowest, widest, tallest]: [usize; 3],
) -> Result<Bytes, Error> {
    let tall = (PANEL / narrowest.max(1)).clamp(1, tallest) as u128;
    let widened = (PANEL as u128 + step_tokens as u128 * tall) * F32;
    let threads = rayon::current_num_threads() as u128;
    let rounded = integer::bytes(step_tokens, widest) + threads * integer::sums(step_tokens);
    counted("workspace", if are_widened { widened.max(rounded) } else { 0 })
}

/// An encoder step's peak.
///
/// Per token: the residual stream `H`, and the larger of attention (projection and its
/// sum with the bias `2 Q`, keys and values packed into blocks `2 H`, the mixed values twice
/// `2 H`) and feed-forward (projection, bias, activation `3 I`, the result and sums `3 H`).
/// Blocks are rounded up, so a sequence of few tokens packs into more than it has: one more
/// block of keys and values per head that is packed at the same time, at most one per thread.
pub(crate) fn encoder_workspace(config: &BertConfig, step_tokens: usize) -> Result<Bytes, Error> {
    let [hidden, intermediate] = [config.hidden, config.intermediate].map(|n| n as u128);
    let attention = 2 * 3 * hidden + 2 * hidden + 2 * hidden;
    let feed_forward = 3 * intermediate + 3 * hidden;
    let tokens = step_tokens as u128 * (hidden + attention.max(feed_forward));
    let rounding = rayon::current_num_threads() as u128
        * 2
        * BLOCK_TOKENS as u128
        * config.heads.head_dim as u128;
    let lists = lists(step_tokens, config.heads.kv_heads);
    counted("workspace", (tokens + rounding) * F32 + lists)
}

/// Bytes of a step's lists: per token its id, position and row, per tile its place and the
/// head of its result. A tile is one token of one key-value head at worst.
fn lists(step_tokens: usize, kv_heads: usize) -> u128 {
    step_tokens as u128 * (128 + 128 * kv_heads as u128)
}
