//! The real clients: virtual environments with pinned packages, made once per target folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::server::{built, root};

/// Held while an environment is made: tests run side by side.
static MAKING: Mutex<()> = Mutex::new(());

/// The interpreter of an environment that holds `tests/clients/requirements.txt`.
///
/// # Panics
/// When Python 3 or the package registry cannot be had: the real clients are part of the tests.
pub fn interpreter() -> PathBuf {
    environment("clients-venv", "requirements.txt")
}

/// Runs a script of `tests/clients` and returns what it printed.
///
/// # Panics
/// When it exits with another status than 0; its output is in the message.
pub fn client(script: &str, args: &[&str]) -> String {
    run(Command::new(interpreter()).arg(scripts().join(script)).args(args))
}

/// A script of `tests/clients` that runs on, with what it prints to be read.
///
/// # Panics
/// When it cannot be started.
pub fn started(script: &str, args: &[&str]) -> Child {
    let mut command = Command::new(interpreter());
    command.arg(scripts().join(script)).args(args).stdout(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("{script}: {error}"))
}

/// As [`client`], with the larger frameworks (`requirements-frameworks.txt`).
///
/// # Panics
/// As [`client`] does.
pub fn framework_client(script: &str, args: &[&str]) -> String {
    let python = frameworks();
    let mut command = Command::new(python);
    // One asks the internet for its table of prices, the other tells of its next version.
    command.env("LITELLM_LOCAL_MODEL_COST_MAP", "True").env("SAGEMAKER_SUPPRESS_V2_WARNING", "1");
    run(command.arg(scripts().join(script)).args(args))
}

/// As [`client`], with what holds deployments against their platforms' schemas
/// (`requirements-deploy.txt`).
///
/// # Panics
/// As [`client`] does.
pub fn deploy_client(script: &str, args: &[&str]) -> String {
    let python = environment("deploy-venv", "requirements-deploy.txt");
    run(Command::new(python).arg(scripts().join(script)).args(args))
}

/// As [`client`], with Node.js and the packages of `tests/clients/package.json`.
///
/// # Panics
/// As [`client`] does.
pub fn node_client(script: &str, args: &[&str]) -> String {
    run(&mut node(script, args))
}

/// The command of a [`node_client`], for a test that talks with it meanwhile.
///
/// # Panics
/// When the packages cannot be had.
pub fn node(script: &str, args: &[&str]) -> Command {
    let bin = frameworks().parent().expect("in a folder").to_owned();
    let packages = target().join("clients-node");
    let wanted = scripts().join("package.json");
    once(&packages.join("installed.json"), &wanted, || {
        std::fs::create_dir_all(&packages).unwrap();
        std::fs::copy(&wanted, packages.join("package.json")).unwrap();
        let install = ["install", "--no-audit", "--no-fund", "--no-package-lock"];
        run(Command::new(bin.join("npm")).args(install).current_dir(&packages));
    });
    let mut command = Command::new(bin.join("node"));
    command.arg(scripts().join(script)).args(args).current_dir(packages);
    command
}

fn frameworks() -> PathBuf {
    environment("frameworks-venv", "requirements-frameworks.txt")
}

fn environment(name: &str, requirements: &str) -> PathBuf {
    let (venv, wanted) = (target().join(name), scripts().join(requirements));
    let python = venv.join("bin/python");
    once(&venv.join("installed.txt"), &wanted, || {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&wanted));
    });
    python
}

/// Does `work` unless it was done for a file as `wanted` is now; `stamp` remembers.
fn once(stamp: &Path, wanted: &Path, work: impl FnOnce()) {
    let _alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let content = std::fs::read(wanted).unwrap();
    if std::fs::read(stamp).is_ok_and(|done| done == content) {
        return;
    }
    work();
    std::fs::write(stamp, content).unwrap();
}

fn scripts() -> PathBuf {
    root().join("tests/clients")
}

fn target() -> PathBuf {
    built().parent().and_then(Path::parent).expect("target/<profile>").to_owned()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}
