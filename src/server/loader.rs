//! Brings models in and out: the world's side of residency, over store, models, engine and serving.
//!
//! Decides nothing: residency says when each of the four steps runs. Files in reading
//! order: this one (the steps), `scope` (what operators say of endpoints), `resolve`, `versions` and `refused` (which version), `plan` and `view` (what can be known of a model before it is
//! fetched), `load` (from files to a model), `asked` (what `serving.properties` says of a handler), `arriving` (the same while the
//! files are coming), `bases` and `beside` (what adapters build on, and how they come there), `aside` (on which threads), `purpose` (what a loaded model is for), `placed`
//! (what loaded models have touched), `facts` (what they serve and how much room they have), `sharing` (what they hold together), `local` (folders that
//! someone else put here), `apart` (files that engines read), `external` (engines of the operator's, and adapters in them), `contained` (models in containers of the operator's), `engines` (how both stand), `called` (their names for our models), `stages` (how long each step took),
//! `payer` (on whose behalf fetches run), `known` and `large` (what is remembered, and how much), `host` (copies that models leave in the host's memory).

mod apart;
mod arriving;
mod aside;
mod asked;
mod bases;
mod beside;
mod called;
mod contained;
mod engines;
mod external;
mod facts;
mod host;
mod known;
mod large;
mod load;
mod local;
mod marks;
mod payer;
mod pickles;
mod placed;
mod plan;
mod purpose;
mod recent;
mod refused;
mod resolve;
mod scope;
mod sharing;
mod stages;
mod versions;
mod view;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use roundhouse_engine::{EngineConfig, Lane};
use roundhouse_models::{DeviceMemory, LoadSettings};
use roundhouse_residency::{
    Base, Fetched, HostCopy, LoadSource, Loaded, Loader, Reporter, Resolution, Standing,
};
use roundhouse_serving::ServedModel;
use roundhouse_store::{CachedArtefact, Catalog, DiskCache, Payer};
use roundhouse_tenancy::{Accounts, Current, Policy};
use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, EndpointName, ErrorKind, Failure, Footprint, ModelId, RetryHint,
    SharedPart,
};
use roundhouse_workers::WarmState;
use tracing::{info, warn};

use crate::config::ShareTensors;
pub(crate) use aside::Aside;
pub(crate) use bases::{Bases, beside};
use external::Engines;
pub(crate) use facts::Facts;
use host::HostCopies;
use known::Known;
use large::LargePlans;
use load::Onto;
pub(crate) use local::{Announced, LocalModels, model_folder};
use placed::PlacedModels;
pub(crate) use placed::Touched;
pub(crate) use plan::{
    HandlerPlan, Handlers, Plan, plan_files, plan_folder, plan_stored, settings_file,
};
pub(crate) use recent::RecentLoads;
pub(crate) use resolve::{damage, doubt, lacking};
pub(crate) use scope::{Scope, Source};
use sharing::Shares;
use stages::Stage;
pub(crate) use stages::Stages;
use versions::Versions;
pub(crate) use versions::{Wish, overtaken};

/// A version that was loading this many times when the process died is not tried again unasked.
const DEATHS_TO_QUARANTINE: u32 = 2;

/// How many versions' listings and plans are remembered.
const VERSIONS_REMEMBERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// How long a store may take to name the version of a model that is whole on disk. A dead
/// connection is given up after retries that take longer than any request waits.
const STORE_PATIENCE: Duration = Duration::from_secs(10);

/// See the module's text.
pub(crate) struct ModelLoader {
    /// Replaced when the settings change.
    sources: Current<BTreeMap<EndpointName, Source>>,
    lanes: BTreeMap<DeviceId, Arc<Lane>>,
    /// Those that the settings say something of.
    memories: BTreeMap<DeviceId, DeviceMemory>,
    settings: LoadSettings,
    engine: EngineConfig,
    handlers: Handlers,
    shares: Arc<Shares>,
    copies: HostCopies,
    engines: Engines,
    known: Mutex<LruCache<ArtefactId, Known>>,
    /// Those of them whose plans are large.
    large_plans: Mutex<LargePlans>,
    /// The version that the store named last, by model.
    current: Mutex<LruCache<ModelId, ArtefactId>>,
    /// Loads with a marker on disk; how many there are of a version, on as many devices.
    loading: Mutex<BTreeMap<ArtefactId, usize>>,
    versions: Versions,
    placed: PlacedModels,
    recent: RecentLoads,
    /// Replaced when the settings change.
    bases: Current<Bases>,
    policy: Arc<Current<Policy>>,
    /// Told what fetches bring.
    accounts: Option<Arc<Accounts>>,
    /// Where chats are rendered: made ready when a model that chats is loaded.
    templates: Option<crate::templates::Templates>,
}

impl ModelLoader {
    /// A loader for the sources of all endpoints and the lanes of all devices.
    pub(crate) fn new(
        sources: BTreeMap<EndpointName, Source>,
        lanes: BTreeMap<DeviceId, Arc<Lane>>,
        settings: LoadSettings,
        engine: EngineConfig,
        handlers: Handlers,
    ) -> Self {
        let known = Mutex::new(LruCache::new(VERSIONS_REMEMBERED));
        let current = Mutex::new(LruCache::new(VERSIONS_REMEMBERED));
        let (loading, versions) = (Mutex::default(), Versions::default());
        let placed = PlacedModels::default();
        let shares = Arc::new(Shares::new(ShareTensors::default(), lanes.keys().copied()));
        Self {
            sources: Current::new(sources),
            lanes,
            memories: BTreeMap::new(),
            settings,
            engine,
            handlers,
            shares,
            copies: HostCopies::default(),
            engines: Engines::default(),
            known,
            large_plans: Mutex::default(),
            current,
            loading,
            versions,
            placed,
            recent: RecentLoads::default(),
            bases: Current::default(),
            policy: Arc::default(),
            accounts: None,
            templates: None,
        }
    }

    /// How much of its memory on a device a loaded model of ours has touched; `None` for any
    /// other.
    pub(crate) fn touched(&self, id: &ArtefactId, device: DeviceId) -> Option<Touched> {
        self.placed.touched(id, device)
    }

    /// The same loader, with what is known of devices' memories.
    pub(crate) fn with_memories(mut self, memories: impl Iterator<Item = DeviceMemory>) -> Self {
        self.memories = memories.map(|memory| (memory.id(), memory)).collect();
        self
    }

    /// The same loader, sharing parameters by this rule.
    pub(crate) fn sharing(mut self, rule: ShareTensors) -> Self {
        self.shares = Arc::new(Shares::new(rule, self.lanes.keys().copied()));
        self
    }

    /// Puts other sources, rules and bases in the place of those so far. What is under way goes on
    /// with what it found.
    pub(crate) fn reconfigure(&self, scope: Scope) {
        let Scope { sources, rules, bases, handlers, engines, cache } = scope;
        if let Some(cache) = cache {
            self.engines.containers.name_after(&cache);
        }
        self.engines.set(engines);
        self.handlers.endpoints.set(handlers);
        self.versions.set_rules(rules);
        self.bases.set(bases);
        self.sources.set(sources);
        self.forgive_all();
    }

    fn source(&self, endpoint: &EndpointName) -> Result<Source, Failure> {
        self.sources.get().get(endpoint).cloned().ok_or_else(|| {
            Failure::new(ErrorKind::EndpointNotFound, format!("no endpoint is called '{endpoint}'"))
        })
    }

    fn recall(&self, id: &ArtefactId) -> Known {
        locked(&self.known).get(id).cloned().unwrap_or_default()
    }

    fn remember(&self, id: &ArtefactId, known: Known) {
        let plan_bytes = known.plan.as_ref().map_or(Bytes::ZERO, Plan::remembered_bytes);
        let mut all = locked(&self.known);
        let mut large = locked(&self.large_plans);
        if let Some((forgotten, _)) = all.push(id.clone(), known).filter(|(old, _)| old != id) {
            large.remove(&forgotten);
        }
        // A plan that is dropped is made again of the files.
        for too_much in large.put(id, plan_bytes) {
            if let Some(known) = all.peek_mut(&too_much) {
                known.plan = None;
            }
        }
    }

    /// Takes back the markers of loads that are cut off by an orderly end of the process:
    /// it is not their models that ended it.
    pub(crate) async fn forgive_loads(&self) {
        let cut_off = std::mem::take(&mut *locked(&self.loading));
        for id in cut_off.into_keys() {
            if let Ok(Source::Store(_, cache)) = self.source(&id.model.endpoint) {
                unmark(&cache, &id).await;
            }
        }
    }

    /// The plan of a version whose files lie in `dir`, read once.
    async fn plan_of(&self, id: &ArtefactId, dir: &Path) -> Result<Plan, Failure> {
        if let Some(plan) = self.external(&id.model).or_else(|| self.recall(id).plan) {
            return Ok(plan);
        }
        let (dir, settings, handlers) = (dir.to_owned(), self.settings, self.handlers.clone());
        let planned = id.clone();
        let plan = blocking(move || handlers.plan_local(&planned, &dir, &settings))
            .await
            .map_err(|failure| named(id, &failure))?;
        let mut known = self.recall(id);
        known.plan = Some(plan.clone());
        self.remember(id, known);
        Ok(plan)
    }

    /// The parts of a version's weights that others may hold as well, by what its fetch found.
    pub(super) async fn known_shared(
        &self,
        id: &ArtefactId,
        plan: &Plan,
        cached: CachedArtefact,
    ) -> Result<Vec<SharedPart>, Failure> {
        let (shares, id, plan) = (Arc::clone(&self.shares), id.clone(), plan.clone());
        blocking(move || Ok(shares.known(&id, &plan, &cached))).await
    }

    /// The stages before the load. They are told once: the next load of the version may
    /// find it on disk.
    fn take_stages(&self, id: &ArtefactId) -> Stages {
        let mut known = locked(&self.known);
        known.get_mut(id).map(|known| std::mem::take(&mut known.stages)).unwrap_or_default()
    }

    /// A version's files, whole on disk; fetched where they are not, or not any more.
    async fn bring(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        id: &ArtefactId,
    ) -> Result<CachedArtefact, Failure> {
        self.bring_for(self.payer(id), catalog, cache, id).await
    }

    async fn bring_for(
        &self,
        payer: Payer,
        catalog: &Catalog,
        cache: &DiskCache,
        id: &ArtefactId,
    ) -> Result<CachedArtefact, Failure> {
        let mut known = self.recall(id);
        if let Some(cached) = cache.get(id) {
            if std::mem::take(&mut known.failed_unverified) {
                self.remember(id, known);
            }
            return Ok(cached);
        }
        let Some(artefact) = known.artefact else {
            let message = format!("{id} is no longer on disk and its listing is not known");
            let failure = Failure::new(ErrorKind::StoreUnavailable, message);
            return Err(failure.with_retry(RetryHint::Later));
        };
        let began = Instant::now();
        let cached = cache.fetch_for(payer, catalog, &artefact, &known.progress).await?;
        let mut known = self.recall(id);
        known.stages.set(Stage::Fetch, began.elapsed());
        known.failed_unverified = false;
        self.remember(id, known);
        Ok(cached)
    }
}

impl ModelLoader {
    /// See [`Loader::resolve`].
    async fn resolved(&self, model: &ModelId, refresh: bool) -> Result<Resolution, Failure> {
        match self.source(&model.endpoint)? {
            Source::Store(catalog, cache) => {
                self.resolve_in_store(&catalog, &cache, model, refresh).await
            }
            Source::Local(models) => {
                let (id, plan) = self.local(&models, model).await?;
                locked(&self.current).put(model.clone(), id.clone());
                let terms = self.terms(&id, Some(&plan)).await?;
                Ok(Resolution {
                    fetch_bytes: Bytes::ZERO,
                    footprint: terms.footprint,
                    shared: Vec::new(),
                    kind: Some(plan.kind()),
                    off_cards: plan.is_off_cards(),
                    base: terms.base,
                    streams: false,
                    quarantined: false,
                    standing: Standing::default(),
                    version: id.version,
                })
            }
        }
    }

    /// See [`Loader::fetch`].
    async fn fetched(&self, id: &ArtefactId, payer: &str) -> Result<Fetched, Failure> {
        self.charge_to(id, payer);
        let (plan, shared, once) = match self.source(&id.model.endpoint)? {
            Source::Store(catalog, cache) => {
                let cached = self.bring(&catalog, &cache, id).await?;
                let plan = self.plan_of(id, cached.dir()).await?;
                let once = self.bring_packages(id, &plan, cached.dir()).await?;
                let shared = self.known_shared(id, &plan, cached).await?;
                (plan, shared, once)
            }
            // Somebody else's folder may change, so nothing is remembered of its content.
            Source::Local(models) => {
                let (_, plan) = self.local(&models, &id.model).await?;
                let folder = local::announced(&models, &id.model)?.folder;
                let folder = blocking(move || Ok(local::model_folder(&folder))).await?;
                let once = self.bring_packages(id, &plan, &folder).await?;
                (plan, Vec::new(), once)
            }
        };
        let terms = self.terms(id, Some(&plan)).await?;
        let footprint = terms.footprint.map_or_else(Footprint::default, |(footprint, _)| footprint);
        Ok(Fetched {
            footprint,
            shared,
            kind: plan.kind(),
            off_cards: plan.is_off_cards(),
            base: terms.base,
            once,
        })
    }
}

impl Loader for ModelLoader {
    type Model = ServedModel;

    async fn resolve(&self, model: &ModelId, refresh: bool) -> Result<Resolution, Failure> {
        let running = self.recent.begin(model, Stage::List);
        running.ended(self.resolved(model, refresh).await)
    }

    async fn fetch(&self, id: &ArtefactId, payer: &str) -> Result<Fetched, Failure> {
        let running = self.recent.begin(&id.model, Stage::Fetch);
        let fetched = self.fetched(id, payer).await;
        if let Err(failure) = &fetched {
            self.judge_fetch(id, failure);
        }
        running.ended(fetched)
    }

    fn fetched_bytes(&self, id: &ArtefactId) -> Bytes {
        self.recall(id).progress.snapshot().fetched
    }

    async fn load(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        source: LoadSource,
        base: Option<Base<Self::Model>>,
        reporter: Reporter,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let running = self.recent.begin(&id.model, Stage::Read);
        let loaded = self.loaded(id, source, Onto { device, base, reporter }).await;
        self.judge(id, loaded.as_ref().err());
        running.ended(loaded)
    }

    async fn unload(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        model: Arc<ServedModel>,
        demote: bool,
    ) -> Option<HostCopy> {
        if let ServedModel::External(driven) = &*model
            && driven.base().is_none()
        {
            return self.unload_engine(id, device, driven.runs_in(), demote).await;
        }
        let resident = self.placed.remove(id, device);
        model.remove().await;
        self.let_go(id, device);
        self.remember_peak(id, &model).await;
        drop(model);
        let copy = self.release(id, device, resident, demote).await;
        info!(model = %id.model, version = %id.version, %device, copied = copy.is_some(), "unloaded");
        copy
    }

    async fn discard(&self, id: &ArtefactId) {
        self.end_sleep(id).await;
        self.forget_copy(id).await;
    }
}

impl ModelLoader {
    /// What idle interpreters take that are kept for handlers; absent where none are.
    pub(crate) fn warm(&self) -> Option<WarmState> {
        self.handlers.workers.as_ref().and_then(|workers| workers.warm())
    }

    /// Writes down the most that a handler was seen to use: its next load is promised that.
    async fn remember_peak(&self, id: &ArtefactId, model: &ServedModel) {
        let (ServedModel::Handler(group), Some(workers)) = (model, &self.handlers.workers) else {
            return;
        };
        let (workers, version, peak) =
            (workers.clone(), id.version.as_str().to_owned(), group.peak());
        let written = blocking(move || {
            workers.remember(&version, peak);
            Ok(())
        });
        if let Err(failure) = written.await {
            warn!(%failure, "a handler's memory peak was not written down");
        }
    }

    /// The version and plan of a model in someone else's folder.
    async fn local(
        &self,
        models: &LocalModels,
        model: &ModelId,
    ) -> Result<(ArtefactId, Plan), Failure> {
        let folder = local::announced(models, model)?.folder;
        let (version, folder) = blocking(move || {
            let folder = local::model_folder(&folder);
            Ok((local::version(&folder)?, folder))
        })
        .await?;
        let id = ArtefactId { model: model.clone(), version };
        let plan = self.plan_of(&id, &folder).await?;
        Ok((id, plan))
    }
}

/// What a panicking holder left behind is whole: entries are replaced at once.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a load's marker off the disk.
async fn unmark(cache: &DiskCache, id: &ArtefactId) {
    if let Err(error) = cache.end_load(id).await {
        warn!(%error, model = %id, "the marker of an ended load could not be removed");
    }
}

/// The same failure, saying whose it is.
fn named(id: &ArtefactId, failure: &Failure) -> Failure {
    Failure::new(failure.kind(), format!("{id}: {failure}")).with_retry(failure.retry())
}

/// Runs `work` on a blocking thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(Failure::new(ErrorKind::Internal, format!("a blocking task failed: {error}")))
    })
}

#[cfg(test)]
mod tests;
