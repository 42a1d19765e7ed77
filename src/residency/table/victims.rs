//! Who leaves: what is worth least first, idle ones before busy ones, kept ones never.

use std::cmp::Ordering;

use roundhouse_types::{ArtefactId, Bytes, DeviceId};

use super::Table;
use super::event::Key;
use super::state::{Job, Resident, State};
use crate::config::tenant;
use crate::decision::{Action, Decided, Departure};

/// How dear it is to let a resident leave; the cheaper goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cost {
    /// Its bytes come free anyway.
    Unloading,
    /// Nobody uses it.
    Idle,
    /// Nobody uses it, but it is the old version of the very model that wants the room.
    OldVersion,
    /// It leaves anyway when its last lease ends.
    Leaving,
    /// It drains for this load already.
    Draining,
    /// It is in use: its requests will have to wait for a new load of it.
    Busy,
    /// It is in use and the old version of the model that wants the room.
    BusyOldVersion,
}

impl Table {
    /// The residents that have to leave so that `missing` more bytes come free for the
    /// first of `claims`: the whole set or `None`. Those claimed by others are not
    /// touched; those of the other `claims` are, because these would be taken back.
    /// Residents in use are chosen only with `busy`. What its tenant's ceiling asks for is given by
    /// the tenant's residents on any device.
    pub(super) fn victims(
        &self,
        device: DeviceId,
        claims: &[&ArtefactId],
        missing: Bytes,
        busy: bool,
    ) -> Option<Vec<Key>> {
        let own = self.above_ceiling(claims);
        if missing == Bytes::ZERO && own == Bytes::ZERO {
            return Some(Vec::new());
        }
        let candidates = self.candidates(device, claims, busy, own > Bytes::ZERO);
        let is_theirs = |key: &Key| own > Bytes::ZERO && self.is_same_tenant(key, claims[0]);
        let share = |key: &Key| match is_theirs(key) {
            true => self.ledger.share(key.device, &key.artefact),
            false => Bytes::ZERO,
        };
        let (mut chosen, mut freeing) = (Vec::new(), self.ledger.freeing(device));
        let (mut given, mut later) = (Bytes::ZERO, Vec::new());
        // What its own tenant has to give comes first; it may be enough.
        for key in candidates {
            if given < own && is_theirs(key) {
                chosen.push(key);
                given += share(key);
                if key.device == device {
                    freeing.add(&key.artefact);
                }
            } else if key.device == device {
                later.push(key);
            }
        }
        for key in later {
            if freeing.bytes() >= missing {
                break;
            }
            chosen.push(key);
            freeing.add(&key.artefact);
            given += share(key);
        }
        if freeing.bytes() < missing || given < own {
            return None;
        }
        // A large one chosen late may make smaller ones before it needless; the dearest
        // are spared first.
        let mut kept = Vec::with_capacity(chosen.len());
        for key in chosen.into_iter().rev() {
            let left = given.saturating_sub(share(key));
            if key.device == device {
                freeing.spare(&key.artefact);
            }
            if freeing.bytes() >= missing && left >= own {
                given = left;
                continue;
            }
            if key.device == device {
                freeing.add(&key.artefact);
            }
            kept.push(key.clone());
        }
        kept.reverse();
        Some(kept)
    }

    /// Whether a load could ever come: if all that may leave for it did, whoever uses or has
    /// claimed it by now.
    pub(super) fn could_come(&self, artefact: &ArtefactId) -> bool {
        let own = self.above_ceiling(&[artefact]);
        let is_handler = self.jobs.get(artefact).is_some_and(Job::is_handler);
        self.devices_for(is_handler).any(|device| {
            let mut freeing = self.ledger.freeing(device);
            let mut given = Bytes::ZERO;
            let mut beyond_floors = self.beyond_floors(&[]);
            for key in self.residents.keys() {
                let model = &key.artefact.model;
                let is_held = match key.device == device {
                    true => self.is_held(key),
                    false => self.is_kept(model),
                };
                if *model != artefact.model && is_held {
                    continue;
                }
                let bytes = self.ledger.share(key.device, &key.artefact);
                let is_theirs = self.is_same_tenant(key, artefact);
                given += if is_theirs { bytes } else { Bytes::ZERO };
                if key.device != device {
                    continue;
                }
                if is_theirs {
                    // What it frees here counts below.
                } else if let Some(beyond) = beyond_floors.get_mut(tenant(model)) {
                    if bytes > *beyond {
                        continue;
                    }
                    *beyond = beyond.saturating_sub(bytes);
                }
                freeing.add(&key.artefact);
            }
            let promised = self.ledger.reserved(device);
            let room = self.ledger.free(device) + promised + freeing.bytes();
            self.need(artefact, device) <= room && given >= own
        })
    }

    /// Those that may leave for the first of `claims`, cheapest first, and of equals those first
    /// whose version goes on serving elsewhere; of a tenant with a floor only so many that the
    /// floor stays. With `elsewhere` also those of its own tenant on other devices.
    fn candidates(
        &self,
        device: DeviceId,
        claims: &[&ArtefactId],
        busy: bool,
        elsewhere: bool,
    ) -> Vec<&Key> {
        // Of a kept model the one elsewhere stays, whoever leaves here.
        let may_give = |key: &Key| {
            let model = &key.artefact.model;
            self.is_same_tenant(key, claims[0])
                && (*model == claims[0].model || !self.is_kept(model))
        };
        let here = self.residents.iter();
        let here = here.filter(|(key, _)| key.device == device || (elsewhere && may_give(key)));
        let mut candidates: Vec<((Cost, bool), f64, u64, &Key)> = here
            .filter_map(|(key, resident)| {
                let cost = self.cost(key, resident, claims, busy)?;
                Some(((cost, !self.has_twin(key)), resident.worth, resident.used_sequence, key))
            })
            .collect();
        candidates.sort_unstable_by(|a, b| {
            let worth = a.1.partial_cmp(&b.1).unwrap_or(Ordering::Equal);
            a.0.cmp(&b.0).then(worth).then(a.2.cmp(&b.2)).then(a.3.cmp(b.3))
        });
        let mut beyond_floors = self.beyond_floors(claims);
        candidates.retain(|((cost, _), _, _, key)| {
            // What leaves anyway is no part of a floor any more.
            let is_leaving = matches!(cost, Cost::Unloading | Cost::Leaving);
            if is_leaving || self.is_same_tenant(key, claims[0]) {
                return true;
            }
            let Some(beyond) = beyond_floors.get_mut(tenant(&key.artefact.model)) else {
                return true;
            };
            let bytes = self.ledger.share(device, &key.artefact);
            let may_leave = bytes <= *beyond;
            if may_leave {
                *beyond = beyond.saturating_sub(bytes);
            }
            may_leave
        });
        candidates.into_iter().map(|(_, _, _, key)| key).collect()
    }

    pub(super) fn is_same_tenant(&self, key: &Key, claim: &ArtefactId) -> bool {
        tenant(&key.artefact.model) == tenant(&claim.model)
    }

    /// What it costs that a resident leaves for the first of `claims`; `None` where it must not.
    fn cost(
        &self,
        key: &Key,
        resident: &Resident,
        claims: &[&ArtefactId],
        busy: bool,
    ) -> Option<Cost> {
        let claim = claims[0];
        if resident.claimed_by.as_ref().is_some_and(|by| !claims.contains(&by)) {
            return None;
        }
        let is_old_version = key.artefact.model == claim.model;
        let may_go = is_old_version || !self.is_held(key);
        let is_young =
            self.now.saturating_duration_since(resident.ready_at) < self.config.minimum_residence;
        match resident.state {
            State::Unloading => Some(Cost::Unloading),
            State::Draining(Departure::Evicted) if !may_go => None,
            State::Draining(Departure::Evicted) if resident.claimed_by.as_ref() == Some(claim) => {
                Some(Cost::Draining)
            }
            State::Draining(Departure::Evicted) => Some(Cost::Busy),
            State::Draining(_) => Some(Cost::Leaving),
            State::Ready if !may_go || (is_young && !is_old_version) => None,
            State::Ready if resident.leases > 0 && !busy => None,
            State::Ready => Some(match (resident.leases > 0, is_old_version) {
                (false, false) => Cost::Idle,
                (false, true) => Cost::OldVersion,
                (true, false) => Cost::Busy,
                (true, true) => Cost::BusyOldVersion,
            }),
        }
    }

    /// Whom an exceeded budget sends away beside those that leave anyway. Not all or
    /// nothing: the memory is in foreign hands already, and every byte helps.
    pub(super) fn overboard(&self, device: DeviceId, over: Bytes) -> Vec<Key> {
        let here = self.residents.iter().filter(|(key, _)| key.device == device);
        let (leaving, staying): (Vec<_>, Vec<_>) =
            here.partition(|(_, resident)| resident.state != State::Ready);
        let leaving: Vec<&ArtefactId> = leaving.into_iter().map(|(key, _)| &key.artefact).collect();
        let mut candidates: Vec<((bool, bool), f64, &Key)> = staying
            .into_iter()
            .filter(|(key, _)| !self.is_held(key))
            .map(|(key, it)| ((it.leases > 0, !self.has_twin(key)), it.worth, key))
            .collect();
        candidates.sort_unstable_by(|a, b| {
            let worth = a.1.partial_cmp(&b.1).unwrap_or(Ordering::Equal);
            a.0.cmp(&b.0).then(worth).then(a.2.cmp(b.2))
        });
        // Floors are broken last.
        let mut beyond_floors = self.beyond_floors(&[]);
        let (first, last): (Vec<_>, Vec<_>) = candidates.into_iter().partition(|(_, _, key)| {
            let Some(beyond) = beyond_floors.get_mut(tenant(&key.artefact.model)) else {
                return true;
            };
            let bytes = self.ledger.share(device, &key.artefact);
            let is_beyond = bytes <= *beyond;
            if is_beyond {
                *beyond = beyond.saturating_sub(bytes);
            }
            is_beyond
        });
        let mut freeing = self.ledger.freeing(device);
        leaving.into_iter().for_each(|artefact| freeing.add(artefact));
        let mut chosen = Vec::new();
        for (_, _, key) in first.into_iter().chain(last) {
            if freeing.bytes() >= over {
                break;
            }
            freeing.add(&key.artefact);
            chosen.push(key.clone());
        }
        chosen
    }

    /// The residents whose bytes are promised to a load.
    pub(super) fn claimed(&self, artefact: &ArtefactId) -> Vec<Key> {
        self.residents.claimed(artefact).cloned().collect()
    }

    pub(super) fn claim(&mut self, key: &Key, artefact: &ArtefactId) {
        self.residents.claim(key, artefact);
    }

    /// A load does not need this resident's room any more. If it was draining for that, it
    /// serves again.
    pub(super) fn unclaim(&mut self, key: &Key) {
        let Some(resident) = self.residents.unclaim(key) else {
            return;
        };
        if resident.state == State::Draining(Departure::Evicted) {
            self.revive(key);
        }
    }

    pub(super) fn unclaim_all(&mut self, artefact: &ArtefactId) {
        for key in self.claimed(artefact) {
            self.unclaim(&key);
        }
    }

    pub(super) fn revive(&mut self, key: &Key) {
        let Some(resident) = self.residents.get_mut(key) else {
            return;
        };
        debug_assert!(matches!(resident.state, State::Draining(_)), "only leavers are revived");
        resident.state = State::Ready;
        self.touched.push(key.artefact.model.clone());
        self.decide(Decided::of(&key.artefact, Some(key.device), Action::Revived));
    }
}
