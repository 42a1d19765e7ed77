//! A loader that does what a test tells it, and names for tests.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, ErrorKind, Failure, Footprint, Grade, KvOrder, KvReport, ModelId,
    ModelKind, Version,
};
use tokio::sync::oneshot;

use crate::loader::{Base, Fetched, HostCopy, LoadSource, Loaded, Loader, Resolution, Standing};
use crate::reporter::{Reporter, Slot};
use crate::table::Key;

mod busy;

pub use busy::{BusyTable, Granted, Request};

/// The model `name` of the endpoint `test`.
pub fn model(name: &str) -> ModelId {
    let endpoint = "test".parse().expect("a legal endpoint name");
    ModelId { endpoint, target: name.parse().expect("a legal target name") }
}

/// A version that has this number.
pub fn version(number: u64) -> Version {
    Version::from_digest(&format!("{number:016x}"))
}

/// A version of a model.
pub fn artefact(name: &str, number: u64) -> ArtefactId {
    ArtefactId { model: model(name), version: version(number) }
}

/// What the scripted loader knows of a model.
#[derive(Debug, Clone)]
pub struct Script {
    /// The version in the store.
    pub version: u64,
    /// What it takes on a device.
    pub bytes: u64,
    /// How long a fetch takes; zero means whole on disk.
    pub fetch: Duration,
    /// Whether a load may begin while it is fetched; it ends this long after the fetch.
    pub streams: bool,
    /// How long a load takes.
    pub load: Duration,
    /// How long an unload takes.
    pub unload: Duration,
    /// What resolving fails with.
    pub resolve_fails: Option<Failure>,
    /// What loading fails with.
    pub load_fails: Option<Failure>,
    /// Loading panics.
    pub load_panics: bool,
    /// Unloading panics.
    pub unload_panics: bool,
    /// Discarding panics.
    pub discard_panics: bool,
    /// Two deaths while loading.
    pub quarantined: bool,
    /// Why it is this version.
    pub standing: Standing,
    /// What it is.
    pub kind: ModelKind,
    /// The model that it adapts.
    pub base: Option<&'static str>,
    /// A death that is reported when the load has ended, just before it returns.
    pub dies: Option<Failure>,
    /// What it takes from right after the load has returned, which is reported then.
    pub grows: Option<u64>,
}

impl Script {
    /// On disk, of this size, 50 ms to load, 5 ms to unload.
    pub fn of(bytes: u64) -> Self {
        Self {
            version: 1,
            bytes,
            fetch: Duration::ZERO,
            streams: false,
            load: Duration::from_millis(50),
            unload: Duration::from_millis(5),
            resolve_fails: None,
            load_fails: None,
            load_panics: false,
            unload_panics: false,
            discard_panics: false,
            quarantined: false,
            standing: Standing::default(),
            kind: ModelKind::Generative,
            base: None,
            dies: None,
            grows: None,
        }
    }

    /// As [`Script::of`], of an adapter of this model.
    pub fn on(base: &'static str, bytes: u64) -> Self {
        Self { base: Some(base), ..Self::of(bytes) }
    }
}

/// How often a loader was called.
#[derive(Debug, Default)]
pub struct Calls {
    /// Versions asked for.
    pub resolves: AtomicUsize,
    /// Fetches begun.
    pub fetches: AtomicUsize,
    /// Loads begun.
    pub loads: AtomicUsize,
    /// Unloads done.
    pub unloads: AtomicUsize,
    /// Loads begun from copies in the host's memory.
    pub promotions: AtomicUsize,
    /// Discards begun.
    pub discards: AtomicUsize,
}

/// A loader that plays scripts. Its models are their own names.
#[derive(Debug, Default)]
pub struct ScriptedLoader {
    scripts: Mutex<HashMap<ModelId, Script>>,
    reporters: Mutex<HashMap<ModelId, Reporter>>,
    /// The ends of fetches under way.
    arriving: Mutex<HashMap<ModelId, oneshot::Receiver<()>>>,
    /// How often it was called.
    pub calls: Calls,
}

impl ScriptedLoader {
    /// A loader that knows these models.
    pub fn new(models: impl IntoIterator<Item = (&'static str, Script)>) -> Arc<Self> {
        let loader = Self::default();
        loader.lock().extend(models.into_iter().map(|(name, script)| (model(name), script)));
        Arc::new(loader)
    }

    /// Changes a model's script from now on.
    ///
    /// # Panics
    /// Where the model has none.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Script)) {
        change(self.lock().get_mut(&model(name)).expect("the model has a script"));
    }

    /// The reporter of a model's latest load.
    ///
    /// # Panics
    /// Where it was never loaded.
    pub fn reporter(&self, name: &str) -> Reporter {
        self.reporters().get(&model(name)).expect("the model was loaded").clone()
    }

    fn reporters(&self) -> MutexGuard<'_, HashMap<ModelId, Reporter>> {
        self.reporters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arriving(&self) -> MutexGuard<'_, HashMap<ModelId, oneshot::Receiver<()>>> {
        self.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn script(&self, model: &ModelId) -> Script {
        self.lock().get(model).expect("the model has a script").clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ModelId, Script>> {
        self.scripts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reporter for a call of `load` outside of residency, and what it was told.
pub fn reporter() -> (Reporter, Reported) {
    let (inbox, _) = crate::sync::unbounded_channel();
    let key = Key { artefact: artefact("reporter", 0), device: DeviceId::Cpu };
    let slot = Slot::new(key, inbox);
    (slot.reporter(), Reported { slot })
}

/// What a reporter was told.
pub struct Reported {
    slot: Arc<Slot>,
}

impl Reported {
    /// The latest measure and the first death since the last look.
    pub fn take(&self) -> (Option<Footprint>, Option<Failure>) {
        let notes = self.slot.take();
        (notes.measured, notes.died)
    }

    /// What the model said last of its KV pool since the last look.
    pub fn kv(&self) -> Option<KvReport> {
        self.slot.take().kv
    }

    /// Says something to the model's KV pool, as the table does.
    pub fn order_kv(&self, order: KvOrder) {
        self.slot.order_kv(order);
    }
}

fn footprint(bytes: u64) -> Footprint {
    Footprint { weights: Bytes(bytes), ..Footprint::default() }
}

impl Loader for ScriptedLoader {
    type Model = String;

    async fn resolve(&self, model: &ModelId, _refresh: bool) -> Result<Resolution, Failure> {
        self.calls.resolves.fetch_add(1, Ordering::SeqCst);
        let script = self.script(model);
        if let Some(failure) = script.resolve_fails {
            return Err(failure);
        }
        let is_whole = script.fetch.is_zero();
        Ok(Resolution {
            version: version(script.version),
            fetch_bytes: Bytes(if is_whole { 0 } else { script.bytes }),
            footprint: Some((footprint(script.bytes), Grade::Exact)),
            shared: Vec::new(),
            kind: Some(script.kind),
            off_cards: false,
            base: script.base.map(self::model),
            streams: script.streams,
            quarantined: script.quarantined,
            standing: script.standing,
        })
    }

    async fn fetch(&self, artefact: &ArtefactId, _: &str) -> Result<Fetched, Failure> {
        self.calls.fetches.fetch_add(1, Ordering::SeqCst);
        let script = self.script(&artefact.model);
        let (ends, end) = oneshot::channel();
        self.arriving().insert(artefact.model.clone(), end);
        tokio::time::sleep(script.fetch).await;
        // Nobody has to read behind it.
        let _ = ends.send(());
        let footprint = footprint(script.bytes);
        let base = script.base.map(model);
        Ok(Fetched {
            footprint,
            shared: Vec::new(),
            kind: script.kind,
            off_cards: false,
            base,
            once: Duration::ZERO,
        })
    }

    fn fetched_bytes(&self, artefact: &ArtefactId) -> Bytes {
        Bytes(self.script(&artefact.model).bytes / 2)
    }

    async fn load(
        &self,
        artefact: &ArtefactId,
        _: DeviceId,
        source: LoadSource,
        base: Option<Base<Self::Model>>,
        reporter: Reporter,
    ) -> Result<Loaded<String>, Failure> {
        let named = base.as_ref().map(|base| (base.artefact.model.clone(), base.model.clone()));
        let expected = self.script(&artefact.model).base;
        assert_eq!(
            named,
            expected.map(|name| (model(name), Arc::new(name.to_owned()))),
            "it is loaded onto its base"
        );
        self.calls.loads.fetch_add(1, Ordering::SeqCst);
        if source == LoadSource::Host {
            self.calls.promotions.fetch_add(1, Ordering::SeqCst);
        }
        let script = self.script(&artefact.model);
        if source == LoadSource::Arriving {
            let end = self.arriving().remove(&artefact.model).expect("its fetch has begun");
            if end.await.is_err() {
                return Err(Failure::new(ErrorKind::NotReady, "the fetch was given up"));
            }
        }
        self.reporters().insert(artefact.model.clone(), reporter.clone());
        tokio::time::sleep(script.load).await;
        assert!(!script.load_panics, "the script says so");
        if let Some(failure) = script.load_fails {
            return Err(failure);
        }
        if let Some(failure) = script.dies {
            reporter.died(failure);
        }
        if let Some(bytes) = script.grows {
            // A task of its own, which runs when this one has returned.
            tokio::spawn(async move { reporter.measured(footprint(bytes)) });
        }
        let model = artefact.model.target.to_string();
        Ok(Loaded {
            model,
            footprint: footprint(script.bytes),
            shared: Vec::new(),
            once: Duration::ZERO,
            idle_ttl: None,
        })
    }

    async fn unload(
        &self,
        artefact: &ArtefactId,
        _: DeviceId,
        model: Arc<String>,
        demote: bool,
    ) -> Option<HostCopy> {
        let leaked = Arc::strong_count(&model) - 1;
        assert_eq!(leaked, 0, "nobody else holds an unloading model");
        let script = self.script(&artefact.model);
        tokio::time::sleep(script.unload).await;
        assert!(!script.unload_panics, "the script says so");
        self.calls.unloads.fetch_add(1, Ordering::SeqCst);
        let footprint = footprint(script.bytes);
        demote.then_some(HostCopy { footprint, shared: Vec::new() })
    }

    async fn discard(&self, artefact: &ArtefactId) {
        self.calls.discards.fetch_add(1, Ordering::SeqCst);
        let script = self.script(&artefact.model);
        tokio::time::sleep(script.unload).await;
        assert!(!script.discard_panics, "the script says so");
    }
}
