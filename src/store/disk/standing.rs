//! What whole artefacts take of the disk, with what they hold together.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::extents::{Extents, Hold};
use super::share::punch;

/// Every artefact whose files are there, by folder.
#[derive(Debug, Default)]
pub(super) struct Standing {
    artefacts: HashMap<PathBuf, Stands>,
    extents: Extents,
    /// Beside the blocks of the files: names, manifests.
    overhead: u64,
    /// What all would take if nobody shared.
    alone: u64,
    /// What tenants have of it, of those who were asked for since it last changed: a long sum.
    shares: RefCell<HashMap<String, u64>>,
}

#[derive(Debug)]
struct Stands {
    tenant: String,
    /// Counted out for the moment.
    is_out: bool,
    holds: Vec<Hold>,
    overhead: u64,
    alone: u64,
}

impl Standing {
    /// What all take together.
    pub(super) fn bytes(&self) -> u64 {
        self.extents.held() + self.overhead
    }

    /// How much less that is than if nobody shared.
    pub(super) fn shared(&self) -> u64 {
        self.alone.saturating_sub(self.bytes())
    }

    /// Takes an artefact in that would take `alone` if it shared with nobody.
    /// `overhead` of that are not blocks of its files.
    pub(super) fn add(
        &mut self,
        (folder, tenant): (PathBuf, String),
        holds: Vec<Hold>,
        alone: u64,
        overhead: u64,
    ) {
        self.shares.get_mut().clear();
        holds.iter().for_each(|hold| self.extents.hold(hold));
        self.overhead += overhead;
        self.alone += alone;
        self.artefacts.insert(folder, Stands { tenant, is_out: false, holds, overhead, alone });
    }

    pub(super) fn also(&mut self, folder: &Path, more: Vec<Hold>) {
        self.shares.get_mut().clear();
        if let Some(stands) = self.artefacts.get_mut(folder) {
            more.iter().for_each(|hold| self.extents.hold(hold));
            stands.holds.extend(more);
        }
    }

    pub(super) fn replace(&mut self, folder: &Path, holds: Vec<Hold>) {
        self.shares.get_mut().clear();
        if let Some(stands) = self.artefacts.get_mut(folder) {
            holds.iter().for_each(|hold| self.extents.hold(hold));
            for hold in std::mem::replace(&mut stands.holds, holds) {
                self.extents.release(&hold);
            }
        }
    }

    /// Counts an artefact out and says how much less that makes. [`Standing::take_back`] counts
    /// it in again.
    pub(super) fn let_go(&mut self, folder: &Path) -> u64 {
        self.shares.get_mut().clear();
        let before = self.bytes();
        if let Some(stands) = self.artefacts.get_mut(folder) {
            for hold in &stands.holds {
                self.extents.release(hold);
            }
            self.overhead -= stands.overhead;
            stands.is_out = true;
        }
        before - self.bytes()
    }

    pub(super) fn take_back(&mut self, folder: &Path) {
        self.shares.get_mut().clear();
        if let Some(stands) = self.artefacts.get_mut(folder) {
            stands.holds.iter().for_each(|hold| self.extents.hold(hold));
            self.overhead += stands.overhead;
            stands.is_out = false;
        }
    }

    /// An artefact's part of what all take: bytes that several hold are split among them. Nothing
    /// while it is counted out.
    pub(super) fn share(&self, folder: &Path) -> u64 {
        self.artefacts.get(folder).map_or(0, |stands| self.share_of_one(stands))
    }

    /// What all artefacts of a tenant have of it.
    pub(super) fn share_of(&self, tenant: &str) -> u64 {
        if let Some(known) = self.shares.borrow().get(tenant) {
            return *known;
        }
        let theirs = self.artefacts.values().filter(|stands| stands.tenant == tenant);
        let share = theirs.map(|stands| self.share_of_one(stands)).sum();
        self.shares.borrow_mut().insert(tenant.to_owned(), share);
        share
    }

    /// The same of all tenants.
    pub(super) fn shares(&self) -> HashMap<&str, u64> {
        let mut shares: HashMap<&str, u64> = HashMap::new();
        for stands in self.artefacts.values() {
            *shares.entry(&stands.tenant).or_default() += self.share_of_one(stands);
        }
        shares
    }

    fn share_of_one(&self, stands: &Stands) -> u64 {
        match stands.is_out {
            true => 0,
            false => {
                let held = stands.holds.iter().map(|hold| self.extents.share(hold));
                held.sum::<u64>() + stands.overhead
            }
        }
    }

    /// What an artefact holds.
    pub(super) fn of(&self, folder: &Path) -> Vec<Hold> {
        self.artefacts.get(folder).map(|stands| stands.holds.clone()).unwrap_or_default()
    }

    /// Forgets an artefact; says which bytes of which files nobody holds any more.
    pub(super) fn remove(&mut self, folder: &Path) -> HashMap<u64, Vec<Range<u64>>> {
        self.shares.get_mut().clear();
        let Some(stands) = self.artefacts.remove(folder) else { return HashMap::new() };
        self.overhead -= stands.overhead;
        self.alone -= stands.alone;
        let mut freed: HashMap<u64, Vec<Range<u64>>> = HashMap::new();
        for hold in stands.holds {
            freed.entry(hold.inode).or_default().extend(self.extents.release(&hold));
        }
        freed
    }

    /// The bytes of files that nobody holds, by a name of the file.
    pub(super) fn gaps(&self) -> Vec<(PathBuf, Vec<Range<u64>>)> {
        let mut seen = std::collections::HashSet::new();
        let holds = self.artefacts.iter().flat_map(|(folder, stands)| {
            stands.holds.iter().map(move |hold| (folder.join(&hold.path), hold))
        });
        let fresh = holds.filter(|(_, hold)| seen.insert(hold.inode));
        let gaps = fresh.filter_map(|(path, hold)| {
            let gaps = self.extents.gaps(hold.inode, hold.size)?;
            (!gaps.is_empty()).then_some((path, gaps))
        });
        gaps.collect()
    }
}

/// Opens files of a folder that have other names elsewhere.
pub(super) fn keep_open(folder: &Path, holds: &[Hold]) -> Vec<(u64, File)> {
    let mut kept = Vec::new();
    for hold in holds {
        let path = folder.join(&hold.path);
        let has_others = |found: Metadata| found.nlink() > 1;
        if path.symlink_metadata().is_ok_and(has_others) {
            match File::options().write(true).open(&path) {
                Ok(file) => kept.push((hold.inode, file)),
                Err(error) => {
                    warn!(%error, file = %path.display(), "a shared file cannot be opened")
                }
            }
        }
    }
    kept
}

/// Gives back what nobody holds any more of files that are kept for others' sake.
pub(super) fn trim(kept: Vec<(u64, File)>, freed: &HashMap<u64, Vec<Range<u64>>>) {
    for (inode, file) in kept {
        for range in freed.get(&inode).into_iter().flatten() {
            if let Err(error) = punch(&file, range) {
                warn!(%error, "unused bytes of a shared file could not be given back");
            }
        }
    }
}

/// Gives ranges of a file back.
pub(super) fn give_back(path: &Path, ranges: &[Range<u64>]) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    ranges.iter().try_for_each(|range| punch(&file, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(inode: u64) -> Hold {
        let whole = 0..4096;
        Hold { path: "w".into(), inode, size: 4096, ranges: vec![whole] }
    }

    #[test]
    fn what_a_tenant_has_follows_each_change_of_anybodys() {
        let mut standing = Standing::default();
        let (first, second) = (PathBuf::from("first"), PathBuf::from("second"));
        standing.add((first.clone(), "t".into()), vec![hold(1)], 4096, 0);
        // Asked for before each change, so that a sum of before would be found.
        assert_eq!(standing.share_of("t"), 4096);
        standing.add((second.clone(), "u".into()), vec![hold(1)], 4096, 0);
        assert_eq!((standing.share_of("t"), standing.share_of("u")), (2048, 2048));
        standing.also(&second, vec![hold(2)]);
        assert_eq!((standing.share_of("t"), standing.share_of("u")), (2048, 2048 + 4096));
        standing.let_go(&second);
        assert_eq!((standing.share_of("t"), standing.share_of("u")), (4096, 0));
        standing.take_back(&second);
        assert_eq!((standing.share_of("t"), standing.share_of("u")), (2048, 2048 + 4096));
        standing.replace(&second, vec![hold(2)]);
        assert_eq!((standing.share_of("t"), standing.share_of("u")), (4096, 4096));
        standing.remove(&first);
        assert_eq!((standing.share_of("t"), standing.share_of("u")), (0, 4096));
    }
}
