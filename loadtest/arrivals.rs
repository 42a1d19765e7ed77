//! When requests come: a Poisson process whose rate is constant, bursts, or follows a day.

use std::time::Duration;

use clap::ValueEnum;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// How the rate changes over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// It does not.
    Steady,
    /// Every `--period` a tenth of it has `--factor` times the rate.
    Bursts,
    /// A sine over `--period`, from nothing to `--factor` times the rate (2 at most).
    Diurnal,
}

/// A rate over time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrivals {
    /// Requests per second; what the shape multiplies.
    pub(crate) rate: f64,
    pub(crate) shape: Shape,
    /// Seconds.
    pub(crate) period: f64,
    pub(crate) factor: f64,
}

/// Of a period of bursts, so much is a burst.
const BURST: f64 = 0.1;

impl Arrivals {
    /// What is wrong with the numbers, if anything.
    pub(crate) fn check(&self) -> Result<(), String> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if !positive(self.rate) || !positive(self.period) {
            return Err("--rate and --period must be above 0".into());
        }
        match self.shape {
            Shape::Bursts if !(self.factor >= 1.0 && self.factor.is_finite()) => {
                Err("--factor must be at least 1 for bursts".into())
            }
            Shape::Diurnal if !(1.0..=2.0).contains(&self.factor) => {
                Err("--factor must be between 1 and 2 for a day".into())
            }
            _ => Ok(()),
        }
    }

    /// Requests per second at a time.
    fn at(&self, seconds: f64) -> f64 {
        let phase = (seconds / self.period).fract();
        self.rate
            * match self.shape {
                Shape::Steady => 1.0,
                Shape::Bursts if phase < BURST => self.factor,
                Shape::Bursts => 1.0,
                // Begins in the night.
                Shape::Diurnal => 1.0 - (self.factor - 1.0) * (phase * std::f64::consts::TAU).cos(),
            }
    }

    /// The times within `duration`, drawn by thinning (Lewis and Shedler, 1979).
    pub(crate) fn times(&self, duration: Duration, rng: &mut ChaCha8Rng) -> Vec<Duration> {
        let most = self.rate * if self.shape == Shape::Steady { 1.0 } else { self.factor };
        let mut times = Vec::new();
        let mut at = 0.0;
        loop {
            at += -(1.0 - rng.random::<f64>()).ln() / most;
            if at >= duration.as_secs_f64() {
                return times;
            }
            if rng.random::<f64>() * most < self.at(at) {
                times.push(Duration::from_secs_f64(at));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn times(shape: Shape, factor: f64) -> Vec<Duration> {
        let arrivals = Arrivals { rate: 50.0, shape, period: 10.0, factor };
        arrivals.check().unwrap();
        arrivals.times(Duration::from_secs(100), &mut ChaCha8Rng::seed_from_u64(5))
    }

    /// How many of the times lie in a part of their period.
    fn share(times: &[Duration], from: f64, to: f64) -> f64 {
        let inside = |at: &&Duration| (from..to).contains(&(at.as_secs_f64() / 10.0).fract());
        times.iter().filter(inside).count() as f64 / times.len() as f64
    }

    #[test]
    fn a_steady_rate_is_the_same_all_the_time() {
        let times = times(Shape::Steady, 1.0);
        // Poisson: 5,000 expected, standard deviation 71.
        assert!((4_700..5_300).contains(&times.len()), "{}", times.len());
        assert!((0.08..0.12).contains(&share(&times, 0.0, 0.1)));
        assert!(times.is_sorted());
    }

    #[test]
    fn a_burst_has_its_factor_of_the_rate() {
        let times = times(Shape::Bursts, 11.0);
        // 0.1 x 11 of 0.1 x 11 + 0.9.
        let share = share(&times, 0.0, 0.1);
        assert!((0.52..0.58).contains(&share), "{share}");
    }

    #[test]
    fn a_day_has_a_night() {
        let times = times(Shape::Diurnal, 2.0);
        let (night, noon) = (share(&times, 0.0, 0.1), share(&times, 0.45, 0.55));
        assert!(night < 0.02 && noon > 0.17, "{night} {noon}");
        let wrong = Arrivals { rate: 1.0, shape: Shape::Diurnal, period: 1.0, factor: 3.0 };
        assert!(wrong.check().unwrap_err().contains("between 1 and 2"));
    }
}
