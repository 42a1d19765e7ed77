//! What is computed of one file's bytes: fed in order, each byte once.

use super::manifest::DiskFile;
use super::pieces::{Pieces, digest_of};
use super::verify::Check;
use crate::Checksum;

/// Computes a file's entry in the manifest from its bytes, as they arrive, as an archive
/// yields them, or as they are read again.
pub(super) struct FileDigester {
    path: String,
    size: u64,
    pieces: Pieces,
    check: Option<Check>,
}

impl FileDigester {
    /// For a file of this many bytes, with the store's checksum to compare with if there is one.
    pub(super) fn new(path: &str, size: u64, expected: Option<Checksum>) -> Self {
        let (pieces, check) = (Pieces::new(path, size), expected.map(Check::new));
        Self { path: path.to_owned(), size, pieces, check }
    }

    /// Takes in the bytes that follow.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.pieces.update(bytes);
        if let Some(check) = &mut self.check {
            check.update(bytes);
        }
    }

    /// The file as the manifest lists it, or what does not match.
    pub(super) fn finish(self) -> Result<DiskFile, String> {
        let Self { path, size, pieces, check } = self;
        if pieces.length() != size {
            return Err(format!("it has {} of {size} bytes", pieces.length()));
        }
        check.map_or(Ok(()), Check::finish)?;
        let pieces = pieces.finish();
        Ok(DiskFile { path, size, digest: digest_of(&pieces), pieces })
    }
}
