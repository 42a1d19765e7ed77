//! What callers hold of a version on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use roundhouse_types::{ArtefactId, Bytes};

use super::held::Held;
use super::layout::FILES;
use super::manifest::DiskFile;
use crate::{Artefact, Error};

/// A whole artefact on disk. Its files are not removed while this or a clone lives.
#[derive(Debug, Clone)]
pub struct CachedArtefact {
    pub(super) held: Arc<Held>,
    dir: PathBuf,
}

impl CachedArtefact {
    pub(super) fn new(held: Arc<Held>) -> Self {
        let dir = held.folder.join(FILES);
        Self { held, dir }
    }

    /// The folder with the model's files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which version of which model it is.
    pub fn id(&self) -> &ArtefactId {
        &self.held.manifest.artefact.id
    }

    /// The version as the store had it when it was fetched.
    pub fn artefact(&self) -> &Artefact {
        &self.held.manifest.artefact
    }

    /// The files, in the byte order of their paths; an archive's contents if it was one.
    pub fn files(&self) -> &[DiskFile] {
        &self.held.manifest.files
    }

    /// What it takes on disk, with what it has in common with others.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.held.bytes)
    }

    /// Fills a buffer with a file's bytes from `offset` on, also where another version holds
    /// them for this one. Blocking.
    ///
    /// # Errors
    /// When there is no such file, it ends before the buffer is full, or it cannot be read.
    pub fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.held.read_at(path, offset, buffer)
    }

    /// Takes the version out of the cache, because its bytes were found to be damaged. The files
    /// go when nobody holds it. Blocking.
    ///
    /// # Errors
    /// When a restart would find it again.
    pub fn give_up(&self) -> Result<(), Error> {
        self.held.give_up()
    }
}
