//! The disk cache, opened for the first store: at the start, or when the settings name one later.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use roundhouse_store::{CacheConfig, DiskCache};
use tokio::sync::OnceCell;
use tracing::warn;

use crate::config::Config;
use crate::error::Error;
use crate::limits;

/// What to do where another process has the disk cache.
const OTHER_CACHE: &str = "another server uses it: end that one, or give this one a folder of its own with --cache-dir (cache.dir)";

/// The folder of fetched models. A server without a store has none, and locks none. Clones are the
/// same.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<OnceCell<(DiskCache, PathBuf)>>);

impl Disk {
    /// The cache, once there was a store.
    pub(crate) fn opened(&self) -> Option<&DiskCache> {
        self.0.get().map(|(cache, _)| cache)
    }

    /// Its folder, once there was a store.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.0.get().map(|(_, folder)| folder.as_path())
    }

    /// The cache, opened by these settings if that was not done. They hold for it until the server ends.
    ///
    /// # Errors
    /// When its folder cannot be used, or is another server's.
    pub(super) async fn open(&self, config: &Config) -> Result<&DiskCache, Error> {
        self.0.get_or_try_init(|| open(config)).await.map(|(cache, _)| cache)
    }
}

async fn open(config: &Config) -> Result<(DiskCache, PathBuf), Error> {
    let dir = &config.cache.dir;
    let size = match config.cache.size {
        Some(size) => size,
        None => {
            let free = limits::free_disk(dir).map_err(|source| {
                Error::io(format!("cannot see the free disk of {}", dir.display()), source)
            })?;
            limits::automatic_cache_size(free, limits::held_disk(dir))
        }
    };
    if let (Some(size), Ok(free)) = (config.cache.size, limits::free_disk(dir))
        && size > free
        && size > free.checked_add(limits::held_disk(dir)).unwrap_or(size)
    {
        warn!(%size, %free, "the disk cache may hold more than is free: lower cache.size (--cache-size)");
    }
    let cache = CacheConfig {
        part: config.store.part_size,
        in_flight: config.store.bytes_in_flight,
        concurrency: config.store.parts_in_flight,
        unpacked: config.cache.max_unpacked,
        ..CacheConfig::new(dir, size)
    };
    let opened = DiskCache::open(cache).await.map_err(|error| {
        let is_locked = matches!(error, roundhouse_store::Error::Locked(_));
        let error = Error::Failed(error.into());
        if is_locked { error.with_hint(OTHER_CACHE) } else { error }
    })?;
    Ok((opened, dir.clone()))
}
