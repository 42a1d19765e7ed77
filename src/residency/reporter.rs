//! How a loaded model tells that its memory changed or that it died.

use std::fmt;
use std::sync::{Arc, PoisonError};

use roundhouse_types::{Failure, Footprint, KvOrder, KvReport};

use crate::sync::{Mutex, MutexGuard, UnboundedSender};
use crate::table::Key;

/// Tells the table about one load of one artefact, from then until it is unloaded.
///
/// Calls only leave a note and never wait. A note about a model that is gone is
/// ignored, also when the same artefact has been loaded again meanwhile: every load gets a
/// reporter of its own. Clones report about the same load.
#[derive(Clone)]
pub struct Reporter {
    slot: Arc<Slot>,
}

impl Reporter {
    /// The model takes this much from now on. Of several measures that were not looked at
    /// yet the latest counts; one that is made before `load` returns is older than the
    /// footprint that `load` returns.
    pub fn measured(&self, footprint: Footprint) {
        self.slot.note(|notes| notes.measured = Some(footprint));
    }

    /// The model's KV pool needs, or has given back, what `report` says. The latest word counts.
    pub fn kv(&self, report: KvReport) {
        self.slot.note(|notes| notes.kv = Some(report));
    }

    /// From now on the model's KV pool hears by `listener` what the ledger says to it, until it is
    /// unloaded. It is called by the owner of the table and must not block.
    pub fn listen_for_kv(&self, listener: impl Fn(KvOrder) + Send + Sync + 'static) {
        let mut state = self.slot.lock();
        if state.phase != Phase::Closed {
            state.listener = Some(Arc::new(listener));
        }
    }

    /// The model is gone by itself and serves nobody any more. It gets no new leases from
    /// now on and is unloaded when the last one ends. The first of several deaths counts.
    pub fn died(&self, failure: Failure) {
        self.slot.note(|notes| {
            notes.died.get_or_insert(failure);
        });
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter")
            .field("artefact", &self.slot.key.artefact)
            .finish_non_exhaustive()
    }
}

/// What was reported and not looked at yet.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) measured: Option<Footprint>,
    pub(crate) kv: Option<KvReport>,
    pub(crate) died: Option<Failure>,
}

/// The notes of one load. Reporters write, the owner of the table takes; it is in the
/// owner's inbox at most once, however often something is reported.
pub(crate) struct Slot {
    pub(crate) key: Key,
    inbox: UnboundedSender<Arc<Slot>>,
    /// Held for a few instructions only.
    state: Mutex<State>,
}

/// Hears what the ledger says to a KV pool.
type Listener = Arc<dyn Fn(KvOrder) + Send + Sync>;

struct State {
    phase: Phase,
    listener: Option<Listener>,
    notes: Notes,
    /// Whether the slot lies in the inbox.
    queued: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The table does not know yet that the load has ended: notes are kept.
    Loading,
    /// On the device: notes are passed on.
    Live,
    /// Gone: notes are ignored.
    Closed,
}

impl Slot {
    pub(crate) fn new(key: Key, inbox: UnboundedSender<Arc<Self>>) -> Arc<Self> {
        let (phase, notes) = (Phase::Loading, Notes::default());
        let state = State { phase, listener: None, notes, queued: false };
        Arc::new(Self { key, inbox, state: Mutex::new(state) })
    }

    pub(crate) fn reporter(self: &Arc<Self>) -> Reporter {
        Reporter { slot: Arc::clone(self) }
    }

    /// The loader has returned: measures made before are older than what it returned.
    pub(crate) fn load_returned(&self) {
        self.lock().notes.measured = None;
    }

    /// The owner has seen the end of the load: takes what was kept until then, and has
    /// further notes sent.
    pub(crate) fn open(&self) -> Notes {
        let mut state = self.lock();
        state.phase = Phase::Live;
        std::mem::take(&mut state.notes)
    }

    /// Takes what was reported since it was last taken, for the one that found the slot in
    /// the inbox.
    pub(crate) fn take(&self) -> Notes {
        let mut state = self.lock();
        state.queued = false;
        std::mem::take(&mut state.notes)
    }

    /// The model is off its device.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.phase = Phase::Closed;
        state.listener = None;
        state.notes = Notes::default();
    }

    /// Tells the model's KV pool what the ledger says, if it listens.
    pub(crate) fn order_kv(&self, order: KvOrder) {
        let listener = self.lock().listener.clone();
        if let Some(listener) = listener {
            listener(order);
        }
    }

    fn note(self: &Arc<Self>, write: impl FnOnce(&mut Notes)) {
        let mut state = self.lock();
        if state.phase == Phase::Closed {
            return;
        }
        write(&mut state.notes);
        if state.phase == Phase::Live && !state.queued {
            state.queued = true;
            // With the owner gone there is nobody left to tell.
            let _ = self.inbox.send(Arc::clone(self));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use roundhouse_types::{Bytes, DeviceId, ErrorKind};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::testing::artefact;

    fn slot() -> (Arc<Slot>, UnboundedReceiver<Arc<Slot>>) {
        let (inbox, received) = unbounded_channel();
        let key = Key { artefact: artefact("a", 1), device: DeviceId::Cpu };
        (Slot::new(key, inbox), received)
    }

    fn takes(bytes: u64) -> Footprint {
        Footprint { host: Bytes(bytes), ..Footprint::default() }
    }

    fn gone(why: &str) -> Failure {
        Failure::new(ErrorKind::ModelFailed, why)
    }

    #[test]
    fn what_is_reported_before_the_load_was_seen_is_kept_and_not_sent() {
        let (slot, inbox) = slot();
        slot.reporter().measured(takes(1));
        slot.load_returned();
        slot.reporter().died(gone("early"));
        slot.reporter().measured(takes(2));
        assert!(inbox.is_empty());
        let notes = slot.open();
        assert_eq!(notes.measured, Some(takes(2)));
        assert_eq!(notes.died.unwrap().message(), "early");
    }

    #[test]
    fn a_measure_of_the_time_before_the_load_returned_is_older_than_its_footprint() {
        let (slot, _inbox) = slot();
        slot.reporter().measured(takes(1));
        slot.reporter().died(gone("early"));
        slot.load_returned();
        let notes = slot.open();
        assert!(notes.measured.is_none() && notes.died.is_some());
    }

    #[test]
    fn however_often_something_is_reported_it_lies_in_the_inbox_once() {
        let (slot, mut inbox) = slot();
        slot.open();
        for bytes in 0..1000 {
            slot.reporter().measured(takes(bytes));
            slot.reporter().died(gone(if bytes == 0 { "first" } else { "again" }));
        }
        assert_eq!(inbox.len(), 1);
        let notes = inbox.try_recv().unwrap().take();
        assert_eq!((notes.measured, notes.died.unwrap().message()), (Some(takes(999)), "first"));
        slot.reporter().measured(takes(7));
        assert_eq!(inbox.try_recv().unwrap().take().measured, Some(takes(7)));
    }

    #[test]
    fn what_is_off_its_device_reports_nothing_any_more() {
        let (slot, mut inbox) = slot();
        slot.open();
        slot.reporter().measured(takes(1));
        slot.close();
        slot.reporter().died(gone("late"));
        let notes = inbox.try_recv().unwrap().take();
        assert!(notes.measured.is_none() && notes.died.is_none());
        assert!(inbox.is_empty());
    }
}
