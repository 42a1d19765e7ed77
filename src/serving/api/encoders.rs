//! What is asked of encoders beside plain vectors and labels, and what they answer.

use std::sync::Arc;

use crate::ScoreFunction;

/// What `parameters` say to encoders; each task heeds its own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TaskOptions {
    /// Which of its tasks an embedding model is asked for.
    pub task: VectorTask,
    /// Embeddings: only so many numbers of each vector, brought to length 1 again.
    pub dimensions: Option<usize>,
    /// Embeddings: which of the model's prompts goes before texts; absent: its own default.
    pub prompt: Option<String>,
    /// Classification: what becomes of the logits, where it differs from the artefact's own choice.
    pub function: Option<ScoreFunction>,
    /// Classification: all labels in the artefact's order rather than by score.
    pub in_order: bool,
    /// Which labels an entailment classifier is asked about, for each text; absent: its own.
    pub zero_shot: Option<ZeroShot>,
    /// How tokens' labels become entities.
    pub entities: EntityOptions,
    /// Fill-mask: only these tokens; absent: all.
    pub targets: Option<Vec<String>>,
    /// How answers are found.
    pub answers: AnswerOptions,
}

/// What an embedding model answers with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VectorTask {
    /// One vector per text, pooled as the artefact says.
    #[default]
    Pooled,
    /// One vector per token (`feature-extraction`).
    Tokens,
}

/// Labels that nobody trained, told apart by entailment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZeroShot {
    /// The labels, at least one.
    pub labels: Vec<String>,
    /// The sentence that a label is put in at `{}`.
    pub template: String,
    /// Whether each label is right or not, rather than one of them.
    pub multi_label: bool,
}

/// How tokens' labels become entities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntityOptions {
    /// How tokens of one entity are put together.
    pub aggregation: Aggregation,
    /// Labels that are not told.
    pub ignored: Vec<String>,
    /// Tokens that the windows of a text share that is longer than the model takes; absent: it is
    /// cut.
    pub stride: Option<usize>,
}

impl Default for EntityOptions {
    fn default() -> Self {
        Self { aggregation: Aggregation::None, ignored: vec!["O".into()], stride: None }
    }
}

/// How tokens of one entity are put together, as transformers names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Aggregation {
    /// Each token is told.
    #[default]
    None,
    /// Neighbours of one label are one.
    Simple,
    /// The same, after each word took its first token's label.
    First,
    /// The same, after each word took the label with the best mean score.
    Average,
    /// The same, after each word took the label of its surest token.
    Max,
}

/// How answers to questions are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerOptions {
    /// How many are told.
    pub top_k: usize,
    /// Tokens of one at most.
    pub max_answer_len: usize,
    /// Tokens of a question with a part of its context at most; absent: what the model takes, 384
    /// at most.
    pub max_seq_len: Option<usize>,
    /// Tokens that two parts of a context share; absent: 128, or half of a shorter part.
    pub doc_stride: Option<usize>,
    /// Whether there may be no answer.
    pub handle_impossible: bool,
    /// Whether answers are whole words.
    pub align_to_words: bool,
}

impl Default for AnswerOptions {
    fn default() -> Self {
        Self {
            top_k: 1,
            max_answer_len: 15,
            max_seq_len: None,
            doc_stride: None,
            handle_impossible: false,
            align_to_words: true,
        }
    }
}

/// Documents to be compared with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranking {
    /// What they are compared with.
    pub query: String,
    /// The documents, at least one.
    pub documents: Vec<String>,
    /// Whether a cross-encoder's scores stay as they are rather than being brought between 0
    /// and 1.
    pub raw: bool,
    /// What a client calls the list, for errors.
    pub field: &'static str,
    /// Whether the query is a text like the documents, rather than what is looked for among them:
    /// an embedding model's prompts differ.
    pub alike: bool,
}

/// How near documents are to a query.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoresReply {
    /// One per document, in their order.
    pub scores: Vec<f32>,
    /// Tokens of all inputs.
    pub prompt_tokens: usize,
}

/// Vectors of each input's tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenVectorsReply {
    /// Per input its tokens' vectors, special tokens included.
    pub inputs: Vec<Vec<Vec<f32>>>,
    /// Tokens of all inputs.
    pub prompt_tokens: usize,
}

/// What a token, or several of them, were found to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Entity {
    /// The label; without its `B-` or `I-` where tokens were put together.
    pub label: Arc<str>,
    /// How sure that is.
    pub score: f32,
    /// The token as the vocabulary writes it, or the text of several.
    pub word: String,
    /// Where it begins, in characters.
    pub start: usize,
    /// Where it ends, in characters.
    pub end: usize,
    /// Which token it is; absent where several were put together.
    pub index: Option<usize>,
}

/// What may stand in place of a mask.
#[derive(Debug, Clone, PartialEq)]
pub struct Fill {
    /// Its probability.
    pub score: f32,
    /// The token.
    pub token: u32,
    /// Its text.
    pub token_str: String,
    /// The whole text with it; other masks stay.
    pub sequence: String,
}

/// A part of a context that answers a question.
#[derive(Debug, Clone, PartialEq)]
pub struct SpanAnswer {
    /// Its probability.
    pub score: f32,
    /// Where it begins, in characters of the context.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// The part.
    pub answer: String,
}
