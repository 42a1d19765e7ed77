//! Targets that engines are started for: their start, their sleep, and adapters in them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use roundhouse_containers::driven::{Driven, Engine, EngineSpec, Fill, News, NewsFn, Seat, Start};
use roundhouse_models::AdapterPlan;
use roundhouse_residency::{Among, HostCopy, Loaded, PlaceWanted, Reporter, Residency};
use roundhouse_serving::ServedModel;
use roundhouse_store::CachedArtefact;
use roundhouse_tenancy::Current;
use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, EndpointName, ErrorKind, Failure, Footprint, ModelId, RetryHint,
    count,
};
use tokio::time::timeout;
use tracing::{info, warn};

use super::called::{adapter_name, canonical, model_path};
use super::contained::Containers;
use super::engines::Starting;
use super::load::{Files, least_ttl};
use super::plan::Plan;
use super::stages::{Stage, Stages};
use super::{ModelLoader, blocking, locked, named};
use crate::config::{EngineKind, EngineRule, engine_of};

/// How long an adapter waits for a place in its engine: for the requests of the one that leaves.
const SEAT_PATIENCE: Duration = Duration::from_secs(60);
/// Adapters that are asked to leave for one.
const SEAT_TRIES: usize = 4;

/// What is known of engines. Owned by the loader.
pub(crate) struct Engines {
    /// Replaced when the settings change.
    rules: Current<BTreeMap<EndpointName, Vec<EngineRule>>>,
    /// Our own executable, which keeps their processes.
    exe: PathBuf,
    /// Those that are being started.
    pub(super) starting: Mutex<BTreeSet<(ArtefactId, DeviceId)>>,
    pub(super) awake: Mutex<BTreeMap<(ArtefactId, DeviceId), Awake>>,
    pub(super) asleep: Mutex<BTreeMap<ArtefactId, Sleeper>>,
    /// Files of adapters that are in engines: these may read them again.
    held: Mutex<BTreeMap<(ArtefactId, DeviceId), CachedArtefact>>,
    /// Asked to send adapters away.
    residency: OnceLock<Residency<ServedModel>>,
    /// Those that hold many targets.
    pub(super) containers: Containers,
}

/// Whom an engine's news is for: each load has a reporter of its own, and an engine that slept has
/// had several.
pub(super) type Teller = Arc<Mutex<Reporter>>;

/// An engine that serves; whoever has loaded it holds it.
pub(super) struct Awake {
    pub(super) engine: Weak<Engine>,
    teller: Teller,
}

/// An engine that sleeps.
pub(super) struct Sleeper {
    pub(super) engine: Arc<Engine>,
    teller: Teller,
    pub(super) device: DeviceId,
}

impl Default for Engines {
    fn default() -> Self {
        Self::new(PathBuf::new(), Path::new(""))
    }
}

impl Engines {
    /// No engines yet; `exe` is our own executable, `cache` the folder that is ours alone.
    pub(crate) fn new(exe: PathBuf, cache: &Path) -> Self {
        Self {
            rules: Current::default(),
            exe,
            starting: Mutex::default(),
            awake: Mutex::default(),
            asleep: Mutex::default(),
            held: Mutex::default(),
            residency: OnceLock::new(),
            containers: Containers::new(cache),
        }
    }

    /// Our own executable.
    pub(super) fn exe(&self) -> &Path {
        &self.exe
    }

    /// Asked to send models away; absent before it is known.
    pub(super) fn residency(&self) -> Option<&Residency<ServedModel>> {
        self.residency.get()
    }

    /// Puts other rules in the place of those so far. Engines that run go on by theirs.
    pub(super) fn set(&self, rules: BTreeMap<EndpointName, Vec<EngineRule>>) {
        self.containers.keep(&rules, &self.exe);
        self.rules.set(rules);
    }

    /// What starts the engine of a target that has one of its own.
    pub(super) fn started(&self, model: &ModelId) -> Option<Arc<EngineSpec>> {
        let rules = self.rules.get();
        match &engine_of(rules.get(&model.endpoint)?, &model.target)?.kind {
            EngineKind::Started(spec) => Some(Arc::clone(spec)),
            EngineKind::Contained(_) => None,
        }
    }

    /// How long what a rule starts or fills may be unused, where the rule says so.
    pub(super) fn idle_ttl(&self, model: &ModelId) -> Option<Duration> {
        self.rule(model)?.idle_ttl
    }

    pub(super) fn rule(&self, model: &ModelId) -> Option<EngineRule> {
        engine_of(self.rules.get().get(&model.endpoint)?, &model.target).cloned()
    }
}

impl ModelLoader {
    /// The same loader, which starts engines by these rules; see [`Engines::new`]. Within a runtime.
    pub(crate) fn with_engines(
        mut self,
        (exe, cache): (PathBuf, &Path),
        rules: BTreeMap<EndpointName, Vec<EngineRule>>,
    ) -> Self {
        self.engines = Engines::new(exe, cache);
        self.engines.set(rules);
        self
    }

    /// Whom it asks to send adapters away when their engine has no place for another. Once.
    pub(crate) fn asks(&self, residency: Residency<ServedModel>) {
        let _ = self.engines.residency.set(residency);
    }

    /// What a load of a target means that an engine is started for. By what the settings say now:
    /// it is not remembered.
    pub(super) fn external(&self, model: &ModelId) -> Option<Plan> {
        self.engines.rule(model).map(|rule| match rule.kind {
            EngineKind::Started(spec) => Plan::External(spec),
            EngineKind::Contained(rule) => Plan::Contained(rule),
        })
    }

    /// Starts the engine. From then on it tells residency what it takes, and of its death.
    pub(super) async fn load_external(
        &self,
        id: &ArtefactId,
        files: Files,
        (device, reporter): (DeviceId, Reporter),
        spec: Arc<EngineSpec>,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let rule = self.engines.rule(&id.model).ok_or_else(|| unnamed(id))?;
        let target = id.model.target.as_str();
        if target.starts_with('-') {
            let what = "no engine is started for a target whose name begins with a '-': it would be \
                        taken for an option";
            return Err(named(id, &Failure::new(ErrorKind::ModelInvalid, what)));
        }
        if target.contains('{') {
            let what = "no engine is started for a target whose name has a '{': what follows would be \
                        taken for a placeholder";
            return Err(named(id, &Failure::new(ErrorKind::ModelInvalid, what)));
        }
        let mut stages = self.take_stages(id);
        let began = Instant::now();
        let Files { dir, held } = files;
        self.refuse_pickles(id, &id.model, &dir).await?;
        let model = blocking(move || model_path(&dir)).await.map_err(|why| named(id, &why))?;
        let teller = Arc::new(Mutex::new(reporter));
        let fill = Fill { model, target: target.to_owned(), device: ordinal(device) };
        let start = Start {
            spec,
            rule: format!("{}:{}", id.model.endpoint, rule.target).into(),
            exe: self.engines.exe.clone(),
            inherited: rule.inherited.clone(),
            fill,
            news: news(&teller, device, held),
        };
        let _starting = Starting::mark(&self.engines, id, device);
        self.recent.reached(&id.model, Stage::Warm);
        let engine = Engine::start(start).await.map_err(|failure| named(id, &failure))?;
        stages.set(Stage::Warm, began.elapsed());
        Ok(self.stands(id, device, Arc::new(engine), teller, stages).await)
    }

    /// An engine that runs, as a resident.
    async fn stands(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        engine: Arc<Engine>,
        teller: Teller,
        stages: Stages,
    ) -> Loaded<ServedModel> {
        let measured = match device.is_host() {
            true => measured(&engine).await,
            false => None,
        };
        let memory = measured.unwrap_or(engine.spec().memory);
        stages.report(id, memory, &self.recent);
        let awake = Awake { engine: Arc::downgrade(&engine), teller };
        locked(&self.engines.awake).insert((id.clone(), device), awake);
        let model = ServedModel::External(Driven::engine(engine));
        let idle_ttl = self.engines.idle_ttl(&id.model);
        let (footprint, shared) = (taken(memory), Vec::new());
        Loaded { model, footprint, shared, once: Duration::ZERO, idle_ttl }
    }

    /// Takes an engine off its device: to sleep where it can and is to leave a copy, else for good.
    pub(super) async fn unload_engine(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        engine: &Arc<Engine>,
        demote: bool,
    ) -> Option<HostCopy> {
        let awake = locked(&self.engines.awake).remove(&(id.clone(), device));
        let teller = awake.map(|it| it.teller);
        let level = engine.spec().sleep.filter(|_| demote && !device.is_host());
        let is_free = !locked(&self.engines.asleep).contains_key(id);
        if let (Some(level), Some(teller), true) = (level, teller, is_free) {
            match engine.sleep(level).await {
                Ok(()) => {
                    let memory = measured(engine).await.unwrap_or(engine.spec().memory);
                    let engine = Arc::clone(engine);
                    let sleeper = Sleeper { engine, teller, device };
                    locked(&self.engines.asleep).insert(id.clone(), sleeper);
                    info!(model = %id.model, version = %id.version, %device, "engine sleeps");
                    let footprint = Footprint { host: memory, ..Footprint::default() };
                    return Some(HostCopy { footprint, shared: Vec::new() });
                }
                Err(failure) => {
                    warn!(model = %id.model, %failure, "an engine does not sleep, it is stopped");
                }
            }
        }
        engine.stop().await;
        info!(model = %id.model, version = %id.version, %device, "engine stopped");
        None
    }

    /// Whether an engine sleeps for a version.
    pub(super) fn sleeps(&self, id: &ArtefactId) -> bool {
        locked(&self.engines.asleep).contains_key(id)
    }

    /// Wakes the engine that sleeps for a version; `None` where none does, or not on this device, or
    /// it cannot be woken, or the settings say something else of it by now: then one is to be started.
    pub(super) async fn wake(
        &self,
        id: &ArtefactId,
        device: DeviceId,
        reporter: &Reporter,
    ) -> Option<Loaded<ServedModel>> {
        let is_other = |engine: &Engine| {
            let now = self.external(&id.model);
            !matches!(now, Some(Plan::External(spec)) if *spec == *engine.spec())
        };
        if locked(&self.engines.asleep).get(id).is_some_and(|it| is_other(&it.engine)) {
            self.end_sleep(id).await;
        }
        let sleeper = locked(&self.engines.asleep).remove(id)?;
        let Sleeper { engine, teller, device: own } = sleeper;
        let level = engine.spec().sleep.filter(|_| own == device);
        let mut stages = Stages::default();
        let began = Instant::now();
        *locked(&teller) = reporter.clone();
        self.recent.reached(&id.model, Stage::Copy);
        let woken = match level {
            Some(level) => engine.wake(level).await,
            None => Err(Failure::new(ErrorKind::NotReady, format!("it sleeps on {own}"))),
        };
        if let Err(failure) = woken {
            warn!(model = %id.model, %failure, "an engine is not woken, it is started again");
            engine.stop().await;
            return None;
        }
        stages.set(Stage::Copy, began.elapsed());
        info!(model = %id.model, version = %id.version, %device, "engine woken");
        Some(self.stands(id, device, engine, teller, stages).await)
    }

    /// Ends the engine that sleeps for a version, where one does.
    pub(super) async fn end_sleep(&self, id: &ArtefactId) {
        let sleeper = locked(&self.engines.asleep).remove(id);
        if let Some(Sleeper { engine, .. }) = sleeper {
            engine.stop().await;
            info!(model = %id.model, version = %id.version, "sleeping engine stopped");
        }
    }

    /// Loads an adapter into the engine of its base.
    pub(super) async fn load_into_engine(
        &self,
        id: &ArtefactId,
        plan: &AdapterPlan,
        files: Files,
        device: DeviceId,
        (engine, base): (Arc<Engine>, ModelId),
    ) -> Result<Loaded<ServedModel>, Failure> {
        let began = Instant::now();
        let Files { dir, held } = files;
        self.refuse_pickles(id, &base, &dir).await?;
        let folder = blocking(move || canonical(&dir)).await.map_err(|why| named(id, &why))?;
        let seat = self.seat(&engine, id, (&base, device)).await;
        let seat = seat.map_err(|failure| named(id, &failure))?;
        let name = adapter_name(id);
        let loaded = Driven::adapter(engine, base.clone(), seat, name, &folder).await;
        let model = ServedModel::External(loaded.map_err(|failure| named(id, &failure))?);
        let mut stages = self.take_stages(id);
        stages.set(Stage::Read, began.elapsed());
        let footprint = plan.footprint();
        stages.report(id, footprint.total(), &self.recent);
        if let Err(failure) = self.stand(id, device, base, None) {
            model.remove().await;
            return Err(failure);
        }
        if let Some(held) = held {
            locked(&self.engines.held).insert((id.clone(), device), held);
        }
        let idle_ttl = least_ttl(self.settings.idle_ttl, plan.idle_ttl);
        Ok(Loaded { model, footprint, shared: Vec::new(), once: Duration::ZERO, idle_ttl })
    }

    /// An adapter is not in its engine any more.
    pub(super) fn let_go(&self, id: &ArtefactId, device: DeviceId) {
        locked(&self.engines.held).remove(&(id.clone(), device));
    }

    /// A place in an engine. Where it has none, an adapter in it leaves, as residency's policy says.
    async fn seat(
        &self,
        engine: &Arc<Engine>,
        id: &ArtefactId,
        (base, device): (&ModelId, DeviceId),
    ) -> Result<Seat, Failure> {
        if !engine.takes_adapters() {
            let what = format!(
                "its base {base} is served by an engine that takes no adapters: `adapters` and `slots` \
                 of its [[endpoint.engine]] say that it does"
            );
            return Err(Failure::new(ErrorKind::ModelInvalid, what));
        }
        for _ in 0..SEAT_TRIES {
            if let Some(seat) = engine.seat() {
                return Ok(seat);
            }
            let Some(residency) = self.engines.residency.get() else { break };
            // The same base may have an engine on each device.
            let among = Among::OnBase(base.clone(), device);
            let place = PlaceWanted { artefact: id.clone(), among, only_idle: false };
            match timeout(SEAT_PATIENCE, residency.give_place(place)).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => {
                    engine.reclaim().await;
                    break;
                }
                Ok(Err(failure)) => return Err(failure),
                Err(_) => break,
            }
        }
        engine.seat().ok_or_else(|| {
            let slots = engine.spec().adapters.map_or(0, |adapters| adapters.slots.get());
            let what =
                format!("{base} has {} for adapters, and none is free", count(slots, "place"));
            Failure::new(ErrorKind::NotReady, what).with_retry(RetryHint::Later)
        })
    }
}

/// Of a target that the settings named an engine for until now.
pub(super) fn unnamed(id: &ArtefactId) -> Failure {
    let what = format!("{id}: the settings name no engine for it any more");
    Failure::new(ErrorKind::ModelInvalid, what)
}

/// Passes an engine's news on to whoever has loaded it last. Keeps its files on disk meanwhile.
pub(super) fn news(teller: &Teller, device: DeviceId, held: Option<CachedArtefact>) -> NewsFn {
    let teller = Arc::clone(teller);
    Arc::new(move |news| {
        let _ = &held;
        let reporter = locked(&teller).clone();
        match news {
            News::Measured(bytes) if device.is_host() => reporter.measured(taken(bytes)),
            News::Measured(_) => {}
            // Told to those who come during a pause after repeated deaths: they have not run.
            News::Died(failure) => reporter.died(Failure::new(
                ErrorKind::NotReady,
                format!("{failure}; it is started again after a pause"),
            )),
        }
    })
}

/// Memory of an engine, as a footprint.
pub(super) fn taken(memory: Bytes) -> Footprint {
    Footprint { weights: memory, ..Footprint::default() }
}

/// What an engine is promised before it is started.
pub(super) fn promised(spec: &EngineSpec) -> Footprint {
    taken(spec.memory)
}

async fn measured(engine: &Arc<Engine>) -> Option<Bytes> {
    let measured = Arc::clone(engine);
    let memory = blocking(move || Ok(measured.measure())).await.ok()?;
    memory.filter(|memory| *memory > Bytes::ZERO)
}

pub(super) fn ordinal(device: DeviceId) -> usize {
    match device {
        DeviceId::Cpu => 0,
        DeviceId::Cuda(ordinal) | DeviceId::Simulated(ordinal) => ordinal.into(),
    }
}
