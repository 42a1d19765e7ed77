//! What is computed of one file's bytes: fed in order, each byte once.

use super::manifest::DiskFile;
use super::verify::Hasher;
use crate::Checksum;

/// Computes a file's entry in the manifest from its bytes, as they arrive, as an archive
/// yields them, or as they are read again.
pub(super) struct FileDigester {
    path: String,
    size: u64,
    hasher: Hasher,
}

impl FileDigester {
    /// For a file of this many bytes, with the store's checksum to compare with if there is one.
    pub(super) fn new(path: &str, size: u64, expected: Option<Checksum>) -> Self {
        Self { path: path.to_owned(), size, hasher: Hasher::new(expected) }
    }

    /// Takes in the bytes that follow.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// The file as the manifest lists it, or what does not match.
    pub(super) fn finish(self) -> Result<DiskFile, String> {
        let Self { path, size, hasher } = self;
        if hasher.length() != size {
            return Err(format!("it has {} of {size} bytes", hasher.length()));
        }
        Ok(DiskFile { path, size, sha256: hasher.finish()? })
    }
}
