//! Where the bytes of a version's files lie that other versions' files hold as well.
//!
//! A recipe stands beside the manifest. What it says is borrowed is read from a donor: a file
//! of another version, kept alive by a name of our own for it in [`DONORS`]. Our file has its
//! full length and, where it borrows, holes. So a donor's version may be deleted at any time,
//! and the file system counts who still needs its bytes.
//!
//! 1. A recipe is durable before the first hole is made, and the donors' names before it.
//! 2. What is borrowed was equal, byte for byte, when the recipe was written.
//! 3. A donor has the bytes itself: nothing is borrowed from what is borrowed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::extents::{BLOCK, Hold};
use super::layout::{FILES, write_durably};
use super::manifest::Manifest;
use crate::Error;

/// Beside the manifest of a version that was offered to others.
pub(super) const RECIPE: &str = "roundhouse-shared.json";
/// Our names for other versions' files.
pub(super) const DONORS: &str = "donors";
/// The version of the recipe's shape.
const FORMAT: u32 = 1;

/// A run of bytes of a file that lies in a donor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Borrowed {
    /// The first byte in our file.
    pub(super) start: u64,
    pub(super) bytes: u64,
    /// The donor's name in [`DONORS`].
    pub(super) donor: u32,
    /// The first byte in the donor.
    pub(super) from: u64,
}

impl Borrowed {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes)
    }

    /// The whole blocks of it in our file, which become a hole. It may be empty.
    pub(super) fn hole(&self) -> Range<u64> {
        let start = self.start.div_ceil(BLOCK).saturating_mul(BLOCK);
        start..(self.end() / BLOCK * BLOCK).max(start)
    }
}

/// With whom a version shares bytes on disk, and which of its own it borrows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recipe {
    format: u32,
    /// Versions share with those of equal scope only.
    pub(super) scope: String,
    /// By path, in the order of their places, apart from each other.
    pub(super) borrowed: BTreeMap<String, Vec<Borrowed>>,
}

impl Recipe {
    pub(super) fn new(scope: &str, borrowed: BTreeMap<String, Vec<Borrowed>>) -> Self {
        Self { format: FORMAT, scope: scope.to_owned(), borrowed }
    }

    /// Reads a folder's recipe; `None` inside where it has none.
    ///
    /// # Errors
    /// When it has one that cannot be followed: then the version is not whole.
    pub(super) fn read(folder: &Path, manifest: &Manifest) -> Result<Option<Self>, ()> {
        let text = match fs::read(folder.join(RECIPE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(_) => return Err(()),
        };
        let recipe: Self = serde_json::from_slice(&text).map_err(drop)?;
        if recipe.can_be_followed(folder, manifest) { Ok(Some(recipe)) } else { Err(()) }
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), Error> {
        let text = serde_json::to_vec(self)
            .map_err(|error| Error::Internal(format!("a recipe cannot be written: {error}")))?;
        write_durably(&folder.join(RECIPE), &text)
    }

    fn can_be_followed(&self, folder: &Path, manifest: &Manifest) -> bool {
        let donors = folder.join(DONORS);
        let size = |donor: u32| {
            let found = fs::symlink_metadata(donors.join(donor.to_string())).ok();
            found.filter(fs::Metadata::is_file).map_or(0, |found| found.len())
        };
        let is_sound = |(path, borrowed): (&String, &Vec<Borrowed>)| {
            let file = manifest.files.iter().find(|file| file.path == *path);
            let mut at = 0;
            file.is_some_and(|file| {
                borrowed.iter().all(|run| {
                    let follows = run.start >= at && run.bytes > 0;
                    at = run.end();
                    let donated = run.from.checked_add(run.bytes);
                    follows && at <= file.size && donated.is_some_and(|end| end <= size(run.donor))
                })
            })
        };
        self.format == FORMAT && self.borrowed.iter().all(is_sound)
    }

    /// What a file borrows.
    pub(super) fn of(&self, path: &str) -> &[Borrowed] {
        self.borrowed.get(path).map_or(&[], Vec::as_slice)
    }

    fn donors(&self) -> BTreeSet<u32> {
        self.borrowed.values().flatten().map(|run| run.donor).collect()
    }
}

/// What a version holds of the file system. Blocks.
pub(super) fn holds(
    folder: &Path,
    manifest: &Manifest,
    recipe: Option<&Recipe>,
) -> Result<Vec<Hold>, Error> {
    let inode = |path: &Path| {
        let path = folder.join(path);
        let found = fs::symlink_metadata(&path);
        found
            .map(|found| (found.ino(), found.len()))
            .map_err(|error| Error::io("look at", &path, error))
    };
    let mut holds = Vec::new();
    for file in &manifest.files {
        let path = PathBuf::from(FILES).join(&file.path);
        let mut at = 0;
        let mut own: Vec<Range<u64>> = Vec::new();
        for hole in
            recipe.map_or(&[][..], |recipe| recipe.of(&file.path)).iter().map(Borrowed::hole)
        {
            if !hole.is_empty() {
                own.push(at..hole.start);
                at = hole.end;
            }
        }
        own.push(at..file.size);
        let inode = inode(&path)?;
        holds.push(Hold::of(path, inode, own.into_iter()));
    }
    for donor in recipe.map(Recipe::donors).unwrap_or_default() {
        let path = PathBuf::from(DONORS).join(donor.to_string());
        let runs = recipe.iter().flat_map(|recipe| recipe.borrowed.values().flatten());
        let runs = runs.filter(|run| run.donor == donor);
        let inode = inode(&path)?;
        holds.push(Hold::of(path, inode, runs.map(|run| run.from..run.from + run.bytes)));
    }
    Ok(holds)
}

/// Fills a buffer with a file's bytes from `offset` on, wherever they lie. Blocks.
pub(super) fn read_at(
    folder: &Path,
    path: &str,
    recipe: Option<&Recipe>,
    mut offset: u64,
    mut buffer: &mut [u8],
) -> io::Result<()> {
    let borrowed = recipe.map_or(&[][..], |recipe| recipe.of(path));
    while !buffer.is_empty() {
        let next = borrowed.partition_point(|run| run.end() <= offset);
        let run = borrowed.get(next);
        let (file, from, until) = match run.filter(|run| run.start <= offset) {
            Some(run) => {
                let name = folder.join(DONORS).join(run.donor.to_string());
                (name, run.from + (offset - run.start), run.end())
            }
            None => {
                let until = run.map_or(u64::MAX, |run| run.start);
                (folder.join(FILES).join(path), offset, until)
            }
        };
        let count = usize::try_from(until - offset).unwrap_or(usize::MAX).min(buffer.len());
        let (now, later) = buffer.split_at_mut(count);
        File::open(file)?.read_exact_at(now, from)?;
        buffer = later;
        offset += count as u64;
    }
    Ok(())
}
