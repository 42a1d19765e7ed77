//! A private temporary folder and a user for each group.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

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
        end_leftovers(&root, uids.as_ref());
        if let Err(error) = remove(&root)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %root.display(), %error, "what an earlier server left is not deleted");
        }
        // A folder of this process: what could not be deleted is in nobody's way.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let own = root.join(format!("{:x}", since.as_nanos()));
        // Workers pass through both to their own.
        for folder in [&root, &own] {
            let made = DirBuilder::new().recursive(true).mode(0o711).create(folder);
            made.map_err(|source| Error::file("create", folder, source))?;
        }
        // Servers on one machine begin at different users, as far as that goes.
        let state = State { next: u64::from(std::process::id()), ..State::default() };
        Ok(Self { root: own, uids, state: Mutex::new(state) })
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
///
/// They are known by their environment, and where that was emptied, by the users that own folders
/// there; those below another server that lives are that one's, which hands out the same users.
fn end_leftovers(root: &Path, uids: Option<&RangeInclusive<u32>>) {
    let home = format!("HOME={}/", root.display());
    let mut owners = BTreeSet::new();
    for folder in fs::read_dir(root).into_iter().flatten().flatten() {
        for corner in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            owners.extend(corner.metadata().ok().map(|metadata| metadata.uid()));
        }
    }
    owners.retain(|uid| uids.is_some_and(|uids| uids.contains(uid)));
    let mut ended = 0_usize;
    for _ in 0..LOOKS {
        let before = ended;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let process = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(process) = process.and_then(Pid::from_raw) else { continue };
            // Opened first, so that what is killed is what was looked at.
            let Ok(opened) = pidfd_open(process, PidfdFlags::empty()) else { continue };
            let variables = fs::read(entry.path().join("environ")).unwrap_or_default();
            let user = fs::metadata(entry.path()).map(|metadata| metadata.uid());
            let is_left = user.is_ok_and(|uid| owners.contains(&uid)) && !has_server(process)
                || variables.split(|byte| *byte == 0).any(|one| one.starts_with(home.as_bytes()));
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

/// Whether a process descends from one that runs our binary.
fn has_server(process: Pid) -> bool {
    let name = |exe: PathBuf| exe.file_name().map(ToOwned::to_owned);
    let ours = std::env::current_exe().ok().and_then(name);
    let mut process = process.as_raw_nonzero().get();
    while process > 1 {
        let exe = fs::read_link(format!("/proc/{process}/exe"));
        if exe.is_ok_and(|exe| name(exe) == ours) {
            return true;
        }
        let Ok(stat) = fs::read_to_string(format!("/proc/{process}/stat")) else { return false };
        // The fourth field; the second is a name in brackets that may hold anything.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_ascii_whitespace().nth(1)?.parse().ok());
        process = parent.unwrap_or(0);
    }
    false
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

impl Corner {
    /// Deletes what is in its folder, which stays: it is the temporary folder of a process. Nobody
    /// may write to it meanwhile. Blocking.
    pub(crate) fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            // Its owner may have locked himself out.
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700))?;
            remove(&entry.path())?;
        }
        Ok(())
    }
}

impl Drop for Corner {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %self.dir.display(), %error, "a handler's folder could not be deleted");
        }
        if let Some(uid) = self.uid {
            self.owner.state().in_use.remove(&uid);
        }
    }
}

/// Deletes a folder whatever somebody built in it: with few open files and no recursion, however
/// deep it is, by bringing what is deep up to the top. Links are not followed. Nobody may write
/// to it meanwhile. Blocking.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    let mut moved = 0_u64;
    loop {
        let mut deeper = false;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                fs::remove_file(entry.path())?;
                continue;
            }
            deeper = true;
            let inner = entry.path();
            if fs::remove_dir(&inner).is_ok() {
                continue;
            }
            // Its owner may have locked himself out.
            fs::set_permissions(&inner, fs::Permissions::from_mode(0o700))?;
            for below in fs::read_dir(&inner)? {
                let below = below?;
                if below.file_type()?.is_dir() {
                    moved += 1;
                    fs::rename(below.path(), folder.join(format!(".moved-{moved}")))?;
                } else {
                    fs::remove_file(below.path())?;
                }
            }
            fs::remove_dir(&inner)?;
        }
        if !deeper {
            return fs::remove_dir(folder);
        }
    }
}

/// Entries looked at; more count as too much.
const ENTRIES_MAX: usize = 20_000;

/// What a handler's files take on disk, or all there is where they are too many to be counted.
/// Links are not followed. Blocking.
pub(crate) fn used(dir: &Path) -> Bytes {
    size(dir, ENTRIES_MAX)
}

/// As [`used`], for as many entries as one likes.
pub(crate) fn size(dir: &Path, most: usize) -> Bytes {
    let mut total = 0_u64;
    let mut seen = 0_usize;
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // What is too deep to be looked at is too much.
            Err(_) => return Bytes(u64::MAX),
        };
        for entry in entries.flatten() {
            seen += 1;
            if seen > most {
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
    fn a_folder_is_deleted_however_deep_and_wide_it_is() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("kept");
        fs::write(&target, "kept").unwrap();
        let folder = root.path().join("f");
        // Deeper than a path can be long, made from the bottom up.
        for level in 0..3000 {
            let next = root.path().join("next");
            fs::create_dir(&next).unwrap();
            if level > 0 {
                fs::rename(&folder, next.join("d")).unwrap();
            }
            fs::write(next.join("file"), "x").unwrap();
            std::os::unix::fs::symlink(&target, next.join("link")).unwrap();
            fs::rename(&next, &folder).unwrap();
        }
        remove(&folder).unwrap();
        assert!(!folder.exists() && target.exists());
        assert_eq!(remove(&folder).unwrap_err().kind(), io::ErrorKind::NotFound);
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
