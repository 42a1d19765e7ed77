//! Bandwidth that those who use it share.

use std::time::Duration;

/// A pipe of a fixed bandwidth; each flow in it gets an equal share.
#[derive(Debug)]
pub(super) struct Pipe {
    bytes_per_second: f64,
    flows: Vec<Flow>,
    /// The time until which the flows have been followed.
    at: Duration,
}

/// What flows, by number, and how much of it has still to come.
#[derive(Debug)]
struct Flow {
    number: u32,
    left: f64,
}

/// What rounding to nanoseconds may leave of a flow that has ended.
const ROUNDING: Duration = Duration::from_nanos(4);

impl Pipe {
    /// A pipe without flows.
    pub(super) fn new(bytes_per_second: f64) -> Self {
        Self { bytes_per_second, flows: Vec::new(), at: Duration::ZERO }
    }

    /// Lets a flow begin.
    pub(super) fn begin(&mut self, number: u32, bytes: f64, now: Duration) {
        self.follow(now);
        self.flows.push(Flow { number, left: bytes });
    }

    /// Takes a flow out before its end.
    pub(super) fn abandon(&mut self, number: u32, now: Duration) {
        self.follow(now);
        self.flows.retain(|flow| flow.number != number);
    }

    /// When the next flow ends, as things stand.
    pub(super) fn next_end(&self) -> Option<Duration> {
        let least = self.flows.iter().map(|flow| flow.left).reduce(f64::min)?;
        let seconds = least.max(0.0) / self.share();
        // Beyond any trace: it never ends.
        let rest = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 4);
        Some(self.at + rest)
    }

    /// The flows that have ended by now, in the order in which they began.
    pub(super) fn ended(&mut self, now: Duration) -> Vec<u32> {
        self.follow(now);
        let rounding = self.share() * ROUNDING.as_secs_f64() + 1e-6;
        let (ended, rest) = std::mem::take(&mut self.flows)
            .into_iter()
            .partition::<Vec<_>, _>(|flow| flow.left <= rounding);
        self.flows = rest;
        ended.into_iter().map(|flow| flow.number).collect()
    }

    fn follow(&mut self, now: Duration) {
        let came = self.share() * now.saturating_sub(self.at).as_secs_f64();
        for flow in &mut self.flows {
            flow.left -= came;
        }
        self.at = self.at.max(now);
    }

    /// What each flow gets in a second.
    #[expect(clippy::cast_precision_loss, reason = "a handful of flows")]
    fn share(&self) -> f64 {
        self.bytes_per_second / self.flows.len().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn flows_share_the_bandwidth_while_they_are_there() {
        let mut pipe = Pipe::new(100.0);
        pipe.begin(1, 100.0, Duration::ZERO);
        assert_eq!(pipe.next_end(), Some(seconds(1.0)));
        // Half of the first has come; from here on each gets half.
        pipe.begin(2, 100.0, seconds(0.5));
        assert_eq!(pipe.next_end(), Some(seconds(1.5)));
        assert_eq!(pipe.ended(seconds(1.0)), Vec::<u32>::new());
        assert_eq!(pipe.ended(seconds(1.5)), vec![1]);
        // The second has half left and the pipe to itself.
        assert_eq!(pipe.next_end(), Some(seconds(2.0)));
        pipe.abandon(2, seconds(1.75));
        assert_eq!(pipe.next_end(), None);
    }
}
