//! Inference in another process: how does a Python handler answer.
//!
//! A handler is a group of worker processes that run one artefact's `inference.py`. Files in
//! reading order: `layout` (which artefacts are handlers, what they ask for), this one (what all
//! groups share, and how one is launched), `group` (one handler's workers), `worker` (one
//! process's calls), `frame` (what is said through its socket), `process` and `spawn` (its
//! start and its end), `watch` (what it really uses), `warm` (interpreters that are forked instead
//! of started), `environment` (`requirements.txt`).
//!
//! What a worker may touch is `roundhouse-confine`'s.

mod call;
mod config;
mod environment;
mod error;
mod frame;
mod group;
mod layout;
mod logs;
mod metrics;
mod pace;
mod peaks;
mod poison;
mod process;
mod runtime;
mod scratch;
mod spawn;
#[cfg(test)]
mod testing;
mod warm;
mod watch;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub use call::{Body, Call, CallError, Chunks, Meta, Reply};
pub use config::{Config, DYNAMIC_USERS, Packages};
pub use error::Error;
pub use group::{Group, News, NewsFn};
pub use layout::{Framework, Layout, SETTINGS_FILE, SETTINGS_MAX, Settings};
pub use metrics::describe_metrics;
pub use peaks::remembered;
pub use roundhouse_confine::Isolation;
pub use warm::{WarmState, Warming};

use roundhouse_confine::{Confinement, Interpreter, Mechanisms, Network};
use roundhouse_types::Bytes;
use rustix::fs::Mode;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use environment::{Environment, Environments, Installer};
use frame::Ready;
use group::{Nest, Recipe, Shared};
use metrics::Launched;
use peaks::Peaks;
use poison::Poison;
use process::Process;
use scratch::Scratch;
use spawn::Spawner;
use warm::{Order, Warm};
use watch::{Watch, Watched};

/// Open files and sockets of one worker.
const OPEN_FILES: u32 = 1024;
/// Behind the server and its own models where both want the processor.
const NICE: i32 = 5;
/// The limit on a process's writable memory, against its limit on what it uses: interpreters
/// and numeric libraries reserve more than they touch. The watch holds the real limit; this
/// one stops a leak that is faster than it looks.
const RESERVED_FACTOR: u64 = 2;
const RESERVED_BESIDE: Bytes = Bytes::gib(1);

/// What all handlers of a process share. Owned by the server.
pub struct Workers {
    base: Arc<Base>,
    mechanisms: Mechanisms,
    /// Where interpreters are kept.
    warm: Option<Arc<Warm>>,
    watch: Arc<Watch>,
    peaks: Arc<Peaks>,
    poison: Arc<Poison>,
    environments: Arc<Environments>,
    /// Held for as long as the folder is ours.
    _lock: File,
}

/// What every process of ours is started with.
pub(crate) struct Base {
    config: Config,
    runtime: PathBuf,
    /// What an interpreter needs to read.
    system: Vec<PathBuf>,
    scratch: Arc<Scratch>,
    spawner: Spawner,
}

/// A handler to be launched.
#[derive(Debug, Clone)]
pub struct Handler {
    /// Its name, for logs.
    pub name: String,
    /// Its version, the same for the same files: memory peaks are remembered by it.
    pub version: String,
    /// Whose environments it may use.
    pub tenant: String,
    /// The artefact's folder.
    pub dir: PathBuf,
    /// Where its parts lie.
    pub layout: Layout,
    /// What it asks for.
    pub settings: Settings,
}

impl Workers {
    /// Looks at what the machine allows, and makes the folders. Blocking; within a runtime.
    ///
    /// # Errors
    /// `NotIsolated` where isolation is required and cannot be had, `Interpreter`, and what
    /// keeps the folders from being written.
    pub fn start(config: Config) -> Result<Self, Error> {
        // Workers are other users: what we write for them must be readable to them.
        rustix::process::umask(Mode::from_raw_mode(0o022));
        // Workers have another working directory than we.
        let dir = std::path::absolute(&config.dir)
            .map_err(|source| Error::file("find", &config.dir, source))?;
        let config = Config { dir, ..config };
        let mechanisms = roundhouse_confine::probe(&config.exe);
        let missing = mechanisms.missing();
        metrics::isolated(missing.is_empty());
        if !missing.is_empty() {
            let missing = missing.join(", ");
            if config.isolation == Isolation::Required {
                return Err(Error::NotIsolated { missing });
            }
            warn!(missing, "handlers are NOT fully isolated: isolation is best-effort");
        }
        info!(mechanisms = mechanisms.summary(), "handlers");
        let interpreter = Interpreter::ask(&config.python).map_err(|error| {
            let python = config.python.clone();
            Error::Interpreter { python, message: error.to_string() }
        })?;
        let python = interpreter.executable;
        let lock = lock(&config.dir)?;
        let peaks = Arc::new(Peaks::open(&config.dir));
        let runtime = runtime::install(&config.dir.join("runtime"), &python)?;
        let uids = mechanisms.own_uid.then(|| config.uids.clone());
        let scratch = Arc::new(Scratch::open(config.dir.join("scratch"), uids)?);
        let spawner = Spawner::start(config.exe.clone())?;
        let installer = Installer::new(
            &config,
            python.clone(),
            interpreter.read.clone(),
            spawner.clone(),
            Arc::clone(&scratch),
        );
        let environments = Arc::new(Environments::open(&config, installer)?);
        let config = Config { python, ..config };
        let base = Base { config, runtime, system: interpreter.read, scratch, spawner };
        let base = Arc::new(base);
        Ok(Self {
            warm: warmed(&base, &mechanisms),
            base,
            watch: Watch::start()?,
            peaks,
            poison: Arc::default(),
            environments,
            mechanisms,
            _lock: lock,
        })
    }

    /// The settings it was started with.
    pub fn config(&self) -> &Config {
        &self.base.config
    }

    /// What idle interpreters take; absent where none are kept.
    pub fn warm(&self) -> Option<WarmState> {
        self.warm.as_ref().map(|warm| warm.idle())
    }

    /// Says what of the device's budget nobody has a claim to: idle interpreters that take more
    /// leave at once.
    pub fn set_warm_room(&self, room: Bytes) {
        if let Some(warm) = &self.warm {
            warm.set_room(room);
        }
    }

    /// What this machine confines workers by.
    pub fn mechanisms(&self) -> &Mechanisms {
        &self.mechanisms
    }

    /// The most that this version was ever seen to use.
    pub fn remembered(&self, version: &str) -> Option<Bytes> {
        self.peaks.get(version)
    }

    /// Writes down what a version was seen to use. Blocking.
    pub fn remember(&self, version: &str, peak: Bytes) {
        self.peaks.seen(version, peak);
    }

    /// Brings the packages that `requirements` asks for, a file, to the environments of a tenant, and
    /// says how long that took. [`Workers::launch`] finds them there.
    ///
    /// # Errors
    /// Where the file asks for what is not allowed, or the packages cannot be installed.
    pub async fn prepare(
        &self,
        requirements: &Path,
        tenant: &str,
        name: &str,
    ) -> Result<Duration, Error> {
        let (_, once) = self.environments.prepare(requirements, tenant, name).await?;
        Ok(once)
    }

    /// Brings the handler's packages, starts its workers and returns when all are ready. `news`
    /// is told of the group from then on.
    ///
    /// # Errors
    /// Where packages cannot be installed, a worker cannot be started, or the handler cannot be
    /// loaded; nothing is left then. If dropped before ready, what was started is ended.
    pub async fn launch(&self, handler: &Handler, news: NewsFn) -> Result<Group, Error> {
        let (environment, preparing) = match handler.layout.requirements {
            Some(file) => {
                let path = handler.dir.join(file);
                let prepared = self.environments.prepare(&path, &handler.tenant, &handler.name);
                let (environment, once) = prepared.await?;
                (Some(environment), once)
            }
            None => (None, Duration::ZERO),
        };
        if let Some(warm) = &self.warm {
            let key = warm.key(handler, environment.as_deref());
            if let Some(parent) = warm.take(&key) {
                let nest = Nest::Warm(Box::new(parent), Arc::clone(warm));
                match self.launch_in(nest, handler, environment.clone(), Arc::clone(&news)).await {
                    Ok(group) => {
                        metrics::launched(Launched::Hit);
                        return Ok(group.prepared_in(preparing));
                    }
                    // Whether it is the handler that cannot be loaded, a start anew will tell.
                    Err(error @ (Error::Unloadable(_) | Error::Spawn(_) | Error::Garbled(_))) => {
                        warm::failed(&handler.name, error);
                    }
                    Err(error) => return Err(error),
                }
            } else {
                metrics::launched(Launched::Miss);
            }
        }
        let scratch = Arc::clone(&self.base.scratch);
        let corner = blocking(move || scratch.take()).await?;
        let group = self.launch_in(Nest::Own(corner), handler, environment, news).await?;
        Ok(group.prepared_in(preparing))
    }

    /// Starts a handler's workers as one user and in one folder.
    async fn launch_in(
        &self,
        mut nest: Nest,
        handler: &Handler,
        environment: Option<Arc<Environment>>,
        news: NewsFn,
    ) -> Result<Group, Error> {
        let config = &self.base.config;
        let (dir, uid) = (nest.corner().dir.clone(), nest.corner().uid);
        let memory_limit = handler.settings.memory.unwrap_or(config.max_memory);
        let watched = Arc::new(Watched {
            dir: dir.clone(),
            memory_limit,
            files_limit: config.max_temp,
            workers: Mutex::new(BTreeSet::new()),
            busy: AtomicBool::new(true),
            starting: AtomicUsize::new(0),
            peak: AtomicU64::new(0),
            rests_until: Mutex::new(None),
            verdict: Mutex::new(None),
            told: {
                let news = Arc::clone(&news);
                Box::new(move |bytes| news(News::Measured(bytes)))
            },
        });
        let python = environment.as_ref().map_or(&config.python, |it| &it.python);
        let mut read = self.base.system.clone();
        read.extend([self.base.runtime.clone(), handler.dir.clone()]);
        read.extend(environment.as_ref().map(|it| it.root.clone()));
        let mut variables = variables(&handler.settings.variables, &dir, python);
        variables.extend(named(handler, &handler.dir));
        let recipe = Recipe {
            confinement: self.base.confinement(read, &dir, uid, memory_limit),
            python: python.clone(),
            base: Arc::clone(&self.base),
            settings: self.settings(handler, &handler.dir),
            variables,
            dir: dir.clone(),
        };
        let (calls, queue) = async_channel::bounded(config.max_queue);
        let shared = Shared {
            name: handler.name.clone(),
            version: handler.version.clone(),
            time_limit: handler.settings.time_limit,
            start_limit: config.start_limit,
            max_response: config.max_response,
            queue,
            stop: CancellationToken::new(),
            watched: Arc::clone(&watched),
            poison: Arc::clone(&self.poison),
            spawner: self.base.spawner.clone(),
            launch: Arc::new(move |index| recipe.launch(index)),
            news,
            alive: AtomicUsize::new(0),
            _environment: environment.clone(),
        };
        self.watch.add(&watched);
        let mut processes = Vec::new();
        let mut imported = Vec::new();
        for started in self.start_all(&shared, &mut nest, handler).await {
            let (process, ready) = started?;
            processes.push(process);
            imported = ready.imported;
        }
        if let Some(warm) = &self.warm {
            warm.started(&warm.key(handler, environment.as_deref()), imported, environment);
        }
        Ok(Group::new(shared, calls, processes, nest))
    }

    /// Starts or forks all workers of a group, and waits until each is ready or has failed.
    async fn start_all(
        &self,
        shared: &Shared,
        nest: &mut Nest,
        handler: &Handler,
    ) -> Vec<Result<(Process, Ready), Error>> {
        let workers = 0..handler.settings.workers;
        let Nest::Warm(parent, _) = nest else {
            let starts = workers.map(|index| group::start(shared, index));
            return futures_util::future::join_all(starts).await;
        };
        // What a model shares with the interpreter is charged to both in part.
        shared.watched.add(parent.group());
        let dir = parent.model_dir().to_owned();
        let mut settles = Vec::new();
        for index in workers {
            let began = Instant::now();
            let mut settings = self.settings(handler, &dir);
            settings["worker"] = index.into();
            let order = Order {
                settings,
                variables: named(handler, &dir),
                memory: reserved(shared.watched.memory_limit),
                dir: handler.dir.clone(),
            };
            let forked = parent.fork(&order, &handler.name, index).await;
            settles.push(async move { group::settle(shared, index, forked?, began).await });
        }
        futures_util::future::join_all(settles).await
    }

    fn settings(&self, handler: &Handler, dir: &Path) -> serde_json::Value {
        let code = handler.layout.code.map(|code| dir.join(code));
        json!({
            "model_dir": dir,
            "code_dir": code,
            "name": handler.name,
            "framework": handler.settings.framework.as_str(),
            "max_response": self.base.config.max_response,
            "workers": handler.settings.workers,
        })
    }
}

impl Base {
    fn confinement(
        &self,
        read: Vec<PathBuf>,
        temp: &Path,
        uid: Option<u32>,
        memory: Bytes,
    ) -> Confinement {
        Confinement {
            isolation: self.config.isolation,
            uid,
            read,
            write: vec![temp.to_owned()],
            network: Network::None,
            memory: Some(reserved(memory)),
            processes: Some(self.config.processes),
            open_files: OPEN_FILES,
            file_size: self.config.max_temp.0,
            nice: NICE,
        }
    }

    /// What an interpreter is started with to run one of our modules' `main`.
    fn arguments(&self, module: &str, settings: &serde_json::Value) -> Vec<String> {
        let entry = self.runtime.to_string_lossy();
        // As a module, so that its compiled form is used.
        let start =
            format!("import sys; sys.path[0] = {entry:?}; import {module}; {module}.main()");
        let fixed = ["-s", "-B", "-u", "-c"].map(str::to_owned);
        fixed.into_iter().chain([start, settings.to_string()]).collect()
    }
}

/// The limit on writable memory beside the one that the watch holds.
fn reserved(memory: Bytes) -> u64 {
    memory.0.saturating_mul(RESERVED_FACTOR).saturating_add(RESERVED_BESIDE.0)
}

/// Keeps interpreters, where that is asked for and the machine allows it.
fn warmed(base: &Arc<Base>, mechanisms: &Mechanisms) -> Option<Arc<Warm>> {
    let settings = base.config.warm.clone()?;
    // A fork's artefact is mounted in the view that its interpreter has to itself.
    if !mechanisms.own_uid || !mechanisms.mount_namespace {
        info!("no interpreters are kept for handlers: that needs root and mount namespaces");
        return None;
    }
    Some(Warm::start(Arc::clone(base), settings))
}

/// Takes the folder for this process: what another left in it is ended and deleted.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let locked = std::fs::create_dir_all(dir)
        .and_then(|()| File::create(&path))
        .and_then(|file| file.try_lock().map(|()| file).map_err(io::Error::from));
    locked.map_err(|source| Error::file("lock (is another server using it?)", &path, source))
}

/// The environment of a handler's processes, beside what is [`named`]; nothing of ours is in it.
fn variables(
    own: &BTreeMap<String, String>,
    temp: &Path,
    python: &Path,
) -> BTreeMap<String, String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let bin = python.parent().map(text).unwrap_or_default();
    let mut variables = BTreeMap::from([
        ("PATH".to_owned(), format!("{bin}:/usr/local/bin:/usr/bin:/bin")),
        ("LANG".into(), "C.UTF-8".into()),
        ("HOME".into(), text(temp)),
        ("TMPDIR".into(), text(temp)),
    ]);
    // Many handlers share the cores; a pool per handler and library would only fight for them.
    for library in ["OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM"] {
        variables.insert(format!("{library}_NUM_THREADS"), "1".into());
    }
    variables.extend(own.clone());
    variables
}

/// The variables that say where a handler's files are, `dir` being the artefact's folder as it
/// sees it, unless its settings say otherwise.
fn named(handler: &Handler, dir: &Path) -> BTreeMap<String, String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut variables = BTreeMap::from([
        ("SM_MODEL_DIR".to_owned(), text(dir)),
        (
            "SAGEMAKER_PROGRAM".into(),
            handler.layout.script.clone().unwrap_or_else(|| "inference.py".into()),
        ),
    ]);
    if let Some(code) = handler.layout.code {
        variables.insert("SAGEMAKER_SUBMIT_DIRECTORY".into(), text(&dir.join(code)));
    }
    variables.retain(|name, _| !handler.settings.variables.contains_key(name));
    variables
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::Spawn(std::io::Error::other(error))))
}
