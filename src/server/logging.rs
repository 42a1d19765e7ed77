//! The log: lines on standard error, so that standard output stays the command's own.

use std::io::{IsTerminal, stderr};

use roundhouse_types::{ErrorKind, Failure};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};
use crate::error::Error;

/// Starts the log of this process; once.
///
/// # Errors
/// When a log was started before.
pub(crate) fn start(log: &Log) -> Result<(), Error> {
    let filter = EnvFilter::new(&log.level);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    let started = match log.format {
        LogFormat::Human => lines.with_ansi(stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| Failure::from_error(ErrorKind::Internal, error.as_ref()).into())
}
