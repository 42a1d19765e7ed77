//! The task that owns the table: it performs the effects and reports what came of them.

mod history;
mod tasks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use roundhouse_types::{Bytes, DeviceId, Failure, ModelId};
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::{debug, info, warn};

use self::history::History;
use self::tasks::Tasks;
pub(crate) use self::tasks::{Finished, Outcome};
use crate::config::Config;
use crate::decision::{Action, Decided, Decision};
use crate::error::Error;
use crate::lease::Lease;
use crate::loader::Loader;
use crate::metrics::Meters;
use crate::snapshot::{Clocks, Snapshot};
use crate::table::{Effect, Event, Grant, Key, Report, Table, WaiterId};

/// Where a request waits for its lease.
type LeaseReply<M> = oneshot::Sender<Result<Lease<M>, Failure>>;

/// What a handle asks of the owner.
pub(crate) enum Command<M> {
    /// A request for a lease.
    Acquire {
        waiter: WaiterId,
        event: Event,
        reply: LeaseReply<M>,
    },
    /// An operator's wish that is answered later.
    Operate {
        waiter: WaiterId,
        event: Event,
        reply: oneshot::Sender<Result<Report, Failure>>,
    },
    /// An event that is answered when the table has seen it.
    Tell {
        event: Event,
        reply: oneshot::Sender<()>,
    },
    Snapshot {
        reply: oneshot::Sender<Snapshot>,
    },
    Explain {
        model: ModelId,
        reply: oneshot::Sender<Vec<Decision>>,
    },
    Shutdown {
        reply: oneshot::Sender<()>,
    },
}

/// What guards tell in their `Drop`.
pub(crate) enum Dropped {
    /// A lease ended.
    Lease(Key),
    /// A caller went away.
    Waiter(WaiterId),
}

/// Owns the table, the loaded models and the callers that wait.
pub(crate) struct Owner<L: Loader> {
    table: Table,
    tasks: Tasks<L>,
    models: HashMap<Key, Arc<L::Model>>,
    requests: HashMap<WaiterId, LeaseReply<L::Model>>,
    operators: HashMap<WaiterId, oneshot::Sender<Result<Report, Failure>>>,
    closing: Vec<oneshot::Sender<()>>,
    dropped: mpsc::UnboundedSender<Dropped>,
    dropped_inbox: mpsc::UnboundedReceiver<Dropped>,
    decisions: broadcast::Sender<Decision>,
    history: History,
    meters: Meters,
}

impl<L: Loader> Owner<L> {
    pub(crate) fn new(
        config: Config,
        devices: Vec<(DeviceId, Bytes)>,
        loader: Arc<L>,
        (dropped, dropped_inbox): (
            mpsc::UnboundedSender<Dropped>,
            mpsc::UnboundedReceiver<Dropped>,
        ),
        decisions: broadcast::Sender<Decision>,
    ) -> Self {
        Self {
            table: Table::new(config, devices, now()),
            tasks: Tasks::new(loader),
            models: HashMap::new(),
            requests: HashMap::new(),
            operators: HashMap::new(),
            closing: Vec::new(),
            dropped,
            dropped_inbox,
            decisions,
            history: History::new(),
            meters: Meters::new(),
        }
    }

    /// Runs until every handle is gone and every device is empty.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command<L::Model>>) {
        let mut open = true;
        self.meters.levels(&self.table);
        while open || !self.table.is_empty() {
            let wake = self.table.next_wake().map(tokio::time::Instant::from_std);
            tokio::select! {
                // Releases and cancels first: they free what the commands behind them want.
                biased;
                Some(dropped) = self.dropped_inbox.recv() => self.dropped(dropped),
                Some(event) = self.tasks.next() => self.finished(event),
                command = commands.recv(), if open => match command {
                    Some(command) => self.command(command),
                    None => {
                        open = false;
                        self.apply(Event::ShutdownBegan);
                    }
                },
                () = sleep_until(wake) => {
                    self.report_progress();
                    self.apply(Event::TimePassed);
                }
            }
        }
    }

    fn command(&mut self, command: Command<L::Model>) {
        match command {
            Command::Acquire { waiter, event, reply } => {
                // Its cancellation may have overtaken it, and comes only once.
                if !reply.is_closed() {
                    self.requests.insert(waiter, reply);
                    self.apply(event);
                }
            }
            Command::Operate { waiter, event, reply } => {
                if !reply.is_closed() {
                    self.operators.insert(waiter, reply);
                    self.apply(event);
                }
            }
            Command::Tell { event, reply } => {
                self.apply(event);
                let _ = reply.send(());
            }
            Command::Snapshot { reply } => {
                self.report_progress();
                let clocks = Clocks { instant: now(), wall: SystemTime::now() };
                let _ = reply.send(self.table.snapshot(&clocks));
            }
            Command::Explain { model, reply } => {
                let _ = reply.send(self.history.of(&model));
            }
            Command::Shutdown { reply } => {
                self.closing.push(reply);
                self.apply(Event::ShutdownBegan);
            }
        }
    }

    fn dropped(&mut self, dropped: Dropped) {
        match dropped {
            Dropped::Lease(key) => self.apply(Event::Released { key }),
            Dropped::Waiter(waiter) => {
                self.requests.remove(&waiter);
                self.operators.remove(&waiter);
                self.apply(Event::Cancelled { waiter });
            }
        }
    }

    /// Takes in what a loader call brought and tells the table.
    fn finished(&mut self, finished: tasks::Finished<L::Model>) {
        self.meters.finished(&finished);
        let event = match finished.outcome {
            tasks::Outcome::Resolved { model, result } => Event::Resolved { model, result },
            tasks::Outcome::Fetched { artefact, result } => Event::Fetched { artefact, result },
            tasks::Outcome::Loaded { key, result } => {
                let result = result.map(|loaded| {
                    self.models.insert(key.clone(), Arc::new(loaded.model));
                    loaded.footprint
                });
                Event::Loaded { key, result }
            }
            tasks::Outcome::Unloaded { key } => Event::Unloaded { key },
        };
        self.apply(event);
    }

    fn report_progress(&mut self) {
        for (artefact, bytes) in self.tasks.progress() {
            self.apply(Event::Progressed { artefact, bytes });
        }
    }

    fn apply(&mut self, event: Event) {
        for effect in self.table.on(event, now()) {
            self.perform(effect);
        }
        self.meters.levels(&self.table);
        if self.table.is_empty() {
            for reply in self.closing.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Resolve { model, refresh } => self.tasks.resolve(model, refresh),
            Effect::Fetch { artefact } => self.tasks.fetch(artefact),
            Effect::AbandonFetch { artefact } => self.tasks.abandon_fetch(&artefact),
            Effect::Load { key } => self.tasks.load(key),
            Effect::Unload { key } => {
                let model = self.models.remove(&key);
                self.tasks.unload(key, model.expect("the table unloads only what was loaded"));
            }
            Effect::Grant(grant) => self.grant(grant),
            Effect::Refuse { waiter, failure } => {
                if let Some(reply) = self.requests.remove(&waiter) {
                    let _ = reply.send(Err(failure));
                } else if let Some(reply) = self.operators.remove(&waiter) {
                    let _ = reply.send(Err(failure));
                }
            }
            Effect::Report { waiter, report } => {
                if let Some(reply) = self.operators.remove(&waiter) {
                    let _ = reply.send(Ok(report));
                }
            }
            Effect::Decided(decided) => self.record(decided),
        }
    }

    fn grant(&mut self, grant: Grant) {
        let model = self.models.get(&grant.key).expect("the table grants only what is loaded");
        self.meters.granted(&grant);
        let waiter = grant.waiter;
        let lease = Lease::new(grant, Arc::clone(model), self.dropped.clone());
        // A caller that went away hands the lease back by dropping it: here, or with the
        // channel that holds it.
        if let Some(reply) = self.requests.remove(&waiter) {
            let _ = reply.send(Ok(lease));
        }
    }

    fn record(&mut self, decided: Decided) {
        self.meters.decided(&decided);
        log(&decided);
        let decision = self.history.record(decided, SystemTime::now());
        // Nobody has to listen.
        let _ = self.decisions.send(decision);
    }
}

/// Lifecycle of models at info, what an operator may want to look into at warn.
fn log(decided: &Decided) {
    let Decided { model, version, device, action, .. } = decided;
    let version = version.as_ref().map(tracing::field::display);
    let device = device.as_ref().map(tracing::field::display);
    match action {
        Action::Failed { stage, reason, .. } => {
            warn!(%model, version, stage = stage.as_str(), reason, "model failed");
        }
        Action::Ready { bytes } => info!(%model, version, device, %bytes, "model ready"),
        Action::Unloaded { bytes } => info!(%model, version, device, %bytes, "model unloaded"),
        Action::Draining { why, .. } => {
            info!(%model, version, device, why = why.as_str(), "model leaves");
        }
        other => debug!(%model, version, device, decision = %other, "decided"),
    }
}

async fn sleep_until(wake: Option<tokio::time::Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

/// The runtime's clock, which tests may pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The failure of a loader call that panicked.
fn panicked(call: &'static str, subject: impl ToString) -> Failure {
    Error::LoaderPanicked { call, subject: subject.to_string() }.into()
}

#[cfg(test)]
mod tests;
