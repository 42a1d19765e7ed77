//! The seam to a store of objects.

use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

use crate::Error;

/// One object as a listing or a head tells it. Keys are relative to the store's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Relative to the store's root, never beginning with `/`.
    pub key: String,
    /// In bytes.
    pub size: u64,
    /// Identifies the contents; without quotes. Equal tags of one key mean equal bytes.
    pub etag: String,
    /// When the store says it was last written. Of an S3 multi-part upload this is
    /// when the upload began.
    pub modified: Option<SystemTime>,
    /// A checksum over the whole object, where the store has one. Heads only.
    pub checksum: Option<Checksum>,
}

/// A checksum over all bytes of an object, in the store's words (base64).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// How it is computed.
    pub algorithm: ChecksumAlgorithm,
    /// In standard base64, big endian.
    pub base64: String,
}

/// The whole-object checksums that we can compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChecksumAlgorithm {
    /// CRC-32 (ISO-HDLC).
    Crc32,
    /// CRC-32C (Castagnoli).
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// SHA-256.
    Sha256,
}

/// What to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListRequest {
    /// Empty, or ends in `/`.
    pub prefix: String,
    /// Where the page before ended; opaque.
    pub token: Option<String>,
    /// At most this many objects, 1 to 1,000.
    pub limit: usize,
}

/// One page of a listing, in the byte order of the keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListPage {
    /// All objects below the prefix, however deep.
    pub objects: Vec<ObjectMeta>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<String>,
}

/// A ranged read that has begun.
pub struct ObjectRead {
    /// The tag of the object that is being read: compare it, a store may ignore the pin.
    pub etag: String,
    /// The bytes in order. Ends early when the connection breaks.
    pub stream: BoxStream<'static, Result<Bytes, Error>>,
}

/// A store of immutable objects under names that can be given to other contents.
///
/// Contract, which `testing::contract` checks: a listing shows each object once, in
/// byte order of the keys, and needs no page larger than asked for; `head` of a
/// folder's name is `ObjectNotFound`; a ranged read yields exactly the range, or
/// an error, or ends early; a read of an object whose tag is not the pinned one is
/// `Changed`, or answers with the other tag. No call retries; dropping a call or a
/// stream ends the request.
#[async_trait]
pub trait ArtifactStore: Send + Sync + 'static {
    /// What messages call it, like `s3://bucket/prefix/`.
    fn name(&self) -> &str;

    /// What tells it from every other store, over restarts: address, scheme, bucket or folder, prefix. Ends
    /// in `/`, so that a key behind it names one object. Never has credentials in it.
    fn identity(&self) -> String;

    /// The time as the store tells it, by its latest answer: what `modified` compares to.
    fn now(&self) -> SystemTime;

    /// Whether an object appears under its name only when it is whole.
    fn writes_are_atomic(&self) -> bool;

    /// One page of the objects below a prefix.
    async fn list(&self, request: &ListRequest) -> Result<ListPage, Error>;

    /// What is known of one object, with its checksum.
    async fn head(&self, key: &str) -> Result<ObjectMeta, Error>;

    /// Reads a non-empty range of the object that has the tag `etag`.
    async fn get(&self, key: &str, etag: &str, range: Range<u64>) -> Result<ObjectRead, Error>;

    /// Reads the first bytes, at most `most`, of whatever object has the key; `None` from a store so
    /// near that asking before a listing says what is there saves nothing.
    async fn beginning(&self, key: &str, most: u64) -> Result<Option<ObjectRead>, Error> {
        let _ = (key, most);
        Ok(None)
    }
}
