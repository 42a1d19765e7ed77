//! A KV pool that grows and shrinks, and what it and its ledger tell each other.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use roundhouse_types::{Bytes, KvOrder, KvReport};

use crate::plan::KvSpec;

/// Takes in what a pool says. Called on the lane's thread and on those that free memory; it must
/// not block.
pub type KvReporter = Box<dyn Fn(KvReport) + Send + Sync>;

/// For so long a pool keeps chunks that it does not need while nobody else does: the next burst
/// of requests finds them, and prefixes in them stay known.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(5);

/// How much room a generative engine's KV pool has: a snapshot, for pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvRoom {
    /// Positions per block.
    pub block_tokens: usize,
    /// Blocks that it always has.
    pub floor: usize,
    /// Blocks that it has now.
    pub now: usize,
    /// Blocks that it may have at most.
    pub most: usize,
    /// Blocks of sequences that run now.
    pub used: usize,
}

/// One pool's side of the agreement. Owned by its engine.
pub(crate) struct Elastic {
    account: Arc<Account>,
    spec: KvSpec,
    /// What the ledger has granted, as far as it was heard.
    granted: Bytes,
    /// Whether chunks go back as soon as they are free.
    is_tight: bool,
    /// The order that is carried out when what it has let go of is free.
    order: u64,
    /// Since when it has had more chunks than it needed, and the most that it needed since.
    surplus: Option<(Instant, usize)>,
}

/// What is told to the ledger, in its order.
struct Account {
    report: KvReporter,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    report: KvReport,
    /// The latest order. It is carried out when nothing is being freed.
    order: u64,
    /// Chunks on their way back to the system, in how many goes.
    freeing: usize,
}

impl Elastic {
    pub(crate) fn new(spec: KvSpec, report: KvReporter) -> Self {
        let said = Said {
            report: KvReport { chunk: spec.chunk_bytes, ..KvReport::default() },
            ..Said::default()
        };
        let account = Arc::new(Account { report, said: Mutex::new(said) });
        Self { account, spec, granted: Bytes::ZERO, is_tight: false, order: 0, surplus: None }
    }

    /// Takes an order in and says how many chunks more the pool may have.
    pub(crate) fn ordered(&mut self, order: KvOrder) -> usize {
        let more = order.granted.saturating_sub(self.granted);
        self.granted = self.granted.max(order.granted);
        self.is_tight = order.tight;
        self.order = order.number;
        self.chunks(more)
    }

    /// How many chunks a pool that has `open` and needs `wanted` of them should let go now.
    pub(crate) fn surplus(&mut self, open: usize, wanted: usize, now: Instant) -> usize {
        if self.is_tight {
            self.surplus = None;
            return open - self.spec.floor;
        }
        let before = self.surplus.take();
        if open <= wanted {
            return 0;
        }
        let (since, most) = before.map_or((now, wanted), |(since, most)| (since, most.max(wanted)));
        if now.saturating_duration_since(since) < KEPT_FOR {
            self.surplus = Some((since, most));
            return 0;
        }
        open - most
    }

    /// Says what has changed: a pool that has `open` chunks needs `wanted`, and is letting go of
    /// some where `freeing` says how many. The answer is dropped when their memory is free.
    pub(crate) fn say(&self, open: usize, wanted: usize, freeing: usize) -> Option<Freeing> {
        let more = Bytes(wanted.saturating_sub(open) as u64 * self.spec.chunk_bytes.0);
        self.account.tell(|said| {
            said.report.wanted = self.granted + more;
            said.order = self.order;
            said.freeing += usize::from(freeing > 0);
        });
        let bytes = Bytes(freeing as u64 * self.spec.chunk_bytes.0);
        (freeing > 0).then(|| Freeing { account: Arc::clone(&self.account), bytes })
    }

    /// Whether others need what the pool can spare.
    pub(crate) fn is_tight(&self) -> bool {
        self.is_tight
    }

    fn chunks(&self, bytes: Bytes) -> usize {
        let chunks = bytes.0 / self.spec.chunk_bytes.0.max(1);
        usize::try_from(chunks).unwrap_or(usize::MAX)
    }
}

impl fmt::Debug for Elastic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elastic").field("granted", &self.granted).finish_non_exhaustive()
    }
}

impl Account {
    /// Changes what is said, and says it where that made a difference. Said in the order of the
    /// changes: a later word must not be overtaken by an earlier one.
    fn tell(&self, change: impl FnOnce(&mut Said)) {
        let mut said = self.lock();
        let before = said.report;
        change(&mut said);
        if said.freeing == 0 {
            said.report.obeyed = said.order;
        }
        if said.report != before {
            (self.report)(said.report);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chunks whose memory is on its way back; dropped when it is there.
pub(crate) struct Freeing {
    account: Arc<Account>,
    bytes: Bytes,
}

impl Drop for Freeing {
    fn drop(&mut self) {
        self.account.tell(|said| {
            said.freeing -= 1;
            said.report.returned += self.bytes;
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    const CHUNK: u64 = 10;

    fn elastic() -> (Elastic, Receiver<KvReport>) {
        let (said, heard) = channel();
        let spec =
            KvSpec { block_tokens: 4, blocks: 32, chunk: 4, floor: 2, chunk_bytes: Bytes(CHUNK) };
        let report = Box::new(move |report| said.send(report).expect("the test listens"));
        (Elastic::new(spec, report), heard)
    }

    #[test]
    fn what_is_wanted_is_a_sum_over_all_time_and_is_said_once() {
        let (mut elastic, heard) = elastic();
        elastic.say(2, 5, 0);
        elastic.say(2, 5, 0);
        assert_eq!(heard.try_iter().map(|it| it.wanted).collect::<Vec<_>>(), [Bytes(30)]);
        let order = KvOrder { granted: Bytes(20), tight: false, number: 1 };
        assert_eq!(elastic.ordered(order), 2);
        assert_eq!(elastic.ordered(order), 0, "a sum, not a gift");
        elastic.say(4, 5, 0);
        let last = heard.try_iter().last().unwrap();
        assert_eq!((last.wanted, last.obeyed), (Bytes(30), 1));
    }

    #[test]
    fn an_order_is_carried_out_when_the_memory_is_free() {
        let (mut elastic, heard) = elastic();
        elastic.ordered(KvOrder { granted: Bytes(30), tight: true, number: 7 });
        assert_eq!(elastic.surplus(5, 2, Instant::now()), 3);
        let freeing = elastic.say(3, 2, 2);
        let said = heard.try_iter().last().unwrap();
        assert_eq!((said.obeyed, said.returned), (0, Bytes::ZERO));
        drop(freeing);
        let said = heard.try_iter().last().unwrap();
        assert_eq!((said.obeyed, said.returned), (7, Bytes(20)));
    }

    #[test]
    fn what_is_not_needed_is_kept_for_a_while_unless_room_is() {
        let (mut elastic, _heard) = elastic();
        let now = Instant::now();
        assert_eq!(elastic.surplus(6, 3, now), 0);
        assert_eq!(elastic.surplus(6, 6, now + KEPT_FOR), 0, "it was needed again");
        assert_eq!(elastic.surplus(6, 3, now + KEPT_FOR), 0);
        assert_eq!(elastic.surplus(6, 3, now + 2 * KEPT_FOR), 3);
        assert_eq!(elastic.surplus(6, 5, now), 0);
        assert_eq!(elastic.surplus(6, 3, now + KEPT_FOR), 1, "all that was needed meanwhile stays");
        elastic.ordered(KvOrder { granted: Bytes::ZERO, tight: true, number: 1 });
        assert_eq!(elastic.surplus(6, 6, now), 4, "all but the floor, as far as it is free");
    }
}
