//! What of a running server follows its settings: built beside what is in force, then put in its
//! place, so that each request sees one state or the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use roundhouse_gateway::{Capture, Offered};
use roundhouse_residency::Residency;
use roundhouse_serving::ServedModel;
use roundhouse_tenancy::{Accounts, Current, Identity, KeyFile, Policy};
use roundhouse_types::{Bytes, EndpointName, ErrorKind, Failure, ModelId};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::asynchronous::Deferrals;
use super::behind::{Behinds, Standing};
use super::build::{self, Catalogs, Credentials};
use super::capture::Captures;
use super::disk::Disk;
use super::preload::Wishes;
use super::single::Single;
use super::{behind, faces, settings};
use crate::config::Config;
use crate::error::Error;
use crate::loader::{Bases, Handlers, ModelLoader, Scope, Source};

/// How often it is looked whether requests that saw an endpoint have ended.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The parts that change. Clones are the same.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) residency: Residency<ServedModel>,
    pub(super) loader: Arc<ModelLoader>,
    pub(super) disk: Disk,
    pub(super) catalogs: Arc<Current<Catalogs>>,
    pub(super) offered: Arc<Current<Offered>>,
    pub(super) policy: Arc<Current<Policy>>,
    pub(super) handlers: Handlers,
    pub(super) credentials: Option<Credentials>,
    pub(super) identity: Arc<Identity>,
    pub(super) accounts: Arc<Accounts>,
    /// Requests whose callers do not wait.
    pub(super) deferrals: Deferrals,
    pub(super) captures: Captures,
    /// Containers behind endpoints.
    pub(super) behinds: Behinds,
    /// Of all devices together: what floors are held against.
    pub(super) budget: Bytes,
    /// Stays whatever the settings say.
    pub(super) single: Option<Single>,
}

/// What endpoints capture.
type Captured = BTreeMap<EndpointName, Capture>;

/// What a change leaves behind.
struct Leaving {
    /// What requests that came before may still hold.
    offered: Arc<Offered>,
    /// Endpoints that are gone, or whose mounts are others now.
    endpoints: Vec<EndpointName>,
    /// Models that are not to be kept any more.
    released: Vec<ModelId>,
    /// How long requests that came before may wait for a model.
    patience: Duration,
}

impl Live {
    /// Replaces everything that can change while the server runs. Returns when new requests see it;
    /// what has left drains behind it.
    ///
    /// # Errors
    /// When a store cannot be connected, a file of keys is no good, or residency has ended. Nothing has changed then.
    pub(super) async fn apply(&self, old: &Config, new: &Config) -> Result<(), Failure> {
        let before = self.catalogs.get();
        let mut catalogs = Catalogs::new();
        for endpoint in new.endpoints.iter().filter(|it| it.containers.is_none()) {
            let is_same =
                old.endpoint(&endpoint.name).is_some_and(|it| it.mounts == endpoint.mounts);
            let catalog = match before.get(&endpoint.name).filter(|_| is_same) {
                Some(catalog) => catalog.clone(),
                None => {
                    let cache = self.disk.open(new).await.map_err(|it| unopened(&it))?;
                    build::catalogue(new, endpoint, cache, self.credentials.as_ref()).await?
                }
            };
            catalogs.insert(endpoint.name.clone(), catalog);
        }
        let left: Vec<EndpointName> = before
            .iter()
            .filter(|(name, catalog)| {
                catalogs.get(*name).is_none_or(|it| !Arc::ptr_eq(it, catalog))
            })
            .map(|(name, _)| name.clone())
            .collect();
        let prepared = self.captures.prepared(new).await?;
        let standing = self.behinds.prepared(new)?;
        self.deferrals.apply(new).await?;
        let offered = match self.change(old, new, catalogs, (prepared.captures(), &standing)).await
        {
            Ok(offered) => offered,
            Err(failure) => {
                // What was in force was connected before, and is again.
                return Err(gone_back(failure, self.deferrals.apply(old).await));
            }
        };
        self.captures.put(prepared);
        self.behinds.put(standing);
        let wishes = Wishes::of(&new.endpoints);
        let leaving = Leaving {
            offered,
            endpoints: left,
            released: Wishes::of(&old.endpoints).keeps_beyond(&wishes),
            patience: old.serving.request_timeout.max(old.serving.stream_timeout),
        };
        tokio::spawn(self.clone().settle(leaving, wishes.beyond(&old.endpoints)));
        Ok(())
    }

    /// Whether the disk cache's folder is in use, and the queue's: then they hold. `booted`: where the
    /// queue would be, and is if it is open.
    pub(super) fn has_open(&self, booted: &Config) -> (bool, bool) {
        let has_queue = self.deferrals.is_open();
        let is_within = has_queue && booted.async_dir.is_none();
        let is_used = self.disk.opened().is_some() || self.handlers.workers.is_some();
        (is_used || is_within, has_queue)
    }

    /// Whether an endpoint is to serve handlers, and nothing was started that runs them.
    pub(super) fn lacks_handlers(&self, new: &Config) -> bool {
        self.handlers.workers.is_none() && !build::endpoints_with_handlers(new).is_empty()
    }

    /// Goes over from one to the other; returns what was offered before. What can fail is first.
    async fn change(
        &self,
        old: &Config,
        new: &Config,
        catalogs: Catalogs,
        (captured, standing): (Captured, &Standing),
    ) -> Result<Arc<Offered>, Failure> {
        if let Some(path) = new.auth.keys.as_ref().filter(|_| old.auth.keys != new.auth.keys) {
            KeyFile::open(path).map_err(unusable)?;
        }
        self.set_terms(new).await?;
        if !new.asks_callers() {
            // Looser: as long as the old policy holds, those who are not asked may do nothing.
            if let Err(error) = self.identity.apply(&new.auth) {
                return Err(gone_back(unusable(error), self.set_terms(old).await));
            }
            self.tell_disk(new);
            return Ok(self.put(new, catalogs, &captured, standing));
        }
        // Tighter, or as before: nobody is known by a new name before it is said what they may use.
        let before = (*self.catalogs.get()).clone();
        let faces = self.offered.get();
        let offered = self.put(new, catalogs, &captured, standing);
        if let Err(error) = self.identity.apply(&new.auth) {
            // The file of keys left between two looks.
            self.put(old, before, &captures_of(&faces), &self.behinds.get());
            return Err(gone_back(unusable(error), self.set_terms(old).await));
        }
        self.tell_disk(new);
        Ok(offered)
    }

    /// Not before all that can fail: what left the disk would not come back with the old settings.
    fn tell_disk(&self, new: &Config) {
        if let Some(cache) = self.disk.opened() {
            settings::tell_disk(cache, new);
        }
    }

    async fn set_terms(&self, config: &Config) -> Result<(), Failure> {
        let (tenants, drains) = (settings::tenants(config), settings::drain_deleted(config));
        self.residency.set_terms(tenants, drains).await
    }

    /// Puts it in force; returns what was offered before.
    fn put(
        &self,
        new: &Config,
        catalogs: Catalogs,
        captured: &Captured,
        standing: &Standing,
    ) -> Arc<Offered> {
        // First where models are found, then that they can be asked. What is gone stays until
        // nobody can ask for it any more.
        let mut sources = self.loader.sources();
        if let Some(cache) = self.disk.opened() {
            let stores = catalogs.iter().map(|(name, catalog)| {
                (name.clone(), Source::Store(catalog.clone(), cache.clone()))
            });
            sources.extend(stores);
        }
        self.loader.reconfigure(Scope {
            sources,
            rules: settings::version_rules(new),
            bases: Bases { named: settings::bases(new), ..self.loader.bases() },
            handlers: build::endpoints_with_handlers(new),
            engines: settings::engines(new),
            cache: self.disk.folder().map(Path::to_owned),
        });
        let policy = Arc::new(settings::policy(new));
        self.policy.set(policy.clone());
        self.accounts.apply(new.quota_rules());
        let mut endpoints =
            faces::endpoints(new, &catalogs, &self.handlers, &self.loader, captured);
        endpoints.extend(behind::faces(new, standing, captured));
        if let Some(single) = &self.single {
            endpoints.push(single.face(new.handlers.enabled, &self.loader));
        }
        self.catalogs.set(catalogs);
        let before = self.offered.get();
        self.offered.set(Offered { endpoints, policy });
        before
    }

    /// Lets go of what has left, when the requests that saw it have ended; then does what the new
    /// settings wish for.
    async fn settle(self, leaving: Leaving, wishes: Wishes) {
        self.unload_unsupported();
        for model in &leaving.released {
            if let Err(failure) = self.residency.release(model).await {
                return debug!(%failure, "residency has ended");
            }
        }
        let until = Instant::now() + leaving.patience;
        // Ours is the last.
        while Arc::strong_count(&leaving.offered) > 1 && Instant::now() < until {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        // Again: one whose load was just ending was no resident yet.
        self.unload_unsupported();
        self.forget_sources();
        let Ok(snapshot) = self.residency.gathered().await else { return };
        let residents = snapshot.devices.into_iter().flat_map(|device| device.residents);
        for resident in residents.filter(|it| leaving.endpoints.contains(&it.endpoint)) {
            let (endpoint, target) = (resident.endpoint, resident.target);
            self.unload(ModelId { endpoint, target });
        }
        for endpoint in leaving.endpoints {
            if let Err(failure) = self.residency.note_left(endpoint).await {
                return debug!(%failure, "residency has ended");
            }
        }
        wishes.fulfil(self.residency).await;
    }

    fn unload_unsupported(&self) {
        for adapter in self.loader.unsupported() {
            info!(model = %adapter, "leaves: not everybody who may use it may use its base any more");
            self.unload(adapter);
        }
    }

    /// Forgets where models of endpoints are found that no settings name any more.
    fn forget_sources(&self) {
        let catalogs = self.catalogs.get();
        let mut sources = self.loader.sources();
        sources.retain(|name, source| match source {
            // Bases of the container contract are no endpoint of the settings.
            Source::Store(..) => catalogs.contains_key(name) || self.loader.is_elsewhere(name),
            Source::Local(_) => true,
        });
        self.loader.set_sources(sources);
    }

    /// Unloads a model when its last request has ended.
    fn unload(&self, model: ModelId) {
        let residency = self.residency.clone();
        tokio::spawn(async move {
            match residency.unload(&model).await {
                Ok(_) => info!(%model, "unloaded: the settings have changed"),
                Err(failure) if failure.kind() == ErrorKind::ModelNotFound => {}
                Err(failure) => warn!(%model, %failure, "not unloaded"),
            }
        });
    }
}

/// What endpoints capture by the settings that are in force.
fn captures_of(offered: &Offered) -> Captured {
    let faces = offered.endpoints.iter();
    faces.filter_map(|it| Some((it.name.clone(), it.capture.clone()?))).collect()
}

/// What a change failed of, first of all; and that not all is as it was, where going back failed too.
fn gone_back(fault: Failure, back: Result<(), Failure>) -> Failure {
    let Err(also) = back else { return fault };
    let message = format!("{fault}; and not all of what was in force could be put back: {also}");
    Failure::new(fault.kind(), message).with_retry(fault.retry())
}

fn unusable(error: roundhouse_tenancy::Error) -> Failure {
    Failure::from_error(ErrorKind::InvalidRequest, &error)
}

/// With what to do about it, which only its finder knows: whoever reloads sees no more than this.
fn unopened(error: &Error) -> Failure {
    let failure = match error {
        Error::Failed(failure) => failure.clone(),
        error => Failure::from_error(error.kind(), error),
    };
    match error {
        Error::Advised { hint, .. } => Failure::new(failure.kind(), format!("{failure}: {hint}")),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_cannot_be_taken_back_tells_first_what_it_failed_of() {
        let fault = || Failure::new(ErrorKind::InvalidRequest, "no such file of keys");
        assert_eq!(gone_back(fault(), Ok(())).message(), "no such file of keys");
        let told = gone_back(fault(), Err(Failure::new(ErrorKind::Internal, "the queue is gone")));
        assert_eq!(told.kind(), ErrorKind::InvalidRequest);
        assert_eq!(
            told.message(),
            "no such file of keys; and not all of what was in force could be put back: the queue is \
             gone"
        );
    }

    #[test]
    fn what_cannot_be_opened_is_told_with_its_kind_its_cause_and_what_to_do() {
        let full = || Failure::new(ErrorKind::Overloaded, "no room");
        let told = unopened(&Error::Failed(full()));
        assert_eq!((told.kind(), told.to_string().as_str()), (ErrorKind::Overloaded, "no room"));
        let told = unopened(&Error::Failed(full()).with_hint("make some"));
        assert_eq!(told.kind(), ErrorKind::Overloaded);
        assert_eq!(told.to_string(), "no room: make some");
        let source = std::io::ErrorKind::PermissionDenied.into();
        let told = unopened(&Error::io("cannot see /x", source));
        assert_eq!(told.kind(), ErrorKind::Internal);
        assert_eq!(told.to_string(), "cannot see /x: permission denied");
    }
}
