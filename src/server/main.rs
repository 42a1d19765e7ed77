//! The `roundhouse` binary: reads the command line, carries the command out, says what went
//! wrong and what to do next.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use roundhouse::cli::{Cli, told, told_as_json};
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
    if std::env::args_os().nth(1).is_some_and(|it| it == roundhouse::templates::SUBCOMMAND) {
        // Nor this: it renders the chat templates of models.
        return roundhouse::templates::serve();
    }
    let cli = Cli::parse();
    let in_json = cli.command.fails_in_json();
    let mut last = None;
    let outcome = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let outcome = runtime.block_on(cli.command.run(&mut last));
            // Without a bound a load that was cut off would hold the process to its end.
            runtime.shutdown_timeout(LAST_WRITES);
            outcome
        }
        Err(source) => Err(Error::io("cannot start threads", source)),
    };
    drop(last);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error, in_json(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Writes what went wrong, unless it is that the reader has left.
fn tell(error: &Error, in_json: bool) {
    if !matches!(error, Error::OutputClosed) {
        if in_json {
            // Nor is anybody when standard output is.
            let _ = std::io::stdout().write_all(told_as_json(error).as_bytes());
        }
        // Nobody is left to be told when standard error is closed.
        let _ = std::io::stderr().write_all(told(error).as_bytes());
    }
}
