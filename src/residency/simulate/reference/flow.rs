//! Stays of models between their requests, and the room they share.

use roundhouse_types::Bytes;

use super::bounds::float;

/// Steps of the descent: the bound of a trace of 27,000 requests moves by less than a thousandth
/// after them.
const STEPS: usize = 1000;
/// Steps without a better bound after which the descent takes smaller ones.
const PATIENCE: usize = 25;

/// A model stays between two requests for it and saves a load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stay {
    /// The first request between.
    pub(super) from: usize,
    /// The request that finds it there.
    pub(super) until: usize,
    pub(super) bytes: u64,
    pub(super) worth: f64,
}

/// All stays of a sequence, and the room at each request beside the model that answers.
#[derive(Debug)]
pub(super) struct Stays {
    pub(super) room: Vec<u64>,
    pub(super) stays: Vec<Stay>,
}

impl Stays {
    /// What the room of the whole time holds at most, by the cheapest stays, and the price of a byte
    /// for one request at which it is used up; zero where there is room for all.
    pub(super) fn at_one_price(&self) -> (f64, f64) {
        let takes = |stay: &Stay| float(Bytes(stay.bytes)) * length(stay.until - stay.from);
        let mut order: Vec<(f64, f64)> =
            self.stays.iter().map(|stay| (takes(stay), stay.worth)).collect();
        order.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let mut left: f64 = self.room.iter().map(|bytes| float(Bytes(*bytes))).sum();
        let mut worth = 0.0;
        for (takes, gives) in order {
            if takes > left {
                return (worth + gives * left / takes, gives / takes);
            }
            left -= takes;
            worth += gives;
        }
        (worth, 0.0)
    }

    /// The least bound that the descent from one price for all finds, and its prices. `known` is the
    /// worth of a schedule that exists.
    pub(super) fn at_best_prices(&self, price: f64, known: f64) -> (f64, Vec<f64>) {
        let mut prices = vec![price; self.room.len()];
        let (mut best, mut best_prices) = (f64::INFINITY, prices.clone());
        let (mut pace, mut since) = (1.0, 0);
        for _ in 0..STEPS {
            let (bound, unused) = self.bound(&prices);
            if bound < best {
                (best, since) = (bound, 0);
                best_prices.copy_from_slice(&prices);
            } else {
                since += 1;
                if since == PATIENCE {
                    (pace, since) = (pace * 0.6, 0);
                    prices.copy_from_slice(&best_prices);
                    continue;
                }
            }
            // Where a price is zero already, unused room says nothing.
            let counts = |(price, unused): (&f64, &f64)| *price > 0.0 || *unused < 0.0;
            let norm: f64 =
                prices.iter().zip(&unused).filter(|it| counts(*it)).map(|(_, u)| u * u).sum();
            if norm <= 0.0 || bound - known < 1e-6 {
                break;
            }
            let step = pace * (bound - known) / norm;
            for (price, unused) in prices.iter_mut().zip(&unused) {
                *price = (*price - step * unused).max(0.0);
            }
        }
        (best, best_prices)
    }

    /// The bound that these prices give, and the room that nobody takes at them.
    fn bound(&self, prices: &[f64]) -> (f64, Vec<f64>) {
        let sums = running_sums(prices);
        let mut change = vec![0.0; self.room.len() + 1];
        let mut bound = 0.0;
        for stay in &self.stays {
            let bytes = float(Bytes(stay.bytes));
            let gain = stay.worth - bytes * (sums[stay.until] - sums[stay.from]);
            if gain > 0.0 {
                bound += gain;
                change[stay.from] += bytes;
                change[stay.until] -= bytes;
            }
        }
        let mut taken = 0.0;
        let mut unused = Vec::with_capacity(self.room.len());
        for ((room, price), change) in self.room.iter().zip(prices).zip(&change) {
            taken += change;
            let room = float(Bytes(*room));
            bound += price * room;
            unused.push(room - taken);
        }
        (bound, unused)
    }

    /// The worth of the stays that are granted room one after the other, those first that give most
    /// for their price.
    pub(super) fn granted(&self, prices: &[f64]) -> f64 {
        let sums = running_sums(prices);
        let price = |stay: &Stay| {
            let price = float(Bytes(stay.bytes)) * (sums[stay.until] - sums[stay.from]);
            // Where room costs nothing, shorter ones first.
            (price / stay.worth, stay.until - stay.from)
        };
        let mut order: Vec<((f64, usize), &Stay)> =
            self.stays.iter().map(|stay| (price(stay), stay)).collect();
        order.sort_by(|(a, _), (b, _)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut room = Room::new(&self.room);
        let mut worth = 0.0;
        for (_, stay) in order {
            if room.least(stay.from, stay.until) >= stay.bytes {
                room.take(stay.from, stay.until, stay.bytes);
                worth += stay.worth;
            }
        }
        worth
    }
}

/// At each position the sum of what is before it.
fn running_sums(values: &[f64]) -> Vec<f64> {
    let mut sums = Vec::with_capacity(values.len() + 1);
    let mut sum = 0.0;
    sums.push(sum);
    for value in values {
        sum += value;
        sums.push(sum);
    }
    sums
}

#[expect(clippy::cast_precision_loss, reason = "positions are far below 2^53")]
fn length(positions: usize) -> f64 {
    positions as f64
}

/// The room left at each request: a tree of least values, where what is taken from a whole subtree
/// is noted at its root.
#[derive(Debug)]
pub(super) struct Room {
    leaves: usize,
    /// The least value below each node, without what nodes above it have noted.
    least: Vec<u64>,
    taken: Vec<u64>,
}

impl Room {
    pub(super) fn new(room: &[u64]) -> Self {
        let leaves = room.len().next_power_of_two();
        let mut least = vec![u64::MAX; 2 * leaves];
        least[leaves..leaves + room.len()].copy_from_slice(room);
        for node in (1..leaves).rev() {
            least[node] = least[2 * node].min(least[2 * node + 1]);
        }
        Self { leaves, least, taken: vec![0; 2 * leaves] }
    }

    /// The least room in `from..until`; all there is in an empty range.
    pub(super) fn least(&self, from: usize, until: usize) -> u64 {
        self.least_below(1, 0..self.leaves, from, until)
    }

    fn least_below(
        &self,
        node: usize,
        span: std::ops::Range<usize>,
        from: usize,
        until: usize,
    ) -> u64 {
        if until <= span.start || span.end <= from {
            return u64::MAX;
        }
        if from <= span.start && span.end <= until {
            return self.least[node];
        }
        let middle = usize::midpoint(span.start, span.end);
        let left = self.least_below(2 * node, span.start..middle, from, until);
        let right = self.least_below(2 * node + 1, middle..span.end, from, until);
        left.min(right).saturating_sub(self.taken[node])
    }

    /// Takes room that is there.
    pub(super) fn take(&mut self, from: usize, until: usize, bytes: u64) {
        self.take_below(1, 0..self.leaves, (from, until), bytes);
    }

    fn take_below(
        &mut self,
        node: usize,
        span: std::ops::Range<usize>,
        (from, until): (usize, usize),
        bytes: u64,
    ) {
        if until <= span.start || span.end <= from {
            return;
        }
        if from <= span.start && span.end <= until {
            debug_assert!(self.least[node] >= bytes, "only room that is there is taken");
            self.least[node] -= bytes;
            self.taken[node] += bytes;
            return;
        }
        let middle = usize::midpoint(span.start, span.end);
        self.take_below(2 * node, span.start..middle, (from, until), bytes);
        self.take_below(2 * node + 1, middle..span.end, (from, until), bytes);
        let least = self.least[2 * node].min(self.least[2 * node + 1]);
        self.least[node] = least - self.taken[node];
    }
}
