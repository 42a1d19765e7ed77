//! Folders, interpreters and launches for the tests.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use roundhouse_confine::{Confinement, Interpreter, Isolation, Launch, Mechanisms, Network, probe};
use tempfile::TempDir;

/// The variable that names the folder for a test that runs as nobody.
pub(crate) const FOLDER: &str = "CONFINE_TEST_FOLDER";

/// A user of no one's.
pub(crate) const CHILD: u32 = 64123;

/// Defined for all of the tests' Python code: what an attempt came to.
const PRELUDE: &str = "
import ctypes, errno, os, signal, socket, sys
def tell(name, attempt):
    try:
        value = attempt()
        print(name, 'done' if value is None else value)
    except OSError as error:
        print(name, errno.errorcode[error.errno])
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    if libc.syscall(ctypes.c_long(number), *words) < 0:
        raise OSError(ctypes.get_errno(), 'call')
";

pub(crate) fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A new folder that every user can pass, outside of the temporary folders, since those are
/// replaced.
pub(crate) fn folder() -> TempDir {
    let parent = std::env::var(FOLDER).unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").to_owned());
    let folder = TempDir::new_in(parent).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

pub(crate) fn exe() -> PathBuf {
    std::env::current_exe().unwrap()
}

pub(crate) fn mechanisms() -> &'static Mechanisms {
    static FOUND: OnceLock<Mechanisms> = OnceLock::new();
    FOUND.get_or_init(|| probe(&exe()))
}

/// The system's Python, which every user can read, or else the first in `PATH`.
pub(crate) fn python() -> &'static Interpreter {
    static FOUND: OnceLock<Interpreter> = OnceLock::new();
    FOUND.get_or_init(|| {
        let named = Path::new("/usr/bin/python3");
        let named = if named.exists() { named } else { Path::new("python3") };
        Interpreter::ask(named).unwrap()
    })
}

/// Skips a test where `required` is not possible.
macro_rules! require {
    () => {
        let missing = $crate::setting::mechanisms().missing();
        if !missing.is_empty() {
            return Some(missing.join(", "));
        }
    };
}
pub(crate) use require;

/// Three folders (`read`, `write`, `outside`), and the launch of a process that may use two.
pub(crate) struct Setting {
    pub(crate) folder: TempDir,
    pub(crate) launch: Launch,
}

impl Setting {
    pub(crate) fn new() -> Self {
        let folder = folder();
        for name in ["read", "write", "outside"] {
            let tree = folder.path().join(name);
            fs::create_dir(&tree).unwrap();
            // As open as can be, so that a denial is the confinement's.
            fs::set_permissions(&tree, fs::Permissions::from_mode(0o777)).unwrap();
            let file = tree.join("file");
            fs::write(&file, name).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        }
        let write = folder.path().join("write");
        if is_root() {
            chown(&write, Some(CHILD), Some(CHILD)).unwrap();
        }
        let mut read = python().read.clone();
        read.push(folder.path().join("read"));
        let confinement = Confinement {
            isolation: Isolation::Required,
            uid: is_root().then_some(CHILD),
            read,
            write: vec![write.clone()],
            network: Network::None,
            memory: Some(1 << 30),
            processes: Some(64),
            open_files: 256,
            file_size: 1 << 20,
            nice: 5,
        };
        let env = vec![
            ("TREES".to_owned(), folder.path().display().to_string()),
            ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
        ];
        let launch =
            Launch { confinement, program: PathBuf::new(), args: Vec::new(), env, dir: write };
        Self { folder, launch }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn shell(&mut self, script: &str) -> Command {
        self.program("/bin/sh", &["-c", script])
    }

    pub(crate) fn python(&mut self, code: &str) -> Command {
        let program = python().executable.display().to_string();
        self.program(&program, &["-s", "-B", "-c", &format!("{PRELUDE}\n{code}")])
    }

    pub(crate) fn program(&mut self, program: &str, args: &[&str]) -> Command {
        self.launch.program = program.into();
        self.launch.args = args.iter().map(|word| (*word).to_owned()).collect();
        self.launch.command(&exe()).unwrap()
    }

    /// What confined Python code told.
    pub(crate) fn told(&mut self, code: &str) -> BTreeMap<String, String> {
        read(&self.python(code).output().unwrap())
    }

    /// What the same code tells when this test's user runs it.
    pub(crate) fn told_unconfined(&self, code: &str) -> BTreeMap<String, String> {
        let mut command = Command::new(&python().executable);
        command.args(["-s", "-B", "-c", &format!("{PRELUDE}\n{code}")]);
        command.env("TREES", self.folder.path());
        read(&command.output().unwrap())
    }
}

fn read(output: &Output) -> BTreeMap<String, String> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {stderr}", output.status);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let pair = |line: &str| line.split_once(' ').map(|(k, v)| (k.to_owned(), v.to_owned()));
    stdout.lines().map(|line| pair(line).unwrap()).collect()
}

/// Fails unless exactly these were told.
#[track_caller]
pub(crate) fn assert_told(told: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    assert_eq!(*told, expected.iter().map(own).collect());
}
