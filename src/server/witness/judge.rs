//! Compares what is seen with what the ledger says, and decides what the budget can be. Pure.

use std::time::{Duration, Instant};

use roundhouse_types::Bytes;

use super::books::Books;
use super::readings::Seen;

/// A difference below this is no news whatever its share: buffers of connections, holes in
/// the allocator's arenas.
const NOTICED: Bytes = Bytes::mib(64);
/// A difference has to be seen this often in a row before it is told: bodies and answers on
/// their way are in no ledger, and gone at the next look.
const LOOKS_TO_WARN: u32 = 2;
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
/// The budget is raised when there was room for it at this many looks in a row.
const LOOKS_TO_RAISE: u32 = 3;

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
    pub(super) baseline: Bytes,
    /// What the operator wants models to have; the budget is never above it.
    pub(super) configured: Bytes,
    /// Of what is expected, in percent: a larger difference is told.
    tolerance: u64,
    /// Whether the budget follows what others leave.
    yields: bool,
    off: u32,
    told: Option<Instant>,
    roomy: u32,
    trimmed: Option<Instant>,
}

impl Judge {
    pub(super) fn new(baseline: Bytes, configured: Bytes, tolerance: u64, yields: bool) -> Self {
        let (told, trimmed) = (None, None);
        Self { baseline, configured, tolerance, yields, off: 0, told, roomy: 0, trimmed }
    }

    /// Whether a look with freed memory still in the allocator's hands would have
    /// consequences: then it is handed back, and the look taken again.
    pub(super) fn is_grave(&mut self, seen: &Seen, books: &Books, now: Instant) -> bool {
        if self.room(seen, books).is_some_and(|room| self.falls(room, books)) {
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
        self.off = if self.is_off(seen, books) { self.off.saturating_add(1) } else { 0 };
        let quiet = self.told.is_none_or(|told| now.saturating_duration_since(told) >= WARN_EVERY);
        let warn = self.off >= LOOKS_TO_WARN && quiet;
        if warn {
            self.told = Some(now);
        }
        let budget = self.budget(seen, books);
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
        let tolerated = percent(expected, self.tolerance).max(NOTICED);
        off_by.unsigned_abs() > tolerated.0
    }

    /// What models can have: what they hold by the ledger and really, and what is available
    /// beyond that, less a reserve.
    fn room(&self, seen: &Seen, books: &Books) -> Option<Bytes> {
        let explained = books.expected(self.baseline) + books.above();
        // What this process uses beyond that is lost to models like what others use.
        let held = seen.own.min(explained).saturating_sub(self.baseline) + books.elsewhere;
        let room = held + seen.available?;
        let least = percent(self.configured, FLOOR);
        Some(room.saturating_sub(percent(room, RESERVE)).max(least).min(self.configured))
    }

    fn step(&self) -> Bytes {
        percent(self.configured, STEP)
    }

    /// Whether the budget has to be lowered to the room.
    fn falls(&self, room: Bytes, books: &Books) -> bool {
        self.yields && room + self.step() <= books.budget
    }

    fn budget(&mut self, seen: &Seen, books: &Books) -> Option<Bytes> {
        let room = self.room(seen, books).filter(|_| self.yields)?;
        if self.falls(room, books) {
            self.roomy = 0;
            return Some(room);
        }
        let raise = room >= books.budget + self.step() || room == self.configured;
        if room <= books.budget || !raise {
            self.roomy = 0;
            return None;
        }
        self.roomy += 1;
        if self.roomy < LOOKS_TO_RAISE {
            return None;
        }
        self.roomy = 0;
        Some(room)
    }
}

fn percent(of: Bytes, percent: u64) -> Bytes {
    // Divided first: a size times a hundred may not fit. At most 99 bytes are lost.
    Bytes((of.0 / 100).saturating_mul(percent))
}
