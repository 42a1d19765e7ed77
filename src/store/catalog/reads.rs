//! Small reads of remote files, kept for as long as the files stay what they are.

use std::ops::Range;

use bytes::Bytes;
use moka::future::Cache;

use crate::metrics::Purpose;
use crate::remote::Remote;
use crate::{Error, RemoteFile};

/// Bytes of file beginnings that are kept.
const KEPT: u64 = 64 << 20;
/// Files whose verdict is kept.
const VERDICTS: u64 = 100_000;
/// The first read of a file takes this much: most headers and configurations are shorter.
const FIRST: u64 = 256 << 10;

type Identity = (String, String);

/// Beginnings of files and verdicts on them, by key and tag.
pub(crate) struct Heads {
    bytes: Cache<Identity, Bytes>,
    verdicts: Cache<Identity, Option<String>>,
}

impl Heads {
    pub(crate) fn new() -> Self {
        let weigh = |_: &Identity, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self {
            bytes: Cache::builder().max_capacity(KEPT).weigher(weigh).build(),
            verdicts: Cache::new(VERDICTS),
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
        let identity = (file.key.clone(), file.etag.clone());
        let mut known = self.bytes.get(&identity).await.unwrap_or_default();
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
        let at = |position: u64| usize::try_from(position).expect("inside what is in memory");
        Ok(known.slice(at(range.start)..at(range.end)))
    }

    /// The verdict on this version of a file, if it was judged.
    pub(crate) async fn judged(&self, file: &RemoteFile) -> Option<Option<String>> {
        self.verdicts.get(&(file.key.clone(), file.etag.clone())).await
    }

    /// Keeps a verdict.
    pub(crate) async fn judge(&self, file: &RemoteFile, fault: Option<String>) {
        self.verdicts.insert((file.key.clone(), file.etag.clone()), fault).await;
    }
}
