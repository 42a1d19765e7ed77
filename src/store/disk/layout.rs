//! Names and durable writes inside the cache's folder.
//!
//! ```text
//! format                                  the layout's version
//! lock                                    held while a process uses the folder
//! artefacts/<endpoint>/<name>/            a whole version: manifest, recipe, notes, files/ and donors/
//! partial/<name>/                         one that is being fetched: manifest, journal, archive, files/
//! attempts/<name>.json                    loads that may have killed the process
//! choices/<name>.json                     versions that models are held at
//! gone/<name>                             models that the store holds no more
//! trash/                                  being deleted; emptied when the folder is opened
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use roundhouse_types::ArtefactId;
use sha2::{Digest, Sha256};

use super::extents::BLOCK;
use crate::Error;
use crate::artefact::hex;

/// The version of everything under the folder.
const FORMAT: &str = "roundhouse-disk-cache 2";
/// Read and gone on with: its artefacts are fetched again.
const FORMER: &str = "roundhouse-disk-cache 1";
/// Beside the files of a whole artefact; its time is when a store came back to it, in it stands where
/// that has it.
pub(super) const NAMED: &str = "named";
/// Beside the files of a whole artefact that was loaded; its time is when.
pub(super) const LOADED: &str = "loaded";
/// Beside the files of an artefact, whole or partial.
pub(super) const MANIFEST: &str = "roundhouse-artefact.json";
/// The files as the model wants them.
pub(super) const FILES: &str = "files";
/// The packed archive while it is fetched.
pub(super) const ARCHIVE: &str = "archive.partial";
/// The ranges that are on disk.
pub(super) const JOURNAL: &str = "journal";

/// The cache's folder, locked for this process.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    _lock: File,
    trashed: AtomicU64,
}

impl Layout {
    /// Creates or checks the folder and takes its lock.
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        create_folder(root)?;
        let path = root.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| Error::io("open", &path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked(root.to_owned())),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", &path, error)),
        }
        let layout = Self { root: root.to_owned(), _lock: lock, trashed: AtomicU64::new(0) };
        layout.check_format()?;
        let folders = [
            layout.artefacts(),
            layout.partials(),
            layout.attempts(),
            layout.choices(),
            layout.gone(),
        ];
        for folder in folders {
            create_folder(&folder)?;
        }
        remove_tree(&layout.trash())?;
        create_folder(&layout.trash())?;
        Ok(layout)
    }

    fn check_format(&self) -> Result<(), Error> {
        let path = self.root.join("format");
        match fs::read_to_string(&path) {
            Ok(found) if found.trim_end() == FORMAT => Ok(()),
            Ok(found) if found.trim_end() == FORMER => {
                write_durably(&path, format!("{FORMAT}\n").as_bytes())
            }
            Ok(found) => Err(self.other_format(found.trim_end().chars().take(80).collect())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                for entry in entries(&self.root)? {
                    let name = entry.file_name();
                    let ours = name == Some("lock".as_ref()) || name == Some("format.new".as_ref());
                    // A new file system's root has the first; the server's folders for handlers
                    // and for queues may be there before it has a store.
                    let beside =
                        ["lost+found", "handlers", "async"].map(|name| Some(name.as_ref()));
                    if !ours && !beside.contains(&name) {
                        return Err(self.other_format("none, and it is not empty".into()));
                    }
                }
                write_durably(&path, format!("{FORMAT}\n").as_bytes())
            }
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    fn other_format(&self, found: String) -> Error {
        Error::Format { dir: self.root.clone(), found, expected: FORMAT.into() }
    }

    pub(super) fn artefacts(&self) -> PathBuf {
        self.root.join("artefacts")
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(super) fn attempts(&self) -> PathBuf {
        self.root.join("attempts")
    }

    pub(super) fn choices(&self) -> PathBuf {
        self.root.join("choices")
    }

    pub(super) fn gone(&self) -> PathBuf {
        self.root.join("gone")
    }

    pub(super) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub(super) fn partial(&self, id: &ArtefactId) -> PathBuf {
        self.partials().join(folder_name(id))
    }

    /// Where a whole version goes: a folder that does not exist yet. A version that
    /// was purged while in use may still have the first name.
    pub(super) fn new_artefact(&self, id: &ArtefactId) -> Result<PathBuf, Error> {
        let endpoint = self.artefacts().join(id.model.endpoint.as_str());
        create_folder(&endpoint)?;
        let name = folder_name(id);
        let first = endpoint.join(&name);
        let others = (1_u32..).map(|n| endpoint.join(format!("{name}.{n}")));
        std::iter::once(first)
            .chain(others)
            .find(|path| !path.exists())
            .ok_or_else(|| Error::Internal(format!("no free folder name for {id}")))
    }

    /// Takes a folder out of sight at once, then deletes it.
    pub(super) fn remove(&self, folder: &Path) -> Result<(), Error> {
        self.take_away(folder)?.map_or(Ok(()), |trash| remove_tree(&trash))
    }

    /// Takes a folder out of sight at once; says where it is now, if it was there.
    pub(super) fn take_away(&self, folder: &Path) -> Result<Option<PathBuf>, Error> {
        let number = self.trashed.fetch_add(1, Ordering::Relaxed);
        let trash = self.trash().join(number.to_string());
        match fs::rename(folder, &trash) {
            Ok(()) => Ok(Some(trash)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("remove", folder, error)),
        }
    }
}

/// A file name for a version of a model. Who it is stands in the manifest.
pub(super) fn folder_name(id: &ArtefactId) -> String {
    let mut digest = Sha256::new();
    for text in [id.model.endpoint.as_str(), id.model.target.as_str(), id.version.as_str()] {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    hex(&digest.finalize()[..20])
}

/// What a file of this many bytes takes on disk: whole blocks and its share of the
/// manifest and folders.
pub(super) fn charge(size: u64) -> u64 {
    const OVERHEAD: u64 = 512;
    size.div_ceil(BLOCK).saturating_mul(BLOCK).saturating_add(OVERHEAD)
}

/// The blocks that a folder's files take, in bytes.
pub(super) fn measure(folder: &Path) -> Result<u64, Error> {
    let mut total = 0;
    for path in entries(folder)? {
        let metadata =
            fs::symlink_metadata(&path).map_err(|error| Error::io("look at", &path, error))?;
        total += metadata.blocks() * 512;
        if metadata.is_dir() {
            total += measure(&path)?;
        }
    }
    Ok(total)
}

/// The paths in a folder; none if it is not there.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let fault = |error| Error::io("list", folder, error);
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(fault(error)),
        Ok(read) => read.map(|entry| entry.map(|e| e.path()).map_err(fault)).collect(),
    }
}

pub(super) fn create_folder(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))
}

pub(super) fn remove_tree(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("delete", folder, error))
        }
        _ => Ok(()),
    }
}

/// Writes a small file so that after a crash it is there whole or not at all.
pub(super) fn write_durably(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let new = path.with_added_extension("new");
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|error| Error::io("write", path, error))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes the names in a folder survive a crash.
pub(super) fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io("sync", folder, error))
}
