//! What this machine and user allow.

use std::convert::Infallible;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal;
use nix::unistd::{Pid, Uid};
use serde::{Deserialize, Serialize};

use crate::exec::{self, Applied, CALL_FILTER, FILE_RULES, OWN_USER, SCOPING, SIGNAL_SCOPING};
use crate::launch::Request;
use crate::{Confinement, Error, Isolation, Network, child};

/// Whom the probe becomes: the user whom every system calls nobody.
const NOBODY: u32 = 65534;

/// The mechanisms of confinement that are at hand, as tried out in a child.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mechanisms {
    /// Whether the server is root, which decides what protects it from its children's signals.
    pub root: bool,
    /// Landlock's version, when its file rules hold.
    pub landlock_abi: Option<u32>,
    /// Whether system calls can be filtered.
    pub seccomp: bool,
    /// Whether a child can become another user; only asked of root.
    pub own_uid: bool,
    /// Whether a child can have a `/tmp` of its own. Not needed by `required`.
    pub mount_namespace: bool,
    /// Why the child could not be asked, or what it was refused.
    pub faults: Vec<String>,
}

impl Mechanisms {
    /// What `isolation = "required"` asks for and is not there; with nothing missing it is
    /// possible.
    pub fn missing(&self) -> Vec<&'static str> {
        let abi = self.landlock_abi;
        let checks = [
            (abi.is_some(), FILE_RULES),
            (self.root || abi.is_none_or(|abi| abi >= SIGNAL_SCOPING), SCOPING),
            (self.seccomp, CALL_FILTER),
            (!self.root || self.own_uid, OWN_USER),
        ];
        checks.into_iter().filter(|(there, _)| !there).map(|(_, name)| name).collect()
    }

    /// One line for the log: what is there, and why the rest is not.
    pub fn summary(&self) -> String {
        let landlock = self.landlock_abi.map_or("no".to_owned(), |abi| abi.to_string());
        let yes = |there| if there { "yes" } else { "no" };
        let mut line = format!(
            "landlock {landlock}, seccomp {}, own user {}, mount namespace {}",
            yes(self.seccomp),
            yes(self.own_uid),
            yes(self.mount_namespace)
        );
        if !self.faults.is_empty() {
            line.push_str(" (");
            line.push_str(&self.faults.join("; "));
            line.push(')');
        }
        line
    }
}

/// Tries each mechanism once, in a child that re-executes `exe`. Takes some milliseconds, and
/// at most twenty seconds. A child that cannot be asked has no mechanism.
pub fn probe(exe: &Path) -> Mechanisms {
    match try_probe(exe) {
        Ok(mechanisms) => mechanisms,
        Err(fault) => Mechanisms {
            root: Uid::effective().is_root(),
            faults: vec![format!("probe: {fault}")],
            ..Mechanisms::default()
        },
    }
}

fn try_probe(exe: &Path) -> Result<Mechanisms, String> {
    let mut command = Request::Probe { parent: std::process::id() }
        .command(exe)
        .map_err(|error| error.to_string())?;
    let answer = child::ask(&mut command).map_err(|error| error.to_string())?;
    if !answer.success {
        return Err(answer.stderr.trim().to_owned());
    }
    serde_json::from_str(&answer.stdout).map_err(|error| error.to_string())
}

/// The child's part: confines itself as far as it can, tries what must be denied, and says
/// what was.
pub(crate) fn answer(parent: u32) -> Result<Infallible, Error> {
    let root = Uid::effective().is_root();
    let confinement = Confinement {
        isolation: Isolation::BestEffort,
        uid: Some(NOBODY),
        read: Vec::new(),
        write: Vec::new(),
        network: Network::None,
        memory: None,
        processes: None,
        open_files: 64,
        file_size: 0,
        nice: 0,
    };
    let applied = exec::confine(parent, &confinement, &[])?;
    let mechanisms = verified(root, applied);
    let failed = |source| Error::step("answering", source);
    let text = serde_json::to_string(&mechanisms).map_err(Error::Malformed)?;
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(failed)?;
    std::process::exit(0)
}

/// Some sandboxes that containers run in accept a filter or a rule and do not hold it.
fn verified(root: bool, applied: Applied) -> Mechanisms {
    let Applied { mount_namespace, own_uid, mut landlock_abi, mut seccomp, mut faults } = applied;
    let is_denied = |error: io::Error| error.kind() == ErrorKind::PermissionDenied;
    if landlock_abi.is_some() && !fs::read_dir("/").is_err_and(is_denied) {
        landlock_abi = None;
        faults.push("file rules were accepted and do not hold".to_owned());
    }
    if seccomp && !UnixDatagram::unbound().is_err_and(is_denied) {
        seccomp = false;
        faults.push("the system call filter was accepted and does not hold".to_owned());
    }
    if !root && landlock_abi.is_some_and(|abi| abi >= SIGNAL_SCOPING) {
        // Signal zero asks whether one could be sent.
        if signal::kill(Pid::parent(), None) != Err(Errno::EPERM) {
            landlock_abi = Some(SIGNAL_SCOPING - 1);
            faults.push("signal scoping was accepted and does not hold".to_owned());
        }
    }
    Mechanisms { root, landlock_abi, seccomp, own_uid, mount_namespace, faults }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_depends_on_who_asks() {
        let root = Mechanisms {
            root: true,
            landlock_abi: Some(1),
            seccomp: true,
            own_uid: true,
            ..Mechanisms::default()
        };
        assert!(root.missing().is_empty());
        assert_eq!(Mechanisms { own_uid: false, ..root.clone() }.missing(), [OWN_USER]);

        let user = Mechanisms { root: false, own_uid: false, landlock_abi: Some(6), ..root };
        assert!(user.missing().is_empty());
        let old = Mechanisms { landlock_abi: Some(SIGNAL_SCOPING - 1), ..user };
        assert_eq!(old.missing(), [SCOPING]);
        assert_eq!(Mechanisms { landlock_abi: None, ..old }.missing(), [FILE_RULES]);
    }
}
