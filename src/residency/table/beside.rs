//! Copies of adapters: beside which version of a base they serve.
//!
//! What was computed of a base's weights is in them, so one is of use beside that version alone.

use roundhouse_types::{ArtefactId, Bytes, ModelId};

use super::Table;
use super::event::Key;
use super::state::{Fetch, State};
use crate::decision::Departure;

impl Table {
    /// Whether a load could be put beside this version of a base again, as far as is known.
    fn may_come_again(&self, base: &ArtefactId) -> bool {
        if let Some(serving) = self.ready(&base.model) {
            return serving.artefact == *base;
        }
        let current = self.models.peek(&base.model).and_then(|entry| entry.current.as_ref());
        current.is_none_or(|current| *current == base.version)
    }

    /// Whether a copy of a resident would find its base again, if it has one.
    pub(super) fn finds_its_base(&self, key: &Key) -> bool {
        self.base_of(key).is_none_or(|base| self.may_come_again(&base.artefact))
    }

    /// Why a resident leaves, which is why its base does where it leaves with that.
    pub(super) fn at_bottom(&self, key: &Key, why: Departure) -> Departure {
        let base = self.base_of(key).filter(|_| why == Departure::Base);
        match base.and_then(|base| self.residents.get(&base)).map(|base| base.state) {
            Some(State::Draining(why)) => why,
            _ => why,
        }
    }

    /// Another version of a base serves, or is to: copies of adapters for others leave, and loads
    /// that have not begun with one begin with the files.
    pub(super) fn discard_for_others(&mut self, base: &ModelId) {
        if self.copies.is_empty() {
            return;
        }
        let is_past = |on: &ArtefactId| on.model == *base && !self.may_come_again(on);
        let past = self.copies.iter().filter(|(_, it)| it.model.base.as_ref().is_some_and(is_past));
        for artefact in past.map(|(artefact, _)| artefact.clone()).collect::<Vec<_>>() {
            self.discard(&artefact, Departure::Base);
            self.read_instead(&artefact);
        }
    }

    /// A load that is not on its way to the device gives its copy back: it fetches like any other.
    fn read_instead(&mut self, artefact: &ArtefactId) {
        if !self.jobs.get(artefact).is_some_and(|job| job.from_copy && !job.is_loading()) {
            return;
        }
        self.take_back(artefact);
        if let Some(job) = self.jobs.get_mut(artefact) {
            job.from_copy = false;
            job.fetch = Fetch::Queued;
            job.fetch_bytes = std::mem::replace(&mut job.spared_bytes, Bytes::ZERO);
        }
        self.release_copy(artefact);
        self.touched.push(artefact.model.clone());
    }
}
