//! How far a model is and when it may be ready, for those who are told to come again.

use std::time::Duration;

use roundhouse_types::{ArtefactId, Bytes, Failure, ModelId};

use super::Table;
use super::sharing::whole;
use super::state::{Fetch, Job, Room};
use crate::decision::Obstacle;
use crate::error::{Error, Progress};

/// Seconds after which a fetch is judged by its own speed.
const FIRST_IMPRESSION: f64 = 1.0;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;

/// Measured rates of fetches and loads, in bytes a second, each as it ran beside others.
#[derive(Debug, Default)]
pub(super) struct Rates {
    fetch: Option<f64>,
    load: Option<f64>,
    /// Of loads from copies in the host's memory.
    promotion: Option<f64>,
}

impl Rates {
    pub(super) fn fetched(&mut self, bytes: Bytes, took: Duration) {
        learn(&mut self.fetch, bytes, took);
    }

    pub(super) fn loaded(&mut self, from_copy: bool, bytes: Bytes, took: Duration) {
        learn(if from_copy { &mut self.promotion } else { &mut self.load }, bytes, took);
    }

    /// How long a fetch of so much takes, as others did.
    pub(super) fn seconds_to_fetch(&self, bytes: Bytes) -> Option<f64> {
        Some(float(bytes) / self.fetch?)
    }

    /// At which rate a load goes: until one from a copy was seen, like any other.
    fn of_load(&self, job: &Job) -> Option<f64> {
        self.promotion.filter(|_| job.from_copy).or(self.load)
    }
}

impl Table {
    /// Why a waiter whose time is over has no lease yet.
    pub(super) fn not_ready(&self, model: &ModelId) -> Failure {
        let (progress, estimate) = self.progress(model);
        Error::NotReady { model: model.clone(), progress, estimate }.into()
    }

    /// How far a model is, and how long it may take from here; `None` where that depends on
    /// requests that have to end, or on what was never measured.
    pub(super) fn progress(&self, model: &ModelId) -> (Progress, Option<Duration>) {
        let Some(entry) = self.models.peek(model) else {
            return (Progress::Resolving, None);
        };
        let last = entry.jobs.last();
        let Some((artefact, job)) = last.and_then(|id| Some((id, self.jobs.get(id)?))) else {
            let leases = entry.residents.iter().filter_map(|key| self.residents.get(key));
            return match leases.map(|resident| resident.leases).reduce(|a, b| a + b) {
                Some(leases) => (Progress::Leaving { leases }, None),
                None => (Progress::Resolving, None),
            };
        };
        let progress = match (job.fetch, job.room, job.obstacle) {
            (Fetch::Whole { .. }, Room::Loading { .. }, _) => Progress::Loading,
            (Fetch::Whole { .. }, _, _) if self.lacks_ready_base(job) => Progress::WaitingForBase,
            (Fetch::Whole { .. }, Room::Wanted, Some(obstacle)) => {
                Progress::WaitingForRoom { need: self.least_need(artefact), obstacle }
            }
            (Fetch::Whole { .. }, Room::Wanted, None) => Progress::WaitingForTurn,
            (Fetch::Whole { .. }, _, _) => Progress::WaitingForVictims,
            (Fetch::Queued, _, Some(Obstacle::LoadBandwidth)) => {
                Progress::WaitingForBandwidth { need: job.fetch_bytes }
            }
            (Fetch::Queued | Fetch::Running { .. }, _, _) => {
                Progress::Fetching { done: job.fetched_bytes, total: job.fetch_bytes }
            }
        };
        // What only an operator can clear has no time.
        let is_open =
            !matches!(job.obstacle, Some(Obstacle::Kept | Obstacle::Floors | Obstacle::Ceiling));
        (progress, self.forecast(artefact, job).filter(|_| is_open))
    }

    /// What is left to fetch and load, of this one and of those that go before it, at the
    /// rates that were measured.
    fn forecast(&self, artefact: &ArtefactId, job: &Job) -> Option<Duration> {
        let order = self.jobs_in_order();
        let before = order.iter().take_while(|other| *other != artefact);
        let before: Vec<&Job> = before.filter_map(|other| self.jobs.get(other)).collect();
        let fetch = match matches!(job.fetch, Fetch::Queued) {
            true => self.paced_seconds(artefact, job),
            false => None,
        };
        let fetch = fetch.or_else(|| self.seconds_to_fetch(job, &before))?;
        let seconds = match job.is_arriving() {
            // It ends soon after its fetch.
            true => fetch,
            false => {
                // Before anything was loaded, what is left to fetch is all that can be said.
                let load = self.seconds_to_load(job, &before);
                let load = load.or((fetch > 0.0).then_some(0.0))?;
                fetch.max(self.seconds_to_base(job)?) + load
            }
        };
        // What would take longer than a load may take is not known.
        Duration::try_from_secs_f64(seconds).ok().filter(|wait| *wait <= self.config.load_timeout)
    }

    /// Until a load's base serves.
    fn seconds_to_base(&self, job: &Job) -> Option<f64> {
        let Some(base) = job.base.as_ref().filter(|_| self.lacks_ready_base(job)) else {
            return Some(0.0);
        };
        let artefact = self.models.peek(base)?.jobs.last()?;
        let base = self.jobs.get(artefact).filter(|base| base.base.is_none())?;
        Some(self.forecast(artefact, base)?.as_secs_f64())
    }

    fn seconds_to_fetch(&self, job: &Job, before: &[&Job]) -> Option<f64> {
        let left = |job: &Job| job.fetch_bytes.saturating_sub(job.fetched_bytes);
        let own = match job.fetch {
            Fetch::Whole { .. } => return Some(0.0),
            _ if job.fetch_bytes == Bytes::ZERO => return Some(0.0),
            Fetch::Running { since } => {
                // What it has brought so far says more than others did.
                let took = self.now.saturating_duration_since(since).as_secs_f64();
                let seen = float(job.fetched_bytes) / took;
                let is_seen = took >= FIRST_IMPRESSION && seen > 0.0;
                let rate = if is_seen { seen } else { self.rates.fetch? };
                return Some(float(left(job)) / rate);
            }
            Fetch::Queued => float(left(job)),
        };
        let rate = self.rates.fetch?;
        let waiting = before.iter().filter(|other| !other.is_whole());
        let ahead: Bytes = waiting.map(|other| left(other)).sum();
        Some(own / rate + float(ahead) / (rate * slots(self.config.max_fetches)))
    }

    fn seconds_to_load(&self, job: &Job, before: &[&Job]) -> Option<f64> {
        if let (true, Fetch::Whole { until, .. }) = (job.arriving, job.fetch) {
            // The rest of one that was read while it came: as long again, as a guess.
            let spent = self.now.saturating_duration_since(until).as_secs_f64();
            return Some(spent.max(1.0));
        }
        // At most: content that is there already takes no time.
        let alone = |job: &Job| Some(float(whole(job)) / self.rates.of_load(job)?);
        let own = alone(job)?;
        if let Room::Loading { since, .. } = job.room {
            let spent = self.now.saturating_duration_since(since).as_secs_f64();
            // It takes longer than others did: half as long again, as a guess.
            return Some(if own > spent { own - spent } else { spent.max(1.0) / 2.0 });
        }
        // Those that are still being fetched load beside the fetches to come.
        let waiting = before
            .iter()
            .filter(|other| other.is_whole() && other.starts_processes() == job.starts_processes());
        let ahead: f64 = waiting.map(|other| alone(other)).sum::<Option<f64>>()?;
        Some(own + ahead / slots(self.load_slots(job)))
    }
}

fn learn(rate: &mut Option<f64>, bytes: Bytes, took: Duration) {
    let seconds = took.as_secs_f64();
    if bytes == Bytes::ZERO || seconds <= 0.0 {
        return;
    }
    let measured = float(bytes) / seconds;
    *rate = Some(rate.map_or(measured, |known| known + NEWEST * (measured - known)));
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn float(bytes: Bytes) -> f64 {
    bytes.0 as f64
}

#[expect(clippy::cast_precision_loss, reason = "a handful")]
fn slots(slots: usize) -> f64 {
    slots.max(1) as f64
}
