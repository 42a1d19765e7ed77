//! One device's thread: it runs the steps of all engines placed on it.

#[cfg(test)]
mod tests;
mod thread;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use roundhouse_types::{DeviceId, Failure, KvOrder};
use tokio::sync::oneshot;

use self::thread::LaneThread;
use crate::attached::Attaching;
use crate::core::{EncodeJob, GenerateJob, Published, ReadJob};
use crate::elastic::KvReporter;
use crate::fair::EngineId;
use crate::handle::{EngineConfig, EngineHandle, HandleParts};
use crate::heartbeat::{Heartbeat, LaneHealth};
use crate::plan::{AdapterId, ModelRunner, RunnerSpec};
use crate::scheduler::SequenceId;

/// When a lane counts as wedged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneConfig {
    /// A lane silent for longer is wedged. Must exceed the longest step there can be:
    /// below that, a slow step gets the process killed.
    pub wedged_after: Duration,
    /// How often an idle lane gives a sign of life; well below `wedged_after`.
    pub idle_beat: Duration,
}

impl Default for LaneConfig {
    fn default() -> Self {
        // A step carries a bounded number of tokens: seconds at worst, even on a busy CPU.
        Self { wedged_after: Duration::from_secs(30), idle_beat: Duration::from_millis(500) }
    }
}

/// What the lane's thread is told. Order is kept; nothing here waits for a step to end.
pub(crate) enum Command {
    Place(Box<Placing>),
    Generate(EngineId, GenerateJob),
    Encode(EngineId, EncodeJob),
    Read(EngineId, ReadJob),
    Abort(EngineId, SequenceId),
    Attach(EngineId, Box<Attaching>),
    /// The sender, if any, is dropped when the weights are.
    Detach(EngineId, AdapterId, Option<oneshot::Sender<()>>),
    /// What the ledger says of the room of an engine's KV pool.
    KvOrdered(EngineId, KvOrder),
    /// The sender, if any, is dropped when the runner is.
    Remove(EngineId, Option<oneshot::Sender<()>>),
}

/// An engine to be placed.
pub(crate) struct Placing {
    pub(crate) name: String,
    pub(crate) runner: Box<dyn ModelRunner>,
    pub(crate) config: EngineConfig,
    pub(crate) published: Arc<Published>,
    /// Where the KV pool gets room beyond its floor; without, it has all of it.
    pub(crate) ledger: Option<KvReporter>,
    /// Travels to the lane and back, so that an engine whose caller left is removed.
    pub(crate) registration: Registration,
    pub(crate) answer: oneshot::Sender<Result<Warm, Failure>>,
}

/// An engine that is warm.
pub(crate) struct Warm {
    pub(crate) spec: RunnerSpec,
    pub(crate) elapsed: Duration,
    pub(crate) registration: Registration,
}

/// Keeps an engine on its lane; dropped, it asks for the removal.
pub(crate) struct Registration {
    engine: EngineId,
    commands: Sender<Command>,
    removed: bool,
}

impl Registration {
    pub(crate) fn engine(&self) -> EngineId {
        self.engine
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.removed {
            let _ = self.commands.send(Command::Remove(self.engine, None));
        }
    }
}

/// Constraints may recurse as deep as what their senders wrote: the worst that serving lets through
/// was seen to need 8 MiB. Only what is touched takes memory.
const STACK_BYTES: usize = 64 << 20;

/// One device's lane: a thread that runs one step at a time, of whichever engine is due by
/// weighted fair queueing over measured step time.
///
/// The thread ends when the lane and everything placed on it is dropped, or when the device
/// fails. After a failure nothing runs: all sequences of all engines end with an error, all
/// calls fail at once, and [`health`](Self::health) says so for the process to end.
pub struct Lane {
    commands: Sender<Command>,
    heartbeat: Arc<Heartbeat>,
    config: LaneConfig,
    next_engine: AtomicU64,
}

impl Lane {
    /// Starts the thread, named `lane-` and the device.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(device: DeviceId, config: LaneConfig) -> io::Result<Self> {
        let (commands, inbox) = mpsc::channel();
        let heartbeat = Arc::new(Heartbeat::new(device));
        let thread = LaneThread::new(inbox, Arc::clone(&heartbeat), config.idle_beat);
        let builder = std::thread::Builder::new().name(format!("lane-{device}"));
        builder.stack_size(STACK_BYTES).spawn(move || thread.run())?;
        Ok(Self { commands, heartbeat, config, next_engine: AtomicU64::new(0) })
    }

    /// How the lane is now. Never blocks.
    pub fn health(&self) -> LaneHealth {
        self.health_at(Instant::now())
    }

    fn health_at(&self, now: Instant) -> LaneHealth {
        self.heartbeat.health(now, self.config.wedged_after)
    }

    /// Takes a runner in and warms it up on the lane: one tiny forward per step shape, in turns
    /// with the steps of other engines. If
    /// dropped before ready, the engine is removed again. `name` is for logs and errors.
    ///
    /// # Errors
    /// `ModelInvalid` when the runner refuses its own shapes; `ModelFailed` when the device
    /// fails, which fails the lane, or has failed before.
    pub async fn place(
        &self,
        name: &str,
        runner: Box<dyn ModelRunner>,
        config: EngineConfig,
    ) -> Result<Placed, Failure> {
        self.take_in(name, runner, config, None).await
    }

    /// As [`place`](Self::place), with a KV pool that begins with its floor: beyond that it has what
    /// [`EngineHandle::kv_ordered`] grants, which it asks for by `report`.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub async fn place_elastic(
        &self,
        name: &str,
        runner: Box<dyn ModelRunner>,
        config: EngineConfig,
        report: KvReporter,
    ) -> Result<Placed, Failure> {
        self.take_in(name, runner, config, Some(report)).await
    }

    async fn take_in(
        &self,
        name: &str,
        runner: Box<dyn ModelRunner>,
        config: EngineConfig,
        ledger: Option<KvReporter>,
    ) -> Result<Placed, Failure> {
        let engine = EngineId(self.next_engine.fetch_add(1, Ordering::Relaxed));
        let published = Arc::new(Published::default());
        let (answer, warm) = oneshot::channel();
        let placing = Placing {
            name: name.to_owned(),
            runner,
            config,
            published: Arc::clone(&published),
            ledger,
            registration: Registration { engine, commands: self.commands.clone(), removed: false },
            answer,
        };
        self.commands
            .send(Command::Place(Box::new(placing)))
            .map_err(|_| self.heartbeat.silence())?;
        let warm = warm.await.map_err(|_| self.heartbeat.silence())??;
        let handle = EngineHandle::new(HandleParts {
            engine,
            name: name.to_owned(),
            spec: warm.spec,
            commands: self.commands.clone(),
            heartbeat: Arc::clone(&self.heartbeat),
            published,
            config,
        });
        Ok(Placed { handle, warm: warm.elapsed, registration: warm.registration })
    }
}

/// An engine on its lane. Dropping it removes the engine without waiting.
pub struct Placed {
    /// Submits work to it.
    pub handle: EngineHandle,
    /// How long the warm-up took.
    pub warm: Duration,
    registration: Registration,
}

impl Placed {
    /// Ends what is left of its sequences with an error and drops the runner;
    /// resolves when that is done. If dropped before ready, the removal goes on.
    pub async fn remove(mut self) {
        let (gone, done) = oneshot::channel();
        self.registration.removed = true;
        let command = Command::Remove(self.registration.engine, Some(gone));
        if self.registration.commands.send(command).is_ok() {
            // Answered by dropping the sender, whichever way the removal goes.
            let _ = done.await;
        }
    }
}
