//! The loop on the lane's thread.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use roundhouse_types::Failure;
use tracing::{error, info};

use super::{Command, Placing, Warm};
use crate::check::check_runner;
use crate::core::{DeviceFailure, Engine, WarmUpError, warm_up};
use crate::error::Error;
use crate::fair::{EngineId, FairPicker};
use crate::heartbeat::Heartbeat;

/// Everything the lane's thread owns. Fields drop in order: runners before the inbox, so
/// that a removal that was under way resolves when the runner is gone.
pub(super) struct LaneThread {
    engines: BTreeMap<EngineId, Placed>,
    picker: FairPicker,
    inbox: Receiver<Command>,
    heartbeat: Arc<Heartbeat>,
    idle_beat: Duration,
}

struct Placed {
    name: String,
    engine: Engine,
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
            picker: FairPicker::default(),
            inbox,
            heartbeat,
            idle_beat,
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
    }

    fn take_turns(&mut self) -> Result<(), DeviceFailure> {
        loop {
            self.heartbeat.beat();
            match self.take_commands() {
                Ok(done) => done?,
                Err(Deserted) => return Ok(()),
            }
            let engines = &self.engines;
            let has_work = |id| engines.get(&id).is_some_and(|placed| placed.engine.has_work());
            let Some(id) = self.picker.pick(has_work) else {
                continue;
            };
            let Some(placed) = self.engines.get_mut(&id) else {
                continue;
            };
            self.heartbeat.beat();
            let started = Instant::now();
            let stepped = placed.engine.step();
            self.picker.charge(id, started.elapsed());
            stepped?;
        }
    }

    /// Performs all commands that are there; without work, waits for one until the next beat.
    fn take_commands(&mut self) -> Result<Result<(), DeviceFailure>, Deserted> {
        if !self.engines.values().any(|placed| placed.engine.has_work()) {
            match self.inbox.recv_timeout(self.idle_beat) {
                Ok(command) => {
                    if let Err(failure) = self.perform(command) {
                        return Ok(Err(failure));
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Ok(Ok(())),
                Err(RecvTimeoutError::Disconnected) => return Err(Deserted),
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(command) => {
                    if let Err(failure) = self.perform(command) {
                        return Ok(Err(failure));
                    }
                }
                Err(TryRecvError::Empty) => return Ok(Ok(())),
                Err(TryRecvError::Disconnected) => return Err(Deserted),
            }
        }
    }

    fn perform(&mut self, command: Command) -> Result<(), DeviceFailure> {
        match command {
            Command::Place(placing) => return self.place(*placing),
            // A job for an engine that is gone is dropped, which tells its client so.
            Command::Generate(id, job) => {
                if let Some(placed) = self.engines.get_mut(&id) {
                    placed.engine.generate(job);
                }
            }
            Command::Encode(id, job) => {
                if let Some(placed) = self.engines.get_mut(&id) {
                    placed.engine.encode(job);
                }
            }
            Command::Abort(id, sequence) => {
                if let Some(placed) = self.engines.get_mut(&id) {
                    placed.engine.abort(sequence);
                }
            }
            Command::Remove(id, gone) => {
                self.remove(id);
                drop(gone);
            }
        }
        Ok(())
    }

    fn place(&mut self, placing: Placing) -> Result<(), DeviceFailure> {
        let Placing { name, mut runner, config, published, registration, answer } = placing;
        let started = Instant::now();
        let spec = runner.spec();
        let warmed = check_runner(&spec)
            .map_err(WarmUpError::Refused)
            .and_then(|()| warm_up(runner.as_mut(), &spec, || self.heartbeat.beat()));
        match warmed {
            Ok(()) => {}
            Err(WarmUpError::Refused(reason)) => {
                drop(runner);
                let _ = answer.send(Err(Error::Unservable { name, reason }.into()));
                return Ok(());
            }
            Err(WarmUpError::Device(failure)) => {
                let _ = answer.send(Err(self.heartbeat.fail(failure.0.clone())));
                return Err(failure);
            }
        }
        let elapsed = started.elapsed();
        info!(model = %name, warm = ?elapsed, "engine placed");
        let engine = Engine::new(runner, spec, config.max_running.get(), published);
        let id = registration.engine();
        self.engines.insert(id, Placed { name, engine });
        self.picker.add(id, config.weight);
        // Should the caller be gone, the registration comes back as a removal.
        let _ = answer.send(Ok(Warm { spec, elapsed, registration }));
        Ok(())
    }

    fn remove(&mut self, id: EngineId) {
        let Some(mut placed) = self.engines.remove(&id) else {
            return;
        };
        self.picker.remove(id);
        let failure = Failure::from(Error::Removed { name: placed.name.clone() });
        placed.engine.end(&failure);
        info!(model = %placed.name, "engine removed");
    }
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
