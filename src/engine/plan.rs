//! What one step computes: plain data between the scheduler and a runner.

use std::any::Any;

use roundhouse_types::{Bytes, ErrorKind, Failure, RetryHint};

/// Index of one KV block in a runner's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Names one adapter attached to a runner. Never given twice in a process, so that nothing
/// computed with one can be taken for another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdapterId(pub u64);

/// One forward over the packed rows of all sequences, whatever their lengths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// The rows; their order is the order of the outputs.
    pub rows: Vec<Row>,
}

impl StepPlan {
    /// Tokens in all rows together.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|row| row.tokens.len()).sum()
    }
}

/// One sequence's share of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Row {
    /// The tokens to compute: a prompt, a chunk of one, or the last sampled token.
    pub tokens: Vec<u32>,
    /// The position of the first of them in its sequence.
    pub position: usize,
    /// The sequence's KV blocks from position 0 on, enough for `position + tokens.len()`.
    /// Empty for runners without KV.
    pub blocks: Vec<BlockId>,
    /// The adapter that the row is computed with; `None`: the base alone.
    pub adapter: Option<AdapterId>,
    /// Whether the row wants an output vector, as `want` says. Not so in a prompt's earlier chunks.
    pub output: bool,
    /// Of an encoder's row: the first token of its second text, where it has two.
    pub second: Option<usize>,
    /// Of a row with `output`: which vectors. A decoder's has its last token's, or each token's
    /// where a prompt is to be scored.
    pub want: Want,
}

impl Row {
    /// How many vectors of [`RunnerSpec::output_width`] numbers it wants.
    pub fn vectors(&self) -> usize {
        if self.output { self.want.vectors(self.tokens.len()) } else { 0 }
    }
}

/// Which vectors a row is answered with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Want {
    /// One for the whole: an embedding, class logits; of a decoder the logits after its last
    /// token; of an encoder that answers each token by itself, what it answers the first.
    #[default]
    Pooled,
    /// One for each token.
    Each,
    /// One for each token at these places, in this order.
    At(Vec<usize>),
}

impl Want {
    /// How many vectors that is of so many tokens.
    pub fn vectors(&self, tokens: usize) -> usize {
        match self {
            Self::Pooled => 1,
            Self::Each => tokens,
            Self::At(places) => places.len(),
        }
    }
}

/// What a step computed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    /// For each row with `output`, in order: logits over the vocabulary, an embedding or
    /// class logits, `RunnerSpec::output_width` numbers for each vector that it wants, one
    /// vector after another.
    pub rows: Vec<Vec<f32>>,
}

/// The shapes a runner was loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunnerSpec {
    /// Numbers per output vector, but for adapters that answer with others.
    pub output_width: usize,
    /// The longest sequence, in tokens, prompt and completion together.
    pub context: usize,
    /// The most tokens one step may carry; its workspace is charged for that many.
    pub step_tokens: usize,
    /// The KV pool, or `None` for encoders, whose rows are computed in one step.
    pub kv: Option<KvSpec>,
}

/// What answers the rows of an adapter that has a head of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSpec {
    /// Numbers per output vector.
    pub width: usize,
    /// The token that only fills: the last one that is another is what the head reads. Where rows
    /// are computed whole, the runner sees to it.
    pub padding: Option<u32>,
}

/// A runner's KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSpec {
    /// Positions per block.
    pub block_tokens: usize,
    /// Blocks in the pool at most; a whole number of chunks.
    pub blocks: usize,
    /// Blocks that are taken from the device's memory and given back together: those whose ids
    /// come to the same when divided by this.
    pub chunk: usize,
    /// Chunks that a pool always has; they hold one sequence of the whole context.
    pub floor: usize,
    /// The memory of one chunk.
    pub chunk_bytes: Bytes,
}

impl KvSpec {
    /// A pool that neither grows nor shrinks: one chunk, which it always has. Nothing is said of
    /// its bytes.
    pub const fn whole(block_tokens: usize, blocks: usize) -> Self {
        Self { block_tokens, blocks, chunk: blocks, floor: 1, chunk_bytes: Bytes::ZERO }
    }

    /// Chunks in the pool at most.
    pub fn chunks(&self) -> usize {
        self.blocks / self.chunk.max(1)
    }

    /// Blocks that it always has.
    pub fn floor_blocks(&self) -> usize {
        self.floor * self.chunk
    }
}

/// The device side of an engine: computes steps, owns weights and the KV pool.
///
/// It lives on its device's lane and is called by that thread alone. Blocks are
/// addressed, never allocated, by it: which sequence owns which is the scheduler's matter.
pub trait ModelRunner: Send {
    /// The shapes it was loaded with; constant.
    fn spec(&self) -> RunnerSpec;

    /// Computes one step. KV of the rows' tokens is written to their blocks.
    ///
    /// # Errors
    /// [`RunnerError::Input`] refuses a plan that breaks the contract (a token outside the
    /// vocabulary) and leaves the runner usable, as does [`RunnerError::Room`] where the device had no
    /// memory left for the step; [`RunnerError::Device`] says the device can no longer be trusted.
    fn forward(&mut self, plan: &StepPlan) -> Result<StepOutput, RunnerError>;

    /// Whether a step of a shape that never ran is slower than its next, as where kernels are
    /// compiled or graphs captured for it. Where not, one step with rows of all kinds warms up;
    /// each costs a reading of all weights.
    fn prepares_shapes(&self) -> bool {
        true
    }

    /// Bytes of its KV pool and workspace that are allocated between steps: the blocks that
    /// were ever written, tables. The rest is charged, but nobody has touched it yet.
    fn touched(&self) -> Bytes;

    /// Gives up the memory of a chunk of its KV pool, to be freed where that may take its time.
    /// Its blocks are in no row from now on, until they are written anew. `None` where it took none.
    fn give_back(&mut self, chunk: usize) -> Option<Box<dyn Any + Send>>;

    /// Takes an adapter's weights in, ready for use: rows may name `id` from now on. Called
    /// between steps, so it must take no time to speak of; what a runner computes with them
    /// must depend on `weights` alone. Returns what answers its rows, where that is a head of its
    /// own. Of a runner with KV such a head answers a sequence's last row, and no other: its rows'
    /// keys and values are kept as all others' are.
    ///
    /// # Errors
    /// [`RunnerError::Input`] for weights of another kind or base, and from runners that know
    /// no adapters.
    fn attach(
        &mut self,
        id: AdapterId,
        weights: Box<dyn Any + Send>,
    ) -> Result<Option<HeadSpec>, RunnerError> {
        drop(weights);
        Err(RunnerError::Input(format!("this model takes no adapters, {} included", id.0)))
    }

    /// Gives an adapter's weights back, to be freed where that may take its time. No row names
    /// `id` any more. `None` where there is no such adapter.
    fn detach(&mut self, id: AdapterId) -> Option<Box<dyn Any + Send>> {
        let _ = id;
        None
    }
}

/// Why a step failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RunnerError {
    /// The plan was wrong; nothing else is.
    #[error("step refused: {0}")]
    Input(String),
    /// The device has no room for the step. It goes on, and perhaps with fewer rows.
    #[error("no room for the step: {0}")]
    Room(String),
    /// The device failed.
    #[error("device failed: {0}")]
    Device(String),
}

impl From<RunnerError> for Failure {
    fn from(error: RunnerError) -> Self {
        let (kind, retry) = match error {
            RunnerError::Input(_) => (ErrorKind::InvalidInput, RetryHint::Never),
            RunnerError::Room(_) => (ErrorKind::Overloaded, RetryHint::Later),
            RunnerError::Device(_) => (ErrorKind::ModelFailed, RetryHint::Never),
        };
        Self::from_error(kind, &error).with_retry(retry)
    }
}
