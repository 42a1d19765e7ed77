//! Which version is served: what the store names, or what the model is held at.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use roundhouse_residency::{Authority, InStore, Resolution, Standing};
use roundhouse_store::{
    Artefact, Catalog, Choice, ChosenBy, DiskCache, Error as StoreError, Freshness, Origin,
    PassedOver,
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
                let held = self.held_here(catalog, cache, model).map(|choice| {
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
            let passed = catalog.passed_over(&model.target).await;
            let passed = passed.filter(|passed| passed.version != resolution.version);
            // What has been damaged for long is taken for no upload under way.
            let damaged = passed.as_ref().filter(|passed| passed.stale);
            resolution.standing.unfit = damaged.map(|it| (it.version.clone(), damage(model, it)));
            resolution.standing.unsettled = passed.is_some_and(|passed| !passed.stale);
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
                let is_ours = by == Authority::Store;
                // Whoever nothing else can answer has it tried again.
                if let Some(failure) = self.refused_for(&newest, refresh).filter(|_| is_ours)
                    && let Ok(before) =
                        self.resolve_before(catalog, cache, newest.clone(), failure).await
                {
                    return Ok(before);
                }
                match self.resolve_listed(catalog, cache, artefact, by).await {
                    Err(failure) if is_ours => {
                        self.resolve_before(catalog, cache, newest, failure).await
                    }
                    resolved => resolved,
                }
            }
            Err(failure) => {
                let Some(id) = self.stand_in(catalog, cache, model, &failure) else {
                    return Err(failure);
                };
                warn!(model = %model, %failure, "store is down, serving the version on disk");
                let store = InStore::Unreached(failure);
                let standing = Standing { by, store, ..Standing::default() };
                self.resolve_on_disk(cache, id, standing).await
            }
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
        let origin = catalog.origin(&model.target);
        let latest = origin.as_ref().and_then(|origin| cache.latest_from(model, origin));
        let answer = if latest.is_none() {
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
                if let Some(origin) = &origin {
                    cache.named(&artefact.id, origin);
                }
                locked(&self.current).put(model.clone(), artefact.id.clone());
                let mut known = self.recall(&artefact.id);
                known.artefact = Some(Arc::clone(&artefact));
                known.listing = began.elapsed();
                known.seen_at.get_or_insert_with(SystemTime::now);
                self.remember(&artefact.id, known);
                Ok(artefact)
            }
            Err(failure) if failure.kind() == ErrorKind::ModelNotFound => {
                // What a former store of the endpoint had, this one never deleted.
                let here = origin.filter(|origin| self.was_named(cache, model, origin));
                let was_there = here.is_some();
                if let Some(origin) = here.filter(|_| self.versions.missing(model)) {
                    cache.gone(model, &origin);
                } else if was_there && refresh {
                    return Err(self.versions.not_yet(model, failure));
                }
                Err(failure)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Whether this place was seen to have the model: named a version of it, by what is known of those
    /// on disk, or by the answer to the last question.
    pub(super) fn was_named(&self, cache: &DiskCache, model: &ModelId, origin: &Origin) -> bool {
        let current = locked(&self.current).peek(model).cloned();
        let is_here = |id: &ArtefactId| cache.get(id).is_none() || cache.is_from(id, origin);
        current.is_some_and(|id| is_here(&id)) || cache.latest_from(model, origin).is_some()
    }

    /// The version that a model is held at. What a rule holds of a former store of the endpoint counts no
    /// more; what an operator chose does.
    pub(super) fn held_here(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        model: &ModelId,
    ) -> Option<Choice> {
        let choice = self.versions.held(cache, model)?;
        let counts = choice.by == ChosenBy::Operator || !is_former(catalog, cache, model, &choice);
        counts.then_some(choice)
    }

    /// The version on disk that answers while the store is down: the one that the model is
    /// held at, else the one that the store named last, even if another was fetched later, for
    /// it may have been taken back since; where that is refused, the one that was loaded last. None of
    /// another store, and none that was deleted in the store.
    pub(super) fn stand_in(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        model: &ModelId,
        failure: &Failure,
    ) -> Option<ArtefactId> {
        if failure.kind() != ErrorKind::StoreUnavailable {
            return None;
        }
        let held = self.held_here(catalog, cache, model).map(|choice| choice.version);
        let held = held.map(|version| ArtefactId { model: model.clone(), version });
        let held = held.filter(|id| cache.get(id).is_some());
        let origin = catalog.origin(&model.target)?;
        if held.is_some() || cache.is_gone(model, &origin) {
            return held;
        }
        let current = locked(&self.current).get(model).cloned();
        let current = current.filter(|id| cache.is_from(id, &origin));
        let latest = cache.latest_from(model, &origin);
        let mut named = current.into_iter().chain(latest.clone());
        let fit = named.find(|id| self.recall(id).refused.is_none());
        fit.or_else(|| cache.last_loaded(model, &origin)).or(latest)
    }

    pub(super) async fn resolve_on_disk(
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

/// Whether what a model is held at lies on disk from another store than the endpoint has now.
pub(super) fn is_former(
    catalog: &Catalog,
    cache: &DiskCache,
    model: &ModelId,
    choice: &Choice,
) -> bool {
    let id = ArtefactId { model: model.clone(), version: choice.version.clone() };
    let Some(origin) = catalog.origin(&model.target) else { return false };
    cache.get(&id).is_some() && !cache.is_from(&id, &origin)
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
