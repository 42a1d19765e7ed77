//! Interpreters that have imported beforehand, and the workers that are forked from them.
//!
//! Brings its own `main`, as it re-executes itself as the confined process. Where the machine
//! keeps none (without root or mount namespaces) all is skipped, and said so.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what a test runner is for")]
#![allow(clippy::unwrap_used)]

mod isolation;
mod keeping;
mod setting;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use setting::Setting;

type Test = (&'static str, fn(&tokio::runtime::Runtime));

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if words == [roundhouse_confine::SUBCOMMAND] {
        let error = roundhouse_confine::exec();
        eprintln!("{error}");
        return ExitCode::from(126);
    }
    // Silent unless RUST_LOG says otherwise.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    run(&words)
}

/// The part of the standard runner's command line that people and nextest use.
fn run(words: &[&str]) -> ExitCode {
    let exact = words.contains(&"--exact");
    let filters: Vec<&&str> =
        words.iter().filter(|word| !word.starts_with("--") && **word != "terse").collect();
    // Of all: what a test leaves to end in the background does.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut failed = 0;
    for (name, test) in [isolation::TESTS, keeping::TESTS].concat() {
        let meets = |filter: &&&str| if exact { **filter == name } else { name.contains(**filter) };
        let is_wanted = filters.is_empty() || filters.iter().any(meets);
        if !is_wanted || words.contains(&"--ignored") {
            continue;
        }
        if words.contains(&"--list") {
            println!("{name}: test");
            continue;
        }
        if let Some(reason) = runtime.block_on(async { Setting::missing() }) {
            println!("test {name} ... skipped: {reason}");
            continue;
        }
        match catch_unwind(AssertUnwindSafe(|| test(&runtime))) {
            Ok(()) => println!("test {name} ... ok"),
            Err(_) => {
                println!("test {name} ... FAILED");
                failed += 1;
            }
        }
    }
    ExitCode::from(u8::from(failed > 0))
}
