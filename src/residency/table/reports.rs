//! What residents do by themselves: they take more or less memory, or die.

use std::time::Duration;

use roundhouse_types::{Bytes, Failure, Footprint};

use super::Table;
use super::event::Key;
use super::sharing::with_shared;
use super::state::{State, Trouble, pause};
use crate::decision::{Action, Decided, Departure};

/// A model that dies after it has been ready for this long did not die of being loaded:
/// the next one is its first death again.
const STABLE: Duration = Duration::from_secs(60);

impl Table {
    /// A resident takes more or less by now; it is charged with that at once. What this
    /// puts above the budget leaves as after a budget that shrank.
    pub(super) fn measured(&mut self, key: &Key, footprint: Footprint) {
        let Some(resident) = self.residents.get_mut(key) else {
            return;
        };
        let mut footprint = with_shared(footprint, &resident.shared);
        // What a pool takes is agreed with it, not measured.
        if resident.pool.is_some() {
            footprint.kv = resident.footprint.kv;
        }
        if resident.footprint == footprint {
            return;
        }
        resident.footprint = footprint;
        let (device, bytes) = (key.device, footprint.total());
        let over_before = self.ledger.over(device);
        self.ledger.recharge(device, &key.artefact, &footprint, &resident.shared);
        let over_bytes = self.ledger.over(device);
        if over_before == Bytes::ZERO && over_bytes > Bytes::ZERO {
            let action = Action::Grown { bytes, over_bytes };
            self.decide(Decided::of(&key.artefact, Some(device), action));
        }
        // No keep can make it fit, and while it stays nothing else may come.
        if bytes > self.ledger.budget(device) {
            self.drain(key, Departure::Outgrown, None);
        }
    }

    /// A model is gone by itself. One that is still on its way is unloaded when it arrives.
    pub(super) fn died(&mut self, key: &Key, failure: &Failure) {
        if let Some(job) = self.jobs.get_mut(&key.artefact)
            && job.is_loading()
            && job.device() == Some(key.device)
        {
            job.died.get_or_insert_with(|| failure.clone());
            return;
        }
        if self.residents.get(key).is_some() {
            // Whatever it left, or is leaving, in the host's memory.
            self.discard(&key.artefact, Departure::Died);
        }
        let Some(resident) = self.residents.get(key) else {
            return;
        };
        let is_known =
            matches!(resident.state, State::Draining(Departure::Died | Departure::Shutdown));
        if is_known || resident.state == State::Unloading {
            return;
        }
        let lived = self.now.saturating_duration_since(resident.ready_at);
        let (deaths, retry) = self.count_death(key, failure, lived);
        let retry_ms = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
        let action = Action::Died { reason: failure.message().into(), deaths, retry_ms };
        let decided = Decided::of(&key.artefact, Some(key.device), action).with_kind(failure);
        self.decide(decided);
        self.drain(key, Departure::Died, None);
        self.touched.push(key.artefact.model.clone());
        if let Some(told) = self.trouble_told(&key.artefact.model) {
            self.refuse_unserved(&key.artefact.model, &told);
        }
    }

    /// Counts deaths in a row, and pauses a model from the second on. An old version's
    /// death says nothing about the one that is loaded next, and that of one resident of several
    /// only that there should be fewer for a while.
    fn count_death(&mut self, key: &Key, failure: &Failure, lived: Duration) -> (u32, Duration) {
        let now = self.now;
        let version = &key.artefact.version;
        let entry = self.models.peek(&key.artefact.model);
        if entry.and_then(|entry| entry.current.as_ref()) != Some(version) {
            return (1, Duration::ZERO);
        }
        let is_other = |other: &Key| other != key && other.artefact == key.artefact;
        if self.all_ready(&key.artefact.model).any(|(other, _)| is_other(other)) {
            return self.replica_died(&key.artefact.model, failure, lived < STABLE);
        }
        let entry = self.model_mut(&key.artefact.model);
        entry.deaths = if lived < STABLE { entry.deaths.saturating_add(1) } else { 1 };
        let deaths = entry.deaths;
        if deaths == 1 {
            return (deaths, Duration::ZERO);
        }
        let retry = pause(failure, deaths - 1);
        entry.trouble = Some(Trouble {
            failure: failure.clone(),
            version: Some(version.clone()),
            since: now,
            until: now + retry,
            beside_until: None,
            attempts: deaths,
            quarantined: false,
            asks: false,
        });
        self.note_failed(&key.artefact.model);
        (deaths, retry)
    }
}
