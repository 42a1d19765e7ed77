//! Load bandwidth: whose loads are held to a ceiling of bytes a second.
//!
//! The loader keeps to the rate. What is decided here is that a slow fetch of a tenant that has a
//! ceiling takes nothing from others: its fetches have slots of their own, a few per tenant, and
//! say nothing of how fast the store is, nor of how dear a reload.

use roundhouse_types::{ArtefactId, Bytes};

use super::Table;
use super::order::Underway;
use super::state::{Fetch, Job};
use crate::config::tenant;
use crate::decision::{Action, Decided, Obstacle};

/// Fetches at once of a tenant with a ceiling: the second hides the first one's round trips.
/// More would each be as much slower.
const AT_ONCE: usize = 2;

impl Table {
    /// Whom a load's fetch is charged to: the tenant of the request that has waited for it
    /// longest, else that of its model.
    pub(super) fn payer<'a>(&'a self, artefact: &'a ArtefactId) -> &'a str {
        let first = self.first_waiter(artefact).or_else(|| {
            let adapters = self.awaiting_load(artefact);
            let first = adapters.filter_map(|(adapter, _)| self.first_waiter(adapter));
            first.min_by_key(|waiter| waiter.sequence)
        });
        let payer = first.and_then(|waiter| waiter.purpose.payer());
        payer.map_or_else(|| tenant(&artefact.model), |payer| payer.as_str())
    }

    /// The tenant to whose ceiling a fetch is held, or would be if it began now.
    fn paced_for<'a>(&'a self, artefact: &'a ArtefactId, job: &'a Job) -> Option<&'a str> {
        match job.fetch {
            Fetch::Queued => {
                Some(self.payer(artefact)).filter(|payer| self.load_bandwidth(payer).is_some())
            }
            Fetch::Running { .. } | Fetch::Whole { .. } => job.paced_for.as_deref(),
        }
    }

    fn load_bandwidth(&self, tenant: &str) -> Option<Bytes> {
        self.config.tenants.get(tenant)?.load_bandwidth
    }

    /// Whether a fetch that brings something may begin.
    pub(super) fn may_fetch(&self, artefact: &ArtefactId, job: &Job, underway: &Underway) -> bool {
        match self.paced_for(artefact, job) {
            Some(payer) => underway.paced(payer) < AT_ONCE.min(self.config.max_fetches),
            None => self.is_fetch_slot_free(job.fetch_bytes, underway),
        }
    }

    /// Whether a queued fetch waits for one of the slots that all share.
    pub(super) fn lacks_fetch_slot(
        &self,
        artefact: &ArtefactId,
        job: &Job,
        underway: &Underway,
    ) -> bool {
        matches!(job.fetch, Fetch::Queued)
            && job.fetch_bytes > Bytes::ZERO
            && self.paced_for(artefact, job).is_none()
            && !self.is_fetch_slot_free(job.fetch_bytes, underway)
    }

    /// Notes for whom a fetch begins: who is charged, and whether it is held to that one's ceiling.
    pub(super) fn charge_fetch(&mut self, artefact: &ArtefactId) -> String {
        let payer = self.payer(artefact).to_owned();
        let is_paced = self.load_bandwidth(&payer).is_some();
        if let Some(job) = self.jobs.get_mut(artefact) {
            job.paced_for = (is_paced && job.fetch_bytes > Bytes::ZERO).then(|| payer.clone());
            job.obstacle = job.obstacle.filter(|it| *it != Obstacle::LoadBandwidth);
        }
        payer
    }

    /// Remembers and tells that a fetch waits for others of its tenant, where it does.
    pub(super) fn note_bandwidth(&mut self, artefact: &ArtefactId) {
        let waits = |job: &Job| self.paced_for(artefact, job).is_some();
        if !self.jobs.get(artefact).is_some_and(waits) {
            return;
        }
        let Some(job) = self.jobs.get_mut(artefact) else {
            return;
        };
        // An adapter's base is told first: it may be what the bandwidth is taken by.
        if matches!(job.obstacle, Some(Obstacle::Base | Obstacle::LoadBandwidth)) {
            return;
        }
        let (by, bytes) = (Obstacle::LoadBandwidth, job.fetch_bytes);
        job.obstacle = Some(by);
        self.decide(Decided::of(artefact, None, Action::Blocked { bytes, by }));
    }

    /// What a fetch would have taken without its tenant's ceiling: what is dear for that reason
    /// is not worth more than others.
    pub(super) fn unpaced_seconds(&self, job: &Job, took: f64) -> f64 {
        match (&job.paced_for, self.rates.seconds_to_fetch(job.fetch_bytes)) {
            (Some(_), Some(seconds)) => seconds.min(took),
            _ => took,
        }
    }

    /// Seconds until a queued fetch that is held to a ceiling has ended: behind all others of its
    /// tenant. `None` where it is held to none.
    pub(super) fn paced_seconds(&self, artefact: &ArtefactId, job: &Job) -> Option<f64> {
        let payer = self.paced_for(artefact, job)?;
        let rate = self.load_bandwidth(payer)?;
        let theirs = self.jobs.iter().filter(|(other, it)| {
            !it.is_whole()
                && it.sequence <= job.sequence
                && self.paced_for(other, it) == Some(payer)
        });
        let left: Bytes =
            theirs.map(|(_, it)| it.fetch_bytes.saturating_sub(it.fetched_bytes)).sum();
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = left.0 as f64 / rate.0.max(1) as f64;
        Some(seconds)
    }

    /// For people: to which ceiling a fetch under way is held.
    pub(super) fn pace_told(&self, job: &Job) -> Option<String> {
        let payer = job.paced_for.as_deref().filter(|_| !job.is_whole())?;
        let rate = self.load_bandwidth(payer)?;
        Some(format!("; held to {rate}/s, the load bandwidth of {payer}"))
    }
}
