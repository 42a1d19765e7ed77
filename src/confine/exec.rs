//! The order in which rights are given up.
//!
//! Each step needs what the later ones take away: the mounts and the out-of-memory score need
//! root; the signal on the parent's death is cleared by a change of user; the file rules name
//! files as the child's user finds them, in its mounts; the limits come when our own work is
//! almost done; and the filter is last, as it refuses much of the above.

use std::convert::Infallible;
use std::fmt::Display;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::Uid;

use crate::launch::{Request, VARIABLE};
use crate::probe;
use crate::{Confinement, Error, Isolation, Launch, Network};
use crate::{calls, files, identity, limits, namespace};

/// Signals are kept from other processes of the same user since then.
pub(crate) const SIGNAL_SCOPING: u32 = 6;

/// Limits this process as it was asked to, and becomes the program. Returns only on failure;
/// the caller writes the error with its sources to standard error and exits with 126.
///
/// To be called first thing in `main`, before any other thread runs.
#[must_use]
pub fn exec() -> Error {
    let Err(error) = try_exec();
    error
}

fn try_exec() -> Result<Infallible, Error> {
    let text = std::env::var(VARIABLE).map_err(|_| Error::NoLaunch)?;
    let request = serde_json::from_str(&text).map_err(Error::Malformed)?;
    limits::require_one_thread()?;
    limits::close_inherited()?;
    match request {
        Request::Launch { parent, launch } => become_program(parent, &launch),
        Request::Probe { parent } => probe::answer(parent),
    }
}

fn become_program(parent: u32, launch: &Launch) -> Result<Infallible, Error> {
    confine(parent, &launch.confinement, &[&launch.program, &launch.dir])?;
    std::env::set_current_dir(&launch.dir).map_err(|error| Error::path(&launch.dir, error))?;
    let env = launch.env.iter().map(|(name, value)| (name, value));
    let failure = Command::new(&launch.program).args(&launch.args).env_clear().envs(env).exec();
    Err(Error::path(&launch.program, failure))
}

/// What has come into force.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    pub(crate) mount_namespace: bool,
    pub(crate) own_uid: bool,
    pub(crate) landlock_abi: Option<u32>,
    pub(crate) seccomp: bool,
    pub(crate) faults: Vec<String>,
}

/// Takes all steps. `used` are paths that the program is started by, beside its trees.
pub(crate) fn confine(
    parent: u32,
    confinement: &Confinement,
    used: &[&Path],
) -> Result<Applied, Error> {
    let root = Uid::effective().is_root();
    let mut applied = Applied::default();
    limits::yield_to_others(confinement)?;

    let own_user = confinement.uid.filter(|uid| root && *uid != 0);
    // Never required: a comfort, where the rules about files are the protection.
    arrange_mounts(confinement, root, used, &mut applied);
    let switched = match own_user {
        Some(uid) => identity::become_user(uid),
        None => Err("none was named".to_owned()),
    };
    match switched {
        Ok(()) => applied.own_uid = true,
        Err(reason) if root => refuse_or_note(confinement, &mut applied, OWN_USER, reason)?,
        Err(_) => {}
    }
    identity::renounce_privileges()?;
    identity::die_with(parent)?;

    match files::restrict(confinement) {
        Ok(abi) if !root && abi < SIGNAL_SCOPING => {
            applied.landlock_abi = Some(abi);
            let reason = format!("version {abi} of Landlock, and the server is not root");
            refuse_or_note(confinement, &mut applied, SCOPING, reason)?;
        }
        Ok(abi) => applied.landlock_abi = Some(abi),
        Err(reason) => refuse_or_note(confinement, &mut applied, FILE_RULES, reason)?,
    }
    limits::apply(confinement, applied.own_uid)?;
    match calls::restrict(&confinement.network) {
        Ok(()) => applied.seccomp = true,
        Err(reason) => refuse_or_note(confinement, &mut applied, CALL_FILTER, reason)?,
    }
    Ok(applied)
}

/// Names of what can be missing.
pub(crate) const OWN_USER: &str = "a user of its own (CAP_SETUID and CAP_SETGID)";
pub(crate) const FILE_RULES: &str = "file rules (Landlock, Linux 5.13)";
pub(crate) const SCOPING: &str = "signal scoping (Landlock 6, Linux 6.12; or the server as root)";
pub(crate) const CALL_FILTER: &str = "the system call filter (seccomp)";

fn refuse_or_note(
    confinement: &Confinement,
    applied: &mut Applied,
    what: &'static str,
    reason: String,
) -> Result<(), Error> {
    if confinement.isolation == Isolation::Required {
        return Err(Error::missing(what, reason));
    }
    applied.faults.push(format!("{what}: {reason}"));
    Ok(())
}

/// Each of these helps without the others.
fn arrange_mounts(confinement: &Confinement, root: bool, used: &[&Path], applied: &mut Applied) {
    let mut note =
        |what: &str, fault: &dyn Display| applied.faults.push(format!("{what}: {fault}"));
    if let Err(fault) = namespace::enter(root) {
        return note("mount namespace", &fault);
    }
    applied.mount_namespace = true;
    if confinement.network == Network::None
        && let Err(errno) = namespace::leave_network()
    {
        note("network namespace", &errno);
    }
    if let Err(error) = namespace::hold_own_facts() {
        note("holding /proc/self", &error);
    }
    if let Some(uid) = confinement.uid.filter(|_| root) {
        let trees = confinement.read.iter().chain(&confinement.write).map(PathBuf::as_path);
        let paths: Vec<&Path> = trees.chain(used.iter().copied()).collect();
        if let Err(error) = namespace::reveal(&paths, uid) {
            note("opening a way to the trees", &error);
        }
    }
    if let Err(error) = namespace::private_temporary(confinement) {
        note("private temporary folder", &error);
    }
}
