//! What callers hold: a handle to submit with, and the stream of a sequence's tokens.

use std::num::{NonZeroU32, NonZeroUsize};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::Stream;
use roundhouse_types::{Bytes, Failure, KvOrder};
use tokio::sync::{mpsc, oneshot};

use crate::account::Claim;
use crate::check::{check_encode, check_generate, longest_sequence};
use crate::constraint::Constraint;
use crate::core::{EncodeJob, GenerateJob, Published};
use crate::elastic::KvRoom;
use crate::error::Error;
use crate::fair::EngineId;
use crate::heartbeat::Heartbeat;
use crate::lane::Command;
use crate::plan::{HeadSpec, RunnerSpec};
use crate::queue::{Place, Queue};
use crate::request::{EncodeSpec, GenerateSpec, TokenResult};
use crate::scheduler::{Adapter, SequenceId};

mod read;

/// How one engine shares its lane and bounds its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineConfig {
    /// Its share of the lane's time, relative to the other engines'.
    pub weight: NonZeroU32,
    /// Sequences, or encoder calls, that may wait; one more is refused as overload.
    pub max_waiting: NonZeroUsize,
    /// Sequences, or encoder inputs, that share a step. The runner's `step_tokens` caps it.
    pub max_running: NonZeroUsize,
    /// How long a step should take while others wait for its end, sequences that decode or
    /// other engines of the lane: prompts are read in chunks that fit. Zero: as long as
    /// `step_tokens` take.
    pub step_time: Duration,
    /// Whether keys and values of a sequence's prefix that the pool still holds are used
    /// again. Without, nobody can tell by the time an answer takes what was asked before.
    pub reuse_prefixes: bool,
}

/// Some seconds' work for a small model; longer queues only make timeouts certain.
const MAX_WAITING: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Past this many rows a step's time grows with the rows on every device we know.
const MAX_RUNNING: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Readers do not notice a pause this long between tokens; much shorter steps would read the
/// weights too often for the prompts they advance.
const STEP_TIME: Duration = Duration::from_millis(250);

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            weight: NonZeroU32::MIN,
            max_waiting: MAX_WAITING,
            max_running: MAX_RUNNING,
            step_time: STEP_TIME,
            reuse_prefixes: true,
        }
    }
}

/// How busy an engine is: a snapshot, for pages and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Sequences, or encoder calls, in steps.
    pub running: usize,
    /// Those that wait for their first step, or wait again after a preemption.
    pub waiting: usize,
}

/// Submits work to one engine, to its model alone or with one adapter. Cheap to clone; it does
/// not keep the engine on its lane, nor the adapter on the engine: after removal every call fails.
#[derive(Clone)]
pub struct EngineHandle {
    inner: Arc<Inner>,
    with: Arc<With>,
}

/// What goes with all work that a handle submits.
#[derive(Clone, Default)]
struct With {
    adapter: Option<Adapter>,
    /// What answers its rows, where that is a head of its own.
    head: Option<HeadSpec>,
    claim: Arc<Claim>,
}

struct Inner {
    engine: EngineId,
    name: String,
    spec: RunnerSpec,
    commands: Sender<Command>,
    heartbeat: Arc<Heartbeat>,
    published: Arc<Published>,
    /// Places in the waiting queue.
    places: Arc<Queue>,
    next_sequence: AtomicU64,
}

/// What a handle is made of.
pub(crate) struct HandleParts {
    pub(crate) engine: EngineId,
    pub(crate) name: String,
    pub(crate) spec: RunnerSpec,
    pub(crate) commands: Sender<Command>,
    pub(crate) heartbeat: Arc<Heartbeat>,
    pub(crate) published: Arc<Published>,
    pub(crate) config: EngineConfig,
}

impl EngineHandle {
    pub(crate) fn new(parts: HandleParts) -> Self {
        let inner = Inner {
            engine: parts.engine,
            name: parts.name,
            spec: parts.spec,
            commands: parts.commands,
            heartbeat: parts.heartbeat,
            published: parts.published,
            places: Queue::new(parts.config.max_waiting.get()),
            next_sequence: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner), with: Arc::default() }
    }

    /// The same engine's, with an adapter.
    pub(crate) fn with_adapter(&self, adapter: Adapter, head: Option<HeadSpec>) -> Self {
        let adapter = Some(adapter);
        self.with(With { adapter, head, ..(*self.with).clone() })
    }

    /// The same, for work on somebody's behalf.
    pub fn on_behalf(&self, claim: Claim) -> Self {
        self.with(With { claim: Arc::new(claim), ..(*self.with).clone() })
    }

    fn with(&self, with: With) -> Self {
        Self { inner: Arc::clone(&self.inner), with: Arc::new(with) }
    }

    /// Queues a sequence. Its tokens are buffered without bound on the reader's pace but
    /// never more than `max_tokens` of them; dropping the stream aborts the sequence.
    ///
    /// # Errors
    /// `InvalidInput` for what can never run here, `Overloaded` with a hint when the queue
    /// is full, `ModelFailed` when the device has failed or the engine is gone. The stream
    /// itself yields one error at most, as its last item.
    pub fn generate(&self, spec: GenerateSpec) -> Result<TokenStream, Failure> {
        self.generate_within(spec, None)
    }

    /// The same for tokens that must spell something.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and `InvalidInput` in the stream where the constraint
    /// cannot be followed.
    pub fn generate_within(
        &self,
        spec: GenerateSpec,
        constraint: Option<Box<dyn Constraint>>,
    ) -> Result<TokenStream, Failure> {
        if self.with.head.is_some() {
            return Err(Error::NotGenerative.into());
        }
        check_generate(&spec, &self.inner.spec)?;
        let place = self.take_place()?;
        let room = longest_sequence(&self.inner.spec) - spec.prompt.len();
        // Every token it can yield, and an error at the end.
        let (sender, tokens) = mpsc::channel(spec.max_tokens.min(room) + 1);
        let ticket = self.submit(|id| {
            Command::Generate(
                self.inner.engine,
                GenerateJob {
                    id,
                    spec,
                    adapter: self.with.adapter,
                    claim: self.with.claim.clone(),
                    constraint,
                    tokens: sender,
                    place: Some(place),
                    submitted: Instant::now(),
                },
            )
        })?;
        Ok(TokenStream { tokens, ticket, ended: false })
    }

    /// Answers inputs, in order: an encoder each in one step, with the vectors that it wants, one
    /// after another; on an engine that generates an adapter's own head, one vector of a text, which is
    /// read beside sequences in as many steps as a prompt. A vector has so many numbers as
    /// [`spec`](Self::spec) says of this handle (`output_width`). If dropped before ready, inputs that
    /// have not ended are given up.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and `InvalidInput` where the answers would have more than
    /// [`RESULT_BYTES`](crate::RESULT_BYTES); one failing input fails the call.
    pub async fn encode(
        &self,
        inputs: Vec<impl Into<EncodeSpec>>,
    ) -> Result<Vec<Vec<f32>>, Failure> {
        let inputs: Vec<EncodeSpec> = inputs.into_iter().map(Into::into).collect();
        check_encode(&inputs, &self.spec(), self.with.head)?;
        if inputs.is_empty() {
            return Ok(Vec::new());
        }
        let place = self.take_place()?;
        if let (Some(_), Some(adapter)) = (self.inner.spec.kv, self.with.adapter) {
            return self.read_each(inputs, adapter, place).await;
        }
        let (sender, answer) = oneshot::channel();
        let adapter = self.with.adapter.map(|adapter| adapter.id);
        let mut ticket = self.submit(|id| {
            Command::Encode(
                self.inner.engine,
                EncodeJob {
                    id,
                    inputs,
                    adapter,
                    claim: self.with.claim.clone(),
                    answer: sender,
                    place: Some(place),
                },
            )
        })?;
        let answer = answer.await;
        ticket.used = true;
        answer.unwrap_or_else(|_| Err(self.gone()))
    }

    /// The runner's shapes, as its adapter has them.
    pub fn spec(&self) -> RunnerSpec {
        let spec = self.inner.spec;
        RunnerSpec { output_width: self.with.head.map_or(spec.output_width, |it| it.width), ..spec }
    }

    /// How busy the engine is.
    pub fn load(&self) -> Load {
        let queued = self.inner.places.taken();
        Load {
            running: self.inner.published.running.load(Ordering::Relaxed),
            waiting: queued + self.inner.published.preempted.load(Ordering::Relaxed),
        }
    }

    /// Bytes of its KV pool and workspace that are allocated between steps, as of the last
    /// step: what is charged for the two beyond that was never touched.
    pub fn touched(&self) -> Bytes {
        Bytes(self.inner.published.touched.load(Ordering::Relaxed))
    }

    /// How much room its KV pool has, as of the last step; `None` for encoders.
    pub fn kv_room(&self) -> Option<KvRoom> {
        let kv = self.inner.spec.kv?;
        Some(KvRoom {
            block_tokens: kv.block_tokens,
            floor: kv.floor_blocks(),
            now: self.inner.published.kv_blocks.load(Ordering::Relaxed),
            most: kv.blocks,
            used: self.inner.published.kv_used.load(Ordering::Relaxed),
        })
    }

    /// What the ledger says of the room of its KV pool; heard before the next step. Never blocks.
    pub fn kv_ordered(&self, order: KvOrder) {
        // An engine that is gone has given all of it back.
        let _ = self.inner.commands.send(Command::KvOrdered(self.inner.engine, order));
    }

    fn take_place(&self) -> Result<Place, Failure> {
        if let Some(failure) = self.inner.heartbeat.failure() {
            return Err(failure);
        }
        self.inner.places.take(self.with.claim.tenant.as_ref()).ok_or_else(|| {
            let waiting = self.inner.places.taken();
            let pace = self.inner.published.pace.load(Ordering::Relaxed);
            Error::QueueFull {
                name: self.inner.name.clone(),
                waiting,
                after: retry_after(waiting, pace),
            }
            .into()
        })
    }

    fn submit(&self, command: impl FnOnce(SequenceId) -> Command) -> Result<Ticket, Failure> {
        let sequence = SequenceId(self.inner.next_sequence.fetch_add(1, Ordering::Relaxed));
        self.inner.commands.send(command(sequence)).map_err(|_| self.inner.heartbeat.silence())?;
        Ok(Ticket { handle: self.clone(), sequence, used: false })
    }

    /// The engine and where commands for it go.
    pub(crate) fn way(&self) -> (EngineId, &Sender<Command>) {
        (self.inner.engine, &self.inner.commands)
    }

    /// Why an answer will never come.
    pub(crate) fn gone(&self) -> Failure {
        let removed = || Error::Removed { name: self.inner.name.clone() }.into();
        self.inner.heartbeat.failure().unwrap_or_else(removed)
    }
}

/// The time until the queue has run, as far as the measured pace tells.
fn retry_after(waiting: usize, pace_microseconds: u64) -> Duration {
    // Below a second clients only hammer; above a minute they had better look elsewhere.
    let bounds = (Duration::from_secs(1), Duration::from_secs(60));
    let waiting = u64::try_from(waiting).unwrap_or(u64::MAX);
    Duration::from_micros(pace_microseconds.saturating_mul(waiting)).clamp(bounds.0, bounds.1)
}

/// A submission's claim on its engine; dropped unused, it takes the submission back.
struct Ticket {
    handle: EngineHandle,
    sequence: SequenceId,
    used: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.used {
            // A lane that has ended has nothing to abort.
            let _ = self
                .handle
                .inner
                .commands
                .send(Command::Abort(self.handle.inner.engine, self.sequence));
        }
    }
}

/// The tokens of one sequence as they are sampled: some tokens, the last of them with its
/// finish reason; or an error as the last item. Never just an end.
///
/// Dropping it aborts the sequence and frees its KV blocks before the next step.
pub struct TokenStream {
    tokens: mpsc::Receiver<TokenResult>,
    ticket: Ticket,
    ended: bool,
}

impl Stream for TokenStream {
    type Item = TokenResult;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TokenResult>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = ready!(self.tokens.poll_recv(context))
            .unwrap_or_else(|| Err(self.ticket.handle.gone()));
        if item.as_ref().map_or(true, |token| token.finish.is_some()) {
            self.ended = true;
            self.ticket.used = true;
        }
        Poll::Ready(Some(item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_follows_queue_and_pace_within_bounds() {
        assert_eq!(retry_after(10, 500_000), Duration::from_secs(5));
        assert_eq!(retry_after(10, 0), Duration::from_secs(1));
        assert_eq!(retry_after(1_000, 10_000_000), Duration::from_secs(60));
    }
}
