//! Chat templates, rendered in processes of their own.
//!
//! A template comes with a model and is a program: it is bounded in steps and in what it writes, and can
//! still take all memory there is, or hours. So it runs where it can take nothing else: our own binary,
//! run again, which keeps nothing but a socket to us, some memory and some processor time
//! (`roundhouse_confine::seal`). One that goes beyond that ends its process, and fails its own request.
//!
//! Files in reading order: this one (who renders, and what becomes of the processes), `turns` (whose turn
//! it is), `deaths` (whose templates are not tried for a while), `process` (one process as we see it),
//! `frame` (what is said), `child` (the process itself).
//!
//! Processes are started when they are needed: the first when a model that chats is loaded, another when
//! a turn finds none idle. They stay, and one that has died is replaced by the next turn.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::{io, thread};

use futures_util::future::BoxFuture;
use metrics::{Unit, counter, describe_counter};
use roundhouse_serving::{Error, InProcess, Render, Renderer, Rendering};
use roundhouse_types::{Bytes, ModelId, TenantName};
use tracing::{error, warn};

mod child;
mod deaths;
mod frame;
mod process;
mod turns;

pub use child::serve;

use deaths::Deaths;
use process::{Process, START_WITHIN, Why};
use turns::Turns;

/// The argument by which our executable knows that it is to call [`serve`].
pub const SUBCOMMAND: &str = "render-templates";

/// Processor time that one rendering may take, in seconds, or up to one more: the kernel counts whole
/// ones. All steps that it may take are over in less than one.
const PROCESSOR_SECONDS: u64 = 2;

/// Renderings that one process does before another takes its place: what one of them leaves there is not
/// there for ever, and a start is nothing beside so many.
const ORDERS: u64 = 4096;

/// Processes of renderings that did not end well. Label: `reason`.
const ENDED: &str = "roundhouse_templates_processes_ended_total";

/// Tells the installed recorder what the metrics mean.
pub(crate) fn describe() {
    let help = "Processes that ended, or were ended, as they rendered a chat template";
    describe_counter!(ENDED, Unit::Count, help);
}

/// How processes that render are started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Our own binary.
    pub exe: PathBuf,
    /// What each may take beyond what it has when it starts.
    pub memory: Bytes,
    /// Processes at most.
    pub most: usize,
}

impl Settings {
    /// As many processes as keep up with the processors here: a rendering takes a hundredth of what
    /// follows from it.
    pub fn new(memory: Bytes) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        // By what the kernel runs here, which stays what it is where the file is replaced.
        Self { exe: PathBuf::from("/proc/self/exe"), memory, most: cores.clamp(2, 4) }
    }
}

/// Where templates are rendered.
#[derive(Debug, Clone)]
pub enum Templates {
    /// In processes of their own.
    Apart(Processes),
    /// In ours.
    Here(InProcess),
}

impl Templates {
    /// Sees to it that the next chat finds a process.
    pub(crate) fn warm(&self) {
        if let Self::Apart(processes) = self {
            processes.warm();
        }
    }
}

impl Renderer for Templates {
    fn turn(&self, model: &ModelId, tenant: Option<TenantName>) -> BoxFuture<'static, Render> {
        match self {
            Self::Apart(processes) => processes.turn(model, tenant),
            Self::Here(here) => here.turn(model, tenant),
        }
    }
}

/// Processes that render. Clones share them; they end with the last.
#[derive(Debug, Clone)]
pub struct Processes(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    turns: Turns,
    /// Not more than there are turns.
    idle: Mutex<Vec<Process>>,
    most: usize,
    deaths: Mutex<Deaths>,
    /// The way to the thread that starts them; none where it could not be started.
    starter: Option<Sender<Wanted>>,
}

/// A process is wanted: by a turn that is told, or for the next.
struct Wanted {
    pool: Arc<Pool>,
    tell: Option<SyncSender<io::Result<Process>>>,
}

impl Processes {
    /// None is started yet.
    pub fn new(settings: Settings) -> Self {
        let (turns, most) = (Turns::new(settings.most), settings.most);
        let (starter, wanted) = channel();
        // A process ends with the thread that started it, so that must be one that stays.
        let started = thread::Builder::new()
            .name("templates".into())
            .spawn(move || start_all(&settings, &wanted));
        if let Err(error) = &started {
            error!(%error, "chat templates cannot be rendered: the thread that starts processes does not start");
        }
        let starter = started.is_ok().then_some(starter);
        let (idle, deaths) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Pool { turns, idle, most, deaths, starter }))
    }

    /// Sees to it that there is a process, before anybody waits for it.
    pub(crate) fn warm(&self) {
        let pool = &self.0;
        if locked(&pool.idle).is_empty()
            && let Some(starter) = &pool.starter
        {
            // Nobody waits for it.
            let _ = starter.send(Wanted { pool: Arc::clone(pool), tell: None });
        }
    }
}

impl Renderer for Processes {
    fn turn(&self, model: &ModelId, tenant: Option<TenantName>) -> BoxFuture<'static, Render> {
        let (pool, model) = (Arc::clone(&self.0), model.clone());
        Box::pin(async move {
            let turn = pool.turns.wait(tenant.clone()).await;
            let render: Render = Box::new(move |rendering| {
                let _until_done = turn;
                pool.render(&model, tenant, rendering)
            });
            render
        })
    }
}

impl Pool {
    fn render(
        self: &Arc<Self>,
        model: &ModelId,
        who: Option<TenantName>,
        rendering: Rendering<'_>,
    ) -> Result<String, Error> {
        let Rendering { sources, name, context } = rendering;
        let key = (who, *sources.digest());
        if let Some((times, wait)) = locked(&self.deaths).pause(&key, Instant::now()) {
            return Err(Error::TemplatePaused { times, wait });
        }
        let told = frame::render(&key.1, name, &context);
        // Values take many times what the frame does.
        drop(context);
        let counts = told.len() <= deaths::SMALL;
        let mut is_new_try = false;
        loop {
            let mut process = self.process().map_err(Error::NoRenderer)?;
            let began = Instant::now();
            let ended = match process.render(sources, &told) {
                Ok(outcome) => {
                    match began.elapsed() > deaths::LONG {
                        true if counts => locked(&self.deaths).died(key, Instant::now()),
                        true => {}
                        false => locked(&self.deaths).survived(&key),
                    }
                    self.keep(process);
                    return outcome;
                }
                Err(ended) => ended,
            };
            counter!(ENDED, "reason" => ended.why.name()).increment(1);
            // Somebody's `kill` is no fault of the template's; a rendering has no effects.
            if ended.why == Why::Killed && !is_new_try {
                is_new_try = true;
                continue;
            }
            let tenant = key.0.as_ref().map(TenantName::as_str);
            warn!(%model, tenant, how = ended.how, "a chat template has ended its process");
            if counts {
                locked(&self.deaths).died(key, Instant::now());
            }
            return Err(Error::TemplateEnded { how: ended.how });
        }
    }

    /// Leaves a process to the next, unless it has done enough.
    fn keep(&self, process: Process) {
        if process.orders() >= ORDERS {
            return;
        }
        let mut idle = locked(&self.idle);
        if idle.len() < self.most {
            idle.push(process);
        }
    }

    /// One that is idle.
    fn idle(&self) -> Option<Process> {
        loop {
            let mut process = locked(&self.idle).pop()?;
            // Another died in its sleep.
            if process.is_there() {
                return Some(process);
            }
        }
    }

    /// One that is idle, or a new one.
    fn process(self: &Arc<Self>) -> io::Result<Process> {
        if let Some(process) = self.idle() {
            return Ok(process);
        }
        let gone = || io::Error::other("the thread that starts processes is gone");
        let (tell, started) = sync_channel(1);
        let wanted = Wanted { pool: Arc::clone(self), tell: Some(tell) };
        self.starter.as_ref().ok_or_else(gone)?.send(wanted).map_err(|_| gone())?;
        // Another's may be started before.
        let within = START_WITHIN * 2;
        match started.recv_timeout(within) {
            Ok(started) => started,
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
            Err(RecvTimeoutError::Timeout) => {
                let message = format!("none has started within {} s", within.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, message))
            }
        }
    }
}

/// Starts processes until nobody can want any more.
fn start_all(settings: &Settings, all: &Receiver<Wanted>) {
    while let Ok(Wanted { pool, tell }) = all.recv() {
        // Whoever has a turn brings one back, or has it started.
        if tell.is_none() && !pool.turns.are_all_free() {
            continue;
        }
        // One that was started for the next may be there by now.
        let start = || match pool.idle() {
            Some(process) => Ok(process),
            None => Process::start(&settings.exe, settings.memory),
        };
        match (tell, start()) {
            // A process that nobody waits for any more ends.
            (Some(tell), started) => drop(tell.send(started)),
            (None, Ok(process)) => pool.keep(process),
            (None, Err(error)) => {
                let exe = settings.exe.display();
                error!(%error, %exe, "no process can be started to render chat templates in");
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
