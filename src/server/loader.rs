//! Brings models in and out: the world's side of residency, over store, models, engine and serving.
//!
//! Decides nothing: residency says when each of the four steps runs. Files in reading
//! order: this one (the steps), [`view`] (what can be known of a model before it is
//! fetched), [`purpose`] (what a loaded model is for), [`local`]
//! (folders that someone else put here), [`stages`] (how long each step took).

mod local;
mod purpose;
mod stages;
mod view;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lru::LruCache;
use roundhouse_engine::{EngineConfig, Lane};
use roundhouse_models::{Cancel, LoadSettings, ModelPlan};
use roundhouse_residency::{Fetched, Loaded, Loader, Resolution};
use roundhouse_serving::ServedModel;
use roundhouse_store::{Artefact, Catalog, DiskCache, Freshness, Progress};
use roundhouse_types::{
    ArtefactId, Bytes, DeviceId, EndpointName, ErrorKind, Failure, Grade, ModelId, RetryHint,
};
use tracing::{info, warn};

pub(crate) use local::{Announced, LocalModels};
use stages::Stage;
pub(crate) use stages::Stages;
pub(crate) use view::read_remote;

/// A version that was loading this many times when the process died is not tried again unasked.
const DEATHS_TO_QUARANTINE: u32 = 2;

/// How many versions' listings and plans are remembered.
const VERSIONS_REMEMBERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// Where an endpoint's models come from.
pub(crate) enum Source {
    /// An object store, through the disk cache.
    Store(Arc<Catalog>, DiskCache),
    /// Folders that someone else put on this machine, as in the container contract.
    Local(Arc<LocalModels>),
}

/// What is known of a version between its steps.
#[derive(Clone, Default)]
struct Known {
    /// Its listing, unless it was only found on disk.
    artefact: Option<Arc<Artefact>>,
    /// What a load of it means, once its configuration and headers were seen.
    plan: Option<Arc<ModelPlan>>,
    progress: Arc<Progress>,
    stages: Stages,
}

/// See the module's text.
pub(crate) struct ModelLoader {
    sources: BTreeMap<EndpointName, Source>,
    lanes: BTreeMap<DeviceId, Arc<Lane>>,
    settings: LoadSettings,
    engine: EngineConfig,
    known: Mutex<LruCache<ArtefactId, Known>>,
}

impl ModelLoader {
    /// A loader for the sources of all endpoints and the lanes of all devices.
    pub(crate) fn new(
        sources: BTreeMap<EndpointName, Source>,
        lanes: BTreeMap<DeviceId, Arc<Lane>>,
        settings: LoadSettings,
        engine: EngineConfig,
    ) -> Self {
        let known = Mutex::new(LruCache::new(VERSIONS_REMEMBERED));
        Self { sources, lanes, settings, engine, known }
    }

    fn source(&self, endpoint: &EndpointName) -> Result<&Source, Failure> {
        self.sources.get(endpoint).ok_or_else(|| {
            Failure::new(ErrorKind::EndpointNotFound, format!("no endpoint is called '{endpoint}'"))
        })
    }

    fn known(&self) -> MutexGuard<'_, LruCache<ArtefactId, Known>> {
        // What a panicking holder left behind is whole: entries are replaced, never edited.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recall(&self, id: &ArtefactId) -> Known {
        self.known().get(id).cloned().unwrap_or_default()
    }

    fn remember(&self, id: &ArtefactId, known: Known) {
        self.known().put(id.clone(), known);
    }

    /// Deletes a version's files from the disk cache.
    pub(crate) async fn purge(&self, id: &ArtefactId) -> Result<(), Failure> {
        match self.source(&id.model.endpoint)? {
            Source::Store(_, cache) => Ok(cache.purge(id).await?),
            Source::Local(_) => Ok(()),
        }
    }

    async fn resolve_in_store(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        model: &ModelId,
        refresh: bool,
    ) -> Result<Resolution, Failure> {
        let began = Instant::now();
        let freshness = if refresh { Freshness::Fresh } else { Freshness::Cached };
        let artefact = match catalog.resolve(&model.target, freshness).await {
            Ok(artefact) => artefact,
            Err(error) => {
                let failure = Failure::from(error);
                // With the store down, what is whole on disk still answers.
                let fallback = match failure.kind() {
                    ErrorKind::StoreUnavailable => cache.latest(model),
                    _ => None,
                };
                let Some(id) = fallback else { return Err(failure) };
                warn!(model = %model, %failure, "store is down, serving the version on disk");
                return self.resolve_on_disk(cache, id).await;
            }
        };
        let id = artefact.id.clone();
        let mut known = self.recall(&id);
        known.stages.set(Stage::List, began.elapsed());
        known.artefact = Some(artefact.clone());
        self.remember(&id, known.clone());
        if cache.get(&id).is_some() {
            return self.resolve_on_disk(cache, id).await;
        }
        if known.plan.is_none() && artefact.archive.is_none() {
            let files = read_remote(catalog, &artefact).await?;
            let plan = roundhouse_models::inspect(&files, &self.settings)
                .map_err(|error| named(&id, &error.into()))?;
            known.plan = Some(Arc::new(plan));
            self.remember(&id, known.clone());
        }
        Ok(Resolution {
            fetch_bytes: artefact.bytes,
            footprint: known.plan.as_ref().map(|plan| (plan.footprint, Grade::Exact)),
            kind: known.plan.as_ref().map(|plan| plan.kind),
            quarantined: cache.attempts(&id) >= DEATHS_TO_QUARANTINE,
            version: id.version,
        })
    }

    async fn resolve_on_disk(
        &self,
        cache: &DiskCache,
        id: ArtefactId,
    ) -> Result<Resolution, Failure> {
        let plan = match cache.get(&id) {
            Some(cached) => Some(self.plan_of(&id, cached.dir()).await?),
            None => None,
        };
        Ok(Resolution {
            fetch_bytes: Bytes::ZERO,
            footprint: plan.as_ref().map(|plan| (plan.footprint, Grade::Exact)),
            kind: plan.as_ref().map(|plan| plan.kind),
            quarantined: cache.attempts(&id) >= DEATHS_TO_QUARANTINE,
            version: id.version,
        })
    }

    /// The plan of a version whose files lie in `dir`, read once.
    async fn plan_of(&self, id: &ArtefactId, dir: &Path) -> Result<Arc<ModelPlan>, Failure> {
        if let Some(plan) = self.recall(id).plan {
            return Ok(plan);
        }
        let (dir, settings) = (dir.to_owned(), self.settings);
        let plan = blocking(move || {
            let files = roundhouse_models::read_local(&dir)?;
            Ok(roundhouse_models::inspect(&files, &settings)?)
        })
        .await
        .map_err(|failure| named(id, &failure))?;
        let plan = Arc::new(plan);
        let mut known = self.recall(id);
        known.plan = Some(plan.clone());
        self.remember(id, known);
        Ok(plan)
    }

    /// Reads, places and warms the model in `dir`.
    async fn load_from(
        &self,
        id: &ArtefactId,
        dir: PathBuf,
        device: DeviceId,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let lane = self.lanes.get(&device).ok_or_else(|| {
            Failure::new(ErrorKind::Internal, format!("no lane runs on {device}"))
        })?;
        let plan = self.plan_of(id, &dir).await?;
        let mut stages = self.recall(id).stages;
        let began = Instant::now();
        let reading = plan.clone();
        let (loaded, text) = blocking(move || {
            // Loads run to their end: residency abandons what is still being fetched alone.
            let loaded = roundhouse_models::load(&dir, &reading, device, &Cancel::default())?;
            let text = purpose::open_text(&dir, &reading)?;
            Ok((loaded, text))
        })
        .await
        .map_err(|failure| named(id, &failure))?;
        stages.set(Stage::Read, began.elapsed());
        let footprint = loaded.footprint;
        let placed = lane.place(&id.model.to_string(), loaded.runner, self.engine).await?;
        stages.set(Stage::Warm, placed.warm);
        stages.report(id, footprint.total());
        Ok(Loaded { model: ServedModel::new(text, placed, purpose::of(&plan)), footprint })
    }
}

impl Loader for ModelLoader {
    type Model = ServedModel;

    async fn resolve(&self, model: &ModelId, refresh: bool) -> Result<Resolution, Failure> {
        match self.source(&model.endpoint)? {
            Source::Store(catalog, cache) => {
                self.resolve_in_store(catalog, cache, model, refresh).await
            }
            Source::Local(models) => {
                let (id, plan) = self.local(models, model).await?;
                Ok(Resolution {
                    version: id.version,
                    fetch_bytes: Bytes::ZERO,
                    footprint: Some((plan.footprint, Grade::Exact)),
                    kind: Some(plan.kind),
                    quarantined: false,
                })
            }
        }
    }

    async fn fetch(&self, id: &ArtefactId) -> Result<Fetched, Failure> {
        let plan = match self.source(&id.model.endpoint)? {
            Source::Store(catalog, cache) => {
                let known = self.recall(id);
                let cached = match (cache.get(id), known.artefact) {
                    (Some(cached), _) => cached,
                    (None, Some(artefact)) => {
                        let began = Instant::now();
                        let cached = cache.fetch(catalog, &artefact, &known.progress).await?;
                        let mut known = self.recall(id);
                        known.stages.set(Stage::Fetch, began.elapsed());
                        self.remember(id, known);
                        cached
                    }
                    (None, None) => {
                        let message =
                            format!("{id} is no longer on disk and its listing is not known");
                        let failure = Failure::new(ErrorKind::StoreUnavailable, message);
                        return Err(failure.with_retry(RetryHint::Later));
                    }
                };
                self.plan_of(id, cached.dir()).await?
            }
            Source::Local(models) => self.local(models, &id.model).await?.1,
        };
        Ok(Fetched { footprint: plan.footprint, kind: plan.kind })
    }

    fn fetched_bytes(&self, id: &ArtefactId) -> Bytes {
        self.recall(id).progress.snapshot().fetched
    }

    async fn load(
        &self,
        id: &ArtefactId,
        device: DeviceId,
    ) -> Result<Loaded<ServedModel>, Failure> {
        match self.source(&id.model.endpoint)? {
            Source::Store(_, cache) => {
                let cached = cache.get(id).ok_or_else(|| {
                    let message = format!("{id} left the disk before it could be loaded");
                    Failure::new(ErrorKind::StoreUnavailable, message).with_retry(RetryHint::Later)
                })?;
                // Counted on disk, so that a model that kills the process is known by it.
                cache.begin_load(id).await?;
                let loaded = self.load_from(id, cached.dir().to_owned(), device).await;
                cache.end_load(id).await?;
                loaded
            }
            Source::Local(models) => {
                let announced = announced(models, &id.model)?;
                self.load_from(id, local::model_folder(&announced.folder), device).await
            }
        }
    }

    async fn unload(&self, id: &ArtefactId, device: DeviceId, model: Arc<ServedModel>) {
        model.remove().await;
        drop(model);
        info!(model = %id.model, version = %id.version, %device, "unloaded");
    }
}

impl ModelLoader {
    /// The version and plan of a model in someone else's folder.
    async fn local(
        &self,
        models: &LocalModels,
        model: &ModelId,
    ) -> Result<(ArtefactId, Arc<ModelPlan>), Failure> {
        let folder = announced(models, model)?.folder;
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

fn announced(models: &LocalModels, model: &ModelId) -> Result<Announced, Failure> {
    models
        .get(model.target.as_str())
        .ok_or_else(|| Failure::new(ErrorKind::ModelNotFound, format!("{model} is not announced")))
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
