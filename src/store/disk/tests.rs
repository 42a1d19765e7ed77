mod archives;
mod arrivals;
mod crashes;
mod fetches;
mod notes;
mod paced;
mod room;
mod sharing;
mod tenants;
mod versions;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use roundhouse_types::TargetName;
use tempfile::TempDir;

use super::layout::{NAMED, entries, measure};
use super::*;
use crate::testing::{Faulty, MemoryStore};
use crate::{ArtifactStore, CatalogConfig, Freshness, Origin};

const LONG_AGO: Duration = Duration::from_secs(7200);

/// A store in memory behind scripted faults, a catalogue over it, a cache's folder.
struct Fixture {
    memory: Arc<MemoryStore>,
    faulty: Arc<Faulty>,
    catalog: Catalog,
    config: CacheConfig,
    folder: TempDir,
}

impl Fixture {
    fn new(size: Bytes) -> Self {
        Self::far_away(size, Duration::ZERO)
    }

    /// With so much time before each answer of the store.
    fn far_away(size: Bytes, latency: Duration) -> Self {
        let memory = Arc::new(MemoryStore::new("memory"));
        let faulty = Arc::new(Faulty::new(memory.clone()).with_latency(latency));
        let stores: Vec<(_, Arc<dyn ArtifactStore>)> = vec![(None, faulty.clone())];
        let catalog =
            Catalog::over("ep".parse().unwrap(), stores, CatalogConfig::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            part: Bytes(100_000),
            concurrency: 1,
            ..CacheConfig::new(folder.path().join("cache"), size)
        };
        Self { memory, faulty, catalog, config, folder }
    }

    /// Opens the cache; waits for the tasks of one that was dropped to give up its lock.
    async fn open(&self) -> DiskCache {
        loop {
            match DiskCache::open(self.config.clone()).await {
                Err(Error::Locked(_)) => tokio::task::yield_now().await,
                outcome => return outcome.unwrap(),
            }
        }
    }

    fn put(&self, key: &str, contents: impl Into<bytes::Bytes>) {
        self.memory.put_aged(key, contents, LONG_AGO);
    }

    async fn resolve(&self, target: &str) -> Arc<Artefact> {
        let target: TargetName = target.parse().unwrap();
        self.catalog.resolve(&target, Freshness::Fresh).await.unwrap()
    }

    async fn fetch(&self, disk: &DiskCache, target: &str) -> Result<CachedArtefact, Error> {
        let artefact = self.resolve(target).await;
        disk.fetch(&self.catalog, &artefact, &Progress::new()).await
    }

    /// Begins a fetch and drops it when the store has handed out all it will.
    async fn abandon(&self, disk: &DiskCache, target: &str) {
        let artefact = self.resolve(target).await;
        let progress = Progress::new();
        let fetch = disk.fetch(&self.catalog, &artefact, &progress);
        assert!(tokio::time::timeout(Duration::from_secs(1), fetch).await.is_err());
    }
}

/// Where the fixtures' store has a target.
fn origin(target: &str) -> Origin {
    Origin(format!("memory/{target}"))
}

fn model(target: &str) -> ModelId {
    ModelId { endpoint: "ep".parse().unwrap(), target: target.parse().unwrap() }
}

/// Bytes that differ everywhere.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// All files below a folder with their contents.
fn tree(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for path in entries(folder).unwrap() {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            files.extend(tree(&path).into_iter().map(|(below, c)| (format!("{name}/{below}"), c)));
        } else {
            files.push((name, std::fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

/// Asserts that no byte is in two ranges, and returns how many there are.
fn once(mut ranges: Vec<std::ops::Range<u64>>) -> u64 {
    ranges.sort_by_key(|range| range.start);
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "fetched twice: {pair:?}");
    }
    ranges.iter().map(|range| range.end - range.start).sum()
}
