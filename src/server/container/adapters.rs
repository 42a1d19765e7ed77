//! The adapters that the platform registers: folders beside its models, loaded with their bases and,
//! unless they are pinned, evicted for one another.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use roundhouse_gateway::{ContainerAdapter, ContainerAdapters, LoadOutcome, Registration, Update};
use roundhouse_models::ADAPTER_CONFIG;
use roundhouse_residency::LoadOptions;
use roundhouse_types::{ErrorKind, Failure, ModelId, TargetName};
use tracing::warn;

use super::{PlatformModels, checked, ended};
use crate::loader::{Announced, model_folder};

/// What the platform said of an adapter.
#[derive(Debug, Clone)]
struct Entry {
    src: String,
    path: PathBuf,
    pin: bool,
    base: Option<ModelId>,
}

/// Registered adapters by name. Entries come when a registration succeeds, and go when a removal
/// begins.
#[derive(Debug, Clone, Default)]
pub(super) struct Registered(Arc<Mutex<BTreeMap<TargetName, Entry>>>);

/// A registration under way: as long as there is one, bases stay.
struct Entering(Arc<AtomicUsize>);

impl Entering {
    fn begin(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count.clone())
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Registered {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TargetName, Entry>> {
        // A map whose holder panicked is whole: entries are inserted or removed at once.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PlatformModels {
    fn adapter(&self, name: &TargetName, entry: &Entry) -> ContainerAdapter {
        let model = self.model(name.clone());
        let base = self.loader.adapted(&model).or_else(|| entry.base.clone());
        let (src, pin) = (entry.src.clone(), entry.pin);
        ContainerAdapter { name: name.to_string(), src, pin, model, base }
    }

    /// Registers adapters of a model that lie where they are announced already; each is loaded when it
    /// is asked for.
    pub(crate) fn has_found(&self, adapters: &[(TargetName, PathBuf)], base: &ModelId) {
        let entry = |path: &PathBuf| Entry {
            src: path.display().to_string(),
            path: path.clone(),
            pin: false,
            base: Some(base.clone()),
        };
        let found = adapters.iter().map(|(name, path)| (name.clone(), entry(path)));
        self.registered.lock().extend(found);
    }

    /// Loads a registered adapter; makes room of adapters that are not pinned where that is all
    /// there is to make it of.
    async fn preload(&self, name: &TargetName, pin: bool) -> Result<LoadOutcome, Failure> {
        let model = self.model(name.clone());
        let load = |evict| self.residency.load(&model, LoadOptions { evict, force: true });
        let mut loaded = load(false).await;
        let unpinned = self.registered.lock().values().any(|entry| !entry.pin);
        if unpinned && loaded.as_ref().is_err_and(|it| it.kind() == ErrorKind::TooLarge) {
            loaded = load(true).await;
        }
        match loaded {
            Ok(_) if pin => self.residency.keep(&model).await.map(|()| LoadOutcome::Loaded),
            Ok(_) => Ok(LoadOutcome::Loaded),
            Err(failure) if failure.kind() == ErrorKind::TooLarge => Ok(LoadOutcome::NoMemory),
            Err(failure) => Err(failure),
        }
    }

    async fn enter(self, registration: Registration) -> Result<LoadOutcome, Failure> {
        let entering = Entering::begin(&self.entering);
        let outcome = self.entered(registration).await;
        drop(entering);
        // What left meanwhile let the bases be, and so does what failed now.
        self.leave_bases().await;
        outcome
    }

    async fn entered(&self, registration: Registration) -> Result<LoadOutcome, Failure> {
        let Registration { name, src, path, preload, pin, base } = registration;
        let name = checked("name", &name)?;
        let folder = path.clone();
        let why = tokio::task::spawn_blocking(move || no_adapter(&folder));
        if let Some(why) = why.await.map_err(|error| ended(&error))? {
            let message = format!("adapter {name} cannot be read at {src}: {why}");
            return Err(Failure::new(ErrorKind::ModelInvalid, message));
        }
        let folder = path.clone();
        if !self.local.announce(name.clone(), Announced { url: src.clone(), folder }) {
            return Ok(LoadOutcome::AlreadyLoaded);
        }
        let mut outcome = match preload {
            true => self.preload(&name, pin).await,
            false if pin => {
                let kept = self.residency.keep(&self.model(name.clone())).await;
                kept.map(|()| LoadOutcome::Loaded)
            }
            false => Ok(LoadOutcome::Loaded),
        };
        if preload
            && outcome.is_ok()
            && let Some(base) = &base
        {
            outcome = match self.stands_on(&name, base).await {
                Ok(()) => outcome,
                Err(failure) => Err(failure),
            };
        }
        let entry = Entry { src, path, pin, base };
        match outcome {
            Ok(LoadOutcome::Loaded) => drop(self.registered.lock().insert(name, entry)),
            _ => drop(self.local.withdraw(name.as_str())),
        }
        outcome
    }

    /// Unloads what was loaded as an adapter of `base` and is none.
    async fn stands_on(&self, name: &TargetName, base: &ModelId) -> Result<(), Failure> {
        let model = self.model(name.clone());
        let found = self.loader.adapted(&model);
        if found.as_ref().is_none_or(|found| found == base) {
            return Ok(());
        }
        self.residency.release(&model).await?;
        self.residency.unload(&model).await?;
        let message = format!("adapter {name} is not one of model {}", base.target);
        Err(Failure::new(ErrorKind::ModelInvalid, message))
    }

    async fn leave(self, name: TargetName) -> Result<bool, Failure> {
        self.left(&name).await.map(|entry| entry.is_some())
    }

    async fn left(&self, name: &TargetName) -> Result<Option<Entry>, Failure> {
        // Of two calls one removes it.
        let Some(entry) = self.registered.lock().remove(name) else { return Ok(None) };
        let unloaded = self.unload_with_base(name).await;
        self.local.withdraw(name.as_str());
        unloaded.map(|_| Some(entry))
    }

    async fn change(self, update: Update) -> Result<Option<LoadOutcome>, Failure> {
        let name = checked("name", &update.name)?;
        let Some(entry) = self.registered.lock().get(&name).cloned() else { return Ok(None) };
        let pin = update.pin.unwrap_or(entry.pin);
        if let Some((src, path)) = update.place.filter(|(_, path)| *path != entry.path) {
            if self.left(&name).await?.is_none() {
                return Ok(None);
            }
            let (name, base) = (name.to_string(), entry.base);
            let registration = Registration { name, src, path, preload: true, pin, base };
            return self.enter(registration).await.map(Some);
        }
        let model = self.model(name.clone());
        match pin {
            true => self.residency.keep(&model).await?,
            false => self.residency.release(&model).await?,
        }
        let mut outcome = LoadOutcome::Loaded;
        if update.preload {
            outcome = self.preload(&name, pin).await?;
        }
        match self.registered.lock().get_mut(&name) {
            Some(entry) => entry.pin = pin,
            None => return Ok(None),
        }
        Ok(Some(outcome))
    }
}

/// Why there is no adapter where one should be. Blocking.
fn no_adapter(path: &Path) -> Option<String> {
    if path.is_file() {
        let instead = "src must be a folder with adapter_config.json and adapter_model.safetensors";
        return Some(format!("that is a file; {instead}, unpacked where it came as an archive"));
    }
    let is_there = model_folder(path).join(ADAPTER_CONFIG).is_file();
    (!is_there).then(|| format!("the folder has no {ADAPTER_CONFIG}"))
}

impl ContainerAdapters for PlatformModels {
    fn register(
        &self,
        registration: Registration,
    ) -> BoxFuture<'static, Result<LoadOutcome, Failure>> {
        // A task of its own: the load goes on when the caller leaves.
        let task = tokio::spawn(self.clone().enter(registration));
        async move {
            task.await.unwrap_or_else(|error| {
                warn!(%error, "a registration's task failed");
                Err(ended(&error))
            })
        }
        .boxed()
    }

    fn update(&self, update: Update) -> BoxFuture<'static, Result<Option<LoadOutcome>, Failure>> {
        // A task of its own: what is unregistered is registered again though the caller leaves.
        let task = tokio::spawn(self.clone().change(update));
        async move {
            task.await.unwrap_or_else(|error| {
                warn!(%error, "an update's task failed");
                Err(ended(&error))
            })
        }
        .boxed()
    }

    fn page(
        &self,
        after: Option<&str>,
        limit: usize,
        base: Option<&ModelId>,
    ) -> (Vec<ContainerAdapter>, bool) {
        let registered = self.registered.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = registered.range::<str, _>((from, Bound::Unbounded));
        let mut behind = behind
            .map(|(name, entry)| self.adapter(name, entry))
            .filter(|adapter| base.is_none_or(|base| adapter.base.as_ref() == Some(base)));
        let page = behind.by_ref().take(limit).collect();
        (page, behind.next().is_some())
    }

    fn get(&self, name: &str) -> Option<ContainerAdapter> {
        let registered = self.registered.lock();
        registered.get_key_value(name).map(|(name, found)| self.adapter(name, found))
    }

    fn unregister(&self, name: &str) -> BoxFuture<'static, Result<bool, Failure>> {
        let Ok(name) = checked("name", name) else { return async { Ok(false) }.boxed() };
        // A task of its own: when the caller leaves, the name is still free again once the
        // memory is.
        let task = tokio::spawn(self.clone().leave(name));
        async move {
            task.await.unwrap_or_else(|error| {
                warn!(%error, "a removal's task failed");
                Err(ended(&error))
            })
        }
        .boxed()
    }
}
