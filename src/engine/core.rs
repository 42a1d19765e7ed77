//! One engine: a runner, what waits for it, and the step that joins them.

mod adapters;
mod client;
mod elastic;
mod encode;
mod generate;
mod pace;
mod read;
mod room;
#[cfg(test)]
mod tests;
mod warm;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use roundhouse_types::Failure;

pub(crate) use self::encode::EncodeJob;
use self::encode::EncodeWork;
pub(crate) use self::generate::GenerateJob;
use self::generate::GenerateWork;
use self::pace::Pace;
pub(crate) use self::read::ReadJob;
use self::room::PromptRoom;
pub(crate) use self::warm::{WarmUp, WarmUpError};
use crate::account::Account;
use crate::elastic::Elastic;
use crate::error::Error;
use crate::handle::EngineConfig;
use crate::metrics::Meters;
use crate::plan::{AdapterId, HeadSpec, ModelRunner, Row, RunnerError, RunnerSpec, StepPlan};
use crate::scheduler::SequenceId;

/// The device can no longer be trusted; says why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DeviceFailure(pub(crate) String);

/// What became of one row of a step.
#[derive(Debug)]
enum RowOutcome {
    /// Computed, with the output vector if the row wanted one.
    Computed(Option<Vec<f32>>),
    /// This row failed and no other.
    Failed(Failure),
}

/// What an engine publishes for its handles to read: information, nothing is decided by it.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Sequences in steps.
    pub(crate) running: AtomicUsize,
    /// Sequences that ran and wait to run on.
    pub(crate) preempted: AtomicUsize,
    /// Microseconds per finished sequence, lately; 0 before the first.
    pub(crate) pace: AtomicU64,
    /// Bytes of the KV pool and the workspace that stay allocated between steps.
    pub(crate) touched: AtomicU64,
    /// Blocks that the KV pool has now.
    pub(crate) kv_blocks: AtomicUsize,
    /// Those of them that sequences have.
    pub(crate) kv_used: AtomicUsize,
}

/// An engine on its lane. Owned by the lane's thread alone.
pub(crate) struct Engine {
    runner: Box<dyn ModelRunner>,
    spec: RunnerSpec,
    /// The adapters that rows may name, with the heads that some of them have of their own.
    attached: HashMap<AdapterId, Option<HeadSpec>>,
    work: Work,
    meters: Meters,
    pace: Pace,
    room: PromptRoom,
    published: Arc<Published>,
    /// Where the KV pool grows and shrinks.
    elastic: Option<Elastic>,
}

enum Work {
    Generate(Box<GenerateWork>),
    Encode(EncodeWork),
}

impl Engine {
    /// An engine with nothing to do, whose KV pool has its floor.
    pub(crate) fn new(
        runner: Box<dyn ModelRunner>,
        spec: RunnerSpec,
        config: &EngineConfig,
        published: Arc<Published>,
    ) -> Self {
        let running = config.max_running.get();
        let work = match spec.kv {
            Some(kv) => {
                let reuse = config.reuse_prefixes;
                Work::Generate(Box::new(GenerateWork::new(&spec, kv, running, reuse)))
            }
            None => Work::Encode(EncodeWork::new(&spec, running)),
        };
        let (meters, pace) = (Meters::new(), Pace::default());
        let (room, attached) = (PromptRoom::new(config.step_time), HashMap::new());
        let elastic = None;
        let engine = Self { runner, spec, attached, work, meters, pace, room, published, elastic };
        engine.publish();
        engine
    }

    /// Queues a sequence.
    pub(crate) fn generate(&mut self, job: GenerateJob, account: Arc<Account>) {
        let adapter = job.adapter.map(|adapter| adapter.id);
        if !self.knows(adapter) {
            return job.refuse(Error::Detached.into());
        }
        if adapter.is_some_and(|id| self.head(id).is_some()) {
            return job.refuse(Error::NotGenerative.into());
        }
        match &mut self.work {
            Work::Generate(work) => work.submit(job, account, &self.meters),
            Work::Encode(_) => job.refuse(Error::NotGenerative.into()),
        }
        self.pace.working(Instant::now());
    }

    /// Queues inputs to encode.
    pub(crate) fn encode(&mut self, job: EncodeJob, account: Arc<Account>) {
        if !self.knows(job.adapter) {
            return job.refuse(Error::Detached.into());
        }
        let spec = self.spec_with(job.adapter);
        match &mut self.work {
            Work::Encode(work) => work.submit(job, account, &spec, &self.meters),
            Work::Generate(_) => job.refuse(Error::NotEncoder.into()),
        }
        self.pace.working(Instant::now());
    }

    /// Queues a text that an adapter's own head answers, beside sequences.
    pub(crate) fn read(&mut self, job: ReadJob, account: Arc<Account>) {
        if !self.knows(Some(job.adapter.id)) {
            return job.refuse(Error::Detached.into());
        }
        match &mut self.work {
            Work::Generate(work) if self.attached[&job.adapter.id].is_some() => {
                work.read(job, account, &self.meters);
            }
            Work::Generate(_) | Work::Encode(_) => job.refuse(Error::NotEncoder.into()),
        }
        self.pace.working(Instant::now());
    }

    /// Drops a sequence or encoder call whose client is gone; none such is fine.
    pub(crate) fn abort(&mut self, id: SequenceId) {
        match &mut self.work {
            Work::Generate(work) => work.abort(id, &self.meters),
            Work::Encode(work) => work.abort(id, &self.meters),
        }
        self.publish();
        self.review_room(Instant::now());
    }

    /// Whether a step would do anything.
    pub(crate) fn has_work(&self) -> bool {
        match &self.work {
            Work::Generate(work) => work.has_work(),
            Work::Encode(work) => work.has_work(),
        }
    }

    /// Whose work it has, each once.
    pub(crate) fn accounts(&self) -> Vec<Arc<Account>> {
        let mut known = Vec::new();
        match &self.work {
            Work::Generate(work) => work.accounts(&mut known),
            Work::Encode(work) => work.accounts(&mut known),
        }
        known
    }

    /// Ends all sequences with `failure`.
    pub(crate) fn end(&mut self, failure: &Failure) {
        match &mut self.work {
            Work::Generate(work) => work.end(failure, &self.meters),
            Work::Encode(work) => work.end(failure, &self.meters),
        }
        self.publish();
    }

    /// Runs one step: plan, one forward, sampling, emission. It is kept short if `others_wait`,
    /// or sequences of its own, for its end.
    ///
    /// # Errors
    /// When the device failed; the sequences are as before, for the caller to end.
    pub(crate) fn step(&mut self, others_wait: bool) -> Result<(), DeviceFailure> {
        let started = Instant::now();
        let limit = self.room.limit(others_wait);
        let (plan, prompts) = match &mut self.work {
            Work::Generate(work) => work.plan(limit, &self.meters),
            Work::Encode(work) => {
                let plan = work.plan(limit, &self.meters);
                let tokens = plan.tokens();
                (plan, tokens)
            }
        };
        self.publish();
        let widths = (self.spec.output_width, &self.attached);
        let outcomes = forward(self.runner.as_mut(), widths, &plan)?;
        let elapsed = started.elapsed();
        match &mut self.work {
            Work::Generate(work) => work.charge(&plan, elapsed),
            Work::Encode(work) => work.charge(&plan, elapsed),
        }
        let ended = match &mut self.work {
            Work::Generate(work) => work.finish(&plan, outcomes, &self.meters),
            Work::Encode(work) => work.finish(outcomes, &self.meters),
        };
        let now = Instant::now();
        if prompts > 0 {
            // With what was made of the vectors: of prompts that are scored that is much of a step.
            self.room.measured(plan.tokens(), now - started);
        }
        self.meters.step_seconds.record(now - started);
        #[expect(clippy::cast_precision_loss, reason = "rows stay far below 2^52")]
        self.meters.step_rows.record(plan.rows.len() as f64);
        self.pace.ended(ended, now);
        if !self.has_work() {
            self.pace.idle();
        }
        self.publish();
        self.review_room(now);
        Ok(())
    }

    fn publish(&self) {
        let (running, preempted) = match &self.work {
            Work::Generate(work) => (work.running(), work.preempted()),
            Work::Encode(work) => (work.running(), 0),
        };
        self.published.running.store(running, Ordering::Relaxed);
        self.published.preempted.store(preempted, Ordering::Relaxed);
        self.published.pace.store(self.pace.microseconds(), Ordering::Relaxed);
        self.published.touched.store(self.runner.touched().0, Ordering::Relaxed);
        self.publish_room();
    }
}

/// One forward. A refused plan of several rows is tried row by row, so that the row at
/// fault, or too large for what room there is, fails alone; a runner that refuses a plan has changed
/// nothing that matters, and computing a row again writes the same KV.
fn forward(
    runner: &mut dyn ModelRunner,
    widths: Widths<'_>,
    plan: &StepPlan,
) -> Result<Vec<RowOutcome>, DeviceFailure> {
    // Caught to say why the lane ends, not to go on: see `DeviceFailure`.
    let result = catch_unwind(AssertUnwindSafe(|| runner.forward(plan)))
        .map_err(|panic| DeviceFailure(format!("panic in a step: {}", panic_text(&*panic))))?;
    match result {
        Ok(output) => Ok(outcomes(widths, plan, output.rows)),
        Err(RunnerError::Device(reason)) => Err(DeviceFailure(reason)),
        Err(refused) if plan.rows.len() == 1 => Ok(vec![RowOutcome::Failed(refused.into())]),
        Err(RunnerError::Input(_) | RunnerError::Room(_)) => {
            let mut outcomes = Vec::with_capacity(plan.rows.len());
            for row in &plan.rows {
                let single = StepPlan { rows: vec![row.clone()] };
                outcomes.extend(forward(runner, widths, &single)?);
            }
            Ok(outcomes)
        }
    }
}

/// Numbers per vector: of the model alone, and of adapters.
type Widths<'a> = (usize, &'a HashMap<AdapterId, Option<HeadSpec>>);

fn outcomes(
    (plain, adapted): Widths<'_>,
    plan: &StepPlan,
    vectors: Vec<Vec<f32>>,
) -> Vec<RowOutcome> {
    let wanting = plan.rows.iter().filter(|row| row.output);
    let head = |row: &Row| row.adapter.and_then(|id| *adapted.get(&id)?);
    let width = |row: &Row| head(row).map_or(plain, |head| head.width);
    let wanted: Vec<usize> = wanting.map(|row| row.vectors() * width(row)).collect();
    if !vectors.iter().map(Vec::len).eq(wanted.iter().copied()) {
        let widths: Vec<_> = vectors.iter().map(Vec::len).collect();
        let error = Error::WrongShape {
            got: format!("vectors of {widths:?} numbers"),
            wanted: format!("{wanted:?}"),
        };
        let failure = Failure::from(error);
        return plan.rows.iter().map(|_| RowOutcome::Failed(failure.clone())).collect();
    }
    let mut vectors = vectors.into_iter();
    plan.rows
        .iter()
        .map(|row| RowOutcome::Computed(if row.output { vectors.next() } else { None }))
        .collect()
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        return text;
    }
    panic.downcast_ref::<String>().map_or("no text", String::as_str)
}
