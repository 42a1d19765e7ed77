//! The `roundhouse` binary: reads the command line, carries the command out, says what went
//! wrong and what to do next.

use std::error::Error as _;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use roundhouse::cli::Cli;
use roundhouse::error::Error;

/// How long file work under way may take after everything else has ended.
const LAST_WRITES: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == roundhouse_confine::SUBCOMMAND)
    {
        // Not in the command line's help: the server calls itself so, to become a worker.
        let error = roundhouse_confine::exec();
        let _ = writeln!(std::io::stderr(), "error: {error}");
        return ExitCode::from(126);
    }
    if std::env::args_os().nth(1).is_some_and(|it| it == roundhouse_containers::SUBCOMMAND) {
        // Nor is this: it keeps the processes of a container that the server starts.
        return roundhouse_containers::keep();
    }
    roundhouse::allocator::tune();
    let cli = Cli::parse();
    let outcome = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let outcome = runtime.block_on(cli.command.run());
            // Without a bound a load that was cut off would hold the process to its end.
            runtime.shutdown_timeout(LAST_WRITES);
            outcome
        }
        Err(source) => Err(Error::io("cannot start threads", source)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Writes `error: …` with its causes, one line per fault, and a hint.
fn tell(error: &Error) {
    if matches!(error, Error::OutputClosed) {
        return;
    }
    let mut lines = String::new();
    if let Error::Settings(faults) = error {
        for fault in faults {
            lines.push_str(&format!("error: {fault}\n"));
        }
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    lines.push_str(&format!("error: {text}\n"));
    if let Some(hint) = error.hint() {
        lines.push_str(&format!("hint: {hint}\n"));
    }
    // Nobody is left to be told when standard error is closed.
    let _ = std::io::stderr().write_all(lines.as_bytes());
}
