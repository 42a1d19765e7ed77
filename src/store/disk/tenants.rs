//! What tenants are promised of the disk and may take of it, and who of them must leave.
//!
//! 1. No fetch of one tenant takes another's versions below that one's floor.
//! 2. No fetch is promised room that would take its own tenant above its ceiling: what comes on
//!    top makes its own leave, or is refused.
//! 3. Bytes that several versions hold are split among them.
//!
//! A tenant is the first segment of a target's name; see [`TargetName::tenant`].
//!
//! [`TargetName::tenant`]: roundhouse_types::TargetName::tenant

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use roundhouse_types::{ArtefactId, Bytes, EndpointName, TargetName};

use super::DiskCache;
use super::ledger::{Ledger, Rank, State, Victim, off_thread};
use crate::metrics;

/// What one tenant is promised of the disk cache and may take of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Bytes of its versions that other tenants' fetches leave where they are.
    pub floor: Bytes,
    /// The most that its versions may take, partial ones included. `None`: all there is.
    pub ceiling: Option<Bytes>,
}

/// What a tenant has on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantOnDisk {
    /// Its name; empty for targets of one segment.
    pub tenant: String,
    /// What its versions take, with its part of what they have in common with others', and what
    /// its fetches are promised.
    pub bytes: Bytes,
    /// What was said of it.
    pub limits: DiskLimits,
}

/// Why no room was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lack {
    /// What could leave is not enough.
    Idle,
    /// It would be, but for what other tenants are promised.
    Floors,
    /// Of the tenant's own not enough can leave.
    Ceiling,
}

/// What has to come free.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Bytes of the disk.
    pub(super) short: u64,
    /// For whom: what is there of it stays.
    pub(super) by: Option<&'a ArtefactId>,
    /// Bytes that its own tenant has to give.
    pub(super) of_own: u64,
    /// Whether other tenants' floors hold.
    pub(super) floors: bool,
}

/// One that may leave.
struct Candidate {
    id: ArtefactId,
    is_whole: bool,
}

/// A choice of victims that is being made: what has been chosen is counted out.
struct Choice<'a> {
    state: &'a mut State,
    chosen: Vec<Victim>,
    found: u64,
    /// Of partial fetches that were chosen, by tenant.
    partial: HashMap<String, u64>,
    /// What tenants with a floor have beyond it, as far as it was asked.
    beyond: HashMap<String, u64>,
}

impl Choice<'_> {
    fn bytes_of(&self, tenant: &str) -> u64 {
        let gone = self.partial.get(tenant).copied().unwrap_or_default();
        self.state.tenant_bytes(tenant).saturating_sub(gone)
    }

    /// Chooses one; says how many bytes of the disk that frees. Without `floors` whoever it is.
    fn choose(&mut self, candidate: &Candidate, floors: bool) -> bool {
        let id = &candidate.id;
        let tenant = id.model.target.tenant();
        let floor = self.state.limits.get(tenant).map_or(0, |limits| limits.floor.0);
        let is_bound = floors && floor > 0;
        let beyond = match is_bound {
            true => {
                let known = self.beyond.get(tenant).copied();
                known.unwrap_or_else(|| self.bytes_of(tenant).saturating_sub(floor))
            }
            false => u64::MAX,
        };
        let Some(victim) = self.state.count_out(candidate) else { return false };
        let taken = self.partial.get(tenant).copied().unwrap_or_default();
        let with_it = taken + if candidate.is_whole { 0 } else { victim.bytes };
        if is_bound {
            // What it alone holds is the least that its tenant has less without it.
            let left = (victim.bytes <= beyond)
                .then(|| self.state.tenant_bytes(tenant).saturating_sub(with_it));
            let Some(left) = left.filter(|left| *left >= floor) else {
                self.state.count_in(&victim);
                self.beyond.insert(tenant.to_owned(), beyond);
                return false;
            };
            self.beyond.insert(tenant.to_owned(), left - floor);
        }
        self.partial.insert(tenant.to_owned(), with_it);
        self.found += victim.bytes;
        self.chosen.push(victim);
        true
    }

    /// All of them out of the tables.
    fn done(self) -> Vec<Victim> {
        let Self { state, chosen, .. } = self;
        for victim in &chosen {
            // Whole ones are counted until they are deleted.
            state.count_in(victim);
            state.take_out(victim);
        }
        chosen
    }

    fn given_up(self) {
        let Self { state, chosen, .. } = self;
        chosen.iter().for_each(|victim| state.count_in(victim));
    }
}

impl State {
    /// What a tenant's versions take, those out of the tables and still on disk included, with what
    /// its fetches have left and are promised.
    pub(super) fn tenant_bytes(&self, tenant: &str) -> u64 {
        let partial = self.partial.iter().filter(|(id, _)| id.model.target.tenant() == tenant);
        let partial: u64 = partial.map(|(_, partial)| partial.bytes).sum();
        let promised = self.promised_to.get(tenant).copied().unwrap_or_default();
        self.standing.share_of(tenant) + partial + promised
    }

    pub(super) fn ceiling(&self, tenant: &str) -> Option<Bytes> {
        self.limits.get(tenant)?.ceiling
    }

    /// By how much its tenant would be above its ceiling with so much more for a version, whose
    /// leftover it replaces.
    pub(super) fn above_ceiling(&self, id: &ArtefactId, more: u64) -> u64 {
        let tenant = id.model.target.tenant();
        let Some(ceiling) = self.ceiling(tenant) else { return 0 };
        let own = self.partial.get(id).map_or(0, |partial| partial.bytes);
        let with_it = self.tenant_bytes(tenant).saturating_sub(own).saturating_add(more);
        with_it.saturating_sub(ceiling.0)
    }

    /// Takes the least worthy out of the tables until enough is found; takes none if there is not as
    /// much. First, where its own tenant has to give, of that one's; then of all, the least recently
    /// used of the lowest rank first.
    pub(super) fn take_victims(&mut self, wanted: Wanted<'_>) -> Result<Vec<Victim>, Lack> {
        if wanted.short == 0 && wanted.of_own == 0 {
            return Ok(Vec::new());
        }
        let own = wanted.by.map(|id| id.model.target.tenant());
        let candidates = self.candidates(wanted.by);
        let is_own = |it: &Candidate| own == Some(it.id.model.target.tenant());
        let (partial, beyond) = (HashMap::new(), HashMap::new());
        let mut choice = Choice { state: self, chosen: Vec::new(), found: 0, partial, beyond };
        let mut left = Vec::new();
        let mut is_within = wanted.of_own == 0;
        let goal = own.map_or(0, |own| choice.bytes_of(own).saturating_sub(wanted.of_own));
        for candidate in candidates {
            let is_asked = !is_within && is_own(&candidate);
            if is_asked && choice.choose(&candidate, false) {
                is_within = own.is_none_or(|own| choice.bytes_of(own) <= goal);
            } else {
                left.push(candidate);
            }
        }
        if !is_within {
            choice.given_up();
            return Err(Lack::Ceiling);
        }
        let mut lack = Lack::Idle;
        for candidate in left {
            if choice.found >= wanted.short {
                break;
            }
            if !choice.choose(&candidate, wanted.floors && !is_own(&candidate)) {
                lack = Lack::Floors;
            }
        }
        if choice.found < wanted.short {
            choice.given_up();
            return Err(lack);
        }
        Ok(choice.done())
    }

    /// Those that nobody holds, the first to leave first.
    fn candidates(&self, but: Option<&ArtefactId>) -> Vec<Candidate> {
        let ranks = self.ranks();
        let rank = |id| ranks.get(id).copied().unwrap_or(Rank::Recent);
        let idle = self.whole.iter().filter(|(_, whole)| Arc::strong_count(&whole.held) == 1);
        let idle = idle.map(|(id, whole)| ((rank(id), whole.used_at), id, true));
        let partial = self.partial.iter();
        let partial = partial.map(|(id, it)| ((Rank::Recent, it.used_at), id, false));
        let mut all: Vec<_> = idle.chain(partial).filter(|(_, id, _)| Some(*id) != but).collect();
        all.sort_unstable_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
        all.into_iter().map(|(_, id, is_whole)| Candidate { id: id.clone(), is_whole }).collect()
    }

    /// Counts one out of what stands; `None` where it is not there any more.
    fn count_out(&mut self, candidate: &Candidate) -> Option<Victim> {
        let (id, is_whole) = (candidate.id.clone(), candidate.is_whole);
        let (what, folder, bytes) = match is_whole {
            true => {
                let folder = self.whole.get(&id)?.held.folder.clone();
                // What it shares with victims before it is freed with it.
                let bytes = self.standing.let_go(&folder);
                ("artefact", folder, bytes)
            }
            false => {
                let partial = self.partial.get(&id)?;
                ("partial", partial.folder.clone(), partial.bytes)
            }
        };
        Some(Victim { what, id, folder, bytes, is_whole })
    }

    fn count_in(&mut self, victim: &Victim) {
        if victim.is_whole {
            self.standing.take_back(&victim.folder);
        }
    }

    fn take_out(&mut self, victim: &Victim) {
        if victim.is_whole {
            self.whole.remove(&victim.id);
        } else {
            self.partial.remove(&victim.id);
            self.leaving += victim.bytes;
        }
    }

    /// Counts room that is promised to a fetch of this version.
    pub(super) fn promise(&mut self, id: &ArtefactId, bytes: u64) {
        self.promised += bytes;
        *self.promised_to.entry(id.model.target.tenant().to_owned()).or_default() += bytes;
    }

    /// Counts room that is not promised to it any more.
    pub(super) fn take_promise(&mut self, id: &ArtefactId, bytes: u64) {
        self.promised -= bytes;
        let tenant = id.model.target.tenant();
        if let Some(promised) = self.promised_to.get_mut(tenant) {
            *promised = promised.saturating_sub(bytes);
            if *promised == 0 {
                self.promised_to.remove(tenant);
            }
        }
    }

    /// How the tenants stand of which something was said, in one look at all that is there.
    pub(super) fn tenants(&self) -> Vec<TenantOnDisk> {
        if self.limits.is_empty() {
            return Vec::new();
        }
        let mut bytes = self.standing.shares();
        for (id, partial) in &self.partial {
            *bytes.entry(id.model.target.tenant()).or_default() += partial.bytes;
        }
        let of = |tenant: &String| {
            let promised = self.promised_to.get(tenant).copied().unwrap_or_default();
            Bytes(bytes.get(tenant.as_str()).copied().unwrap_or_default() + promised)
        };
        let limited = self.limits.iter().map(|(tenant, limits)| TenantOnDisk {
            tenant: tenant.clone(),
            bytes: of(tenant),
            limits: *limits,
        });
        limited.collect()
    }
}

impl Ledger {
    /// Puts these limits in the place of those so far.
    pub(super) fn set_limits(&self, limits: BTreeMap<String, DiskLimits>) {
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.limits, limits);
        for gone in before.keys().filter(|tenant| !state.limits.contains_key(*tenant)) {
            metrics::tenant_disk(gone, 0);
        }
        self.show(&mut state);
    }

    /// What is above the ceilings of this moment leaves, as far as nobody holds it. Blocks.
    pub(super) fn keep_limits(&self) {
        let tenants: Vec<String> = self.lock().limits.keys().cloned().collect();
        for tenant in tenants {
            self.shrink_tenant(&tenant);
        }
        self.show(&mut self.lock());
    }

    fn shrink_tenant(&self, tenant: &str) {
        let _turn = self.no_evictions();
        let victims = {
            let mut state = self.lock();
            // As it is now: since this began others may have been set.
            let Some(Bytes(ceiling)) = state.ceiling(tenant) else { return };
            let candidates = state.candidates(None);
            let (partial, beyond) = (HashMap::new(), HashMap::new());
            let mut choice =
                Choice { state: &mut state, chosen: Vec::new(), found: 0, partial, beyond };
            for candidate in candidates.iter().filter(|it| it.id.model.target.tenant() == tenant) {
                if choice.bytes_of(tenant) <= ceiling {
                    break;
                }
                choice.choose(candidate, false);
            }
            choice.done()
        };
        self.delete(victims);
    }

    /// How the tenants stand of which something was said.
    pub(super) fn tenants(&self) -> Vec<TenantOnDisk> {
        self.lock().tenants()
    }

    /// How a tenant stands.
    pub(super) fn tenant(&self, tenant: &str) -> TenantOnDisk {
        let state = self.lock();
        TenantOnDisk {
            tenant: tenant.to_owned(),
            bytes: Bytes(state.tenant_bytes(tenant)),
            limits: state.limits.get(tenant).copied().unwrap_or_default(),
        }
    }

    /// What whole versions of an endpoint's targets take, with their part of what they have in
    /// common with others.
    pub(super) fn shares(&self, endpoint: &EndpointName) -> HashMap<TargetName, Bytes> {
        let state = self.lock();
        let mut shares: HashMap<TargetName, Bytes> = HashMap::new();
        let here = state.whole.iter().filter(|(id, _)| id.model.endpoint == *endpoint);
        for (id, whole) in here {
            let share = Bytes(state.standing.share(&whole.held.folder));
            *shares.entry(id.model.target.clone()).or_default() += share;
        }
        shares
    }
}

impl DiskCache {
    /// Says what tenants are promised of the disk and may take of it, in place of what was said
    /// before. What is above a ceiling leaves by and by, the least worthy first, as far as nobody
    /// holds it: by the ceilings that were said last, however soon after others.
    pub fn set_disk_limits(&self, limits: BTreeMap<String, DiskLimits>) {
        let ledger = Arc::clone(&self.inner.ledger);
        ledger.set_limits(limits);
        off_thread(move || ledger.keep_limits());
    }

    /// How the tenants stand of which something was said.
    pub fn tenants(&self) -> Vec<TenantOnDisk> {
        self.inner.ledger.tenants()
    }

    /// How a tenant stands.
    pub fn tenant(&self, tenant: &str) -> TenantOnDisk {
        self.inner.ledger.tenant(tenant)
    }

    /// What whole versions of an endpoint's targets take, with their part of what they have in
    /// common with others.
    pub fn shares(&self, endpoint: &EndpointName) -> HashMap<TargetName, Bytes> {
        self.inner.ledger.shares(endpoint)
    }
}
