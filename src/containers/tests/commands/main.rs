//! Containers that are started by command, as processes.
//!
//! Brings its own `main`, as it re-executes itself: as the keeper of a container's processes, as the
//! container, and as a server that is killed.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what a test runner is for")]
#![allow(clippy::unwrap_used)]

mod engines;
mod life;
mod stand_in;

use std::panic::catch_unwind;
use std::process::ExitCode;

type Test = (&'static str, fn());

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [roundhouse_containers::SUBCOMMAND, ..] => roundhouse_containers::keep(),
        ["stand-in", rest @ ..] => stand_in::run(rest),
        ["server"] => life::be_server(),
        _ => run(&words),
    }
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
    let wanted = life::TESTS.iter().chain(engines::TESTS).filter(|(name, _)| is_wanted(name));
    if words.contains(&"--list") {
        let ignored = words.contains(&"--ignored");
        wanted.filter(|_| !ignored).for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, test) in wanted {
        let passed = catch_unwind(test).is_ok();
        failed += usize::from(!passed);
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
    }
    if failed > 0 {
        eprintln!("{failed} failed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
