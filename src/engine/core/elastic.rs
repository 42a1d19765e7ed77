//! The room of an engine's KV pool: asked for ahead, and given back between steps.

use std::sync::atomic::Ordering;
use std::time::Instant;

use roundhouse_types::KvOrder;

use super::{Engine, Work};
use crate::elastic::{Elastic, KvReporter};
use crate::free::free;

impl Engine {
    /// From now on the pool has what it is granted beyond its floor, and asks for it.
    pub(crate) fn with_ledger(mut self, report: KvReporter) -> Self {
        self.elastic = self.spec.kv.map(|kv| Elastic::new(kv, report));
        self
    }

    /// Without a ledger nobody minds: the pool has all of its chunks.
    pub(crate) fn without_ledger(mut self) -> Self {
        if let (Work::Generate(work), Some(kv)) = (&mut self.work, self.spec.kv) {
            work.scheduler.grow(kv.chunks() - kv.floor);
        }
        self.publish();
        self
    }

    /// The ledger has said something.
    pub(crate) fn kv_ordered(&mut self, order: KvOrder) {
        if let (Work::Generate(work), Some(elastic)) = (&mut self.work, &mut self.elastic) {
            work.scheduler.grow(elastic.ordered(order));
            work.scheduler.tighten(elastic.is_tight());
            self.review_room(Instant::now());
        }
    }

    /// Asks for what the pool lacks, and gives back what it has too much. Does not wait for an
    /// answer: steps go on with what there is.
    pub(crate) fn review_room(&mut self, now: Instant) {
        let (Work::Generate(work), Some(elastic)) = (&mut self.work, &mut self.elastic) else {
            return;
        };
        let wanted = work.scheduler.chunks_wanted();
        let surplus = elastic.surplus(work.scheduler.chunks_open(), wanted, now);
        let closed = work.scheduler.shrink(surplus);
        let freeing = elastic.say(work.scheduler.chunks_open(), wanted, closed.len());
        if let Some(freeing) = freeing {
            let memory: Vec<_> =
                closed.into_iter().filter_map(|chunk| self.runner.give_back(chunk)).collect();
            free(memory, freeing);
        }
        self.publish();
    }

    pub(super) fn publish_room(&self) {
        if let (Work::Generate(work), Some(kv)) = (&self.work, &self.spec.kv) {
            let open = work.scheduler.chunks_open() * kv.chunk;
            self.published.kv_blocks.store(open, Ordering::Relaxed);
            self.published.kv_used.store(work.scheduler.blocks(), Ordering::Relaxed);
        }
    }
}
