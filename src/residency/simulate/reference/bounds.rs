//! Bounds of the offline optimum where sizes differ.
//!
//! Finding the optimum itself is strongly NP-hard then. Between two requests for the same model that
//! model either stays, which takes its bytes at every request between, or has to be loaded again.
//! At each request there is room for what stays beside the model that answers. So the optimum is a
//! choice of such stays within the room, the most worth having. Taken as fractions the choice
//! is a linear programme whose optimum is an upper bound of the hits.

use serde::Serialize;

use roundhouse_types::Bytes;

use super::Sequence;
use super::flow::{Stay, Stays};

/// What is to be as little as possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    /// The number of loads.
    Loads,
    /// The bytes loaded.
    Bytes,
}

/// Between these the offline optimum lies.
///
/// All count loads, or the bytes loaded, by the [`Objective`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// Requests that were answered; the others are for models larger than the budget.
    pub requests: u64,
    /// A lower bound: the stays that take the fewest bytes times requests for their worth, as many as the
    /// whole room over the whole time holds. Known as PFOO-L (Berger, Beckmann and Harchol-Balter,
    /// POMACS 2018), here with the room of the answering model taken off.
    pub pfoo_lower: u64,
    /// A lower bound: the dual of the linear programme, which holds for any prices of room. They are
    /// found by a subgradient descent that begins at the one price of PFOO-L; never below that.
    pub dual_lower: u64,
    /// An upper bound: a schedule that exists. Stays are granted while there is room at every
    /// request between, in the order of worth for their price; the best of both prices' orders.
    pub greedy_upper: u64,
}

impl Bounds {
    /// The better lower bound.
    pub fn lower(&self) -> u64 {
        self.pfoo_lower.max(self.dual_lower)
    }

    /// The upper bound.
    pub fn upper(&self) -> u64 {
        self.greedy_upper
    }
}

/// Bounds of what the offline optimum loads, where what answers must take room.
pub fn bounds(sequence: &Sequence, budget: Bytes, objective: Objective) -> Bounds {
    let fits: Vec<_> = sequence.asks.iter().filter(|ask| ask.bytes <= budget).copied().collect();
    let worth = |bytes: Bytes| match objective {
        Objective::Loads => 1.0,
        Objective::Bytes => float(bytes),
    };
    let mut stays = Stays {
        room: fits.iter().map(|ask| budget.saturating_sub(ask.bytes).0).collect(),
        stays: Vec::new(),
    };
    let mut since: Vec<Option<(usize, Bytes)>> = vec![None; sequence.models()];
    for resident in &sequence.residents {
        since[resident.model as usize] = Some((0, resident.bytes));
    }
    let (mut total, mut free) = (0.0, 0.0);
    for (position, ask) in fits.iter().enumerate() {
        total += worth(ask.bytes);
        if let Some((from, bytes)) = since[ask.model as usize].replace((position + 1, ask.bytes)) {
            let stay = Stay { from, until: position, bytes: bytes.0, worth: worth(ask.bytes) };
            // What is asked for twice in a row has been there.
            if from == position { free += stay.worth } else { stays.stays.push(stay) }
        }
    }
    stays.stays.retain({
        let room = super::flow::Room::new(&stays.room);
        move |stay| room.least(stay.from, stay.until) >= stay.bytes
    });
    let least = |hits: f64| ceil(total - free - hits);
    let (pfoo, price) = stays.at_one_price();
    let first = stays.granted(&vec![price; stays.room.len()]);
    let (dual, prices) = stays.at_best_prices(price, first);
    let best = first.max(stays.granted(&prices));
    let pfoo_lower = least(pfoo);
    Bounds {
        requests: fits.len() as u64,
        pfoo_lower,
        dual_lower: least(dual).max(pfoo_lower),
        greedy_upper: least(best),
    }
}

#[expect(clippy::cast_precision_loss, reason = "bounds of sums; exact below 2^53")]
pub(super) fn float(bytes: Bytes) -> f64 {
    bytes.0 as f64
}

/// The least whole number that is not below `value`, but for what sums of fractions lose.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and far below 2^53"
)]
fn ceil(value: f64) -> u64 {
    (value - 1e-6 - value.abs() * 1e-9).ceil().max(0.0) as u64
}
