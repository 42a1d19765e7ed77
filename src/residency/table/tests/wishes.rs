//! What callers and operators wish in a random world.

use std::time::Duration;

use roundhouse_types::{ArtefactId, Bytes, DeviceId, ModelId};

use super::world::{Dice, Wish, World};
use crate::table::{Among, Event, LoadOptions, PlaceWanted, WaiterId};

impl World {
    pub(super) fn ask_for_lease(&mut self, dice: &mut Dice) -> WaiterId {
        let target = self.models[dice.below(self.models.len())].clone();
        let patience = [0, 1, 5, 30][dice.below(4)];
        let only_loaded = dice.one_in(8);
        self.acquire(target, Duration::from_secs(patience), only_loaded)
    }

    pub(super) fn acquire(
        &mut self,
        model: ModelId,
        hold: Duration,
        only_loaded: bool,
    ) -> WaiterId {
        let (waiter, hold_until) = (self.waiter(&model, Wish::Lease), self.now + hold);
        self.tell(Event::AcquireRequested { waiter, model, hold_until, only_loaded, payer: None });
        waiter
    }

    fn waiter(&mut self, model: &ModelId, wish: Wish) -> WaiterId {
        self.next_waiter += 1;
        let id = WaiterId(self.next_waiter);
        self.pending.insert(id, (model.clone(), wish));
        id
    }

    pub(super) fn ask_as_operator(&mut self, dice: &mut Dice) {
        let model = self.models[dice.below(self.models.len())].clone();
        let waiter = self.waiter(&model, Wish::Other);
        let hold_until = self.now + Duration::from_secs(30);
        let options = LoadOptions { evict: dice.one_in(2), force: dice.one_in(2) };
        if dice.one_in(4) {
            let version = self.versions[dice.below(self.versions.len())].clone();
            let among = Among::Models(self.models.clone());
            let artefact = ArtefactId { model, version };
            let place = PlaceWanted { artefact, among, only_idle: dice.one_in(2) };
            return self.tell(Event::PlaceRequested { waiter, place, hold_until });
        }
        self.tell(match dice.below(3) {
            0 => Event::LoadRequested { waiter, model, hold_until, options },
            1 => Event::UnloadRequested { waiter, model, hold_until },
            _ => Event::RefreshRequested { waiter, model, hold_until },
        });
    }

    pub(super) fn cancel(&mut self, dice: &mut Dice) {
        if !self.pending.is_empty() {
            let index = dice.below(self.pending.len());
            let waiter = *self.pending.keys().nth(index).unwrap();
            self.tell(Event::Cancelled { waiter });
            // Unless its time was over at that very instant, nobody answers it any more.
            self.pending.remove(&waiter);
        }
    }

    pub(super) fn release_one(&mut self, dice: &mut Dice) {
        if !self.leases.is_empty() {
            let key = self.leases.swap_remove(dice.below(self.leases.len()));
            self.tell(Event::Released { key });
        }
    }

    pub(super) fn toggle_keep(&mut self, dice: &mut Dice) {
        let model = self.models[dice.below(self.models.len())].clone();
        let kept = !self.kept.remove(&model);
        if kept {
            self.kept.insert(model.clone());
        }
        self.tell(Event::KeepChanged { model, kept });
    }

    pub(super) fn change_budget(&mut self, dice: &mut Dice) {
        let device = *self.budgets.keys().nth(dice.below(self.budgets.len())).unwrap();
        self.set_budget(device, 20 + dice.below(140) as u64);
    }

    pub(super) fn set_budget(&mut self, device: DeviceId, budget: u64) {
        self.budgets.insert(device, budget);
        self.tell(Event::BudgetChanged { device, budget: Bytes(budget) });
    }

    pub(super) fn shut_down(&mut self) {
        self.stopping = true;
        self.tell(Event::ShutdownBegan);
    }
}
