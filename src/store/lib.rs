//! Where a model's files are, which version they are, and whether they are whole on disk.
//!
//! Reading order: [`object`](ArtifactStore) is the seam to a store, `file` and `s3`
//! implement it, `remote` adds patience, `write` is its writing side; `artefact` says what a version is,
//! `catalog` which one a name means now; `disk` fetches versions and keeps them.
//!
//! 1. An artefact on disk is whole: every file has the bytes that its version's tags
//!    stood for when the version was resolved. Nothing else is ever handed out, but to those
//!    who read behind a fetch and wait for its end ([`ArrivingFiles`]).
//! 2. The disk cache's files, partial ones and archives included, never exceed its size.
//! 3. An artefact is not removed from disk while a [`CachedArtefact`] of it lives.
//! 4. A range that was recorded as on disk is not fetched again.
//! 5. Bytes that versions have in common are on the disk once only after they were compared, and
//!    stay there while a version needs them.
//! 6. A version on disk is of the store that named it last: in place of another store's answer none is; nor
//!    has a store deleted what only another one had.
//! 7. No async function of this crate blocks: file work runs on blocking threads.

mod artefact;
mod catalog;
mod disk;
mod error;
mod file;
pub mod metrics;
mod object;
mod progress;
mod remote;
mod s3;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod uri;
mod write;

pub use artefact::{ArchiveKind, Artefact, Origin, RemoteFile};
pub use catalog::{
    Catalog, CatalogConfig, Freshness, PassedOver, Pick, Target, TargetForm, TargetPage,
};
pub use disk::{
    ArrivingFiles, CacheConfig, CacheUsage, CachedArtefact, Choice, ChosenBy, Digest, DiskCache,
    DiskFile, DiskLimits, DiskVersion, Payer, Piece, Purged, Skimmed, TenantOnDisk, remembered,
    skim,
};
pub use error::Error;
pub use file::FileStore;
pub use object::{
    ArtifactStore, Checksum, ChecksumAlgorithm, ListPage, ListRequest, ObjectMeta, ObjectRead,
};
pub use progress::{Progress, ProgressSnapshot, Stage};
pub use remote::RetryConfig;
pub use s3::{S3Store, default_credentials};
pub use uri::{MountConfig, StoreUri};
pub use write::{ObjectWriter, WritableStore};
