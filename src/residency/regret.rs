//! How much more was loaded than had to be.

use std::collections::HashMap;
use std::time::Duration;

use roundhouse_types::Bytes;
use serde::Serialize;

use crate::simulate::reference::{Admission, Ask, Objective, Sequence, belady, bounds};

/// How old an answer may be before it is calculated anew.
pub(crate) const FRESH: Duration = Duration::from_secs(10);

/// What was loaded while the latest requests came, beside what the offline optimum would have loaded.
///
/// The optimum knows all of these requests beforehand and answers them one after the other in the
/// order of their arrival, each from a model that takes its room. It begins with the residents that were
/// there when the oldest of these requests came, which may leave at no cost, and has the budgets of all
/// devices in one piece. Requests that were refused, and those that still wait, are not among them.
///
/// The ratio can be below one: requests that wait for one load are answered together, which
/// one after the other they would not be. Loads that no request waited for (an operator, a preload list
/// or a new version wanted them) are told beside: the optimum has none, and loads such a model at its
/// first request, which then speaks for us.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Regret {
    /// Requests in the window.
    pub requests: u64,
    /// Models they are for; versions count as models.
    pub models: u64,
    /// What residents may take on all devices.
    pub budget_bytes: Bytes,
    /// Models that were there when the oldest request came.
    pub residents_before: u64,
    /// Loads that requests waited for and that ended well meanwhile.
    pub loads: u64,
    /// Loads that ended well without any request for them.
    pub unasked_loads: u64,
    /// What the offline optimum would have loaded.
    pub optimal_loads: OptimalLoads,
    /// `loads` by the optimum.
    pub ratio: RegretRatio,
}

/// What the offline optimum would have loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OptimalLoads {
    /// At least this.
    pub lower: u64,
    /// At most this; the same where all models have one size.
    pub upper: u64,
    /// How it was found: `belady` where all models have one size, else `bounds`.
    pub by: &'static str,
}

/// Loads by those of the optimum; one where neither loaded anything.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RegretRatio {
    /// At least this; absent where the optimum would have loaded nothing.
    pub lower: Option<f64>,
    /// At most this; absent where the optimum may have loaded nothing.
    pub upper: Option<f64>,
}

/// A model, by number, and what it took.
pub(crate) type Numbered = (u32, Bytes);

/// The latest requests, copied out of the owner.
#[derive(Debug, Clone, Default)]
pub(crate) struct Window {
    /// Requests that were answered, in the order of arrival.
    pub(crate) answered: Vec<Numbered>,
    pub(crate) residents_before: Vec<Numbered>,
    pub(crate) loads: u64,
    pub(crate) unasked_loads: u64,
    pub(crate) budget: Bytes,
}

impl Window {
    /// Calculates the regret: some milliseconds where all sizes are equal, some tens where not.
    pub(crate) fn judge(&self) -> Regret {
        let mut numbers: HashMap<u32, u32> = HashMap::new();
        let mut ask = |(model, bytes): &Numbered| {
            let fresh = u32::try_from(numbers.len()).expect("fewer than the window");
            Ask { model: *numbers.entry(*model).or_insert(fresh), bytes: *bytes }
        };
        let asks: Vec<Ask> = self.answered.iter().map(&mut ask).collect();
        let models = numbers_seen(&asks);
        let residents = self.residents_before.iter().map(&mut ask).collect();
        let sequence = Sequence { asks, residents };
        let optimal_loads = optimal(&sequence, self.budget);
        Regret {
            requests: sequence.asks.len() as u64,
            models,
            budget_bytes: self.budget,
            residents_before: sequence.residents.len() as u64,
            loads: self.loads,
            unasked_loads: self.unasked_loads,
            optimal_loads,
            ratio: RegretRatio {
                lower: ratio(self.loads, optimal_loads.upper),
                upper: ratio(self.loads, optimal_loads.lower),
            },
        }
    }
}

fn optimal(sequence: &Sequence, budget: Bytes) -> OptimalLoads {
    match sequence.equal_size() {
        Some(size) if size > Bytes::ZERO => {
            let slots = Bytes(budget.0 / size.0).as_usize();
            let loads = belady(sequence, slots, Admission::MustTakeRoom).loads;
            OptimalLoads { lower: loads, upper: loads, by: "belady" }
        }
        _ => {
            let found = bounds(sequence, budget, Objective::Loads);
            OptimalLoads { lower: found.lower(), upper: found.upper(), by: "bounds" }
        }
    }
}

/// Numbers are given in the order of the requests, so the largest tells how many there are.
fn numbers_seen(asks: &[Ask]) -> u64 {
    asks.iter().map(|ask| u64::from(ask.model) + 1).max().unwrap_or(0)
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn ratio(loads: u64, optimal: u64) -> Option<f64> {
    match (loads, optimal) {
        (0, 0) => Some(1.0),
        (_, 0) => None,
        _ => Some(loads as f64 / optimal as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(models: &[u32], sizes: [u64; 3], loads: u64, budget: u64) -> Window {
        let sized = |model: &u32| (*model, Bytes(sizes[*model as usize % 3]));
        let answered = models.iter().map(sized).collect();
        let budget = Bytes(budget);
        Window { answered, loads, budget, ..Window::default() }
    }

    #[test]
    fn with_one_size_the_optimum_is_exact() {
        // 7 8 7 9 7 8 in two slots: 7, 8, 9 for 8, 8 again.
        let regret = window(&[7, 8, 7, 9, 7, 8], [10; 3], 6, 25).judge();
        let optimum = OptimalLoads { lower: 4, upper: 4, by: "belady" };
        assert_eq!((regret.optimal_loads, regret.models), (optimum, 3));
        assert_eq!(regret.ratio, RegretRatio { lower: Some(1.5), upper: Some(1.5) });
    }

    #[test]
    fn what_was_there_before_the_window_need_not_be_loaded() {
        let mut window = window(&[0, 1, 0], [10; 3], 1, 20);
        window.residents_before = vec![(0, Bytes(10)), (2, Bytes(10))];
        let regret = window.judge();
        assert_eq!((regret.optimal_loads.lower, regret.residents_before), (1, 2));
        assert_eq!(regret.models, 2, "who was there and was not asked for is not counted");
    }

    #[test]
    fn with_sizes_that_differ_the_optimum_has_bounds() {
        let regret = window(&[0, 1, 0, 2, 0, 1], [3, 2, 4], 6, 5).judge();
        assert_eq!(regret.optimal_loads, OptimalLoads { lower: 5, upper: 5, by: "bounds" });
    }

    #[test]
    fn an_empty_window_has_no_regret() {
        let regret = window(&[], [1; 3], 0, 10).judge();
        assert_eq!(regret.ratio, RegretRatio { lower: Some(1.0), upper: Some(1.0) });
        let regret = Window { unasked_loads: 1, ..Window::default() }.judge();
        assert_eq!((regret.ratio.upper, regret.unasked_loads), (Some(1.0), 1));
        let regret = Window { loads: 1, ..Window::default() }.judge();
        assert_eq!(regret.ratio.upper, None, "its request fell out of the window");
    }
}
