//! Numbers: memory, files, processes, priority; and what was inherited.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};

use crate::{Confinement, Error};

/// Closes every descriptor above standard error: what another thread of the server had open
/// without close-on-exec at the moment of the fork is not the child's.
pub(crate) fn close_inherited() -> Result<(), Error> {
    let failed = |source: io::Error| Error::step("closing inherited files", source);
    let mut open = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.parse::<i32>().ok()) {
            open.push(number);
        }
    }
    for number in open.into_iter().filter(|number| *number > 2) {
        match nix::unistd::close(number) {
            // The listing's own descriptor is in the list and closed by now.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(())
}

/// Refuses to go on beside other threads, which would keep their rights.
pub(crate) fn require_one_thread() -> Result<(), Error> {
    let tasks = fs::read_dir("/proc/self/task")
        .map_err(|source| Error::step("counting threads", source))?;
    match tasks.count() {
        1 => Ok(()),
        threads => Err(Error::Threads(threads)),
    }
}

/// First to be killed when memory runs out, last to be given the processor; no file that it
/// creates is for others. Root's right to lower the score again is gone with the next step.
pub(crate) fn yield_to_others(confinement: &Confinement) -> Result<(), Error> {
    umask(Mode::from_bits_truncate(0o077));
    be_first_to_end()?;
    let failed = |errno: rustix::io::Errno| Error::step("lowering the priority", errno);
    let now = rustix::process::getpriority_process(None).map_err(failed)?;
    let nice = now.saturating_add(confinement.nice.max(0)).min(19);
    rustix::process::setpriority_process(None, nice).map_err(failed)
}

/// First to be killed when memory runs out.
pub(crate) fn be_first_to_end() -> Result<(), Error> {
    fs::write("/proc/self/oom_score_adj", "1000")
        .map_err(|source| Error::step("setting the out-of-memory score", source))
}

/// Sets a limit for good. One that is already lower stays: only root could raise it.
pub(crate) fn lower(step: &'static str, resource: Resource, value: u64) -> Result<(), Error> {
    let hard = getrlimit(resource).map_err(|errno| Error::step(step, errno))?.1;
    let value = value.min(hard);
    setrlimit(resource, value, value).map_err(|errno| Error::step(step, errno))
}

/// The kernel's limits. `own_user` says that no other process counts for the user's number of
/// processes.
pub(crate) fn apply(confinement: &Confinement, own_user: bool) -> Result<(), Error> {
    lower("forbidding core dumps", Resource::RLIMIT_CORE, 0)?;
    lower("limiting open files", Resource::RLIMIT_NOFILE, confinement.open_files.into())?;
    lower("limiting file size", Resource::RLIMIT_FSIZE, confinement.file_size)?;
    if let Some(memory) = confinement.memory {
        lower("limiting memory", Resource::RLIMIT_DATA, memory)?;
    }
    if let Some(processes) = confinement.processes.filter(|_| own_user) {
        lower("limiting processes", Resource::RLIMIT_NPROC, processes.into())?;
    }
    Ok(())
}
