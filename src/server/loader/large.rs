//! How much is remembered of what strangers wrote.
//!
//! A plan of a model has some hundred bytes, that of an adapter names all its tensors, and what a file
//! says in it (labels, ends of sequences, patterns) may be megabytes. Those that are not small are
//! counted, and the largest go first: a few that are huge cost nobody else's plan.

use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::{ArtefactId, Bytes};

/// A plan of fewer bytes is bounded by the number of versions that are remembered.
const LARGE: Bytes = Bytes(2 << 10);
/// What all large plans may take together.
const MOST: Bytes = Bytes::mib(32);

/// The versions whose plans are large, with their bytes.
#[derive(Debug, Default)]
pub(super) struct LargePlans {
    bytes: BTreeMap<ArtefactId, Bytes>,
    by_size: BTreeSet<(Bytes, ArtefactId)>,
    total: Bytes,
}

impl LargePlans {
    /// Takes in what a version's plan takes now. Says whose plans are to be dropped for it; its own
    /// is not among them.
    pub(super) fn put(&mut self, id: &ArtefactId, bytes: Bytes) -> Vec<ArtefactId> {
        self.remove(id);
        if bytes < LARGE {
            return Vec::new();
        }
        let mut dropped = Vec::new();
        while self.total + bytes > MOST {
            let Some((_, largest)) = self.by_size.last().cloned() else { break };
            self.remove(&largest);
            dropped.push(largest);
        }
        self.bytes.insert(id.clone(), bytes);
        self.by_size.insert((bytes, id.clone()));
        self.total += bytes;
        dropped
    }

    /// A version is not remembered any more.
    pub(super) fn remove(&mut self, id: &ArtefactId) {
        if let Some((id, bytes)) = self.bytes.remove_entry(id) {
            self.by_size.remove(&(bytes, id));
            self.total = self.total.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use roundhouse_types::{ModelId, Version};

    use super::*;

    fn id(name: &str) -> ArtefactId {
        let model = ModelId { endpoint: "e".parse().unwrap(), target: name.parse().unwrap() };
        ArtefactId { model, version: Version::from_digest("ab") }
    }

    #[test]
    fn the_largest_plans_go_first_and_small_ones_are_not_counted() {
        let mut plans = LargePlans::default();
        assert!(plans.put(&id("a"), Bytes::mib(5)).is_empty());
        assert!(plans.put(&id("b"), Bytes::mib(15)).is_empty());
        for other in 0..1000 {
            assert!(plans.put(&id(&format!("small{other}")), Bytes(2_000)).is_empty());
        }
        assert_eq!(plans.put(&id("c"), Bytes::mib(20)), [id("b")]);
        // It is put again as it is at each step of a load.
        assert!(plans.put(&id("c"), Bytes::mib(20)).is_empty());
        // One that is too large by itself is remembered until the next one comes.
        assert_eq!(plans.put(&id("d"), Bytes::mib(100)), [id("c"), id("a")]);
        assert_eq!(plans.put(&id("e"), Bytes::mib(1)), [id("d")]);
        plans.remove(&id("e"));
        assert_eq!(plans.total, Bytes::ZERO);
        // Thousands of adapters are bounded, each of which is not much.
        let put = |at: usize| plans.put(&id(&format!("adapter{at}")), Bytes::kib(30)).len();
        let dropped: usize = (0..10_000).map(put).sum();
        assert_eq!(10_000 - dropped, (MOST.0 / Bytes::kib(30).0) as usize);
    }
}
