//! The real clients: a virtual environment with pinned packages, made once per target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::server::{built, root};

/// The interpreter of an environment that holds `tests/clients/requirements.txt`.
///
/// # Panics
/// When Python 3 or the package registry cannot be had: the real clients are part of the tests.
pub fn interpreter() -> PathBuf {
    let target = built().parent().and_then(Path::parent).expect("target/<profile>").to_owned();
    let (venv, wanted) =
        (target.join("clients-venv"), root().join("tests/clients/requirements.txt"));
    let python = venv.join("bin/python");
    let stamp = venv.join("installed.txt");
    let requirements = std::fs::read(&wanted).unwrap();
    if std::fs::read(&stamp).is_ok_and(|installed| installed == requirements) {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&wanted));
    std::fs::write(stamp, requirements).unwrap();
    python
}

/// Runs a script of `tests/clients` and returns what it printed.
///
/// # Panics
/// When it exits with another status than 0; its output is in the message.
pub fn client(script: &str, args: &[&str]) -> String {
    let path = root().join("tests/clients").join(script);
    run(Command::new(interpreter()).arg(path).args(args))
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}
