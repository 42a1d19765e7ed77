//! What came of a run.

use std::time::Duration;

use roundhouse_types::Bytes;
use serde::Serialize;

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Requests of the trace.
    pub requests: u64,
    /// Requests that got a lease within the hold time.
    pub answered: u64,
    /// Requests that did not: their time was over, the queue was full, or the model can never fit.
    pub refused: u64,
    /// Requests that a ready resident answered at once.
    pub hits: u64,
    /// `hits` per request.
    pub hit_ratio: f64,
    /// Loads onto the device that began.
    pub loads: u64,
    /// `loads` per request.
    pub miss_ratio: f64,
    /// The sizes of what was loaded, added up.
    pub loaded_bytes: Bytes,
    /// What came from the store.
    pub fetched_bytes: Bytes,
    /// Residents that were unloaded.
    pub evictions: u64,
    /// How long those that were answered waited for their lease.
    pub waits: Waits,
    /// From the first arrival to the last answer, in seconds of the clock of the run.
    pub seconds: f64,
    /// Requests answered within the hold time per second.
    pub goodput: f64,
    /// The most requests that came later than another and were answered before it was.
    pub most_overtakings: u64,
}

/// Waits of requests for their lease, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Waits {
    /// The mean.
    pub mean_ms: f64,
    /// Half of the requests waited no longer.
    pub p50_ms: f64,
    /// All but one in a hundred waited no longer.
    pub p99_ms: f64,
    /// The longest wait.
    pub max_ms: f64,
}

impl Waits {
    pub(super) fn of(mut waits: Vec<Duration>) -> Self {
        waits.sort_unstable();
        let at = |hundredths: usize| {
            let rank = (waits.len() * hundredths).div_ceil(100).max(1) - 1;
            waits.get(rank).copied().unwrap_or_default().as_secs_f64() * 1e3
        };
        let sum: f64 = waits.iter().map(|wait| wait.as_secs_f64() * 1e3).sum();
        let mean_ms = ratio(sum, waits.len() as u64);
        Self { mean_ms, p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
    }
}

/// `sum / count`, zero where nothing was counted.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
pub(super) fn ratio(sum: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// Counts, for each request that is over, those that came after it and were answered before.
#[derive(Debug)]
pub(super) struct Overtakings {
    /// A binary indexed tree over the order of arrival: who has been answered.
    answered: Vec<u32>,
    total: u64,
    pub(super) most: u64,
}

impl Overtakings {
    pub(super) fn new(requests: usize) -> Self {
        Self { answered: vec![0; requests + 1], total: 0, most: 0 }
    }

    /// A request is answered, or gives up.
    pub(super) fn over(&mut self, request: usize, answered: bool) {
        let mut earlier = 0;
        let mut node = request + 1;
        while node > 0 {
            earlier += u64::from(self.answered[node]);
            node &= node - 1;
        }
        self.most = self.most.max(self.total - earlier);
        if !answered {
            return;
        }
        self.total += 1;
        let mut node = request + 1;
        while node < self.answered.len() {
            self.answered[node] += 1;
            node += node & node.wrapping_neg();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_waits_that_happened() {
        let waits = Waits::of((1..=200).map(Duration::from_millis).collect());
        let want = Waits { mean_ms: 100.5, p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 };
        assert_eq!(waits, want);
        assert_eq!(Waits::of(Vec::new()), Waits::default());
    }

    #[test]
    fn overtakings_count_later_arrivals_that_were_answered_earlier() {
        let mut overtakings = Overtakings::new(5);
        for request in [1, 3, 4] {
            overtakings.over(request, true);
        }
        assert_eq!(overtakings.most, 0, "nobody who was answered had been passed");
        overtakings.over(2, true);
        assert_eq!(overtakings.most, 2, "3 and 4 passed 2");
        overtakings.over(0, false);
        assert_eq!(overtakings.most, 4, "all passed 0, which gave up");
    }
}
