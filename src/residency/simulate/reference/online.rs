//! Rules that know the past only.

use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::Bytes;

use super::{Sequence, Tally};

/// What a use adds up to when a model has left and comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frequency {
    /// All uses so far count.
    Kept,
    /// The uses since the last load count.
    Fresh,
}

/// What a load costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cost {
    /// Every load the same: the worth of a use falls with the size.
    Load,
    /// As much as its bytes, as where bandwidth decides: sizes cancel out.
    Bytes,
}

/// The bounds of [`collation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Collation {
    /// A load begins when this many requests are pending.
    pub pending: usize,
    /// A load begins when a pending request has been passed by this many later arrivals.
    pub passed: usize,
}

/// The least recently used leaves.
pub fn lru(sequence: &Sequence, budget: Bytes) -> Tally {
    let mut shelf = Shelf::new(sequence, budget);
    let mut tally = Tally::default();
    for ask in &sequence.asks {
        if ask.bytes > budget {
            tally.refused += 1;
            continue;
        }
        tally.requests += 1;
        if !shelf.touch(ask.model, 0.0) {
            shelf.place(ask.model, ask.bytes, 0.0);
            tally.load(ask.bytes);
        }
    }
    tally
}

/// Greedy-dual by size and frequency.
pub fn gdsf(sequence: &Sequence, budget: Bytes, frequency: Frequency, cost: Cost) -> Tally {
    let mut greedy = Greedy::new(sequence, budget, frequency, cost);
    let mut tally = Tally::default();
    for ask in &sequence.asks {
        if ask.bytes > budget {
            tally.refused += 1;
            continue;
        }
        tally.requests += 1;
        if !greedy.touch(ask.model, ask.bytes) {
            greedy.place(ask.model, ask.bytes, 1);
            tally.load(ask.bytes);
        }
    }
    tally
}

/// Loads for several requests at once, each passed by a bounded number of later ones.
///
/// What is pending when the requests end is loaded then.
pub fn collation(sequence: &Sequence, budget: Bytes, bounds: Collation, cost: Cost) -> Tally {
    let mut greedy = Greedy::new(sequence, budget, Frequency::Kept, cost);
    let mut tally = Tally::default();
    let mut pending: BTreeMap<u32, Group> = BTreeMap::new();
    for (position, ask) in sequence.asks.iter().enumerate() {
        if ask.bytes > budget {
            tally.refused += 1;
            continue;
        }
        tally.requests += 1;
        if !greedy.touch(ask.model, ask.bytes) {
            let fresh = Group { first: position, requests: 0, bytes: ask.bytes };
            pending.entry(ask.model).or_insert(fresh).requests += 1;
        }
        while let Some(model) = due(&pending, position, bounds) {
            answer(&mut greedy, &mut pending, model, &mut tally);
        }
    }
    while let Some(model) = largest(&pending) {
        answer(&mut greedy, &mut pending, model, &mut tally);
    }
    tally
}

/// The requests that wait for one model.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// The position of the oldest.
    first: usize,
    requests: u64,
    bytes: Bytes,
}

/// The model to be loaded now: the one past its bound, or with enough pending the one that most
/// wait for, the oldest of those.
fn due(pending: &BTreeMap<u32, Group>, position: usize, bounds: Collation) -> Option<u32> {
    let (oldest, group) = pending.iter().min_by_key(|(_, group)| group.first)?;
    if position - group.first >= bounds.passed {
        return Some(*oldest);
    }
    let requests: u64 = pending.values().map(|group| group.requests).sum();
    if requests >= bounds.pending as u64 { largest(pending) } else { None }
}

fn largest(pending: &BTreeMap<u32, Group>) -> Option<u32> {
    let most = pending.iter().max_by_key(|(_, g)| (g.requests, std::cmp::Reverse(g.first)));
    most.map(|(model, _)| *model)
}

fn answer(greedy: &mut Greedy, pending: &mut BTreeMap<u32, Group>, model: u32, tally: &mut Tally) {
    if let Some(group) = pending.remove(&model) {
        greedy.place(model, group.bytes, group.requests);
        tally.load(group.bytes);
    }
}

/// Greedy-dual over a shelf.
struct Greedy {
    shelf: Shelf,
    uses: Vec<u64>,
    frequency: Frequency,
    cost: Cost,
    /// `L`: the worth of who left last.
    inflation: f64,
}

impl Greedy {
    fn new(sequence: &Sequence, budget: Bytes, frequency: Frequency, cost: Cost) -> Self {
        Self {
            shelf: Shelf::new(sequence, budget),
            uses: vec![0; sequence.models()],
            frequency,
            cost,
            inflation: 0.0,
        }
    }

    fn touch(&mut self, model: u32, bytes: Bytes) -> bool {
        if !self.shelf.holds(model) {
            return false;
        }
        self.uses[model as usize] += 1;
        let worth = self.worth(model, bytes);
        self.shelf.touch(model, worth)
    }

    fn place(&mut self, model: u32, bytes: Bytes, uses: u64) {
        for (gone, worth) in self.shelf.make_room(bytes) {
            self.inflation = worth;
            if self.frequency == Frequency::Fresh {
                self.uses[gone as usize] = 0;
            }
        }
        self.uses[model as usize] += uses;
        let worth = self.worth(model, bytes);
        self.shelf.place(model, bytes, worth);
    }

    #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
    fn worth(&self, model: u32, bytes: Bytes) -> f64 {
        let uses = self.uses[model as usize] as f64;
        match self.cost {
            Cost::Bytes => self.inflation + uses,
            Cost::Load => self.inflation + uses / bytes.0.max(1) as f64,
        }
    }
}

/// What is on the device, by worth and then by the last use.
struct Shelf {
    budget: Bytes,
    used: Bytes,
    held: Vec<Option<Held>>,
    order: BTreeSet<(u64, u64, u32)>,
    uses: u64,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    worth: f64,
    last: u64,
    bytes: Bytes,
}

impl Held {
    /// Worths are not negative, so that their bits have their order.
    fn rank(&self, model: u32) -> (u64, u64, u32) {
        (self.worth.to_bits(), self.last, model)
    }
}

impl Shelf {
    /// A shelf with what was there before the first request.
    fn new(sequence: &Sequence, budget: Bytes) -> Self {
        let held = vec![None; sequence.models()];
        let mut shelf = Self { budget, used: Bytes::ZERO, held, order: BTreeSet::new(), uses: 0 };
        for resident in &sequence.residents {
            shelf.place(resident.model, resident.bytes, 0.0);
        }
        shelf
    }

    fn holds(&self, model: u32) -> bool {
        self.held[model as usize].is_some()
    }

    /// Notes a use; false where the model is not there.
    fn touch(&mut self, model: u32, worth: f64) -> bool {
        self.uses += 1;
        let last = self.uses;
        let Some(held) = &mut self.held[model as usize] else {
            return false;
        };
        self.order.remove(&held.rank(model));
        (held.worth, held.last) = (worth, last);
        self.order.insert(held.rank(model));
        true
    }

    /// Puts a model there; the least worthy leave for it.
    fn place(&mut self, model: u32, bytes: Bytes, worth: f64) {
        self.make_room(bytes);
        self.uses += 1;
        let held = Held { worth, last: self.uses, bytes };
        self.order.insert(held.rank(model));
        self.used += bytes;
        self.held[model as usize] = Some(held);
    }

    /// Who leaves so that `bytes` fit, with their worth, in order.
    fn make_room(&mut self, bytes: Bytes) -> Vec<(u32, f64)> {
        let mut gone = Vec::new();
        while self.used + bytes > self.budget
            && let Some((_, _, model)) = self.order.pop_first()
            && let Some(held) = self.held[model as usize].take()
        {
            self.used = self.used.saturating_sub(held.bytes);
            gone.push((model, held.worth));
        }
        gone
    }
}
