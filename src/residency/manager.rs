//! The task that owns the table: it performs the effects and reports what came of them.

mod history;
mod looks;
mod ring;
mod tasks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use roundhouse_types::{ArtefactId, Bytes, DeviceId, Failure, ModelId};
use tokio::sync::{broadcast, mpsc, oneshot};
use tracing::{debug, info, warn};

use self::history::History;
pub(crate) use self::looks::Look;
use self::ring::{Cause, Place, Ring};
use self::tasks::Tasks;
pub(crate) use self::tasks::{Finished, Outcome};
use crate::config::Config;
use crate::decision::{Action, Decided, Decision};
use crate::error::Error;
use crate::handle::Explanation;
use crate::lease::Lease;
use crate::loader::{Base, Loaded, Loader};
use crate::metrics::Meters;
use crate::regret::{Numbered, Window};
use crate::reporter::{Notes, Slot};
use crate::snapshot::Clocks;
use crate::sync::{UnboundedReceiver, UnboundedSender, unbounded_channel};
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
    Look(Look),
    Known {
        model: ModelId,
        reply: oneshot::Sender<bool>,
    },
    Explain {
        model: ModelId,
        reply: oneshot::Sender<Explanation>,
    },
    /// The latest requests, for the regret meter.
    Window {
        reply: oneshot::Sender<Window>,
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

/// A loaded model, and how the ring of requests knows it.
struct Placed<M> {
    model: Arc<M>,
    known_as: Numbered,
}

/// A request that waits for its lease.
struct Waiting<M> {
    reply: LeaseReply<M>,
    place: Place,
}

/// Owns the table, the loaded models and the callers that wait.
pub(crate) struct Owner<L: Loader> {
    table: Table,
    tasks: Tasks<L>,
    models: HashMap<Key, Placed<L::Model>>,
    /// What loads and residents report, from the begin of the load until it is unloaded.
    slots: HashMap<Key, Arc<Slot>>,
    reports: UnboundedSender<Arc<Slot>>,
    /// Slots with something to take. Each is in it once at most, so it has a bound.
    reports_inbox: UnboundedReceiver<Arc<Slot>>,
    requests: HashMap<WaiterId, Waiting<L::Model>>,
    operators: HashMap<WaiterId, oneshot::Sender<Result<Report, Failure>>>,
    closing: Vec<oneshot::Sender<()>>,
    dropped: UnboundedSender<Dropped>,
    dropped_inbox: UnboundedReceiver<Dropped>,
    decisions: broadcast::Sender<Decision>,
    history: History,
    ring: Ring,
    meters: Meters,
    clocks: Clocks,
}

impl<L: Loader> Owner<L> {
    pub(crate) fn new(
        config: Config,
        devices: Vec<(DeviceId, Bytes)>,
        loader: Arc<L>,
        (dropped, dropped_inbox): (UnboundedSender<Dropped>, UnboundedReceiver<Dropped>),
        decisions: broadcast::Sender<Decision>,
    ) -> Self {
        let (reports, reports_inbox) = unbounded_channel();
        Self {
            table: Table::new(config, devices, now()),
            tasks: Tasks::new(loader),
            models: HashMap::new(),
            slots: HashMap::new(),
            reports,
            reports_inbox,
            requests: HashMap::new(),
            operators: HashMap::new(),
            closing: Vec::new(),
            dropped,
            dropped_inbox,
            decisions,
            history: History::new(),
            ring: Ring::new(),
            meters: Meters::new(),
            clocks: Clocks { instant: now(), wall: SystemTime::now() },
        }
    }

    /// Runs until every handle is gone, every device is empty and no copy is left.
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
                // Last, so that one who reports without a pause holds up nobody.
                Some(slot) = self.reports_inbox.recv() => self.reported(&slot),
                () = sleep_until(wake) => {
                    self.report_progress();
                    self.apply(Event::TimePassed);
                }
            }
        }
    }

    fn command(&mut self, command: Command<L::Model>) {
        // What was reported before a request came is seen before it: as much as lies there
        // now, not what is reported meanwhile.
        for _ in 0..self.reports_inbox.len() {
            if let Ok(slot) = self.reports_inbox.try_recv() {
                self.reported(&slot);
            }
        }
        match command {
            Command::Acquire { waiter, event, reply } => {
                // Its cancellation may have overtaken it, and comes only once.
                if !reply.is_closed() {
                    let place = self.ring.asked();
                    self.requests.insert(waiter, Waiting { reply, place });
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
            Command::Look(look) => self.look(look),
            Command::Known { model, reply } => {
                let _ = reply.send(self.table.is_known(&model));
            }
            Command::Explain { model, reply } => {
                self.report_progress();
                let (now, ready_in) = self.table.standing(&model);
                let ready_in_ms =
                    ready_in.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
                let decisions = self.history.of(&model);
                let _ = reply.send(Explanation { now, ready_in_ms, decisions });
            }
            Command::Window { reply } => {
                let _ = reply.send(self.ring.window(self.table.budget()));
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
            tasks::Outcome::Loaded { key, result: Ok(loaded) } => self.loaded(key, loaded),
            tasks::Outcome::Loaded { key, result: Err(failure) } => {
                self.close_slot(&key);
                Event::Loaded { key, result: Err(failure) }
            }
            tasks::Outcome::Unloaded { key, copy } => {
                self.close_slot(&key);
                Event::Unloaded { key, copy }
            }
            tasks::Outcome::Discarded { artefact } => Event::Discarded { artefact },
        };
        self.apply(event);
    }

    /// Takes in a loaded model together with what it reported before the table knew of it:
    /// a death first, so that it is granted to nobody.
    fn loaded(&mut self, key: Key, loaded: Loaded<L::Model>) -> Event {
        let notes = self.slots.get(&key).map(|slot| slot.open()).unwrap_or_default();
        if let Some(failure) = notes.died {
            self.apply(Event::Died { key: key.clone(), failure });
        }
        if let (Some(report), Some(slot)) = (notes.kv, self.slots.get(&key)) {
            // It comes after the load, like all that is reported from now on.
            slot.reporter().kv(report);
        }
        let footprint = notes.measured.unwrap_or(loaded.footprint);
        let bytes = footprint.total();
        // The optimum has each model once: a replica is none of its misses.
        let number = match self.twin(&key) {
            Some(twin) => twin.known_as.0,
            None => {
                let is_asked = self.table.was_asked_for(&key.artefact.model);
                let cause = if is_asked { Cause::Asked } else { Cause::Unasked };
                self.ring.came(&key.artefact, bytes, cause)
            }
        };
        let known_as = (number, bytes);
        self.models.insert(key.clone(), Placed { model: Arc::new(loaded.model), known_as });
        let Loaded { shared, once, idle_ttl, .. } = loaded;
        let loaded = Loaded { model: (), footprint, shared, once, idle_ttl };
        Event::Loaded { key, result: Ok(loaded) }
    }

    /// The same artefact on another device.
    fn twin(&self, key: &Key) -> Option<&Placed<L::Model>> {
        let devices = self.table.devices().filter(|device| *device != key.device);
        let mut twins = devices.map(|device| Key { artefact: key.artefact.clone(), device });
        twins.find_map(|twin| self.models.get(&twin))
    }

    /// Takes what a resident reported. A death comes first: who is dead is not judged by
    /// what it takes.
    fn reported(&mut self, slot: &Slot) {
        let Notes { measured, kv, died } = slot.take();
        if let Some(failure) = died {
            self.apply(Event::Died { key: slot.key.clone(), failure });
        }
        if let Some(footprint) = measured {
            if let Some(placed) = self.models.get_mut(&slot.key) {
                placed.known_as.1 = footprint.total();
            }
            self.apply(Event::Measured { key: slot.key.clone(), footprint });
        }
        if let Some(report) = kv {
            self.apply(Event::KvReported { key: slot.key.clone(), report });
        }
    }

    /// From here on reports about this load are ignored.
    fn close_slot(&mut self, key: &Key) {
        if let Some(slot) = self.slots.remove(key) {
            slot.close();
        }
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
            debug_assert!(self.slots.is_empty(), "slots end with their loads and residents");
            for reply in self.closing.drain(..) {
                let _ = reply.send(());
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Resolve { model, refresh } => self.tasks.resolve(model, refresh),
            Effect::Fetch { artefact, payer } => self.tasks.fetch(artefact, payer),
            Effect::AbandonFetch { artefact } => self.tasks.abandon_fetch(&artefact),
            Effect::Load { key, source, base } => {
                let slot = Slot::new(key.clone(), self.reports.clone());
                self.slots.insert(key.clone(), Arc::clone(&slot));
                let base = base.map(|artefact| self.base(artefact, key.device));
                self.tasks.load(key, source, base, slot);
            }
            Effect::Unload { key, demote } => {
                let placed = self.models.remove(&key);
                let placed = placed.expect("the table unloads only what was loaded");
                if self.twin(&key).is_none() {
                    self.ring.left(placed.known_as.0);
                }
                self.tasks.unload(key, placed.model, demote);
            }
            Effect::Discard { artefact } => self.tasks.discard(artefact),
            Effect::OrderKv { key, order } => {
                if let Some(slot) = self.slots.get(&key) {
                    slot.order_kv(order);
                }
            }
            Effect::Grant(grant) => self.grant(grant),
            Effect::Refuse { waiter, failure } => {
                if let Some(Waiting { reply, .. }) = self.requests.remove(&waiter) {
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

    /// What an adapter is loaded onto. The load alone holds it, beside its leases.
    fn base(&self, artefact: ArtefactId, device: DeviceId) -> Base<L::Model> {
        let key = Key { artefact, device };
        let placed = self.models.get(&key).expect("the table has adapters loaded onto what serves");
        Base { artefact: key.artefact, model: Arc::clone(&placed.model) }
    }

    fn grant(&mut self, grant: Grant) {
        let placed = self.models.get(&grant.key).expect("the table grants only what is loaded");
        self.meters.granted(&grant);
        let waiter = grant.waiter;
        let lease = Lease::new(grant, Arc::clone(&placed.model), self.dropped.clone());
        // A caller that went away hands the lease back by dropping it: here, or with the
        // channel that holds it.
        if let Some(Waiting { reply, place }) = self.requests.remove(&waiter) {
            self.ring.answered(place, placed.known_as);
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
        Action::Unfit { reason } => {
            warn!(%model, version, reason, "model's newer version is damaged");
        }
        Action::Died { reason, deaths, .. } => {
            warn!(%model, version, device, reason, deaths, "model died");
        }
        Action::Grown { bytes, over_bytes } => {
            warn!(%model, version, device, %bytes, over = %over_bytes, "model outgrew the budget");
        }
        Action::Ready { bytes } => info!(%model, version, device, %bytes, "model ready"),
        Action::Unloaded { bytes } => info!(%model, version, device, %bytes, "model unloaded"),
        Action::Replicating { leases, devices } => {
            info!(%model, version, leases, devices, "model replicates");
        }
        Action::Switched { from, .. } => {
            info!(%model, version, device, %from, decision = %action, "model switched");
        }
        Action::Offered { .. } | Action::Chosen { .. } | Action::Deleted { .. } => {
            info!(%model, version, decision = %action, "model's versions");
        }
        Action::Demoted { bytes } => info!(%model, version, %bytes, "model copied to host memory"),
        Action::Discarded { why, bytes } => {
            info!(%model, version, %bytes, why = why.as_str(), "model's copy leaves host memory");
        }
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
#[cfg(feature = "shuttle")]
mod interleavings;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
