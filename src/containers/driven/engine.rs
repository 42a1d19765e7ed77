//! An engine that runs: started by command, watched until it ends or is stopped.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use roundhouse_types::{Bytes as Amount, ErrorKind, Failure, TenantName};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::adapters::Seat;
use super::call::{Answer, Call, CallError, Route};
use super::memory;
use super::rewrite::{Rewritten, Salts, To, Unfit, rewrite, unfit};
use super::spec::{AdapterRoutes, EngineSpec, Fill, UnknownPlaceholder};
use crate::{
    Backend, BackendConfig, BaseUrl, Command, Condition, Error, HealthConfig, Outgoing, Running,
    Seen,
};

/// Whoever asks has deadlines of its own, and drops a request at them.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Requests under way at one engine; serving's own bounds are lower.
const IN_FLIGHT: usize = 4096;
/// A health check that takes longer has failed; it is repeated while the engine starts.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of a process that broke its connection off is waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often it is looked what its processes take. A look costs about a millisecond for each.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Larger bodies take longer to read than other requests should wait.
const INLINE_MAX: usize = 64 << 10;
/// Of answers to what is not a client's request.
const TOLD_MAX: Amount = Amount::mib(1);
/// How much of a refusal is repeated.
const SAID_MAX: usize = 2 << 10;

/// What an engine's owner is told of it.
#[derive(Debug, Clone)]
pub enum News {
    /// Its processes take this much of the host's memory now.
    Measured(Amount),
    /// Its process is gone; it cannot serve any more.
    Died(Failure),
}

/// Takes news. Must not block.
pub type NewsFn = Arc<dyn Fn(News) + Send + Sync>;

/// An engine that is to be started.
pub struct Start {
    /// What the operator says of it.
    pub spec: Arc<EngineSpec>,
    /// What its rule is called, for errors, logs and metrics. There are few.
    pub rule: Arc<str>,
    /// Our own executable; see [`Command::exe`].
    pub exe: PathBuf,
    /// Variables of ours that it is given beside its own.
    pub inherited: Vec<(String, String)>,
    /// What stands for its placeholders.
    pub fill: Fill,
    /// Is told of it from its start on.
    pub news: NewsFn,
}

/// An engine that was healthy. Its process is owned by a task of its own; dropped, it is ended.
pub struct Engine {
    spec: Arc<EngineSpec>,
    /// What its requests call the model.
    name: String,
    salts: Arc<Salts>,
    backend: Backend,
    /// The process that its processes descend from.
    keeper: Option<u32>,
    /// The first of them.
    process: Option<u32>,
    /// How its process ended, once it has.
    ended: watch::Receiver<Option<String>>,
    stop: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
    /// One permit for each adapter that it may hold.
    pub(super) seats: Arc<Semaphore>,
    /// Of adapters that it may hold although it was to let go of them, by its names for them.
    pub(super) stuck: tokio::sync::Mutex<BTreeMap<String, Seat>>,
}

impl Engine {
    /// Starts it and returns when it is healthy. If dropped before, its processes are ended.
    ///
    /// # Errors
    /// `ModelInvalid` where a placeholder does not exist, or its name for the model would be read as an
    /// adapter's, and that of a process that could not be started, ended before it was healthy, or
    /// was not healthy in time.
    pub async fn start(start: Start) -> Result<Self, Failure> {
        let Start { spec, rule, exe, inherited, fill, news } = start;
        let command = command(&spec, rule, exe, inherited, &fill).map_err(invalid)?;
        let name = fill.fill(&spec.name).map_err(invalid)?;
        let is_sglang = spec.adapters.is_some_and(|it| it.routes == AdapterRoutes::Sglang);
        if is_sglang && name.contains(':') {
            let what = format!(
                "an engine that takes adapters by SGLang's routes cannot call its model '{name}': \
                 what follows a ':' is an adapter's name there"
            );
            return Err(Failure::new(ErrorKind::ModelInvalid, what));
        }
        let running = command.start().await?;
        // As in its command.
        let name = name.replace("{port}", &running.port().to_string());
        // Its process is watched. One that computes may be slow to say that it is well.
        let asked = running.backend().config().clone();
        let backend = Backend::new(BackendConfig { health: None, ..asked });
        let (keeper, process) = (running.keeper_id(), running.process_id());
        let (tell, ended) = watch::channel(None);
        let (stop, stopped) = watch::channel(false);
        let looks = keeper.filter(|_| spec.measure);
        let task = tokio::spawn(keep(running, looks, tell, stopped, news));
        let slots = spec.adapters.map_or(0, |adapters| adapters.slots.get());
        let seats = Arc::new(Semaphore::new(slots));
        let task = Mutex::new(Some(task));
        let (stuck, salts) = Default::default();
        Ok(Self { spec, name, salts, backend, keeper, process, ended, stop, task, seats, stuck })
    }

    /// What the operator says of it.
    pub fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    /// What its requests call the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it stands now, for those who operate it. Whether it sleeps its owner knows.
    pub fn seen(&self) -> Seen {
        let seen = self.backend.seen();
        let condition = match seen.condition {
            _ if self.has_ended() => Condition::Down,
            Condition::Unchecked => Condition::Running,
            condition => condition,
        };
        Seen { condition, process: self.process, ..seen }
    }

    /// What its processes take of the host's memory now; `None` where that is not measured. Blocking.
    pub fn measure(&self) -> Option<Amount> {
        self.keeper.filter(|_| self.spec.measure).map(memory::below)
    }

    /// Ends it, and returns when its processes are gone. A second call finds nothing to do.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            // One that panicked has dropped the process, which ends it.
            let _ = task.await;
        }
    }

    /// Sends a request on; the model is called `name` in it. Returns when the answer begins, whatever
    /// its status. If dropped before, or if the answer's body is dropped, the engine is told to stop.
    ///
    /// # Errors
    /// `NotBegun` where the process is gone and has not heard of it; `InvalidInput` where the engine
    /// takes no such body, and how the process ended or what was wrong with its answer.
    pub(super) async fn call(&self, name: &str, call: Call) -> Result<Answer, CallError> {
        let to = self.rewritten(name, &call).await;
        let Rewritten { path, body } = to.map_err(CallError::Failed)?;
        let mut request = post(&path, body);
        let headers = request.headers_mut();
        for (name, text) in [
            (header::CONTENT_TYPE, call.content_type),
            (header::ACCEPT, call.accept),
            (header::HeaderName::from_static("x-request-id"), Some(call.request_id)),
        ] {
            if let Some(Ok(value)) = text.map(|text| HeaderValue::from_str(&text)) {
                headers.insert(name, value);
            }
        }
        for (name, text) in call.trace {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(name, value);
            }
        }
        let response = match self.backend.send(request, Instant::now() + LONGEST).await {
            Ok(response) => response,
            Err(error) => {
                let is_unheard = matches!(error, Error::Unreachable { .. });
                return Err(match self.death().await {
                    Some(died) if is_unheard => CallError::NotBegun(died),
                    Some(died) => CallError::Failed(died),
                    None => CallError::Failed(error.into()),
                });
            }
        };
        let (head, body) = response.into_parts();
        let content_type = head.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|it| it.to_str().ok()).map(str::to_owned);
        let pieces = body.into_data_stream().map(|piece| piece.map_err(Failure::from));
        let (status, headers) = (head.status.as_u16(), Vec::new());
        Ok(Answer { status, content_type, headers, body: Box::pin(pieces) })
    }

    /// Where a request goes and what is sent; a large one is read on a blocking thread.
    async fn rewritten(&self, name: &str, call: &Call) -> Result<Rewritten, Failure> {
        if call.body.len() <= INLINE_MAX {
            let salted = self.spec.salted(&self.salts, call.prefixes_of.as_ref());
            return rewrite(&self.spec.to(call.route, name), salted, &call.body).map_err(refused);
        }
        let (spec, salts) = (Arc::clone(&self.spec), Arc::clone(&self.salts));
        let (name, route) = (name.to_owned(), call.route);
        let (tenant, body) = (call.prefixes_of.clone(), call.body.clone());
        let work = move || {
            let salted = spec.salted(&salts, tenant.as_ref());
            rewrite(&spec.to(route, &name), salted, &body)
        };
        let read = tokio::task::spawn_blocking(work).await;
        let read =
            read.map_err(|error| Failure::new(ErrorKind::Internal, format!("a body: {error}")));
        read?.map_err(refused)
    }

    /// Why its process ended, where it does so about now.
    async fn death(&self) -> Option<Failure> {
        let mut ended = self.ended.clone();
        let how = timeout(LAST_WORDS, ended.wait_for(Option::is_some)).await.ok()?;
        // A task that is gone without a word was stopped.
        let how = how.ok().and_then(|how| how.clone()).unwrap_or_else(|| "was stopped".into());
        Some(gone(&self.backend.config().name, &how))
    }

    /// Whether its process has ended, or it was stopped.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some() || self.ended.has_changed().is_err()
    }

    /// Asks for something that is no client's request, however many of these are under way.
    ///
    /// # Errors
    /// `ModelFailed` where it does not answer in time; else its status and what it says, where that is
    /// no success.
    pub(super) async fn ask(
        &self,
        request: Request<Outgoing>,
        limit: Duration,
    ) -> Result<Bytes, Refusal> {
        let deadline = Instant::now() + limit;
        let answered = async {
            let response = self.backend.instruct(request, deadline).await?;
            let status = response.status();
            Ok::<_, Error>((status, response.into_body().collect(TOLD_MAX).await?))
        };
        match answered.await {
            Ok((status, body)) if status.is_success() => Ok(body),
            Ok((status, body)) => {
                let shown = &body[..body.len().min(SAID_MAX)];
                let said = String::from_utf8_lossy(shown).trim().to_owned();
                Err(Refusal::Said(status, said))
            }
            Err(error) => Err(Refusal::Failed(self.death_or(error).await)),
        }
    }

    async fn death_or(&self, error: Error) -> Failure {
        match error {
            Error::Unreachable { .. } | Error::BrokeOff { .. } | Error::Cut { .. } => {
                self.death().await.unwrap_or_else(|| error.into())
            }
            error => error.into(),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

impl EngineSpec {
    /// Why an engine of these settings would refuse a body, where that is seen without it. A large body
    /// is not looked at. `keeps_apart`: whether the call would say whose prompts it brings
    /// ([`Call::prefixes_of`]).
    pub fn refusal(&self, route: Route, keeps_apart: bool, body: &Bytes) -> Option<Failure> {
        let is_salted = keeps_apart && self.cache_salt;
        let is_seen = body.len() <= INLINE_MAX;
        is_seen.then(|| unfit(&self.to(route, ""), is_salted, body)).flatten().map(refused)
    }

    /// How a body of a route is rewritten for it.
    fn to<'a>(&'a self, route: Route, name: &'a str) -> To<'a> {
        let adapters = self.adapters.map(|adapters| adapters.routes);
        To { route, invocations: self.invocations.as_deref(), adapters, name }
    }

    /// Of whom its prompts' salt is made.
    fn salted<'a>(
        &self,
        salts: &'a Salts,
        tenant: Option<&'a TenantName>,
    ) -> Option<(&'a Salts, &'a TenantName)> {
        Some((salts, tenant.filter(|_| self.cache_salt)?))
    }
}

fn refused(unfit: Unfit) -> Failure {
    let what = match unfit {
        Unfit::NoPath => {
            "the engine that serves this target takes JSON objects with messages, prompt or input"
                .into()
        }
        Unfit::Field(field) => {
            format!("{field} is not supported: no response is stored or goes on alone")
        }
    };
    Failure::new(ErrorKind::InvalidInput, what)
}

/// Why an engine did not do what it was asked.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It said so.
    Said(StatusCode, String),
    /// It did not answer.
    Failed(Failure),
}

/// A request with a body.
pub(super) fn post(path: &str, body: Bytes) -> Request<Outgoing> {
    let mut request = Request::new(Outgoing::whole(body));
    *request.method_mut() = Method::POST;
    // Paths are checked where they are read, and are constants elsewhere.
    *request.uri_mut() = path.parse().unwrap_or_default();
    request
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request
}

fn invalid(unknown: UnknownPlaceholder) -> Failure {
    Failure::from_error(ErrorKind::ModelInvalid, &unknown)
}

fn command(
    spec: &EngineSpec,
    rule: Arc<str>,
    exe: PathBuf,
    inherited: Vec<(String, String)>,
    fill: &Fill,
) -> Result<Command, UnknownPlaceholder> {
    let filled = |text: &String| fill.fill(text);
    let mut words = spec.command.iter().map(filled).collect::<Result<Vec<_>, _>>()?;
    let args = words.split_off(words.len().min(1));
    let mut env = inherited;
    for (name, value) in &spec.environment {
        env.retain(|(other, _)| other != name);
        env.push((name.clone(), fill.fill(value)?));
    }
    let path = spec.health.parse().unwrap_or_else(|_| HealthConfig::default().path);
    let health = HealthConfig { path, timeout: CHECK_TIMEOUT, ..HealthConfig::default() };
    let backend = BackendConfig {
        head_timeout: LONGEST,
        idle_timeout: LONGEST,
        max_in_flight: IN_FLIGHT,
        health: Some(health),
        // Its process's end is seen; what one request breaks says nothing of others.
        is_watched: true,
        // The address is the start's to find.
        ..BackendConfig::new(rule, BaseUrl::local(0))
    };
    Ok(Command {
        exe,
        program: words.pop().unwrap_or_default().into(),
        args,
        env,
        dir: None,
        port: None,
        start_timeout: spec.start_timeout,
        grace: spec.stop_timeout,
        own_processes: spec.own_processes,
        backend,
    })
}

/// Owns the process until it ends or is stopped, and tells what it takes.
async fn keep(
    mut running: Running,
    looks: Option<u32>,
    tell: watch::Sender<Option<String>>,
    mut stopped: watch::Receiver<bool>,
    news: NewsFn,
) {
    let name = Arc::clone(&running.backend().config().name);
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = tokio::select! {
            biased;
            // Its sender's end is the same.
            _ = stopped.wait_for(|stop| *stop) => Next::Stop,
            how = running.ended() => Next::Ended(how),
            _ = ticks.tick(), if looks.is_some() => Next::Look,
        };
        match next {
            Next::Stop => {
                running.stop().await;
                info!(engine = %name, "engine stopped");
                return;
            }
            Next::Ended(how) => {
                warn!(engine = %name, %how, "engine ended by itself");
                // Before any request is answered: who tries again must not find this engine.
                news(News::Died(gone(&name, &how)));
                tell.send_replace(Some(how));
                return;
            }
            Next::Look => {
                let Some(keeper) = looks else { continue };
                let look = tokio::task::spawn_blocking(move || memory::below(keeper));
                if let Ok(taken) = look.await
                    && taken > Amount::ZERO
                {
                    news(News::Measured(taken));
                }
            }
        }
    }
}

enum Next {
    Stop,
    Ended(String),
    Look,
}

fn gone(name: &str, how: &str) -> Failure {
    Failure::new(ErrorKind::ModelFailed, format!("engine {name} is gone: its process {how}"))
        .with_status(0)
}
