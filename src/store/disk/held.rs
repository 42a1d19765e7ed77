//! One version that is whole on disk, for as long as somebody knows it.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, Weak};

use super::layout::MANIFEST;
use super::ledger::{Ledger, off_thread};
use super::manifest::Manifest;
use super::recipe::{self, Recipe};
use crate::{Error, metrics};

/// One whole artefact. Alive while the ledger or a guard knows it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) manifest: Manifest,
    pub(super) folder: PathBuf,
    /// What it takes where it shares with nobody.
    pub(super) bytes: u64,
    /// Set once. A read of a file that may borrow is done under it, so that a hole is made
    /// when nobody reads there any more.
    recipe: RwLock<Option<Recipe>>,
    ledger: Weak<Ledger>,
    /// Purged: the files go when the last guard goes.
    doomed: AtomicBool,
    /// Read by path: nothing of it is taken from others.
    apart: AtomicBool,
}

impl Held {
    pub(super) fn new(
        (manifest, recipe): (Manifest, Option<Recipe>),
        folder: PathBuf,
        ledger: Weak<Ledger>,
    ) -> Self {
        let (bytes, recipe) = (manifest.charge(), RwLock::new(recipe));
        let (doomed, apart) = (AtomicBool::new(false), AtomicBool::new(false));
        if is_adapter(&manifest) {
            metrics::disk_adapters(1);
        }
        Self { manifest, folder, bytes, recipe, ledger, doomed, apart }
    }

    /// Its files go when the last one lets go of it.
    pub(super) fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    /// Nothing of it is taken from others from now on.
    pub(super) fn set_apart(&self) {
        self.apart.store(true, Ordering::Release);
    }

    /// Whether nothing of it is taken from others.
    pub(super) fn is_apart(&self) -> bool {
        self.apart.load(Ordering::Acquire)
    }

    /// With whom it shares, once it was offered.
    pub(super) fn recipe(&self) -> Option<Recipe> {
        self.recipe.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether some of its bytes lie in other versions' files.
    pub(super) fn borrows(&self) -> bool {
        let recipe = self.recipe.read().unwrap_or_else(PoisonError::into_inner);
        recipe.as_ref().is_some_and(|recipe| !recipe.borrowed.is_empty())
    }

    /// Reads by this recipe from now on. Waits for reads under way.
    pub(super) fn follow(&self, recipe: Recipe) {
        *self.recipe.write().unwrap_or_else(PoisonError::into_inner) = Some(recipe);
    }

    /// Takes it out of sight, because it is damaged. Blocks.
    pub(super) fn give_up(&self) -> Result<(), Error> {
        let Some(ledger) = self.ledger.upgrade() else { return Ok(()) };
        let id = &self.manifest.artefact.id;
        // Another folder of the version may be there by now.
        if ledger.lists(self) {
            ledger.purge(id).map_or(Ok(()), |held| held.forget())
        } else {
            Ok(())
        }
    }

    /// Lets no restart find it whole while somebody still holds it. Blocks.
    pub(super) fn forget(&self) -> Result<(), Error> {
        let manifest = self.folder.join(MANIFEST);
        std::fs::remove_file(&manifest).map_err(|error| Error::io("remove", &manifest, error))
    }

    /// Fills a buffer with a file's bytes from `offset` on, wherever they lie. Blocks.
    pub(super) fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let recipe = self.recipe.read().unwrap_or_else(PoisonError::into_inner);
        recipe::read_at(&self.folder, path, recipe.as_ref(), offset, buffer)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if is_adapter(&self.manifest) {
            metrics::disk_adapters(-1);
        }
        let Some(ledger) = self.ledger.upgrade().filter(|_| *self.doomed.get_mut()) else {
            return;
        };
        let folder = std::mem::take(&mut self.folder);
        off_thread(move || ledger.delete_logged(&folder));
    }
}

fn is_adapter(manifest: &Manifest) -> bool {
    manifest.files.iter().any(|file| file.path == "adapter_config.json")
}
