//! What a model will take, in bytes, from its shape alone.
//!
//! Every formula stands here. `weights` and `kv` are exact: they are what the loader then
//! allocates. `workspace` is the largest step's peak of live activations. Units: numbers
//! (f32, four bytes) per token unless said otherwise; `H` hidden, `I` intermediate, `Q` the
//! packed queries, keys and values, `A` the queries alone.

use roundhouse_engine::{KvSpec, RESULT_BYTES};
use roundhouse_types::Bytes;

use crate::Error;
use crate::attention;
use crate::blocks::{PANEL, integer};
use crate::config::decoder::DecoderConfig;
use crate::config::encoder::{EncoderConfig, HeadConfig, Positions};
use crate::decoder::portable;
use crate::format::Formats;
use crate::kv::{BLOCK_TOKENS, KvDtype};
use crate::linear;

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

/// Blocks of a KV chunk at least, all layers at once: fewer would be asked for too often.
const CHUNK_BLOCKS: usize = 16;
/// A chunk of a pool that is not small has at least this many bytes: the system then gives it a
/// mapping of its own, of which only the pages that are written take memory, and which is gone at
/// once when it is given back.
const CHUNK_BYTES: u64 = 1 << 20;

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

/// The shape of a KV pool that grows to whole sequences of the served context, and has room for one
/// of them always.
pub(crate) fn kv_spec(context: usize, sequences: usize, token: Bytes) -> Result<KvSpec, Error> {
    let overflow = Error::Overflow { part: "kv" };
    let block = counted("kv", u128::from(token.0) * BLOCK_TOKENS as u128)?;
    let one = context.div_ceil(BLOCK_TOKENS);
    let roomy = usize::try_from(CHUNK_BYTES.div_ceil(block.0.max(1))).unwrap_or(usize::MAX);
    let mut chunk = roomy.clamp(CHUNK_BLOCKS, one.max(CHUNK_BLOCKS)).next_power_of_two();
    // A chunk of a short context's pool is less than its floor; whole chunks exceed that by an
    // eighth at most.
    while chunk > one || (one.next_multiple_of(chunk) - one) * 8 > one {
        chunk /= 2;
    }
    let floor = one.div_ceil(chunk);
    let chunks = one.checked_mul(sequences.max(1)).map(|blocks| blocks.div_ceil(chunk).max(floor));
    let blocks = chunks.and_then(|chunks| chunks.checked_mul(chunk));
    let blocks = blocks.filter(|blocks| *blocks <= u32::MAX as usize).ok_or(overflow)?;
    counted("kv", u128::from(block.0) * blocks as u128)?;
    let chunk_bytes = counted("kv", u128::from(block.0) * chunk as u128)?;
    Ok(KvSpec { block_tokens: BLOCK_TOKENS, blocks, chunk, floor, chunk_bytes })
}

/// Bytes of keys and values per token: `2 x layers x kv_heads x head_dim` numbers. Layers with a
/// window keep all of them, too.
pub(crate) fn kv_token(config: &DecoderConfig, dtype: KvDtype) -> Result<Bytes, Error> {
    let numbers = 2 * config.layers as u128 * config.heads.kv_width() as u128;
    counted("kv", numbers * dtype.bytes() as u128)
}

/// Bytes of what a KV pool always has.
pub(crate) fn kv_floor(kv: &KvSpec) -> Result<Bytes, Error> {
    counted("kv", u128::from(kv.chunk_bytes.0) * kv.floor as u128)
}

/// A decoder step's peak, plus its rope tables.
///
/// Per token: the residual stream and its norm `2 H`, and the larger of attention
/// (projection, its rotated copy, the mixed values twice: `2 Q + 2 A`) and feed-forward
/// (the first projection, gate and up `2 I` or up alone `I`, what its activation makes of it
/// `I`, the result and what multiplications pack `2 H`; what the second one packs, `I`, takes the room of
/// gate and up). Norms of results copy the result; blocks
/// side by side keep the attention's. When the layers are
/// done, instead of the latter: the last rows and their norm `2 H`, and logits as tensor and as
/// answer, twice the vocabulary, for as many rows as a step can have. Always: the lists of
/// tokens, rows and tiles, in bytes, and what attention has not merged yet.
fn decoder_workspace(
    (config, context, step_tokens): (&DecoderConfig, usize, usize),
    rows: usize,
) -> Result<Bytes, Error> {
    let tokens = step_tokens as u128;
    let outputs = tokens.min(rows as u128) * 2 * (config.hidden as u128 + config.vocab as u128);
    let numbers = decoder_step((config, context, step_tokens), outputs, 0);
    let lists = lists(step_tokens, config.heads.kv_heads);
    counted("workspace", numbers * F32 + lists + attention::unmerged(config.heads))
}

/// The same of one that makes vectors, whose keys and values of whole sequences are there for a step.
pub(crate) fn embedder_workspace(
    shape: (&DecoderConfig, usize, usize),
    cards: bool,
) -> Result<Bytes, Error> {
    let own = own_embedder_workspace(shape)?;
    if !cards {
        return Ok(own);
    }
    let (config, context, step_tokens) = shape;
    // Each sequence's are rounded up to whole blocks; all vectors are answers.
    let kept = 2 * config.heads.kv_width() as u128 * (step_tokens * BLOCK_TOKENS) as u128;
    let vectors = step_tokens as u128 * (3 * config.hidden + 3 * config.texts.widest()) as u128;
    let on_card = card_workspace((config, context, step_tokens), 1)?;
    let beside = counted("workspace", (kept + vectors) * F32)?;
    Ok(own.max(on_card + beside))
}

/// By the host alone: keys and values of whole sequences are packed into blocks, of
/// which each thread rounds one up, and all vectors are normed and are answers at worst.
fn own_embedder_workspace(
    (config, context, step_tokens): (&DecoderConfig, usize, usize),
) -> Result<Bytes, Error> {
    let tokens = step_tokens as u128;
    // Of texts of one token each, all are projected.
    let outputs = tokens * (2 * config.hidden + 2 * config.texts.widest()) as u128;
    let kept = tokens * 2 * config.heads.kv_width() as u128;
    let rounding = rayon::current_num_threads() as u128
        * 2
        * BLOCK_TOKENS as u128
        * config.heads.head_dim as u128;
    let numbers = decoder_step((config, context, step_tokens), outputs, kept) + rounding;
    let lists = lists(step_tokens, config.heads.kv_heads);
    counted("workspace", numbers * F32 + lists)
}

/// A decoder step's peak wherever it may be computed, on `cards` too or by the host alone.
pub(crate) fn generator_workspace(
    shape: (&DecoderConfig, usize, usize),
    rows: usize,
    cards: bool,
) -> Result<Bytes, Error> {
    let own = decoder_workspace(shape, rows)?;
    if cards { Ok(own.max(card_workspace(shape, rows)?)) } else { Ok(own) }
}

/// A decoder step's peak by operations of tensors ([`portable`]), each of which makes a tensor beside
/// those that it reads; projections of halves read and make one of halves, counted here as a whole one.
///
/// Per token: the residual stream and its norm `2 H`, what each layer's window hides of the context; and
/// the larger of attention (projection `3 Q`, queries and keys apart, rotated and scaled `3 A + 3 K`,
/// values and what is kept of both, in the order and type of the pool and with its places `9 K`, the
/// mixed values in tiles and in order `3 A`, the result `3 H`) and feed-forward (projection `3 U`, its
/// activation `3 I`, inputs and result `4 H`). Of one tile beside attention: its keys and values as they
/// are kept, in order and in f32, its scores twice and their result. When the layers are done: last rows and their logits, which
/// answers have again.
fn card_workspace(
    (config, context, step_tokens): (&DecoderConfig, usize, usize),
    rows: usize,
) -> Result<Bytes, Error> {
    let [hidden, intermediate, up] =
        [config.hidden, config.intermediate, config.up_width()].map(|n| n as u128);
    let [packed, queries, keys] =
        [config.heads.packed_width(), config.heads.query_width(), config.heads.kv_width()]
            .map(|n| n as u128);
    let (tokens, rows) = (step_tokens as u128, rows.min(step_tokens) as u128);
    let seen = context.next_multiple_of(BLOCK_TOKENS) as u128;
    let tile = |most: usize, one: u128, all: u128| (most as u128).max(one * seen).min(all * seen);
    let heads = config.heads.heads as u128;
    let scores = tile(portable::MOST_SCORES, heads, heads * tokens);
    // Sinks are a key more while scores are softened.
    let sinks = if config.names.sinks.is_some() { 2 * heads * tokens } else { 0 };
    let kept = tile(portable::MOST_KEYS, 2 * keys, 2 * keys * rows);
    let attention = tokens * (3 * packed + 6 * queries + 12 * keys + 3 * hidden);
    let experts = config.experts.as_ref().map_or(0, |experts| {
        let inner = experts.intermediate.max(experts.shared.unwrap_or(0));
        let [count, used] = [experts.count, experts.used];
        (count + 4 * used + 9 * inner) as u128 + 6 * hidden
    });
    let feed_forward = tokens * (3 * up + 3 * intermediate + 4 * hidden).max(experts);
    let layer = (attention + 3 * scores + sinks + 3 * kept).max(feed_forward);
    let outputs = rows * (3 * hidden + 4 * config.vocab as u128);
    let mut windows: Vec<Option<usize>> = config.kinds.iter().map(|kind| kind.window).collect();
    windows.sort_unstable();
    windows.dedup();
    // While it is made, each hidden key has three bytes more.
    let hidden_keys = 2 * windows.len() as u128 * tokens * seen;
    let rotated: u128 = config.ropes.iter().map(|rope| rope.dims as u128).sum();
    let tables = (seen + tokens) * rotated + config.norm_fill() as u128;
    let numbers = tokens * 3 * hidden + layer.max(outputs) + hidden_keys + tables;
    counted("workspace", numbers * F32 + lists(step_tokens, config.heads.kv_heads))
}

/// The numbers of a decoder's step and of its rope tables; `kept`: what attention has beside.
fn decoder_step(
    (config, context, step_tokens): (&DecoderConfig, usize, usize),
    outputs: u128,
    kept: u128,
) -> u128 {
    let [hidden, intermediate] = [config.hidden, config.intermediate].map(|n| n as u128);
    let packed = config.heads.packed_width() as u128;
    let attended = config.heads.query_width() as u128;
    let up = config.up_width() as u128;
    let if_any = |is: bool, numbers: u128| if is { numbers } else { 0 };
    let tokens = step_tokens as u128;
    let attention = tokens * (2 * packed + 2 * attended) + kept;
    let feed_forward = tokens * (up + intermediate + 2 * hidden);
    let feed_forward = feed_forward.max(tokens * sparse(config));
    let beside =
        if_any(config.names.result_norms.is_some(), hidden) + if_any(config.parallel, hidden);
    let layer = attention.max(feed_forward) + tokens * beside;
    let rotated: u128 = config.ropes.iter().map(|rope| rope.dims as u128).sum();
    let tables = context as u128 * rotated + config.norm_fill() as u128;
    tokens * 2 * hidden + layer.max(outputs) + tables
}

/// The numbers per token of a sparse feed-forward block: its scores, three numbers for each expert that
/// it uses, its result and the sum. Of the expert that all tokens use, at worst or by intention: its inputs
/// or results, its part of each, and as a dense block has them its first projection and what the activation
/// makes of it.
fn sparse(config: &DecoderConfig) -> u128 {
    let Some(experts) = &config.experts else { return 0 };
    let inner = experts.intermediate.max(experts.shared.unwrap_or(0));
    let [hidden, count, used, inner] =
        [config.hidden, experts.count, experts.used, inner].map(|n| n as u128);
    count + 3 * used + 3 * hidden + 3 * inner + 1
}

/// What multiplications need more by the weights' formats. Of blocks the larger of two: a panel of
/// widened weights and what it makes of all tokens (the fewer values a row has, the more rows a
/// panel, up to the most that a projection has); or some rows of inputs, rounded, and each thread's
/// sums for them. Of halves: packed activations, beside all of them where they are rounded, and of f16
/// each thread's group of weights as bf16s.
pub(crate) fn beside(
    formats: &Formats,
    step_tokens: usize,
    [narrowest, widest, tallest]: [usize; 3],
) -> Result<Bytes, Error> {
    let tall = (PANEL / narrowest.max(1)).clamp(1, tallest) as u128;
    let widened = (PANEL as u128 + step_tokens as u128 * tall) * F32;
    let threads = rayon::current_num_threads() as u128;
    let rounded = integer::bytes(step_tokens, widest) + threads * integer::sums(step_tokens);
    let of_blocks = if formats.have_blocks() { widened.max(rounded) } else { 0 };
    let packed = if formats.have_halves() { linear::packed_bytes(widest) as u128 } else { 0 };
    let apart = if formats.have_f16() { threads * linear::apart_bytes(widest) as u128 } else { 0 };
    let all = if formats.round() { linear::rounded_bytes(step_tokens, widest) } else { 0 };
    counted("workspace", of_blocks + packed + all + apart)
}

/// An encoder step's peak, plus its rope tables.
///
/// Per token: the residual stream `H`, and the larger of attention (projection `Q`, keys and values
/// packed into blocks `2 H`, the mixed values twice `2 H`) and feed-forward (projection `U`, what a gate
/// makes of it `I`, results `3 H`); both projections twice, for what multiplications pack. Where norms come first, their results `2 H`; where queries
/// and keys are rotated, their copy `Q`. Blocks are rounded up, so a sequence of few tokens packs
/// into more than it has: one more block of keys and values per head that is packed at the same
/// time, at most one per thread. When the layers are done, instead: what the head makes of each
/// vector, and its answers twice, of which a step has no more than one call may have.
pub(crate) fn encoder_workspace(
    config: &EncoderConfig,
    head: Option<&HeadConfig>,
    context: usize,
    step_tokens: usize,
) -> Result<Bytes, Error> {
    let [hidden, intermediate] = [config.hidden, config.intermediate].map(|n| n as u128);
    let tokens = step_tokens as u128;
    let if_any = |is: bool, numbers: u128| if is { numbers } else { 0 };
    let (rotated, tables): (u128, u128) = match &config.positions {
        Positions::Rotated(it) => (3 * hidden, it.ropes.iter().map(|rope| rope.dims as u128).sum()),
        Positions::Learned(_) | Positions::Bucketed(_) | Positions::Disentangled(..) => (0, 0),
    };
    let distances = match &config.positions {
        Positions::Disentangled(_, it) => 2 * it.reach.span as u128,
        _ => 0,
    };
    // What layers make of them stays; while it is made, all of one layer's. Then each thread has a
    // row of them for each of a sequence's tokens.
    let kept = distances * (2 * hidden * config.layers as u128 + 6 * hidden);
    let threads = rayon::current_num_threads() as u128;
    let beside = kept + threads * distances.min(2 * tokens) * (context as u128).min(tokens);
    let first = if_any(config.norms_first, 2 * hidden);
    let attention = 2 * 3 * hidden + 2 * hidden + 2 * hidden + rotated;
    let feed_forward = 2 * config.up_width() as u128 + intermediate + 3 * hidden;
    let layer = tokens * attention.max(feed_forward);
    let answers = head.map_or(0, |head| answers(head, config.hidden, step_tokens));
    let rounding = threads * 2 * BLOCK_TOKENS as u128 * config.heads.head_dim as u128;
    let lists = lists(step_tokens, config.heads.kv_heads);
    let numbers = tokens * (hidden + first) + layer.max(answers) + rounding + beside;
    counted("workspace", (numbers + context as u128 * tables) * F32 + lists)
}

/// The numbers of what a head makes of a step's vectors, and of its answers.
fn answers(head: &HeadConfig, hidden: usize, step_tokens: usize) -> u128 {
    let (hidden, tokens) = (hidden as u128, step_tokens as u128);
    let dense = head.first.as_ref().map_or(0, |dense| 4 * dense.width as u128);
    let bytes = (tokens * head.width as u128 * F32).min(RESULT_BYTES as u128);
    tokens * (hidden + dense) + 2 * bytes.div_ceil(F32)
}

/// The room that a model's step has for what heads compute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadRoom {
    hidden: usize,
    step_tokens: usize,
    /// Numbers of the least that a layer takes, or of the model's own head.
    numbers: u128,
}

impl HeadRoom {
    /// An encoder's: what each token's attention and feed-forward block take at least.
    pub(crate) fn of_encoder(
        config: &EncoderConfig,
        head: Option<&HeadConfig>,
        step_tokens: usize,
    ) -> Self {
        let own = head.map_or(0, |head| answers(head, config.hidden, step_tokens));
        let numbers = own.max(10 * config.hidden as u128 * step_tokens as u128);
        Self { hidden: config.hidden, step_tokens, numbers }
    }

    /// A decoder's, whether it generates or answers by itself: what a layer takes for each token at least.
    pub(crate) fn of_decoder(config: &DecoderConfig, step_tokens: usize) -> Self {
        let numbers = 2 * config.hidden as u128 * step_tokens as u128;
        Self { hidden: config.hidden, step_tokens, numbers }
    }

    /// What an adapter's head takes beyond it.
    pub(crate) fn beyond(&self, head: &HeadConfig) -> Result<Bytes, Error> {
        let numbers = answers(head, self.hidden, self.step_tokens);
        counted("workspace", numbers.saturating_sub(self.numbers) * F32)
    }
}

/// Bytes of a step's lists: per token its id, position and row, per tile its place and the
/// head of its result. A tile is one token of one key-value head at worst.
fn lists(step_tokens: usize, kv_heads: usize) -> u128 {
    step_tokens as u128 * (128 + 128 * kv_heads as u128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::DtypeSetting;

    #[test]
    fn a_head_wider_than_the_model_has_room_for_is_charged() {
        let room = HeadRoom { hidden: 32, step_tokens: 16, numbers: 10 * 32 * 16 };
        let head = |width| HeadConfig { width, ..HeadConfig::labels("score") };
        assert_eq!(room.beyond(&head(100)).unwrap(), Bytes::ZERO);
        let more = 16 * 32 + 2 * 16 * 1000 - 10 * 32 * 16;
        assert_eq!(room.beyond(&head(1000)).unwrap(), Bytes(more * 4));
    }

    #[test]
    fn a_step_s_activations_are_charged_again_where_they_are_rounded() {
        let formats = |dtype| Formats { dtype, ..Formats::default() };
        let [exact, rounded] = [DtypeSetting::Auto, DtypeSetting::Bf16]
            .map(|dtype| beside(&formats(dtype), 512, [2048, 8200, 2048]).unwrap());
        // Tiles pack what is rounded.
        let packed = linear::packed_bytes(8200) as u64;
        assert_eq!((exact, rounded), (Bytes::ZERO, Bytes(512 * 8224 * 4 + packed)));
    }

    #[test]
    fn a_pool_always_holds_one_sequence_and_grows_by_whole_chunks_to_all_of_them() {
        // Tokens of a large model, of a small one, and of one that is a test's.
        for (token, context, sequences) in [
            (Bytes::kib(128), 8192, 4),
            (Bytes::kib(45), 8192, 16),
            (Bytes(1024), 2048, 4),
            (Bytes(1024), 50, 1),
            (Bytes(64), 1, 3),
            (Bytes(64), 96, 5),
            (Bytes::mib(2), 131_072, 2),
        ] {
            let kv = kv_spec(context, sequences, token).unwrap();
            let one = context.div_ceil(BLOCK_TOKENS);
            assert!(kv.chunk.is_power_of_two() && kv.blocks == kv.chunk * kv.chunks());
            assert!((one..=one + one / 8).contains(&kv.floor_blocks()), "{context}: {kv:?}");
            assert!(
                kv.blocks >= one * sequences && kv.blocks < one * sequences + kv.chunk.max(one)
            );
            assert_eq!(kv.chunk_bytes, Bytes(token.0 * (BLOCK_TOKENS * kv.chunk) as u64));
            assert!(sequences > 1 || kv.floor == kv.chunks(), "nothing to grow to");
            // Where there is enough of it, a chunk is worth a mapping of its own.
            assert!(kv.floor == 1 || one < 4 * CHUNK_BLOCKS || kv.chunk >= CHUNK_BLOCKS, "{kv:?}");
        }
        assert!(kv_spec(usize::MAX / 32, 4, Bytes(64)).is_err());
        assert!(kv_spec(1 << 30, 4096, Bytes::mib(2)).is_err());
    }
}
