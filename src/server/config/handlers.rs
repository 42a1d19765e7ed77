//! `[handlers]`: what the operator allows Python handlers.

use std::path::{Path, PathBuf};

use roundhouse_types::Bytes;
use roundhouse_workers::{Isolation, Packages, Warming};

use super::raw::Sources;
use super::resolve::{HOUR, SECOND};
use super::{Handlers, defaults};

/// The operator's own settings of pip that go on to installations: where packages come from
/// and how that is reached. Nothing else of the environment does.
const INSTALLER_VARIABLES: [&str; 12] = [
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_CERT",
    "PIP_DEFAULT_TIMEOUT",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "NO_PROXY",
];

/// Modules that interpreters may be told to import.
const MODULES: usize = 128;

/// What shows that a folder holds a handler.
const HANDLERS: [&str; 7] =
    ["code", "inference.py", "model.joblib", "model.pkl", "model.pt", "model.pth", "xgboost-model"];

/// Of a server with one model, `model_dir` is its folder: who runs the server has put it there, so what
/// it holds may run, as confined as the platform allows.
pub(super) fn resolve(sources: &mut Sources<'_>, model_dir: Option<&Path>) -> Handlers {
    let own = model_dir.is_some_and(|dir| HANDLERS.iter().any(|it| sources.exists(&dir.join(it))));
    let sizes = || Bytes::mib(1)..=Bytes::gib(1 << 20);
    let handlers = Handlers {
        enabled: sources.switch("handlers.enabled").unwrap_or(own),
        isolation: sources.optional("handlers.isolation", str::parse).unwrap_or(if own {
            Isolation::BestEffort
        } else {
            Isolation::Required
        }),
        python: sources
            .optional("handlers.python", python)
            .unwrap_or_else(|| PathBuf::from("python3")),
        memory: sources.size("handlers.memory", sizes()).unwrap_or(defaults::HANDLER_MEMORY),
        max_memory: sources.size("handlers.max_memory", sizes()),
        workers: sources.count("handlers.workers", 1..=1024).unwrap_or(defaults::HANDLER_WORKERS),
        max_workers: sources
            .count("handlers.max_workers", 1..=1024)
            .unwrap_or(defaults::HANDLER_MAX_WORKERS),
        time_limit: sources
            .duration("handlers.time_limit", SECOND..=HOUR)
            .unwrap_or(defaults::HANDLER_TIME_LIMIT),
        start_limit: sources
            .duration("handlers.start_limit", SECOND..=HOUR)
            .unwrap_or(defaults::HANDLER_START_LIMIT),
        concurrent_starts: sources
            .count("handlers.concurrent_starts", 1..=1024)
            .unwrap_or(defaults::HANDLER_CONCURRENT_STARTS),
        max_response: sources
            .size("handlers.max_response", Bytes(1 << 10)..=Bytes(1 << 30))
            .unwrap_or(defaults::HANDLER_MAX_RESPONSE),
        max_temp: sources.size("handlers.max_temp", sizes()).unwrap_or(defaults::HANDLER_MAX_TEMP),
        processes: sources
            .count("handlers.processes", 8..=100_000)
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(defaults::HANDLER_PROCESSES),
        packages: packages(sources),
        warm: warm(sources, model_dir.is_none()),
    };
    if handlers.workers > handlers.max_workers {
        sources.fault("handlers.workers", "is more than handlers.max_workers");
    }
    if handlers.max_memory.is_some_and(|most| handlers.memory > most) {
        sources.fault("handlers.memory", "is more than handlers.max_memory");
    }
    handlers
}

fn packages(sources: &mut Sources<'_>) -> Packages {
    Packages {
        index: sources.optional("handlers.index", index),
        allowed_indexes: sources
            .optional("handlers.allowed_indexes", |text| {
                text.split_whitespace().map(index).collect::<Result<Vec<_>, _>>()
            })
            .unwrap_or_default(),
        variables: INSTALLER_VARIABLES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), sources.variable(name)?)))
            .collect(),
        source_builds: sources.switch("handlers.source_builds").unwrap_or(false),
        shared: sources.switch("handlers.share_environments").unwrap_or(false),
        max_size: sources
            .size("handlers.environments_size", Bytes::mib(1)..=Bytes::gib(1 << 20))
            .unwrap_or(defaults::HANDLER_ENVIRONMENTS_SIZE),
        time_limit: sources
            .duration("handlers.install_limit", SECOND..=HOUR)
            .unwrap_or(defaults::HANDLER_INSTALL_LIMIT),
    }
}

/// A server with one model loads it once.
fn warm(sources: &mut Sources<'_>, several: bool) -> Option<Warming> {
    let on = sources.switch("handlers.warm").unwrap_or(several);
    let known = Warming::default();
    let warming = Warming {
        memory: sources
            .size("handlers.warm_memory", Bytes::mib(1)..=Bytes::gib(1 << 20))
            .unwrap_or(known.memory),
        idle_after: sources
            .duration("handlers.warm_idle_after", SECOND..=24 * HOUR)
            .unwrap_or(known.idle_after),
        imports: sources.optional("handlers.warm_imports", modules),
    };
    on.then_some(warming)
}

/// Names of modules, separated by spaces.
fn modules(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let is_name = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match names.iter().find(|name| !name.split('.').all(is_name)) {
        Some(name) => Err(format!("'{name}' is not a module like sklearn.ensemble")),
        None if names.len() > MODULES => Err(format!("more than {MODULES} modules")),
        None => Ok(names),
    }
}

fn python(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err(format!("{text:?} is neither a path nor a name on the PATH like python3"));
    }
    Ok(text.into())
}

/// Credentials in it would be shown in logs and to whoever reads the environment.
fn index(text: &str) -> Result<String, String> {
    let rest = ["https://", "http://", "file:///"].iter().find_map(|it| text.strip_prefix(it));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.split('/').next().unwrap_or("").contains('@') => {
            Ok(text.into())
        }
        _ => Err(format!("'{text}' is not an index: https://host/simple/, without credentials")),
    }
}
