//! The loop on the lane's thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use roundhouse_types::Failure;
use tokio::sync::oneshot;
use tracing::{error, info};

use super::{Command, Placing, Warm};
use crate::account::{self, Accounts};
use crate::attached::Attaching;
use crate::check::check_runner;
use crate::core::{DeviceFailure, Engine, WarmUp, WarmUpError};
use crate::error::Error;
use crate::fair::{EngineId, FairPicker, ONE};
use crate::free::free;
use crate::heartbeat::Heartbeat;
use crate::plan::RunnerSpec;

/// Everything the lane's thread owns. Fields drop in order: runners before the inbox, so
/// that a removal that was under way resolves when the runner is gone.
pub(super) struct LaneThread {
    engines: BTreeMap<EngineId, Placed>,
    /// Those that get warm, a shape per turn, so that a large one holds up others' steps no
    /// longer than one of its own steps would.
    warming: BTreeMap<EngineId, Warming>,
    picker: FairPicker,
    accounts: Accounts,
    inbox: Receiver<Command>,
    heartbeat: Arc<Heartbeat>,
    idle_beat: Duration,
    /// When pools were last looked at for room that they do not need any more.
    reviewed: Instant,
}

struct Placed {
    name: String,
    engine: Engine,
}

struct Warming {
    placing: Placing,
    spec: RunnerSpec,
    shapes: WarmUp,
    started: Instant,
}

/// Everybody who could send a command is gone.
struct Deserted;

impl LaneThread {
    pub(super) fn new(
        inbox: Receiver<Command>,
        heartbeat: Arc<Heartbeat>,
        idle_beat: Duration,
    ) -> Self {
        Self {
            engines: BTreeMap::new(),
            warming: BTreeMap::new(),
            picker: FairPicker::default(),
            accounts: Accounts::default(),
            inbox,
            heartbeat,
            idle_beat,
            reviewed: Instant::now(),
        }
    }

    /// Runs until everybody is gone or the device fails.
    pub(super) fn run(mut self) {
        let Err(DeviceFailure(reason)) = self.take_turns() else {
            return;
        };
        // Known before the first stream ends, so that whoever asks then is told.
        let failure = self.heartbeat.fail(reason);
        error!(failure = %failure, "device failed");
        for placed in self.engines.values_mut() {
            placed.engine.end(&failure);
        }
        for (_, warming) in std::mem::take(&mut self.warming) {
            let _ = warming.placing.answer.send(Err(failure.clone()));
        }
    }

    fn take_turns(&mut self) -> Result<(), DeviceFailure> {
        loop {
            self.heartbeat.beat();
            if let Err(Deserted) = self.take_commands() {
                return Ok(());
            }
            self.review_rooms();
            let (engines, warming) = (&self.engines, &self.warming);
            let has_work = |id| {
                engines.get(&id).is_some_and(|placed| placed.engine.has_work())
                    || warming.contains_key(&id)
            };
            let Some(id) = self.picker.pick(has_work) else {
                continue;
            };
            self.heartbeat.beat();
            if !self.engines.contains_key(&id) {
                self.warm_up(id)?;
                continue;
            }
            let others_wait = self.picker.others_work(id);
            let weight = if others_wait { self.weight(id) } else { ONE };
            let Some(placed) = self.engines.get_mut(&id) else { continue };
            let started = Instant::now();
            let stepped = placed.engine.step(others_wait);
            self.picker.charge(id, started.elapsed(), weight);
            stepped?;
        }
    }

    /// What the tenants of an engine may have of the lane.
    fn weight(&self, id: EngineId) -> u64 {
        let of = |placed: &Placed| placed.engine.accounts();
        let Some(own) = self.engines.get(&id).map(of) else {
            return ONE;
        };
        let all: Vec<_> = self.engines.values().map(of).collect();
        account::weight(&own, all.iter().map(Vec::as_slice))
    }

    /// Has all engines look at the room of their pools now and then: what was needed once is not
    /// needed any more when nothing happens.
    fn review_rooms(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.reviewed) >= self.idle_beat {
            self.reviewed = now;
            self.engines.values_mut().for_each(|placed| placed.engine.review_room(now));
        }
    }

    /// Performs all commands that are there; without work, waits for one until the next beat.
    fn take_commands(&mut self) -> Result<(), Deserted> {
        let is_idle = !self.engines.values().any(|placed| placed.engine.has_work());
        if is_idle && self.warming.is_empty() {
            match self.inbox.recv_timeout(self.idle_beat) {
                Ok(command) => self.perform(command),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(Deserted),
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.perform(command),
                Err(TryRecvError::Empty) => return Ok(()),
                Err(TryRecvError::Disconnected) => return Err(Deserted),
            }
        }
    }

    fn perform(&mut self, command: Command) {
        match command {
            Command::Place(placing) => self.place(*placing),
            // A job for an engine that is gone is dropped, which tells its client so.
            Command::Generate(id, job) => {
                if let Some(placed) = self.engines.get_mut(&id) {
                    let account = self.accounts.open(&job.claim);
                    placed.engine.generate(job, account);
                }
            }
            Command::Encode(id, job) => {
                if let Some(placed) = self.engines.get_mut(&id) {
                    let account = self.accounts.open(&job.claim);
                    placed.engine.encode(job, account);
                }
            }
            Command::Read(id, job) => {
                if let Some(placed) = self.engines.get_mut(&id) {
                    let account = self.accounts.open(&job.claim);
                    placed.engine.read(job, account);
                }
            }
            Command::Abort(id, sequence) => {
                if let Some(placed) = self.engines.get_mut(&id) {
                    placed.engine.abort(sequence);
                }
            }
            Command::Attach(id, attaching) => self.attach(id, *attaching),
            Command::Detach(id, adapter, gone) => {
                let placed = self.engines.get_mut(&id);
                if let Some(weights) = placed.and_then(|placed| placed.engine.detach(adapter)) {
                    free(weights, gone);
                }
            }
            Command::KvOrdered(id, order) => {
                if let Some(placed) = self.engines.get_mut(&id) {
                    placed.engine.kv_ordered(order);
                }
            }
            Command::Remove(id, gone) => self.remove(id, gone),
        }
    }

    fn place(&mut self, placing: Placing) {
        let spec = placing.runner.spec();
        if let Err(reason) = check_runner(&spec) {
            return refuse(placing, reason);
        }
        let id = placing.registration.engine();
        self.picker.add(id, placing.config.weight);
        let shapes = WarmUp::new(placing.runner.as_ref(), &spec);
        self.warming.insert(id, Warming { placing, spec, shapes, started: Instant::now() });
    }

    /// The next shape of an engine that gets warm; it serves after the last.
    fn warm_up(&mut self, id: EngineId) -> Result<(), DeviceFailure> {
        let Some(mut warming) = self.warming.remove(&id) else {
            return Ok(());
        };
        if warming.placing.answer.is_closed() {
            self.picker.remove(id);
            free(warming.placing.runner, ());
            return Ok(());
        }
        let started = Instant::now();
        match warming.shapes.step(warming.placing.runner.as_mut(), &warming.spec) {
            Ok(false) => {
                self.picker.charge(id, started.elapsed(), ONE);
                self.warming.insert(id, warming);
            }
            Ok(true) => self.begin_service(id, warming),
            Err(WarmUpError::Refused(reason)) => {
                self.picker.remove(id);
                refuse(warming.placing, reason);
            }
            Err(WarmUpError::Device(failure)) => {
                let told = self.heartbeat.fail(failure.0.clone());
                let _ = warming.placing.answer.send(Err(told));
                return Err(failure);
            }
        }
        Ok(())
    }

    fn begin_service(&mut self, id: EngineId, warming: Warming) {
        let Warming { placing, spec, started, .. } = warming;
        let Placing { name, runner, config, published, ledger, registration, answer } = placing;
        let elapsed = started.elapsed();
        info!(model = %name, warm = ?elapsed, "engine placed");
        let engine = Engine::new(runner, spec, &config, published);
        let engine = match ledger {
            Some(report) => engine.with_ledger(report),
            None => engine.without_ledger(),
        };
        self.engines.insert(id, Placed { name, engine });
        // Its first request is not to pay for its getting warm.
        self.picker.add(id, config.weight);
        // Should the caller be gone, the registration comes back as a removal.
        let _ = answer.send(Ok(Warm { spec, elapsed, registration }));
    }

    /// Of an engine that is gone, the adapter is dropped, which tells its client so.
    fn attach(&mut self, id: EngineId, attaching: Attaching) {
        let Attaching { weights, registration, answer } = attaching;
        let Some(placed) = self.engines.get_mut(&id) else {
            return free(weights, ());
        };
        let attached = placed.engine.attach(registration.adapter(), weights).map_err(|error| {
            let reason = error.to_string();
            Failure::from(Error::NotAttached { name: placed.name.clone(), reason })
        });
        // Should the caller be gone, the registration comes back as a removal.
        let _ = answer.send(attached.map(|head| (registration, head)));
    }

    fn remove(&mut self, id: EngineId, gone: Option<oneshot::Sender<()>>) {
        let Some(mut placed) = self.engines.remove(&id) else {
            return;
        };
        self.picker.remove(id);
        let failure = Failure::from(Error::Removed { name: placed.name.clone() });
        placed.engine.end(&failure);
        info!(model = %placed.name, "engine removed");
        free(placed, gone);
    }
}

fn refuse(placing: Placing, reason: String) {
    let Placing { name, runner, answer, .. } = placing;
    drop(runner);
    let _ = answer.send(Err(Error::Unservable { name, reason }.into()));
}

impl Drop for LaneThread {
    fn drop(&mut self) {
        // Only a fault of ours unwinds the loop itself; whoever waits is told before the
        // channels close.
        if std::thread::panicking() {
            let failure = self.heartbeat.fail("the lane's thread panicked".to_owned());
            error!(failure = %failure, "lane failed");
        }
    }
}
