//! What a store that is written to promises, and one whose writes fail by a script.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt;

use super::MemoryStore;
use crate::write::check_key;
use crate::{ArtifactStore, Error, ListPage, ListRequest, ObjectMeta, ObjectRead, WritableStore};

#[async_trait]
impl WritableStore for MemoryStore {
    async fn put(&self, key: &str, body: Bytes, _: Option<&str>) -> Result<(), Error> {
        check_key(self.name(), key)?;
        self.put(key, body);
        Ok(())
    }
}

/// Runs the suite on a store without objects.
///
/// # Panics
/// With a text that names the promise that the store breaks.
pub async fn contract_of_writes(store: &dyn WritableStore) {
    let large: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
    let json = Some("application/json");
    for (key, body) in [("a/b c+d.out", &b"{}"[..]), ("empty", b""), ("a/deep/er/é", &large)] {
        store.put(key, Bytes::copy_from_slice(body), json).await.expect("a write");
        assert!(read(store, key).await == body, "{key} is what was written");
    }
    store.put("a/b c+d.out", Bytes::from_static(b"another"), None).await.expect("a write");
    assert_eq!(read(store, "a/b c+d.out").await, b"another", "a later write replaces");
    let request = ListRequest { prefix: String::new(), token: None, limit: 1000 };
    let page = store.list(&request).await.expect("a listing");
    let keys: Vec<_> = page.objects.iter().map(|object| object.key.as_str()).collect();
    assert_eq!(keys, ["a/b c+d.out", "a/deep/er/é", "empty"], "nothing else appears");
    for key in ["", "/a", "a/", "a//b", "..", "a/../../b", "./a", "a\nb", "a\\b"] {
        let outcome = store.put(key, Bytes::from_static(b"x"), None).await;
        assert!(matches!(outcome, Err(Error::Refused { .. })), "'{key}': {outcome:?}");
    }
}

async fn read(store: &dyn WritableStore, key: &str) -> Vec<u8> {
    let meta = store.head(key).await.expect("a head");
    if meta.size == 0 {
        return Vec::new();
    }
    let read = store.get(key, &meta.etag, 0..meta.size).await.expect("a read");
    let chunks: Vec<_> = read.stream.try_collect().await.expect("the bytes");
    chunks.concat()
}

/// A store whose next writes fail as told.
pub struct FaultyWrites {
    inner: Arc<dyn WritableStore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    faults: Vec<(String, Error)>,
    puts: Vec<String>,
}

impl FaultyWrites {
    /// A store that works until a fault is planned.
    pub fn new(inner: Arc<dyn WritableStore>) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// Plans a failure for the next write whose key contains the text.
    pub fn plan(&self, key: &str, error: Error) {
        self.lock().faults.push((key.into(), error));
    }

    /// The keys of all writes that were asked for, failed ones too.
    pub fn puts(&self) -> Vec<String> {
        self.lock().puts.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ArtifactStore for FaultyWrites {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn identity(&self) -> String {
        self.inner.identity()
    }

    fn now(&self) -> SystemTime {
        self.inner.now()
    }

    fn writes_are_atomic(&self) -> bool {
        self.inner.writes_are_atomic()
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, Error> {
        self.inner.list(request).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, Error> {
        self.inner.head(key).await
    }

    async fn get(&self, key: &str, etag: &str, range: Range<u64>) -> Result<ObjectRead, Error> {
        self.inner.get(key, etag, range).await
    }
}

#[async_trait]
impl WritableStore for FaultyWrites {
    async fn put(&self, key: &str, body: Bytes, content_type: Option<&str>) -> Result<(), Error> {
        let fault = {
            let mut state = self.lock();
            state.puts.push(key.into());
            let at = state.faults.iter().position(|(part, _)| key.contains(part.as_str()));
            at.map(|at| state.faults.remove(at).1)
        };
        match fault {
            Some(error) => Err(error),
            None => self.inner.put(key, body, content_type).await,
        }
    }
}
