//! How fast an engine finishes sequences, for honest retry hints.

use std::time::Instant;

/// A running mean of the time per finished sequence while there is work.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The last finish, or when work began after idling.
    mark: Option<Instant>,
    seconds: Option<f64>,
}

/// Weight of the newest measurement: some ten finishes back still count.
const NEWEST: f64 = 0.2;

impl Pace {
    /// There is work.
    pub(super) fn working(&mut self, now: Instant) {
        self.mark.get_or_insert(now);
    }

    /// There is none left.
    pub(super) fn idle(&mut self) {
        self.mark = None;
    }

    /// `count` sequences have finished.
    pub(super) fn ended(&mut self, count: usize, now: Instant) {
        let Some(mark) = self.mark.filter(|_| count > 0) else {
            return;
        };
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let each = now.saturating_duration_since(mark).as_secs_f64() / count as f64;
        self.seconds = Some(self.seconds.map_or(each, |mean| mean + NEWEST * (each - mean)));
        self.mark = Some(now);
    }

    /// The mean in microseconds; 0 while nothing has finished.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "never negative, and the cast saturates"
    )]
    pub(super) fn microseconds(&self) -> u64 {
        self.seconds.map_or(0, |seconds| (seconds * 1e6).max(1.0) as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn idle_time_does_not_count() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        pace.working(at(0));
        pace.ended(2, at(4));
        assert_eq!(pace.microseconds(), 2_000_000);
        pace.idle();
        pace.working(at(1_000));
        pace.ended(1, at(1_002));
        assert_eq!(pace.microseconds(), 2_000_000);
    }
}
