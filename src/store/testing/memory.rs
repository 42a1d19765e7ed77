//! A store in memory, on tokio's clock.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::{ArtifactStore, Checksum, Error, ListPage, ListRequest, ObjectMeta, ObjectRead};

/// Objects in memory. Its clock follows tokio's, so that it can be paused. Clones of
/// an `Arc` of it are the same store.
#[derive(Debug)]
pub struct MemoryStore {
    name: String,
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, (ObjectMeta, Bytes)>,
    written: u64,
}

/// What the store's clock shows when it is made.
const EPOCH: Duration = Duration::from_secs(1_700_000_000);
/// What a chunk of a read holds at most.
const CHUNK: usize = 64 << 10;

impl MemoryStore {
    /// An empty store. Must be made where tokio's clock runs.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), begun: Instant::now(), state: Mutex::default() }
    }

    /// Writes an object now.
    pub fn put(&self, key: &str, contents: impl Into<Bytes>) {
        self.put_aged(key, contents, Duration::ZERO);
    }

    /// Writes an object whose date says that it was written a while ago.
    pub fn put_aged(&self, key: &str, contents: impl Into<Bytes>, age: Duration) {
        let modified = Some(self.now() - age);
        let contents = contents.into();
        let mut state = self.lock();
        state.written += 1;
        let meta = ObjectMeta {
            key: key.into(),
            size: contents.len() as u64,
            etag: format!("tag{}", state.written),
            modified,
            checksum: None,
        };
        state.objects.insert(key.into(), (meta, contents));
    }

    /// Gives an object a checksum.
    pub fn set_checksum(&self, key: &str, checksum: Checksum) {
        if let Some((meta, _)) = self.lock().objects.get_mut(key) {
            meta.checksum = Some(checksum);
        }
    }

    /// Removes an object.
    pub fn remove(&self, key: &str) {
        self.lock().objects.remove(key);
    }

    fn found(&self, key: &str) -> Result<(ObjectMeta, Bytes), Error> {
        self.lock()
            .objects
            .get(key)
            .cloned()
            .ok_or_else(|| Error::ObjectNotFound { store: self.name.clone(), key: key.into() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ArtifactStore for MemoryStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> String {
        format!("{}/", self.name)
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + EPOCH + self.begun.elapsed()
    }

    fn writes_are_atomic(&self) -> bool {
        true
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, Error> {
        let after = request.token.clone().unwrap_or_default();
        let state = self.lock();
        let below = state.objects.values().map(|(meta, _)| meta);
        let mut below = below
            .filter(|meta| meta.key.starts_with(&request.prefix) && meta.key > after)
            .map(|meta| ObjectMeta { checksum: None, ..meta.clone() });
        let objects: Vec<_> = below.by_ref().take(request.limit).collect();
        let next = below.next().and_then(|_| objects.last().map(|last| last.key.clone()));
        Ok(ListPage { objects, next })
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, Error> {
        self.found(key).map(|(meta, _)| meta)
    }

    async fn get(&self, key: &str, etag: &str, range: Range<u64>) -> Result<ObjectRead, Error> {
        let (meta, contents) = self.found(key)?;
        if meta.etag != etag || range.end > meta.size {
            return Err(Error::Changed { store: self.name.clone(), key: key.into() });
        }
        let at = |position: u64| usize::try_from(position).expect("it is in memory");
        let contents = contents.slice(at(range.start)..at(range.end));
        let chunks: Vec<_> = contents.chunks(CHUNK).map(Bytes::copy_from_slice).map(Ok).collect();
        Ok(ObjectRead { etag: meta.etag, stream: stream::iter(chunks).boxed() })
    }

    async fn beginning(&self, key: &str, most: u64) -> Result<Option<ObjectRead>, Error> {
        let (meta, _) = self.found(key)?;
        self.get(key, &meta.etag, 0..most.min(meta.size)).await.map(Some)
    }
}
