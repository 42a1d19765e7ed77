//! Confined processes, as root confines them and as any other user does.
//!
//! Brings its own `main`, as it re-executes itself as the confined process. Each test runs
//! twice: `root::x` gives the child a user of its own, `user::x` runs the whole test as nobody.
//! What this machine does not allow is skipped, and said so.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what a test runner is for")]
#![allow(clippy::unwrap_used)]

mod calls;
mod files;
mod life;
mod limits;
mod network;
mod refusal;
mod sealed;
mod setting;

use std::panic::catch_unwind;
use std::process::{Command, ExitCode};

use setting::{FOLDER, is_root};

/// A test gives the reason why it was skipped, if it was.
pub(crate) type Outcome = Option<String>;
type Test = (&'static str, fn() -> Outcome);

const NOBODY: &str = "65534";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [roundhouse_confine::SUBCOMMAND] => {
            let error = roundhouse_confine::exec();
            eprintln!("{}", setting::chain(&error));
            ExitCode::from(126)
        }
        ["without", what, program, rest @ ..] => refusal::run_without(what, program, rest),
        ["parent"] => life::be_parent(),
        ["sealed", attempt] => sealed::be_sealed(attempt),
        _ => run(&words),
    }
}

fn tests() -> Vec<Test> {
    let beside = [limits::TESTS, life::TESTS, refusal::TESTS, sealed::TESTS].concat();
    [files::TESTS, network::TESTS, calls::TESTS].concat().into_iter().chain(beside).collect()
}

/// The part of the standard runner's command line that people and nextest use.
fn run(words: &[&str]) -> ExitCode {
    let exact = words.contains(&"--exact");
    // "terse" is the value of an option, and no test's name has it.
    let is_filter = |word: &&str| !word.starts_with("--") && *word != "terse";
    let filters: Vec<&str> = words.iter().copied().filter(is_filter).collect();
    let is_wanted = |name: &str| {
        let meets = |filter: &&str| if exact { *filter == name } else { name.contains(filter) };
        filters.is_empty() || filters.iter().any(meets)
    };
    let mut failed = 0;
    for who in ["root", "user"] {
        for (test, body) in tests() {
            let name = format!("{who}::{test}");
            if !is_wanted(&name) || words.contains(&"--ignored") {
                continue;
            }
            if words.contains(&"--list") {
                println!("{name}: test");
                continue;
            }
            let outcome = match (who, is_root()) {
                ("root", false) => Ok(Some("not root".to_owned())),
                ("user", true) => as_nobody(&name),
                _ => catch_unwind(body).map_err(|_| ()),
            };
            match outcome {
                Ok(None) => println!("test {name} ... ok"),
                Ok(Some(reason)) => println!("test {name} ... skipped: {reason}"),
                Err(()) => {
                    println!("test {name} ... FAILED");
                    failed += 1;
                }
            }
        }
    }
    ExitCode::from(u8::from(failed > 0))
}

/// Runs one test in a process that is nobody's.
fn as_nobody(name: &str) -> Result<Outcome, ()> {
    let folder = setting::folder();
    std::os::unix::fs::chown(folder.path(), Some(65534), Some(65534)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env(FOLDER, folder.path())
        .output();
    let Ok(output) = output else { return Ok(Some("setpriv is not installed".to_owned())) };
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        print!("{said}{}", String::from_utf8_lossy(&output.stderr));
        return Err(());
    }
    // A name that meets no test would be a success too.
    assert!(said.contains(&format!("test {name} ... ")), "{said}");
    Ok(said.split_once("skipped: ").map(|(_, reason)| reason.trim().to_owned()))
}
