//! A private temporary folder and a user for each group.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roundhouse_types::Bytes;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::warn;

use crate::Error;

/// Hands out users and folders. A user is one group's until its guard is dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    root: PathBuf,
    /// Absent where the server is not root: all workers are its own user.
    uids: Option<RangeInclusive<u32>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    in_use: BTreeSet<u32>,
}

/// One group's folder and user. Dropping it deletes the folder.
#[derive(Debug)]
pub(crate) struct Corner {
    owner: Arc<Scratch>,
    pub(crate) dir: PathBuf,
    pub(crate) uid: Option<u32>,
}

impl Scratch {
    /// Ends and deletes what an earlier process left. Blocking.
    pub(crate) fn open(root: PathBuf, uids: Option<RangeInclusive<u32>>) -> Result<Self, Error> {
        end_leftovers(&root);
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::file("delete the old", &root, error));
            }
            _ => {}
        }
        // Workers pass through it to their own.
        let made = DirBuilder::new().recursive(true).mode(0o711).create(&root);
        made.map_err(|source| Error::file("create", &root, source))?;
        Ok(Self { root, uids, state: Mutex::default() })
    }

    /// A new folder, for a user that nobody else has now. Blocking.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Corner, Error> {
        let (number, uid) = {
            let mut state = self.state();
            state.next += 1;
            let uid = self.uids.as_ref().map(|uids| free_uid(uids, &mut state)).transpose()?;
            (state.next, uid)
        };
        let dir = self.root.join(number.to_string());
        let corner = Corner { owner: Arc::clone(self), dir: dir.clone(), uid };
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .and_then(|()| if uid.is_some() { chown(&dir, uid, uid) } else { Ok(()) })
            .map_err(|source| Error::file("create", &dir, source))?;
        Ok(corner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Times that all processes are looked at for what is left of an earlier server: what is left
/// may start others meanwhile.
const LOOKS: usize = 20;

/// Kills what is left of an earlier server that was killed. Workers die with their server, but
/// not what they have started, which would be the user of a handler of ours.
fn end_leftovers(root: &Path) {
    let home = format!("HOME={}/", root.display());
    let mut ended = 0_usize;
    for _ in 0..LOOKS {
        let before = ended;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let process = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(process) = process.and_then(Pid::from_raw) else { continue };
            // Opened first, so that what is killed is what was looked at.
            let Ok(opened) = pidfd_open(process, PidfdFlags::empty()) else { continue };
            let variables = fs::read(entry.path().join("environ")).unwrap_or_default();
            let is_left =
                variables.split(|byte| *byte == 0).any(|one| one.starts_with(home.as_bytes()));
            if is_left && pidfd_send_signal(opened, Signal::KILL).is_ok() {
                ended += 1;
            }
        }
        if ended == before {
            break;
        }
    }
    if ended > 0 {
        warn!(processes = ended, "killed what handlers of an earlier server had left running");
    }
}

/// Goes round the range, so that a user is not given again at once.
fn free_uid(uids: &RangeInclusive<u32>, state: &mut State) -> Result<u32, Error> {
    let count = u64::from(uids.end().saturating_sub(*uids.start())) + 1;
    let candidates = (0..count).map(|step| {
        let offset = (state.next + step) % count;
        uids.start() + u32::try_from(offset).unwrap_or(0)
    });
    let free = candidates.into_iter().find(|uid| !state.in_use.contains(uid));
    let uid = free.ok_or_else(|| {
        Error::Spawn(io::Error::other(format!("all {count} users for handlers are taken")))
    })?;
    state.in_use.insert(uid);
    Ok(uid)
}

impl Drop for Corner {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %self.dir.display(), %error, "a handler's folder could not be deleted");
        }
        if let Some(uid) = self.uid {
            self.owner.state().in_use.remove(&uid);
        }
    }
}

/// Entries looked at; more count as too much.
const ENTRIES_MAX: usize = 100_000;

/// What a folder's files take on disk; links are not followed. Blocking.
pub(crate) fn used(dir: &Path) -> Bytes {
    let mut total = 0_u64;
    let mut seen = 0_usize;
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            seen += 1;
            if seen > ENTRIES_MAX {
                return Bytes(u64::MAX);
            }
            let Ok(metadata) = entry.metadata() else { continue };
            // Blocks of 512 bytes, whatever the file system's own size is.
            total = total.saturating_add(metadata.blocks().saturating_mul(512));
            if metadata.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Bytes(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_folders_are_given_back() {
        let root = tempfile::tempdir().unwrap();
        let scratch = Arc::new(Scratch::open(root.path().join("s"), None).unwrap());
        let corner = scratch.take().unwrap();
        fs::write(corner.dir.join("file"), vec![1; 9000]).unwrap();
        assert!(used(&corner.dir) >= Bytes(9000));
        let dir = corner.dir.clone();
        drop(corner);
        assert!(!dir.exists());
    }

    #[test]
    fn a_user_belongs_to_one_group_at_a_time() {
        let mut state = State::default();
        let range = 7..=8;
        let first = free_uid(&range, &mut state).unwrap();
        let second = free_uid(&range, &mut state).unwrap();
        assert_ne!(first, second);
        assert!(free_uid(&range, &mut state).is_err());
        state.in_use.remove(&first);
        assert_eq!(free_uid(&range, &mut state).unwrap(), first);
    }
}
