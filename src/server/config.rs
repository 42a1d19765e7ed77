//! What the server was told to do: settings as they are meant, from a file, the
//! environment and flags.
//!
//! Reading order: `keys` (every key there is), `raw` (the settings as written, from all
//! sources), `resolve` (as written to as meant), `fixed` (what needs a restart), `endpoints` (names, mounts, stores), `tenants`,
//! `policy` (what they may use, aliases), `quotas` (limits of tenants, usage), `auth` (who may call),
//! `devices`, `units` (durations,
//! addresses), `levels` (of the log), `defaults` (each with its reason).
//!
//! A flag beats the environment, which beats the file, which beats the default. Everything
//! is checked here, once, and all faults are reported together; nothing is re-checked later,
//! and the environment is read nowhere else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roundhouse_gateway::SessionLimits;
use roundhouse_models::{Asked, DtypeSetting, KvDtype, Quantize};
use roundhouse_residency::{Policy, Replicas};
use roundhouse_store::StoreUri;
use roundhouse_tenancy::{Aliases, AuthConfig, LedgerConfig};
use roundhouse_types::{Bytes, EndpointName};
use roundhouse_workers::{Isolation, Packages, Warming};

mod asynchronous;
mod auth;
mod behind;
mod capture;
mod cloudwatch;
mod container;
mod defaults;
mod devices;
mod endpoints;
mod engines;
mod fault;
mod fixed;
mod handlers;
mod issuers;
mod keys;
mod levels;
mod naming;
mod policy;
mod quotas;
mod raw;
mod resolve;
mod rules;
mod sessions;
mod tenants;
mod traces;
mod units;

#[cfg(test)]
mod tests;

pub use asynchronous::Asynchronous;
pub use auth::{ClientName, Tls, TlsFiles};
pub use behind::{Behind, CommandBehind, ContainerBehind, ContainerOrigin};
pub use capture::CaptureConfig;
pub use cloudwatch::{CloudWatch, EmbeddedTo};
pub use devices::Device;
pub use endpoints::{Endpoint, Mount, Secret};
pub(crate) use engines::engine_of;
pub use engines::{ContainerRule, EngineKind, EngineRule, ModelMemory};
pub use fault::Fault;
pub use quotas::WrittenLimits;
pub(crate) use roundhouse_types::{parse_duration, show_duration};
pub use rules::{OnDelete, Update, VersionRule};
pub use tenants::Tenant;
pub use traces::Traces;

use crate::cli::ServeFlags;

/// Every setting, resolved and checked. Prints without secrets.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where we listen.
    pub listen: Listen,
    /// Who may call.
    pub auth: AuthConfig,
    /// How connections are encrypted.
    pub tls: Tls,
    /// The fronts and their stores; none only under the container contract.
    pub endpoints: Vec<Endpoint>,
    /// What is promised to tenants and asked of them.
    pub tenants: Vec<Tenant>,
    /// Names that stand for targets.
    pub aliases: Aliases,
    /// `[tenant_defaults]`: what tenants may ask for that do not say otherwise, or are not named.
    pub tenant_defaults: WrittenLimits,
    /// `[async]`: the folder of requests whose callers do not wait; absent is one in the disk
    /// cache's.
    pub async_dir: Option<PathBuf>,
    /// `[usage]`: where what tenants used is written down; absent is nowhere.
    pub usage: Option<LedgerConfig>,
    /// Where models run; one at least, each once.
    pub devices: Vec<Device>,
    /// What is held in memory beside and how it is watched.
    pub memory: Memory,
    /// The disk cache.
    pub cache: Cache,
    /// How stores are listed and read.
    pub store: Store,
    /// When models are loaded, refreshed and unloaded.
    pub residency: Residency,
    /// `[replicas]`: when a model is served from one more device.
    pub replicas: Replicas,
    /// Limits of a request.
    pub serving: Serving,
    /// `[sessions]`: stateful sessions; absent is off.
    pub sessions: Option<SessionLimits>,
    /// Python handlers.
    pub handlers: Handlers,
    /// The threads that run steps.
    pub lane: Lane,
    /// How the process ends.
    pub shutdown: Shutdown,
    /// Logs and the access log.
    pub log: Log,
    /// `[tracing]`: where traces are sent; absent is nowhere.
    pub traces: Option<Traces>,
    /// `[cloudwatch]`: what is told as embedded metrics; absent is nothing.
    pub cloudwatch: Option<CloudWatch>,
    /// The container contract of SageMaker's multi-model endpoints.
    pub container: Container,
}

/// `[listen]`: where we listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The data port. Port 0 takes a free one.
    pub data: SocketAddr,
    /// The admin port. Port 0 takes a free one.
    pub admin: SocketAddr,
    /// `/livez`, `/readyz` and `/metrics` only; absent is off.
    pub health: Option<SocketAddr>,
    /// Names, beside `localhost` and addresses, by which the admin port may be reached.
    pub admin_hosts: Vec<String>,
    /// Whether addresses beyond loopback are allowed though nobody is asked who they are.
    pub insecure_no_auth: bool,
    /// Connections of one port at a time.
    pub max_connections: usize,
}

/// `[memory]`: what is held in memory beside the devices' own, and how it is watched. Its
/// `device` and `budget` are the one [`Device`] where the file lists none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// What copies of models that left other devices may take in the host's memory; absent
    /// means half of what the machine has beside the budgets that are written, and nothing
    /// where no device has a memory of its own.
    pub host: Option<Bytes>,
    /// How often the ledger is held against the memory that is really used; zero is never.
    pub witness_every: Duration,
    /// By how many percent of what the ledger expects they may differ before it is told.
    pub witness_tolerance: u64,
    /// Whether the budget is lowered while others use the memory that it counts on.
    pub yield_to_others: bool,
    /// Which models hold equal parameters together.
    pub share_tensors: ShareTensors,
}

/// Which models hold parameters of equal content once in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShareTensors {
    /// All of them.
    #[default]
    All,
    /// Those of one endpoint whose targets begin with the same segment.
    Tenant,
    /// None.
    Off,
}

/// `[cache]`: the disk cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Its folder; one process at a time, held by a lock.
    pub dir: PathBuf,
    /// The most it may hold; absent means the smaller of 50 GiB and 70 % of what is free
    /// (see [`crate::limits`]).
    pub size: Option<Bytes>,
    /// The most one archive may hold when unpacked; absent means 20 times its size, 1 GiB at
    /// least. The cache's size bounds it too.
    pub max_unpacked: Option<Bytes>,
}

/// `[store]`: how stores are listed and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store {
    /// Bytes of one ranged read.
    pub part_size: Bytes,
    /// Ranged reads of one model at a time.
    pub parts_in_flight: usize,
    /// Bytes in memory on their way to disk, of all fetches together.
    pub bytes_in_flight: Bytes,
    /// How long a listing is believed.
    pub catalogue_ttl: Duration,
    /// How long a missing target is believed to be missing.
    pub negative_ttl: Duration,
    /// How long a folder seen for the first time must have been left alone.
    pub settle: Duration,
    /// How long a changed folder must have been left alone before it is a new version.
    pub update_settle: Duration,
    /// A read that yields nothing for this long is tried again.
    pub stall_timeout: Duration,
    /// Further tries after the first that failed.
    pub max_retries: u32,
}

/// `[residency]`: when models are loaded, refreshed and unloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residency {
    /// The longest a fetch and load may take together.
    pub load_timeout: Duration,
    /// How often residents' versions are looked up.
    pub refresh_every: Duration,
    /// A resident unused for this long leaves; absent is never.
    pub idle_ttl: Option<Duration>,
    /// A resident is not evicted sooner than this after its load.
    pub minimum_residence: Duration,
    /// Requests that may wait for models to load, in all.
    pub max_waiters: usize,
    /// Models that may be fetched at a time.
    pub concurrent_fetches: usize,
    /// Models that may be loaded from disk at a time.
    pub concurrent_loads: usize,
    /// What is added to the nice value of the threads that load.
    pub load_niceness: usize,
    /// Who leaves first.
    pub policy: Policy,
    /// Whether the load that most requests wait for goes first.
    pub collation: bool,
    /// Later requests that may be given a load before an earlier one is.
    pub overtaken_at_most: usize,
    /// How long a request may be overtaken.
    pub overtaken_within: Duration,
}

/// `[serving]`: limits of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving {
    /// The longest a request without a stream may take.
    pub request_timeout: Duration,
    /// The longest a streamed answer may take.
    pub stream_timeout: Duration,
    /// How long a request waits for a model to load before it is told to come back.
    pub hold: Duration,
    /// The largest body.
    pub max_body: Bytes,
    /// Requests that may be under way per model.
    pub max_queue: usize,
    /// Whether answers carry our `x-roundhouse-…` headers.
    pub response_headers: bool,
    /// Who is told where a model was found and what it waited for.
    pub share_headers: Sharing,
    /// Who uses what was computed of a prompt's beginning.
    pub share_prefixes: Sharing,
    /// Whether chat templates are rendered in processes of their own.
    pub template_process: bool,
    /// What each of those may take.
    pub template_memory: Bytes,
    /// The longest sequence served, in tokens; a model's own maximum may be less.
    pub context: usize,
    /// How far a model's KV pool may grow, in sequences of the full context.
    pub kv_sequences: usize,
    /// The most tokens one step computes.
    pub step_tokens: usize,
    /// How long a step should take while others wait for its end; zero: as long as it takes.
    pub step_time: Duration,
    /// Sequences of one model that run at a time.
    pub max_running: usize,
    /// How weights lie in memory; a model's own settings go before it.
    pub dtype: DtypeSetting,
    /// What weights are quantised to as they are read; a model's own settings go before it.
    pub quantize: Option<Quantize>,
    /// In which type keys and values are kept; `None`: what each model's weights suggest.
    pub kv_dtype: Option<KvDtype>,
}

/// Who shares what tells by its timing that others use a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// Each tenant has its own.
    #[default]
    Tenant,
    /// All callers of an endpoint.
    Endpoint,
}

/// `[lane]`: the threads that run steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// A step that takes longer than this makes `/ping` fail.
    pub wedged_after: Duration,
}

/// `[shutdown]`: how the process ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// How long requests under way may take to finish.
    pub drain_timeout: Duration,
}

/// `[log]`: logs and the access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// How a line of the log looks.
    pub format: LogFormat,
    /// What is logged: a filter as in `info,roundhouse_store=debug`.
    pub level: String,
    /// Where the access log goes.
    pub access: AccessLog,
    /// Where the audit log of the admin port goes.
    pub audit: AccessLog,
}

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Human,
    /// One JSON object per line.
    Json,
}

/// Where the access log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// To standard error, between the log's lines.
    Stderr,
    /// Appended to a file.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// `[handlers]`: Python handlers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handlers {
    /// Whether endpoints that do not say otherwise serve handlers, and the container contract.
    pub enabled: bool,
    /// How strictly their processes are confined.
    pub isolation: Isolation,
    /// The interpreter.
    pub python: PathBuf,
    /// What a handler is taken to need that declares nothing and was never loaded.
    pub memory: Bytes,
    /// The most any handler may use; absent means the device's budget.
    pub max_memory: Option<Bytes>,
    /// Worker processes of a handler that does not say how many.
    pub workers: usize,
    /// The most any handler gets.
    pub max_workers: usize,
    /// How long a call may run.
    pub time_limit: Duration,
    /// How long a handler may take to import and load.
    pub start_limit: Duration,
    /// Handlers that start at a time.
    pub concurrent_starts: usize,
    /// The largest answer.
    pub max_response: Bytes,
    /// What a handler may keep in its temporary folder.
    pub max_temp: Bytes,
    /// Processes and threads of a handler.
    pub processes: u32,
    /// How requirements are installed.
    pub packages: Packages,
    /// Interpreters that are kept to be forked; absent: none.
    pub warm: Option<Warming>,
}

/// `[container]`: how a platform runs this server as its container: the contract of SageMaker's
/// multi-model endpoints, or one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Whether `/models…` is served; then no endpoint is needed.
    pub contract: bool,
    /// What a model's `url` must lie under, links followed.
    pub models_root: PathBuf,
    /// Where the bases of adapters are, by the names that the adapters have for them.
    pub base_store: Option<StoreUri>,
    /// The folder of the only model, where the server has but one.
    pub model_dir: Option<PathBuf>,
    /// Whether SageMaker, or who stands in for it, is the door of the data port.
    pub platform: bool,
    /// The script that artefacts' code is entered by, where they have it.
    pub program: Option<String>,
    /// What is taken for the `Accept` of requests that leave it open.
    pub default_accept: Option<String>,
    /// What the environment asks of models where they ask for nothing themselves.
    pub preset: Asked,
    /// Variables of the platform's environment that are set and that nothing here honours.
    pub unheeded: Vec<String>,
}

impl Config {
    /// Reads the settings from a file (if one is named), the environment and flags.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the keys.
    pub fn load(
        file: Option<&Path>,
        env: &dyn Fn(&str) -> Option<String>,
        flags: &ServeFlags,
    ) -> Result<Self, Vec<Fault>> {
        let text = match file {
            Some(path) => Some(std::fs::read_to_string(path).map_err(|error| {
                vec![Fault::new("config", format!("cannot read {}: {error}", path.display()))]
            })?),
            None => None,
        };
        let sources = raw::Sources::new(text.as_deref(), env, flags).on(Path::exists);
        let (config, faults) = Self::read_from(sources);
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    /// As [`Config::load`], with what could be understood beside the faults.
    pub(crate) fn look(
        file: &Path,
        env: &dyn Fn(&str) -> Option<String>,
        flags: &ServeFlags,
    ) -> (Self, Vec<Fault>) {
        match std::fs::read_to_string(file) {
            Ok(text) => {
                Self::read_from(raw::Sources::new(Some(&text), env, flags).on(Path::exists))
            }
            Err(error) => {
                let told = format!("cannot read {}: {error}", file.display());
                (Self::default(), vec![Fault::new("config", told)])
            }
        }
    }

    /// As [`Config::load`], with the file's text in hand.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the keys.
    pub fn parse(
        text: Option<&str>,
        env: &dyn Fn(&str) -> Option<String>,
        flags: &ServeFlags,
    ) -> Result<Self, Vec<Fault>> {
        let (config, faults) = Self::read(text, env, flags);
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    /// As [`Config::parse`], with what could be understood beside the faults.
    pub(crate) fn read(
        text: Option<&str>,
        env: &dyn Fn(&str) -> Option<String>,
        flags: &ServeFlags,
    ) -> (Self, Vec<Fault>) {
        Self::read_from(raw::Sources::new(text, env, flags))
    }

    fn read_from(sources: raw::Sources<'_>) -> (Self, Vec<Fault>) {
        let (config, mut faults) = resolve::resolve(sources);
        let is_told = |fault: &Fault| {
            // Whoever writes stores wrongly, or nothing that can be read, knows of them.
            ["config", "endpoint", "store", "--store", "ROUNDHOUSE_STORE"]
                .iter()
                .any(|key| fault.key.starts_with(key))
        };
        let alone = config.container.contract || config.container.model_dir.is_some();
        let has_none = config.endpoints.is_empty() && !alone;
        if has_none && !faults.iter().any(is_told) {
            faults.push(Fault::new(
                "endpoint",
                "no store: give --store URI, set ROUNDHOUSE_STORE, or write an [[endpoint]] with \
                 an [[endpoint.mount]]; or one model: --model-dir DIR",
            ));
        }
        (config, faults)
    }

    /// The endpoint of this name.
    pub fn endpoint(&self, name: &EndpointName) -> Option<&Endpoint> {
        self.endpoints.iter().find(|endpoint| endpoint.name == *name)
    }
}

impl Default for Config {
    /// What holds where nothing is said: no endpoint, and the cache in `/var/cache/roundhouse`
    /// because no environment is looked at.
    fn default() -> Self {
        let (config, faults) =
            resolve::resolve(raw::Sources::new(None, &|_| None, &ServeFlags::default()));
        debug_assert!(faults.is_empty(), "the defaults are free of faults: {faults:?}");
        config
    }
}
