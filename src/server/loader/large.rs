//! How much is remembered of what strangers wrote.
//!
//! A plan has some hundred bytes, but what a file says in it (labels, ends of sequences, names) may
//! be megabytes. Few plans are large, so only those are counted, and the largest go first:
//! whoever uploads many of them costs nobody else's plan.

use std::collections::BTreeMap;

use roundhouse_types::{ArtefactId, Bytes};

/// A plan of fewer bytes is bounded by the number of versions that are remembered.
const LARGE: Bytes = Bytes(64 << 10);
/// What all large plans may take together.
const MOST: Bytes = Bytes::mib(64);

/// The versions whose plans are large, with their bytes.
#[derive(Debug, Default)]
pub(super) struct LargePlans(BTreeMap<ArtefactId, Bytes>);

impl LargePlans {
    /// Takes in what a version's plan takes now. Says whose plans are to be dropped for it; its own
    /// is not among them.
    pub(super) fn put(&mut self, id: &ArtefactId, bytes: Bytes) -> Vec<ArtefactId> {
        self.0.remove(id);
        if bytes < LARGE {
            return Vec::new();
        }
        let mut dropped = Vec::new();
        let mut total: Bytes = self.0.values().copied().sum::<Bytes>() + bytes;
        while total > MOST {
            let largest = self.0.iter().max_by_key(|(_, bytes)| **bytes);
            let Some((largest, freed)) = largest.map(|(id, bytes)| (id.clone(), *bytes)) else {
                break;
            };
            total = total.saturating_sub(freed);
            self.0.remove(&largest);
            dropped.push(largest);
        }
        self.0.insert(id.clone(), bytes);
        dropped
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
        assert!(plans.put(&id("a"), Bytes::mib(10)).is_empty());
        assert!(plans.put(&id("b"), Bytes::mib(30)).is_empty());
        for other in 0..1000 {
            assert!(plans.put(&id(&format!("small{other}")), Bytes(60_000)).is_empty());
        }
        assert_eq!(plans.put(&id("c"), Bytes::mib(40)), [id("b")]);
        // It is put again as it is at each step of a load.
        assert!(plans.put(&id("c"), Bytes::mib(40)).is_empty());
        // One that is too large by itself is remembered until the next one comes.
        assert_eq!(plans.put(&id("d"), Bytes::mib(100)), [id("c"), id("a")]);
        assert_eq!(plans.put(&id("e"), Bytes::mib(1)), [id("d")]);
    }
}
