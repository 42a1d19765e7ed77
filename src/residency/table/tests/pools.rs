//! The KV pools of a random world: they hear late, use what they hold, and say late what they gave
//! back; by our own count.

use std::collections::BTreeMap;

use roundhouse_types::{Bytes, Footprint, KvOrder, KvReport, ModelKind};

use super::world::{Dice, World};
use crate::table::state::Resident;
use crate::table::{Event, Key};

/// One pool beyond its floor.
#[derive(Debug, Default)]
pub(super) struct Side {
    /// What it was granted in total, as far as it has heard.
    heard: KvOrder,
    /// What it was told and has not heard yet; later words replace earlier ones.
    coming: Option<KvOrder>,
    /// What sequences use of what it holds.
    used: u64,
    wanted: u64,
    returned: u64,
    /// What it has said.
    said: KvReport,
    /// What is charged for it, by what was granted and what was heard to be back.
    pub(super) charged: u64,
}

const CHUNK: u64 = 3;

impl Side {
    fn holds(&self) -> u64 {
        self.heard.granted.0 - self.returned
    }

    /// Lets go of what it does not use.
    fn squeeze(&mut self) {
        self.returned += (self.holds() - self.used) / CHUNK * CHUNK;
    }

    fn report(&self) -> KvReport {
        KvReport {
            chunk: Bytes(CHUNK),
            wanted: Bytes(self.heard.granted.0 + self.wanted),
            returned: Bytes(self.returned),
            obeyed: self.heard.number,
        }
    }
}

/// What a resident takes apart from what its pool has grown by.
pub(super) fn settled(resident: &Resident) -> Footprint {
    let grown = resident.grown();
    Footprint { kv: resident.footprint.kv.saturating_sub(grown), ..resident.footprint }
}

impl World {
    /// The table tells a pool what it may have.
    pub(super) fn order_pool(&mut self, key: &Key, order: KvOrder) {
        assert!(!self.unloads.contains(key), "{} leaves and hears nothing", key.artefact);
        let side = self.pools.get_mut(key).expect("only pools that said something are told");
        let before = side.coming.unwrap_or(side.heard);
        assert!(order.number > before.number && order.granted >= before.granted);
        let granted = order.granted.0 - before.granted.0;
        assert!(!(order.tight && granted > 0), "what loads wait for is not granted to pools");
        assert_eq!(granted % CHUNK, 0, "pools grow by whole chunks");
        side.coming = Some(order);
        side.charged += granted;
        *self.loaded.get_mut(key).expect("it is there") += granted;
    }

    /// What happens to pools.
    pub(super) fn pool_event(&mut self, dice: &mut Dice) {
        match dice.below(4) {
            0 => self.want_room(dice),
            1 => self.hear(dice),
            2 => self.use_pool(dice),
            _ => self.say(dice),
        }
    }

    fn want_room(&mut self, dice: &mut Dice) {
        let generative: Vec<&Key> = self
            .loaded
            .keys()
            .filter(|key| Self::kind(&key.artefact.model) != ModelKind::Handler)
            .collect();
        if generative.is_empty() {
            return;
        }
        let key = generative[dice.below(generative.len())].clone();
        if self.dead.contains(&key) {
            return;
        }
        self.pools.entry(key).or_default().wanted = dice.below(40) as u64;
    }

    fn some_pool(&mut self, dice: &mut Dice) -> Option<Key> {
        (!self.pools.is_empty())
            .then(|| self.pools.keys().nth(dice.below(self.pools.len())).unwrap().clone())
    }

    fn hear(&mut self, dice: &mut Dice) {
        let Some(key) = self.some_pool(dice) else { return };
        let side = self.pools.get_mut(&key).unwrap();
        if let Some(order) = side.coming.take() {
            side.wanted = side.wanted.saturating_sub(order.granted.0 - side.heard.granted.0);
            side.heard = order;
            if order.tight {
                side.squeeze();
            }
        }
    }

    fn use_pool(&mut self, dice: &mut Dice) {
        let Some(key) = self.some_pool(dice) else { return };
        let side = self.pools.get_mut(&key).unwrap();
        side.used = dice.below(side.holds() as usize + 1) as u64;
        if side.heard.tight || dice.one_in(3) {
            side.squeeze();
        }
    }

    fn say(&mut self, dice: &mut Dice) {
        let Some(key) = self.some_pool(dice) else { return };
        self.say_of(&key);
    }

    fn say_of(&mut self, key: &Key) {
        let side = self.pools.get_mut(key).unwrap();
        let report = side.report();
        let back = report.returned.0 - side.said.returned.0;
        side.said = report;
        side.charged -= back;
        *self.loaded.get_mut(key).expect("it is there") -= back;
        assert!(
            side.holds() <= side.charged,
            "invariant 1: {} holds what is not charged",
            key.artefact
        );
        self.tell(Event::KvReported { key: key.clone(), report });
    }

    /// Whether a pool has something to hear or to say.
    pub(super) fn pools_are_busy(&self) -> bool {
        let is_busy = |side: &Side| side.coming.is_some() || side.report() != side.said;
        self.pools.iter().any(|(key, side)| !self.dead.contains(key) && is_busy(side))
    }

    /// Sequences end, and everything that was told is heard and answered.
    pub(super) fn rest_pools(&mut self, dice: &mut Dice) {
        let keys: Vec<Key> = self.pools.keys().cloned().collect();
        for key in keys {
            let Some(side) = self.pools.get_mut(&key) else { continue };
            (side.used, side.wanted) = (0, 0);
            side.heard = side.coming.take().unwrap_or(side.heard);
            if side.heard.tight || dice.one_in(2) {
                side.squeeze();
            }
            if side.report() != side.said {
                self.say_of(&key);
            }
        }
    }

    /// What is charged for a resident's pool beyond its floor.
    pub(super) fn grown(&self, key: &Key) -> u64 {
        self.pools.get(key).map_or(0, |side| side.charged)
    }

    /// Pools leave with their residents.
    pub(super) fn forget_pool(&mut self, key: &Key) {
        self.pools.remove(key);
    }

    /// Our count of what pools have grown by is the table's.
    pub(super) fn check_pools(&self) {
        let grown: BTreeMap<&Key, u64> = self
            .table
            .residents
            .iter()
            .map(|(key, resident)| (key, resident.grown().0))
            .filter(|(_, grown)| *grown > 0)
            .collect();
        let ours: BTreeMap<&Key, u64> = self
            .pools
            .iter()
            .map(|(key, side)| (key, side.charged))
            .filter(|(_, charged)| *charged > 0)
            .collect();
        assert_eq!(grown, ours, "invariant 5: pools are charged for what they hold");
    }
}
