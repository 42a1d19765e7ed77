//! Plain models of caching on the order of arrival, to hold the table against.
//!
//! They share no code with the table: no loads that take time, no leases, no devices. A request
//! for a model that is there is a hit; any other is a load, and the model must fit afterwards.
//!
//! | name | rule |
//! |---|---|
//! | [`lru()`] | the least recently used leaves |
//! | [`gdsf`] | the one with the least `H` leaves, where `H = L + frequency * cost / size` is set at each use and `L` is the `H` of who left last. Among equals the least recently used leaves |
//! | [`collation`] | a request for a resident is answered at once; another waits until enough are pending or the oldest has been passed often enough, then one model is loaded for all who wait for it; GDSF chooses who leaves |
//! | [`belady`] | the offline optimum where all sizes are equal: the one whose next use is farthest leaves |
//! | [`bounds()`] | lower and upper bounds of the offline optimum where sizes differ |
//!
//! # Which GDSF
//! The frequency is kept when a model leaves ([`Frequency::Kept`]): it counts all uses so far. With
//! a frequency that begins anew at each load ([`Frequency::Fresh`]) it loads more on most traces, since what
//! comes back has to prove itself again. In [`collation`] all requests that one load answers count
//! as uses.
//!
//! # Two optima
//! They differ in whether a model must take room to answer ([`Admission`]). A server loads what it
//! answers from, so its optimum is [`Admission::MustTakeRoom`]; that one is what [`bounds()`] and the
//! regret meter mean. [`Admission::MayPassThrough`] lets a request be answered from one transient slot
//! more that keeps nothing.

mod belady;
mod bounds;
mod flow;
mod online;

use serde::Serialize;

use roundhouse_types::Bytes;

pub use belady::{Admission, belady};
pub use bounds::{Bounds, Objective, bounds};
pub use online::{Collation, Cost, Frequency, collation, gdsf, lru};

/// One request: which model, by number, and what it takes on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// The model's number; numbers are small and begin at zero.
    pub model: u32,
    /// What the model takes.
    pub bytes: Bytes,
}

/// Requests in the order of their arrival.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sequence {
    /// The requests.
    pub asks: Vec<Ask>,
    /// What was on the device before the first of them. It may leave at no cost, like anything else.
    pub residents: Vec<Ask>,
}

impl Sequence {
    /// Requests for these models, all of one byte, with an empty device before: budgets are
    /// numbers of slots.
    pub fn of_equal(models: impl IntoIterator<Item = u32>) -> Self {
        let asks = models.into_iter().map(|model| Ask { model, bytes: Bytes(1) }).collect();
        Self { asks, residents: Vec::new() }
    }

    /// The size that all models have, where they have one.
    pub fn equal_size(&self) -> Option<Bytes> {
        let mut sizes = self.asks.iter().chain(&self.residents).map(|ask| ask.bytes);
        let first = sizes.next()?;
        sizes.all(|bytes| bytes == first).then_some(first)
    }

    /// One more than the largest number of a model.
    fn models(&self) -> usize {
        let numbers = self.asks.iter().chain(&self.residents).map(|ask| ask.model as usize + 1);
        numbers.max().unwrap_or(0)
    }

    /// For each request the position of the next one for the same model.
    fn next_uses(&self) -> Vec<Option<usize>> {
        let mut next = vec![None; self.asks.len()];
        let mut seen: Vec<Option<usize>> = vec![None; self.models()];
        for (position, ask) in self.asks.iter().enumerate().rev() {
            next[position] = seen[ask.model as usize].replace(position);
        }
        next
    }

    /// For each model the position of its first request.
    fn first_uses(&self) -> Vec<Option<usize>> {
        let mut first = vec![None; self.models()];
        for (position, ask) in self.asks.iter().enumerate().rev() {
            first[ask.model as usize] = Some(position);
        }
        first
    }
}

/// What a model of caching did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// Requests that were answered.
    pub requests: u64,
    /// Loads.
    pub loads: u64,
    /// The sizes of what was loaded, added up.
    pub loaded_bytes: Bytes,
    /// Requests for models larger than the budget, which nothing was done for.
    pub refused: u64,
}

impl Tally {
    /// Loads per request that was answered; zero without requests.
    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    pub fn miss_ratio(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.loads as f64 / self.requests as f64 }
    }

    fn load(&mut self, bytes: Bytes) {
        self.loads += 1;
        self.loaded_bytes += bytes;
    }
}

#[cfg(test)]
mod tests;
