//! Why a process could not be confined, started or asked.

use std::io;
use std::path::{Path, PathBuf};

/// A launch that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `isolation = "required"` asks for something that this machine or user does not have.
    #[error("isolation is required, but {what} is missing: {reason}")]
    Missing {
        /// The mechanism.
        what: &'static str,
        /// What the kernel answered, or which version is too old.
        reason: String,
    },
    /// A limit or a step that is taken at every level of isolation.
    #[error("{step} failed")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// A file or folder that the launch names cannot be used.
    #[error("cannot use {}", path.display())]
    Path {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The launch is not in the environment, cannot be read, or cannot be written down.
    #[error("launch is malformed")]
    Malformed(#[source] serde_json::Error),
    /// The launch is larger than the kernel takes in one variable.
    #[error("launch takes {size} bytes, the kernel takes {most}")]
    TooLarge {
        /// The launch as text, in bytes.
        size: usize,
        /// The most it may be, in bytes.
        most: usize,
    },
    /// The process was not started by [`Launch::command`](crate::Launch::command).
    #[error("no launch in the environment")]
    NoLaunch,
    /// Rights belong to threads: a second one would keep what the first gives up.
    #[error("cannot confine a process of {0} threads")]
    Threads(usize),
    /// The process that asked for this one is gone.
    #[error("parent process is gone")]
    Orphaned,
    /// The Python interpreter does not say where its files are.
    #[error("{} does not say where its files are: {reason}", path.display())]
    Interpreter {
        /// The interpreter as it was named.
        path: PathBuf,
        /// Its last words, or why there are none.
        reason: String,
    },
}

impl Error {
    pub(crate) fn missing(what: &'static str, reason: impl ToString) -> Self {
        Self::Missing { what, reason: reason.to_string() }
    }

    pub(crate) fn step(step: &'static str, source: impl Into<io::Error>) -> Self {
        Self::Step { step, source: source.into() }
    }

    pub(crate) fn path(path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Path { path: path.to_owned(), source: source.into() }
    }
}
