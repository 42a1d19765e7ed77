//! Small reads of remote files, kept for as long as the files stay what they are.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use moka::future::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::metrics::Purpose;
use crate::remote::Remote;
use crate::{Checksum, Error, Origin, RemoteFile};

/// Bytes of file beginnings that are kept.
const KEPT: u64 = 64 << 20;
/// Files whose verdict is kept.
const VERDICTS: u64 = 100_000;
/// Files whose checksum is kept, between a look at a version and its fetch.
const CHECKSUMS: u64 = 10_000;
/// The first read of a file takes this much: most headers and configurations are shorter.
const FIRST: u64 = 256 << 10;
/// The first read of a file that is no longer than this may take all of it, so that a small version,
/// most adapters among them, is brought by the round trip that looks inside.
pub(super) const WHOLE: u64 = 16 << 20;
/// Bytes of files that are read whole, on their way or waiting for their fetch; beyond it first reads
/// are short.
const WHOLE_ALL: usize = 64 << 20;
/// How long they wait for it.
const WHOLE_KEPT: Duration = Duration::from_secs(60);

/// Where an artefact's files are read from: its store, and what is in memory of them.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) remote: Remote,
    pub(crate) heads: Heads,
    pub(crate) origin: Origin,
}

type Identity = (String, String);

/// Beginnings of files, verdicts on them and their checksums, by key and tag. Clones are the same.
#[derive(Clone)]
pub(crate) struct Heads {
    bytes: Cache<Identity, Bytes>,
    /// More of files than their beginnings.
    whole: Cache<Identity, Arc<Whole>>,
    whole_room: Arc<Semaphore>,
    takes_whole: Arc<AtomicBool>,
    verdicts: Cache<Identity, Option<String>>,
    checksums: Cache<Identity, Option<Checksum>>,
}

/// A file, or as much of it as was guessed, and its part of the room.
struct Whole {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Heads {
    pub(crate) fn new() -> Self {
        let weigh = |_: &Identity, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self {
            bytes: Cache::builder().max_capacity(KEPT).weigher(weigh).build(),
            whole: Cache::builder().time_to_live(WHOLE_KEPT).build(),
            whole_room: Arc::new(Semaphore::new(WHOLE_ALL)),
            takes_whole: Arc::default(),
            verdicts: Cache::new(VERDICTS),
            checksums: Cache::new(CHECKSUMS),
        }
    }

    /// Whether more of files may be read than looking inside takes: not where they may not be
    /// fetched, or only at a pace.
    pub(super) fn take_whole(&self, may: bool) {
        self.takes_whole.store(may, Ordering::Relaxed);
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
        let at = |position: u64| usize::try_from(position).expect("inside what is in memory");
        let mut known = self.known(&identity).await;
        if range.end > known.len() as u64
            && range.start == 0
            && let Some(room) = self.room(file.size)
        {
            let bytes = remote.read(&file.key, &file.etag, 0..file.size, Purpose::Inspect).await?;
            self.whole
                .insert(identity, Arc::new(Whole { bytes: bytes.clone(), _room: room }))
                .await;
            return Ok(bytes.slice(at(range.start)..at(range.end)));
        }
        let end = if range.start == 0 { range.end.max(FIRST) } else { range.end };
        let end = end.min(file.size);
        let have = known.len() as u64;
        if range.end > have && range.start > have {
            return remote.read(&file.key, &file.etag, range, Purpose::Inspect).await;
        }
        if range.end > have {
            let rest = remote.read(&file.key, &file.etag, have..end, Purpose::Inspect).await?;
            known = if known.is_empty() { rest } else { [known, rest].concat().into() };
            self.bytes.insert(identity, known.clone()).await;
        }
        Ok(known.slice(at(range.start)..at(range.end)))
    }

    /// Room for so many bytes more of a file than its beginning, where it may be had now.
    fn room(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let may = self.takes_whole.load(Ordering::Relaxed) && (FIRST..=WHOLE).contains(&bytes);
        let count = u32::try_from(bytes).ok().filter(|_| may)?;
        Arc::clone(&self.whole_room).try_acquire_many_owned(count).ok()
    }

    async fn known(&self, identity: &Identity) -> Bytes {
        match self.whole.get(identity).await {
            Some(whole) => whole.bytes.clone(),
            None => self.bytes.get(identity).await.unwrap_or_default(),
        }
    }

    /// Brings the beginning of a file that may be there, and its checksum, before a listing says
    /// so. What it turns out to be is for the listing to say: bytes are known by their tag.
    pub(super) async fn guess(&self, remote: &Remote, key: String, most: u64) {
        let Some(mut room) = self.room(most) else { return };
        let (read, meta) = futures_util::join!(remote.beginning(&key, most), remote.glance(&key));
        if let Ok(Some((etag, bytes))) = read
            && let Some(room) = room.split(bytes.len())
        {
            self.whole.insert((key.clone(), etag), Arc::new(Whole { bytes, _room: room })).await;
        }
        if let Ok(meta) = meta {
            self.checksums.insert((key, meta.etag), meta.checksum).await;
        }
    }

    /// How much of a file is asked for on a guess, where a sibling's has so many bytes.
    pub(super) fn guessed(size: u64) -> u64 {
        size.saturating_mul(2).clamp(FIRST, WHOLE)
    }

    /// All bytes of a file, where they are in memory.
    pub(crate) async fn whole(&self, file: &RemoteFile) -> Option<Bytes> {
        let bytes = self.known(&identity(file)).await;
        (bytes.len() as u64 == file.size && file.size > 0).then_some(bytes)
    }

    /// Lets go of what was read of a file: it is on disk.
    pub(crate) async fn release(&self, file: &RemoteFile) {
        let identity = identity(file);
        self.whole.invalidate(&identity).await;
        self.bytes.invalidate(&identity).await;
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

    /// Forgets a file's bytes and checksum, because they do not belong together.
    pub(crate) async fn forget(&self, file: &RemoteFile) {
        let identity = identity(file);
        self.whole.invalidate(&identity).await;
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
