//! Tells whether files have changed since they were read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What files look like from outside. Equal stamps mean equal contents and permissions, unless
/// somebody writes in place, equally long, within the file system's tick; atomic replacement always
/// shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stamp(Vec<Option<Look>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    inode: u64,
    length: u64,
    mode: u32,
    /// In seconds and nanoseconds.
    modified: (i64, i64),
    /// Of anything but the contents, too: owner, mode, name.
    changed: (i64, i64),
}

impl Stamp {
    /// Looks at files now, links followed. One that cannot be seen is a state of its own.
    pub fn of(paths: &[&Path]) -> Self {
        let look = |path: &&Path| {
            let seen = fs::metadata(path).ok()?;
            Some(Look {
                inode: seen.ino(),
                length: seen.len(),
                mode: seen.mode(),
                modified: (seen.mtime(), seen.mtime_nsec()),
                changed: (seen.ctime(), seen.ctime_nsec()),
            })
        };
        Self(paths.iter().map(look).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn what_changes_no_byte_shows_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "x").unwrap();
        let before = Stamp::of(&[&path]);
        let permissions = fs::metadata(&path).unwrap().permissions();
        // The file system's clock ticks every few milliseconds.
        let deadline = Instant::now() + Duration::from_secs(60);
        while Stamp::of(&[&path]) == before {
            assert!(Instant::now() < deadline);
            fs::set_permissions(&path, permissions.clone()).unwrap();
        }
    }
}
