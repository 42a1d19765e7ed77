//! Which version is served: what the store names, or what the model is held at.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use roundhouse_residency::{Authority, InStore, Resolution, Standing};
use roundhouse_store::{
    Artefact, Catalog, ChosenBy, DiskCache, Error as StoreError, Freshness, PassedOver,
};
use roundhouse_types::{ArtefactId, Bytes, ErrorKind, Failure, ModelId, RetryHint, Version};
use tracing::warn;

use super::arriving::streams;
use super::plan::Plan;
use super::stages::Stage;
use super::versions::Wish;
use super::{DEATHS_TO_QUARANTINE, ModelLoader, STORE_PATIENCE, locked, named};
use crate::config::{OnDelete, Update};

/// A version that is served whatever the store holds.
struct Held {
    version: Version,
    by: Authority,
    /// An operator tries it just now, and waits.
    is_tried: bool,
}

impl ModelLoader {
    /// Finds the version of a model that lies in a store.
    pub(super) async fn resolve_in_store(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        model: &ModelId,
        refresh: bool,
    ) -> Result<Resolution, Failure> {
        let (by, held) = match self.versions.tried(model) {
            Some(Wish::Version(version)) => {
                let by = Authority::Operator;
                (by, Some(Held { version, by, is_tried: true }))
            }
            Some(Wish::Latest) => (Authority::Operator, None),
            None => {
                let held = self.versions.held(cache, model).map(|choice| {
                    let by = match choice.by {
                        ChosenBy::Operator => Authority::Operator,
                        ChosenBy::Rule => Authority::Rule,
                    };
                    Held { version: choice.version, by, is_tried: false }
                });
                (Authority::Store, held)
            }
        };
        let is_chosen = held.as_ref().is_some_and(|held| held.by == Authority::Operator);
        let mut resolution = match held {
            Some(held) => self.resolve_held(catalog, cache, model, held, refresh).await?,
            None => self.resolve_newest(catalog, cache, model, by, refresh).await?,
        };
        // What else the store holds is no news to an operator who chose another version.
        if !is_chosen && resolution.standing.unfit.is_none() {
            resolution.standing.unfit = unfit(catalog, model, &resolution.version).await;
        }
        Ok(resolution)
    }

    /// What the store names; with the store down, what is on disk.
    async fn resolve_newest(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        model: &ModelId,
        by: Authority,
        refresh: bool,
    ) -> Result<Resolution, Failure> {
        match self.ask(catalog, cache, model, refresh).await {
            Ok(artefact) => {
                let newest = artefact.id.clone();
                // A look for a newer version tries it again, and so does whoever nothing else can answer.
                let refused = self.recall(&newest).refused;
                if let Some(failure) = refused.filter(|_| !refresh && by == Authority::Store)
                    && let Ok(before) = self.resolve_before(cache, newest.clone(), failure).await
                {
                    return Ok(before);
                }
                match self.resolve_listed(catalog, cache, artefact, by).await {
                    Err(failure) if by == Authority::Store => {
                        self.resolve_before(cache, newest, failure).await
                    }
                    resolved => resolved,
                }
            }
            Err(failure) => {
                let Some(id) = self.stand_in(cache, model, &failure) else { return Err(failure) };
                warn!(model = %model, %failure, "store is down, serving the version on disk");
                let store = InStore::Unreached(failure);
                let standing = Standing { by, store, ..Standing::default() };
                self.resolve_on_disk(cache, id, standing).await
            }
        }
    }

    /// Where the newest version's files are to blame, the version that was loaded before it goes on
    /// answering while it is whole on disk, whether it is on a device just now or not.
    async fn resolve_before(
        &self,
        cache: &DiskCache,
        newest: ArtefactId,
        failure: Failure,
    ) -> Result<Resolution, Failure> {
        let before = self.versions.last_loaded(&newest.model);
        let before = before.filter(|id| *id != newest && cache.get(id).is_some());
        let Some(id) = before.filter(|_| failure.kind() == ErrorKind::ModelInvalid) else {
            return Err(failure);
        };
        let Ok(mut resolution) = self.resolve_on_disk(cache, id, Standing::default()).await else {
            return Err(failure);
        };
        let message = format!("{failure}; the version before it is served");
        let told = Failure::new(failure.kind(), message);
        resolution.standing.unfit = Some((newest.version, told));
        Ok(resolution)
    }

    /// Remembers of a load that has ended what later ones go by.
    pub(super) fn judge(&self, id: &ArtefactId, failure: Option<&Failure>) {
        let mut known = self.recall(id);
        let refused = match failure {
            None => {
                self.note_loaded(id);
                None
            }
            Some(failure) => {
                let has_served = self.versions.last_loaded(&id.model).as_ref() == Some(id);
                // Bytes that were not verified may be to blame: they are fetched again.
                let is_known = !has_served && !known.failed_unverified;
                let is_refused = failure.kind() == ErrorKind::ModelInvalid && is_known;
                is_refused.then(|| failure.clone()).or(known.refused.take())
            }
        };
        if refused.is_some() || known.refused.is_some() {
            known.refused = refused;
            self.remember(id, known);
        }
    }

    /// A version was loaded. One that comes late, when the version that the store named after it was
    /// loaded already, is not the one before the next; nor is one that an operator only tried, nor one of
    /// a model that the store deleted.
    fn note_loaded(&self, id: &ArtefactId) {
        let Ok(cache) = self.cache_of(&id.model) else { return };
        if cache.is_gone(&id.model) {
            return;
        }
        let is_named = locked(&self.current).peek(&id.model) == Some(id);
        let held = self.versions.held(&cache, &id.model);
        let is_held = held.is_some_and(|choice| choice.version == id.version);
        let last = self.versions.last_loaded(&id.model);
        if is_named || is_held || last.is_none() || last != cache.latest(&id.model) {
            self.versions.loaded(id);
        }
    }

    /// The version that a model is held at. While it is whole on disk, the store only says
    /// what else there is; else the store must hold this very version.
    async fn resolve_held(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        model: &ModelId,
        held: Held,
        refresh: bool,
    ) -> Result<Resolution, Failure> {
        let rule = self.rule(&model.endpoint);
        let Held { version, by, is_tried } = held;
        let id = ArtefactId { model: model.clone(), version };
        let is_whole = cache.get(&id).is_some();
        let drains = rule.on_delete == OnDelete::Drain;
        // An operator who waits for a version on disk waits for no store.
        let looks = !is_tried && (drains || (refresh && rule.update != Update::Never));
        if is_whole && !looks {
            let standing = Standing { by, store: InStore::Unasked, ..Standing::default() };
            return self.resolve_on_disk(cache, id, standing).await;
        }
        let store = match self.ask(catalog, cache, model, refresh).await {
            Ok(artefact) if artefact.id == id && !is_whole => {
                return self.resolve_listed(catalog, cache, artefact, by).await;
            }
            Ok(artefact) if !is_whole => return Err(lost(&id, by, &artefact.id.version)),
            Ok(artefact) if artefact.id == id => InStore::Same,
            Ok(artefact) => InStore::Other(artefact.id.version.clone()),
            Err(failure) if !is_whole => return Err(failure),
            Err(failure) => match failure.kind() {
                ErrorKind::ModelNotFound if drains => return Err(failure),
                ErrorKind::ModelNotFound => InStore::Gone,
                _ => InStore::Unreached(failure),
            },
        };
        self.resolve_on_disk(cache, id, Standing { by, store, ..Standing::default() }).await
    }

    /// A version that the store named.
    async fn resolve_listed(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        artefact: Arc<Artefact>,
        by: Authority,
    ) -> Result<Resolution, Failure> {
        let id = artefact.id.clone();
        let mut known = self.recall(&id);
        let standing = Standing { by, ..Standing::default() };
        if cache.get(&id).is_some() {
            return self.resolve_on_disk(cache, id, standing).await;
        }
        let began = Instant::now();
        let external = self.external(&id.model);
        if external.is_some() && artefact.archive.is_none() {
            // Else it would be fetched, only to be refused then.
            let names: Vec<&str> = artefact.files.iter().map(|it| it.path.as_str()).collect();
            self.refuse_listed_pickles(&id, &names)?;
        }
        if external.is_none() && known.plan.is_none() && artefact.archive.is_none() {
            let plan = self.handlers.plan_remote(catalog, &artefact, self.settings).await;
            known.plan = Some(plan.map_err(|failure| named(&id, &failure))?);
        }
        known.stages.set(Stage::List, known.listing + began.elapsed());
        self.remember(&id, known.clone());
        let plan = external.or(known.plan);
        let terms = self.terms(&id, plan.as_ref()).await?;
        Ok(Resolution {
            fetch_bytes: artefact.bytes,
            footprint: terms.footprint,
            shared: Vec::new(),
            kind: plan.as_ref().map(Plan::kind),
            off_cards: plan.as_ref().is_some_and(Plan::is_off_cards),
            base: terms.base,
            streams: streams(&artefact, plan.as_ref(), known.failed_unverified),
            quarantined: cache.attempts(&id) >= DEATHS_TO_QUARANTINE,
            standing,
            version: id.version,
        })
    }

    /// Asks the store for the version; not for long where one is whole on disk.
    pub(super) async fn ask(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        model: &ModelId,
        refresh: bool,
    ) -> Result<Arc<Artefact>, Failure> {
        let began = Instant::now();
        let freshness = if refresh { Freshness::Fresh } else { Freshness::Cached };
        let asking = catalog.resolve(&model.target, freshness);
        let answer = if cache.latest(model).is_none() {
            asking.await
        } else {
            let answer = tokio::time::timeout(STORE_PATIENCE, asking).await;
            answer.map_err(|_| too_slow(model))?
        };
        let answer = answer.map_err(|error| match error {
            // The next look may find it whole; a request has waited for that already.
            StoreError::Unsettled { stale: false, .. } if refresh => {
                let retry = error.retry();
                Failure::from_error(ErrorKind::NotReady, &error).with_retry(retry)
            }
            error => error.into(),
        });
        match answer {
            Ok(artefact) => {
                self.versions.found(model);
                cache.named(&artefact.id);
                locked(&self.current).put(model.clone(), artefact.id.clone());
                let mut known = self.recall(&artefact.id);
                known.artefact = Some(Arc::clone(&artefact));
                known.listing = began.elapsed();
                known.seen_at.get_or_insert_with(SystemTime::now);
                self.remember(&artefact.id, known);
                Ok(artefact)
            }
            Err(failure) if failure.kind() == ErrorKind::ModelNotFound => {
                let was_there =
                    locked(&self.current).contains(model) || cache.latest(model).is_some();
                if was_there && self.versions.missing(model) {
                    cache.gone(model);
                    self.versions.deleted(model);
                } else if was_there && refresh {
                    return Err(self.versions.not_yet(model, failure));
                }
                Err(failure)
            }
            Err(failure) => Err(failure),
        }
    }

    /// The version on disk that answers while the store is down: the one that the model is
    /// held at, else the one that the store named last, even if another was fetched later, for
    /// it may have been taken back since. None that was deleted in the store.
    pub(super) fn stand_in(
        &self,
        cache: &DiskCache,
        model: &ModelId,
        failure: &Failure,
    ) -> Option<ArtefactId> {
        if failure.kind() != ErrorKind::StoreUnavailable {
            return None;
        }
        let held = self.versions.held(cache, model).map(|choice| choice.version);
        let held = held.map(|version| ArtefactId { model: model.clone(), version });
        let held = held.filter(|id| cache.get(id).is_some());
        if held.is_some() || cache.is_gone(model) {
            return held;
        }
        let current = locked(&self.current).get(model).cloned();
        let refused = |id: &ArtefactId| self.recall(id).refused.is_some();
        let before = || self.versions.last_loaded(model).filter(|id| cache.get(id).is_some());
        let current = current.filter(|id| cache.get(id).is_some() && !refused(id));
        current.or_else(before).or_else(|| cache.latest(model))
    }

    async fn resolve_on_disk(
        &self,
        cache: &DiskCache,
        id: ArtefactId,
        standing: Standing,
    ) -> Result<Resolution, Failure> {
        let (plan, shared) = match cache.get(&id) {
            Some(cached) => {
                let plan = self.plan_of(&id, cached.dir()).await?;
                let shared = self.known_shared(&id, &plan, cached).await?;
                (Some(plan), shared)
            }
            None => (None, Vec::new()),
        };
        let terms = self.terms(&id, plan.as_ref()).await?;
        Ok(Resolution {
            fetch_bytes: Bytes::ZERO,
            footprint: terms.footprint,
            shared,
            kind: plan.as_ref().map(Plan::kind),
            off_cards: plan.as_ref().is_some_and(Plan::is_off_cards),
            base: terms.base,
            streams: false,
            quarantined: cache.attempts(&id) >= DEATHS_TO_QUARANTINE,
            standing,
            version: id.version,
        })
    }
}

/// What the store holds in place of the version that answers, where that has been damaged for so
/// long that no upload is taken to be under way.
async fn unfit(
    catalog: &Catalog,
    model: &ModelId,
    serving: &Version,
) -> Option<(Version, Failure)> {
    let passed = catalog.passed_over(&model.target).await?;
    if !passed.stale || passed.version == *serving {
        return None;
    }
    Some((passed.version.clone(), damage(model, &passed)))
}

/// The failure of an upload that is damaged, for those who see that another version answers.
pub(crate) fn damage(model: &ModelId, passed: &PassedOver) -> Failure {
    let message = format!("{}; the version before it is served", lacking(model, passed));
    Failure::new(ErrorKind::ModelInvalid, message)
}

/// What is wrong with an upload that a model's version answers in place of.
pub(crate) fn lacking(model: &ModelId, passed: &PassedOver) -> String {
    let short = passed.version.as_str().get(..12).unwrap_or(passed.version.as_str());
    let what = doubt(passed);
    format!("what the store holds of {model}, version {short}, {what}: {}", passed.why)
}

/// The same in few words.
pub(crate) fn doubt(passed: &PassedOver) -> &'static str {
    match (passed.stale, passed.is_whole) {
        (true, _) => "is damaged, or its upload never ended",
        (false, true) => "may still be written",
        (false, false) => "is not whole yet",
    }
}

/// The failure of a store that did not name a version within [`STORE_PATIENCE`].
pub(super) fn too_slow(model: &ModelId) -> Failure {
    let message = format!("the store did not name a version of {model} in time");
    Failure::new(ErrorKind::StoreUnavailable, message).with_retry(RetryHint::Later)
}

/// The failure of a version that is to be served and is nowhere to be had.
fn lost(id: &ArtefactId, by: Authority, in_store: &Version) -> Failure {
    let short = in_store.as_str().get(..12).unwrap_or(in_store.as_str());
    let by = match by {
        Authority::Rule => "the endpoint's update rule",
        Authority::Operator | Authority::Store => "an operator",
    };
    let model = &id.model;
    let message = format!(
        "{id} is what {by} holds {model} at, its files are not on disk any more, and the store \
         holds version {short}: 'roundhouse use {model} latest' serves that one"
    );
    Failure::new(ErrorKind::ModelInvalid, message)
}
