//! The workers of one loaded handler.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_channel::TrySendError;
use roundhouse_confine::{Confinement, Launch};
use roundhouse_types::{Bytes, Failure};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::environment::Environment;
use crate::frame::Ready;
use crate::metrics::{self, End};
use crate::poison::{Fingerprinted, Poison};
use crate::process::Process;
use crate::scratch::Corner;
use crate::spawn::Spawner;
use crate::warm::{Parent, Warm};
use crate::watch::{Verdict, Watched};
use crate::worker::{Flight, Job, Over, Worker};
use crate::{Base, Call, CallError, Error, Reply};

/// Pauses before a worker that died is started again.
const RESTART_FIRST: Duration = Duration::from_millis(100);
const RESTART_LONGEST: Duration = Duration::from_secs(30);
/// A worker that lived this long died of something new.
const LIVED: Duration = Duration::from_secs(60);

/// What a group's owner is told of it.
#[derive(Debug, Clone)]
pub enum News {
    /// All its processes take this much now.
    Measured(Bytes),
    /// No worker is left; it cannot serve any more.
    Died(Failure),
}

/// Takes news. Must not block.
pub type NewsFn = Arc<dyn Fn(News) + Send + Sync>;

/// What tasks of one group share.
pub(crate) struct Shared {
    /// The artefact, for logs.
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) time_limit: Duration,
    pub(crate) start_limit: Duration,
    pub(crate) max_response: Bytes,
    pub(crate) queue: async_channel::Receiver<Job>,
    pub(crate) stop: CancellationToken,
    pub(crate) watched: Arc<Watched>,
    pub(crate) poison: Arc<Poison>,
    pub(crate) spawner: Spawner,
    pub(crate) launch: Arc<dyn Fn(usize) -> Launch + Send + Sync>,
    pub(crate) news: NewsFn,
    /// Workers that serve.
    pub(crate) alive: AtomicUsize,
    /// Its packages stay on disk for as long as it may start workers.
    pub(crate) _environment: Option<Arc<Environment>>,
}

impl Shared {
    pub(crate) fn fingerprinted(&self, call: Call) -> Fingerprinted {
        Fingerprinted {
            handler: self.version.clone(),
            content_type: call.content_type,
            body: call.body,
        }
    }
}

/// The way to the workers of one loaded handler. Dropping it stops them, without waiting.
pub struct Group {
    shared: Arc<Shared>,
    calls: async_channel::Sender<Job>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    nest: Mutex<Option<Nest>>,
    preparing: Duration,
}

/// Where a group's processes live.
pub(crate) enum Nest {
    /// In a folder of their own, as a user of their own.
    Own(Corner),
    /// In those of the interpreter that they were forked from.
    Warm(Box<Parent>, Arc<Warm>),
}

impl Nest {
    /// The user and the temporary folder.
    pub(crate) fn corner(&self) -> &Corner {
        match self {
            Self::Own(corner) => corner,
            Self::Warm(parent, _) => parent.corner(),
        }
    }
}

impl Group {
    pub(crate) fn new(
        shared: Shared,
        calls: async_channel::Sender<Job>,
        processes: Vec<Process>,
        nest: Nest,
    ) -> Self {
        let shared = Arc::new(shared);
        shared.alive.store(processes.len(), Ordering::Relaxed);
        let tasks = processes
            .into_iter()
            .enumerate()
            .map(|(index, process)| tokio::spawn(keep(Arc::clone(&shared), index, process)))
            .collect();
        let (tasks, nest) = (Mutex::new(tasks), Mutex::new(Some(nest)));
        Self { shared, calls, tasks, nest, preparing: Duration::ZERO }
    }

    /// Runs one call. Returns with the whole answer, or when the first piece of a streamed one
    /// may come. Dropped before that, the call is not begun, or its answer is nobody's.
    ///
    /// # Errors
    /// `NotBegun` where the group is going: the call may be tried elsewhere. `Failed` with what
    /// the handler raised, how its worker ended, or why it was refused.
    pub async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let request = Fingerprinted {
            handler: self.shared.version.clone(),
            content_type: call.content_type.clone(),
            body: call.body.clone(),
        };
        if self.shared.poison.refuses(&request, Instant::now()) {
            metrics::refused();
            return Err(CallError::Failed(Error::Poisonous.into()));
        }
        let (reply, answer) = oneshot::channel();
        match self.calls.try_send(Job { call, reply }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                let waiting = self.calls.len();
                return Err(CallError::Failed(Error::QueueFull(waiting).into()));
            }
            Err(TrySendError::Closed(_)) => return Err(CallError::NotBegun(Error::Gone.into())),
        }
        // A queue that is thrown away answers nobody.
        answer.await.unwrap_or_else(|_| Err(CallError::NotBegun(Error::Gone.into())))
    }

    /// How long its packages took to come, where the next start finds them there.
    pub fn preparing(&self) -> Duration {
        self.preparing
    }

    pub(crate) fn prepared_in(mut self, preparing: Duration) -> Self {
        self.preparing = preparing;
        self
    }

    /// What its processes take now. Blocking.
    pub fn measure(&self) -> Bytes {
        self.shared.watched.measure()
    }

    /// The most they were seen to take.
    pub fn peak(&self) -> Bytes {
        self.shared.watched.peak()
    }

    /// Ends all workers and everything they started; returns when their memory is free. Calls
    /// that wait are told that they were not begun.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            // A task that panicked has dropped its process, which kills it.
            let _ = task.await;
        }
        discard(&self.shared.queue);
        let nest = self.nest.lock().unwrap_or_else(PoisonError::into_inner).take();
        match nest {
            Some(Nest::Warm(parent, warm)) => {
                self.shared.watched.remove(parent.group());
                warm.give_back(*parent).await;
            }
            nest => drop(tokio::task::spawn_blocking(move || drop(nest)).await),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// Nobody takes from the queue any more: what waits there is not begun.
fn discard(queue: &async_channel::Receiver<Job>) {
    queue.close();
    while let Ok(job) = queue.try_recv() {
        let _ = job.reply.send(Err(CallError::NotBegun(Error::Gone.into())));
    }
}

/// Keeps one worker going until the group stops or its last worker has died.
async fn keep(shared: Arc<Shared>, index: usize, process: Process) {
    let mut pause = RESTART_FIRST;
    let mut running = Some(process);
    loop {
        if let Some(mut process) = running.take() {
            let began = Instant::now();
            let died = serve(&shared, &mut process, index).await;
            let Some((failure, flight)) = died else { return };
            let is_last = shared.alive.fetch_sub(1, Ordering::AcqRel) == 1;
            if is_last {
                // Before any call is answered: who tries again must not find this group.
                (shared.news)(News::Died(failure.clone()));
                discard(&shared.queue);
            }
            flight.bury(&shared, &failure, true);
            if is_last {
                return;
            }
            if began.elapsed() > LIVED {
                pause = RESTART_FIRST;
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        if shared.alive.load(Ordering::Acquire) == 0 {
            return;
        }
        pause = (pause * 2).min(RESTART_LONGEST);
        match start(&shared, index).await {
            Ok((process, _)) => {
                shared.alive.fetch_add(1, Ordering::AcqRel);
                running = Some(process);
            }
            Err(error) => {
                warn!(model = %shared.name, worker = index, %error, "worker not restarted")
            }
        }
    }
}

/// Serves with one process to its end; why it ended and what it left unanswered, or `None` where
/// the group stops.
async fn serve(
    shared: &Arc<Shared>,
    process: &mut Process,
    index: usize,
) -> Option<(Failure, Flight)> {
    let mut worker = Worker::new(shared, process);
    let over = worker.run().await;
    let flight = worker.into_flight();
    let (ended, why) = match over {
        Over::Stopped => {
            flight.bury(shared, &Error::Gone.into(), false);
            process.end().await;
            shared.watched.remove(process.group);
            metrics::ended(End::Unloaded);
            return None;
        }
        Over::TimeLimit => (End::Time, Some(Error::TimeLimit(shared.time_limit))),
        Over::Gone(garbled) => (End::Died, garbled.map(Error::Garbled)),
    };
    let how = match why {
        Some(_) => process.end().await,
        None => process.ended().await,
    };
    shared.watched.remove(process.group);
    let (ended, error) = match (why, shared.watched.take_verdict()) {
        (Some(error), _) => (ended, error),
        (None, Some(verdict)) => condemned(verdict),
        (None, None) => (ended, Error::Died { how }),
    };
    metrics::ended(ended);
    warn!(model = %shared.name, worker = index, why = %error, "worker ended");
    Some((Failure::from(error), flight))
}

fn condemned(verdict: Verdict) -> (End, Error) {
    match verdict {
        Verdict::Memory { used, limit } => {
            let how = format!(
                "was ended: the handler used {used} of memory, its limit is {limit} (memory under \
                 [handler] in roundhouse.toml, and the operator's handlers.max_memory)"
            );
            (End::Memory, Error::Died { how })
        }
        Verdict::Files { used, limit } => {
            let took = match used {
                Bytes(u64::MAX) => "are too many or too deep to be counted".to_owned(),
                used => format!("took {used}"),
            };
            let how = format!(
                "was ended: its temporary files {took}, the limit is {limit} (handlers.max_temp)"
            );
            (End::Temp, Error::Died { how })
        }
    }
}

/// Starts one worker and waits until it is ready.
pub(crate) async fn start(shared: &Shared, index: usize) -> Result<(Process, Ready), Error> {
    let began = Instant::now();
    let launch = (shared.launch)(index);
    let spawned = shared.spawner.spawn(&launch).await?;
    metrics::started();
    settle(shared, index, Process::new(spawned, &shared.name, index), began).await
}

/// Waits until a worker that was started or forked is ready.
pub(crate) async fn settle(
    shared: &Shared,
    index: usize,
    mut process: Process,
    began: Instant,
) -> Result<(Process, Ready), Error> {
    shared.watched.add(process.group);
    shared.watched.starting.fetch_add(1, Ordering::Relaxed);
    let ready = tokio::select! {
        () = shared.stop.cancelled() => Err(Error::Gone),
        ready = tokio::time::timeout(shared.start_limit, process.ready(&shared.name)) => {
            ready.unwrap_or(Err(Error::StartTimedOut(shared.start_limit)))
        }
    };
    shared.watched.starting.fetch_sub(1, Ordering::Relaxed);
    match ready {
        Ok(ready) => {
            metrics::ready(began.elapsed());
            info!(
                model = %shared.name, worker = index, python = %ready.python,
                framework = %ready.framework, took = ?began.elapsed(), "worker ready"
            );
            Ok((process, ready))
        }
        Err(error) => {
            process.end().await;
            shared.watched.remove(process.group);
            metrics::ended(End::FailedStart);
            let verdict = shared.watched.take_verdict();
            Err(verdict
                .map_or(error, |verdict| Error::Unloadable(condemned(verdict).1.to_string())))
        }
    }
}

/// What a group's processes are started with.
pub(crate) struct Recipe {
    pub(crate) confinement: Confinement,
    pub(crate) python: PathBuf,
    pub(crate) base: Arc<Base>,
    pub(crate) settings: serde_json::Value,
    pub(crate) variables: BTreeMap<String, String>,
    pub(crate) dir: PathBuf,
}

impl Recipe {
    /// The launch of one worker.
    pub(crate) fn launch(&self, index: usize) -> Launch {
        let mut settings = self.settings.clone();
        settings["worker"] = index.into();
        Launch {
            confinement: self.confinement.clone(),
            program: self.python.clone(),
            args: self.base.arguments("roundhouse_worker", &settings),
            env: self.variables.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            dir: self.dir.clone(),
        }
    }
}
