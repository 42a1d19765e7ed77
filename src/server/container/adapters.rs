//! The adapters that the platform registers: folders beside its models, loaded with their bases and,
//! unless they are pinned, evicted for one another.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use roundhouse_gateway::{ContainerAdapter, ContainerAdapters, LoadOutcome, Registration};
use roundhouse_models::ADAPTER_CONFIG;
use roundhouse_residency::LoadOptions;
use roundhouse_types::{ErrorKind, Failure, TargetName};
use tracing::warn;

use super::{PlatformModels, checked, ended};
use crate::loader::{Announced, model_folder};

/// Registered adapters by name: where each lies, and whether it is pinned. Entries come when
/// a registration succeeds, and go when a removal begins.
#[derive(Debug, Clone, Default)]
pub(super) struct Registered(Arc<Mutex<BTreeMap<TargetName, (String, bool)>>>);

impl Registered {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TargetName, (String, bool)>> {
        // A map whose holder panicked is whole: entries are inserted or removed at once.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PlatformModels {
    fn adapter(&self, name: &TargetName, (src, pin): &(String, bool)) -> ContainerAdapter {
        let model = self.model(name.clone());
        ContainerAdapter { name: name.to_string(), src: src.clone(), pin: *pin, model }
    }

    /// Loads a registered adapter; makes room of adapters that are not pinned where that is all
    /// there is to make it of.
    async fn preload(&self, name: &TargetName, pin: bool) -> Result<LoadOutcome, Failure> {
        let model = self.model(name.clone());
        let load = |evict| self.residency.load(&model, LoadOptions { evict, force: true });
        let mut loaded = load(false).await;
        let unpinned = self.registered.lock().values().any(|(_, pinned)| !pinned);
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
        let Registration { name, src, path, preload, pin } = registration;
        let name = checked(&name)?;
        let folder = path.clone();
        let found = tokio::task::spawn_blocking(move || model_folder(&folder));
        let found = found.await.map_err(|error| ended(&error))?;
        if !found.join(ADAPTER_CONFIG).is_file() {
            let message = format!("adapter {name} has no {ADAPTER_CONFIG} at {src}");
            return Err(Failure::new(ErrorKind::ModelInvalid, message));
        }
        if !self.local.announce(name.clone(), Announced { url: src.clone(), folder: path }) {
            return Ok(LoadOutcome::AlreadyLoaded);
        }
        let outcome = match preload {
            true => self.preload(&name, pin).await,
            false if pin => {
                let kept = self.residency.keep(&self.model(name.clone())).await;
                kept.map(|()| LoadOutcome::Loaded)
            }
            false => Ok(LoadOutcome::Loaded),
        };
        match outcome {
            Ok(LoadOutcome::Loaded) => drop(self.registered.lock().insert(name, (src, pin))),
            _ => drop(self.local.withdraw(name.as_str())),
        }
        outcome
    }

    async fn leave(self, name: TargetName) -> Result<bool, Failure> {
        // Of two calls one removes it.
        if self.registered.lock().remove(&name).is_none() {
            return Ok(false);
        }
        let unloaded = self.unload_with_base(&name).await;
        self.local.withdraw(name.as_str());
        unloaded.map(|_| true)
    }
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

    fn page(&self, after: Option<&str>, limit: usize) -> (Vec<ContainerAdapter>, bool) {
        let registered = self.registered.lock();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut behind = registered.range::<str, _>((from, Bound::Unbounded));
        let page = behind.by_ref().take(limit).map(|(name, it)| self.adapter(name, it)).collect();
        (page, behind.next().is_some())
    }

    fn get(&self, name: &str) -> Option<ContainerAdapter> {
        let registered = self.registered.lock();
        registered.get_key_value(name).map(|(name, found)| self.adapter(name, found))
    }

    fn unregister(&self, name: &str) -> BoxFuture<'static, Result<bool, Failure>> {
        let Ok(name) = checked(name) else { return async { Ok(false) }.boxed() };
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
