//! What is known of versions beside the catalogue: what endpoints do when the store changes,
//! what operators try, and what the store could not find.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lru::LruCache;
use roundhouse_store::{
    Artefact, Choice, ChosenBy, DiskCache, DiskVersion, Freshness, PassedOver, Purged,
};
use roundhouse_tenancy::Current;
use roundhouse_types::{ArtefactId, EndpointName, ErrorKind, Failure, ModelId, RetryHint, Version};
use tokio::time::Instant;
use tracing::warn;

use super::resolve::is_former;
use super::{ModelLoader, STORE_PATIENCE, Source, locked};
use crate::config::{OnDelete, Update, VersionRule};

/// Models whose absence from the store is remembered until it is certain.
const MODELS_REMEMBERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// What an operator wants served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// This version.
    Version(Version),
    /// What the store holds now.
    Latest,
}

/// What operators try, by model: it counts at once, and is remembered when it has succeeded.
#[derive(Debug, Default)]
struct Trials(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    running: HashMap<ModelId, (u64, Wish)>,
    begun: u64,
}

impl Trials {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A map whose holder panicked is whole: entries are inserted or removed at once.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operator's wish while it is tried. Dropped, it counts no more; a later one of the same
/// model takes its place.
#[derive(Debug)]
pub(crate) struct Trial {
    trials: Arc<Trials>,
    model: ModelId,
    number: u64,
    wish: Wish,
}

impl Trial {
    /// Whether no later one took its place.
    pub(crate) fn counts(&self) -> bool {
        self.trials
            .lock()
            .running
            .get(&self.model)
            .is_some_and(|(number, _)| *number == self.number)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let mut trials = self.trials.lock();
        if trials.running.get(&self.model).is_some_and(|(number, _)| *number == self.number) {
            trials.running.remove(&self.model);
        }
    }
}

/// Rules of endpoints and what operators try. Owned by the loader.
pub(super) struct Versions {
    rules: Current<BTreeMap<EndpointName, VersionRule>>,
    /// How long the store must not find a model before it counts as deleted: a folder that
    /// is being replaced can be empty for a moment.
    confirm: Duration,
    trials: Arc<Trials>,
    /// Since when the store has not found a model that it held before.
    missing: Mutex<LruCache<ModelId, Instant>>,
}

impl Default for Versions {
    fn default() -> Self {
        Self {
            rules: Current::default(),
            confirm: Duration::ZERO,
            trials: Arc::default(),
            missing: Mutex::new(LruCache::new(MODELS_REMEMBERED)),
        }
    }
}

impl Versions {
    pub(super) fn rule(&self, endpoint: &EndpointName) -> VersionRule {
        self.rules.get().get(endpoint).copied().unwrap_or_default()
    }

    pub(super) fn set_rules(&self, rules: BTreeMap<EndpointName, VersionRule>) {
        self.rules.set(rules);
    }

    /// What an operator tries now.
    pub(super) fn tried(&self, model: &ModelId) -> Option<Wish> {
        self.trials.lock().running.get(model).map(|(_, wish)| wish.clone())
    }

    /// The version that a model is held at: an operator's always counts, the rule's while the
    /// endpoint has one that holds.
    pub(super) fn held(&self, cache: &DiskCache, model: &ModelId) -> Option<Choice> {
        let holds = self.rule(&model.endpoint).update != Update::Auto;
        cache.choice(model).filter(|choice| holds || choice.by == ChosenBy::Operator)
    }

    /// The store named a version.
    pub(super) fn found(&self, model: &ModelId) {
        locked(&self.missing).pop(model);
    }

    /// The store found nothing of a model that it held before. Says whether that is to be
    /// believed: whether it has been so for long enough.
    pub(super) fn missing(&self, model: &ModelId) -> bool {
        let now = Instant::now();
        let since = *locked(&self.missing).get_or_insert(model.clone(), || now);
        now.duration_since(since) >= self.confirm
    }

    /// What a model's being missing means before it is believed, where it drains residents:
    /// "not ready".
    pub(super) fn not_yet(&self, model: &ModelId, failure: Failure) -> Failure {
        if self.rule(&model.endpoint).on_delete == OnDelete::Serve {
            return failure;
        }
        let message = format!(
            "{failure}; it counts as deleted when it is still not found {:?} later",
            self.confirm
        );
        Failure::new(ErrorKind::NotReady, message).with_retry(RetryHint::After(self.confirm))
    }
}

impl ModelLoader {
    /// With the rules of its endpoints; those of others are the default. A model counts as
    /// deleted when the store has not found it for `confirm`.
    #[must_use]
    pub(crate) fn with_rules(
        mut self,
        rules: BTreeMap<EndpointName, VersionRule>,
        confirm: Duration,
    ) -> Self {
        self.versions = Versions { rules: Current::new(rules), confirm, ..Versions::default() };
        self
    }

    /// What an endpoint does when the store changes.
    pub(crate) fn rule(&self, endpoint: &EndpointName) -> VersionRule {
        self.versions.rule(endpoint)
    }

    /// Has a wish count from now on, until it is dropped or succeeded by another.
    pub(crate) fn begin_trial(&self, model: &ModelId, wish: Wish) -> Trial {
        let trials = Arc::clone(&self.versions.trials);
        let number = {
            let mut state = trials.lock();
            state.begun += 1;
            let number = state.begun;
            state.running.insert(model.clone(), (number, wish.clone()));
            number
        };
        Trial { trials, model: model.clone(), number, wish }
    }

    /// Whether a wish is tried just now.
    pub(crate) fn is_tried(&self, model: &ModelId) -> bool {
        self.versions.tried(model).is_some()
    }

    /// Remembers what was tried, also for after a restart: `version` came of it, and `serving` serves by
    /// now. Returns the version that the model is held at from now on because an operator chose it.
    ///
    /// # Errors
    /// `NotReady` where a later trial took its place, and those of the disk.
    pub(crate) async fn commit(
        &self,
        trial: Trial,
        version: &Version,
        serving: Option<&Version>,
    ) -> Result<Option<Version>, Failure> {
        let model = &trial.model;
        if !trial.counts() {
            return Err(overtaken(model));
        }
        let cache = self.cache_of(model)?;
        let hold = |by| Choice { version: version.clone(), by, since: SystemTime::now() };
        let updates = self.rule(&model.endpoint).update == Update::Auto;
        match trial.wish {
            Wish::Version(_) => {
                cache.choose(model, hold(ChosenBy::Operator)).await?;
                // Of a model that nobody wants just now nothing was loaded.
                if serving == Some(version) {
                    cache.loaded(&ArtefactId { model: model.clone(), version: version.clone() });
                }
            }
            Wish::Latest if updates => drop(cache.unchoose(model).await?),
            Wish::Latest => cache.choose(model, hold(ChosenBy::Rule)).await?,
        }
        Ok(matches!(trial.wish, Wish::Version(_)).then(|| version.clone()))
    }

    /// Under a rule that holds, what was loaded first of the endpoint's store is what stays; under one that
    /// does not, what such a rule held before is forgotten.
    pub(super) async fn hold_first(&self, cache: &DiskCache, id: &ArtefactId) {
        let model = &id.model;
        let holds = self.rule(&model.endpoint).update != Update::Auto;
        let is_former = |choice: &Choice| match self.source(&model.endpoint) {
            Ok(Source::Store(catalog, cache)) => is_former(&catalog, &cache, model, choice),
            _ => false,
        };
        let by_rule = |choice: &Choice| choice.by == ChosenBy::Rule;
        let before = cache.choice(model);
        let before = before.filter(|it| !(holds && by_rule(it) && is_former(it)));
        let written = match before {
            None if holds => {
                let (version, since) = (id.version.clone(), SystemTime::now());
                cache.choose(model, Choice { version, by: ChosenBy::Rule, since }).await
            }
            Some(choice) if !holds && by_rule(&choice) => cache.unchoose(model).await.map(drop),
            _ => Ok(()),
        };
        if let Err(error) = written {
            // A full disk must not keep models from memory; after a restart the store decides.
            warn!(%error, model = %id, "the version that is served was not remembered");
        }
    }

    /// Lifts what a model is held at; says whether it was.
    pub(crate) async fn lift(&self, model: &ModelId) -> Result<bool, Failure> {
        Ok(self.cache_of(model)?.unchoose(model).await?.is_some())
    }

    /// Deletes every version's files from the disk cache.
    pub(crate) async fn purge(&self, model: &ModelId) -> Result<Vec<Purged>, Failure> {
        Ok(self.cache_of(model)?.purge_model(model).await?)
    }

    /// The version that a model is held at, where that counts.
    pub(crate) fn choice(&self, model: &ModelId) -> Option<Choice> {
        let Ok(Source::Store(catalog, cache)) = self.source(&model.endpoint) else { return None };
        self.held_here(&catalog, &cache, model)
    }

    /// The versions that are whole on disk.
    pub(crate) fn on_disk(&self, model: &ModelId) -> Vec<DiskVersion> {
        self.cache_of(model).map(|cache| cache.versions(model)).unwrap_or_default()
    }

    /// What the store holds; asked for a bounded time.
    ///
    /// # Errors
    /// The store's; `StoreUnavailable` where it did not answer in time.
    pub(crate) async fn look(
        &self,
        model: &ModelId,
        freshness: Freshness,
    ) -> Result<Arc<Artefact>, Failure> {
        let Source::Store(catalog, _) = self.source(&model.endpoint)? else {
            return Err(no_store(model));
        };
        let asking = catalog.resolve(&model.target, freshness);
        let Ok(answer) = tokio::time::timeout(STORE_PATIENCE, asking).await else {
            return Err(super::resolve::too_slow(model));
        };
        let artefact = answer?;
        self.seen(&artefact);
        Ok(artefact)
    }

    /// The upload that a model's version answers in place of, as its store was last looked at.
    pub(crate) async fn passed_over(&self, model: &ModelId) -> Option<Arc<PassedOver>> {
        let Ok(Source::Store(catalog, _)) = self.source(&model.endpoint) else { return None };
        catalog.passed_over(&model.target).await
    }

    /// When a version was first seen since the server started; `None` if it was not.
    pub(crate) fn first_seen(&self, id: &ArtefactId) -> Option<SystemTime> {
        locked(&self.known).peek(id).and_then(|known| known.seen_at)
    }

    fn seen(&self, artefact: &Arc<Artefact>) {
        let mut known = self.recall(&artefact.id);
        known.artefact = Some(Arc::clone(artefact));
        known.seen_at.get_or_insert_with(SystemTime::now);
        self.remember(&artefact.id, known);
    }

    pub(super) fn cache_of(&self, model: &ModelId) -> Result<DiskCache, Failure> {
        match self.source(&model.endpoint)? {
            Source::Store(_, cache) => Ok(cache),
            Source::Local(_) => Err(no_store(model)),
        }
    }
}

/// The failure of a wish that a later one took the place of.
pub(crate) fn overtaken(model: &ModelId) -> Failure {
    let message = format!("another version of {model} was asked for meanwhile");
    Failure::new(ErrorKind::NotReady, message).with_retry(RetryHint::Later)
}

fn no_store(model: &ModelId) -> Failure {
    let message = format!("{model} comes from no store of ours: its platform chooses its version");
    Failure::new(ErrorKind::InvalidRequest, message)
}
