//! Inference in another process: how does a Python handler answer.
//!
//! A handler is a group of worker processes that run one artefact's `inference.py`. Files in
//! reading order: `layout` (which artefacts are handlers, what they ask for), this one (what all
//! groups share, and how one is launched), `group` (one handler's workers), `worker` (one
//! process's calls), `frame` (what is said through its socket), `process` and `spawn` (its
//! start and its end), `watch` (what it really uses), `environment` (`requirements.txt`).
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
mod watch;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex};

pub use call::{Body, Call, CallError, Chunks, Meta, Reply};
pub use config::{Config, DYNAMIC_USERS, Packages};
pub use error::Error;
pub use group::{Group, News, NewsFn};
pub use layout::{Framework, Layout, SETTINGS_FILE, SETTINGS_MAX, Settings};
pub use metrics::describe_metrics;
pub use peaks::remembered;
pub use roundhouse_confine::Isolation;

use roundhouse_confine::{Confinement, Interpreter, Mechanisms, Network};
use roundhouse_types::Bytes;
use rustix::fs::Mode;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use environment::{Environments, Installer};
use group::{Recipe, Shared};
use peaks::Peaks;
use poison::Poison;
use scratch::Scratch;
use spawn::Spawner;
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
    config: Config,
    mechanisms: Mechanisms,
    runtime: PathBuf,
    /// What an interpreter needs to read.
    system: Vec<PathBuf>,
    scratch: Arc<Scratch>,
    spawner: Spawner,
    watch: Arc<Watch>,
    peaks: Arc<Peaks>,
    poison: Arc<Poison>,
    environments: Environments,
    /// Held for as long as the folder is ours.
    _lock: File,
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
        let environments = Environments::open(&config, installer)?;
        Ok(Self {
            runtime,
            system: interpreter.read,
            scratch,
            spawner,
            watch: Watch::start()?,
            peaks: Arc::new(Peaks::open(&config.dir)),
            poison: Arc::default(),
            environments,
            mechanisms,
            _lock: lock,
            config: Config { python, ..config },
        })
    }

    /// The settings it was started with.
    pub fn config(&self) -> &Config {
        &self.config
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

    /// Brings the handler's packages, starts its workers and returns when all are ready. `news`
    /// is told of the group from then on.
    ///
    /// # Errors
    /// Where packages cannot be installed, a worker cannot be started, or the handler cannot be
    /// loaded; nothing is left then. If dropped before ready, what was started is ended.
    pub async fn launch(&self, handler: &Handler, news: NewsFn) -> Result<Group, Error> {
        let environment = match handler.layout.requirements {
            Some(file) => {
                let path = handler.dir.join(file);
                Some(self.environments.prepare(&path, &handler.tenant, &handler.name).await?)
            }
            None => None,
        };
        let scratch = Arc::clone(&self.scratch);
        let corner = blocking(move || scratch.take()).await?;
        let memory_limit = handler.settings.memory.unwrap_or(self.config.max_memory);
        let watched = Arc::new(Watched {
            dir: corner.dir.clone(),
            memory_limit,
            files_limit: self.config.max_temp,
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
        let python = environment.as_ref().map_or(&self.config.python, |it| &it.python);
        let mut read = self.system.clone();
        read.extend([self.runtime.clone(), handler.dir.clone()]);
        read.extend(environment.as_ref().map(|it| it.root.clone()));
        let recipe = Recipe {
            confinement: self.confinement(read, &corner.dir, corner.uid, memory_limit),
            python: python.clone(),
            runtime: self.runtime.clone(),
            settings: self.settings(handler),
            variables: variables(handler, &corner.dir, python),
            dir: corner.dir.clone(),
        };
        let (calls, queue) = async_channel::bounded(self.config.max_queue);
        let shared = Shared {
            name: handler.name.clone(),
            version: handler.version.clone(),
            time_limit: handler.settings.time_limit,
            start_limit: self.config.start_limit,
            max_response: self.config.max_response,
            queue,
            stop: CancellationToken::new(),
            watched: Arc::clone(&watched),
            poison: Arc::clone(&self.poison),
            spawner: self.spawner.clone(),
            launch: Arc::new(move |index| recipe.launch(index)),
            news,
            alive: AtomicUsize::new(0),
            _environment: environment.clone(),
        };
        self.watch.add(&watched);
        let starts = (0..handler.settings.workers).map(|index| group::start(&shared, index));
        let mut processes = Vec::new();
        for started in futures_util::future::join_all(starts).await {
            processes.push(started?);
        }
        Ok(Group::new(shared, calls, processes, corner))
    }

    fn confinement(
        &self,
        read: Vec<PathBuf>,
        temp: &Path,
        uid: Option<u32>,
        memory: Bytes,
    ) -> Confinement {
        let reserved = memory.0.saturating_mul(RESERVED_FACTOR).saturating_add(RESERVED_BESIDE.0);
        Confinement {
            isolation: self.config.isolation,
            uid,
            read,
            write: vec![temp.to_owned()],
            network: Network::None,
            memory: Some(reserved),
            processes: Some(self.config.processes),
            open_files: OPEN_FILES,
            file_size: self.config.max_temp.0,
            nice: NICE,
        }
    }

    fn settings(&self, handler: &Handler) -> serde_json::Value {
        let code = handler.layout.code.map(|code| handler.dir.join(code));
        json!({
            "model_dir": handler.dir,
            "code_dir": code,
            "name": handler.name,
            "framework": handler.settings.framework.as_str(),
            "max_response": self.config.max_response,
            "workers": handler.settings.workers,
        })
    }
}

/// Takes the folder for this process: what another left in it is ended and deleted.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let locked = std::fs::create_dir_all(dir)
        .and_then(|()| File::create(&path))
        .and_then(|file| file.try_lock().map(|()| file).map_err(io::Error::from));
    locked.map_err(|source| Error::file("lock (is another server using it?)", &path, source))
}

/// The environment of a handler's processes; nothing of ours is in it.
fn variables(handler: &Handler, temp: &Path, python: &Path) -> BTreeMap<String, String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let bin = python.parent().map(text).unwrap_or_default();
    let mut variables = BTreeMap::from([
        ("PATH".to_owned(), format!("{bin}:/usr/local/bin:/usr/bin:/bin")),
        ("LANG".into(), "C.UTF-8".into()),
        ("HOME".into(), text(temp)),
        ("TMPDIR".into(), text(temp)),
        ("SM_MODEL_DIR".into(), text(&handler.dir)),
        (
            "SAGEMAKER_PROGRAM".into(),
            handler.layout.script.clone().unwrap_or_else(|| "inference.py".into()),
        ),
    ]);
    if let Some(code) = handler.layout.code {
        variables.insert("SAGEMAKER_SUBMIT_DIRECTORY".into(), text(&handler.dir.join(code)));
    }
    // Many handlers share the cores; a pool per handler and library would only fight for them.
    for library in ["OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM"] {
        variables.insert(format!("{library}_NUM_THREADS"), "1".into());
    }
    variables.extend(handler.settings.variables.clone());
    variables
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::Spawn(std::io::Error::other(error))))
}
