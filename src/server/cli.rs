//! The command line.
//!
//! Reading order: this file (the interface), `target` (which model is meant), `client`
//! (talking to a running server), `operate` (models, load, unload, keep, release, refresh,
//! explain), `versions` (versions, use), `top` (the live page for terminals), `reload`, `progress` (a bar where a person waits), `invoke`, `keys`, `check`, `survey`,
//! `plan`, `usage` (what tenants have used), `simulate` (traces under other budgets), `output` (tables and JSON), `told` (errors),
//! `completions`.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use roundhouse_types::ErrorKind;

mod adapts;
mod check;
mod client;
mod completions;
mod containers;
mod explain;
mod invoke;
mod keys;
mod operate;
pub mod others;
pub(crate) mod output;
mod plan;
mod progress;
mod reload;
mod simulate;
mod survey;
mod target;
mod told;
mod top;
mod usage;
mod versions;

pub use check::CheckArgs;
pub use completions::CompletionsArgs;
pub use invoke::InvokeArgs;
pub use keys::KeysArgs;
pub use operate::{ExplainArgs, LoadArgs, ModelArgs, ModelsArgs, UnloadArgs};
pub use plan::PlanArgs;
pub use reload::ReloadArgs;
pub use simulate::{PolicyName, SimulateArgs, Switch};
pub use survey::SurveyArgs;
pub use target::TargetArgs;
pub use told::{told, told_as_json};
pub use top::TopArgs;
pub use usage::UsageArgs;
pub use versions::UseArgs;

use crate::app::Origin;
use crate::config::Config;
#[cfg(feature = "demo")]
use crate::demo;
use crate::error::Error;
use crate::{app, doctor, logging};

/// A model server for more models than fit a device.
#[derive(Debug, Parser)]
#[command(name = "roundhouse", version, about, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole thing with nothing set up: an embedded S3 server with demo models.
    #[cfg(feature = "demo")]
    Demo(DemoFlags),
    /// Run a server.
    Serve(Box<ServeFlags>),
    /// Check a settings file: every fault at once, each with its key.
    CheckConfig(CheckArgs),
    /// Say what models will take in memory, part by part, before anything is fetched or loaded.
    Plan(Box<PlanArgs>),
    /// List every target under a store's prefix: what it is, what it needs, or why it will
    /// not run. Reads headers, not weights.
    Survey(SurveyArgs),
    /// List what the stores of all endpoints hold, loaded or not, and their containers.
    Models(ModelsArgs),
    /// Fetch and load a model, and wait until it is ready.
    Load(LoadArgs),
    /// Unload a model once its requests have ended, and the adapters on it with it.
    Unload(UnloadArgs),
    /// Keep a model loaded: it is not evicted for others, until it is released or the server ends. To
    /// keep it for good, name it under `keep` (and `preload`) of its endpoint in the settings.
    Keep(ModelArgs),
    /// Take a keep back.
    Release(ModelArgs),
    /// Look up a model's newest version now, and serve it unless another one was chosen.
    Refresh(ModelArgs),
    /// List a model's versions: in the store, on disk, loaded, chosen.
    Versions(ModelArgs),
    /// Serve a version of a model from now on, an older one included; or `latest` again.
    Use(UseArgs),
    /// Have a server read its settings' file again: it does so by itself within seconds of a change.
    Reload(ReloadArgs),
    /// Say why a model was loaded, evicted, refused or made to wait.
    Explain(ExplainArgs),
    /// Watch a server: devices, models, loads and decisions as they are.
    Top(TopArgs),
    /// Ask a model, through the data port. Without --prompt, --body and --file the body is read from
    /// standard input.
    Invoke(InvokeArgs),
    /// Mint, list and revoke keys.
    Keys(KeysArgs),
    /// Say what tenants have used, by the ledger that the server keeps (usage.file of the settings).
    Usage(UsageArgs),
    /// Replay an access log or a CSV trace under other budgets and policies.
    Simulate(Box<SimulateArgs>),
    /// Find out what is wrong here: settings, memory, disk, ports, stores.
    Doctor(Box<doctor::DoctorArgs>),
    /// Print the completions of these commands for a shell.
    Completions(CompletionsArgs),
}

impl Command {
    /// Which failures are told on standard output too, as an object: those of commands that were asked
    /// for JSON and would print none of it. `check-config` and `doctor` print what they found, as `explain`
    /// does of a name that nobody has.
    pub fn fails_in_json(&self) -> fn(&Error) -> bool {
        let is_asked = match self {
            Self::Models(args) => args.admin.json,
            Self::Load(args) => args.model.admin.json,
            Self::Unload(args) => args.model.admin.json,
            Self::Keep(args) | Self::Release(args) | Self::Refresh(args) | Self::Versions(args) => {
                args.admin.json
            }
            Self::Use(args) => args.admin.json,
            Self::Reload(args) => args.admin.json,
            Self::Plan(args) => args.json,
            Self::Survey(args) => args.json,
            Self::Usage(args) => args.json,
            Self::Simulate(args) => args.json,
            Self::Keys(args) => args.json(),
            Self::Explain(args) => args.admin.json,
            // What comes page after page, or piece by piece, is no single object.
            Self::Top(args) => args.admin.json && args.once,
            Self::Invoke(args) => args.json && !args.stream,
            _ => false,
        };
        match self {
            // Faults of the settings stand in the server's own answer.
            Self::Reload(_) if is_asked => |error| !matches!(error, Error::Settings(_)),
            Self::Plan(_) | Self::Models(_) if is_asked => |error| !matches!(error, Error::Rest(_)),
            Self::Explain(_) if is_asked => |error| error.kind() != ErrorKind::ModelNotFound,
            _ if is_asked => |_| true,
            _ => |_| false,
        }
    }

    /// Carries the command out. Dropping the future ends it; what a running server was asked
    /// to do goes on there. `last` is given what is to go when the runtime has ended.
    ///
    /// # Errors
    /// What went wrong, with a hint where one is known.
    #[cfg_attr(not(feature = "demo"), expect(unused_variables, reason = "the demo's folder"))]
    pub async fn run(self, last: &mut Last) -> Result<(), Error> {
        match self {
            #[cfg(feature = "demo")]
            Self::Demo(flags) => {
                logging::start(&demo::log(&flags, &environment)?)?;
                demo::run(flags, last).await
            }
            Self::Serve(flags) => {
                let config = Config::load(flags.config.as_deref(), &environment, &flags)
                    .map_err(Error::Settings)?;
                logging::start(&config.log)?;
                let origin = flags.config.clone().map(|file| Origin { file, flags: *flags });
                app::serve(config, origin).await
            }
            Self::CheckConfig(args) => check::run(&args),
            Self::Plan(args) => plan::run(&args).await,
            Self::Survey(args) => survey::run(&args).await,
            Self::Models(args) => operate::models(&args).await,
            Self::Load(args) => operate::load(&args).await,
            Self::Unload(args) => operate::unload(&args).await,
            Self::Keep(args) => operate::change("keep", &args).await,
            Self::Release(args) => operate::change("release", &args).await,
            Self::Refresh(args) => operate::change("refresh", &args).await,
            Self::Versions(args) => versions::list(&args).await,
            Self::Use(args) => versions::choose(&args).await,
            Self::Reload(args) => reload::run(&args).await,
            Self::Explain(args) => explain::explain(&args).await,
            Self::Top(args) => top::run(&args).await,
            Self::Invoke(args) => invoke::run(args).await,
            Self::Keys(args) => keys::run(&args),
            Self::Usage(args) => usage::run(&args),
            Self::Simulate(args) => simulate::simulate(&args),
            Self::Doctor(args) => doctor::run(&args).await,
            Self::Completions(args) => completions::run(&args),
        }
    }
}

/// What goes when nothing runs any more: a folder that something may write to until then.
pub type Last = Option<Box<dyn Any>>;

/// How to reach a running server's admin port, and how to print its answers.
#[derive(Debug, Clone, Args)]
pub struct AdminArgs {
    /// The server's admin address.
    #[arg(
        long,
        env = "ROUNDHOUSE_URL",
        default_value = "http://127.0.0.1:8081",
        hide_env_values = true
    )]
    pub url: String,
    /// An operator's key, where the server asks for one.
    #[arg(long, value_name = "KEY", env = "ROUNDHOUSE_ADMIN_KEY", hide_env_values = true)]
    pub admin_key: Option<String>,
    /// Authorities that vouch for an https address, beside this machine's, in PEM.
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_CA", hide_env_values = true)]
    pub ca: Option<PathBuf>,
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// The environment, as the settings read it.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Flags of `roundhouse demo`.
#[cfg(feature = "demo")]
#[derive(Debug, Clone, Default, Args)]
pub struct DemoFlags {
    /// The data port's address [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// The admin port's address [default: 127.0.0.1:8081].
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// Keep the embedded store and the cache in this folder [default: a temporary one].
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Listen beyond loopback though nobody is asked who they are.
    #[arg(long)]
    pub insecure_no_auth: bool,
}

/// Flags of `roundhouse serve`. Values stay text here: they are checked with the settings,
/// so that all faults are found together.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeFlags {
    /// Read settings from this file (config/default.toml explains every key).
    #[arg(long, value_name = "FILE", env = "ROUNDHOUSE_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Serve this store: s3://bucket/prefix/ or file:///folder/; repeat as NAME=URI for more
    /// endpoints.
    #[arg(long, value_name = "[NAME=]URI")]
    pub store: Vec<String>,
    /// The data port's address [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// The admin port's address [default: 127.0.0.1:8081].
    #[arg(long, value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// Serve /livez, /readyz and /metrics (only) at this address too.
    #[arg(long, value_name = "ADDR")]
    pub health_listen: Option<String>,
    /// The file of keys (`roundhouse keys create`): then everybody is asked who they are.
    #[arg(long, value_name = "FILE")]
    pub keys: Option<String>,
    /// The device's budget, as in 4GiB [default: what there is, less a baseline and a margin].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Where models run: auto, cpu or, in a build with CUDA, cuda or cuda:1 [default: auto].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// The disk cache's folder, locked [default: the user's cache folder].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<String>,
    /// The most the disk cache may hold [default: the smaller of 50GiB and 70 % of what is free].
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<String>,
    /// The longest sequence served, in tokens [default: 8192].
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<String>,
    /// How far a generative model's KV pool may grow, in sequences of the full context [default: 4].
    #[arg(long, value_name = "COUNT")]
    pub kv_sequences: Option<String>,
    /// The most tokens one step computes [default: 2048].
    #[arg(long, value_name = "TOKENS")]
    pub step_tokens: Option<String>,
    /// Serve Python handlers (code/inference.py, scikit-learn, XGBoost and PyTorch models).
    #[arg(long)]
    pub handlers: bool,
    /// How strictly handlers are confined: required or best-effort [default: required].
    #[arg(long, value_name = "LEVEL")]
    pub handlers_isolation: Option<String>,
    /// The interpreter that runs handlers [default: python3].
    #[arg(long, value_name = "PYTHON")]
    pub handlers_python: Option<String>,
    /// How long requests may take to finish after SIGTERM [default: 25s].
    #[arg(long, value_name = "DURATION")]
    pub drain_timeout: Option<String>,
    /// Listen beyond loopback though nobody is asked who they are.
    #[arg(long)]
    pub insecure_no_auth: bool,
    /// Serve SageMaker's multi-model container contract (/models…); no store is needed.
    #[arg(long)]
    pub container_contract: bool,
    /// What a model's url must lie under [default: /opt/ml/models].
    #[arg(long, value_name = "DIR")]
    pub container_models_root: Option<String>,
    /// Where the bases of the contract's adapters are, by the names that the adapters have for
    /// them: s3://bucket/prefix/ or a folder.
    #[arg(long, value_name = "URI")]
    pub base_store: Option<String>,
    /// Serve the one model of this folder, to requests that name none [default: /opt/ml/model where
    /// it exists and there is nothing else to serve].
    #[arg(long, value_name = "DIR")]
    pub model_dir: Option<String>,
    /// How log lines look: human or json [default: human].
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// What is logged, as in info or debug,hyper=warn [default: info].
    #[arg(long, value_name = "FILTER")]
    pub log_level: Option<String>,
    /// Where the access log goes: stderr, off or a file [default: stderr].
    #[arg(long, value_name = "WHERE")]
    pub access_log: Option<String>,
}

impl ServeFlags {
    /// The flags that were given, by the key each one sets.
    pub(crate) fn values(&self) -> BTreeMap<&'static str, String> {
        let texts = [
            ("listen.data", &self.listen),
            ("listen.admin", &self.admin_listen),
            ("listen.health", &self.health_listen),
            ("auth.keys", &self.keys),
            ("memory.budget", &self.memory),
            ("memory.device", &self.device),
            ("cache.dir", &self.cache_dir),
            ("cache.size", &self.cache_size),
            ("serving.context", &self.context),
            ("serving.kv_sequences", &self.kv_sequences),
            ("serving.step_tokens", &self.step_tokens),
            ("handlers.isolation", &self.handlers_isolation),
            ("handlers.python", &self.handlers_python),
            ("shutdown.drain_timeout", &self.drain_timeout),
            ("container.models_root", &self.container_models_root),
            ("container.base_store", &self.base_store),
            ("container.model_dir", &self.model_dir),
            ("log.format", &self.log_format),
            ("log.level", &self.log_level),
            ("log.access", &self.access_log),
        ];
        let switches = [
            ("listen.insecure_no_auth", self.insecure_no_auth),
            ("handlers.enabled", self.handlers),
            ("container.contract", self.container_contract),
        ];
        let texts = texts.into_iter().filter_map(|(key, text)| Some((key, text.clone()?)));
        let switches = switches.into_iter().filter(|(_, on)| *on);
        texts.chain(switches.map(|(key, _)| (key, "true".to_owned()))).collect()
    }
}
