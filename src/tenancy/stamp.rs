//! Tells whether files have changed since they were read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What files look like from outside. Equal stamps mean equal contents, unless somebody writes in
/// place, equally long, within the file system's tick; atomic replacement always shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamp(Vec<Option<(u64, u64, i64, i64)>>);

impl Stamp {
    /// Looks at files now, links followed. One that cannot be seen is a state of its own.
    pub fn of(paths: &[&Path]) -> Self {
        let look = |path: &&Path| {
            let seen = fs::metadata(path).ok()?;
            Some((seen.ino(), seen.len(), seen.mtime(), seen.mtime_nsec()))
        };
        Self(paths.iter().map(look).collect())
    }
}
