//! Small reads of remote files, kept for as long as the files stay what they are.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use moka::future::Cache;
use tokio::sync::Semaphore;

use crate::metrics::Purpose;
use crate::remote::Remote;
use crate::{Checksum, Error, RemoteFile};

/// Bytes of file beginnings that are kept.
const KEPT: u64 = 64 << 20;
/// Files whose verdict is kept.
const VERDICTS: u64 = 100_000;
/// Files whose checksum is kept, between a look at a version and its fetch.
const CHECKSUMS: u64 = 10_000;
/// The first read of a file takes this much: most headers and configurations are shorter.
const FIRST: u64 = 256 << 10;
/// The first read of a file that is no longer than this takes all of it, so that a small version,
/// most adapters among them, is brought by the round trip that looks inside.
pub(super) const WHOLE: u64 = 16 << 20;
/// Bytes of such reads that are on their way; beyond it first reads are short.
const ON_THEIR_WAY: usize = 32 << 20;

/// Where an artefact's files are read from: its store, and what is in memory of them.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) remote: Remote,
    pub(crate) heads: Heads,
}

type Identity = (String, String);

/// Beginnings of files, verdicts on them and their checksums, by key and tag. Clones are the same.
#[derive(Clone)]
pub(crate) struct Heads {
    bytes: Cache<Identity, Bytes>,
    verdicts: Cache<Identity, Option<String>>,
    checksums: Cache<Identity, Option<Checksum>>,
    on_their_way: Arc<Semaphore>,
}

impl Heads {
    pub(crate) fn new() -> Self {
        let weigh = |_: &Identity, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self {
            bytes: Cache::builder().max_capacity(KEPT).weigher(weigh).build(),
            verdicts: Cache::new(VERDICTS),
            checksums: Cache::new(CHECKSUMS),
            on_their_way: Arc::new(Semaphore::new(ON_THEIR_WAY)),
        }
    }

    /// Reads a range of a file, from memory where its beginning is known.
    pub(crate) async fn read(
        &self,
        remote: &Remote,
        file: &RemoteFile,
        range: Range<u64>,
    ) -> Result<Bytes, Error> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let identity = identity(file);
        let mut known = self.bytes.get(&identity).await.unwrap_or_default();
        let have = known.len() as u64;
        let may_be_whole = range.start == 0 && file.size <= WHOLE;
        let permits = u32::try_from(file.size).ok().filter(|_| may_be_whole && range.end > have);
        let whole = permits.and_then(|count| self.on_their_way.try_acquire_many(count).ok());
        let end = match range.start {
            0 if whole.is_some() => file.size,
            0 => range.end.max(FIRST).min(file.size),
            _ => range.end.min(file.size),
        };
        if range.end > have && range.start > have {
            return remote.read(&file.key, &file.etag, range, Purpose::Inspect).await;
        }
        if range.end > have {
            let rest = remote.read(&file.key, &file.etag, have..end, Purpose::Inspect).await?;
            known = if known.is_empty() { rest } else { [known, rest].concat().into() };
            self.bytes.insert(identity, known.clone()).await;
        }
        let at = |position: u64| usize::try_from(position).expect("inside what is in memory");
        Ok(known.slice(at(range.start)..at(range.end)))
    }

    /// Brings the beginning of a file that may be there, and its checksum, before a listing says
    /// so. What it turns out to be is for the listing to say: bytes are known by their tag.
    pub(crate) async fn guess(&self, remote: &Remote, key: String, most: u64) {
        let most = most.clamp(FIRST, WHOLE);
        let count = u32::try_from(most).unwrap_or(u32::MAX);
        let Ok(_permit) = self.on_their_way.try_acquire_many(count) else { return };
        let (read, meta) = futures_util::join!(remote.beginning(&key, most), remote.head(&key));
        if let Ok(Some((etag, bytes))) = read {
            self.bytes.insert((key.clone(), etag), bytes).await;
        }
        if let Ok(meta) = meta {
            self.checksums.insert((key, meta.etag), meta.checksum).await;
        }
    }

    /// All bytes of a file, where they are in memory.
    pub(crate) async fn whole(&self, file: &RemoteFile) -> Option<Bytes> {
        let bytes = self.bytes.get(&identity(file)).await?;
        (bytes.len() as u64 == file.size).then_some(bytes)
    }

    /// The store's checksum of a file, from memory where it was asked for before.
    ///
    /// # Errors
    /// `Changed` where the file is not the one that was listed any more.
    pub(crate) async fn checksum(
        &self,
        remote: &Remote,
        file: &RemoteFile,
    ) -> Result<Option<Checksum>, Error> {
        if let Some(known) = self.checksums.get(&identity(file)).await {
            return Ok(known);
        }
        let meta = remote.head(&file.key).await?;
        if meta.etag != file.etag {
            return Err(Error::Changed { store: remote.name().into(), key: file.key.clone() });
        }
        self.checksums.insert(identity(file), meta.checksum.clone()).await;
        Ok(meta.checksum)
    }

    /// Lets go of a file's bytes that were more than the beginning: they are on disk.
    pub(crate) async fn release(&self, file: &RemoteFile) {
        if file.size > FIRST {
            self.bytes.invalidate(&identity(file)).await;
        }
    }

    /// Forgets a file's bytes and checksum, because they do not belong together.
    pub(crate) async fn forget(&self, file: &RemoteFile) {
        let identity = identity(file);
        self.bytes.invalidate(&identity).await;
        self.checksums.invalidate(&identity).await;
    }

    /// The verdict on this version of a file, if it was judged.
    pub(crate) async fn judged(&self, file: &RemoteFile) -> Option<Option<String>> {
        self.verdicts.get(&identity(file)).await
    }

    /// Keeps a verdict.
    pub(crate) async fn judge(&self, file: &RemoteFile, fault: Option<String>) {
        self.verdicts.insert(identity(file), fault).await;
    }
}

fn identity(file: &RemoteFile) -> Identity {
    (file.key.clone(), file.etag.clone())
}
