//! One invocation and its answer, free of any wire format.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::BoxFuture;
use roundhouse_tenancy::Caller;
use roundhouse_types::{Failure, ModelId, ModelKind, Spent, Tier, Version};
use serde_json::{Map, Value};

pub use roundhouse_containers::driven::Route;

use crate::constrain::OutputForm;
use crate::handled::HandledReply;
use crate::room::Taken;
use crate::tools::{ToolCall, ToolChoice};

mod encoders;
mod tokens;

pub use encoders::{
    Aggregation, AnswerOptions, Entity, EntityOptions, Fill, Ranking, ScoresReply, SpanAnswer,
    TaskOptions, TokenVectorsReply, VectorTask, ZeroShot,
};
pub use tokens::{CutToken, Tokens, TokensReply};

/// Answers per prompt at most: as many as one request may have.
pub const ANSWERS_MAX: usize = 64;
/// Stop strings of one request at most, and stop tokens.
pub const STOPS_MAX: usize = 16;
/// The longest stop string, in bytes: that much text is held back at most.
pub const STOP_BYTES_MAX: usize = 1024;
/// Tokens with a bias of one request at most, as OpenAI and others bound them.
pub const BIASES_MAX: usize = 1024;
/// Alternatives per token at most, as OpenAI bounds them.
pub const ALTERNATIVES_MAX: usize = 20;

/// One request to one model.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// On whose behalf.
    pub caller: Caller,
    /// Where what it takes is added.
    pub spent: Spent,
    /// The checked target.
    pub model: ModelId,
    /// What `model` must be an adapter of, where the caller named both.
    pub base: Option<ModelId>,
    /// Whether it is asked only while it is loaded: the caller may not have it loaded.
    pub only_loaded: bool,
    /// What is asked.
    pub request: Request,
    /// When the answer is of no use any more.
    pub deadline: Instant,
    /// How long to wait for a load before saying "not ready"; never past `deadline`.
    pub hold_until: Instant,
}

/// What is asked of a model.
#[derive(Debug, Clone)]
pub enum Request {
    /// `inputs` and `parameters`, as LMI, TGI and the Hugging Face toolkit spell it: the
    /// model's kind decides what it means.
    Inputs(Inputs),
    /// A chat; for generative models.
    Chat(Chat),
    /// Prompts to continue; for generative models.
    Completion(Completion),
    /// Texts to embed; for encoders.
    Embeddings(Embeddings),
    /// Documents to compare with a query; for cross-encoders and embedding models.
    Ranking(Ranking),
    /// What a model's tokenizer says by itself; for all models of ours.
    Tokens(Tokens),
    /// A body that has not been read: a handler reads it itself, for all other models it is
    /// read when the model is known.
    Raw(RawRequest),
}

/// A body as it came, and the way to read it.
#[derive(Clone)]
pub struct RawRequest {
    /// The body with what a handler is told about it.
    pub body: RawBody,
    /// Where it was sent to: an engine of the operator's takes it at the same place.
    pub route: Route,
    /// Makes one of the other requests of it.
    pub read: ReadFn,
}

/// What a handler sees of a request.
pub type RawBody = roundhouse_workers::Call;

/// Reads a body.
pub type ReadFn = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<ReadBody, Failure>> + Send + Sync>;

/// What a body turned out to ask.
#[derive(Debug, Clone)]
pub enum ReadBody {
    /// Any request but a raw one, of the model that was reached.
    Request(Box<Request>),
    /// It names adapters of the model that was reached: they are to be asked.
    OfAdapters,
}

impl std::fmt::Debug for RawRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawRequest").field("bytes", &self.body.body.len()).finish_non_exhaustive()
    }
}

/// `{"inputs": …, "parameters": …}`.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// The texts, at least one. Where an input is a pair, the first of the two: a question's is
    /// the question.
    pub texts: Vec<String>,
    /// The second text of each input that is a pair, as a question's context; empty where none is.
    pub seconds: Vec<Option<String>>,
    /// Whether `inputs` was one string rather than a list.
    pub single: bool,
    /// Inputs of the same request that other models answer: bounds of a request count them.
    pub beside: usize,
    /// Generation parameters; ignored by encoders.
    pub generation: Generation,
    /// `return_full_text`: the prompt goes before the completion.
    pub return_full_text: bool,
    /// Classification: how many labels to report; the likeliest alone where absent.
    pub top_k: Option<usize>,
    /// Embeddings: whether to normalise, where it differs from the artefact's own choice.
    pub normalize: Option<bool>,
    /// What encoders are told beside.
    pub options: TaskOptions,
    /// The only kind of model that is asked; absent: any.
    pub only: Option<ModelKind>,
}

/// Chat messages.
#[derive(Debug, Clone)]
pub struct Chat {
    /// The messages as the template will see them: objects with `role` and `content`.
    pub messages: Vec<Value>,
    /// Tools as the template will see them.
    pub tools: Option<Vec<Value>>,
    /// Whether they are called.
    pub tool_choice: ToolChoice,
    /// Whether one answer may call several.
    pub parallel_tool_calls: bool,
    /// Further variables for the template (`chat_template_kwargs`).
    pub template_kwargs: Map<String, Value>,
    /// Generation parameters.
    pub generation: Generation,
    /// How its prompt ends.
    pub opening: Opening,
    /// The last message goes before the answer, where both are of one role.
    pub echo: bool,
    /// How many answers, [`ANSWERS_MAX`] at most.
    pub n: usize,
}

/// How a chat's prompt ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Opening {
    /// Open for what the assistant says next.
    #[default]
    Answer,
    /// With the last message, closed.
    Closed,
    /// With the last message, open: what comes goes on with it.
    Message,
}

/// Prompts to continue.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The prompts, at least one.
    pub prompts: Vec<Prompt>,
    /// Generation parameters.
    pub generation: Generation,
    /// How many answers per prompt, [`ANSWERS_MAX`] at most.
    pub n: usize,
    /// The prompt goes before the completion.
    pub echo: bool,
}

/// A prompt as text or as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Tokenised as the artefact's tokenizer says, its post-processor included.
    Text(String),
    /// Used as it is.
    Tokens(Vec<u32>),
}

/// Texts to embed.
#[derive(Debug, Clone)]
pub struct Embeddings {
    /// The inputs, at least one.
    pub inputs: Vec<Prompt>,
    /// Only so many numbers of each vector, brought to length 1 again.
    pub dimensions: Option<usize>,
    /// Which of the model's prompts goes before texts; absent: its own default, if it has one.
    pub prompt: Option<String>,
}

/// Generation parameters as a client may set them. Absent means: the artefact's
/// `generation_config.json`, else the face's default, else off.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generation {
    /// New tokens at most; absent: up to the context.
    pub max_tokens: Option<usize>,
    /// How many where `max_tokens` is absent, cut to what the context holds; absent: what the face has
    /// for that, LMI's of `inputs`.
    pub usual_tokens: Option<usize>,
    /// New tokens at least.
    pub min_tokens: Option<usize>,
    /// `Some(false)` is greedy whatever the temperature says.
    pub do_sample: Option<bool>,
    /// Softmax temperature; 0 is greedy.
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// The k likeliest; 0 is off.
    pub top_k: Option<usize>,
    /// Relative floor.
    pub min_p: Option<f32>,
    /// Over prompt and completion.
    pub repetition_penalty: Option<f32>,
    /// Over the completion.
    pub presence_penalty: Option<f32>,
    /// Over the completion, per occurrence.
    pub frequency_penalty: Option<f32>,
    /// Decides every random choice; drawn at random where absent.
    pub seed: Option<u64>,
    /// Texts that end the answer; not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// What ends the answer is part of it.
    pub include_stop: bool,
    /// Special tokens are part of the text, by their names.
    pub keep_special: bool,
    /// Whether the tokenizer adds its special tokens to prompts; absent: to all but a template's.
    pub add_special: Option<bool>,
    /// What of a prompt that is longer is read; absent: such is refused.
    pub truncation: Option<Truncation>,
    /// Goes on past the end-of-sequence token.
    pub ignore_eos: bool,
    /// How many alternatives to report with each token; `None`: no log-probabilities.
    pub logprobs: Option<usize>,
    /// Those of the prompt's tokens too, with as many alternatives; they come with the prompt that
    /// is given back.
    pub prompt_logprobs: bool,
    /// Those of the prompt's tokens with their ranks and so many alternatives, once for all answers to
    /// one prompt: with the first of them.
    pub ranked_prompt: Option<usize>,
    /// Whether the reply has the prompts' tokens.
    pub prompt_ids: bool,
    /// Added to the logits of single tokens, [`BIASES_MAX`] of them at most.
    pub logit_bias: Vec<(u32, f32)>,
    /// What the answer must look like.
    pub form: Option<OutputForm>,
    /// What is told of where a fault is found that only the model shows.
    pub names: FieldNames,
}

/// What of a prompt is read. Special tokens that the tokenizer puts around it stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// So many tokens; absent: as many as leave room for the answer.
    pub most: Option<usize>,
    /// The last ones, rather than the first.
    pub keeps_end: bool,
}

/// What a request calls its fields, as its client reads it in a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldNames {
    /// What is continued.
    pub prompt: &'static str,
    /// New tokens at most.
    pub max_tokens: &'static str,
    /// New tokens at least.
    pub min_tokens: &'static str,
    /// What goes before the names of all other parameters.
    pub prefix: &'static str,
    /// What stands between a tool and the fields of its function.
    pub function: &'static str,
}

impl Default for FieldNames {
    /// A completion's.
    fn default() -> Self {
        let (max_tokens, min_tokens) = ("max_tokens", "min_tokens");
        let function = ".function";
        Self { prompt: "prompt", max_tokens, min_tokens, prefix: "", function }
    }
}

/// The answer to an invocation, with the truth about how it came about.
pub struct Answer {
    /// What the model says.
    pub reply: Reply,
    /// Facts for response headers and the access log.
    pub served: Served,
}

/// How an answer came about.
#[derive(Debug, Clone)]
pub struct Served {
    /// The version that answers, from start to end.
    pub version: Version,
    /// Where the model was found.
    pub tier: Tier,
    /// What kind it is.
    pub kind: ModelKind,
    /// How long the request waited for a load; zero for a resident.
    pub load: Duration,
    /// How long it waited for anything else before it reached the model.
    pub queue: Duration,
    /// How its answers look where the request leaves it open.
    pub style: AnswerStyle,
}

/// How a model's answers to `inputs` look on faces where more than one server's way is known, as the
/// artefact's author asks for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnswerStyle {
    /// As text-generation-inference has them: whole answers in an array, streams as events.
    pub tgi: bool,
    /// Streams as server-sent events.
    pub events: bool,
}

/// What a model says.
pub enum Reply {
    /// One stream per requested completion, in order (prompts first, then `n`).
    Generation(GenerationReply),
    /// One vector per input.
    Embeddings(EmbeddingsReply),
    /// For each input its labels, likeliest first unless they were to stay in order. Of labels that
    /// nobody trained: those of the request.
    Classification(Vec<Vec<LabelScore>>),
    /// For each input the vectors of its tokens.
    TokenVectors(TokenVectorsReply),
    /// For each input what was found in it, in the order of the text.
    Entities(Vec<Vec<Entity>>),
    /// For each input and each of its masks what may stand there, likeliest first.
    Fills(Vec<Vec<Vec<Fill>>>),
    /// For each input the answers to its question, likeliest first.
    Answers(Vec<Vec<SpanAnswer>>),
    /// How near each document is to the query.
    Scores(ScoresReply),
    /// What the tokenizer says.
    Tokens(TokensReply),
    /// What a handler says, as it says it.
    Handled(HandledReply),
    /// Nothing: the body, now that it has been read, asks adapters of the model.
    OfAdapters,
}

/// Completions under way.
pub struct GenerationReply {
    /// Prompt length per choice, in tokens.
    pub prompt_tokens: Vec<usize>,
    /// Of each prompt its tokens, where they were asked for; else empty.
    pub prompts: Vec<Vec<u32>>,
    /// Pieces of every choice as they come, and one `Finished` per choice. A choice that
    /// fails ends the stream with an error. Dropping it aborts the sequences and releases the lease.
    pub pieces: PieceStream,
    /// What seed was used.
    pub seed: u64,
    /// The memory that what is told of the prompts' tokens takes: kept until the answer has gone out.
    pub taken: Taken,
}

/// The stream of pieces.
pub type PieceStream = Pin<Box<dyn Stream<Item = Result<Piece, Failure>> + Send>>;

/// A part of a completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// Which choice it belongs to.
    pub choice: usize,
    /// New text; whole characters only, possibly empty. Never part of a stop string.
    pub text: String,
    /// The tokens this piece adds (none, where held-back text is released; several, where
    /// characters or stop strings needed waiting for).
    pub tokens: Vec<TokenInfo>,
    /// The prompt's, where they were to be scored; on the piece whose text is the prompt.
    pub prompt: Vec<TokenInfo>,
    /// Calls of tools that became complete.
    pub calls: Vec<ToolCall>,
    /// Set on a choice's last piece.
    pub finished: Option<Finished>,
}

/// One token as a client may ask to see it.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenInfo {
    /// Its id.
    pub id: u32,
    /// Its own text, as far as it is text by itself.
    pub text: String,
    /// Its log-probability; none of a prompt's first, which follows nothing.
    pub logprob: Option<f32>,
    /// Its place among all tokens by likelihood, from 1: of a prompt's tokens but the first.
    pub rank: Option<usize>,
    /// Whether it is a special token.
    pub special: bool,
    /// Where it stands in the text.
    pub place: TokenPlace,
    /// Alternatives: id, text, log-probability.
    pub top: Vec<(u32, String, f32)>,
}

/// Where a token stands in the text that it was read from or generated for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenPlace {
    /// It is part of it.
    Text,
    /// It is a special token that is left out.
    Hidden,
    /// It ended the answer and is left out.
    End,
}

/// How a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// Why.
    pub reason: Finish,
    /// Generated tokens, the end-of-sequence token included.
    pub generated_tokens: usize,
    /// Prompt tokens that were not computed for it: an earlier one, or another answer to the same
    /// prompt, left their keys and values.
    pub cached_tokens: usize,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    EndOfSequence,
    /// A stop string or stop token of the client's.
    StopSequence,
    /// The model ended it, having called tools as it liked.
    ToolCalls,
    /// The length limit or the context.
    Length,
}

/// Vectors.
pub struct EmbeddingsReply {
    /// One per input.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs.
    pub prompt_tokens: usize,
}

/// A label and its score.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelScore {
    /// From the artefact's `id2label`.
    pub label: Arc<str>,
    /// Softmax, or sigmoid for multi-label artefacts.
    pub score: f32,
}
