//! Which files a Python interpreter needs.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::{Error, child};

/// Where shared libraries and the programs that Python may start are. The stores are those of
/// Nix and Guix, whose packages link to each other one by one.
const SYSTEM: &[&str] =
    &["/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/gnu/store"];

/// Prefixes (of a virtual environment and of what it was made from), libraries, and each
/// folder that packages are imported from.
const QUESTION: &str = "
import json, os, sys, sysconfig
trees = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
trees += [os.path.realpath(sys.executable), sysconfig.get_config_var('LIBDIR')]
trees += [sysconfig.get_paths()[key] for key in ('stdlib', 'platstdlib', 'purelib', 'platlib')]
trees += sys.path
print(json.dumps({
    'executable': sys.executable,
    'version': '%d.%d.%d' % sys.version_info[:3],
    'trees': [tree for tree in trees if tree and os.path.isabs(tree) and os.path.exists(tree)],
}))
";

/// A Python interpreter, as it describes itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// The executable to start: not a wrapper script, and a virtual environment's own.
    pub executable: PathBuf,
    /// Such as `3.11.7`.
    pub version: String,
    /// The trees and files for [`Confinement::read`](crate::Confinement::read).
    pub read: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Reply {
    executable: PathBuf,
    version: String,
    trees: Vec<PathBuf>,
}

impl Interpreter {
    /// Runs `python` (a path, or a name looked up in `PATH`) once, unconfined and with the
    /// caller's environment, and asks it. Takes at most twenty seconds.
    pub fn ask(python: &Path) -> Result<Self, Error> {
        let fault = |reason: String| Error::Interpreter { path: python.to_owned(), reason };
        let mut command = Command::new(python);
        // Isolated: neither the caller's PYTHON* variables nor the user's own packages.
        command.args(["-I", "-B", "-c", QUESTION]);
        let answer = child::ask(&mut command).map_err(|error| Error::path(python, error))?;
        if !answer.success {
            let last = answer.stderr.trim().lines().last().unwrap_or("no message");
            return Err(fault(last.to_owned()));
        }
        let reply: Reply =
            serde_json::from_str(&answer.stdout).map_err(|error| fault(error.to_string()))?;
        if !reply.executable.is_absolute() {
            return Err(fault("it does not know its own path".to_owned()));
        }
        let system = SYSTEM.iter().map(PathBuf::from).filter(|path| path.exists());
        Ok(Self {
            executable: reply.executable,
            version: reply.version,
            read: outermost(system.chain(reply.trees).collect()),
        })
    }
}

/// Leaves out what lies in another tree, and the root, which would be everything.
fn outermost(mut trees: Vec<PathBuf>) -> Vec<PathBuf> {
    trees.retain(|tree| tree.parent().is_some());
    trees.sort();
    trees.dedup_by(|later, earlier| later.starts_with(&*earlier));
    trees
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_in_another_is_left_out_and_so_is_the_root() {
        let trees = ["/usr/lib/python3", "/opt/p", "/", "/usr", "/usrlocal", "/opt/p"];
        let kept = outermost(trees.iter().map(PathBuf::from).collect());
        let expected: Vec<PathBuf> = ["/opt/p", "/usr", "/usrlocal"].map(PathBuf::from).into();
        assert_eq!(kept, expected);
    }
}
