//! Who goes first: the order in which loads are served, and what bounds it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::{ArtefactId, Bytes};

use super::Table;
use super::sharing::whole;
use super::state::{Fetch, Job, Purpose, Room, Waiter};

/// The part of a device that loads which make others leave may have in flight together,
/// beyond the first: an eighth.
const IN_FLIGHT: u64 = 8;

/// Where a load stands in the order.
type Rank = (bool, u32, bool, Reverse<usize>, u64);

/// Loads that have begun, counted.
#[derive(Debug, Default)]
pub(super) struct Underway {
    /// Fetches that bring something, those apart that are held to a tenant's ceiling.
    fetches: usize,
    /// Those, by tenant.
    paced: BTreeMap<String, usize>,
    /// The least that one of them has still to bring.
    least_left: Option<Bytes>,
    /// Loads with whole files and promised room, of other models and of handlers, that wait
    /// for no request to end.
    ahead: [usize; 2],
    /// Those that do.
    pub(super) waiting: usize,
    /// Adapters with whole files and promised room whose base is still to come.
    behind_bases: usize,
    /// What all of these take.
    bytes: Bytes,
}

impl Underway {
    /// Fetches under way that are held to this tenant's ceiling.
    pub(super) fn paced(&self, tenant: &str) -> usize {
        self.paced.get(tenant).copied().unwrap_or_default()
    }
}

impl Table {
    /// Loads in the order in which they are served. Those that nobody waits for come last,
    /// and before them those of tenants that had more than their share. Of the others, first
    /// those that were overtaken enough, by age; then those that most requests wait for.
    pub(super) fn jobs_in_order(&self) -> Vec<ArtefactId> {
        let mut order: Vec<_> = self
            .jobs
            .iter()
            .map(|(artefact, job)| {
                let own = self.rank(artefact, job);
                // A base goes before the first of the adapters that cannot come without it.
                let adapters = self.awaiting_load(artefact);
                let ranks = adapters.map(|(adapter, job)| self.rank(adapter, job));
                (ranks.min().map_or(own, |first| first.min(own)), job.sequence, artefact)
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, _, artefact)| artefact.clone()).collect()
    }

    /// Where a load stands: the least goes first.
    fn rank(&self, artefact: &ArtefactId, job: &Job) -> Rank {
        if !self.is_wanted(artefact) {
            return (true, 0, false, Reverse(0), job.sequence);
        }
        let is_due = self.is_due(job);
        // Each time that it was overtaken enough counts as a step less ahead, so that nobody
        // starves behind those who are new.
        let lifted = job.overtaken / self.config.collation.overtaken_at_most.max(1);
        let lead = self.lead(&artefact.model).saturating_sub(lifted);
        let many = if self.config.collation.most_waited_first && !is_due {
            self.requests(artefact)
        } else {
            0
        };
        (false, lead, !is_due, Reverse(many), job.sequence)
    }

    /// The adapters that wait for this load, because their base serves nowhere.
    pub(super) fn awaiting_load(
        &self,
        artefact: &ArtefactId,
    ) -> impl Iterator<Item = (&ArtefactId, &Job)> {
        let mut adapters = self.bases.awaiting(&artefact.model).peekable();
        let is_lacking = adapters.peek().is_some() && self.ready(&artefact.model).is_none();
        let adapters = adapters.filter(move |_| is_lacking);
        adapters.filter_map(|adapter| Some((adapter, self.jobs.get(adapter)?)))
    }

    /// How many requests wait for a load, those for adapters that wait for it included.
    pub(super) fn requests(&self, artefact: &ArtefactId) -> usize {
        let of = |model| self.models.peek(model).map_or(0, |entry| entry.waiters.len());
        let adapters = self.awaiting_load(artefact).map(|(adapter, _)| of(&adapter.model));
        of(&artefact.model) + adapters.sum::<usize>()
    }

    /// Whether nothing that was asked for later may be loaded before this. Its age is the
    /// load's own: callers may leave and come again meanwhile.
    fn is_due(&self, job: &Job) -> bool {
        let bound = self.config.collation;
        job.overtaken >= bound.overtaken_at_most
            || self.now.saturating_duration_since(job.begun) >= bound.overtaken_within
    }

    /// The first caller that waits for this load.
    pub(super) fn first_waiter(&self, artefact: &ArtefactId) -> Option<&Waiter> {
        let entry = self.models.peek(&artefact.model)?;
        let aimed = entry.refreshers.iter().filter(|id| {
            let purpose = self.waiters.get(**id).map(|waiter| &waiter.purpose);
            matches!(purpose, Some(Purpose::Refresh { aimed: Some(aimed), .. }) if *aimed == artefact.version)
        });
        let first = entry.waiters.iter().take(1).chain(aimed);
        first.filter_map(|id| self.waiters.get(*id)).min_by_key(|waiter| waiter.sequence)
    }

    pub(super) fn is_wanted(&self, artefact: &ArtefactId) -> bool {
        self.first_waiter(artefact).is_some()
            || self.awaiting_load(artefact).any(|(id, _)| self.first_waiter(id).is_some())
    }

    /// A load begins: counts its requests against the earlier ones that go on waiting, and
    /// says how many loads it passed.
    pub(super) fn overtake(&mut self, chosen: &ArtefactId) -> usize {
        let adapters = self.awaiting_load(chosen).map(|(adapter, _)| &adapter.model);
        let loaded = std::iter::once(&chosen.model).chain(adapters);
        let waiting = loaded.filter_map(|model| Some(&self.models.peek(model)?.waiters));
        let arrivals: Vec<u64> = waiting
            .flatten()
            .filter_map(|id| self.waiters.get(*id))
            .map(|waiter| waiter.sequence)
            .collect();
        let passed: Vec<(ArtefactId, u32)> = self
            .jobs
            .iter()
            .filter(|(artefact, job)| *artefact != chosen && !job.is_loading())
            .filter(|(artefact, _)| self.is_wanted(artefact))
            .map(|(artefact, job)| {
                let first = job.sequence;
                let later = arrivals.iter().filter(|sequence| **sequence > first).count();
                // A load that nobody waits for passes like one request.
                let passed = if arrivals.is_empty() { 1 } else { later };
                (artefact.clone(), u32::try_from(passed).unwrap_or(u32::MAX))
            })
            .filter(|(_, requests)| *requests > 0)
            .collect();
        let loads = passed.len();
        for (artefact, requests) in passed {
            if let Some(job) = self.jobs.get_mut(&artefact) {
                job.overtaken = job.overtaken.saturating_add(requests);
            }
        }
        loads
    }

    /// What is under way, in one look at all loads.
    pub(super) fn underway(&self) -> Underway {
        let is_held = |key| self.residents.get(key).is_some_and(|resident| resident.leases > 0);
        let held = self.residents.claims().filter(|(_, keys)| keys.iter().any(is_held));
        let held: BTreeSet<&ArtefactId> = held.map(|(artefact, _)| artefact).collect();
        let mut underway = Underway::default();
        for (artefact, job) in &self.jobs {
            let is_behind = job.arriving && !job.is_arriving();
            // What has come whole, and is only made ready on disk, takes nothing that others want.
            let is_fetching =
                matches!(job.fetch, Fetch::Running { .. }) && job.fetched_bytes < job.fetch_bytes;
            if let Some(payer) = job.paced_for.as_ref().filter(|_| is_fetching || is_behind) {
                *underway.paced.entry(payer.clone()).or_default() += 1;
            } else if is_behind {
                // It has the slot of its fetch until it ends.
                underway.fetches += 1;
            } else if is_fetching {
                let left = job.fetch_bytes.saturating_sub(job.fetched_bytes);
                underway.fetches += 1;
                underway.least_left =
                    Some(underway.least_left.map_or(left, |least| least.min(left)));
            }
            // One that is late may hang: it keeps its slot, and nobody waits for it to end.
            if !job.is_whole() || matches!(job.room, Room::Wanted) || job.late || job.arriving {
                continue;
            }
            if !self.is_grounded(job) {
                underway.behind_bases += 1;
                continue;
            }
            underway.bytes += whole(job);
            if held.contains(artefact) {
                underway.waiting += 1;
            } else {
                underway.ahead[usize::from(job.starts_processes())] += 1;
            }
        }
        underway
    }

    /// Whether room shall be looked for now. Not before something can be done with it: the
    /// later a load is chosen, the more requests it answers. Loads that make others leave
    /// take turns where they are large for the device: what is on its way serves nobody.
    pub(super) fn has_turn(&self, artefact: &ArtefactId, job: &Job, underway: &Underway) -> bool {
        match job.fetch {
            // What may evict nobody takes nothing from others and wants to be told at once.
            _ if !job.evict => true,
            Fetch::Queued => {
                job.fetch_bytes > Bytes::ZERO && self.may_fetch(artefact, job, underway)
            }
            Fetch::Running { .. } => job.fetch_bytes > Bytes::ZERO,
            // Behind a base that is being loaded as many as can load at once hold their room.
            Fetch::Whole { .. } if self.lacks_ready_base(job) => {
                underway.behind_bases < self.load_slots(job)
            }
            Fetch::Whole { .. } => {
                let ahead = underway.ahead[usize::from(job.starts_processes())];
                ahead == 0
                    || (ahead < self.load_slots(job)
                        && (self.fits_beside(job, underway) || self.fits_free(artefact)))
            }
        }
    }

    fn fits_beside(&self, job: &Job, underway: &Underway) -> bool {
        (underway.bytes + whole(job)).0 <= self.ledger.largest_budget().0 / IN_FLIGHT
    }

    pub(super) fn fits_free(&self, artefact: &ArtefactId) -> bool {
        let kin = self.kin(artefact);
        let devices = self.devices_for(kin).filter(|device| !self.is_on(artefact, *device));
        let mut devices = devices.filter(|device| self.may_stand(artefact, *device));
        devices.any(|device| self.need(artefact, device) <= self.ledger.free(device))
    }

    /// Whether this load could run now. Whole files have told their kind, and only those are
    /// loaded.
    pub(super) fn is_load_slot_free(&self, job: &Job) -> bool {
        let kin = |other: &&Job| {
            other.is_loading()
                && !other.arriving
                && other.starts_processes() == job.starts_processes()
        };
        self.jobs.values().filter(kin).count() < self.load_slots(job)
    }

    /// How many loads of this one's kind may run at once.
    pub(super) fn load_slots(&self, job: &Job) -> usize {
        match job.starts_processes() {
            true => self.config.max_handler_loads,
            false => self.config.max_loads,
        }
    }

    /// Whether one of the slots that all share is free for a fetch of so much. One that is smaller than what every running one
    /// has still to bring need not wait for them: with its fair share of the network it would
    /// be done before any of them.
    pub(super) fn is_fetch_slot_free(&self, bytes: Bytes, underway: &Underway) -> bool {
        let slots = self.config.max_fetches;
        let is_small = underway.least_left.is_some_and(|least| bytes < least);
        underway.fetches < slots || (is_small && underway.fetches < 2 * slots)
    }
}
