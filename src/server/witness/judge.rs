//! Compares what is seen with what the ledger says, and decides what the budget can be. Pure.

use std::time::{Duration, Instant};

use roundhouse_types::Bytes;

use super::WitnessConfig;
use super::books::Books;
use super::readings::Seen;

/// A difference below this is no news whatever its share: buffers of connections, holes in
/// the allocator's arenas.
const NOTICED: Bytes = Bytes::mib(64);
/// Of the time between two ticks: for so long every look must find the same before a difference
/// is told or the budget raised. Bodies and answers on their way are in no ledger, and others
/// may want back at once what they gave. Looks are no measure: they follow changes closely.
const PATIENCE: u32 = 3;
/// The same warning is not repeated before this.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// A difference that stays does not have the allocator's arenas walked more often.
const TRIM_EVERY: Duration = Duration::from_secs(10);
/// Of what there is for models, in percent: what is never given to them while others use
/// memory. Half of the margin of the automatic budget, so that a server alone on its machine
/// does not come near it.
const RESERVE: u64 = 5;
/// Of the configured budget, in percent: the budget is not lowered further. A server that
/// refuses everything helps nobody; from there on it is between the system and the others.
const FLOOR: u64 = 10;
/// Of the configured budget, in percent: a change that is not worth an eviction.
const STEP: u64 = 2;

/// What one look found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Verdict {
    /// What this process should use between steps.
    pub(super) expected: Bytes,
    /// By what share of that, of 64 MiB at least, it uses more (positive) or less (negative)
    /// than loads, steps and fetches under way explain.
    pub(super) divergence: f64,
    /// Whether it is to be told that the two differ.
    pub(super) warn: bool,
    /// The budget that others leave, where it is another than the current one.
    pub(super) budget: Option<Bytes>,
}

/// What is remembered from look to look.
#[derive(Debug)]
pub(super) struct Judge {
    /// What this process uses without any model.
    baseline: Bytes,
    config: WitnessConfig,
    /// Since when every look found that the two differ.
    off_since: Option<Instant>,
    told: Option<Instant>,
    /// Since when every look found room for a larger budget, and the least that was found.
    roomy: Option<(Instant, Bytes)>,
    trimmed: Option<Instant>,
}

impl Judge {
    pub(super) fn new(baseline: Bytes, config: WitnessConfig) -> Self {
        Self { baseline, config, off_since: None, told: None, roomy: None, trimmed: None }
    }

    /// Whether a look with freed memory still in the allocator's hands would have
    /// consequences: then it is handed back, and the look taken again.
    pub(super) fn is_grave(&mut self, seen: &Seen, books: &Books, now: Instant) -> bool {
        if self.lowered(seen, books).is_some() {
            return true;
        }
        let lately = |then: Instant| now.saturating_duration_since(then) < TRIM_EVERY;
        if !self.is_off(seen, books) || self.trimmed.is_some_and(lately) {
            return false;
        }
        self.trimmed = Some(now);
        true
    }

    /// Judges a look. What was decided counts as done.
    pub(super) fn look(&mut self, seen: &Seen, books: &Books, now: Instant) -> Verdict {
        let (expected, off_by) = self.compare(seen, books);
        let off = self.is_off(seen, books);
        self.off_since = off.then(|| self.off_since.unwrap_or(now));
        let lasts = self.off_since.is_some_and(|since| self.is_long(since, now));
        let quiet = self.told.is_none_or(|told| now.saturating_duration_since(told) >= WARN_EVERY);
        let warn = lasts && quiet;
        if warn {
            self.told = Some(now);
        }
        let budget = self.budget(seen, books, now);
        #[expect(clippy::cast_precision_loss, reason = "a ratio of sizes for people")]
        let divergence = off_by as f64 / expected.max(NOTICED).0 as f64;
        Verdict { expected, divergence, warn, budget }
    }

    /// What is expected, and by how many bytes what is seen lies outside of what it may be.
    fn compare(&self, seen: &Seen, books: &Books) -> (Bytes, i64) {
        let expected = books.expected(self.baseline);
        let most = expected + books.above();
        let least = expected.saturating_sub(books.leaving);
        let signed = |bytes: Bytes| i64::try_from(bytes.0).unwrap_or(i64::MAX);
        let off_by = if seen.own > most {
            signed(seen.own.saturating_sub(most))
        } else {
            -signed(least.saturating_sub(seen.own))
        };
        (expected, off_by)
    }

    fn is_off(&self, seen: &Seen, books: &Books) -> bool {
        let (expected, off_by) = self.compare(seen, books);
        let tolerated = percent(expected, self.config.tolerance).max(NOTICED);
        off_by.unsigned_abs() > tolerated.0
    }

    fn is_long(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) >= self.config.every.saturating_mul(PATIENCE)
    }

    /// What models can have: what they hold by the ledger and really, and what is available
    /// beyond that, less a reserve. `unseen` is held by models outside of what is seen.
    fn room(&self, seen: &Seen, books: &Books, unseen: Bytes) -> Option<Bytes> {
        // What this process uses beyond that is lost to models like what others use.
        let held = seen.own.min(self.explained(books)).saturating_sub(self.baseline);
        let room = held + books.elsewhere + unseen + seen.available?;
        let configured = self.config.configured;
        let least = percent(configured, FLOOR);
        Some(room.saturating_sub(percent(room, RESERVE)).max(least).min(configured))
    }

    fn explained(&self, books: &Books) -> Bytes {
        books.expected(self.baseline) + books.above()
    }

    fn step(&self) -> Bytes {
        percent(self.config.configured, STEP)
    }

    /// The budget that others leave, where the current one has to be lowered to it.
    ///
    /// What loads were promised and this process does not hold may be in the hands of a handler
    /// that starts: it is never taken for others'. So what others take is seen late, as far as
    /// loads have not yet taken as much themselves: when they have, or have ended.
    fn lowered(&self, seen: &Seen, books: &Books) -> Option<Bytes> {
        let unseen = books.arriving.min(self.explained(books).saturating_sub(seen.own));
        let room = self.room(seen, books, unseen)?;
        (self.config.yields && room + self.step() <= books.budget).then_some(room)
    }

    fn budget(&mut self, seen: &Seen, books: &Books, now: Instant) -> Option<Bytes> {
        let before = self.roomy.take();
        if let Some(room) = self.lowered(seen, books) {
            return Some(room);
        }
        // Nobody may have taken yet what loads were promised: then it is among what is available.
        let room = self.room(seen, books, Bytes::ZERO).filter(|_| self.config.yields)?;
        let (since, room) = before.map_or((now, room), |(since, least)| (since, least.min(room)));
        let worth = room >= books.budget + self.step() || room == self.config.configured;
        if room <= books.budget || !worth {
            return None;
        }
        if self.is_long(since, now) {
            return Some(room);
        }
        self.roomy = Some((since, room));
        None
    }
}

fn percent(of: Bytes, percent: u64) -> Bytes {
    // Divided first: a size times a hundred may not fit. At most 99 bytes are lost.
    Bytes((of.0 / 100).saturating_mul(percent))
}
