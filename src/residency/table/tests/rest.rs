//! How a random world ends: everything is answered, everybody served, nothing left.

use std::time::Duration;

use roundhouse_types::{ArtefactId, Bytes, ErrorKind};

use super::world::{Dice, World};
use crate::table::Event;

impl World {
    /// The world stops being difficult: what is asked is answered well, leases end, and
    /// everything comes to rest.
    pub(super) fn come_to_rest(&mut self) {
        let mut dice = Dice(1);
        for _ in 0..5_000 {
            if self.is_busy() {
                self.answer_everything(&mut dice);
            } else if self.pending.is_empty() {
                return;
            } else {
                let wake = self.table.next_wake().expect("a waiter has a deadline");
                self.pass(wake.saturating_duration_since(self.now));
            }
        }
        panic!("invariant 4: {} are never answered", self.pending.len());
    }

    fn is_busy(&self) -> bool {
        !(self.resolves.is_empty()
            && self.fetches.is_empty()
            && self.loads.is_empty()
            && self.unloads.is_empty()
            && self.host.discards.is_empty()
            && !self.pools_are_busy()
            && self.leases.is_empty())
    }

    fn answer_everything(&mut self, dice: &mut Dice) {
        self.release_one(dice);
        self.answer_resolve(dice, false);
        self.answer_fetch(dice, false);
        self.answer_load(dice, false);
        self.answer_unload(dice);
        self.answer_discard(dice);
        self.rest_pools(dice);
    }

    /// In a world that cooperates everybody who can fit is served, and in turn: nothing
    /// but a young resident makes them wait for the clock.
    pub(super) fn serve_everybody(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        for model in kept {
            self.tell(Event::KeepChanged { model, kept: false });
        }
        self.table.config.tenants.clear();
        for device in self.budgets.clone().into_keys() {
            self.set_budget(device, 100);
        }
        // Past what is still waiting for room, then past every pause after a failure.
        self.run_out();
        self.pass(Duration::from_secs(61));
        self.come_to_rest();
        let mut asked = Vec::new();
        // No tenant's places run out.
        self.table.config.max_waiters = 4 * self.models.len();
        for index in 0..self.models.len() {
            let target = self.models[index].clone();
            let waiter = self.acquire(target.clone(), Duration::from_secs(3600), false);
            asked.push((waiter, target, self.stored[index]));
        }
        let begun = self.now;
        self.come_to_rest();
        for (waiter, target, stored) in asked {
            let version = self.versions[stored].clone();
            let artefact = ArtefactId { model: target.clone(), version };
            let mut size = Self::size(&artefact);
            match self.base_in_store(&artefact) {
                Some(Ok(base)) => {
                    let grown = self.largest.get(&waiter).copied().unwrap_or_default();
                    size += grown.max(Self::size(&base));
                }
                Some(Err(())) => {
                    // Unless an older version serves.
                    let kind = self.refused.get(&waiter).copied();
                    // What is no base may be too large itself.
                    let kinds = [ErrorKind::ModelInvalid, ErrorKind::TooLarge];
                    let is_right = kind.is_none_or(|it| kinds.contains(&it));
                    assert!(is_right, "{target} has no base: {kind:?}");
                    continue;
                }
                None => {}
            }
            match self.refused.get(&waiter) {
                None => assert!(self.granted.contains(&waiter), "{target} was served"),
                Some(kind) => {
                    // The budget may have been larger once, and may be again.
                    let kinds = [ErrorKind::TooLarge, ErrorKind::NotReady];
                    assert!(kinds.contains(kind), "{target} needs {size}");
                    assert!(size > 100, "invariant 6: {size} fits");
                }
            }
        }
        let waited = self.now - begun;
        assert!(waited <= Duration::from_secs(30), "they were served after {waited:?}");
    }

    /// What an adapter is to be loaded onto, where it can be at all.
    fn base_in_store(&self, adapter: &ArtefactId) -> Option<Result<ArtefactId, ()>> {
        let model = self.base(adapter)?;
        let Some(at) = self.models.iter().position(|other| *other == model) else {
            return Some(Err(()));
        };
        let base = ArtefactId { model, version: self.versions[self.stored[at]].clone() };
        let is_base = self.base(&base).is_none();
        Some(if is_base { Ok(base) } else { Err(()) })
    }

    /// Lets loads that nobody waits for and that have no room reach their limit.
    fn run_out(&mut self) {
        self.come_to_rest();
        for _ in 0..20 {
            if self.table.jobs.is_empty() {
                return;
            }
            self.pass(Duration::from_secs(41));
            self.come_to_rest();
        }
        panic!("loads end by their limit");
    }

    /// Nothing is left of anything.
    pub(super) fn end(&mut self) {
        self.run_out();
        assert!(self.pending.is_empty(), "invariant 4: all are answered");
        for level in self.table.levels().devices {
            assert_eq!(level.reserved, Bytes::ZERO, "promises end with their loads");
        }
        assert!(self.table.jobs.is_empty(), "no load is left over");
        assert!(self.table.pools.iter().all(|key| self.grown(key) > 0), "nobody waits for room");
        self.shut_down();
        self.come_to_rest();
        assert!(self.table.is_empty() && self.loaded.is_empty(), "the devices are empty");
        let pools = self.table.levels().pools;
        assert_eq!(pools.granted, pools.returned, "all that pools were granted is back");
        assert!(self.host.copies.is_empty(), "no copy is left over");
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }
}
