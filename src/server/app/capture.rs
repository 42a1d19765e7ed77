//! Captured requests on their way to the store: JSON lines, in files that appear whole.
//!
//! A task per endpoint gathers lines by variant and hour, and puts them down as one object when there are
//! enough of them or the first has waited for long. What waits is bounded in bytes ([`CaptureRoom`]), and
//! what finds no room or cannot be written is counted and lost: no request waits for it.

mod line;

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use metrics::{Unit, counter, describe_counter};
use roundhouse_gateway::{Capture, CaptureRoom, Captured, Held};
use roundhouse_store::{MountConfig, ObjectWriter, RetryConfig};
use roundhouse_types::{EndpointName, Failure};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::config::{CaptureConfig, Config};

/// How long one file may take to be written.
const PUT_WITHIN: Duration = Duration::from_secs(60);
/// How long all that waits may take at the end of the process.
const CLOSE_WITHIN: Duration = Duration::from_secs(4);
/// What files are.
const JSON_LINES: &str = "application/jsonlines";

const EVENTS: &str = "roundhouse_server_captures_total";

/// Registers the metric's help.
pub(super) fn describe() {
    let help = "Captured requests, by outcome: written, failed.";
    describe_counter!(EVENTS, Unit::Count, help);
}

/// The captures of all endpoints. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Captures {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Held for look-ups.
    in_force: Mutex<Made>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    stop: CancellationToken,
}

/// What is captured at each endpoint, and by which settings.
type Made = BTreeMap<EndpointName, (CaptureConfig, Capture)>;

/// What some settings say, before they are in force.
pub(super) struct Prepared(Made);

impl Prepared {
    /// What each endpoint captures.
    pub(super) fn captures(&self) -> BTreeMap<EndpointName, Capture> {
        self.0.iter().map(|(name, (_, it))| (name.clone(), it.clone())).collect()
    }
}

impl Captures {
    /// What each endpoint of these settings captures: as before where it says the same.
    ///
    /// # Errors
    /// When a destination cannot be used.
    pub(super) async fn prepared(&self, config: &Config) -> Result<Prepared, Failure> {
        let mut made = BTreeMap::new();
        for endpoint in &config.endpoints {
            let Some(asked) = &endpoint.capture else { continue };
            let before = lock(&self.shared.in_force).get(&endpoint.name).cloned();
            let capture = match before {
                Some((same, capture)) if same == *asked => capture,
                Some(_) | None => self.start(&endpoint.name, asked).await?,
            };
            made.insert(endpoint.name.clone(), (asked.clone(), capture));
        }
        Ok(Prepared(made))
    }

    /// Puts it in force. What is not asked for any more is written when the last request that saw it has
    /// ended.
    pub(super) fn put(&self, prepared: Prepared) {
        *lock(&self.shared.in_force) = prepared.0;
    }

    async fn start(&self, name: &EndpointName, asked: &CaptureConfig) -> Result<Capture, Failure> {
        let mount = MountConfig::new(asked.destination.clone());
        let store = ObjectWriter::connect(&mount, name.clone(), RetryConfig::default()).await?;
        let (sender, waiting) = mpsc::unbounded_channel();
        let writer = Writer {
            endpoint: name.clone(),
            config: asked.clone(),
            store,
            waiting,
            stop: self.shared.stop.clone(),
            files: BTreeMap::new(),
        };
        let mut tasks = lock(&self.shared.tasks);
        tasks.retain(|task| !task.is_finished());
        tasks.push(tokio::spawn(writer.run()));
        Ok(Capture {
            sampling: ten_thousandths(asked.sampling),
            input: asked.input,
            output: asked.output,
            redacted: asked.redact,
            most: asked.max_payload.as_usize(),
            room: CaptureRoom::new(asked.buffer.as_usize()),
            take: Arc::new(move |captured| {
                if sender.send(captured).is_err() {
                    counter!(EVENTS, "outcome" => "failed").increment(1);
                }
            }),
        })
    }

    /// Writes down all that waits; what takes too long is lost.
    pub(super) async fn close(&self) {
        self.shared.stop.cancel();
        let tasks = mem::take(&mut *lock(&self.shared.tasks));
        let all = async {
            for task in tasks {
                if let Err(error) = task.await {
                    warn!(%error, "a task that writes captured requests ended badly");
                }
            }
        };
        if timeout(CLOSE_WITHIN, all).await.is_err() {
            warn!("captured requests were lost: their store was too slow");
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that is done under it can leave it half done.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "per cent are between 0 and 100"
)]
fn ten_thousandths(percent: f64) -> u16 {
    (percent * 100.0).round() as u16
}

/// Which file a line belongs to: its variant, and the hour in UTC since 1970.
type Place = (Arc<str>, u64);

/// Lines that wait to become a file.
struct File {
    lines: Vec<u8>,
    held: Vec<Held>,
    due: Instant,
}

/// Gathers and writes the lines of one endpoint.
struct Writer {
    endpoint: EndpointName,
    config: CaptureConfig,
    store: ObjectWriter,
    /// Bounded by the room that each of them holds.
    waiting: mpsc::UnboundedReceiver<Captured>,
    stop: CancellationToken,
    files: BTreeMap<Place, File>,
}

impl Writer {
    async fn run(mut self) {
        loop {
            let due = self.files.values().map(|file| file.due).min();
            let soonest = due.unwrap_or_else(|| Instant::now() + self.config.flush_every);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                captured = self.waiting.recv() => match captured {
                    Some(captured) => self.add(captured).await,
                    None => break,
                },
                () = sleep_until(soonest) => self.flush(|file| file.due <= Instant::now()).await,
            }
        }
        while let Ok(captured) = self.waiting.try_recv() {
            self.add(captured).await;
        }
        self.flush(|_| true).await;
    }

    async fn add(&mut self, captured: Captured) {
        let place = (captured.variant.clone(), hour(captured.time));
        let line = line::write(&captured, &self.config);
        let due = Instant::now() + self.config.flush_every;
        let new = || File { lines: Vec::new(), held: Vec::new(), due };
        let file = self.files.entry(place.clone()).or_insert_with(new);
        file.lines.extend_from_slice(&line);
        file.held.push(captured.held);
        if file.lines.len() >= self.config.flush_size.as_usize()
            && let Some(file) = self.files.remove(&place)
        {
            self.put(&place, file).await;
        }
    }

    async fn flush(&mut self, is_due: impl Fn(&File) -> bool) {
        let due: Vec<Place> = self
            .files
            .iter()
            .filter(|(_, it)| is_due(it))
            .map(|(place, _)| place.clone())
            .collect();
        for place in due {
            if let Some(file) = self.files.remove(&place) {
                self.put(&place, file).await;
            }
        }
    }

    async fn put(&self, (variant, hour): &Place, file: File) {
        let key = key(&self.endpoint, variant, *hour, SystemTime::now());
        let File { lines, held, .. } = file;
        let count = held.len() as u64;
        let put = self.store.put(&key, Bytes::from(lines), Some(JSON_LINES));
        let why = match timeout(PUT_WITHIN, put).await {
            Ok(Ok(())) => {
                debug!(%key, count, "captured requests are written");
                return counter!(EVENTS, "outcome" => "written").increment(count);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        warn!(store = self.store.name(), %key, count, why, "captured requests are lost");
        counter!(EVENTS, "outcome" => "failed").increment(count);
    }
}

/// The hour's number since 1970.
fn hour(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / 3600
}

/// As SageMaker lays files out: endpoint, variant, year, month, day, hour.
fn key(endpoint: &EndpointName, variant: &str, hour: u64, now: SystemTime) -> String {
    let begins = SystemTime::UNIX_EPOCH + Duration::from_secs(hour * 3600);
    let date = roundhouse_tenancy::rfc3339_seconds(begins);
    let (day, of_day) = (date[..10].replace('-', "/"), &date[11..13]);
    let written = roundhouse_tenancy::rfc3339_seconds(now);
    let clock = written[14..19].replace(':', "-");
    format!("{endpoint}/{variant}/{day}/{of_day}/{clock}-{}.jsonl", Uuid::new_v4())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lie_by_the_hour_of_their_requests() {
        let time = roundhouse_tenancy::parse_instant("2026-11-21T09:59:58Z").unwrap();
        let later = roundhouse_tenancy::parse_instant("2026-11-21T10:00:03Z").unwrap();
        let key = key(&"ep".parse().unwrap(), "blue", hour(time), later);
        assert!(key.starts_with("ep/blue/2026/11/21/09/00-03-"), "{key}");
        assert!(key.ends_with(".jsonl"), "{key}");
    }
}
