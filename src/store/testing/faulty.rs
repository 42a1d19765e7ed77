//! A decorator that fails by a script and remembers what it handed out.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};

use crate::{ArtifactStore, Error, ListPage, ListRequest, ObjectMeta, ObjectRead};

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A page of a listing.
    List,
    /// A head.
    Head,
    /// A ranged read.
    Get,
}

/// What goes wrong with a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It fails with this.
    Fail(Error),
    /// It never answers.
    Hang,
    /// A read ends after so many bytes, as a broken connection does.
    BreakAfter(u64),
    /// A read yields so many bytes and then nothing more, without ending.
    StallAfter(u64),
    /// A read answers with the bytes of another version and its tag.
    OtherEtag(String),
    /// A byte of a read is turned.
    FlipByte,
}

/// A store with faults. Faults are used up in the order of the script, each by the
/// first request that fits it.
pub struct Faulty {
    inner: Arc<dyn ArtifactStore>,
    latency: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    script: Vec<(Operation, String, Fault)>,
    requests: Vec<(Operation, String)>,
    delivered: Vec<(String, Range<u64>)>,
}

impl Faulty {
    /// A store that works until a fault is planned.
    pub fn new(inner: Arc<dyn ArtifactStore>) -> Self {
        Self { inner, latency: Duration::ZERO, state: Arc::default() }
    }

    /// The same store with so much time before each answer.
    #[must_use]
    pub fn with_latency(self, latency: Duration) -> Self {
        Self { latency, ..self }
    }

    /// Plans a fault for the next request of this kind whose key contains the text.
    pub fn plan(&self, operation: Operation, key: &str, fault: Fault) {
        self.lock().script.push((operation, key.into(), fault));
    }

    /// The number of requests of a kind so far.
    pub fn requests(&self, operation: Operation) -> usize {
        self.lock().requests.iter().filter(|(asked, _)| *asked == operation).count()
    }

    /// The ranges of one object that were handed out so far.
    pub fn delivered(&self, key: &str) -> Vec<Range<u64>> {
        let state = self.lock();
        let of_key = state.delivered.iter().filter(|(name, _)| name == key);
        of_key.map(|(_, range)| range.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, operation: Operation, key: &str) -> Option<Fault> {
        let mut state = self.lock();
        state.requests.push((operation, key.into()));
        let fits = |(planned, part, _): &(Operation, String, Fault)| {
            *planned == operation && key.contains(part.as_str())
        };
        let at = state.script.iter().position(fits)?;
        Some(state.script.remove(at).2)
    }

    /// Fails or hangs as planned; what concerns a read's bytes is handed back.
    async fn ask(&self, operation: Operation, key: &str) -> Result<Option<Fault>, Error> {
        let fault = self.fault(operation, key);
        if !self.latency.is_zero() {
            tokio::time::sleep(self.latency).await;
        }
        match fault {
            Some(Fault::Fail(error)) => Err(error),
            Some(Fault::Hang) => std::future::pending().await,
            other => Ok(other),
        }
    }
}

#[async_trait]
impl ArtifactStore for Faulty {
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
        self.ask(Operation::List, &request.prefix).await?;
        self.inner.list(request).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, Error> {
        self.ask(Operation::Head, key).await?;
        self.inner.head(key).await
    }

    async fn get(&self, key: &str, etag: &str, range: Range<u64>) -> Result<ObjectRead, Error> {
        let fault = self.ask(Operation::Get, key).await?;
        let read = self.inner.get(key, etag, range.clone()).await?;
        Ok(self.disturbed(read, fault, key, range))
    }

    async fn beginning(&self, key: &str, most: u64) -> Result<Option<ObjectRead>, Error> {
        let fault = self.ask(Operation::Get, key).await?;
        let read = self.inner.beginning(key, most).await?;
        Ok(read.map(|read| self.disturbed(read, fault, key, 0..most)))
    }
}

impl Faulty {
    /// A read as the fault makes it, and what it delivers noted.
    fn disturbed(
        &self,
        mut read: ObjectRead,
        fault: Option<Fault>,
        key: &str,
        range: Range<u64>,
    ) -> ObjectRead {
        read.stream = match fault {
            Some(Fault::BreakAfter(bytes)) => first(read.stream, bytes),
            Some(Fault::StallAfter(bytes)) => {
                first(read.stream, bytes).chain(stream::pending()).boxed()
            }
            Some(Fault::FlipByte) => read.stream.map(|chunk| chunk.map(flipped)).boxed(),
            Some(Fault::OtherEtag(etag)) => {
                read.etag = etag;
                read.stream
            }
            _ => read.stream,
        };
        let (state, key, mut at) = (Arc::clone(&self.state), key.to_owned(), range.start);
        let watched = read.stream.inspect(move |chunk| {
            let Ok(chunk) = chunk else { return };
            let end = at + chunk.len() as u64;
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.delivered.push((key.clone(), at..end));
            at = end;
        });
        ObjectRead { etag: read.etag, stream: watched.boxed() }
    }
}

/// The first bytes of a stream.
fn first(
    chunks: BoxStream<'static, Result<Bytes, Error>>,
    bytes: u64,
) -> BoxStream<'static, Result<Bytes, Error>> {
    let some = chunks.scan(bytes, |left, chunk| {
        let cut = chunk.map(|chunk| {
            let length = chunk.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= length as u64;
            chunk.slice(..length)
        });
        let over = cut.as_ref().is_ok_and(Bytes::is_empty);
        std::future::ready((!over).then_some(cut))
    });
    some.boxed()
}

fn flipped(chunk: Bytes) -> Bytes {
    let mut bytes = chunk.to_vec();
    if let Some(byte) = bytes.first_mut() {
        *byte ^= 1;
    }
    bytes.into()
}
