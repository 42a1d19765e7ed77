//! What callers ask of an engine and what they get back.

use roundhouse_types::Failure;

use crate::plan::Want;

/// How to choose the next token. The field's usual parameters, each off at the value named.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 means greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probabilities reach this; 1 is off.
    pub top_p: f32,
    /// Keep this many likeliest tokens; 0 is off.
    pub top_k: usize,
    /// Keep tokens at least this fraction as likely as the likeliest; 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen (prompt included); 1 is off.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens generated before; 0 is off.
    pub presence_penalty: f32,
    /// Taken off the logits of generated tokens, per occurrence; 0 is off.
    pub frequency_penalty: f32,
    /// With the position, decides every random choice.
    pub seed: u64,
}

impl Sampling {
    /// The likeliest token, always.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0,
    };
}

/// One sequence to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateSpec {
    /// The prompt, at least one token, shorter than the runner's context.
    pub prompt: Vec<u32>,
    /// Stop after this many new tokens. The context ends it earlier.
    pub max_tokens: usize,
    /// End-of-sequence and stop tokens are not sampled before this many new tokens.
    pub min_tokens: usize,
    /// Tokens that end the sequence. They are reported, with the finish reason.
    pub stop_tokens: Vec<u32>,
    /// How to choose.
    pub sampling: Sampling,
    /// How many alternatives to report with each token.
    pub top_logprobs: usize,
    /// How many alternatives to report with each token of the prompt; the first new token comes with
    /// them. `None`: none, nor what the model gave the tokens. A prompt that is scored is computed
    /// whole, in chunks of no more tokens than the engine runs sequences.
    pub prompt_logprobs: Option<usize>,
    /// Whether each of those tokens is told with its rank.
    pub prompt_ranks: bool,
    /// Added to the logits of single tokens, before all else.
    pub logit_bias: Vec<(u32, f32)>,
}

/// One text, or two of a pair, to encode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeSpec {
    /// Its tokens, at least one, no more than the runner takes in one step.
    pub tokens: Vec<u32>,
    /// Tokens from here on are of the second text of a pair (token type 1), where the model tells
    /// texts apart so.
    pub second: Option<usize>,
    /// Which vectors to answer with.
    pub want: Want,
}

/// One text, one vector.
impl From<Vec<u32>> for EncodeSpec {
    fn from(tokens: Vec<u32>) -> Self {
        Self { tokens, second: None, want: Want::Pooled }
    }
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was sampled.
    StopToken,
    /// The constraint is met and nothing may follow. The token is part of the answer.
    Complete,
    /// `max_tokens` or the context was reached.
    Length,
}

/// One generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenOut {
    /// Its id.
    pub id: u32,
    /// Its log-probability under the model's distribution at temperature 1, before any filter.
    pub logprob: f32,
    /// The likeliest alternatives with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
    /// On the first token, where asked for: of each token of the prompt but the first.
    pub prompt: Vec<PromptToken>,
    /// Prompt tokens whose keys and values were in the pool when the sequence began; the same on
    /// all its tokens.
    pub reused: usize,
    /// Set on the last token.
    pub finish: Option<FinishReason>,
}

/// What the model gave a token of the prompt, after those before it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// Its log-probability under the model's distribution at temperature 1.
    pub logprob: f32,
    /// Its place among all tokens by likelihood, from 1; of equally likely ones the lower id is first.
    /// Where that was asked for.
    pub rank: Option<usize>,
    /// The likeliest tokens in its place with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// What a stream of tokens yields.
pub type TokenResult = Result<TokenOut, Failure>;
