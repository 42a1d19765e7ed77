//! What versions beside each other are made of.
//!
//! Fleets of adapters are folders of the same few small files. Where the last two such targets that
//! settled in a folder were alike, the next one that nothing is known of is guessed to be like them:
//! its files are asked for while the store lists it, which saves a round trip of the few that a cold
//! start takes. What is directly in the mount is nobody's sibling.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use moka::future::Cache;

use super::reads::WHOLE;
use crate::Artefact;

/// Folders of targets that are remembered.
const REMEMBERED: u64 = 10_000;
/// Files that are asked for on a guess, at most: each costs two requests.
const FILES: usize = 3;
/// Wrong guesses after which none is made before the next target settles: names that nobody has are
/// asked for as well.
const MISSES: u32 = 8;

/// What the small version that settled last in each folder was made of.
pub(super) struct Siblings(Cache<String, Arc<Sibling>>);

/// A version of few small files.
#[derive(Debug)]
pub(super) struct Sibling {
    key: String,
    /// Paths and sizes.
    pub(super) files: Vec<(String, u64)>,
    /// Whether another target, which settled before, had the same files.
    is_alike: bool,
    /// Guesses by it that were wrong.
    misses: AtomicU32,
}

impl Sibling {
    /// A guess by it was wrong.
    pub(super) fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }
}

impl Siblings {
    pub(super) fn new() -> Self {
        Self(Cache::new(REMEMBERED))
    }

    /// A version settled under this key.
    pub(super) async fn settled(&self, key: &str, artefact: &Artefact) {
        let is_small = artefact.files.len() <= FILES && artefact.bytes.0 <= WHOLE;
        if !is_small || artefact.archive.is_some() {
            return;
        }
        let files: Vec<_> =
            artefact.files.iter().map(|file| (file.path.clone(), file.size)).collect();
        let Some(folder) = folder(key) else { return };
        let before = self.0.get(folder).await;
        let is_alike = before.is_some_and(|before| {
            let same =
                before.files.iter().map(|(path, _)| path).eq(files.iter().map(|(path, _)| path));
            same && (before.key != key || before.is_alike)
        });
        let (key, misses) = (key.to_owned(), AtomicU32::new(0));
        self.0.insert(folder.to_owned(), Arc::new(Sibling { key, files, is_alike, misses })).await;
    }

    /// What a target under this key is likely to be made of.
    pub(super) async fn like(&self, key: &str) -> Option<Arc<Sibling>> {
        let sibling = self.0.get(folder(key)?).await?;
        let may = sibling.is_alike && sibling.misses.load(Ordering::Relaxed) < MISSES;
        may.then_some(sibling)
    }
}

/// The folder that a target lies in.
fn folder(key: &str) -> Option<&str> {
    key.rsplit_once('/').map(|(folder, _)| folder)
}
