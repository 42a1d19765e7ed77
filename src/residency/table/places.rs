//! Places in engines and containers that serve several models: who leaves for one more.

use std::time::Instant;

use super::Table;
use super::event::{Among, Effect, Key, PlaceWanted, Report, UnloadReport, WaiterId};
use super::state::{Purpose, State};
use super::worth::float;
use crate::config::Policy;
use crate::decision::Departure;

impl Table {
    /// Of those that have such a place, the one leaves that the policy says, and the waiter is told
    /// when it is gone; at once, with no version, where none may. One that leaves anyway is waited for
    /// where all others must stay.
    pub(super) fn give_place(
        &mut self,
        waiter: WaiterId,
        place: &PlaceWanted,
        hold_until: Instant,
    ) {
        let leaver = if self.stopping { None } else { self.leaver_of(place) };
        let Some(key) = leaver else {
            let report = UnloadReport { versions: Vec::new(), adapters: Vec::new() };
            let report = Report::Unloaded(report);
            return self.effects.push(Effect::Report { waiter, report });
        };
        let model = key.artefact.model.clone();
        let purpose = Purpose::Unload {
            keys: [key.clone()].into(),
            copies: [].into(),
            versions: vec![key.artefact.version.clone()],
            adapters: Vec::new(),
        };
        if !self.admit(waiter, &model, hold_until, purpose) {
            return;
        }
        self.model_mut(&model).unloaders.insert(waiter);
        self.drain(&key, Departure::Place, Some(&place.artefact));
    }

    /// Who may leave is judged as for a load's room. Every place is as large as any other, so what
    /// counts by GreedyDual is the demand for a model times what its reload takes; the demand fades.
    fn leaver_of(&self, place: &PlaceWanted) -> Option<Key> {
        let of = |model| self.models.peek(model).into_iter().flat_map(|entry| &entry.residents);
        let keys: Vec<Key> = match &place.among {
            Among::OnBase(base, device) => {
                let bases = of(base).filter(|key| key.device == *device);
                bases.flat_map(|base| self.bases.residents(base)).collect()
            }
            Among::Models(models) => models.iter().flat_map(of).cloned().collect(),
        };
        let claims = [&place.artefact];
        let leavers = keys.into_iter().filter(|key| key.artefact != place.artefact);
        let leavers = leavers.filter_map(|key| {
            let resident = self.residents.get(&key)?;
            let cost = self.cost(&key, resident, &claims, !place.only_idle)?;
            let worth = match self.config.policy {
                Policy::LeastRecentlyUsed => float(resident.used_sequence),
                Policy::GreedyDual => self.reload_cost(&key.artefact.model),
            };
            let stays = resident.state == State::Ready;
            Some((!stays, cost, worth, resident.used_sequence, key))
        });
        let first = leavers.min_by(|one, other| {
            let costs = (one.0, one.1).cmp(&(other.0, other.1));
            costs.then(one.2.total_cmp(&other.2)).then(one.3.cmp(&other.3))
        });
        first.map(|(.., key)| key)
    }
}
