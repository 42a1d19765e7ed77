//! Tenants: whose bytes may not be taken, who may take no more, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::{ArtefactId, Bytes, DeviceId, ModelId};

use super::Table;
use super::event::Key;
use super::sharing::whole;
use super::state::{Job, Room, State};
use crate::config::{TenantLimits, tenant};
use crate::decision::Departure;

/// How many average loads a tenant may be ahead of the one that is furthest behind.
const AHEAD: f64 = 2.0;
/// Weight of the newest load in the average.
const NEWEST: f64 = 0.1;

/// What tenants were given of the loader, in bytes over their share: start-time fair queueing
/// (Goyal, Vin, Cheng, SIGCOMM 1996), with some slack so that popular models may go first.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// What the one that is furthest behind, of those that wait, has had.
    clock: f64,
    /// Those that had more. Others are taken to have had as much as the clock says.
    had: BTreeMap<String, f64>,
    /// What a load brings, on average.
    average: f64,
}

impl Turns {
    fn had(&self, tenant: &str) -> f64 {
        self.had.get(tenant).copied().unwrap_or_default().max(self.clock)
    }
}

impl Table {
    fn limits(&self, tenant: &str) -> TenantLimits {
        self.config.tenants.get(tenant).copied().unwrap_or_default()
    }

    /// How far its tenant is ahead of its share, in steps; those of lesser ones go first.
    pub(super) fn lead(&self, model: &ModelId) -> u32 {
        let ahead = self.turns.had(tenant(model)) - self.turns.clock;
        let step = AHEAD * self.turns.average;
        if step <= 0.0 {
            return 0;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturating, and never negative"
        )]
        let steps = (ahead / step) as u32;
        steps
    }

    /// A load begins: its tenant is given that much. The clock follows whoever is furthest
    /// behind of those whose loads could begin now.
    pub(super) fn take_turn(&mut self, artefact: &ArtefactId) {
        let Some(job) = self.jobs.get(artefact) else {
            return;
        };
        #[expect(clippy::cast_precision_loss, reason = "a share, not an account")]
        let bytes = (job.fetch_bytes + whole(job)).0 as f64;
        let name = tenant(&artefact.model);
        let begins = self.turns.had(name);
        let could_begin = |job: &Job| job.is_whole() && !job.is_loading() && job.obstacle.is_none();
        let behind = self
            .jobs
            .iter()
            .filter(|(other, job)| could_begin(job) && self.is_wanted(other))
            .map(|(other, _)| self.turns.had(tenant(&other.model)))
            .fold(begins, f64::min);
        let had = begins + bytes / self.limits(name).share;
        let turns = &mut self.turns;
        turns.clock = behind;
        turns.had.insert(name.to_owned(), had);
        turns.had.retain(|_, had| *had > behind);
        turns.average += if turns.average == 0.0 { 1.0 } else { NEWEST } * (bytes - turns.average);
    }

    /// What a tenant's residents take; bytes that several hold are split among them.
    pub(super) fn tenant_bytes(&self, name: &str) -> Bytes {
        self.ledger.devices().map(|device| self.ledger.tenant_share(device, name)).sum()
    }

    /// What these residents take of it, each once.
    fn share_of<'a>(&self, residents: impl Iterator<Item = &'a Key>) -> Bytes {
        let residents: BTreeSet<&Key> = residents.collect();
        residents.into_iter().map(|key| self.ledger.share(key.device, &key.artefact)).sum()
    }

    /// By how much its tenant's ceiling would be exceeded when the first of `claims` came on
    /// top of what is there and promised; so much must leave of its own, beside what leaves for
    /// others. The other claims are taken to have none.
    pub(super) fn above_ceiling(&self, claims: &[&ArtefactId]) -> Bytes {
        let artefact = claims[0];
        let name = tenant(&artefact.model);
        let Some(ceiling) = self.limits(name).ceiling else {
            return Bytes::ZERO;
        };
        let is_theirs = |other: &ArtefactId| tenant(&other.model) == name;
        let coming = self.jobs.iter().filter(|(other, job)| {
            let is_promised = !matches!(job.room, Room::Wanted) && !claims.contains(other);
            is_theirs(other) && (*other == artefact || is_promised)
        });
        let coming: Bytes = coming.map(|(other, _)| self.share_of_load(other)).sum();
        let others = self.residents.claims().filter(|(claim, _)| !claims.contains(claim));
        let leaving = others.flat_map(|(claim, keys)| {
            // What another of its loads has claimed makes room for that one; what others
            // have claimed stays until it leaves.
            let is_ready = |key: &Key| {
                self.residents.get(key).is_some_and(|resident| resident.state == State::Ready)
            };
            let leaves = move |key: &&Key| is_theirs(claim) || !is_ready(key);
            keys.iter().filter(leaves)
        });
        let leaving = self.share_of(leaving.filter(|key| is_theirs(&key.artefact)));
        let staying = self.tenant_bytes(name).saturating_sub(leaving);
        (staying + coming).saturating_sub(ceiling)
    }

    /// The most a load of this model may take: its tenant's ceiling, where it has one.
    pub(super) fn ceiling(&self, model: &ModelId) -> Option<Bytes> {
        self.limits(tenant(model)).ceiling
    }

    /// What residents of its tenant that are not kept take: so much can leave for it.
    pub(super) fn given_at_most(&self, artefact: &ArtefactId) -> Bytes {
        let name = tenant(&artefact.model);
        let stays = |key: &&Key| {
            let model = &key.artefact.model;
            tenant(model) == name && *model != artefact.model
        };
        let staying = self.share_of(self.held().into_iter().filter(stays));
        self.tenant_bytes(name).saturating_sub(staying)
    }

    /// What other tenants' floors keep from loads of this model on a device: what is left there
    /// when as much of theirs as exceeds their floors leaves it.
    pub(super) fn foreign_floors(&self, model: &ModelId, device: DeviceId) -> Bytes {
        let others = self
            .config
            .tenants
            .iter()
            .filter(|(name, limits)| *name != tenant(model) && limits.floor > Bytes::ZERO);
        let kept = others.map(|(name, limits)| {
            let here = self.ledger.tenant_share(device, name);
            here.saturating_sub(self.tenant_bytes(name).saturating_sub(limits.floor))
        });
        kept.sum()
    }

    /// What each tenant with a floor has beyond it: so much others' loads may take of theirs.
    /// What leaves already, or leaves for loads that are not among `claims`, is not counted.
    /// Tenants that are not in it have no floor.
    pub(super) fn beyond_floors(&self, claims: &[&ArtefactId]) -> BTreeMap<String, Bytes> {
        let with_floor =
            self.config.tenants.iter().filter(|(_, limits)| limits.floor > Bytes::ZERO);
        let mut beyond: BTreeMap<String, Bytes> =
            with_floor.map(|(name, _)| (name.clone(), self.tenant_bytes(name))).collect();
        if beyond.is_empty() {
            return beyond;
        }
        // All others stay.
        let claimed = self.residents.claims().flat_map(|(_, keys)| keys);
        let candidates: BTreeSet<&Key> = self.residents.unlike_idle().chain(claimed).collect();
        for key in candidates {
            let Some(resident) = self.residents.get(key) else { continue };
            let is_claimed = resident.claimed_by.as_ref().is_some_and(|by| !claims.contains(&by));
            let may_stay =
                matches!(resident.state, State::Ready | State::Draining(Departure::Evicted));
            if let Some(bytes) = beyond.get_mut(tenant(&key.artefact.model))
                && (is_claimed || !may_stay)
            {
                *bytes = bytes.saturating_sub(self.ledger.share(key.device, &key.artefact));
            }
        }
        for (name, bytes) in &mut beyond {
            *bytes = bytes.saturating_sub(self.limits(name).floor);
        }
        beyond
    }
}
