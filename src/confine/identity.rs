//! Whose process it is, and whose death ends it.

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{self, Gid, Pid, Uid};

use crate::Error;

/// Becomes the user and group `id`, with no other groups and no capabilities, for good.
pub(crate) fn become_user(id: u32) -> Result<(), String> {
    let uid = Uid::from_raw(id);
    let gid = Gid::from_raw(id);
    unistd::setgroups(&[]).map_err(|errno| format!("setgroups: {errno}"))?;
    unistd::setresgid(gid, gid, gid).map_err(|errno| format!("setresgid: {errno}"))?;
    unistd::setresuid(uid, uid, uid).map_err(|errno| format!("setresuid: {errno}"))?;
    let users = unistd::getresuid().map_err(|errno| format!("getresuid: {errno}"))?;
    let groups = unistd::getresgid().map_err(|errno| format!("getresgid: {errno}"))?;
    let others = unistd::getgroups().map_err(|errno| format!("getgroups: {errno}"))?;
    let users = [users.real, users.effective, users.saved];
    let groups = [groups.real, groups.effective, groups.saved];
    if users != [uid; 3] || groups != [gid; 3] || !others.is_empty() {
        return Err(format!("still {users:?} {groups:?} {others:?}"));
    }
    Ok(())
}

/// Nothing executed from here on gains rights by its file's owner or capabilities.
pub(crate) fn renounce_privileges() -> Result<(), Error> {
    prctl::set_no_new_privs().map_err(|errno| Error::step("giving up new privileges", errno))
}

/// Is killed when the thread that started it ends. To be called after the last change of user
/// or namespace, which clear it.
pub(crate) fn die_with(parent: u32) -> Result<(), Error> {
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| Error::step("asking to die with the parent", errno))?;
    // It may have ended before the call above; then nobody would ever send the signal.
    if Pid::parent().as_raw().unsigned_abs() != parent {
        return Err(Error::Orphaned);
    }
    Ok(())
}
