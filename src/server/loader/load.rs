//! From files on disk to a model that answers.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse_engine::EngineConfig;
use roundhouse_models::{
    Asked, Cancel, DeviceMemory, Error, Folder, LoadedRunner, ModelPlan, load_files,
};
use roundhouse_residency::{Base, LoadSource, Loaded, Reporter};
use roundhouse_serving::{EngineModel, ServedModel, TextCodec};
use roundhouse_store::ArrivingFiles;
use roundhouse_types::{ArtefactId, Bytes, DeviceId, ErrorKind, Failure, Footprint, ModelKind};
use roundhouse_workers::{Handler, News};
use tracing::warn;

use super::host::{Demotable, HostParts};
use super::placed::{Beside, Placed};
use super::plan::{HandlerPlan, Plan, processes};
use super::sharing::{Shares, Stored};
use super::stages::{Stage, Stages};
use super::{ModelLoader, Source, asked, blocking, local, named, purpose, sharing};
use crate::allocator;
use crate::templates::Templates;

/// A version's files, and whatever keeps them on disk.
pub(super) struct Files {
    pub(super) dir: PathBuf,
    /// A handler may read its files for as long as it lives.
    pub(super) held: Option<roundhouse_store::CachedArtefact>,
}

/// Where a load finds its files.
pub(super) enum Origin {
    /// Whole on disk.
    Files(Files),
    /// Behind the fetch that brings them, with the plan that was made of their headers.
    Arriving(ArrivingFiles, Arc<ModelPlan>),
    /// Nowhere any more: it was read behind the fetch, since then.
    Read(Box<Read>, Arc<ModelPlan>, Instant),
}

/// Where a load takes a model, and to whom it belongs.
pub(super) struct Onto {
    pub(super) device: DeviceId,
    /// Of an adapter.
    pub(super) base: Option<Base<ServedModel>>,
    pub(super) reporter: Reporter,
}

/// What was read of a model's files.
pub(super) struct Read {
    pub(super) loaded: LoadedRunner,
    pub(super) text: TextCodec,
    /// What the tokenizer took.
    pub(super) taken: Bytes,
}

impl ModelLoader {
    /// See [`Loader::load`].
    pub(super) async fn loaded(
        &self,
        id: &ArtefactId,
        source: LoadSource,
        onto: Onto,
    ) -> Result<Loaded<ServedModel>, Failure> {
        if source == LoadSource::Host {
            let (device, reporter) = (onto.device, &onto.reporter);
            // An engine that slept leaves no copy where it is not woken.
            let is_copy = !self.sleeps(id) && self.external(&id.model).is_none();
            match self.wake(id, device, reporter).await {
                Some(loaded) => return Ok(loaded),
                None if is_copy => {
                    if let Some(loaded) = self.promote(id, &onto).await? {
                        return Ok(loaded);
                    }
                }
                None => {}
            }
        }
        match self.source(&id.model.endpoint)? {
            Source::Store(catalog, cache) => {
                let origin = match source {
                    LoadSource::Arriving => self.arriving(&cache, id)?,
                    LoadSource::Files | LoadSource::Host => {
                        // Others' fetches may have taken its place on disk while it waited for
                        // room.
                        let payer = self.payer_unpaced(id);
                        let cached = self.bring_for(payer, &catalog, &cache, id).await?;
                        let cached = self.readable(&catalog, &cache, id, cached).await?;
                        Origin::Files(Files { dir: cached.dir().to_owned(), held: Some(cached) })
                    }
                };
                let loaded = self.load_marked(&cache, id, origin, onto).await;
                if loaded.is_ok() {
                    self.hold_first(&cache, id).await;
                    // What handlers and engines may read by path, or write to, stays as it is.
                    let is_ours = matches!(self.recall(id).plan, Some(Plan::Model(_)));
                    if is_ours && self.external(&id.model).is_none() {
                        self.shares.on_disk(id, &cache);
                    }
                }
                loaded
            }
            Source::Local(models) => {
                let announced = local::announced(&models, &id.model)?;
                let dir = local::model_folder(&announced.folder);
                let files = Origin::Files(Files { dir, held: None });
                self.load_from(id, files, onto).await
            }
        }
    }

    /// Reads, places and warms the model.
    pub(super) async fn load_from(
        &self,
        id: &ArtefactId,
        origin: Origin,
        onto: Onto,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let Onto { device, base, reporter } = onto;
        let files = match origin {
            Origin::Files(files) => files,
            Origin::Read(read, plan, began) => {
                return self.load_read(id, &plan, *read, began, (device, &reporter)).await;
            }
            Origin::Arriving(..) => {
                return Err(Failure::new(ErrorKind::Internal, format!("{id} was not read")));
            }
        };
        match self.plan_of(id, &files.dir).await? {
            Plan::Model(plan) => self.load_model(id, &plan, files, (device, &reporter)).await,
            Plan::Handler(plan) => self.load_handler(id, &plan, files, reporter).await,
            Plan::External(spec) => self.load_external(id, files, (device, reporter), spec).await,
            Plan::Contained(rule) => {
                self.load_contained(id, files, (device, reporter), &rule).await
            }
            Plan::Adapter(plan) => self.load_adapter(id, &plan, files, device, base).await,
        }
    }

    async fn load_model(
        &self,
        id: &ArtefactId,
        plan: &Arc<ModelPlan>,
        files: Files,
        (device, reporter): (DeviceId, &Reporter),
    ) -> Result<Loaded<ServedModel>, Failure> {
        let began = Instant::now();
        let (reading, shares, reader) = (Arc::clone(plan), Arc::clone(&self.shares), id.clone());
        let memory = self.memory(device);
        let read = blocking(move || read(&reader, files, &reading, &memory, &shares));
        let read = read.await.map_err(|failure| named(id, &failure))?;
        self.load_read(id, plan, read, began, (device, reporter)).await
    }

    /// Places what was read since `began`.
    async fn load_read(
        &self,
        id: &ArtefactId,
        plan: &Arc<ModelPlan>,
        read: Read,
        began: Instant,
        onto: (DeviceId, &Reporter),
    ) -> Result<Loaded<ServedModel>, Failure> {
        let Read { loaded, text, taken } = read;
        // Of one that arrived the fetch has been told only now.
        let mut stages = self.take_stages(id);
        stages.set(Stage::Read, began.elapsed());
        // Until now by the tokenizer's file; this is what it took, and what answers of given forms
        // will add.
        let forms = purpose::room_for_forms(plan, &text);
        let bytes = roundhouse_models::host_measured(taken + forms);
        let parts = HostParts { plan: Arc::clone(plan), text: Arc::new(text), bytes };
        self.recent.reached(&id.model, Stage::Warm);
        self.place(id, onto, loaded, parts, stages).await
    }

    /// Places a model whose weights are on the device, and warms it. Its KV pool, where it has one,
    /// agrees with residency on what it takes beyond its floor.
    pub(super) async fn place(
        &self,
        id: &ArtefactId,
        (device, reporter): (DeviceId, &Reporter),
        loaded: LoadedRunner,
        parts: HostParts,
        mut stages: Stages,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let lane = self.lanes.get(&device).ok_or_else(|| {
            Failure::new(ErrorKind::Internal, format!("no lane runs on {device}"))
        })?;
        let LoadedRunner { runner, footprint, shared, weights, base, .. } = loaded;
        let footprint = Footprint { host: parts.bytes, ..footprint };
        let (name, told) = (id.model.to_string(), reporter.clone());
        let report = Box::new(move |report| told.kv(report));
        let asked = parts.plan.asked;
        if !parts.plan.unheeded.is_empty() {
            let keys = parts.plan.unheeded.join(", ");
            warn!(model = %id.model, keys, "its serving.properties asks for what nothing here honours");
        }
        if let Some(what) = &parts.plan.unread {
            warn!(model = %id.model, "{what}");
        }
        let engine = within(self.engine, &asked);
        let placed = lane.place_elastic(&name, runner, engine, report).await?;
        let engine = placed.handle.clone();
        reporter.listen_for_kv(move |order| engine.kv_ordered(order));
        stages.set(Stage::Warm, placed.warm);
        stages.report(id, footprint.total(), &self.recent);
        let purpose = purpose::of(&parts.plan);
        self.warm_templates(&parts);
        let model = EngineModel::new(Arc::clone(&parts.text), placed, purpose);
        let model = model.answering(purpose::style(&asked));
        let text = Arc::clone(&parts.text);
        let text = (parts.plan.kind == ModelKind::Generative).then_some(text);
        let demotable = weights.map(|weights| Demotable::Model { weights, parts: parts.clone() });
        let beside = Beside { engine: model.engine().clone(), base, parts };
        self.placed.add(id, device, Placed { beside, text, demotable });
        Ok(Loaded {
            model: ServedModel::Engine(model),
            footprint,
            shared,
            once: Duration::ZERO,
            idle_ttl: least_ttl(self.settings.idle_ttl, asked.idle_ttl),
        })
    }

    /// The same loader, which has these ready when somebody may chat.
    pub(crate) fn with_templates(mut self, templates: Templates) -> Self {
        self.templates = Some(templates);
        self
    }

    fn warm_templates(&self, parts: &HostParts) {
        let chats = parts.plan.kind == ModelKind::Generative && parts.text.has_chat_template();
        if let Some(templates) = self.templates.as_ref().filter(|_| chats) {
            templates.warm();
        }
    }

    /// Brings the packages that a handler asks for, before anybody leaves for it: that may take minutes.
    /// Says how long it took.
    pub(super) async fn bring_packages(
        &self,
        id: &ArtefactId,
        plan: &Plan,
        dir: &Path,
    ) -> Result<Duration, Failure> {
        let Plan::Handler(plan) = plan else { return Ok(Duration::ZERO) };
        let Some(file) = plan.layout.requirements else { return Ok(Duration::ZERO) };
        let workers = self.handlers.workers(&id.model.endpoint)?;
        let file = absolute(dir)?.join(file);
        let brought = workers.prepare(&file, &tenant(id), &id.model.to_string()).await;
        brought.map_err(|error| named(id, &error.into()))
    }

    /// Starts the workers. From then on they tell residency what they take, and of their death.
    async fn load_handler(
        &self,
        id: &ArtefactId,
        plan: &HandlerPlan,
        files: Files,
        reporter: Reporter,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let workers = self.handlers.workers(&id.model.endpoint)?;
        let mut stages = self.take_stages(id);
        let began = Instant::now();
        let (dir, own, config) = (files.dir.clone(), plan.settings.clone(), workers.clone());
        let settings =
            blocking(move || Ok(asked::with_properties(&dir, &own, config.config()))).await?;
        let (settings, unheeded) = settings;
        if !unheeded.is_empty() {
            let keys = unheeded.join(", ");
            warn!(model = %id.model, keys, "its serving.properties asks for what nothing here honours");
        }
        let handler = Handler {
            name: id.model.to_string(),
            version: id.version.as_str().to_owned(),
            tenant: tenant(id),
            dir: absolute(&files.dir)?,
            layout: plan.layout.clone(),
            settings,
        };
        let held = files.held;
        let news = move |news| {
            // The files stay on disk for as long as somebody may tell of the workers.
            let _ = &held;
            match news {
                News::Measured(bytes) => reporter.measured(processes(bytes)),
                // Told to those who come during a pause after repeated deaths: they have not run.
                News::Died(failure) => reporter.died(Failure::new(
                    ErrorKind::NotReady,
                    format!("{failure}; it is started again after a pause"),
                )),
            }
        };
        let launched = workers.launch(&handler, Arc::new(news)).await;
        let group = launched.map_err(|error| named(id, &error.into()))?;
        let once = group.preparing();
        let group = Arc::new(group);
        let measured = Arc::clone(&group);
        let memory = blocking(move || Ok(measured.measure())).await?;
        let group = Arc::into_inner(group)
            .ok_or_else(|| Failure::new(ErrorKind::Internal, "a measurement did not end"))?;
        stages.set(Stage::Warm, began.elapsed());
        stages.report(id, memory, &self.recent);
        let (model, footprint) = (ServedModel::Handler(group), processes(memory));
        Ok(Loaded { model, footprint, shared: Vec::new(), once, idle_ttl: None })
    }
}

/// How long a model may be unused, where it asks for less than all may.
pub(super) fn least_ttl(limit: Option<Duration>, asked: Option<Duration>) -> Option<Duration> {
    asked.map(|asked| limit.map_or(asked, |limit| asked.min(limit)))
}

/// The operator's limits with what a model asks for within them.
fn within(engine: EngineConfig, asked: &Asked) -> EngineConfig {
    let least = |limit: NonZeroUsize, asked: Option<usize>| {
        asked.and_then(NonZeroUsize::new).map_or(limit, |asked| asked.min(limit))
    };
    EngineConfig {
        max_running: least(engine.max_running, asked.running),
        max_waiting: least(engine.max_waiting, asked.waiting),
        ..engine
    }
}

/// Reads a model from files on disk. Blocking.
fn read(
    id: &ArtefactId,
    files: Files,
    plan: &ModelPlan,
    memory: &DeviceMemory,
    shares: &Shares,
) -> Result<Read, Failure> {
    let Files { dir, held } = files;
    // Loads run to their end: residency abandons what is still being fetched alone.
    let cancel = Cancel::default();
    let known = held.as_ref().map(|cached| sharing::contents(cached, plan)).unwrap_or_default();
    let shared = shares.of(id, memory.id(), known);
    let loaded = match &held {
        Some(cached) => load_files(&Stored(cached), plan, memory, &cancel, shared.as_ref()),
        None => load_files(&Folder::new(&dir), plan, memory, &cancel, shared.as_ref()),
    };
    if let (Err(Error::Altered { .. }), Some(cached)) = (&loaded, &held) {
        // The next load fetches it again.
        cached.give_up()?;
    }
    let loaded = loaded?;
    let (text, taken) = allocator::counted(|| purpose::open_text(&dir, plan));
    // What reading took beyond that is several times the tokenizer's file.
    allocator::give_back();
    Ok(Read { loaded, text: text?, taken })
}

/// The first segment of the target's name, until tenants are known by who they are. A target
/// without a `/` is a tenant of its own.
pub(super) fn tenant(id: &ArtefactId) -> String {
    let target = id.model.target.as_str();
    let first = target.split_once('/').map_or(target, |(first, _)| first);
    format!("{}/{first}", id.model.endpoint)
}

fn absolute(dir: &Path) -> Result<PathBuf, Failure> {
    dir.canonicalize().map_err(|error| {
        Failure::new(ErrorKind::ModelInvalid, format!("its folder cannot be read: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_asks_for_no_longer_than_all_may() {
        let [one, hour] = [1, 3600].map(|seconds| Some(Duration::from_secs(seconds)));
        assert_eq!(least_ttl(hour, one), one);
        assert_eq!(least_ttl(one, hour), one);
        assert_eq!(least_ttl(None, one), one);
        assert_eq!(least_ttl(one, None), None, "the operator's holds");
    }
}
