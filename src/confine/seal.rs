//! A process of our own that computes what strangers say, and nothing else.
//!
//! Beside [`exec`](crate::exec()), which makes a process another program's: here it stays ours, so
//! what it may do is a short list of permissions instead of refusals.

use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::unistd::Uid;
use rustix::process::DumpableBehavior;

use crate::{Error, calls, files, identity, limits};

/// Processor seconds of all its life: beyond what it is asked to compute, which ends before.
const LIFE_SECONDS: u64 = 4 * 60 * 60;
/// Whom root becomes: nobody, who owns nothing.
const NOBODY: u32 = 65534;

/// Takes from this process, for good, all but its standard streams and computing: files, sockets,
/// other processes, and memory of more than `memory` bytes beyond what it has. It ends with the
/// thread of `parent` that started it, and is the first to end where the machine's memory does.
/// Where this machine filters no system calls the rest of it is in force, as far as there is such;
/// returned is what is missing then. The limits hold in any case.
///
/// To be called first thing in `main`, before any other thread runs.
///
/// # Errors
/// Where there are other threads, the parent is gone, or a limit cannot be set.
pub fn seal(parent: u32, memory: u64) -> Result<Vec<String>, Error> {
    limits::require_one_thread()?;
    limits::close_inherited()?;
    let mut faults = Vec::new();
    let mut note = |what: &str, fault: String| faults.push(format!("{what}: {fault}"));
    if let Err(error) = limits::be_first_to_end() {
        note("the out-of-memory score", error.to_string());
    }
    let has = address_space()?;
    if Uid::effective().is_root()
        && let Err(fault) = identity::become_user(NOBODY)
    {
        note("another user", fault);
    }
    identity::renounce_privileges()?;
    // Nobody but root reads its memory: others' words are there.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|errno| Error::step("hiding its memory", errno))?;
    identity::die_with(parent)?;
    if let Err(fault) = files::deny_all() {
        note("file rules (Landlock)", fault);
    }
    limits::lower("forbidding core dumps", Resource::RLIMIT_CORE, 0)?;
    limits::lower("forbidding files", Resource::RLIMIT_NOFILE, 3)?;
    limits::lower("forbidding to write files", Resource::RLIMIT_FSIZE, 0)?;
    limits::lower("limiting processor time", Resource::RLIMIT_CPU, LIFE_SECONDS)?;
    limits::lower("forbidding processes", Resource::RLIMIT_NPROC, 0)?;
    // The stack and all that is mapped count, so it holds whatever a stranger makes grow.
    limits::lower("limiting memory", Resource::RLIMIT_AS, has.saturating_add(memory))?;
    match calls::allow_computing() {
        // It suffices by itself.
        Ok(()) => Ok(Vec::new()),
        Err(fault) => {
            note("the system call filter (seccomp)", fault);
            Ok(faults)
        }
    }
}

/// Lets this process take so many seconds more of processor time, rounded up to whole ones; then the
/// kernel ends it (SIGXCPU). To be called again before each piece of work.
///
/// # Errors
/// Where a lower limit was set for good.
pub fn allow_processor_time(seconds: u64) -> Result<(), Error> {
    let step = "limiting processor time";
    let used = getrusage(UsageWho::RUSAGE_SELF).map_err(|errno| Error::step(step, errno))?;
    let used = (used.user_time() + used.system_time()).tv_sec();
    let (_, most) = getrlimit(Resource::RLIMIT_CPU).map_err(|errno| Error::step(step, errno))?;
    // What was used is rounded down.
    let until = u64::try_from(used).unwrap_or(0).saturating_add(seconds + 1).min(most);
    setrlimit(Resource::RLIMIT_CPU, until, most).map_err(|errno| Error::step(step, errno))
}

/// What is mapped now, in bytes.
fn address_space() -> Result<u64, Error> {
    let step = "reading what is mapped";
    let text = fs::read_to_string("/proc/self/statm").map_err(|error| Error::step(step, error))?;
    let pages: Option<u64> = text.split(' ').next().and_then(|number| number.parse().ok());
    let pages = pages.ok_or_else(|| Error::step(step, std::io::ErrorKind::InvalidData))?;
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}
