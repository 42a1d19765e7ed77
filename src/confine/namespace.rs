//! A view of the file system of its own: a private `/tmp`, and a way to trees that lie in a
//! folder closed to the child's user; and no view of the network.
//!
//! Landlock's rules hold for files, not for their names, so the trees are allowed under their
//! new names too.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};

use crate::Confinement;

/// Folders that programs write to by name, whatever `TMPDIR` says.
const TEMPORARY: &[&str] = &["/tmp", "/var/tmp", "/dev/shm"];

/// Leaves the server's mounts for a copy of them. Root needs no new user namespace for that.
pub(crate) fn enter(root: bool) -> Result<(), String> {
    let failed = |step: &str, error: &dyn std::error::Error| format!("{step}: {error}");
    if root {
        unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| failed("unshare", &errno))?;
    } else {
        // Here the namespace would be made, but without the right to name its users; and there
        // is no way back out of it.
        let restricted =
            fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns");
        if restricted.is_ok_and(|value| value.trim() != "0") {
            return Err("user namespaces are restricted by AppArmor".to_owned());
        }
        let (uid, gid) = (Uid::effective(), Gid::effective());
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
            .map_err(|errno| failed("unshare", &errno))?;
        let maps = [
            ("/proc/self/setgroups", "deny".to_owned()),
            ("/proc/self/uid_map", format!("{uid} {uid} 1")),
            ("/proc/self/gid_map", format!("{gid} {gid} 1")),
        ];
        for (file, map) in maps {
            fs::write(file, map).map_err(|error| failed(file, &error))?;
        }
    }
    // What the machine unmounts later goes here too; what is mounted here stays here.
    mount_on(None, Path::new("/"), MsFlags::MS_REC | MsFlags::MS_SLAVE, None)
        .map_err(|error| failed("mount", &error))
}

/// Leaves the server's network for one without anything in it. The filter of system calls
/// already denies sockets; this empties the lists of connections in `/proc/self/net`.
pub(crate) fn leave_network() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)
}

/// Keeps the rule about `/proc/self` in force. It holds for the folder as the kernel has it in
/// memory, and the kernel drops it and makes another when memory is short; not while it is
/// mounted.
pub(crate) fn hold_own_facts() -> io::Result<()> {
    let own = PathBuf::from(format!("/proc/{}", std::process::id()));
    bind(&handle(&own)?, &own)
}

/// Gives the child's user a way to each of `paths` that lies in a folder closed to it (such as
/// an interpreter in root's home): such a folder is covered by an empty one in which only
/// those paths are.
pub(crate) fn reveal(paths: &[&Path], uid: u32) -> io::Result<()> {
    let mut hidden: BTreeMap<PathBuf, Vec<&Path>> = BTreeMap::new();
    for path in paths {
        // The child's own refusal is clearer than ours when it is not there.
        if let Some(folder) = closed_folder(path, uid).filter(|_| path.exists()) {
            hidden.entry(folder).or_default().push(path);
        }
    }
    for (folder, mut paths) in hidden {
        // A path below another comes with it, and sorts after it.
        paths.sort();
        paths.dedup_by(|later, earlier| later.starts_with(*earlier));
        let mut trees = Vec::new();
        for path in paths {
            trees.push((path, handle(path)?));
        }
        mount_on(Some("tmpfs"), &folder, MsFlags::MS_NOSUID, Some("mode=755,size=1m"))?;
        for (path, tree) in trees {
            if tree.metadata()?.is_dir() {
                open_to_all(path)?;
            } else {
                open_to_all(path.parent().unwrap_or(&folder))?;
                File::create(path)?;
            }
            bind(&tree, path)?;
        }
    }
    Ok(())
}

/// Makes the first `write` tree the temporary folder of all names.
pub(crate) fn private_temporary(confinement: &Confinement) -> io::Result<()> {
    let Some(private) = confinement.write.first() else { return Ok(()) };
    let tree = handle(private)?;
    for folder in TEMPORARY {
        let trees = confinement.write.iter().chain(&confinement.read);
        let is_needed = trees.into_iter().any(|tree| tree.starts_with(folder));
        if !is_needed && Path::new(folder).is_dir() {
            bind(&tree, Path::new(folder))?;
        }
    }
    Ok(())
}

/// The outermost folder on the way to `path` that `uid`, with no groups, cannot pass.
fn closed_folder(path: &Path, uid: u32) -> Option<PathBuf> {
    let mut folders: Vec<&Path> = path.ancestors().skip(1).collect();
    // Not the root: a cover on it is not seen by those who look from it.
    folders.pop();
    let is_closed = |folder: &&Path| {
        let Ok(about) = fs::metadata(folder) else { return false };
        let pass = if about.uid() == uid {
            0o100
        } else if about.gid() == uid {
            0o010
        } else {
            0o001
        };
        about.mode() & pass == 0
    };
    folders.into_iter().rev().find(is_closed).map(Path::to_owned)
}

/// Makes the folder `path`, with those above it, for all to pass whatever the umask says.
fn open_to_all(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if path.exists() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        open_to_all(parent)?;
    }
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Holds a place that is about to be covered.
fn handle(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)
}

fn bind(tree: &File, on: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", tree.as_raw_fd());
    mount_on(Some(&source), on, MsFlags::MS_BIND | MsFlags::MS_REC, None)
}

fn mount_on(
    source: Option<&str>,
    target: &Path,
    flags: MsFlags,
    options: Option<&str>,
) -> io::Result<()> {
    let kind = source.filter(|source| !source.starts_with('/'));
    mount(source, target, kind, flags, options).map_err(io::Error::from)
}
