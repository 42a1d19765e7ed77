//! The most memory each version of a handler was seen to use, kept across restarts.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use roundhouse_types::Bytes;
use tracing::warn;

/// Versions remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// The file in a server's folder for handlers.
const FILE: &str = "peaks.json";

/// The most that a version was seen to use by the server whose folder for handlers this is,
/// running or not. Blocking.
pub fn remembered(dir: &Path, version: &str) -> Option<Bytes> {
    let text = fs::read(dir.join(FILE)).ok()?;
    let saved: BTreeMap<String, u64> = serde_json::from_slice(&text).ok()?;
    saved.get(version).copied().map(Bytes)
}

/// Peaks by version. The file is rewritten whole; the lock is held for a look-up.
#[derive(Debug)]
pub(crate) struct Peaks {
    path: PathBuf,
    known: Mutex<LruCache<String, Bytes>>,
}

impl Peaks {
    /// Reads what was remembered in a folder; a file that cannot be read is begun anew.
    pub(crate) fn open(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let mut known = LruCache::new(REMEMBERED);
        let read = fs::read(&path).map(|text| serde_json::from_slice(&text));
        let saved: BTreeMap<String, u64> = match read {
            Ok(Ok(saved)) => saved,
            Ok(Err(error)) => {
                warn!(path = %path.display(), %error, "remembered memory peaks are unreadable");
                BTreeMap::new()
            }
            Err(_) => BTreeMap::new(),
        };
        for (version, bytes) in saved {
            known.put(version, Bytes(bytes));
        }
        Self { path, known: Mutex::new(known) }
    }

    /// The most that this version was seen to use.
    pub(crate) fn get(&self, version: &str) -> Option<Bytes> {
        self.known().get(version).copied()
    }

    /// It was seen to use this much. Writes the file where that is news. Blocking.
    pub(crate) fn seen(&self, version: &str, peak: Bytes) {
        let all: BTreeMap<String, u64> = {
            let mut known = self.known();
            if known.peek(version).is_some_and(|before| *before >= peak) {
                return;
            }
            known.put(version.to_owned(), peak);
            known.iter().map(|(version, bytes)| (version.clone(), bytes.0)).collect()
        };
        if let Err(error) = self.save(&all) {
            warn!(path = %self.path.display(), %error, "memory peaks cannot be remembered");
        }
    }

    fn save(&self, all: &BTreeMap<String, u64>) -> io::Result<()> {
        let partial = self.path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec(all).map_err(io::Error::other)?)?;
        fs::rename(&partial, &self.path)
    }

    fn known(&self) -> MutexGuard<'_, LruCache<String, Bytes>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_survive_a_restart_and_never_shrink() {
        let dir = tempfile::tempdir().unwrap();
        let peaks = Peaks::open(dir.path());
        peaks.seen("a", Bytes(10));
        peaks.seen("a", Bytes(7));
        assert_eq!(Peaks::open(dir.path()).get("a"), Some(Bytes(10)));
        assert_eq!(remembered(dir.path(), "a"), Some(Bytes(10)));
        assert_eq!(remembered(dir.path(), "b"), None);
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(Peaks::open(dir.path()).get("a"), None);
        assert_eq!(remembered(dir.path(), "a"), None);
    }
}
