//! Who writes the ledger, and when: a thread of its own, so that a slow disk slows nobody who did
//! not ask for it.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use roundhouse_types::Bytes;
use tokio::sync::oneshot;
use tracing::{error, warn};
use uuid::Uuid;

use super::file::LedgerFile;
use super::line::{Kind, Line, VERSION};
use super::{Key, Totals, Usage};
use crate::error::Error;
use crate::{calendar, metrics};

/// Requests that may wait for a line of their own; those on top are summed up.
const WAITING: usize = 8192;
/// How long a request's line may wait for others that are written with it, where no answer waits.
const BATCH: Duration = Duration::from_millis(5);
/// How long an answer waits for a disk that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the ledger is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerConfig {
    /// The file; earlier ones are beside it.
    pub path: PathBuf,
    /// What a line is.
    pub detail: Detail,
    /// How often sums are written, and the disk is waited for.
    pub interval: Duration,
    /// What waits for the disk.
    pub sync: Sync,
    /// A file of this size is put aside.
    pub rotate_size: Bytes,
    /// Whether one of yesterday is.
    pub rotate_daily: bool,
}

/// What a line of the ledger is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// The sums of an interval, per tenant and model.
    Interval,
    /// One request; sums only of what no request takes, and where the ledger falls behind.
    Request,
}

/// When lines are on the disk rather than in the system's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// At each interval: a power cut loses one, a kill of the process what was not yet written.
    Interval,
    /// Before the end of each request's answer goes out.
    Each,
}

/// What one request's line says.
pub(crate) struct RequestFacts {
    pub(crate) key: Key,
    pub(crate) request_id: Uuid,
    pub(crate) credential: Option<Arc<str>>,
    pub(crate) from: SystemTime,
    pub(crate) to: SystemTime,
    pub(crate) totals: Totals,
}

/// Waits until what was counted is in the ledger for good.
#[must_use = "an answer's end goes out when it is done"]
pub struct Durable(Option<oneshot::Receiver<()>>);

impl Durable {
    /// Nothing to wait for.
    pub fn now() -> Self {
        Self(None)
    }

    /// Returns when it is, at once where that was not asked for; after ten seconds in any case: a
    /// disk that does not answer stops no answers for good.
    pub async fn wait(self) {
        let Some(written) = self.0 else {
            return;
        };
        if tokio::time::timeout(PATIENCE, written).await.is_err() {
            warn!("an answer goes out before its usage is on the disk, which does not answer");
        }
    }
}

/// The ledger's end that requests see.
pub(crate) struct Ledger {
    queue: Arc<Queue>,
    config: LedgerConfig,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What goes to the writer.
#[derive(Default)]
struct Queue {
    state: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Default)]
struct Waiting {
    requests: Vec<(RequestFacts, Option<oneshot::Sender<()>>)>,
    /// Answers that wait for the next sums.
    for_sums: Vec<oneshot::Sender<()>>,
    closing: bool,
}

impl Ledger {
    /// Opens the files and starts the writer.
    pub(crate) fn open(config: LedgerConfig, usage: Arc<Usage>) -> Result<Self, Error> {
        let file = LedgerFile::open(&config.path)?;
        let queue = Arc::<Queue>::default();
        let writer = Writer {
            file,
            usage,
            queue: queue.clone(),
            config: config.clone(),
            instance: Uuid::new_v4(),
            next: 0,
            from: SystemTime::now(),
            due: Instant::now() + config.interval,
            unwritten: Vec::new(),
            waiting: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("usage-ledger".into());
        let thread = thread.spawn(move || writer.run()).map_err(Error::Thread)?;
        Ok(Self { queue, config, writer: Mutex::new(Some(thread)) })
    }

    /// Counts a request, in a line of its own where that is asked for.
    pub(crate) fn count(&self, usage: &Usage, facts: RequestFacts) -> Durable {
        if self.config.detail == Detail::Interval {
            usage.add(&facts.key, facts.totals, false);
            return Durable::now();
        }
        let (sender, durable) = match self.config.sync {
            Sync::Interval => (None, Durable::now()),
            Sync::Each => {
                let (sender, receiver) = oneshot::channel();
                (Some(sender), Durable(Some(receiver)))
            }
        };
        let mut waiting = self.queue.lock();
        // Under the lock: a line that is on its way must not be among the sums as well.
        if waiting.requests.len() < WAITING {
            usage.add(&facts.key, facts.totals, true);
            waiting.requests.push((facts, sender));
        } else {
            usage.add(&facts.key, facts.totals, false);
            waiting.for_sums.extend(sender);
            metrics::folded(1);
        }
        drop(waiting);
        self.queue.came.notify_one();
        durable
    }

    /// Writes what there is and ends the writer. Blocks until it is on the disk.
    pub(crate) fn close(&self) {
        self.queue.lock().closing = true;
        self.queue.came.notify_one();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            error!("the usage ledger's writer panicked");
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // A panic while it was held leaves whole entries behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has come, as soon as something has, or `due`.
    fn take(&self, due: Instant) -> Waiting {
        let mut waiting = self.lock();
        loop {
            let left = due.saturating_duration_since(Instant::now());
            let is_idle = waiting.requests.is_empty() && waiting.for_sums.is_empty();
            if !is_idle || waiting.closing || left.is_zero() {
                let closing = waiting.closing;
                return std::mem::replace(&mut waiting, Waiting { closing, ..Waiting::default() });
            }
            let woken = self.came.wait_timeout(waiting, left);
            waiting = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Owns the files; lives on its thread.
struct Writer {
    file: LedgerFile,
    usage: Arc<Usage>,
    queue: Arc<Queue>,
    config: LedgerConfig,
    instance: Uuid,
    next: u64,
    /// The end of the last interval that was written.
    from: SystemTime,
    due: Instant,
    /// Lines that could not be written. They are tried again as they are: what of them is in the
    /// file is known by its numbers. Meanwhile all others are summed up.
    unwritten: Vec<u8>,
    /// Answers that wait for those, or for the sums.
    waiting: Vec<oneshot::Sender<()>>,
}

impl Writer {
    fn run(mut self) {
        loop {
            let Waiting { requests, for_sums, closing } = self.queue.take(self.due);
            let has_requests = !requests.is_empty();
            if has_requests {
                self.write_requests(requests);
            }
            let is_due = Instant::now() >= self.due;
            let for_sums_now = !for_sums.is_empty();
            self.waiting.extend(for_sums);
            if is_due || closing || for_sums_now {
                self.write_sums();
            }
            if is_due {
                self.due = Instant::now() + self.config.interval;
            }
            if closing {
                return;
            }
            if self.config.sync == Sync::Interval && has_requests {
                std::thread::sleep(BATCH);
            }
        }
    }

    /// A line for each of these requests.
    fn write_requests(&mut self, requests: Vec<(RequestFacts, Option<oneshot::Sender<()>>)>) {
        if !self.catch_up() {
            metrics::folded(requests.len());
            for (facts, sender) in requests {
                self.usage.take_back(&facts.key, facts.totals);
                self.waiting.extend(sender);
            }
            return;
        }
        let mut lines = Vec::new();
        let count = requests.len();
        let mut waiting = Vec::new();
        for (facts, sender) in requests {
            let bounds = (facts.from, facts.to);
            let mut line = self.line(Kind::Request, bounds, facts.key, facts.totals);
            line.request_id = Some(facts.request_id.to_string());
            line.credential = facts.credential.map(|credential| credential.to_string());
            push(&mut lines, &line);
            waiting.extend(sender);
        }
        self.waiting.extend(waiting);
        self.write(lines, count, self.config.sync == Sync::Each);
    }

    /// A line for each tenant and model that used something no other line has.
    fn write_sums(&mut self) {
        if !self.catch_up() {
            return;
        }
        let to = SystemTime::now().max(self.from);
        let mut lines = Vec::new();
        let news = self.usage.give();
        let count = news.len();
        for (key, totals) in news {
            let line = self.line(Kind::Interval, (self.from, to), key, totals);
            push(&mut lines, &line);
        }
        self.from = to;
        self.write(lines, count, true);
    }

    /// Writes what could not be written before; whether nothing of that is left.
    fn catch_up(&mut self) -> bool {
        if !self.unwritten.is_empty() {
            let lines = std::mem::take(&mut self.unwritten);
            self.write(lines, 0, true);
        }
        self.unwritten.is_empty()
    }

    fn write(&mut self, lines: Vec<u8>, count: usize, sync: bool) {
        if let Err(error) = self.turn_and_append(&lines, sync) {
            error!(%error, path = %self.config.path.display(), "the usage ledger cannot be written; what it lacks is kept and tried again");
            metrics::write_failed();
            self.unwritten = lines;
            return;
        }
        metrics::lines_written(count);
        for sender in self.waiting.drain(..) {
            // Whoever waited may be gone.
            let _ = sender.send(());
        }
    }

    fn turn_and_append(&mut self, lines: &[u8], sync: bool) -> std::io::Result<()> {
        if !lines.is_empty() {
            let (size, daily) = (self.config.rotate_size, self.config.rotate_daily);
            if let Err(error) = self.file.turn(size, daily, SystemTime::now()) {
                warn!(%error, "the usage ledger's file cannot be put aside and grows on");
            }
            self.file.append(lines)?;
        }
        if sync { self.file.sync() } else { Ok(()) }
    }

    fn line(
        &mut self,
        kind: Kind,
        (from, to): (SystemTime, SystemTime),
        key: Key,
        totals: Totals,
    ) -> Line {
        let seq = self.next;
        self.next += 1;
        let (endpoint, target) = key.model.map(|model| (model.endpoint, model.target)).unzip();
        Line {
            v: VERSION,
            instance: self.instance.to_string(),
            seq,
            kind,
            from: calendar::rfc3339(from),
            to: calendar::rfc3339(to),
            tenant: key.tenant,
            endpoint,
            target,
            request_id: None,
            credential: None,
            totals,
        }
    }
}

fn push(lines: &mut Vec<u8>, line: &Line) {
    // Names and numbers are always JSON.
    if let Ok(text) = serde_json::to_vec(line) {
        lines.extend_from_slice(&text);
        lines.push(b'\n');
    }
}
