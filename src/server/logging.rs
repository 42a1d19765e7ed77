//! The log: lines on standard error, so that standard output stays the command's own.
//!
//! Whoever reads either may leave: what is written then is lost, and counted; the server goes on.

use std::io::{self, IsTerminal, Write, stderr, stdout};

use metrics::{Unit, counter, describe_counter};
use roundhouse_types::{ErrorKind, Failure};
use tracing::warn;
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};
use crate::error::Error;

const LINES_LOST: &str = "roundhouse_server_access_records_lost_total";

/// Registers the metric's help.
pub(crate) fn describe() {
    let help = "Lines of the log, the access log and the audit log that could not be written, or that \
                were lost since writing fell behind, by log: server, access, audit.";
    describe_counter!(LINES_LOST, Unit::Count, help);
}

/// Starts the log of this process; once.
///
/// # Errors
/// When a log was started before.
pub(crate) fn start(log: &Log) -> Result<(), Error> {
    let filter = EnvFilter::new(&log.level);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Lines);
    let started = match log.format {
        LogFormat::Human => lines.with_ansi(stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::from_error(ErrorKind::Internal, error.as_ref()).into())
}

/// Counts lines that a log lost: `server`, `access` or `audit`.
pub(crate) fn lost(log: &'static str, lines: u64) {
    counter!(LINES_LOST, "log" => log).increment(lines);
}

/// Says something on standard output to whoever started the server; the log has it where that fails.
pub(crate) fn say(text: &str) {
    let mut out = stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        warn!(%error, text, "standard output takes nothing");
    }
}

/// Standard error, a whole line at a time. It never fails: what writes the log would print that
/// on standard error, and a print that fails is a panic.
struct Lines;

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if stderr().write_all(line).is_err() {
            lost("server", 1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
