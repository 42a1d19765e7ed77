//! What a confined process may use, and how its start is asked for.

use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// The argument by which an executable knows that it is to call [`exec`](crate::exec).
pub const SUBCOMMAND: &str = "confined-exec";

/// Where the launch travels. Not an argument: every user can read those, and the launch
/// holds the child's environment.
pub(crate) const VARIABLE: &str = "ROUNDHOUSE_LAUNCH";

/// Where libraries are that the executable may be linked against, such as CUDA's driver: without it, it
/// would not even begin.
const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// The kernel's limit for one variable is 128 KiB with its name and final zero.
const MOST_BYTES: usize = 128 * 1024 - 64;

/// How strictly a child must be confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// Everything that [`Mechanisms::missing`](crate::Mechanisms::missing) can name, or no start.
    Required,
    /// Whatever this machine and user allow. Limits and the environment apply all the same.
    BestEffort,
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Required => "required",
            Self::BestEffort => "best-effort",
        })
    }
}

impl FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "required" => Ok(Self::Required),
            "best-effort" => Ok(Self::BestEffort),
            _ => Err(format!("{text:?} is neither \"required\" nor \"best-effort\"")),
        }
    }
}

/// Which sockets a confined process may open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// None of any family; only connected pairs of stream sockets.
    None,
    /// IPv4 and IPv6: TCP out to these ports (to all ports before Linux 6.7), and UDP, for
    /// names. No TCP port is bound.
    Tcp {
        /// Ports that may be connected to.
        ports: Vec<u16>,
    },
}

/// What one confined process, and whatever it starts, may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// How strictly.
    pub isolation: Isolation,
    /// The user and, by the same number, the group to become. Only root can become another;
    /// under another caller it is not looked at. It should belong to nobody else: what
    /// processes of one user may do to each other is not limited by the user.
    pub uid: Option<u32>,
    /// Trees and files to read and execute. Those that are missing are skipped.
    pub read: Vec<PathBuf>,
    /// Trees to read, write and execute. Where a mount namespace can be had, the first one is
    /// also `/tmp`, `/var/tmp` and `/dev/shm`, unless one of the trees lies below those.
    pub write: Vec<PathBuf>,
    /// Sockets.
    pub network: Network,
    /// Most private writable memory, in bytes, of each process (`RLIMIT_DATA`).
    pub memory: Option<u64>,
    /// Most threads and processes of its user (`RLIMIT_NPROC`). Only applied with a user of
    /// its own, as the caller's other processes would count.
    pub processes: Option<u32>,
    /// Most open files of each process.
    pub open_files: u32,
    /// Largest file that can be written, in bytes.
    pub file_size: u64,
    /// Added to the caller's nice value; from 0 to 19.
    pub nice: i32,
}

/// One confined process to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// What it may use.
    pub confinement: Confinement,
    /// The executable: an absolute path, in or below one of the trees.
    pub program: PathBuf,
    /// Its arguments, without its name.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: Vec<(String, String)>,
    /// Its working directory.
    pub dir: PathBuf,
}

impl Launch {
    /// A command that re-executes `exe` to confine itself and become the program. The caller
    /// sets stdio; the process leads its own group.
    ///
    /// The child is killed when the *thread* that spawns it ends, so it is to be spawned by a
    /// thread that lives as long as the process. What goes wrong after the spawn is said on the
    /// child's standard error, with exit code 126.
    pub fn command(&self, exe: &Path) -> Result<Command, Error> {
        Request::Launch { parent: std::process::id(), launch: Box::new(self.clone()) }.command(exe)
    }
}

/// What a re-executed process is asked to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    Launch { parent: u32, launch: Box<Launch> },
    Probe { parent: u32 },
}

impl Request {
    pub(crate) fn command(&self, exe: &Path) -> Result<Command, Error> {
        let text = serde_json::to_string(self).map_err(Error::Malformed)?;
        if text.len() > MOST_BYTES {
            return Err(Error::TooLarge { size: text.len(), most: MOST_BYTES });
        }
        let mut command = Command::new(exe);
        let libraries = std::env::var_os(LIBRARIES).map(|path| (LIBRARIES, path));
        // The program itself is given its own environment alone.
        command.arg(SUBCOMMAND).env_clear().envs(libraries).env(VARIABLE, text).process_group(0);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_binary_finds_its_libraries_and_has_nothing_else_of_our_environment() {
        let command = Request::Probe { parent: 1 }.command(Path::new("/proc/self/exe")).unwrap();
        let given = command.get_envs().filter(|(name, _)| *name != VARIABLE);
        let ours = std::env::var_os(LIBRARIES);
        let same: Vec<_> = ours.iter().map(|it| (LIBRARIES.as_ref(), Some(&**it))).collect();
        assert_eq!(given.collect::<Vec<_>>(), same, "cargo sets it for tests");
    }
}
