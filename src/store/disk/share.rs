//! Bytes that several versions have in common, once on the disk.
//!
//! Equal files become one file with several names; equal tensors within others are given back
//! to the file system and read from the version that has them ([`super::recipe`]). Digests say
//! where to look, and only what was compared byte by byte is shared.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use tracing::{info, warn};

use super::extents::Hold;
use super::held::Held;
use super::layout::{FILES, create_folder, remove_tree, sync_folder};
use super::ledger::Ledger;
use super::manifest::DiskFile;
use super::pieces::Digest;
use super::recipe::{Borrowed, DONORS, Recipe, holds};
use crate::Error;

/// Smaller files and runs stay where they are: a record of them costs more than they take.
const SHARED_AT_LEAST: u64 = 64 << 10;
/// What is compared at once.
const CHUNK: usize = 1 << 20;
/// How many places of equal bytes are remembered.
const PLACES_MAX: usize = 4;

/// What the file system can do for sharing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Abilities {
    /// Several names for one file.
    links: bool,
    /// Giving back a file's middle.
    holes: bool,
}

impl Abilities {
    /// Tries in a folder that is emptied by others. Blocks.
    pub(super) fn of(folder: &Path) -> Self {
        let (path, name) = (folder.join("probe"), folder.join("probe.link"));
        let links = fs::write(&path, [1; 8192]).and_then(|()| fs::hard_link(&path, &name));
        let file = File::options().write(true).open(&path);
        let holes = file.and_then(|file| punch(&file, &(0..4096)));
        for path in [name, path] {
            // Nothing is there where nothing could be written.
            let _ = fs::remove_file(path);
        }
        if let Err(error) = links.as_ref().and(holes.as_ref()) {
            info!(%error, "this file system cannot hold equal tensors once");
        }
        Self { links: links.is_ok(), holes: holes.is_ok() }
    }
}

/// Gives a range's blocks back; it reads as zeros from then on.
pub(super) fn punch(file: &File, range: &Range<u64>) -> std::io::Result<()> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, mode, range.start, range.end - range.start)?)
}

/// Offers a version to others of its scope and takes from them what they have in common; says
/// how many bytes that gave back. Done once for each version. Blocks.
pub(super) fn share(ledger: &Ledger, held: &Held, scope: &str) -> Result<u64, Error> {
    if !ledger.abilities.links || held.recipe().is_some() {
        return Ok(0);
    }
    let outcome = find_and_take(ledger, held, scope);
    if outcome.is_err() && held.recipe().is_none() {
        remove_tree(&held.folder.join(DONORS))?;
    }
    // Whatever came of it, what is there now is what counts.
    let now = holds(&held.folder, &held.manifest, held.recipe().as_ref())?;
    ledger.now_holds(&held.folder, now);
    outcome
}

fn find_and_take(ledger: &Ledger, held: &Held, scope: &str) -> Result<u64, Error> {
    let donors = held.folder.join(DONORS);
    create_folder(&donors)?;
    let found = {
        // The names are quickly made, and keep what they name.
        let _turn = ledger.no_evictions();
        let fellows = ledger.others(held);
        let is_fellow = |other: &Arc<Held>| other.recipe().is_some_and(|r| r.scope == scope);
        let fellows: Vec<Arc<Held>> = fellows.into_iter().filter(is_fellow).collect();
        let found = Search::new(held, &fellows).run(ledger.abilities.holes);
        ledger.also_holds(&held.folder, found.holds());
        found
    };
    let mut bytes = 0;
    for (path, name, size) in found.files {
        let (name, path) = (donors.join(name), held.folder.join(FILES).join(path));
        if same(&path, 0, &name, 0, size)? {
            fs::rename(&name, &path).map_err(|error| Error::io("rename", &name, error))?;
            bytes += size;
        }
    }
    let mut borrowed = found.runs;
    for (path, runs) in &mut borrowed {
        let ours = held.folder.join(FILES).join(path);
        let mut equal = Vec::with_capacity(runs.len());
        for run in runs.drain(..) {
            let donor = donors.join(run.donor.to_string());
            if same(&ours, run.start, &donor, run.from, run.bytes)? {
                equal.push(run);
            } else {
                warn!(file = %ours.display(), "bytes of one digest differ: one of two files is damaged");
            }
        }
        *runs = equal;
    }
    borrowed.retain(|_, runs| !runs.is_empty());
    let recipe = Recipe::new(scope, borrowed);
    prune(&donors, &recipe)?;
    sync_folder(&held.folder)?;
    recipe.write(&held.folder)?;
    held.follow(recipe.clone());
    Ok(bytes + make_holes(&held.folder, &recipe)?)
}

/// Makes the donors' names durable, and takes away those that are not needed.
pub(super) fn prune(donors: &Path, recipe: &Recipe) -> Result<(), Error> {
    if recipe.borrowed.is_empty() {
        return remove_tree(donors);
    }
    let needed: HashSet<String> =
        recipe.borrowed.values().flatten().map(|run| run.donor.to_string()).collect();
    for path in super::layout::entries(donors)? {
        let name = path.file_name().and_then(|name| name.to_str());
        if !name.is_some_and(|name| needed.contains(name)) {
            fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
        }
    }
    sync_folder(donors)
}

/// Gives back what is borrowed; says how much.
fn make_holes(folder: &Path, recipe: &Recipe) -> Result<u64, Error> {
    let mut bytes = 0;
    for (path, runs) in &recipe.borrowed {
        let path = folder.join(FILES).join(path);
        let fault = |error| Error::io("make a hole in", &path, error);
        let file = File::options().write(true).open(&path).map_err(fault)?;
        for hole in runs.iter().map(Borrowed::hole).filter(|hole| !hole.is_empty()) {
            punch(&file, &hole).map_err(fault)?;
            bytes += hole.end - hole.start;
        }
    }
    Ok(bytes)
}

/// Compares two ranges of files byte by byte.
fn same(one: &Path, at: u64, other: &Path, from: u64, bytes: u64) -> Result<bool, Error> {
    let open = |path: &Path| File::open(path).map_err(|error| Error::io("open", path, error));
    let files = [(open(one)?, one, at), (open(other)?, other, from)];
    let mut buffers = [vec![0; CHUNK], vec![0; CHUNK]];
    let mut done = 0;
    while done < bytes {
        let count = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(CHUNK);
        for ((file, path, begin), buffer) in files.iter().zip(&mut buffers) {
            file.read_exact_at(&mut buffer[..count], begin + done)
                .map_err(|error| Error::io("read", path, error))?;
        }
        if buffers[0][..count] != buffers[1][..count] {
            return Ok(false);
        }
        done += count as u64;
    }
    Ok(true)
}

/// Bytes of a fellow: in the how-many-th source, from where on.
#[derive(Debug, Clone, Copy)]
struct Place {
    source: usize,
    from: u64,
}

/// Files that really have their bytes, each once.
#[derive(Default)]
struct Sources {
    paths: Vec<PathBuf>,
    by_inode: HashMap<u64, usize>,
    by_path: HashMap<PathBuf, usize>,
}

impl Sources {
    /// The number of a file, by whichever of its names.
    fn number(&mut self, path: PathBuf) -> Option<usize> {
        if let Some(number) = self.by_path.get(&path) {
            return Some(*number);
        }
        let inode = fs::symlink_metadata(&path).ok()?.ino();
        let number = *self.by_inode.entry(inode).or_insert(self.paths.len());
        if number == self.paths.len() {
            self.paths.push(path.clone());
        }
        self.by_path.insert(path, number);
        Some(number)
    }
}

/// What others have as well, under names of our own, not compared yet.
#[derive(Default)]
struct Found {
    /// Our path, the other's file in [`DONORS`], and the size.
    files: Vec<(String, String, u64)>,
    runs: BTreeMap<String, Vec<Borrowed>>,
    /// Number and length of each file that was given a name.
    named: BTreeMap<String, (u64, u64)>,
}

impl Found {
    fn holds(&self) -> Vec<Hold> {
        let hold = |name: &str, ranges: Vec<Range<u64>>| {
            let file = self.named.get(name)?;
            Some(Hold::of(PathBuf::from(DONORS).join(name), *file, ranges.into_iter()))
        };
        let files = self
            .files
            .iter()
            .filter_map(|(_, name, size)| hold(name, std::iter::once(0..*size).collect()));
        let mut by_donor: BTreeMap<u32, Vec<Range<u64>>> = BTreeMap::new();
        for run in self.runs.values().flatten() {
            by_donor.entry(run.donor).or_default().push(run.from..run.from + run.bytes);
        }
        let runs =
            by_donor.into_iter().filter_map(|(donor, ranges)| hold(&donor.to_string(), ranges));
        files.chain(runs).collect()
    }
}

/// Looks for a version's bytes among its fellows'.
struct Search<'a> {
    held: &'a Held,
    fellows: &'a [Arc<Held>],
    found: Found,
    /// Names given to sources, by source.
    named: HashMap<usize, Option<u32>>,
}

impl<'a> Search<'a> {
    fn new(held: &'a Held, fellows: &'a [Arc<Held>]) -> Self {
        Self { held, fellows, found: Found::default(), named: HashMap::new() }
    }

    fn run(mut self, holes: bool) -> Found {
        let mut rest = Vec::new();
        for file in self.held.manifest.files.iter().filter(|file| file.size >= SHARED_AT_LEAST) {
            let path = self.held.folder.join(FILES).join(&file.path);
            // A file that another version has too, from before a crash, is not ours alone to change.
            let is_ours = fs::symlink_metadata(path).is_ok_and(|found| found.nlink() == 1);
            if !self.find_file(file) && is_ours {
                rest.push(file);
            }
        }
        if holes {
            let (sources, places) = self.places(&rest);
            for file in rest {
                let runs = self.find_runs(file, &sources, &places);
                if !runs.is_empty() {
                    self.found.runs.insert(file.path.clone(), runs);
                }
            }
        }
        self.found
    }

    /// Finds a whole file that does not borrow, and gives it a name.
    fn find_file(&mut self, file: &DiskFile) -> bool {
        for fellow in self.fellows {
            let recipe = fellow.recipe();
            let equal = fellow.manifest.files.iter().find(|other| {
                let borrows =
                    recipe.as_ref().is_some_and(|recipe| !recipe.of(&other.path).is_empty());
                other.digest == file.digest && other.size == file.size && !borrows
            });
            let Some(equal) = equal else { continue };
            let name = format!("file-{}", self.found.files.len());
            if let Some(named) = self.name(&fellow.folder.join(FILES).join(&equal.path), &name) {
                self.found.named.insert(name.clone(), named);
                self.found.files.push((file.path.clone(), name, file.size));
                return true;
            }
        }
        false
    }

    /// Gives a file another name among our donors; `None` where the file system will not.
    fn name(&self, path: &Path, name: &str) -> Option<(u64, u64)> {
        let link = self.held.folder.join(DONORS).join(name);
        let named = fs::hard_link(path, &link).and_then(|()| fs::symlink_metadata(&link));
        match named {
            Ok(found) => Some((found.ino(), found.len())),
            Err(error) => {
                info!(file = %path.display(), %error, "a file cannot have another name");
                None
            }
        }
    }

    /// Where the fellows have pieces that these files have too.
    fn places(&self, files: &[&DiskFile]) -> (Sources, HashMap<Digest, Vec<Place>>) {
        let pieces = files.iter().flat_map(|file| file.pieces.iter().skip(1));
        let mut places: HashMap<Digest, Vec<Place>> =
            pieces.map(|piece| (piece.digest, Vec::new())).collect();
        let mut sources = Sources::default();
        for fellow in self.fellows {
            let recipe = fellow.recipe();
            for file in fellow.manifest.files.iter().filter(|file| file.size >= SHARED_AT_LEAST) {
                let runs = recipe.as_ref().map_or(&[][..], |recipe| recipe.of(&file.path));
                let mut at = 0;
                for (index, piece) in file.pieces.iter().enumerate() {
                    let start = at;
                    at += piece.bytes;
                    let Some(known) = places.get_mut(&piece.digest) else { continue };
                    if index == 0 || known.len() >= PLACES_MAX {
                        continue;
                    }
                    let run =
                        runs.iter().find(|run| run.start <= start && at <= run.start + run.bytes);
                    let (path, from) = match run {
                        Some(run) => {
                            let name = PathBuf::from(DONORS).join(run.donor.to_string());
                            (fellow.folder.join(name), run.from + (start - run.start))
                        }
                        None => (fellow.folder.join(FILES).join(&file.path), start),
                    };
                    let Some(source) = sources.number(path) else { continue };
                    if !known.iter().any(|place| place.source == source) {
                        known.push(Place { source, from });
                    }
                }
            }
        }
        (sources, places)
    }

    /// The longest runs of a file's pieces that follow each other in a source as well.
    fn find_runs(
        &mut self,
        file: &DiskFile,
        sources: &Sources,
        places: &HashMap<Digest, Vec<Place>>,
    ) -> Vec<Borrowed> {
        let mut runs: Vec<(usize, Borrowed)> = Vec::new();
        let mut at = file.pieces.first().map_or(0, |header| header.bytes);
        for piece in file.pieces.iter().skip(1) {
            let start = at;
            at += piece.bytes;
            let Some(known) = places.get(&piece.digest) else { continue };
            if let Some((source, run)) = runs.last_mut()
                && run.start + run.bytes == start
                && known.iter().any(|p| p.source == *source && p.from == run.from + run.bytes)
            {
                run.bytes += piece.bytes;
                continue;
            }
            if piece.bytes < SHARED_AT_LEAST {
                continue;
            }
            let named = known.iter().find_map(|place| {
                Some((place, self.donor(place.source, &sources.paths[place.source])?))
            });
            if let Some((place, donor)) = named {
                let run = Borrowed { start, bytes: piece.bytes, donor, from: place.from };
                runs.push((place.source, run));
            }
        }
        let is_worth_it = |run: &Borrowed| {
            let hole = run.hole();
            hole.end - hole.start >= SHARED_AT_LEAST / 2
        };
        runs.into_iter().map(|(_, run)| run).filter(is_worth_it).collect()
    }

    /// The name of a source among our donors.
    fn donor(&mut self, index: usize, source: &Path) -> Option<u32> {
        if let Some(named) = self.named.get(&index) {
            return *named;
        }
        let number = u32::try_from(index).ok()?;
        let named = self.name(source, &number.to_string()).map(|named| {
            self.found.named.insert(number.to_string(), named);
            number
        });
        self.named.insert(index, named);
        named
    }
}
