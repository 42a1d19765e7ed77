//! What an artefact on disk is: who it is, where it came from, what its files hold.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::extents::BLOCK;
use super::layout::{FILES, MANIFEST, charge, write_durably};
use super::pieces::{Digest, Piece};
use crate::{Artefact, Error, Origin};

/// The version of the manifest's shape.
const FORMAT: u32 = 2;
/// What a piece takes in the manifest.
const PIECE_RECORD: u64 = 112;

/// One file of an artefact on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFile {
    /// Relative to the artefact's folder.
    pub path: String,
    /// In bytes.
    pub size: u64,
    /// The digest of its pieces as they were when they were verified.
    pub digest: Digest,
    /// What it consists of, in order.
    pub pieces: Vec<Piece>,
}

/// Stands beside the files. In a partial folder `files` is empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    pub(super) artefact: Artefact,
    /// Where it was fetched from. Manifests of before this was written down have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) origin: Option<Origin>,
    pub(super) files: Vec<DiskFile>,
    pub(super) fetched_at: SystemTime,
}

impl Manifest {
    pub(super) fn new(artefact: &Artefact, origin: &Origin, files: Vec<DiskFile>) -> Self {
        let (fetched_at, origin) = (SystemTime::now(), Some(origin.clone()));
        Self { format: FORMAT, artefact: artefact.clone(), origin, files, fetched_at }
    }

    /// Reads a folder's manifest; `None` if there is none that can be read.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let text = fs::read(folder.join(MANIFEST)).ok()?;
        let manifest: Self = serde_json::from_slice(&text).ok()?;
        (manifest.format == FORMAT).then_some(manifest)
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::Internal(format!("a manifest cannot be written: {error}")))?;
        write_durably(&folder.join(MANIFEST), &text)
    }

    /// Whether every file is in the folder with its size.
    pub(super) fn is_whole(&self, folder: &Path) -> bool {
        let files = folder.join(FILES);
        !self.files.is_empty()
            && self.files.iter().all(|file| {
                fs::symlink_metadata(files.join(&file.path))
                    .is_ok_and(|found| found.is_file() && found.len() == file.size)
            })
    }

    /// What the files take on disk where nobody else has any of them.
    pub(super) fn charge(&self) -> u64 {
        let pieces: u64 = self.files.iter().map(|file| file.pieces.len() as u64).sum();
        let files = charge_all(self.files.iter().map(|file| file.size));
        files.saturating_add(pieces.saturating_mul(PIECE_RECORD))
    }

    /// The part of [`Manifest::charge`] that is not blocks of the files.
    pub(super) fn overhead(&self) -> u64 {
        let blocks: u64 = self.files.iter().map(|file| file.size.div_ceil(BLOCK) * BLOCK).sum();
        self.charge().saturating_sub(blocks)
    }
}

/// What files of these sizes take on disk, with the manifest.
pub(super) fn charge_all(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(charge(0).saturating_add(16_384), |total, size| total.saturating_add(charge(size)))
}
