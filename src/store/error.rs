//! What can go wrong between a target's name and its files on disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use roundhouse_types::{Bytes, ErrorKind, Failure, RetryHint};
use thiserror::Error;

/// Every way in which this crate fails. Cheap to clone, because waiters of one
/// fetch share its outcome.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum Error {
    /// A store URI or a mount's settings cannot be used.
    #[error("store '{uri}': {why}")]
    Config {
        /// As written.
        uri: String,
        /// Which rule it breaks.
        why: String,
    },
    /// No object and no folder has the target's name.
    #[error("model '{model}' is not in {store}")]
    ModelNotFound {
        /// The endpoint and target.
        model: String,
        /// The mount that was asked.
        store: String,
    },
    /// One object is not there.
    #[error("object '{key}' is not in {store}")]
    ObjectNotFound {
        /// Where it was looked for.
        store: String,
        /// The object.
        key: String,
    },
    /// The store's permissions refuse us.
    #[error("{store} denies access to '{key}': {cause}")]
    AccessDenied {
        /// The store.
        store: String,
        /// The object, or the prefix of a listing.
        key: String,
        /// The store's words.
        cause: String,
    },
    /// The object is encrypted with a key that we may not use.
    #[error("the KMS key of '{key}' in {store} is denied to us: {cause}")]
    KmsDenied {
        /// The store.
        store: String,
        /// The object.
        key: String,
        /// The store's words.
        cause: String,
    },
    /// No credentials were found, or they could not be had.
    #[error("no credentials for {store}: {cause}")]
    NoCredentials {
        /// The store.
        store: String,
        /// What the credential chain said.
        cause: String,
    },
    /// The object lies in an archive storage class and must be restored first.
    #[error("'{key}' in {store} is archived and must be restored before it can be read")]
    Archived {
        /// The store.
        store: String,
        /// The object.
        key: String,
    },
    /// The bucket (or the folder of a `file://` store) does not exist.
    #[error("{store} does not exist: {cause}")]
    NoSuchBucket {
        /// The store.
        store: String,
        /// The store's words.
        cause: String,
    },
    /// The bucket is in another region than the mount says.
    #[error("{store} is not in region '{configured}'{}", .expected.as_ref().map(|r| format!(", it is in '{r}'")).unwrap_or_default())]
    WrongRegion {
        /// The store.
        store: String,
        /// The region that requests were signed for.
        configured: String,
        /// The region the store named, if it did.
        expected: Option<String>,
    },
    /// The store asks for fewer requests.
    #[error("{store} asks to slow down at '{key}'")]
    Throttled {
        /// The store.
        store: String,
        /// What was asked for.
        key: String,
    },
    /// The store did not answer, or answered that it cannot.
    #[error("{store} is unavailable at '{key}': {cause}")]
    Unavailable {
        /// The store.
        store: String,
        /// What was asked for.
        key: String,
        /// What was seen.
        cause: String,
    },
    /// The store refused a request in a way that trying again does not change.
    #[error("{store} refuses '{key}': {cause}")]
    Refused {
        /// The store.
        store: String,
        /// What was asked for.
        key: String,
        /// The store's words.
        cause: String,
    },
    /// The object has more bytes than are taken.
    #[error("'{key}' in {store} has {size} bytes and {most} are taken at most")]
    ObjectTooLarge {
        /// The store.
        store: String,
        /// The object.
        key: String,
        /// How many it has.
        size: u64,
        /// How many are taken.
        most: u64,
    },
    /// The object is no longer the one that was listed: resolve the target again.
    #[error("'{key}' in {store} changed while it was read")]
    Changed {
        /// The store.
        store: String,
        /// The object.
        key: String,
    },
    /// The folder is still being written.
    #[error("model '{model}' is still being uploaded{}: {why}", if *stale { ", or damaged" } else { "" })]
    Unsettled {
        /// The endpoint and target.
        model: String,
        /// What is missing or too short.
        why: String,
        /// Whether nothing was written for so long that it may stay so.
        stale: bool,
    },
    /// The artefact's files cannot be taken: unsafe names, too many, contradictory.
    #[error("model '{model}' cannot be fetched: {why}")]
    Invalid {
        /// The endpoint and target.
        model: String,
        /// Which file breaks which rule.
        why: String,
    },
    /// An archive on this machine cannot be read, or is refused by a guard.
    #[error("archive {} cannot be unpacked: {why}", .path.display())]
    LocalArchive {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The archive is corrupt, truncated or refused by a guard.
    #[error("archive of model '{model}' cannot be unpacked: {why}")]
    Archive {
        /// The endpoint and target.
        model: String,
        /// Which entry breaks which rule.
        why: String,
    },
    /// The bytes on disk are not those that the store has a checksum for.
    #[error("'{path}' of model '{model}' does not match its checksum ({what})")]
    Corrupt {
        /// The endpoint and target.
        model: String,
        /// The file.
        path: String,
        /// Which checksum.
        what: String,
    },
    /// The artefact can never fit the disk cache.
    #[error("model '{model}' needs {needed} on disk and the disk cache may hold {budget}")]
    TooLarge {
        /// The endpoint and target.
        model: String,
        /// What it needs while it is fetched.
        needed: Bytes,
        /// The disk cache's size.
        budget: Bytes,
    },
    /// The artefact can never fit what its tenant may have on disk.
    #[error(
        "model '{model}' needs {needed} on disk and the tenant '{tenant}' may have {ceiling} there"
    )]
    AboveDiskCeiling {
        /// The endpoint and target.
        model: String,
        /// Whose target it is.
        tenant: String,
        /// What it needs while it is fetched.
        needed: Bytes,
        /// What all of the tenant's versions may take.
        ceiling: Bytes,
    },
    /// Its tenant has as much on disk as it may, in use.
    #[error(
        "the tenant '{tenant}' has as much on disk as it may, in use: no room for {needed} of model '{model}'"
    )]
    DiskCeilingBusy {
        /// The endpoint and target.
        model: String,
        /// Whose target it is.
        tenant: String,
        /// What was asked for.
        needed: Bytes,
    },
    /// What could leave is promised to other tenants.
    #[error(
        "the disk cache has no room for {needed} of model '{model}': the rest is in use or promised to other tenants"
    )]
    DiskPromised {
        /// The endpoint and target.
        model: String,
        /// What was asked for.
        needed: Bytes,
    },
    /// The disk cache is full of artefacts in use.
    #[error("the disk cache has no room for {needed} of model '{model}': {held} are in use")]
    DiskBusy {
        /// The endpoint and target.
        model: String,
        /// What was asked for.
        needed: Bytes,
        /// What cannot be evicted now.
        held: Bytes,
    },
    /// The file system is full although the disk cache's size is not reached.
    #[error("the file system of the disk cache is full at '{}'", .path.display())]
    DiskFull {
        /// What was written.
        path: PathBuf,
    },
    /// So many models are held at a version that no other can be.
    #[error("model '{model}' cannot be held at a version: {limit} models are already")]
    TooManyHeld {
        /// The endpoint and target.
        model: String,
        /// The most models that can be.
        limit: usize,
    },
    /// Another process holds the disk cache's folder.
    #[error("disk cache '{}' is locked by another process", .0.display())]
    Locked(PathBuf),
    /// The folder was written by another version of this program, or is not a cache.
    #[error("disk cache '{}' has format '{found}', this program reads format '{expected}'", .dir.display())]
    Format {
        /// The cache's folder.
        dir: PathBuf,
        /// What its format file says.
        found: String,
        /// What it should say.
        expected: String,
    },
    /// The local file system failed.
    #[error("cannot {action} '{}'", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: Arc<io::Error>,
    },
    /// Nobody waits for a fetch any more; what it brought stays for the next one.
    #[error("the fetch of model '{model}' was given up")]
    Abandoned {
        /// The endpoint and target.
        model: String,
    },
    /// A piece of our own work ended without an outcome.
    #[error("internal fault in the store: {0}")]
    Internal(String),
}

impl Error {
    /// What the client is told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::ModelNotFound { .. } | Self::ObjectNotFound { .. } => ErrorKind::ModelNotFound,
            Self::AccessDenied { .. }
            | Self::KmsDenied { .. }
            | Self::NoCredentials { .. }
            | Self::Archived { .. } => ErrorKind::StoreDenied,
            Self::Config { .. }
            | Self::NoSuchBucket { .. }
            | Self::WrongRegion { .. }
            | Self::Throttled { .. }
            | Self::Unavailable { .. }
            | Self::Refused { .. }
            | Self::Corrupt { .. }
            | Self::DiskBusy { .. }
            | Self::DiskCeilingBusy { .. }
            | Self::DiskPromised { .. }
            | Self::DiskFull { .. } => ErrorKind::StoreUnavailable,
            Self::Changed { .. } | Self::Abandoned { .. } => ErrorKind::NotReady,
            Self::Unsettled { .. }
            | Self::Invalid { .. }
            | Self::Archive { .. }
            | Self::LocalArchive { .. } => ErrorKind::ModelInvalid,
            Self::TooLarge { .. } | Self::AboveDiskCeiling { .. } => ErrorKind::TooLarge,
            Self::ObjectTooLarge { .. } => ErrorKind::PayloadTooLarge,
            Self::TooManyHeld { .. } => ErrorKind::Overloaded,
            Self::Locked(_) | Self::Format { .. } | Self::Io { .. } | Self::Internal(_) => {
                ErrorKind::Internal
            }
        }
    }

    /// Whether the same call may succeed later, and when.
    pub fn retry(&self) -> RetryHint {
        match self {
            // The caller's next step is to resolve again, which needs no pause.
            Self::Changed { .. } => RetryHint::After(Duration::ZERO),
            Self::ModelNotFound { .. }
            | Self::ObjectNotFound { .. }
            | Self::Throttled { .. }
            | Self::Unavailable { .. }
            | Self::Unsettled { .. }
            | Self::Corrupt { .. }
            | Self::NoCredentials { .. }
            | Self::DiskBusy { .. }
            | Self::DiskCeilingBusy { .. }
            | Self::DiskPromised { .. }
            | Self::DiskFull { .. }
            | Self::Abandoned { .. }
            | Self::Locked(_)
            | Self::Io { .. } => RetryHint::Later,
            Self::Config { .. }
            | Self::AccessDenied { .. }
            | Self::KmsDenied { .. }
            | Self::Archived { .. }
            | Self::NoSuchBucket { .. }
            | Self::WrongRegion { .. }
            | Self::Refused { .. }
            | Self::Invalid { .. }
            | Self::Archive { .. }
            | Self::LocalArchive { .. }
            | Self::TooLarge { .. }
            | Self::AboveDiskCeiling { .. }
            | Self::ObjectTooLarge { .. }
            | Self::TooManyHeld { .. }
            | Self::Format { .. }
            | Self::Internal(_) => RetryHint::Never,
        }
    }

    /// Whether asking the store again at once, with back-off, is worth it.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }

    /// A failure of the local file system; a full one has an error of its own.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::StorageFull
            || source.kind() == io::ErrorKind::QuotaExceeded
        {
            return Self::DiskFull { path: path.to_owned() };
        }
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.kind(), &error).with_retry(error.retry())
    }
}
