//! Who leaves: what is worth least first, idle ones before busy ones, kept ones never.

use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::{ArtefactId, Bytes, DeviceId, ModelId};

use super::Table;
use super::event::Key;
use super::leavers::{Leaver, Leavers};
use super::state::{Job, Resident, State};
use crate::config::tenant;
use crate::decision::{Action, Decided, Departure};

/// How dear it is to let a resident leave; the cheaper goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cost {
    /// Its bytes come free anyway.
    Unloading,
    /// It leaves for this load already, as soon as the adapters on it have.
    Going,
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

/// The order in which they are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    cost: Cost,
    /// Its version serves nowhere else.
    is_last: bool,
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
        let is_theirs = |key: &Key| own > Bytes::ZERO && self.is_same_tenant(key, claims[0]);
        let share = |key: &Key| match is_theirs(key) {
            true => self.ledger.share(key.device, &key.artefact),
            false => Bytes::ZERO,
        };
        let (mut chosen, mut freeing) = (Vec::new(), self.ledger.freeing(device));
        let mut given = Bytes::ZERO;
        // What its own tenant has to give comes first; it may be enough.
        let mut theirs = self.of_its_tenant(device, claims, busy);
        while given < own {
            let leaver = theirs.next()?;
            theirs.chosen(self.base_of(leaver.key).as_ref());
            chosen.push(leaver.key);
            given += share(leaver.key);
            if leaver.key.device == device {
                freeing.add(&leaver.key.artefact);
            }
        }
        let already: BTreeSet<&Key> = chosen.iter().copied().collect();
        let mut candidates = self.candidates(device, claims, busy);
        let mut floors = self.beyond_floors(claims);
        while freeing.bytes() < missing {
            let leaver = candidates.next()?;
            let is_chosen = already.contains(leaver.key);
            if !is_chosen && !self.leaves_floor(&mut floors, &leaver, device, claims[0]) {
                continue;
            }
            candidates.chosen(self.base_of(leaver.key).as_ref());
            if !is_chosen {
                chosen.push(leaver.key);
                freeing.add(&leaver.key.artefact);
                given += share(leaver.key);
            }
        }
        // A large one chosen late may make smaller ones before it needless; the dearest
        // are spared first. What stands on a base that leaves goes with it.
        let mut kept: Vec<Key> = Vec::with_capacity(chosen.len());
        let mut bases: BTreeSet<Key> = BTreeSet::new();
        for key in chosen.into_iter().rev() {
            let left = given.saturating_sub(share(key));
            let goes_along = self.base_of(key).is_some_and(|base| bases.contains(&base));
            let is_here = key.device == device;
            if is_here {
                freeing.spare(&key.artefact);
            }
            if freeing.bytes() >= missing && left >= own && !goes_along {
                given = left;
                continue;
            }
            if is_here {
                freeing.add(&key.artefact);
            }
            if self.bases.is_used(key) {
                bases.insert(key.clone());
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
        self.devices_for(self.kin(artefact)).any(|device| {
            let mut freeing = self.ledger.freeing(device);
            let mut given = Bytes::ZERO;
            let mut beyond_floors = self.beyond_floors(&[]);
            let mut stay: BTreeSet<Key> = BTreeSet::new();
            let bases = self.residents.keys().filter(|key| self.bases.count(key) > 0);
            let others = self.residents.keys().filter(|key| self.bases.count(key) == 0);
            // A base is looked at when it is known which of its adapters have to stay.
            for key in others.chain(bases) {
                let (model, is_here) = (&key.artefact.model, key.device == device);
                let is_held = match is_here {
                    true => self.is_held(key),
                    false => self.is_kept(model),
                };
                let is_held = *model != artefact.model && is_held;
                if is_held || stay.contains(key) || self.is_base_of(key, artefact) {
                    stay.extend(self.base_of(key));
                    continue;
                }
                let bytes = self.ledger.share(key.device, &key.artefact);
                let is_theirs = self.is_same_tenant(key, artefact);
                given += if is_theirs { bytes } else { Bytes::ZERO };
                if !is_here {
                    continue;
                }
                if is_theirs {
                    // What it frees here counts below.
                } else if let Some(beyond) = beyond_floors.get_mut(tenant(model)) {
                    if bytes > *beyond {
                        stay.extend(self.base_of(key));
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

    /// What leaves of a tenant that has to give something, on whichever device, cheapest first.
    fn of_its_tenant<'a>(
        &'a self,
        device: DeviceId,
        claims: &'a [&'a ArtefactId],
        busy: bool,
    ) -> Leavers<'a, Order> {
        // Of a kept model the one elsewhere stays, whoever leaves here.
        let may_give = move |key: &&Key| {
            let model = &key.artefact.model;
            let may_leave =
                key.device == device || *model == claims[0].model || !self.is_kept(model);
            may_leave && self.is_same_tenant(key, claims[0])
        };
        let theirs = self.residents.keys().filter(may_give);
        let leavers = theirs.filter_map(move |key| self.leaver(key, claims, busy));
        Leavers::new(&self.bases, leavers, std::iter::empty())
    }

    fn leaver<'a>(
        &'a self,
        key: &'a Key,
        claims: &[&ArtefactId],
        busy: bool,
    ) -> Option<Leaver<'a, Order>> {
        let resident = self.residents.get(key)?;
        let cost = self.cost(key, resident, claims, busy)?;
        let cost = Order { cost, is_last: !self.has_twin(key) };
        Some(Leaver { cost, worth: resident.worth, used_sequence: resident.used_sequence, key })
    }

    /// Those that may leave for the first of `claims`, cheapest first, and of equals those first
    /// whose version goes on serving elsewhere.
    ///
    /// Of idle ones only so many are looked at as leave. What costs otherwise than they do is
    /// looked at beforehand: those in use or leaving, of the claim's own model, with a twin, and
    /// bases.
    fn candidates<'a>(
        &'a self,
        device: DeviceId,
        claims: &'a [&'a ArtefactId],
        busy: bool,
    ) -> Leavers<'a, Order> {
        let leaver = move |key: &'a Key| self.leaver(key, claims, busy);
        let of = |model| self.models.peek(model).into_iter().flat_map(|entry| &entry.residents);
        let models = self.residents.several().map(|artefact| &artefact.model);
        let models = models.chain(self.bases.awaited().map(|(base, _)| base));
        let models: BTreeSet<&ModelId> = models.chain([&claims[0].model]).collect();
        let bases = self.bases.keys().filter_map(|base| self.residents.key(base));
        let few: BTreeSet<&Key> = models.into_iter().flat_map(of).chain(bases).collect();
        let is_plain = move |leaver: &Leaver<'a, Order>| {
            let Order { cost, is_last } = leaver.cost;
            cost == Cost::Idle && is_last && self.bases.count(leaver.key) == 0
        };
        // Whoever is idle and costs as much as idle ones do is among the many.
        let few = few.into_iter().filter(|key| key.device == device).filter_map(leaver);
        let few =
            few.filter(move |leaver| !is_plain(leaver) || !self.residents.is_idle(leaver.key));
        let others = self.residents.others().filter(|key| key.device == device);
        let many = self.residents.idle(device).filter_map(leaver).filter(is_plain);
        let few: BTreeMap<&Key, Leaver<'a, Order>> =
            few.chain(others.filter_map(leaver)).map(|leaver| (leaver.key, leaver)).collect();
        Leavers::new(&self.bases, few.into_values(), many)
    }

    /// Whether a tenant's floor stays when this one leaves as well; then it is taken off what is
    /// beyond that floor.
    fn leaves_floor(
        &self,
        beyond_floors: &mut BTreeMap<String, Bytes>,
        leaver: &Leaver<'_, Order>,
        device: DeviceId,
        claim: &ArtefactId,
    ) -> bool {
        // What leaves anyway is no part of a floor any more.
        let is_leaving = matches!(leaver.cost.cost, Cost::Unloading | Cost::Leaving);
        if beyond_floors.is_empty() || is_leaving || self.is_same_tenant(leaver.key, claim) {
            return true;
        }
        let artefact = &leaver.key.artefact;
        let Some(beyond) = beyond_floors.get_mut(tenant(&artefact.model)) else {
            return true;
        };
        let bytes = self.ledger.share(device, artefact);
        let may_leave = bytes <= *beyond;
        if may_leave {
            *beyond = beyond.saturating_sub(bytes);
        }
        may_leave
    }

    pub(super) fn is_same_tenant(&self, key: &Key, claim: &ArtefactId) -> bool {
        tenant(&key.artefact.model) == tenant(&claim.model)
    }

    /// What it costs that a resident leaves for the first of `claims`; `None` where it must not.
    pub(super) fn cost(
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
        let is_ready = resident.state == State::Ready;
        if is_ready && self.carries_loads(key, claims) {
            return None;
        }
        let in_use = resident.leases > 0 || self.is_base_wanted(&key.artefact.model);
        match resident.state {
            State::Unloading => Some(Cost::Unloading),
            State::Draining(Departure::Evicted) if !may_go => None,
            // Else two bases of equal worth could take turns, neither of them ever gone.
            State::Draining(Departure::Evicted) if resident.claimed_by.as_ref() == Some(claim) => {
                Some(if resident.leases == 0 { Cost::Going } else { Cost::Draining })
            }
            State::Draining(Departure::Evicted) => Some(Cost::Busy),
            State::Draining(_) => Some(Cost::Leaving),
            State::Ready if !may_go || (is_young && !is_old_version) => None,
            State::Ready if in_use && !busy => None,
            State::Ready => Some(match (in_use, is_old_version) {
                (false, false) => Cost::Idle,
                (false, true) => Cost::OldVersion,
                (true, false) => Cost::Busy,
                (true, true) => Cost::BusyOldVersion,
            }),
        }
    }

    /// Whether loads count on this base: the first of `claims` itself, others that are not among
    /// the rest, or such as are on their way to the device.
    fn carries_loads(&self, key: &Key, claims: &[&ArtefactId]) -> bool {
        let is_loading = |id: &ArtefactId| self.jobs.get(id).is_some_and(Job::is_loading);
        self.is_base_of(key, claims[0])
            || self.bases.loads(key).any(|load| !claims.contains(&load) || is_loading(load))
    }

    /// Whether a load needs this one to stay: its base.
    fn is_base_of(&self, key: &Key, load: &ArtefactId) -> bool {
        let base = self.jobs.get(load).and_then(|job| job.base.as_ref());
        base == Some(&key.artefact.model)
    }

    /// Whom an exceeded budget sends away beside those that leave anyway. Not all or
    /// nothing: the memory is in foreign hands already, and every byte helps.
    pub(super) fn overboard(&self, device: DeviceId, over: Bytes) -> Vec<Key> {
        // What pools give back may do.
        if self.awaits_pools(device) {
            return Vec::new();
        }
        let here = self.residents.iter().filter(|(key, _)| key.device == device);
        let (leaving, staying): (Vec<_>, Vec<_>) =
            here.partition(|(_, resident)| resident.state != State::Ready);
        let leaving: Vec<&ArtefactId> = leaving.into_iter().map(|(key, _)| &key.artefact).collect();
        let candidates = staying
            .into_iter()
            .filter(|(key, _)| !self.is_held(key) && self.bases.loads(key).next().is_none())
            .map(|(key, it)| {
                let cost = (it.leases > 0, !self.has_twin(key));
                Leaver { cost, worth: it.worth, used_sequence: 0, key }
            });
        let mut candidates = Leavers::new(&self.bases, candidates, std::iter::empty());
        // What leaves anyway needs not be chosen.
        for artefact in &leaving {
            let key = Key { artefact: (*artefact).clone(), device };
            candidates.chosen(self.base_of(&key).as_ref());
        }
        let mut freeing = self.ledger.freeing(device);
        leaving.into_iter().for_each(|artefact| freeing.add(artefact));
        // Floors are broken last.
        let mut beyond_floors = self.beyond_floors(&[]);
        let (mut chosen, mut last) = (Vec::new(), Vec::new());
        while freeing.bytes() < over
            && let Some(Leaver { key, .. }) = candidates.next()
        {
            if let Some(beyond) = beyond_floors.get_mut(tenant(&key.artefact.model)) {
                let bytes = self.ledger.share(device, &key.artefact);
                if bytes > *beyond {
                    last.push(key);
                    continue;
                }
                *beyond = beyond.saturating_sub(bytes);
            }
            freeing.add(&key.artefact);
            candidates.chosen(self.base_of(key).as_ref());
            chosen.push(key.clone());
        }
        // The rest of a base comes with the last of its adapters.
        for key in last {
            candidates.chosen(self.base_of(key).as_ref());
            let released = std::iter::from_fn(|| candidates.next());
            let released: Vec<&Key> = released.map(|leaver| leaver.key).collect();
            for key in [key].into_iter().chain(released) {
                if freeing.bytes() < over {
                    freeing.add(&key.artefact);
                    chosen.push(key.clone());
                }
            }
        }
        chosen
    }

    /// The residents whose bytes are promised to a load.
    pub(super) fn claimed(&self, artefact: &ArtefactId) -> Vec<Key> {
        let claimed = self.residents.claimed(artefact).cloned().collect();
        self.bases_first(claimed)
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

    /// Bases first: their adapters can serve again only when they do.
    pub(super) fn bases_first(&self, mut keys: Vec<Key>) -> Vec<Key> {
        keys.sort_by_key(|key| self.bases.count(key) == 0);
        keys
    }

    pub(super) fn revive(&mut self, key: &Key) {
        let may_serve = self.may_serve(key);
        let Some(resident) = self.residents.get_mut(key) else {
            return;
        };
        debug_assert!(matches!(resident.state, State::Draining(_)), "only leavers are revived");
        if !may_serve {
            resident.state = State::Draining(Departure::Base);
            if resident.leases == 0 {
                self.unload_if_free(key);
            }
            return;
        }
        resident.state = State::Ready;
        self.touched.push(key.artefact.model.clone());
        self.decide(Decided::of(&key.artefact, Some(key.device), Action::Revived));
        self.discard_for_others(&key.artefact.model);
        self.revive_adapters(key);
    }
}
