//! What steps leave in the allocator's hands: free, and not handed back to the system.
//!
//! A long prompt's activations come and go in blocks of all sizes. What is free between those that
//! stay is handed back when a model leaves; a server that merely rests would keep it, outside
//! the ledger.

use roundhouse_types::Bytes;

use super::books::Books;
use super::readings::Seen;

/// Less than this is not worth the milliseconds.
const WORTH: Bytes = Bytes::mib(4);

/// How much of what lies beyond the ledger was there after the last handing back.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Holes of less than a page, and what the ledger does not know.
    stays: Bytes,
}

impl Leftovers {
    /// Whether nothing is under way and handing back what is free would be worth it.
    pub(super) fn are_worth_it(&mut self, seen: &Seen, books: &Books, baseline: Bytes) -> bool {
        let rests = books.above() == Bytes::ZERO && books.leaving == Bytes::ZERO;
        let beyond = beyond(seen, books, baseline);
        // What was a hole may be in use by now.
        self.stays = self.stays.min(beyond);
        rests && beyond > self.stays + WORTH
    }

    /// Free memory was handed back; so much is used now.
    pub(super) fn were_handed_back(&mut self, seen: &Seen, books: &Books, baseline: Bytes) {
        self.stays = beyond(seen, books, baseline);
    }
}

fn beyond(seen: &Seen, books: &Books, baseline: Bytes) -> Bytes {
    seen.own.saturating_sub(books.expected(baseline))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASELINE: Bytes = Bytes::mib(20);

    fn seen(mib: u64) -> Seen {
        Seen { own: Bytes::mib(mib), available: None }
    }

    #[test]
    fn a_resting_server_hands_back_once_what_steps_left() {
        let books = Books { charged: Bytes::mib(100), ..Books::default() };
        let mut leftovers = Leftovers::default();
        let mut worth = |mib, books| leftovers.are_worth_it(&seen(mib), &books, BASELINE);
        assert!(!worth(123, books));
        let steps = Books { in_steps: Bytes::mib(1), ..books };
        assert!(!worth(140, steps), "a step may be using it");
        assert!(worth(140, books));
        // 6 MiB stay: nothing can be done about them, so nothing is done.
        leftovers.were_handed_back(&seen(126), &books, BASELINE);
        let mut worth = |mib| leftovers.are_worth_it(&seen(mib), &books, BASELINE);
        assert_eq!([126, 129, 131].map(&mut worth), [false, false, true]);
        // A model came to lie in the holes; what is left behind later counts from there.
        assert_eq!([121, 124, 126].map(&mut worth), [false, false, true]);
    }
}
