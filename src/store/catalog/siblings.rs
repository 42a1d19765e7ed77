//! What versions beside each other are made of.
//!
//! Fleets of adapters are folders of the same few small files. A folder that nothing is known of is
//! guessed to be like the one beside it: its files are asked for while the store lists it, which saves
//! a round trip of the few that a cold start takes.

use std::sync::Arc;

use moka::future::Cache;

use super::reads::WHOLE;
use crate::Artefact;

/// Folders of targets that are remembered.
const REMEMBERED: u64 = 10_000;
/// Files that are asked for on a guess, at most: each costs two requests.
const FILES: usize = 3;

/// The files of the small version that settled last in each folder: paths and sizes.
pub(super) struct Siblings(Cache<String, Arc<[(String, u64)]>>);

impl Siblings {
    pub(super) fn new() -> Self {
        Self(Cache::new(REMEMBERED))
    }

    /// A version settled under this key.
    pub(super) async fn settled(&self, key: &str, artefact: &Artefact) {
        let is_small = artefact.files.len() <= FILES && artefact.bytes.0 <= WHOLE;
        if is_small && artefact.archive.is_none() {
            let files = artefact.files.iter().map(|file| (file.path.clone(), file.size)).collect();
            self.0.insert(folder(key).to_owned(), files).await;
        }
    }

    /// What a target under this key may have.
    pub(super) async fn files(&self, key: &str) -> Option<Arc<[(String, u64)]>> {
        self.0.get(folder(key)).await
    }
}

/// The folder that a target lies in.
fn folder(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(folder, _)| folder)
}
