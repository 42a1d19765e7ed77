//! Versions beside the one that serves: what the store offers or has no more, what an
//! operator chose, and loads that come too late.

use roundhouse_types::{ArtefactId, Bytes, EndpointName, Failure, ModelId, Version};

use super::Table;
use super::event::{Key, WaiterId};
use super::state::{Purpose, Unfit};
use crate::decision::{Action, Decided, Departure};
use crate::loader::{Authority, InStore, Standing};

impl Table {
    /// Takes in why a version is the one to serve and what the store holds beside it. Returns
    /// the refreshes among `asked` that this answers: none where the store was not reached.
    pub(super) fn note_standing(
        &mut self,
        artefact: &ArtefactId,
        standing: Standing,
        asked: Vec<WaiterId>,
    ) -> Vec<WaiterId> {
        let model = &artefact.model;
        self.model_mut(model).by = standing.by;
        match standing.store {
            InStore::Unasked => return asked,
            InStore::Unreached(failure) => {
                asked.into_iter().for_each(|id| self.refuse(id, &failure));
                return Vec::new();
            }
            InStore::Same => self.offer(model, None),
            InStore::Other(version) => self.offer(model, Some(version)),
            InStore::Gone => {
                self.offer(model, None);
                self.deleted(model, false);
                return asked;
            }
        }
        self.model_mut(model).deleted = false;
        asked
    }

    /// What the store was found to hold in place of the version to serve is told once. What failed
    /// before is forgotten when the store holds something else, once that has settled, or an operator
    /// chose what serves.
    pub(super) fn note_fitness(&mut self, artefact: &ArtefactId, standing: &Standing) {
        let model = &artefact.model;
        if let Some((version, failure)) = &standing.unfit {
            return self.found_unfit(model, version, failure);
        }
        if standing.unsettled {
            return;
        }
        let is_chosen = standing.by == Authority::Operator;
        let offered = match &standing.store {
            InStore::Unreached(_) => return,
            _ if is_chosen => None,
            InStore::Unasked => return,
            InStore::Other(version) => Some(version),
            InStore::Same | InStore::Gone => None,
        };
        let is_past = |unfit: &Unfit| {
            unfit.version.as_ref().is_none_or(|it| *it != artefact.version && Some(it) != offered)
        };
        if self.models.peek(model).and_then(|entry| entry.unfit.as_ref()).is_some_and(is_past) {
            self.set_unfit(model, None);
        }
    }

    /// The store holds this in place of a version that can be served, loaded or not.
    fn found_unfit(&mut self, model: &ModelId, version: &Version, failure: &Failure) {
        let serves = self.ready(model).is_some_and(|key| key.artefact.version == *version);
        if !serves && self.note_unfit(model, Some(version), failure) {
            let reason = failure.message().to_owned();
            let mut decided = Decided::about(model, Action::Unfit { reason });
            decided.version = Some(version.clone());
            self.decide(decided.with_kind(failure));
        }
    }

    /// Somebody looked at what the store holds of a model: the version that it names, if any, and what
    /// it holds in place of one.
    pub(super) fn store_seen(
        &mut self,
        model: &ModelId,
        named: Option<&Version>,
        unfit: Option<(Version, Failure)>,
    ) {
        if let Some((version, failure)) = unfit {
            return self.found_unfit(model, &version, &failure);
        }
        let Some(named) = named else { return self.fit_again(model, None) };
        // Whether the one that is named can be served was not looked at.
        let before = self.models.peek(model).and_then(|entry| entry.unfit.as_ref());
        let before = before.and_then(|unfit| unfit.version.as_ref());
        if before.is_some_and(|version| version != named) {
            self.set_unfit(model, None);
        }
    }

    /// An endpoint is gone: nothing of what stores hold of its models is news any more.
    pub(super) fn endpoint_left(&mut self, endpoint: &EndpointName) {
        let theirs = self.models.iter().filter(|(model, entry)| {
            model.endpoint == *endpoint && (entry.unfit.is_some() || entry.offered.is_some())
        });
        for model in theirs.map(|(model, _)| model.clone()).collect::<Vec<_>>() {
            self.set_unfit(&model, None);
            self.offer(&model, None);
        }
    }

    /// A version failed, or none was named, while another serves or is on its way.
    pub(super) fn failed_beside(
        &mut self,
        model: &ModelId,
        version: Option<&Version>,
        failure: &Failure,
    ) {
        let is_other = |artefact: &ArtefactId| Some(&artefact.version) != version;
        let entry = self.models.peek(model);
        let is_beside = match self.ready(model) {
            Some(key) => is_other(&key.artefact),
            None => entry.is_some_and(|entry| entry.jobs.iter().any(is_other)),
        };
        if is_beside {
            self.note_unfit(model, version, failure);
        }
    }

    /// Says whether it is news. The time of what was known before stays.
    fn note_unfit(
        &mut self,
        model: &ModelId,
        version: Option<&Version>,
        failure: &Failure,
    ) -> bool {
        let before = self.models.peek(model).and_then(|entry| entry.unfit.as_ref());
        let before = before.filter(|it| it.version.as_ref() == version);
        if before.is_some_and(|it| it.failure.message() == failure.message()) {
            return false;
        }
        let since = before.map_or(self.now, |it| it.since);
        let (version, failure) = (version.cloned(), failure.clone());
        self.set_unfit(model, Some(Unfit { version, failure, since }));
        true
    }

    fn set_unfit(&mut self, model: &ModelId, unfit: Option<Unfit>) {
        match unfit.is_some() {
            true => self.unfit.insert(model.clone()),
            false => self.unfit.remove(model),
        };
        self.model_mut(model).unfit = unfit;
    }

    /// A version serves from now on, or the store holds none any more: what failed is past.
    pub(super) fn fit_again(&mut self, model: &ModelId, serving: Option<&Version>) {
        let unfit = self.models.peek(model).and_then(|entry| entry.unfit.as_ref());
        let Some(unfit) = unfit else { return };
        if serving.is_none() || unfit.version.as_ref() == serving {
            self.set_unfit(model, None);
        }
    }

    /// The store holds a version that is served only when an operator says so, or none.
    fn offer(&mut self, model: &ModelId, version: Option<Version>) {
        let before = std::mem::replace(&mut self.model_mut(model).offered, version.clone());
        self.offers += usize::from(version.is_some());
        self.offers -= usize::from(before.is_some());
        if let Some(offered) = version.filter(|version| before.as_ref() != Some(version)) {
            self.decide(Decided::about(model, Action::Offered { offered }));
        }
    }

    /// The store holds nothing of that name any more. What serves goes on until it is evicted,
    /// or takes no new leases from now on.
    pub(super) fn deleted(&mut self, model: &ModelId, drains: bool) {
        let serving = self.ready_keys(model);
        self.fit_again(model, None);
        let entry = self.model_mut(model);
        // Of a name that the store never held there is nothing to tell.
        let was_there = entry.current.is_some()
            || !entry.residents.is_empty()
            || !entry.jobs.is_empty()
            || entry.copies > 0;
        if !std::mem::replace(&mut entry.deleted, true) && was_there {
            self.decide(Decided::about(model, Action::Deleted { drains }));
        }
        if drains && !serving.is_empty() {
            // Whoever asks next is told what the store says, and waits for nothing.
            self.model_mut(model).current = None;
            for key in serving {
                self.drain(&key, Departure::Deleted, None);
            }
        }
        if drains {
            self.discard_others(model, None, Departure::Deleted);
        }
    }

    /// Whether the store's word on a deleted model drains its residents.
    pub(super) fn drains_deleted(&self, model: &ModelId) -> bool {
        self.config.drain_deleted.contains(&model.endpoint)
    }

    /// An operator chose a version, or chose none any more.
    pub(super) fn choice_changed(&mut self, model: &ModelId, chosen: Option<Version>) {
        let mut decided = Decided::about(model, Action::Chosen { held: chosen.is_some() });
        decided.version = chosen;
        self.decide(decided);
    }

    /// Requests go to another version from now on.
    pub(super) fn switched(&mut self, to: &Key, from: Version) {
        let by = self.models.peek(&to.artefact.model).map_or_else(Default::default, |m| m.by);
        let action = Action::Switched { from, by };
        self.decide(Decided::of(&to.artefact, Some(to.device), action));
    }

    /// The version that serves instead of one whose load ends only now: another one was
    /// asked for meanwhile, and is ready already.
    pub(super) fn overtaken_by(&self, late: &Key) -> Option<Version> {
        let current = self.models.peek(&late.artefact.model)?.current.as_ref()?;
        self.ready_but(late).filter(|serving| serving == current)
    }

    /// The other version that serves beside this one, which is about to take its place.
    pub(super) fn ready_but(&self, newer: &Key) -> Option<Version> {
        let other = self.serving_but(&newer.artefact).into_iter().next();
        other.map(|key| key.artefact.version)
    }

    /// The residents of other versions that serve.
    pub(super) fn serving_but(&self, artefact: &ArtefactId) -> Vec<Key> {
        let mut serving = self.ready_keys(&artefact.model);
        serving.retain(|key| key.artefact != *artefact);
        serving
    }

    /// A load that was overtaken takes nothing over: it leaves as it came.
    pub(super) fn retire(&mut self, late: &Key, serving: &Version) {
        let bytes = self.residents.get(late).map_or(Bytes::ZERO, |it| it.footprint.total());
        self.decide(Decided::of(&late.artefact, Some(late.device), Action::Ready { bytes }));
        self.drain(late, Departure::Superseded, None);
        for id in self.aimed_at(&late.artefact) {
            self.report_refreshed(id, serving, true);
        }
    }

    /// Whether a version failed that is not the one to serve any more: the one that is serves,
    /// or is on its way.
    pub(super) fn is_past(&self, artefact: &ArtefactId) -> bool {
        let Some(entry) = self.models.peek(&artefact.model) else {
            return false;
        };
        let Some(current) = entry.current.as_ref().filter(|it| **it != artefact.version) else {
            return false;
        };
        let is_current = |id: &ArtefactId| id.version == *current;
        entry.jobs.iter().any(is_current)
            || self.ready(&artefact.model).is_some_and(|key| is_current(&key.artefact))
    }

    /// Whether another version serves while this one is on its way off its device: it can be
    /// loaded again only when it is gone.
    pub(super) fn is_leaving(&self, artefact: &ArtefactId) -> bool {
        let serving = self.ready(&artefact.model);
        serving.is_some_and(|key| key.artefact != *artefact) && self.resident_of(artefact).is_some()
    }

    /// A version is off its device that was asked for again meanwhile: whoever waits for it
    /// has the question put again.
    pub(super) fn ask_again(&mut self, gone: &ArtefactId) {
        for id in self.aimed_at(gone) {
            if let Some(waiter) = self.waiters.get_mut(id) {
                waiter.purpose = Purpose::Refresh { asked: false, aimed: None };
            }
        }
        let serves_another = self.ready(&gone.model).is_some_and(|key| key.artefact != *gone);
        if let Some(entry) = self.models.peek_mut(&gone.model)
            && serves_another
            && entry.current.as_ref() == Some(&gone.version)
        {
            // The next request has it looked up, whenever the last look was.
            entry.checked_at = None;
        }
    }

    /// Operators whose refresh waits for this version.
    fn aimed_at(&self, artefact: &ArtefactId) -> Vec<WaiterId> {
        let Some(entry) = self.models.peek(&artefact.model) else {
            return Vec::new();
        };
        let is_aimed = |id: &WaiterId| {
            let purpose = self.waiters.get(*id).map(|waiter| &waiter.purpose);
            matches!(purpose, Some(Purpose::Refresh { aimed: Some(aimed), .. }) if *aimed == artefact.version)
        };
        entry.refreshers.iter().copied().filter(is_aimed).collect()
    }
}
