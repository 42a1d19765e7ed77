//! A store with patience: retries, back-off shared by all requests to one mount,
//! limits on silence, and the check that every answer is of the pinned object.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rand::Rng;
use roundhouse_types::EndpointName;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::metrics::{self, Purpose};
use crate::{ArtifactStore, Error, ListPage, ListRequest, ObjectMeta, ObjectRead};

/// How long a store is given, and how often it is asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryConfig {
    /// Attempts in a row that yield nothing before a request fails, at least 1.
    pub attempts: u32,
    /// The first pause; it doubles with each failure in a row, with jitter.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// How long an answer, or the next bytes of one, may take.
    pub stall: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: 6,
            pause: Duration::from_millis(200),
            pause_max: Duration::from_secs(10),
            stall: Duration::from_secs(20),
        }
    }
}

/// A range may break this many times as often as it may fail without yielding a byte.
const BREAKS_PER_ATTEMPT: u32 = 8;

/// One mount's store. Clones share the back-off.
#[derive(Clone)]
pub(crate) struct Remote {
    pub(crate) store: Arc<dyn ArtifactStore>,
    endpoint: EndpointName,
    config: RetryConfig,
    pacer: Arc<Pacer>,
}

impl Remote {
    pub(crate) fn new(
        store: Arc<dyn ArtifactStore>,
        endpoint: EndpointName,
        config: RetryConfig,
    ) -> Self {
        Self { store, endpoint, config, pacer: Arc::default() }
    }

    /// The store's name for messages.
    pub(crate) fn name(&self) -> &str {
        self.store.name()
    }

    /// One page of a listing, retried.
    pub(crate) async fn list(&self, request: &ListRequest) -> Result<ListPage, Error> {
        let mut patience = self.patience();
        loop {
            match self.answered("list", &request.prefix, self.store.list(request)).await {
                Ok(page) => return Ok(page),
                Err(error) => patience.failed(error, false).await?,
            }
        }
    }

    /// What is known of one object, retried.
    pub(crate) async fn head(&self, key: &str) -> Result<ObjectMeta, Error> {
        let mut patience = self.patience();
        loop {
            match self.answered("head", key, self.store.head(key)).await {
                Ok(meta) => return Ok(meta),
                Err(error) => patience.failed(error, false).await?,
            }
        }
    }

    /// Puts an object of `length` bytes, retried; its bytes may take a second per mebibyte longer
    /// than an answer.
    pub(crate) async fn put<F: Future<Output = Result<(), Error>>>(
        &self,
        key: &str,
        length: u64,
        put: impl Fn() -> F,
    ) -> Result<(), Error> {
        let within = self.config.stall + Duration::from_secs(length >> 20);
        let mut patience = self.patience();
        loop {
            match self.answered_within(within, "put", key, put()).await {
                Ok(()) => {
                    metrics::written(self.endpoint.as_str(), length);
                    return Ok(());
                }
                Err(error) => patience.failed(error, false).await?,
            }
        }
    }

    /// All bytes of the object with this tag, which has `size` of them.
    pub(crate) async fn read_whole(
        &self,
        key: &str,
        etag: &str,
        size: u64,
    ) -> Result<Bytes, Error> {
        self.read(key, etag, 0..size, Purpose::Object).await
    }

    /// Reads a range of the object with this tag into memory.
    pub(crate) async fn read(
        &self,
        key: &str,
        etag: &str,
        range: Range<u64>,
        purpose: Purpose,
    ) -> Result<Bytes, Error> {
        let length = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|_| Error::Internal("a range larger than memory".into()))?;
        let mut buffer = BytesMut::with_capacity(length);
        let mut chunks = self.chunks(key, etag, range, purpose);
        while let Some(chunk) = chunks.next().await? {
            buffer.extend_from_slice(&chunk);
        }
        Ok(buffer.freeze())
    }

    /// The first bytes, at most `most`, of whatever object has the key, and its tag; not retried.
    /// `None` where asking early saves nothing.
    pub(crate) async fn beginning(
        &self,
        key: &str,
        most: u64,
    ) -> Result<Option<(String, Bytes)>, Error> {
        let read = self.answered("get", key, self.store.beginning(key, most)).await?;
        let Some(ObjectRead { etag, mut stream }) = read else { return Ok(None) };
        let mut buffer = BytesMut::new();
        while (buffer.len() as u64) < most {
            let next = timeout(self.config.stall, stream.next()).await;
            let next = next.map_err(|_| self.unavailable(key, "no bytes arrived in time"))?;
            let Some(chunk) = next.transpose()? else { break };
            metrics::read(self.endpoint.as_str(), Purpose::Inspect, chunk.len() as u64);
            buffer.extend_from_slice(&chunk);
        }
        // Without what its growth left over.
        Ok(Some((etag, Bytes::copy_from_slice(&buffer))))
    }

    /// What is known of one object, not retried.
    pub(crate) async fn glance(&self, key: &str) -> Result<ObjectMeta, Error> {
        self.answered("head", key, self.store.head(key)).await
    }

    /// The bytes of a range of the object with this tag, as they arrive.
    pub(crate) fn chunks<'a>(
        &'a self,
        key: &'a str,
        etag: &'a str,
        range: Range<u64>,
        purpose: Purpose,
    ) -> Chunks<'a> {
        let patience = self.patience();
        Chunks {
            remote: self,
            key,
            etag,
            left: range,
            purpose,
            patience,
            open: None,
            yielded: false,
        }
    }

    /// Waits for the mount's turn, then for an answer, and counts the outcome.
    async fn answered<T>(
        &self,
        operation: &'static str,
        key: &str,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.answered_within(self.config.stall, operation, key, request).await
    }

    async fn answered_within<T>(
        &self,
        within: Duration,
        operation: &'static str,
        key: &str,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.pacer.turn().await;
        let outcome = match timeout(within, request).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.unavailable(key, "it did not answer in time")),
        };
        let label = outcome.as_ref().err().map_or("ok", metrics::outcome);
        metrics::request(self.endpoint.as_str(), operation, label);
        match &outcome {
            Err(Error::Throttled { .. }) => self.pacer.throttled(&self.config),
            Err(Error::Unavailable { .. }) => {}
            _ => self.pacer.answered(),
        }
        outcome
    }

    fn unavailable(&self, key: &str, cause: &str) -> Error {
        Error::Unavailable { store: self.name().into(), key: key.into(), cause: cause.into() }
    }

    fn patience(&self) -> Patience<'_> {
        Patience { remote: self, in_row: 0, in_all: 0 }
    }
}

/// A range on its way. A broken connection is resumed behind the last byte that arrived.
pub(crate) struct Chunks<'a> {
    remote: &'a Remote,
    key: &'a str,
    etag: &'a str,
    left: Range<u64>,
    purpose: Purpose,
    patience: Patience<'a>,
    open: Option<BoxStream<'static, Result<Bytes, Error>>>,
    /// Whether the connection that is open, or was last, brought anything.
    yielded: bool,
}

impl Chunks<'_> {
    /// What follows; `None` behind the last byte.
    ///
    /// # Errors
    /// When the store has another object, or nothing more arrives and patience is at its end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.left.start < self.left.end {
            match self.chunk().await {
                Ok(chunk) => {
                    let length = chunk.len() as u64;
                    metrics::read(self.remote.endpoint.as_str(), self.purpose, length);
                    self.left.start += length;
                    self.yielded |= length > 0;
                    return Ok(Some(chunk));
                }
                Err(error) => {
                    self.open = None;
                    let yielded = std::mem::take(&mut self.yielded);
                    self.patience.failed(error, yielded).await?;
                }
            }
        }
        Ok(None)
    }

    /// What the connection yields next; opens one where none is.
    async fn chunk(&mut self) -> Result<Bytes, Error> {
        let Self { remote, key, etag, left, open, .. } = self;
        let stream = match open {
            Some(stream) => stream,
            None => {
                let read = remote.store.get(key, etag, left.clone());
                let read = remote.answered("get", key, read).await?;
                if read.etag != *etag {
                    let (store, key) = (remote.name().into(), (*key).into());
                    return Err(Error::Changed { store, key });
                }
                open.insert(read.stream)
            }
        };
        let chunk = match timeout(remote.config.stall, stream.next()).await {
            Ok(Some(chunk)) => chunk?,
            Ok(None) => return Err(remote.unavailable(key, "the connection broke")),
            Err(_) => return Err(remote.unavailable(key, "no bytes arrived in time")),
        };
        if chunk.len() as u64 > left.end - left.start {
            return Err(remote.unavailable(key, "more bytes came than were asked for"));
        }
        Ok(chunk)
    }
}

/// The failures of one request so far.
struct Patience<'a> {
    remote: &'a Remote,
    in_row: u32,
    in_all: u32,
}

impl Patience<'_> {
    /// Pauses before the next attempt, or hands the error back when there is none.
    async fn failed(&mut self, error: Error, yielded: bool) -> Result<(), Error> {
        let config = &self.remote.config;
        self.in_row = if yielded { 1 } else { self.in_row + 1 };
        self.in_all += 1;
        let spent = self.in_row >= config.attempts.max(1)
            || self.in_all >= config.attempts.saturating_mul(BREAKS_PER_ATTEMPT);
        // One attempt means one: a break after some bytes is not tried again either.
        if !error.is_transient() || spent {
            return Err(error);
        }
        metrics::retried(self.remote.endpoint.as_str());
        let pause = backoff(config, self.in_row);
        debug!(store = self.remote.name(), error = %error, pause = ?pause, "asking the store again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Doubling, with the upper half random so that clients spread.
fn backoff(config: &RetryConfig, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let pause = config.pause.saturating_mul(1 << doublings).min(config.pause_max);
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// Holds back all requests to one bucket while it asks to slow down.
#[derive(Debug, Default)]
struct Pacer {
    state: Mutex<Pace>,
}

#[derive(Debug, Default)]
struct Pace {
    not_before: Option<Instant>,
    level: u32,
}

impl Pacer {
    async fn turn(&self) {
        let until = self.state.lock().unwrap_or_else(PoisonError::into_inner).not_before;
        if let Some(until) = until {
            sleep_until(until).await;
        }
    }

    fn throttled(&self, config: &RetryConfig) {
        let now = Instant::now();
        let mut pace = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Requests that were under way together are one message, not many.
        if pace.not_before.is_some_and(|until| until > now) {
            return;
        }
        pace.level = pace.level.saturating_add(1);
        pace.not_before = Some(now + backoff(config, pace.level));
    }

    fn answered(&self) {
        let mut pace = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // An answer to a request from before the pause says nothing about the pause.
        if pace.not_before.is_some_and(|until| until <= Instant::now()) {
            pace.level /= 2;
            pace.not_before = None;
        }
    }
}
