//! How small a device may be for a hit ratio.

use roundhouse_types::Bytes;
use serde::Serialize;

use super::run::{Setup, run};
use super::trace::Trace;

/// The least budget whose hit ratio reaches a target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeastBudget {
    /// The budget.
    pub budget: Bytes,
    /// How many models it holds, of the size that all have, or else of their mean size.
    pub slots: u64,
    /// Models asked for.
    pub models: u64,
    /// How many models share one slot of the device.
    pub models_per_slot: f64,
    /// The hit ratio at that budget.
    pub hit_ratio: f64,
}

/// Finds the least budget, in slots, whose hit ratio reaches `target`; none where even a device that
/// holds all models does not. `setup.budget` is not looked at.
///
/// Bisects, so it takes the hit ratio to grow with the budget; where it does not quite, the budget found
/// reaches the target and one slot less does not.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
pub fn least_budget(trace: &Trace, setup: &Setup, target: f64) -> Option<LeastBudget> {
    let models = trace.models().len() as u64;
    let sizes = || trace.models().iter().map(|model| model.bytes);
    let total: Bytes = sizes().sum();
    let slot = trace.equal_size().unwrap_or(Bytes(total.0.div_ceil(models.max(1)).max(1)));
    let hit_ratio = |slots: u64| {
        let budget = Bytes(slot.0 * slots);
        run(trace, &Setup { budget, ..setup.clone() }).hit_ratio
    };
    // In fewer slots the largest model does not fit, in more nothing ever leaves.
    let mut below = sizes().max()?.0.div_ceil(slot.0).max(1) - 1;
    let mut enough = total.0.div_ceil(slot.0).max(below + 1);
    let mut reached = hit_ratio(enough);
    if reached < target {
        return None;
    }
    while enough - below > 1 {
        let middle = u64::midpoint(below, enough);
        let found = hit_ratio(middle);
        if found >= target {
            (enough, reached) = (middle, found);
        } else {
            below = middle;
        }
    }
    Some(LeastBudget {
        budget: Bytes(slot.0 * enough),
        slots: enough,
        models,
        models_per_slot: models as f64 / enough as f64,
        hit_ratio: reached,
    })
}
