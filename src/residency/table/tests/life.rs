//! What the models of a random world do by themselves.

use std::time::Duration;

use roundhouse_types::{ArtefactId, DeviceId, ErrorKind, Failure};

use super::pools::settled;
use super::world::{Dice, World};
use crate::table::state::{Resident, State};
use crate::table::{Event, Key};

impl World {
    /// A measure comes in: mostly of what is on a device, in whatever state.
    pub(super) fn measure(&mut self, dice: &mut Dice) {
        let key = self.some_key(dice);
        let before = self.loaded.get(&key).copied();
        let bytes = match dice.below(6) {
            0 => dice.below(200) as u64,
            1 | 2 => before.unwrap_or(20).saturating_sub(dice.below(12) as u64),
            _ => before.unwrap_or(20) + dice.below(12) as u64,
        };
        let shared: u64 = self.contents(&key.artefact).iter().map(|part| part.bytes.0).sum();
        let footprint = Self::footprint(bytes);
        // What a pool takes was agreed with it, whatever was measured.
        let is_agreed = |resident: &&Resident| resident.pool.is_some();
        let agreed = self.table.residents.get(&key).filter(is_agreed).map(|it| settled(it).kv.0);
        let kv = agreed.map_or(footprint.kv.0, |floor| floor + self.grown(&key));
        // What is shared is there, whatever was measured.
        let bytes = kv + footprint.weights.0.max(shared);
        if let Some(known) = self.loaded.get_mut(&key) {
            *known = bytes;
        }
        let budget = self.budgets[&key.device];
        self.tell(Event::Measured { key: key.clone(), footprint });
        if before.is_some_and(|before| before != bytes) && bytes > budget {
            let serves = self.table.residents.get(&key).is_some_and(|r| r.state == State::Ready);
            assert!(!serves, "{} takes {bytes} of {budget}", key.artefact);
        }
    }

    /// Many ask for a model, for as long as makes it hot; what that starts may come to its end
    /// at once.
    pub(super) fn rush(&mut self, dice: &mut Dice) {
        let loaded = self.loaded.keys().nth(dice.below(self.loaded.len() + 1));
        let model = match loaded {
            Some(key) => key.artefact.model.clone(),
            None => self.models[dice.below(self.models.len())].clone(),
        };
        self.acquire(model.clone(), Duration::from_secs(5), false);
        // Nothing else is under way then, mostly.
        for _ in 0..dice.below(6) {
            self.answer_resolve(dice, true);
            self.answer_fetch(dice, true);
            self.answer_unload(dice);
            self.answer_load(dice, true);
        }
        for _ in 0..1 + dice.below(8) {
            self.acquire(model.clone(), Duration::from_secs(5), true);
        }
        self.pass(Duration::from_millis(1900 + dice.below(1600) as u64));
        for _ in 0..1 + dice.below(3) {
            self.acquire(model.clone(), Duration::from_secs(5), true);
        }
        for _ in 0..dice.below(4) {
            self.answer_resolve(dice, true);
            self.answer_fetch(dice, true);
            self.answer_unload(dice);
            self.answer_load(dice, true);
        }
    }

    /// A death comes in: of what is on a device or on its way there, or of what is not.
    pub(super) fn die(&mut self, dice: &mut Dice) {
        let key = self.some_key(dice);
        // What is being unloaded anyway is nobody's loss.
        let is_there = self.loaded.contains_key(&key) || self.loads.contains_key(&key);
        if is_there && !self.unloads.contains(&key) {
            self.dead.insert(key.clone());
        }
        let failure = Failure::new(ErrorKind::ModelFailed, "the workers are gone");
        let artefact = key.artefact.clone();
        let is_loaded = self.loaded.contains_key(&key);
        self.tell(Event::Died { key, failure });
        assert!(!is_loaded || !self.table.copies.is_usable(&artefact), "the dead leave no copies");
    }

    /// A key that is on a device, on its way there, or neither.
    fn some_key(&self, dice: &mut Dice) -> Key {
        let mut keys: Vec<&Key> = self.loaded.keys().chain(self.loads.keys()).collect();
        keys.sort_unstable();
        match dice.below(keys.len() + 1).checked_sub(1) {
            Some(index) => keys[index].clone(),
            None => {
                let model = self.models[dice.below(self.models.len())].clone();
                let version = self.versions[dice.below(self.versions.len())].clone();
                let devices: Vec<DeviceId> = self.budgets.keys().copied().collect();
                let device = devices[dice.below(devices.len())];
                Key { artefact: ArtefactId { model, version }, device }
            }
        }
    }
}
