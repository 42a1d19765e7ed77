//! When a container that fails is left alone, and when it is tried again. Decides only: no clock.

use std::time::Duration;

use tokio::time::Instant;

/// When a container is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaking {
    /// Failures in a row after which it is.
    pub failures: u32,
    /// For how long at first; twice as long after each trial that fails.
    pub first_pause: Duration,
    /// The longest.
    pub longest_pause: Duration,
}

impl Default for Breaking {
    fn default() -> Self {
        Self {
            failures: 5,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(30),
        }
    }
}

/// How requests to a container go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is asked.
    Closed,
    /// It is left alone.
    Open,
    /// One request tries whether it answers again.
    Trying,
}

/// The right to send one request; what becomes of it is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Ordinary,
    Trial,
}

#[derive(Debug)]
enum Inner {
    /// So many failures in a row.
    Closed(u32),
    Open {
        until: Instant,
        pause: Duration,
    },
    /// Behind a pause of this length; since when a trial is under way.
    Trying {
        pause: Duration,
        since: Option<Instant>,
    },
}

/// The breaker of one container, owned by its backend.
///
/// 1. Between the opening and the end of its pause no request passes.
/// 2. Of the requests that pass while it is tried at most one begins within each first pause. So one
///    whose answer takes long keeps nobody out.
/// 3. What passed before it opened decides nothing after.
#[derive(Debug)]
pub(crate) struct Breaker {
    config: Breaking,
    inner: Inner,
}

impl Breaker {
    pub(crate) fn new(config: Breaking) -> Self {
        Self { config, inner: Inner::Closed(0) }
    }

    pub(crate) fn state(&self) -> State {
        match self.inner {
            Inner::Closed(_) => State::Closed,
            Inner::Open { .. } => State::Open,
            Inner::Trying { .. } => State::Trying,
        }
    }

    /// Lets a request pass, or says after how long another may.
    pub(crate) fn admit(&mut self, now: Instant) -> Result<Pass, Duration> {
        match self.inner {
            Inner::Closed(_) => Ok(Pass::Ordinary),
            Inner::Open { until, .. } if now < until => Err(until - now),
            Inner::Trying { since: Some(since), .. } if now < since + self.config.first_pause => {
                Err(since + self.config.first_pause - now)
            }
            Inner::Open { pause, .. } | Inner::Trying { pause, .. } => {
                self.inner = Inner::Trying { pause, since: Some(now) };
                Ok(Pass::Trial)
            }
        }
    }

    /// The container began to answer.
    pub(crate) fn succeeded(&mut self, pass: Pass) {
        if matches!(
            (&self.inner, pass),
            (Inner::Closed(_), _) | (Inner::Trying { .. }, Pass::Trial)
        ) {
            self.inner = Inner::Closed(0);
        }
    }

    /// The container failed; whether it is left alone from now on.
    pub(crate) fn failed(&mut self, pass: Pass, now: Instant) -> bool {
        let pause = match self.inner {
            Inner::Closed(failures) if failures + 1 < self.config.failures => {
                self.inner = Inner::Closed(failures + 1);
                return false;
            }
            Inner::Closed(_) => self.config.first_pause,
            Inner::Trying { pause, .. } if pass == Pass::Trial => {
                pause.saturating_mul(2).min(self.config.longest_pause)
            }
            Inner::Open { .. } | Inner::Trying { .. } => return false,
        };
        self.inner = Inner::Open { until: now + pause, pause };
        true
    }

    /// A request ended that says nothing about the container: its client left.
    pub(crate) fn abandoned(&mut self, pass: Pass) {
        if let (Inner::Trying { pause, .. }, Pass::Trial) = (&self.inner, pass) {
            self.inner = Inner::Trying { pause: *pause, since: None };
        }
    }

    /// A health check succeeded: a pause is over, as what answers can be tried; and what is well when
    /// it was tried is asked again.
    pub(crate) fn well(&mut self) {
        self.inner = match self.inner {
            Inner::Open { pause, .. } => Inner::Trying { pause, since: None },
            Inner::Closed(_) | Inner::Trying { .. } => Inner::Closed(0),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: Breaking = Breaking {
        failures: 3,
        first_pause: Duration::from_secs(1),
        longest_pause: Duration::from_secs(3),
    };

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(CONFIG);
        for _ in 0..3 {
            let pass = breaker.admit(now).unwrap();
            breaker.failed(pass, now);
        }
        assert_eq!(breaker.state(), State::Open);
        breaker
    }

    #[test]
    fn failures_that_are_not_in_a_row_open_nothing() {
        let now = Instant::now();
        let mut breaker = Breaker::new(CONFIG);
        for _ in 0..10 {
            assert!(!breaker.failed(Pass::Ordinary, now));
            assert!(!breaker.failed(Pass::Ordinary, now));
            breaker.succeeded(Pass::Ordinary);
        }
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn one_trial_at_a_time_decides_and_pauses_grow_to_their_longest() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for pause in [1, 2, 3, 3] {
            let pause = Duration::from_secs(pause);
            assert_eq!(breaker.admit(now), Err(pause));
            now += pause;
            assert_eq!(breaker.admit(now), Ok(Pass::Trial));
            assert!(breaker.admit(now).is_err());
            assert!(breaker.failed(Pass::Trial, now));
        }
        now += Duration::from_secs(3);
        let pass = breaker.admit(now).unwrap();
        breaker.succeeded(pass);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn what_passed_before_the_opening_decides_nothing() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.succeeded(Pass::Ordinary);
        assert!(!breaker.failed(Pass::Ordinary, now));
        assert_eq!(breaker.state(), State::Open);
        let later = now + CONFIG.first_pause;
        assert_eq!(breaker.admit(later), Ok(Pass::Trial));
        breaker.succeeded(Pass::Ordinary);
        assert_eq!(breaker.state(), State::Trying);
    }

    #[test]
    fn a_trial_whose_client_leaves_makes_room_for_another() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let later = now + CONFIG.first_pause;
        let pass = breaker.admit(later).unwrap();
        breaker.abandoned(pass);
        assert_eq!(breaker.admit(later), Ok(Pass::Trial));
    }

    #[test]
    fn a_health_check_ends_a_pause_and_the_next_one_the_trial() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.well();
        assert_eq!(breaker.admit(now), Ok(Pass::Trial));
        assert!(breaker.admit(now).is_err());
        breaker.well();
        assert_eq!(breaker.admit(now), Ok(Pass::Ordinary));
        // The trial's own end comes late.
        assert!(!breaker.failed(Pass::Trial, now));
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn a_trial_that_takes_long_keeps_others_out_for_the_first_pause_only() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let mut later = now + CONFIG.first_pause;
        for _ in 0..3 {
            assert_eq!(breaker.admit(later), Ok(Pass::Trial));
            assert_eq!(breaker.admit(later), Err(CONFIG.first_pause));
            later += CONFIG.first_pause;
        }
        breaker.succeeded(Pass::Trial);
        assert_eq!(breaker.admit(later), Ok(Pass::Ordinary));
    }
}
