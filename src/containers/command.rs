//! A container that we start: its command, its process, and when it is ready.

mod keeper;
mod listener;
mod logs;
mod ports;
mod supervised;

use std::path::PathBuf;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use tokio::process::{Child, ChildStdin};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::backend::{Backend, BackendConfig, BaseUrl, HealthConfig};
use crate::{Error, metrics, processes};

use listener::Holder;
use logs::LastWords;
use ports::Port;

pub use keeper::{SUBCOMMAND, keep};
pub use supervised::{Standing, Supervised};

/// The variable that tells a container its port, as SageMaker's contract has it.
const PORT_VARIABLE: &str = "SAGEMAKER_BIND_TO_PORT";
/// What stands for the port in arguments and in the environment's values.
const PORT_PLACEHOLDER: &str = "{port}";
/// Between two questions whether a process that starts is well: first and longest.
const ASK_FIRST: Duration = Duration::from_millis(20);
const ASK_LONGEST: Duration = Duration::from_millis(500);
/// What a keeper has beyond the grace time, for processes that hang in the kernel.
const KEEPER_PATIENCE: Duration = Duration::from_secs(12);

/// How long what a process printed last is waited for.
const WORDS_PATIENCE: Duration = Duration::from_secs(1);

/// A command that serves on a port of this machine.
#[derive(Debug, Clone)]
pub struct Command {
    /// Our own executable, whose `main` calls [`keep`] for the argument [`SUBCOMMAND`].
    pub exe: PathBuf,
    /// The program: a path, or a name that is looked up in `PATH` of `env`.
    pub program: PathBuf,
    /// Its arguments, without its name; `{port}` in them is the port.
    pub args: Vec<String>,
    /// Its whole environment, beside `SAGEMAKER_BIND_TO_PORT`; `{port}` in values is the port.
    pub env: Vec<(String, String)>,
    /// Its working directory; absent is ours.
    pub dir: Option<PathBuf>,
    /// Its port; absent is one that is free at each start. Another of our processes that has it is
    /// waited for.
    pub port: Option<u16>,
    /// How long it may take until it is healthy. SageMaker gives 4 minutes.
    pub start_timeout: Duration,
    /// How long its processes have between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Whether what listens at its port must be one of its own processes. Not where somebody else starts
    /// them, as a container runtime does.
    pub own_processes: bool,
    /// How it is asked. The address is replaced by the process's own; `health` says how its readiness
    /// is asked for, and absent it is by `GET /ping`.
    pub backend: BackendConfig,
}

impl Command {
    /// Starts the process and returns when it is healthy. If dropped before, its processes are ended.
    ///
    /// # Errors
    /// `Spawn`, `DiedAtStart`, `NeverHealthy` and `Stranger`; nothing is left then but the grace time of
    /// its processes.
    pub async fn start(&self) -> Result<Running, Error> {
        self.start_unless(std::future::pending()).await
    }

    /// Starts the process, as [`Command::start`] does, unless it is told to stop before it is healthy:
    /// then it fails with `Starting` when its processes are gone.
    async fn start_unless(&self, stop: impl Future<Output = ()>) -> Result<Running, Error> {
        let mut stop = pin!(stop);
        let name = &self.backend.name;
        let spawn = |source| Error::Spawn { container: Arc::clone(name), source: Arc::new(source) };
        let told_to_stop = || Error::Starting { container: Arc::clone(name) };
        let port = tokio::select! {
            biased;
            () = &mut stop => return Err(told_to_stop()),
            port = self.own_port() => port.map_err(spawn)?,
        };
        let began = Instant::now();
        let mut process = self.spawn(port).map_err(spawn)?;
        let port = process.port.number();
        metrics::started(name);
        let readiness = self.backend.health.clone().unwrap_or_default();
        // Its own checks begin when it is ready.
        let asked =
            BackendConfig { url: BaseUrl::local(port), health: None, ..self.backend.clone() };
        let asked = Backend::new(asked);
        let ready = tokio::select! {
            () = &mut stop => Err(told_to_stop()),
            how = process.ended() => {
                Err(Error::DiedAtStart { container: Arc::clone(name), how, said: String::new() })
            }
            ready = timeout(self.start_timeout, until_well(&asked, &readiness)) => {
                let limit = self.start_timeout;
                let (container, said) = (Arc::clone(name), String::new());
                ready.map_err(|_| Error::NeverHealthy { container, limit, said })
            }
        };
        let ready = match ready {
            Ok(()) => process.look_at_listener(self.own_processes).await,
            Err(error) => Err(error),
        };
        if let Err(mut error) = ready {
            let is_stopped = matches!(error, Error::Starting { .. });
            metrics::ended(name, if is_stopped { "stopped" } else { "failed_start" });
            process.stop(self.grace).await;
            if let Error::DiedAtStart { said, .. }
            | Error::NeverHealthy { said, .. }
            | Error::Stranger { said, .. } = &mut error
            {
                *said = process.last_words().await;
                // Not for its clients, who are told the error.
                warn!(container = %name, said, "what a container printed last that did not start");
            }
            return Err(error);
        }
        let took = began.elapsed();
        metrics::ready(name, took);
        info!(container = %name, port, ?took, "container started");
        let backend = BackendConfig { url: BaseUrl::local(port), ..self.backend.clone() };
        Ok(Running { process, grace: self.grace, backend: Backend::new(backend) })
    }

    async fn own_port(&self) -> io::Result<Port> {
        let Some(number) = self.port else { return Port::free() };
        let fixed = timeout(self.start_timeout, Port::fixed(number)).await;
        fixed.unwrap_or_else(|_| Err(io::ErrorKind::AddrInUse.into()))
    }

    fn spawn(&self, port: Port) -> io::Result<Process> {
        let number = port.number().to_string();
        let with_port = |text: &String| text.replace(PORT_PLACEHOLDER, &number);
        let mut command = keeper::command(&self.exe, self.grace, &self.program);
        command
            .args(self.args.iter().map(with_port))
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, with_port(value))))
            .env(PORT_VARIABLE, &number)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let mut child = tokio::process::Command::from(command).spawn()?;
        let name = &self.backend.name;
        let (words, mut pumps) = (LastWords::default(), Vec::new());
        if let Some(stdout) = child.stdout.take() {
            pumps.push(tokio::spawn(logs::pump(stdout, Arc::clone(name), words.clone())));
        }
        if let Some(stderr) = child.stderr.take() {
            pumps.push(tokio::spawn(logs::pump(stderr, Arc::clone(name), words.clone())));
        }
        let hold = child.stdin.take();
        let name = Arc::clone(name);
        Ok(Process { keeper: child, first: None, hold, name, words, pumps, port })
    }
}

async fn until_well(backend: &Backend, health: &HealthConfig) {
    let mut pause = ASK_FIRST;
    while backend.check(health).await.is_err() {
        sleep(pause).await;
        pause = (pause * 2).min(ASK_LONGEST);
    }
}

/// A container's process that was healthy. Dropped, its processes are ended, with their grace time.
#[derive(Debug)]
pub struct Running {
    process: Process,
    grace: Duration,
    backend: Backend,
}

impl Running {
    /// The way to it.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.process.port.number()
    }

    /// Its first process.
    pub fn process_id(&self) -> Option<u32> {
        self.process.first
    }

    /// The process that keeps its processes.
    pub fn keeper_id(&self) -> Option<u32> {
        self.process.keeper.id()
    }

    /// Waits until its process has ended by itself, and says how, as the rest of a sentence. May be
    /// dropped and called again.
    pub async fn ended(&mut self) -> String {
        let how = self.process.ended().await;
        metrics::ended(&self.process.name, "died");
        how
    }

    /// Ends it: SIGTERM to all its processes, SIGKILL after the grace time. Returns when they are gone.
    pub async fn stop(mut self) {
        metrics::ended(&self.process.name, "stopped");
        self.process.stop(self.grace).await;
    }
}

/// The keeper of a container's processes.
struct Process {
    keeper: Child,
    /// The container's own; known when it is healthy.
    first: Option<u32>,
    /// While it is open the keeper lets its processes live.
    hold: Option<ChildStdin>,
    name: Arc<str>,
    words: LastWords,
    /// They end when the last process that could write is gone.
    pumps: Vec<JoinHandle<()>>,
    port: Port,
}

impl Process {
    async fn ended(&mut self) -> String {
        match self.keeper.wait().await {
            Ok(status) => described(status),
            Err(error) => format!("was lost ({error})"),
        }
    }

    /// Finds out its first process, and whether what listens at its port is one of them.
    async fn look_at_listener(&mut self, must_be_own: bool) -> Result<(), Error> {
        let Some(keeper) = self.keeper.id() else { return Ok(()) };
        let port = self.port.number();
        let look = move || {
            let holder = match must_be_own {
                true => listener::holder(port, &processes::below(keeper)),
                false => Holder::Own,
            };
            (processes::children_of(keeper).into_iter().min(), holder)
        };
        let (first, holder) =
            tokio::task::spawn_blocking(look).await.unwrap_or((None, Holder::Unseen));
        self.first = first;
        let who = match holder {
            Holder::Own => return Ok(()),
            Holder::Unseen => {
                let container = &self.name;
                warn!(%container, port, "nothing tells who listens at the port of a container");
                return Ok(());
            }
            Holder::Stranger(who) => who,
            Holder::Nobody => "nobody who can be seen".to_owned(),
        };
        Err(Error::Stranger { container: Arc::clone(&self.name), port, who, said: String::new() })
    }

    /// The last lines that its processes printed, once they are gone.
    async fn last_words(&mut self) -> String {
        for pump in std::mem::take(&mut self.pumps) {
            // One that is held by somebody else is not waited for.
            let _ = timeout(WORDS_PATIENCE, pump).await;
        }
        self.words.text()
    }

    async fn stop(&mut self, grace: Duration) {
        self.hold = None;
        if timeout(grace + KEEPER_PATIENCE, self.keeper.wait()).await.is_err() {
            warn!(container = %self.name, "the processes of a container do not go away");
            // Its death ends the first of them, which may be all that can be done.
            let _ = self.keeper.kill().await;
        }
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("keeper", &self.keeper.id()).finish_non_exhaustive()
    }
}

/// How a process ended, as the rest of a sentence; its keeper ends as shells do.
fn described(status: ExitStatus) -> String {
    match status.code() {
        Some(code @ 129..=159) => format!("was ended by signal {}", code - 128),
        Some(code) => format!("ended with exit status {code}"),
        None => "was lost with its keeper".into(),
    }
}
