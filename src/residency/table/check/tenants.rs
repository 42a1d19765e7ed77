//! What is kept of tenants against walks over all residents and loads.

use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::{ArtefactId, Bytes};

use super::super::Table;
use super::super::event::Key;
use super::super::state::{Resident, Room, State};
use crate::config::tenant;
use crate::decision::Departure;

/// Loads at most whose claims are left out in turn: each takes a walk.
const LOADS_LOOKED_AT: usize = 8;

impl Table {
    pub(super) fn check_tenants(&self) {
        let mut shares: BTreeMap<_, Bytes> = BTreeMap::new();
        for key in self.residents.keys() {
            let share = self.ledger.share(key.device, &key.artefact);
            *shares.entry((key.device, tenant(&key.artefact.model))).or_default() += share;
        }
        let names = self.config.tenants.keys().map(String::as_str);
        let names: BTreeSet<&str> = names.chain(shares.keys().map(|(_, name)| *name)).collect();
        for device in self.ledger.devices() {
            for name in &names {
                let walked = shares.get(&(device, *name)).copied().unwrap_or_default();
                assert_eq!(self.ledger.tenant_share(device, name), walked, "{name} on {device}");
            }
        }
        if self.config.tenants.is_empty() {
            return;
        }
        self.check_floors(&[]);
        let loads: Vec<&ArtefactId> = self.jobs.keys().take(LOADS_LOOKED_AT).collect();
        for (at, artefact) in loads.iter().enumerate() {
            // Alone, and with all behind it.
            for claims in [&loads[at..=at], &loads[at..]] {
                self.check_floors(claims);
                self.check_ceiling(claims);
            }
            let name = tenant(&artefact.model);
            let given = self
                .walk(name, |key, _| key.artefact.model == artefact.model || !self.is_held(key));
            assert_eq!(self.given_at_most(artefact), given, "given for {artefact}");
        }
    }

    /// What a tenant's residents take that are so.
    fn walk(&self, name: &str, is_so: impl Fn(&Key, &Resident) -> bool) -> Bytes {
        let theirs = self.residents.iter().filter(|(key, _)| tenant(&key.artefact.model) == name);
        let so = theirs.filter(|(key, resident)| is_so(key, resident));
        so.map(|(key, _)| self.ledger.share(key.device, &key.artefact)).sum()
    }

    fn check_floors(&self, claims: &[&ArtefactId]) {
        for (name, kept) in self.beyond_floors(claims) {
            let walked = self.walk(&name, |_, resident| {
                let is_evicted = resident.state == State::Draining(Departure::Evicted);
                let is_free = resident.claimed_by.as_ref().is_none_or(|by| claims.contains(&by));
                is_free && (resident.state == State::Ready || is_evicted)
            });
            let walked = walked.saturating_sub(self.config.tenants[&name].floor);
            assert_eq!(kept, walked, "{name} beyond its floor for {claims:?}");
        }
    }

    fn check_ceiling(&self, claims: &[&ArtefactId]) {
        let Some(ceiling) = self.ceiling(&claims[0].model) else { return };
        let name = tenant(&claims[0].model);
        let staying = self.walk(name, |_, resident| match &resident.claimed_by {
            Some(by) if !claims.contains(&by) => {
                resident.state == State::Ready && tenant(&by.model) != name
            }
            _ => true,
        });
        let coming = self.jobs.iter().filter(|(other, job)| {
            let is_promised = !matches!(job.room, Room::Wanted) && !claims.contains(other);
            tenant(&other.model) == name && (*other == claims[0] || is_promised)
        });
        let coming: Bytes = coming.map(|(other, _)| self.share_of_load(other)).sum();
        let walked = (staying + coming).saturating_sub(ceiling);
        assert_eq!(self.above_ceiling(claims), walked, "{name} above its ceiling for {claims:?}");
    }
}
