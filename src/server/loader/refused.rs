//! Versions that were refused: which one answers in place of them, and when they are tried again.

use std::time::Duration;

use roundhouse_residency::{Resolution, Standing};
use roundhouse_store::{Catalog, DiskCache};
use roundhouse_types::{ArtefactId, ErrorKind, Failure, ModelId};
use tokio::time::Instant;

use super::plan::Plan;
use super::{ModelLoader, Source, locked};

/// The first pause before a refused version is tried again whose failure could pass; it doubles.
const AGAIN_FIRST: Duration = Duration::from_secs(60);
const AGAIN_LATEST: Duration = Duration::from_secs(3600);

/// Why a version was not taken, where it is to blame itself.
#[derive(Clone)]
pub(super) struct Refused {
    failure: Failure,
    times: u32,
    /// From when on a look for a newer version tries it again; none does where the failure is of its
    /// files alone, which do not change.
    again: Option<Instant>,
}

impl ModelLoader {
    /// Why a version is passed over where another one can answer. A look for newer ones passes it over
    /// until its pause is over.
    pub(super) fn refused_for(&self, id: &ArtefactId, refresh: bool) -> Option<Failure> {
        let refused = self.recall(id).refused?;
        let is_due = refused.again.is_some_and(|again| again <= Instant::now());
        (!(refresh && is_due)).then_some(refused.failure)
    }

    /// Where the newest version is to blame itself, the version of the same store that was loaded before
    /// it goes on answering while it is whole on disk, whether it is on a device just now or not, and also
    /// after a restart.
    pub(super) async fn resolve_before(
        &self,
        catalog: &Catalog,
        cache: &DiskCache,
        newest: ArtefactId,
        failure: Failure,
    ) -> Result<Resolution, Failure> {
        let origin = catalog.origin(&newest.model.target);
        let before = origin.and_then(|origin| cache.last_loaded(&newest.model, &origin));
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
        let Some(failure) = failure else {
            self.note_loaded(id);
            return self.forgive(id);
        };
        let known = self.recall(id);
        // Bytes that were not verified may be to blame: they are fetched again.
        if known.failed_unverified {
            return;
        }
        // What others run may run another time, and what an adapter builds on may be another one then.
        let could_pass = self.external(&id.model).is_some()
            || matches!(known.plan, Some(Plan::Handler(_) | Plan::Adapter(_)));
        self.refuse(id, failure, could_pass);
    }

    /// Remembers of a fetch that failed what later ones go by: what it brought may be other bytes next time.
    pub(super) fn judge_fetch(&self, id: &ArtefactId, failure: &Failure) {
        self.refuse(id, failure, true);
    }

    fn refuse(&self, id: &ArtefactId, failure: &Failure, could_pass: bool) {
        if failure.kind() != ErrorKind::ModelInvalid
            || self.last_loaded(&id.model).as_ref() == Some(id)
        {
            return;
        }
        let mut known = self.recall(id);
        let times = known.refused.as_ref().map_or(0, |refused| refused.times) + 1;
        let pause = AGAIN_FIRST.saturating_mul(1 << (times - 1).min(6)).min(AGAIN_LATEST);
        let again = could_pass.then(|| Instant::now() + pause);
        known.refused = Some(Refused { failure: failure.clone(), times, again });
        self.remember(id, known);
    }

    /// Whatever was refused of a version is past.
    fn forgive(&self, id: &ArtefactId) {
        if let Some(known) = locked(&self.known).get_mut(id) {
            known.refused = None;
        }
    }

    /// Whatever was refused by settings of before is past.
    pub(super) fn forgive_all(&self) {
        locked(&self.known).iter_mut().for_each(|(_, known)| known.refused = None);
    }

    /// An operator has a model looked at: what the store named last is tried again, whatever failed of it.
    pub(crate) fn try_again(&self, model: &ModelId) {
        let current = locked(&self.current).get(model).cloned();
        current.iter().for_each(|id| self.forgive(id));
    }

    /// The version of a model that was loaded last of those that its store had.
    pub(super) fn last_loaded(&self, model: &ModelId) -> Option<ArtefactId> {
        let Ok(Source::Store(catalog, cache)) = self.source(&model.endpoint) else { return None };
        cache.last_loaded(model, &catalog.origin(&model.target)?)
    }

    /// A version was loaded. One that comes late, when the version that the store named after it was
    /// loaded already, is not the one before the next; nor is one that an operator only tried, nor one of
    /// a model that the store deleted.
    fn note_loaded(&self, id: &ArtefactId) {
        let model = &id.model;
        let Ok(Source::Store(catalog, cache)) = self.source(&model.endpoint) else { return };
        let Some(origin) = catalog.origin(&model.target) else { return };
        if cache.is_gone(model, &origin) {
            return;
        }
        let is_named = locked(&self.current).peek(model) == Some(id);
        let held = self.held_here(&catalog, &cache, model);
        let is_held = held.is_some_and(|choice| choice.version == id.version);
        let last = cache.last_loaded(model, &origin);
        if is_named || is_held || last.is_none() || last != cache.latest_from(model, &origin) {
            cache.loaded(id);
        }
    }
}
