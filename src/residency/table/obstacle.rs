//! What keeps a load from its room.

use roundhouse_types::{ArtefactId, Bytes};

use super::Table;
use super::event::Key;
use super::sharing::whole;
use crate::config::tenant;
use crate::decision::{Action, Decided, Obstacle};

impl Table {
    /// What keeps a load from its room, where it waits for some.
    pub(super) fn obstacle(&self, artefact: &ArtefactId) -> Obstacle {
        let Some(job) = self.jobs.get(artefact) else {
            return Obstacle::InUse;
        };
        let shared: Bytes = job.shared.iter().map(|part| part.bytes).sum();
        let own = whole(job).saturating_sub(shared);
        // What has grown comes back first: it is nobody's to keep.
        let name = tenant(&artefact.model);
        let grown = self.grown(|key| tenant(&key.artefact.model) == name);
        let above = self.above_ceiling(&[artefact]);
        if above > Bytes::ZERO && self.given_at_most(artefact) + grown < above {
            return Obstacle::Ceiling;
        }
        let mut held = self.held();
        held.retain(|key| key.artefact.model != artefact.model);
        let mut obstacle = Obstacle::Kept;
        for device in self.devices_for(job.kin()) {
            let kept = held.iter().filter(|key| key.device == device);
            let kept: Vec<&Key> = kept.copied().collect();
            let grown = self.grown(|key| kept.contains(&key));
            let kept = kept.iter().map(|key| &key.artefact);
            let least = own + self.ledger.together(device, kept, &job.shared).saturating_sub(grown);
            let budget = self.ledger.budget(device);
            let floors = self.foreign_floors(&artefact.model, device);
            obstacle = obstacle.min(if least > budget {
                Obstacle::Kept
            } else if least > budget.saturating_sub(floors) {
                Obstacle::Floors
            } else if self.ledger.over(device) > Bytes::ZERO {
                Obstacle::OverBudget
            } else {
                Obstacle::InUse
            });
        }
        obstacle
    }

    /// Remembers and tells what a load waits for.
    pub(super) fn note_obstacle(&mut self, artefact: &ArtefactId, by: Obstacle) {
        let bytes = self.least_need(artefact);
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        if job.obstacle.replace(by) != Some(by) {
            self.decide(Decided::of(artefact, None, Action::Blocked { bytes, by }));
        }
    }
}
