//! How is one invocation answered?
//!
//! Reading order: `api` (what is asked and answered, free of any wire format), `dispatcher` (one
//! invocation from admission to stream), `admission` (who may come in), `served` (a loaded model
//! as requests use it), `task` and `params` (what a request means to the model it reached),
//! `encoders` (what encoders are asked), `handled` (what a handler answers), `choice` and `completions` (from tokens to pieces, and what they hold), `encoded` (from an encoder's
//! numbers to vectors, labels, entities, fills and answers), `tokens` (what a tokenizer answers by
//! itself), `constrain` (what answers must look like), `tools` (calls of tools), `text` (tokenizer, detokeniser, stop strings, chat templates), `rendering` (where templates are rendered).
//!
//! What holds:
//! 1. A request's lease and place live in its stream, and no longer than it.
//! 2. Dropping the stream aborts its sequences before the lease is released.
//! 3. A piece never ends inside a character and never contains a part of a stop string.
//! 4. Every wait ends at the request's deadline.
//!
//! Prompts and completions are never logged.

mod admission;
mod api;
mod at_work;
mod choice;
mod completions;
mod constrain;
mod dispatcher;
mod encoded;
mod encoders;
mod error;
mod handled;
mod metrics;
mod params;
mod prompts;
mod rendering;
mod room;
mod served;
mod task;
mod text;
mod tokens;
mod tools;

pub use api::{
    ALTERNATIVES_MAX, ANSWERS_MAX, Aggregation, Answer, AnswerOptions, AnswerStyle, BIASES_MAX,
    Chat, Completion, CutToken, Embeddings, EmbeddingsReply, Entity, EntityOptions, FieldNames,
    Fill, Finish, Finished, Generation, GenerationReply, Inputs, Invocation, LabelScore, Opening,
    Piece, PieceStream, Prompt, Ranking, RawBody, RawRequest, ReadBody, ReadFn, Reply, Request,
    Route, STOP_BYTES_MAX, STOPS_MAX, ScoresReply, Served, SpanAnswer, TaskOptions, TokenInfo,
    TokenPlace, TokenVectorsReply, Tokens, TokensReply, Truncation, VectorTask, ZeroShot,
};
pub use constrain::{FormKind, OutputForm};
pub use dispatcher::{ClaimFn, Config, Dispatcher};
pub use error::Error;
pub use handled::{HandledBody, HandledReply, HandledStream, Origin};
pub use metrics::describe_metrics;
pub use prompts::EmbeddingPrompts;
pub use rendering::{
    Compiled, CompiledCache, InProcess, MESSAGE_BYTES_MAX, OUTPUT_BYTES_MAX, Render, Renderer,
    Rendering, TemplateSources,
};
pub use room::Taken;
pub use served::{EngineModel, GenerationDefaults, Labels, Purpose, ScoreFunction, ServedModel};
pub use text::{AdapterText, TextCodec, Vocabulary};
pub use tools::{ToolCall, ToolChoice};
