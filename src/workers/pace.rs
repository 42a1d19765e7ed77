//! How far ahead a worker is given calls.

use std::time::Duration;

/// What the latest call counts against those before.
const WEIGHT: f64 = 0.1;

/// A worker that answers in microseconds would spend most of its time waiting for the next
/// call to come through the socket; one that takes milliseconds must not hold up a call that
/// another worker could begin.
const AHEAD: [(Duration, usize); 2] =
    [(Duration::from_micros(500), 16), (Duration::from_millis(2), 4)];

/// The smoothed time of a worker's calls.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    seconds: Option<f64>,
}

impl Pace {
    /// A call took this long.
    pub(crate) fn took(&mut self, time: Duration) {
        let latest = time.as_secs_f64();
        let before = self.seconds.unwrap_or(latest);
        // One slow call must close the gate at once; it opens slowly.
        self.seconds =
            Some(if latest > before { latest } else { before + WEIGHT * (latest - before) });
    }

    /// How many calls may be in the worker's hands, the one it runs included.
    pub(crate) fn depth(&self) -> usize {
        let Some(seconds) = self.seconds else { return 1 };
        let fast = AHEAD.iter().find(|(time, _)| seconds < time.as_secs_f64());
        fast.map_or(1, |(_, depth)| *depth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_worker_known_to_be_fast_gets_calls_ahead() {
        let mut pace = Pace::default();
        assert_eq!(pace.depth(), 1);
        pace.took(Duration::from_micros(40));
        assert_eq!(pace.depth(), 16);
        pace.took(Duration::from_millis(20));
        assert_eq!(pace.depth(), 1);
        let calls = (1..).find(|_| {
            pace.took(Duration::from_micros(40));
            pace.depth() == 16
        });
        assert_eq!(calls, Some(36));
    }
}
