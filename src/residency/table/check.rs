//! The invariants, as far as one look at the table can tell them. Debug builds take it
//! after every event.
#![cfg(debug_assertions)]

use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::{ArtefactId, Bytes};

use super::Table;
use super::copies::Stage;
use super::event::Key;
use super::sharing::whole;
use super::state::{Job, Model, NextLook, Purpose, Room, State};
use crate::decision::Departure;

mod tenants;

impl Table {
    pub(super) fn check(&self) {
        self.check_accounts();
        self.check_tenants();
        self.check_loads();
        self.check_replicas();
        self.check_residents();
        self.check_adapters();
        self.check_copies();
        self.check_waiters();
    }

    fn check_accounts(&self) {
        for device in self.ledger.devices() {
            let residents = self.residents.keys().filter(|key| key.device == device);
            let loads = self.jobs.iter().filter(|(_, job)| job.device() == Some(device));
            let count = self.residents.keys().filter(|key| key.device == device).count();
            assert_eq!(self.ledger.residents(device), count, "residents of {device} are charged");
            let here = residents.map(|key| &key.artefact).chain(loads.map(|(id, _)| id));
            assert_eq!(
                self.ledger.charged(device),
                self.ledger.together(device, here, &[]),
                "invariant 5: {device} is charged for its residents, those that unload included, \
                 and for what loads count on"
            );
            let jobs = self.jobs.iter().filter(|(_, job)| job.device() == Some(device));
            let promised: Bytes = jobs.map(|(id, _)| self.ledger.promised(device, id)).sum();
            assert_eq!(self.ledger.reserved(device), promised, "promises on {device} have a load");
            if self.ledger.over(device) > Bytes::ZERO {
                let waits = |room| matches!(room, Room::Promised { device: d } if d == device);
                let promised: Bytes = self
                    .jobs
                    .iter()
                    .filter(|(_, job)| waits(job.room))
                    .map(|(id, _)| self.ledger.promised(device, id))
                    .sum();
                assert_eq!(promised, Bytes::ZERO, "invariant 1: nothing is granted on {device}");
            }
        }
    }

    fn check_loads(&self) {
        let loading = self.jobs.values().filter(|job| job.is_loading());
        let (arriving, loading): (Vec<_>, Vec<_>) = loading.partition(|job| job.arriving);
        assert!(
            arriving.len() <= 2 * self.config.max_fetches,
            "loads of what arrives are bounded by the slots of fetches"
        );
        let (handlers, others): (Vec<_>, Vec<_>) =
            loading.into_iter().partition(|job| job.starts_processes());
        assert!(handlers.len() <= self.config.max_handler_loads, "loads of handlers are bounded");
        assert!(others.len() <= self.config.max_loads, "other loads are bounded");
        for (artefact, job) in &self.jobs {
            let is_stillborn = job.died.is_some();
            assert!(!is_stillborn || job.is_loading(), "{artefact} died before it was there");
            let is_broken = job.broken.is_some();
            assert!(!job.arriving || job.is_loading(), "{artefact} has no room to arrive in");
            assert!(!is_broken || (job.arriving && job.is_whole()), "{artefact} is stopped twice");
            if job.arriving {
                assert!(self.claimed(artefact).is_empty(), "nobody leaves for {artefact}");
            }
            if job.footprint.is_some() && !job.is_loading() && !self.stopping {
                let largest = self.ledger.largest_budget();
                assert!(whole(job) <= largest, "invariant 6: {artefact} can never fit");
            }
            match job.room {
                Room::Wanted => {
                    assert!(
                        self.claimed(artefact).is_empty(),
                        "invariant 7: {artefact} has no room"
                    );
                }
                Room::Promised { device } => {
                    let mut victims = self.claimed(artefact);
                    // For its tenant's ceiling those on other devices leave as well.
                    victims.retain(|key| key.device == device);
                    let frees =
                        self.ledger.freed_by(device, victims.iter().map(|key| &key.artefact));
                    let covered = self.ledger.promised(device, artefact) + frees;
                    let need = self.need(artefact, device);
                    assert!(covered >= need, "invariant 7: {artefact} is not covered");
                }
                Room::Loading { device, .. } => {
                    let promised = self.ledger.promised(device, artefact);
                    let need = self.need(artefact, device);
                    assert!(promised >= need, "invariant 1: {artefact} loads unpromised");
                }
            }
            if let Some(device) = job.device() {
                assert!(!self.is_on(artefact, device), "invariant 3: {artefact} is on {device}");
            }
        }
    }

    /// A replica takes no room while others wait for some, and there are not too many.
    fn check_replicas(&self) {
        let (replicas, others): (Vec<_>, Vec<_>) =
            self.jobs.iter().partition(|(artefact, job)| self.is_replica(artefact, job));
        assert!(replicas.len() <= 1, "one replica is loaded at a time");
        let is_room_wanted = others.iter().any(|(_, job)| matches!(job.room, Room::Wanted));
        for (artefact, job) in replicas {
            let takes_room = matches!(job.room, Room::Promised { .. });
            assert!(!(takes_room && is_room_wanted), "{artefact} takes what others wait for");
            let residents = self.devices_of(artefact);
            let most = self.config.replicas.map_or(0, |replicas| replicas.at_most);
            assert!(residents < most, "{artefact} is on {residents} devices already");
        }
    }

    fn check_residents(&self) {
        if let Some(looked) = self.idle_from {
            let first = self.first_idle();
            assert!(first.is_none_or(|at| at >= looked), "nobody is unused for too long unseen");
        }
        let by_resident = self.residents.iter();
        let by_resident = by_resident.filter_map(|(key, it)| Some((it.claimed_by.as_ref()?, key)));
        let listed = self.residents.claims();
        let listed = listed.flat_map(|(claim, keys)| keys.iter().map(move |key| (claim, key)));
        assert!(
            by_resident.collect::<BTreeSet<_>>() == listed.collect::<BTreeSet<_>>(),
            "residents are listed by the loads that claim them"
        );
        assert!(self.residents.is_listed(), "victims are found where they are listed");
        for (key, resident) in &self.residents {
            if resident.state == State::Unloading {
                assert_eq!(resident.leases, 0, "invariant 2: {} is leased", key.artefact);
            }
            if matches!(resident.state, State::Draining(_)) {
                assert!(
                    resident.leases > 0 || self.bases.is_used(key),
                    "{} has nothing to wait for",
                    key.artefact
                );
            }
            assert_eq!(
                self.ledger.together(key.device, [&key.artefact], &[]),
                resident.footprint.total(),
                "invariant 5: {} is charged for what it was last measured at",
                key.artefact
            );
            if let Some(claim) = &resident.claimed_by {
                let device = self.jobs.get(claim).and_then(|job| job.device());
                let is_kin = device.is_some() && self.is_same_tenant(key, claim);
                let is_claimed = device == Some(key.device) || is_kin;
                assert!(is_claimed, "{} is claimed in vain", key.artefact);
            } else {
                let evicted = State::Draining(Departure::Evicted);
                assert_ne!(
                    resident.state, evicted,
                    "invariant 7: {} leaves for nobody",
                    key.artefact
                );
            }
        }
    }

    /// Adapters on their devices, and on their way there.
    fn check_adapters(&self) {
        let mut standing: BTreeMap<Key, BTreeSet<Key>> = BTreeMap::new();
        let mut kept: BTreeSet<Key> = BTreeSet::new();
        for (key, adapter) in &self.residents {
            let Some(base) = self.base_of(key) else {
                continue;
            };
            let there = self.residents.get(&base);
            let state = there.map(|it| it.state);
            assert!(
                matches!(state, Some(State::Ready | State::Draining(_))),
                "invariant 9: {} is on {}, which is {state:?}",
                key.artefact,
                base.artefact
            );
            assert!(
                state == Some(State::Ready) || adapter.state != State::Ready,
                "invariant 9: {} serves, and its base leaves",
                key.artefact
            );
            assert!(there.is_some_and(|it| it.base.is_none()), "{} is no base", base.artefact);
            if let (State::Draining(Departure::Evicted), Some(it)) =
                (state.unwrap_or(State::Ready), there)
            {
                let goes = adapter.claimed_by == it.claimed_by || adapter.state != State::Ready;
                assert!(goes, "invariant 7: {} stays on what leaves", key.artefact);
            }
            if self.is_kept(&key.artefact.model) {
                kept.insert(base.clone());
            }
            standing.entry(base).or_default().insert(key.clone());
        }
        let mut counting: BTreeMap<Key, BTreeSet<&ArtefactId>> = BTreeMap::new();
        for (artefact, job) in &self.jobs {
            let is_awaiting = job
                .base
                .as_ref()
                .is_some_and(|base| self.bases.awaiting(base).any(|adapter| adapter == artefact));
            assert_eq!(is_awaiting, job.base.is_some(), "{artefact} is listed by its base");
            let is_on = job.onto.is_some();
            let has_room = job.device().is_some();
            assert_eq!(is_on, has_room && job.base.is_some(), "{artefact} counts on its base");
            assert!(!job.arriving || job.base.is_none(), "{artefact} has to wait for its base");
            let (Some(onto), Some(device)) = (job.onto.clone(), job.device()) else {
                continue;
            };
            let base = Key { artefact: onto, device };
            let resident = self.residents.get(&base);
            let coming = self.jobs.get(&base.artefact).filter(|it| it.device() == Some(device));
            assert!(
                resident.is_some_and(|it| it.state != State::Unloading)
                    || (!job.is_loading() && coming.is_some_and(Job::is_loading)),
                "invariant 9: {artefact} is promised room beside what is not there"
            );
            let serves = resident.is_none_or(|it| it.state == State::Ready);
            assert!(serves || job.is_loading(), "invariant 9: {artefact} goes onto what leaves");
            counting.entry(base).or_default().insert(artefact);
        }
        for base in self.bases.keys() {
            let adapters: BTreeSet<Key> = self.bases.residents(base).collect();
            assert_eq!(adapters, standing.remove(base).unwrap_or_default(), "on {}", base.artefact);
            let loads: BTreeSet<&ArtefactId> = self.bases.loads(base).collect();
            assert_eq!(loads, counting.remove(base).unwrap_or_default(), "to {}", base.artefact);
            assert_eq!(self.bases.is_kept(base), kept.contains(base), "kept on {}", base.artefact);
        }
        assert!(standing.is_empty() && counting.is_empty(), "every base lists its adapters");
        for (base, adapters) in self.bases.awaited() {
            let is_wanted = adapters.iter().any(|adapter| self.is_wanted(adapter));
            let entry = self.models.peek(base).expect("models that adapters wait for stay");
            let is_coming = has_prospect(entry) || self.stopping;
            assert!(!is_wanted || is_coming, "invariant 4: nobody brings {base} for its adapters");
        }
    }

    fn check_copies(&self) {
        let copies = &self.copies;
        let is_seen = match self.idle_copies {
            NextLook::Now => true,
            NextLook::At(looked) => self.first_idle_copy().is_none_or(|at| at >= looked),
            NextLook::Never => self.first_idle_copy().is_none(),
        };
        assert!(is_seen, "no copy is unused for too long unseen");
        assert_eq!(
            copies.charged(),
            copies.together(),
            "invariant 5: the host is charged for its copies, those that leave included"
        );
        let mut leaving = copies.freeing();
        let doomed = copies.iter().filter(|(_, entry)| entry.doomed.is_some());
        doomed.for_each(|(artefact, _)| leaving.add(artefact));
        let mut promised = Bytes::ZERO;
        for (artefact, entry) in copies.iter() {
            promised += copies.promised(artefact);
            assert!(
                entry.stage == Stage::Coming || copies.promised(artefact) == Bytes::ZERO,
                "{artefact} is charged or promised room"
            );
            let residents = self.residents.iter().filter(|(key, _)| key.artefact == *artefact);
            let unloads = residents.filter(|(_, resident)| resident.demotes).count();
            let loads = self.jobs.get(artefact).is_some_and(|job| job.from_copy);
            let holds = match entry.stage {
                Stage::Coming => {
                    assert_eq!((unloads, loads), (1, false), "{artefact} is made by one unload");
                    0
                }
                Stage::There | Stage::Leaving => unloads + usize::from(loads),
            };
            assert_eq!(entry.holds as usize, holds, "{artefact} is held by loads and unloads");
            let is_over = entry.doomed.is_some() && entry.holds == 0;
            assert_eq!(
                is_over && entry.stage != Stage::Coming,
                entry.stage == Stage::Leaving,
                "{artefact} leaves when nobody holds it, and only then"
            );
            let stays = entry.stage == Stage::There && entry.holds == 0 && entry.doomed.is_none();
            assert!(
                leaving.bytes() >= copies.over() || !stays,
                "invariant 1: the host's budget is exceeded and {artefact} stays"
            );
            let model = self.models.peek(&artefact.model).expect("models with copies stay");
            let is_served = model.current.as_ref() == Some(&artefact.version);
            assert!(is_served || entry.doomed.is_some(), "{artefact} is not to serve");
            let on = entry.model.base.as_ref();
            let serving = on.and_then(|base| self.ready(&base.model)).map(|key| &key.artefact);
            let finds = serving.is_none() || serving == on;
            assert!(
                finds || entry.doomed.is_some(),
                "{artefact} is copied for a base that is past"
            );
        }
        assert_eq!(copies.reserved(), promised, "promises of host memory have a copy to come");
        for (artefact, job) in self.jobs.iter().filter(|(_, job)| job.from_copy) {
            let stage = copies.get(artefact).map(|entry| entry.stage);
            assert_eq!(stage, Some(Stage::There), "{artefact} has its copy until the load ends");
            assert!(job.is_whole(), "{artefact} needs no fetch");
            let made_on = copies.get(artefact).and_then(|entry| entry.model.base.as_ref());
            let is_beside = job.onto.is_none() || !job.is_loading() || made_on == job.onto.as_ref();
            assert!(is_beside, "the copy of {artefact} is for another base");
        }
        for (id, model) in self.models.iter() {
            let theirs = copies.iter().filter(|(artefact, _)| artefact.model == *id).count();
            assert_eq!(model.copies, theirs, "the copies of {id} are counted");
        }
    }

    fn check_waiters(&self) {
        let offers = self.models.iter().filter(|(_, model)| model.offered.is_some()).count();
        assert_eq!(self.offers, offers, "what waits for an operator's word is counted");
        let unfit = self.models.iter().filter(|(_, model)| model.unfit.is_some());
        let unfit: BTreeSet<_> = unfit.map(|(id, _)| id.clone()).collect();
        assert_eq!(self.unfit, unfit, "what failed in place of what answers is listed");
        let kept = self.models.iter().filter(|(_, model)| model.kept).map(|(id, _)| id);
        assert_eq!(
            kept.collect::<BTreeSet<_>>(),
            self.kept.iter().collect::<BTreeSet<_>>(),
            "keeps"
        );
        let held: BTreeSet<&Key> = self.residents.keys().filter(|key| self.is_held(key)).collect();
        assert!(held == self.held(), "what a keep holds is found by its model or its adapters");
        let mut listed = 0;
        for (id, model) in self.models.iter() {
            listed += model.waiters.len() + model.refreshers.len() + model.unloaders.len();
            let serving = self.ready_keys(id);
            let ready = serving.len();
            let version = serving.first().map(|key| &key.artefact.version);
            let is_same = |key: &Key| Some(&key.artefact.version) == version;
            assert!(serving.iter().all(is_same), "{id} serves one version");
            assert!(
                model.waiters.is_empty() || (ready == 0 && has_prospect(model)),
                "invariant 4: nobody will answer those who wait for {id}"
            );
        }
        assert_eq!(listed, self.waiters.len(), "invariant 4: every waiter is on one list");
        for (id, waiter) in self.waiters.iter() {
            let model = self.models.peek(&waiter.model).expect("models with waiters stay");
            let is_listed = match waiter.purpose {
                Purpose::Request { .. } | Purpose::Load(_) => model.waiters.contains(id),
                Purpose::Refresh { .. } => model.refreshers.contains(id),
                Purpose::Unload { .. } => model.unloaders.contains(id),
            };
            assert!(is_listed, "invariant 4: {id:?} is on its model's list");
        }
    }
}

/// Whether something is under way that will answer a model's waiters.
fn has_prospect(model: &Model) -> bool {
    model.resolving.is_some() || !model.jobs.is_empty() || !model.residents.is_empty()
}
