//! One folder more in the view of a confined process that runs already.
//!
//! Its rules about files were fixed at its start. They hold for a folder and what is below it,
//! mounts included, so what is mounted on an empty folder that it may read becomes readable to
//! it, and to nobody else: the mount is in its own mount namespace alone.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::thread;

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::Error;

/// Mounts each tree on the folder beside it, as the process sees it, in this order. Needs a process
/// with a mount namespace of its own, and root. Blocking.
///
/// # Errors
/// Where the folders are not there, or the kernel refuses. What was mounted before stays.
pub fn show(process: BorrowedFd<'_>, trees: &[(&Path, &Path)]) -> Result<(), Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mut detached = Vec::new();
    for (tree, at) in trees {
        let opened = open_tree(rustix::fs::CWD, *tree, flags);
        detached.push((opened.map_err(|errno| Error::path(tree, errno))?, *at));
    }
    let at = trees.first().map_or(Path::new(""), |(_, at)| at);
    within(process, || {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        for (tree, at) in &detached {
            move_mount(tree, "", rustix::fs::CWD, *at, flags)?;
        }
        Ok(())
    })
    .map_err(|error| Error::path(at, error))
}

/// Takes it away again. Blocking.
///
/// # Errors
/// Where nothing is mounted there, or the process is gone.
pub fn hide(process: BorrowedFd<'_>, at: &Path) -> Result<(), Error> {
    within(process, || umount2(at, MntFlags::MNT_DETACH).map_err(io::Error::from))
        .map_err(|error| Error::path(at, error))
}

/// Does `work` in the mount namespace of another process: on a thread that ends with it, as a
/// thread that shares its folders with others cannot change to another namespace.
fn within(process: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let entered = || {
        unshare(CloneFlags::CLONE_FS)?;
        let before = fs::metadata("/proc/thread-self/ns/mnt")?;
        setns(process, CloneFlags::CLONE_NEWNS)?;
        // Of a process that shares our view this would be done to us.
        if is_same(&before, &fs::metadata("/proc/thread-self/ns/mnt")?) {
            return Err(io::Error::other("it has no mount namespace of its own"));
        }
        work()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("show".into()).spawn_scoped(scope, entered)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread has panicked")))
    })
}

fn is_same(one: &fs::Metadata, other: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
