//! The way of spans to a collector.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

use crate::context::TraceId;
use crate::metrics::{self, Why};
use crate::otlp;
use crate::span::Span;
use crate::tracer::Tracer;

/// Requests whose spans wait: a few MiB, at two kilobytes each.
const WAITING_MOST: usize = 2048;
/// Spans that are sent together, one request's more at most. OpenTelemetry's own batches have as many.
const BATCH: usize = 512;
/// How long the first of a batch waits for others.
const GATHERED_FOR: Duration = Duration::from_secs(1);
/// The longest that one try may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);
/// Tries of one batch, and the pause after the first; each further one is twice as long.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

/// Sends a body to the collector; a failure says whether to try again.
pub type SendFn = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Result<(), Refused>> + Send + Sync>;

/// Why a collector has not taken what it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Whether it may take the same later.
    pub again: bool,
    /// What it said; no credential of ours.
    pub why: String,
}

/// Who sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// What is said of the process, with its service's name: OpenTelemetry's resource.
    pub attributes: Vec<(String, String)>,
}

/// One request's spans.
pub(crate) struct Ended {
    pub(crate) trace: TraceId,
    pub(crate) state: Option<Arc<str>>,
    pub(crate) spans: Vec<Span>,
}

/// Where ended requests are put.
#[derive(Clone)]
pub(crate) struct Spans(mpsc::Sender<Ended>);

impl Spans {
    pub(crate) fn pair(most: usize) -> (Self, mpsc::Receiver<Ended>) {
        let (put, taken) = mpsc::channel(most);
        (Self(put), taken)
    }

    /// Never waits: what does not fit is dropped and counted.
    pub(crate) fn put(&self, trace: TraceId, state: Option<Arc<str>>, spans: Vec<Span>) {
        let count = spans.len();
        if self.0.try_send(Ended { trace, state, spans }).is_err() {
            metrics::dropped(Why::Full, count);
        }
    }
}

/// Sends what is recorded, in batches, on a task of its own. Dropped without [`Exporter::close`] it
/// goes on until its tracers are gone.
pub struct Exporter {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Exporter {
    /// Starts to send what a tracer records. `ratio` is the part of the traces that begin here which
    /// it does, from 0 to 1. Call inside a runtime.
    pub fn start(origin: Origin, ratio: f64, send: SendFn) -> (Tracer, Self) {
        let (put, taken) = Spans::pair(WAITING_MOST);
        let (stop, stopped) = watch::channel(false);
        let sender = Sender { origin, send, stopped };
        let task = tokio::spawn(sender.run(taken));
        (Tracer::new(ratio, put), Self { stop, task })
    }

    /// Sends what waits, for so long at most, and ends. What comes later is dropped and counted.
    pub async fn close(self, within: Duration) {
        self.stop.send_replace(true);
        let mut task = self.task;
        if timeout(within, &mut task).await.is_err() {
            warn!(?within, "the trace collector did not take the last spans in time");
            task.abort();
        }
    }
}

struct Sender {
    origin: Origin,
    send: SendFn,
    stopped: watch::Receiver<bool>,
}

impl Sender {
    async fn run(mut self, mut taken: mpsc::Receiver<Ended>) {
        let mut stopped = self.stopped.clone();
        loop {
            let first = tokio::select! {
                biased;
                _ = stopped.wait_for(|it| *it) => break,
                first = taken.recv() => first,
            };
            let Some(first) = first else { return };
            let until = Instant::now() + GATHERED_FOR;
            let batch = gathered(first, &mut taken, until, &mut stopped).await;
            self.deliver(batch).await;
        }
        taken.close();
        while let Ok(first) = taken.try_recv() {
            let mut batch = vec![first];
            let mut count = batch[0].spans.len();
            while let Some(next) = (count < BATCH).then(|| taken.try_recv().ok()).flatten() {
                count += next.spans.len();
                batch.push(next);
            }
            self.deliver(batch).await;
        }
    }

    /// Sends one batch, again where the collector may take it later. A server that ends tries once.
    async fn deliver(&mut self, batch: Vec<Ended>) {
        let spans = batch.iter().map(|ended| ended.spans.len()).sum();
        let body = otlp::encoded(&self.origin, &batch);
        drop(batch);
        let mut pause = PAUSE;
        for left in (0..TRIES).rev() {
            let sent = timeout(TRY_TIMEOUT, (self.send)(body.clone())).await;
            let sent = sent.unwrap_or_else(|_| {
                Err(Refused { again: true, why: format!("no answer within {TRY_TIMEOUT:?}") })
            });
            let Err(Refused { again, why }) = sent else {
                metrics::exported(spans);
                return;
            };
            let is_stopped = *self.stopped.borrow();
            if left == 0 || !again || is_stopped {
                warn!(%why, spans, "spans were dropped: the trace collector did not take them");
                break;
            }
            debug!(%why, spans, "the trace collector is asked again");
            tokio::select! {
                () = sleep(pause) => {}
                _ = self.stopped.wait_for(|it| *it) => {}
            }
            pause *= 2;
        }
        metrics::dropped(Why::Refused, spans);
    }
}

/// What comes until a time, or until it is enough, or the server ends.
async fn gathered(
    first: Ended,
    taken: &mut mpsc::Receiver<Ended>,
    until: Instant,
    stopped: &mut watch::Receiver<bool>,
) -> Vec<Ended> {
    let mut count = first.spans.len();
    let mut batch = vec![first];
    while count < BATCH {
        let next = tokio::select! {
            biased;
            _ = stopped.wait_for(|it| *it) => None,
            next = timeout_at(until, taken.recv()) => next.ok().flatten(),
        };
        let Some(next) = next else { break };
        count += next.spans.len();
        batch.push(next);
    }
    batch
}

#[cfg(test)]
mod tests;
