//! What can go wrong with the files and settings that say who may call.

use std::io;
use std::path::PathBuf;

use roundhouse_types::{ErrorKind, RetryHint};
use thiserror::Error;

/// Why a source of identities cannot be used. Never holds a secret.
#[derive(Debug, Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: `read`, `write`…
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file's permissions would let others use what it guards.
    #[error("{} may be {what} by others (mode {mode:o}): chmod {wanted:o} it", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// As it is.
        mode: u32,
        /// As it should be.
        wanted: u32,
    },
    /// A file is not what it should be.
    #[error("{} is not a {what}: {why}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What was expected.
        what: &'static str,
        /// What was found.
        why: String,
    },
    /// Keys of this kind need a master secret, and there is none.
    #[error("{} holds SigV4 keys and {} is missing", keys.display(), master.display())]
    NoMaster {
        /// The file of keys.
        keys: PathBuf,
        /// Where the master secret would be.
        master: PathBuf,
    },
    /// No such key.
    #[error("no key {0}")]
    NoSuchKey(String),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

impl Error {
    /// What a client would be told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchKey(_) => ErrorKind::InvalidRequest,
            _ => ErrorKind::Internal,
        }
    }

    /// Whether the same may succeed later.
    pub fn retry(&self) -> RetryHint {
        RetryHint::Never
    }
}
