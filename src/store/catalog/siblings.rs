//! What versions beside each other are made of.
//!
//! Fleets of adapters are folders of the same few small files. Where the last two versions that settled
//! in a folder were alike, the next one that nothing is known of is guessed to be like them: its files
//! are asked for while the store lists it, which saves a round trip of the few that a cold start takes.

use std::sync::Arc;

use moka::future::Cache;

use super::reads::WHOLE;
use crate::Artefact;

/// Folders of targets that are remembered.
const REMEMBERED: u64 = 10_000;
/// Files that are asked for on a guess, at most: each costs two requests.
const FILES: usize = 3;

/// What the small version that settled last in each folder was made of.
pub(super) struct Siblings(Cache<String, Arc<Sibling>>);

/// A version of few small files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sibling {
    /// Paths and sizes.
    pub(super) files: Vec<(String, u64)>,
    /// Whether the one that settled before had the same files.
    is_alike: bool,
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
        let before = self.0.get(folder(key)).await;
        let is_alike = before.is_some_and(|before| {
            before.files.iter().map(|(path, _)| path).eq(files.iter().map(|(path, _)| path))
        });
        self.0.insert(folder(key).to_owned(), Arc::new(Sibling { files, is_alike })).await;
    }

    /// What a target under this key is likely to be made of.
    pub(super) async fn like(&self, key: &str) -> Option<Arc<Sibling>> {
        self.0.get(folder(key)).await.filter(|sibling| sibling.is_alike)
    }
}

/// The folder that a target lies in.
fn folder(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(folder, _)| folder)
}
