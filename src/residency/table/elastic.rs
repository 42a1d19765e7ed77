//! KV pools that grow into free room and give it back.
//!
//! A generative resident is charged with its pool's floor when it is loaded. What the pool has beyond
//! that was granted of what is free, never of what others would have to leave for; it comes back when
//! the pool does not need it, and as soon as no sequence uses it while its device is *tight*: while a
//! load waits for room there or the budget is exceeded. Whoever wants others to leave waits for that
//! first.

use roundhouse_types::{Bytes, DeviceId, KvOrder, KvReport};

use super::Table;
use super::event::{Effect, Key};
use super::state::{Job, Resident, Room, State};
use crate::config::tenant;
use crate::decision::{Departure, Obstacle};

/// What a resident's KV pool and the ledger have told each other.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pool {
    heard: KvReport,
    said: KvOrder,
    /// What it was told that it has been granted.
    told: Bytes,
}

/// What all pools were granted beyond their floors, and what of it has come back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) granted: Bytes,
    pub(crate) returned: Bytes,
}

impl Pool {
    /// What it is charged with beyond its floor.
    fn grown(&self) -> Bytes {
        self.said.granted.saturating_sub(self.heard.returned)
    }

    /// What it would like to have more.
    fn wants(&self) -> Bytes {
        self.heard.wanted.saturating_sub(self.said.granted)
    }

    /// Whether it has given back what it could.
    fn is_squeezed(&self) -> bool {
        self.said.tight && self.heard.obeyed >= self.said.number
    }
}

impl Resident {
    /// What its KV pool is charged with beyond its floor: it is not there when it is loaded again.
    pub(super) fn grown(&self) -> Bytes {
        self.pool.map(|pool| pool.grown()).unwrap_or_default()
    }

    /// What it is charged with apart from that.
    pub(super) fn settled_bytes(&self) -> Bytes {
        self.footprint.total().saturating_sub(self.grown())
    }

    /// Whether its pool hears and answers.
    fn is_heard(&self) -> bool {
        !matches!(self.state, State::Unloading | State::Draining(Departure::Died))
    }
}

impl Table {
    /// A resident is gone, and its pool with it.
    pub(super) fn pool_left(&mut self, key: &Key, resident: Option<&Resident>) {
        self.pools.remove(key);
        self.flow.returned += resident.map(Resident::grown).unwrap_or_default();
    }

    /// A resident's pool says what it needs and has given back.
    pub(super) fn kv_reported(&mut self, key: &Key, report: KvReport) {
        let Some(resident) = self.residents.get_mut(key) else {
            return;
        };
        let pool = resident.pool.get_or_insert_default();
        let before = pool.grown();
        // More than it was granted cannot have come back, and nothing comes back twice.
        let returned = report.returned.max(pool.heard.returned).min(pool.said.granted);
        pool.heard = KvReport { returned, ..report };
        let freed = before.saturating_sub(pool.grown());
        let is_listed = pool.grown() > Bytes::ZERO || pool.wants() > Bytes::ZERO;
        self.flow.returned += freed;
        if freed > Bytes::ZERO {
            resident.footprint.kv = resident.footprint.kv.saturating_sub(freed);
            let (footprint, shared) = (resident.footprint, resident.shared.clone());
            self.ledger.recharge(key.device, &key.artefact, &footprint, &shared);
        }
        match is_listed {
            true => _ = self.pools.insert(key.clone()),
            false => _ = self.pools.remove(key),
        }
    }

    /// Whether pools of a device may give back something that they have not been asked for, or
    /// have not answered for. Each of them does between two steps.
    pub(super) fn awaits_pools(&self, device: DeviceId) -> bool {
        let pools = self.pools.iter().filter(|key| key.device == device);
        let mut residents = pools.filter_map(|key| self.residents.get(key));
        residents.any(|resident| {
            let may_give = resident.grown() > Bytes::ZERO && resident.is_heard();
            may_give && resident.pool.is_some_and(|pool| !pool.is_squeezed())
        })
    }

    /// Grants pools what is free, where nothing else waits for it, and has them know what has
    /// changed.
    pub(super) fn tell_pools(&mut self) {
        if self.pools.is_empty() {
            return;
        }
        let pools: Vec<Key> = self.pools.iter().cloned().collect();
        for device in self.ledger.devices() {
            let here: Vec<&Key> = pools.iter().filter(|key| key.device == device).collect();
            let is_tight = self.is_tight(device);
            if !is_tight && !self.stopping {
                self.grow_pools(device, &here);
            }
            for key in here {
                self.order(key, is_tight);
            }
        }
    }

    /// What residents hold beyond their floors, of those that `which` picks.
    pub(super) fn grown(&self, which: impl Fn(&Key) -> bool) -> Bytes {
        let here = self.pools.iter().filter(|key| which(key));
        here.filter_map(|key| self.residents.get(key)).map(Resident::grown).sum()
    }

    /// Whether a load waits for room on a device that pools may give back, or more is charged
    /// there than may be.
    fn is_tight(&self, device: DeviceId) -> bool {
        let waits = |(artefact, job): (_, &Job)| match job.room {
            Room::Wanted => {
                // What pools cannot help, or nobody waits for, is no reason to squeeze them.
                let helps = [Obstacle::Pools, Obstacle::InUse, Obstacle::OverBudget];
                job.obstacle.is_some_and(|by| helps.contains(&by))
                    && self.is_wanted(artefact)
                    && self.devices_for(job.kin()).any(|other| other == device)
            }
            Room::Promised { device: on } => {
                on == device && self.ledger.promised(on, artefact) < self.need(artefact, on)
            }
            Room::Loading { .. } => false,
        };
        self.ledger.over(device) > Bytes::ZERO || self.jobs.iter().any(waits)
    }

    /// Divides what is free among the pools that want some, those that have least first.
    fn grow_pools(&mut self, device: DeviceId, here: &[&Key]) {
        let wanting = here.iter().filter_map(|key| {
            let resident = self.residents.get(key)?;
            let pool = resident.pool?;
            // Of what is on its way out, others have been promised the room.
            let may_grow = resident.state == State::Ready && resident.claimed_by.is_none();
            (may_grow && pool.wants() > Bytes::ZERO).then(|| (pool.grown(), *key))
        });
        let mut wanting: Vec<(Bytes, &Key)> = wanting.collect();
        wanting.sort_unstable();
        for (index, (_, key)) in wanting.iter().enumerate() {
            let (free, others) = (self.ledger.free(device), (wanting.len() - index) as u64);
            let free = free.min(self.below_ceiling(key));
            let Some(resident) = self.residents.get_mut(key) else { continue };
            let Some(pool) = &mut resident.pool else { continue };
            let chunk = pool.heard.chunk.0.max(1);
            // A part that holds no chunk goes to the first that want one.
            let part = Bytes((free.0 / others).max(chunk.min(free.0)));
            let granted = Bytes(pool.wants().min(part).0 / chunk * chunk);
            pool.said.granted += granted;
            self.flow.granted += granted;
            resident.footprint.kv += granted;
            let (footprint, shared) = (resident.footprint, resident.shared.clone());
            debug_assert!(
                granted <= self.ledger.free(device),
                "invariant 1: the pool of {} is granted what is not free",
                key.artefact
            );
            self.ledger.recharge(device, &key.artefact, &footprint, &shared);
        }
    }

    /// What a pool may grow until its tenant has what it may have.
    fn below_ceiling(&self, key: &Key) -> Bytes {
        let model = &key.artefact.model;
        let Some(ceiling) = self.ceiling(model) else {
            return Bytes(u64::MAX);
        };
        let name = tenant(model);
        let coming = self.jobs.iter().filter(|(artefact, job)| {
            tenant(&artefact.model) == name && !matches!(job.room, Room::Wanted)
        });
        let coming: Bytes = coming.map(|(artefact, _)| self.share_of_load(artefact)).sum();
        ceiling.saturating_sub(self.tenant_bytes(name) + coming)
    }

    fn order(&mut self, key: &Key, is_tight: bool) {
        let Some(resident) = self.residents.get_mut(key).filter(|it| it.is_heard()) else {
            return;
        };
        let Some(pool) = &mut resident.pool else { return };
        let is_news = pool.said.granted > pool.told || pool.said.tight != is_tight;
        if is_news {
            pool.told = pool.said.granted;
            pool.said.tight = is_tight;
            pool.said.number += 1;
            let order = pool.said;
            self.effects.push(Effect::OrderKv { key: key.clone(), order });
        }
    }
}
