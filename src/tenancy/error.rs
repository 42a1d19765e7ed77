//! What can go wrong with the files and settings that say who may call, and with the ledger.

use std::io;
use std::path::{Path, PathBuf};

use roundhouse_types::{ErrorKind, Failure, RetryHint, TenantName};
use thiserror::Error;

/// Why a source of identities or the usage ledger cannot be used. Never holds a secret.
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
    /// A tenant that can have no keys.
    #[error("tenant {0} is whoever comes without a credential: it has no keys")]
    Keyless(TenantName),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
    /// The file system refuses.
    #[error("cannot {what} the usage ledger {}", path.display())]
    Ledger {
        /// What was to be done.
        what: &'static str,
        /// The ledger's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process writes it.
    #[error("the usage ledger {} is written by another process", path.display())]
    LedgerInUse {
        /// The ledger's file.
        path: PathBuf,
    },
    /// A thread cannot be started.
    #[error("cannot start the thread that writes the usage ledger")]
    Thread(#[source] io::Error),
}

impl Error {
    pub(crate) fn ledger(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Ledger { what, path: path.to_owned(), source }
    }

    /// What a client would be told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSuchKey(_) | Self::Keyless(_) => ErrorKind::InvalidRequest,
            _ => ErrorKind::Internal,
        }
    }

    /// Whether the same may succeed later.
    pub fn retry(&self) -> RetryHint {
        RetryHint::Never
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.kind(), &error)
    }
}
