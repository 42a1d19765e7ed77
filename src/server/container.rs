//! The container contract's models: folders that the platform has put on this machine,
//! loaded and unloaded when it says so, never evicted by us.

mod adapters;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use roundhouse_gateway::{ContainerModel, ContainerModels, LoadOutcome};
use roundhouse_residency::{LoadOptions, Residency, ResidentState};
use roundhouse_serving::ServedModel;
use roundhouse_types::{EndpointName, ErrorKind, Failure, ModelId, TargetName};
use tracing::warn;

use crate::loader::{Announced, LocalModels, ModelLoader};
use adapters::Registered;

/// See the module's text. Clones are one.
#[derive(Clone)]
pub(crate) struct PlatformModels {
    endpoint: EndpointName,
    local: Arc<LocalModels>,
    residency: Residency<ServedModel>,
    /// Names whose load has been answered: what listings show.
    loaded: Arc<Mutex<BTreeSet<TargetName>>>,
    registered: Registered,
    /// Registrations under way.
    entering: Arc<AtomicUsize>,
    loader: Arc<ModelLoader>,
}

impl PlatformModels {
    pub(crate) fn new(
        endpoint: EndpointName,
        local: Arc<LocalModels>,
        residency: Residency<ServedModel>,
        loader: Arc<ModelLoader>,
    ) -> Self {
        let (loaded, registered) = (Arc::default(), Registered::default());
        let entering = Arc::default();
        Self { endpoint, local, residency, loaded, registered, entering, loader }
    }

    fn model(&self, name: TargetName) -> ModelId {
        ModelId { endpoint: self.endpoint.clone(), target: name }
    }

    fn is_loaded(&self, name: &str) -> bool {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    fn shown(&self, name: TargetName, announced: Announced) -> ContainerModel {
        ContainerModel { name: name.to_string(), url: announced.url, model: self.model(name) }
    }
}

impl PlatformModels {
    /// Unloads a model, and its base where nothing is left on it: the platform does not know
    /// that there is one. `false` where it was not loaded.
    async fn unload_with_base(&self, name: &TargetName) -> Result<bool, Failure> {
        let model = self.model(name.clone());
        match self.residency.unload(&model).await {
            Ok(_) => {}
            // Another call was first.
            Err(failure) if failure.kind() == ErrorKind::ModelNotFound => return Ok(false),
            Err(failure) => return Err(failure),
        }
        self.leave_bases().await;
        Ok(true)
    }

    /// Unloads the bases that the platform did not name and nothing is on. While an adapter is on its
    /// way to one, all stay: who sends the adapter comes here afterwards.
    async fn leave_bases(&self) {
        let Some(bases) = self.loader.bases().elsewhere.get(&self.endpoint).cloned() else {
            return;
        };
        let Ok(snapshot) = self.residency.gathered().await else { return };
        let residents = snapshot.devices.into_iter().flat_map(|device| device.residents);
        let idle = residents.filter(|it| {
            it.endpoint == bases && it.adapters == 0 && it.state == ResidentState::Ready
        });
        for base in idle {
            if self.entering.load(Ordering::Acquire) > 0 {
                return;
            }
            let base = ModelId { endpoint: base.endpoint, target: base.target };
            if let Err(failure) = self.residency.unload(&base).await {
                // Somebody else unloaded it.
                warn!(model = %base, %failure, "a base without adapters was not unloaded");
            }
        }
    }
}

fn ended(error: &tokio::task::JoinError) -> Failure {
    Failure::new(ErrorKind::Internal, format!("it ended unexpectedly: {error}"))
}

fn checked(field: &str, name: &str) -> Result<TargetName, Failure> {
    name.parse().map_err(|why| {
        Failure::new(ErrorKind::InvalidRequest, format!("{field} is not a legal name: {why}"))
    })
}

impl ContainerModels for PlatformModels {
    fn load(
        &self,
        name: String,
        url: String,
        path: PathBuf,
    ) -> BoxFuture<'static, Result<LoadOutcome, Failure>> {
        let name = match checked("model_name", &name) {
            Ok(name) => name,
            Err(failure) => return async move { Err(failure) }.boxed(),
        };
        if !self.local.announce(name.clone(), Announced { url, folder: path }) {
            return async { Ok(LoadOutcome::AlreadyLoaded) }.boxed();
        }
        let (local, loaded, residency) =
            (self.local.clone(), self.loaded.clone(), self.residency.clone());
        let model = self.model(name.clone());
        // A task of its own: the load goes on when the caller leaves, and what it announced is
        // withdrawn by whoever sees it fail.
        let task = tokio::spawn(async move {
            // The platform decides who leaves; a folder it names again is tried again.
            let options = LoadOptions { evict: false, force: true };
            match residency.load(&model, options).await {
                Ok(_) => {
                    // The platform evicts; our own idle rules and budget changes must not.
                    residency.keep(&model).await?;
                    loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
                    Ok(LoadOutcome::Loaded)
                }
                Err(failure) => {
                    local.withdraw(name.as_str());
                    match failure.kind() {
                        ErrorKind::TooLarge => Ok(LoadOutcome::NoMemory),
                        _ => Err(failure),
                    }
                }
            }
        });
        async move {
            task.await.unwrap_or_else(|error| {
                warn!(%error, "a load's task failed");
                Err(Failure::new(ErrorKind::Internal, "the load ended unexpectedly"))
            })
        }
        .boxed()
    }

    fn list(&self) -> Vec<ContainerModel> {
        let all = self.local.all().into_iter();
        all.filter(|(name, _)| self.is_loaded(name.as_str()))
            .map(|(name, announced)| self.shown(name, announced))
            .collect()
    }

    fn get(&self, name: &str) -> Option<ContainerModel> {
        if !self.is_loaded(name) {
            return None;
        }
        let announced = self.local.get(name)?;
        Some(self.shown(checked("model_name", name).ok()?, announced))
    }

    fn unload(&self, name: &str) -> BoxFuture<'static, Result<bool, Failure>> {
        let Some(shown) = self.get(name) else { return async { Ok(false) }.boxed() };
        let (models, local, loaded) = (self.clone(), self.local.clone(), self.loaded.clone());
        // A task of its own: when the caller leaves, the name is still free again once the
        // memory is.
        let task = tokio::spawn(async move {
            let unloaded = models.unload_with_base(&shown.model.target).await?;
            let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
            // Of two calls one withdraws it: the name may be announced again by now.
            if loaded.remove(shown.name.as_str()) {
                local.withdraw(&shown.name);
            }
            Ok(unloaded)
        });
        async move {
            task.await.unwrap_or_else(|error| {
                warn!(%error, "an unload's task failed");
                Err(Failure::new(ErrorKind::Internal, "the unload ended unexpectedly"))
            })
        }
        .boxed()
    }
}
