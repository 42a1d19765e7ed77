//! What the rest of the server holds: requests go to the task that owns the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, EndpointName, ErrorKind, Failure, ModelId, TenantName, Version,
};
use serde::Serialize;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};

use crate::config::{Config, TenantLimits};
use crate::decision::Decision;
use crate::error::Error;
use crate::holdings::Holdings;
use crate::lease::Lease;
use crate::loader::Loader;
use crate::manager::{Command, Dropped, Look, Owner};
use crate::metrics;
use crate::regret::{FRESH, Regret};
use crate::snapshot::{AfterResident, CopiesPart, ResidentsPart, Snapshot};
use crate::sync::{UnboundedSender, unbounded_channel};
use crate::table::{
    Event, LoadOptions, LoadReport, PlaceWanted, RefreshReport, Report, UnloadReport, WaiterId,
};

/// Commands that may lie before the owner at once; it takes microseconds for each.
const COMMANDS: usize = 1024;
/// Decisions that a slow subscriber may fall behind before it misses some.
const DECISIONS: usize = 256;

/// The way to the residency table. Cheap to clone; the owner task unloads everything and
/// ends when the last clone is gone.
pub struct Residency<M> {
    shared: Arc<Shared<M>>,
}

struct Shared<M> {
    commands: mpsc::Sender<Command<M>>,
    dropped: UnboundedSender<Dropped>,
    decisions: broadcast::Sender<Decision>,
    next_waiter: AtomicU64,
    config: Config,
    /// The latest regret and when it was calculated. Held for a copy only.
    regret: Mutex<Option<(Instant, Regret)>>,
    /// Regret is calculated once at a time.
    regret_turn: Semaphore,
}

impl<M> Clone for Residency<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M> fmt::Debug for Residency<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Residency").finish_non_exhaustive()
    }
}

/// Why a model is where it is.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// How it stands, as a sentence.
    pub now: String,
    /// When it may be ready, in milliseconds; absent where it is, or where that depends on
    /// requests that have to end or on what was never measured.
    pub ready_in_ms: Option<u64>,
    /// The latest decisions about it, oldest first.
    pub decisions: Vec<Decision>,
}

/// Tells the owner when the caller went away before its answer came.
struct CancelOnDrop {
    waiter: WaiterId,
    dropped: UnboundedSender<Dropped>,
    armed: bool,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if self.armed {
            // With the owner gone there is nobody left to tell.
            let _ = self.dropped.send(Dropped::Waiter(self.waiter));
        }
    }
}

impl<M: Send + Sync + 'static> Residency<M> {
    /// Spawns the owner task on the current runtime. Each device comes with the bytes
    /// that residents may take on it.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start<L: Loader<Model = M>>(
        config: Config,
        devices: Vec<(DeviceId, Bytes)>,
        loader: Arc<L>,
    ) -> Self {
        let (commands, commands_inbox) = mpsc::channel(COMMANDS);
        let (dropped, dropped_inbox) = unbounded_channel();
        let (decisions, _) = broadcast::channel(DECISIONS);
        let owner = Owner::new(
            config.clone(),
            devices,
            loader,
            (dropped.clone(), dropped_inbox),
            decisions.clone(),
        );
        tokio::spawn(owner.run(commands_inbox));
        let next_waiter = AtomicU64::new(0);
        let (regret, regret_turn) = (Mutex::new(None), Semaphore::new(1));
        Self {
            shared: Arc::new(Shared {
                commands,
                dropped,
                decisions,
                next_waiter,
                config,
                regret,
                regret_turn,
            }),
        }
    }

    /// A hold on the model, which is fetched and loaded if need be.
    ///
    /// Answered at once for a resident. Past `hold_until` it fails as not ready, and the
    /// load goes on; so it does when this future is dropped.
    pub async fn acquire(&self, model: &ModelId, hold_until: Instant) -> Result<Lease<M>, Failure> {
        self.acquire_where(model, hold_until, false, None).await
    }

    /// The same on behalf of a tenant: a load that is begun for it is charged to that one's load
    /// bandwidth. The others are charged to the model's own tenant.
    pub async fn acquire_for(
        &self,
        payer: Option<&TenantName>,
        model: &ModelId,
        hold_until: Instant,
    ) -> Result<Lease<M>, Failure> {
        self.acquire_where(model, hold_until, false, payer).await
    }

    /// A hold on the model if it is loaded; otherwise it fails at once as not found and
    /// nothing is loaded.
    pub async fn acquire_loaded(&self, model: &ModelId) -> Result<Lease<M>, Failure> {
        self.acquire_where(model, now(), true, None).await
    }

    async fn acquire_where(
        &self,
        model: &ModelId,
        hold_until: Instant,
        only_loaded: bool,
        payer: Option<&TenantName>,
    ) -> Result<Lease<M>, Failure> {
        let mut guard = self.guard();
        let waiter = guard.waiter;
        let (model, payer) = (model.clone(), payer.cloned());
        let event = Event::AcquireRequested { waiter, model, hold_until, only_loaded, payer };
        let (reply, answer) = oneshot::channel();
        self.send(Command::Acquire { waiter, event, reply }).await?;
        let result = answer.await.map_err(|_| Error::OwnerGone)?;
        guard.armed = false;
        result
    }

    /// Loads the model and reports where it is; at once where it is loaded already. Waits
    /// for the load timeout at most. If dropped before, the load goes on.
    pub async fn load(&self, model: &ModelId, options: LoadOptions) -> Result<LoadReport, Failure> {
        let (model, hold_until) = (model.clone(), self.patience());
        let event = |waiter| Event::LoadRequested { waiter, model, hold_until, options };
        match self.operate(event).await? {
            Report::Loaded(report) => Ok(report),
            other => unreachable!("a load is answered by its report, not {other:?}"),
        }
    }

    /// Takes the model off its devices and answers when the memory is free: no new leases,
    /// then the last one ends, then it unloads. Fails as not found where it is not loaded.
    /// Its keep, if any, is lifted. Files on disk stay; the report names their versions.
    pub async fn unload(&self, model: &ModelId) -> Result<UnloadReport, Failure> {
        let (model, hold_until) = (model.clone(), self.patience());
        let event = |waiter| Event::UnloadRequested { waiter, model, hold_until };
        match self.operate(event).await? {
            Report::Unloaded(report) => Ok(report),
            other => unreachable!("an unload is answered by its report, not {other:?}"),
        }
    }

    /// Has one model leave that has such a place, where one may, as the policy says; answers when it is
    /// gone, and whether one left. Keeps stay in force.
    pub async fn give_place(&self, place: PlaceWanted) -> Result<bool, Failure> {
        let hold_until = self.patience();
        let event = |waiter| Event::PlaceRequested { waiter, place, hold_until };
        match self.operate(event).await? {
            Report::Unloaded(report) => Ok(!report.versions.is_empty()),
            other => unreachable!("a place is answered by an unload's report, not {other:?}"),
        }
    }

    /// Has the version to serve looked up now, in the store. Where the model is loaded and the
    /// version is another one, it answers when that one serves, or fails with what went wrong;
    /// the old one serves meanwhile. Fails where the store was not reached. If dropped before,
    /// the load goes on.
    pub async fn refresh(&self, model: &ModelId) -> Result<RefreshReport, Failure> {
        let (model, hold_until) = (model.clone(), self.patience());
        let event = |waiter| Event::RefreshRequested { waiter, model, hold_until };
        match self.operate(event).await? {
            Report::Refreshed(report) => Ok(report),
            other => unreachable!("a refresh is answered by its report, not {other:?}"),
        }
    }

    /// Wishes that the model stay once it is loaded; it is not loaded by this.
    pub async fn keep(&self, model: &ModelId) -> Result<(), Failure> {
        self.tell(Event::KeepChanged { model: model.clone(), kept: true }).await
    }

    /// Lifts a keep.
    pub async fn release(&self, model: &ModelId) -> Result<(), Failure> {
        self.tell(Event::KeepChanged { model: model.clone(), kept: false }).await
    }

    /// Notes that an operator chose the version to serve, or with `None` chose none any more.
    /// It decides nothing by itself: the loader is who names versions.
    pub async fn note_choice(
        &self,
        model: &ModelId,
        chosen: Option<Version>,
    ) -> Result<(), Failure> {
        self.tell(Event::ChoiceChanged { model: model.clone(), chosen }).await
    }

    /// Notes what somebody saw in the store: the version that it names, none where it holds nothing of
    /// the model, and what it holds in place of one that can be served. It changes what is told, and
    /// nothing else.
    pub async fn note_seen(
        &self,
        model: &ModelId,
        named: Option<Version>,
        unfit: Option<(Version, Failure)>,
    ) -> Result<(), Failure> {
        self.tell(Event::StoreSeen { model: model.clone(), named, unfit }).await
    }

    /// Notes that an endpoint is not served any more: nothing more is told of its versions.
    pub async fn note_left(&self, endpoint: EndpointName) -> Result<(), Failure> {
        self.tell(Event::EndpointLeft { endpoint }).await
    }

    /// Whether the model is kept, loaded or on its way.
    pub async fn is_known(&self, model: &ModelId) -> Result<bool, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Known { model: model.clone(), reply }).await?;
        Ok(answer.await.map_err(|_| Error::OwnerGone)?)
    }

    /// Changes what residents may take on a device. What exceeds a smaller budget leaves;
    /// until then nothing is granted there.
    pub async fn set_budget(&self, device: DeviceId, budget: Bytes) -> Result<(), Failure> {
        self.tell(Event::BudgetChanged { device, budget }).await
    }

    /// Changes what copies of models that left other devices may take in the host's memory.
    /// What exceeds a smaller budget is discarded, except what loads under way take for
    /// their source; until then no copy is made.
    pub async fn set_host_budget(&self, budget: Bytes) -> Result<(), Failure> {
        self.tell(Event::HostBudgetChanged { budget }).await
    }

    /// Changes what tenants are promised and asked, and which endpoints drain what was deleted
    /// in the store. Whoever is above a ceiling that was lowered gives way with its next load.
    pub async fn set_terms(
        &self,
        tenants: BTreeMap<String, TenantLimits>,
        drain_deleted: BTreeSet<EndpointName>,
    ) -> Result<(), Failure> {
        self.tell(Event::TermsChanged { tenants, drain_deleted }).await
    }

    /// What lies in memory at one instant. Requests wait meanwhile: with ten thousand residents for a
    /// millisecond.
    pub async fn holdings(&self) -> Result<Holdings, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Look(Look::Holdings { reply })).await?;
        Ok(answer.await.map_err(|_| Error::OwnerGone)?)
    }

    /// The whole table at one instant. It informs; nothing may be decided by it. Requests wait
    /// meanwhile: with thousands of residents for milliseconds.
    pub async fn snapshot(&self) -> Result<Snapshot, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Look(Look::Whole { reply })).await?;
        Ok(answer.await.map_err(|_| Error::OwnerGone)?)
    }

    /// The table at one instant, with one model's residents and copies alone.
    pub async fn snapshot_of(&self, model: &ModelId) -> Result<Snapshot, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Look(Look::Of { model: model.clone(), reply })).await?;
        Ok(answer.await.map_err(|_| Error::OwnerGone)?)
    }

    /// The whole table, for readers who may come often: where there is much of it, residents and copies
    /// are looked at part by part, and requests are served between two parts. Who stays is in it once;
    /// what changes meanwhile may be told as it was or as it is, and sums as they were before.
    pub async fn gathered(&self) -> Result<Snapshot, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Look(Look::Few { reply })).await?;
        if let Some(snapshot) = answer.await.map_err(|_| Error::OwnerGone)? {
            return Ok(snapshot);
        }
        let mut gathered = self.outline().await?;
        let mut after = None;
        loop {
            let part = self.residents(after).await?;
            for (device, resident) in part.rows {
                if let Some(found) = gathered.devices.iter_mut().find(|it| it.id == device) {
                    found.residents.push(resident);
                }
            }
            after = part.rest;
            if after.is_none() {
                break;
            }
        }
        let mut after = None;
        while let Some(host) = &mut gathered.host {
            let part = self.copies(after).await?;
            host.copies.extend(part.rows);
            after = part.rest;
            if after.is_none() {
                break;
            }
        }
        Ok(gathered)
    }

    /// The table at one instant without its residents and copies: what there are few of.
    pub async fn outline(&self) -> Result<Snapshot, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Look(Look::Outline { reply })).await?;
        Ok(answer.await.map_err(|_| Error::OwnerGone)?)
    }

    /// The next few residents, from the beginning or behind a part. Requests are served between
    /// two parts.
    pub async fn residents(&self, after: Option<AfterResident>) -> Result<ResidentsPart, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Look(Look::Residents { after, reply })).await?;
        Ok(answer.await.map_err(|_| Error::OwnerGone)?)
    }

    /// The next few copies in the host's memory, likewise.
    pub async fn copies(&self, after: Option<ArtefactId>) -> Result<CopiesPart, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Look(Look::Copies { after, reply })).await?;
        Ok(answer.await.map_err(|_| Error::OwnerGone)?)
    }

    /// How a model stands and what was decided about it.
    pub async fn explain(&self, model: &ModelId) -> Result<Explanation, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Explain { model: model.clone(), reply }).await?;
        Ok(answer.await.map_err(|_| Error::OwnerGone)?)
    }

    /// What was loaded while the latest 10,000 requests came, beside what the offline optimum would
    /// have loaded. At most ten seconds old; calculated on a blocking thread, and shown by the
    /// gauges from then on.
    pub async fn regret(&self) -> Result<Regret, Failure> {
        // Who waited for its turn finds what the one before has found.
        let _turn = self.shared.regret_turn.acquire().await.map_err(|_| Error::OwnerGone)?;
        let known = self.shared.regret.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, regret)) = known
            && now().saturating_duration_since(at) < FRESH
        {
            return Ok(regret);
        }
        let (reply, answer) = oneshot::channel();
        self.send(Command::Window { reply }).await?;
        let window = answer.await.map_err(|_| Error::OwnerGone)?;
        let judged = tokio::task::spawn_blocking(move || window.judge()).await;
        let regret = judged.map_err(|error| Failure::from_error(ErrorKind::Internal, &error))?;
        metrics::regret(&regret);
        let fresh = Some((now(), regret.clone()));
        *self.shared.regret.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(regret)
    }

    /// Every decision from now on. A receiver that falls behind misses the oldest.
    pub fn events(&self) -> broadcast::Receiver<Decision> {
        self.shared.decisions.subscribe()
    }

    /// Refuses all who wait, gives up loads, unloads residents as their leases end, and
    /// returns when every device is empty and no copy is left. The caller bounds the wait.
    pub async fn shutdown(&self) {
        let (reply, answer) = oneshot::channel();
        if self.send(Command::Shutdown { reply }).await.is_ok() {
            // A gone owner has nothing left to unload.
            let _ = answer.await;
        }
    }

    async fn operate(&self, event: impl FnOnce(WaiterId) -> Event) -> Result<Report, Failure> {
        let mut guard = self.guard();
        let waiter = guard.waiter;
        let (reply, answer) = oneshot::channel();
        self.send(Command::Operate { waiter, event: event(waiter), reply }).await?;
        let result = answer.await.map_err(|_| Error::OwnerGone)?;
        guard.armed = false;
        result
    }

    async fn tell(&self, event: Event) -> Result<(), Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Tell { event, reply }).await?;
        Ok(answer.await.map_err(|_| Error::OwnerGone)?)
    }

    async fn send(&self, command: Command<M>) -> Result<(), Failure> {
        Ok(self.shared.commands.send(command).await.map_err(|_| Error::OwnerGone)?)
    }

    fn guard(&self) -> CancelOnDrop {
        let waiter = WaiterId(self.shared.next_waiter.fetch_add(1, Ordering::Relaxed));
        CancelOnDrop { waiter, dropped: self.shared.dropped.clone(), armed: true }
    }

    /// When an operator's call gives up.
    fn patience(&self) -> Instant {
        now() + self.shared.config.load_timeout
    }
}

/// The runtime's clock, which tests may pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
