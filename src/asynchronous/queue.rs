//! Takes requests, keeps them, and runs them when it is their turn.
//!
//! One task, the dispatcher, takes what may run; each request runs in a task of its own. All of them
//! share the lines of requests behind one lock, which is held for a look-up and an addition.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::provider::SharedCredentialsProvider;
use futures_util::future::BoxFuture;
use roundhouse_store::{MountConfig, ObjectWriter, RetryConfig, WritableStore};
use roundhouse_types::EndpointName;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::config::{EndpointConfig, PlaceConfig};
use crate::error::Error;
use crate::line::Line;
use crate::metrics::{Levels, Of};
use crate::place::Place;
use crate::request::{Accepted, RunFn, Submission};
use crate::run;
use crate::sns::Publisher;
use crate::spool::{Decided, Entry, Spool, Ticket, size_of};
use crate::submitted::entry;
use crate::webhook::{ClientFn, Resolve, Sender};

/// How often the gauges are set when nothing else happens.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// When a request is tried again whose task ended without saying how.
const LOST: Duration = Duration::from_secs(60);

/// Connects a store as a mount describes it.
pub type StoreFn = Arc<
    dyn Fn(
            MountConfig,
        ) -> BoxFuture<'static, Result<Arc<dyn WritableStore>, roundhouse_store::Error>>
        + Send
        + Sync,
>;

/// What a queue works with.
#[derive(Clone)]
pub struct Services {
    /// Connects stores.
    pub store: StoreFn,
    /// How long a store is given, and how often it is asked again.
    pub retry: RetryConfig,
    /// Begins HTTP clients for those who are told.
    pub client: ClientFn,
    /// Looks up their names.
    pub resolve: Resolve,
    /// What requests to SNS are signed with.
    pub credentials: SharedCredentialsProvider,
}

/// The queue of all endpoints. Clones are the same.
#[derive(Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) spool: Spool,
    services: Services,
    lines: Mutex<BTreeMap<EndpointName, Line>>,
    wake: Notify,
    /// No request is taken or begun any more.
    stop: CancellationToken,
    /// Requests under way are dropped; they stay in the queue.
    abort: CancellationToken,
    tasks: TaskTracker,
}

/// An endpoint's stores and those who are told, connected.
pub(crate) struct Endpoint {
    pub(crate) name: EndpointName,
    pub(crate) config: EndpointConfig,
    pub(crate) inputs: Vec<Place>,
    pub(crate) output: Place,
    pub(crate) failure: Place,
    pub(crate) sender: Sender,
    pub(crate) publisher: Publisher,
}

impl Queue {
    /// Opens the queue in a folder, with what is in it. Nothing runs before [`Queue::start`].
    ///
    /// # Errors
    /// `Locked` where another process works on the folder; `Io`.
    pub async fn open(folder: &Path, services: Services) -> Result<Self, Error> {
        let at = folder.to_owned();
        let (spool, tickets) = blocking(move || Spool::open(&at)).await?;
        if !tickets.is_empty() {
            info!(requests = tickets.len(), "asynchronous requests were found in the queue");
        }
        let mut lines: BTreeMap<EndpointName, Line> = BTreeMap::new();
        for ticket in tickets {
            let line = lines.entry(ticket.endpoint.clone()).or_default();
            // Whatever the limits are now: it was accepted.
            line.places.take(usize::MAX, ticket.tenant.as_ref());
            line.grow(&ticket, ticket.bytes);
            line.waiting.push(ticket);
        }
        let shared = Shared {
            spool,
            services,
            lines: Mutex::new(lines),
            wake: Notify::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Puts settings in force, in place of those before. Requests of endpoints that are in none wait.
    ///
    /// # Errors
    /// Where a store cannot be connected; nothing has changed then.
    pub async fn configure(
        &self,
        endpoints: &BTreeMap<EndpointName, EndpointConfig>,
    ) -> Result<(), Error> {
        let before: BTreeMap<EndpointName, Arc<Endpoint>> = self
            .shared
            .lines()
            .iter()
            .filter_map(|(name, line)| Some((name.clone(), line.endpoint.clone()?)))
            .collect();
        let mut connected = BTreeMap::new();
        for (name, config) in endpoints {
            let same = before.get(name).filter(|endpoint| endpoint.config == *config);
            let endpoint = match same {
                Some(endpoint) => endpoint.clone(),
                None => Arc::new(self.connect(name, config).await?),
            };
            connected.insert(name.clone(), endpoint);
        }
        let mut lines = self.shared.lines();
        for (name, line) in lines.iter_mut() {
            line.endpoint = connected.remove(name);
            if line.endpoint.is_none() && line.waiting.len() > 0 {
                let requests = line.waiting.len();
                warn!(endpoint = %name, requests, "requests wait for an endpoint that is not served");
            }
        }
        for (name, endpoint) in connected {
            lines.insert(name, Line::of(endpoint));
        }
        drop(lines);
        self.shared.wake.notify_one();
        Ok(())
    }

    async fn connect(
        &self,
        name: &EndpointName,
        config: &EndpointConfig,
    ) -> Result<Endpoint, Error> {
        let services = &self.shared.services;
        let mut inputs = Vec::new();
        for place in &config.inputs {
            inputs.push(self.place(name, place).await?);
        }
        Ok(Endpoint {
            name: name.clone(),
            config: config.clone(),
            inputs,
            output: self.place(name, &config.output).await?,
            failure: self.place(name, &config.failure).await?,
            sender: Sender::new(&config.webhooks, &services.client, &services.resolve)?,
            publisher: Publisher::new(&config.topics, &services.credentials),
        })
    }

    async fn place(&self, name: &EndpointName, config: &PlaceConfig) -> Result<Place, Error> {
        let services = &self.shared.services;
        let store = (services.store)(config.root.clone()).await?;
        let writer = ObjectWriter::over(store, name.clone(), services.retry.clone());
        Ok(Place::over(writer, config))
    }

    /// Begins to run what is in the queue. Must be called once.
    pub fn start(&self, run: RunFn) {
        tokio::spawn(self.shared.clone().dispatch(run));
    }

    /// Takes a request; it is on disk for good when this returns.
    ///
    /// # Errors
    /// `NotAsynchronous`, `Invalid`, `Full`, `Stopping`, `Io`.
    pub async fn accept(&self, submission: Submission) -> Result<Accepted, Error> {
        let shared = self.shared.clone();
        let endpoint = {
            let lines = shared.lines();
            let line = lines.get(&submission.endpoint);
            let endpoint = line.and_then(|line| line.endpoint.clone());
            endpoint.ok_or_else(|| Error::NotAsynchronous(submission.endpoint.clone()))?
        };
        let (entry, body) = entry(&endpoint, submission)?;
        let accepted = Accepted {
            inference_id: entry.inference_id.clone(),
            output: entry.output.clone(),
            failure: entry.failure.clone(),
        };
        // In a task of its own: who leaves meanwhile leaves a request behind that counts.
        let kept = tokio::spawn(shared.keep(endpoint, entry, body));
        kept.await.map_err(|error| Error::Internal(error.to_string()))??;
        Ok(accepted)
    }

    /// Takes and begins nothing any more. What runs goes on.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }

    /// The same; returns when what runs has ended.
    pub async fn drain(&self) {
        self.stop();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Drops what runs: it stays in the queue. Returns when all is dropped.
    pub async fn abort(&self) {
        self.shared.abort.cancel();
        self.drain().await;
    }
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, BTreeMap<EndpointName, Line>> {
        // A panic while it was held leaves whole lines behind.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep(
        self: Arc<Self>,
        endpoint: Arc<Endpoint>,
        entry: Entry,
        body: bytes::Bytes,
    ) -> Result<(), Error> {
        let of = Of(endpoint.name.as_str());
        if self.stop.is_cancelled() {
            return Err(Error::Stopping);
        }
        let (tenant, size) = (entry.tenant.clone(), size_of(&entry, &body)?);
        if !self.line(&endpoint.name, |line| line.reserve(&endpoint.config, tenant.as_ref(), size))
        {
            of.refused();
            return Err(Error::Full(endpoint.name.clone()));
        }
        let shared = self.clone();
        let kept = blocking(move || shared.spool.accept(&entry, &body)).await;
        self.line(&endpoint.name, |line| match &kept {
            Ok(ticket) => line.waiting.push(ticket.clone()),
            Err(_) => line.release(tenant.as_ref(), size),
        });
        if kept.is_ok() {
            of.accepted();
            self.wake.notify_one();
        }
        kept.map(drop)
    }

    fn line<T>(&self, name: &EndpointName, with: impl FnOnce(&mut Line) -> T) -> T {
        with(self.lines().entry(name.clone()).or_default())
    }

    async fn dispatch(self: Arc<Self>, run: RunFn) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.stop.is_cancelled() {
                return;
            }
            let next_at = self.begin(&run);
            let due = async {
                match next_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.wake.notified() => {}
                () = due => {}
                _ = ticks.tick() => self.tell(),
            }
        }
    }

    /// Begins all that may; returns when the next may be that may not now.
    fn begin(self: &Arc<Self>, run: &RunFn) -> Option<Instant> {
        let now = Instant::now();
        let mut next_at: Option<Instant> = None;
        let mut turns = Vec::new();
        for line in self.lines().values_mut() {
            let Some(endpoint) = line.endpoint.clone() else { continue };
            while line.running < endpoint.config.max_concurrent {
                // Where nothing is under way that would give room, others are begun all the same.
                let gives = line.running > 0 || line.waiting.has_decided();
                let is_over = line.bytes > endpoint.config.queue_bytes.0 && gives;
                let Some(ticket) = line.waiting.pop(now, is_over) else { break };
                line.running += 1;
                turns.push(Turn {
                    shared: self.clone(),
                    endpoint: endpoint.clone(),
                    ticket: Some(ticket),
                    is_running: true,
                });
            }
            next_at = next_at.into_iter().chain(line.waiting.next_at()).min();
        }
        // Behind the lock: a runtime that ends drops what it is given, and a turn's end takes it.
        for turn in turns {
            self.tasks.spawn(turn.work(run.clone()));
        }
        next_at
    }

    fn tell(&self) {
        for (name, line) in self.lines().iter() {
            let oldest = line.waiting.oldest().map_or(0, |at| now().saturating_sub(at));
            Of(name.as_str()).levels(Levels {
                waiting: line.waiting.len(),
                running: line.running,
                bytes: line.bytes,
                oldest: Duration::from_millis(oldest),
            });
        }
    }
}

/// A request whose turn it is. Dropped with its ticket, it waits again.
pub(crate) struct Turn {
    pub(crate) shared: Arc<Shared>,
    pub(crate) endpoint: Arc<Endpoint>,
    ticket: Option<Ticket>,
    is_running: bool,
}

impl Turn {
    async fn work(mut self, run: RunFn) {
        let abort = self.shared.abort.clone();
        // Dropped half-way, it is as if the process had died there.
        tokio::select! {
            () = abort.cancelled() => {}
            () = self.worked(&run) => {}
        }
    }

    async fn worked(&mut self, run: &RunFn) {
        let Some(mut ticket) = self.ticket.clone() else { return };
        let was = ticket.bytes;
        let end = run::process(&self.shared, &self.endpoint, &mut ticket, run).await;
        let grown = ticket.bytes.saturating_sub(was);
        self.shared.line(&ticket.endpoint, |line| line.grow(&ticket, grown));
        self.ticket = Some(ticket.clone());
        match end {
            run::End::Later(after) => {
                self.ticket = None;
                ticket.tries = ticket.tries.saturating_add(1);
                let at = Instant::now() + after;
                let name = ticket.endpoint.clone();
                self.shared.line(&name, |line| line.waiting.push_later(ticket, at));
            }
            run::End::Written(entry, decided, object) => {
                self.tell_and_leave(ticket, (&entry, &decided), object.as_ref()).await;
            }
            run::End::GivenUp(entry, decided) => {
                self.tell_and_leave(ticket, (&entry, &decided), None).await;
            }
        }
    }

    /// The request is done: whom it concerns is told, and it leaves the queue.
    async fn tell_and_leave(
        &mut self,
        ticket: Ticket,
        (entry, decided): (&Entry, &Decided),
        object: Option<&bytes::Bytes>,
    ) {
        // Whoever is slow to listen holds up no other request.
        self.give_turn();
        run::tell(&self.endpoint, entry, decided, object).await;
        let (shared, done) = (self.shared.clone(), ticket.clone());
        if let Err(error) = blocking(move || shared.spool.remove(&done)).await {
            warn!(%error, id = %ticket.id, "a request that is done stays in the queue");
        }
        self.ticket = None;
        let (tenant, bytes) = (ticket.tenant.as_ref(), ticket.bytes);
        self.shared.line(&ticket.endpoint, |line| line.release(tenant, bytes));
    }

    fn give_turn(&mut self) {
        if std::mem::take(&mut self.is_running) {
            let name = &self.endpoint.name;
            self.shared.line(name, |line| line.running = line.running.saturating_sub(1));
            self.shared.wake.notify_one();
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            let at = Instant::now() + LOST;
            let name = ticket.endpoint.clone();
            self.shared.line(&name, |line| line.waiting.push_later(ticket, at));
        }
        self.give_turn();
    }
}

/// In milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::Internal(format!("a file task ended early: {error}"))),
    }
}
