//! `[container]`, and what the environment says where a platform runs this server as its container.
//!
//! The platform's variables stand between our own and the file: `ROUNDHOUSE_…` beats `SAGEMAKER_…`,
//! which beats the file.

use std::path::{Path, PathBuf};

use roundhouse_models::Asked;
use roundhouse_store::StoreUri;

use super::raw::Sources;
use super::{Container, defaults};

/// Where a platform puts its folders.
const BASE: &str = "/opt/ml";

/// Variables that a platform's users set for other servers and that nothing here honours.
const UNHEEDED: [&str; 17] = [
    "SAGEMAKER_HANDLER",
    "SAGEMAKER_MODEL_STORE",
    "SAGEMAKER_SECURE_MODE",
    "SAGEMAKER_SECURITY_CONTROLS",
    "SAGEMAKER_UNTRUSTED_CHANNELS",
    "SAGEMAKER_HEALTH_CHECK_OVERRIDE",
    "SAGEMAKER_TS_BATCH_SIZE",
    "SAGEMAKER_TS_MAX_BATCH_DELAY",
    "SAGEMAKER_TS_MIN_WORKERS",
    "SAGEMAKER_TS_MAX_WORKERS",
    "SAGEMAKER_TS_RESPONSE_TIMEOUT",
    "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME",
    "SAGEMAKER_TRITON_PING_MODE",
    "SAGEMAKER_TRITON_INFERENCE_TYPE",
    "HF_MODEL_REVISION",
    "SM_NUM_GPUS",
    "CUSTOM_SCRIPT_FILENAME",
];

/// Variables that say what `serving.properties` may say, with the keys for it; a file's own goes
/// before them. Of two for one key the later counts.
const PROPERTIES: [(&str, &str); 25] = [
    ("HF_MODEL_QUANTIZE", "option.quantize"),
    ("HF_TASK", "option.task"),
    ("HF_TRUST_REMOTE_CODE", "option.trust_remote_code"),
    ("HF_MODEL_TRUST_REMOTE_CODE", "option.trust_remote_code"),
    ("MAX_BATCH_SIZE", "option.max_rolling_batch_size"),
    ("MAX_CONCURRENT_REQUESTS", "job_queue_size"),
    ("TENSOR_PARALLEL_DEGREE", "option.tensor_parallel_degree"),
    ("SERVING_JOB_QUEUE_SIZE", "job_queue_size"),
    ("SERVING_ENGINE", "engine"),
    ("OPTION_MODEL_ID", "option.model_id"),
    ("OPTION_ENTRYPOINT", "option.entryPoint"),
    ("OPTION_TASK", "option.task"),
    ("OPTION_DTYPE", "option.dtype"),
    ("OPTION_QUANTIZE", "option.quantize"),
    ("OPTION_KV_CACHE_DTYPE", "option.kv_cache_dtype"),
    ("OPTION_MAX_MODEL_LEN", "option.max_model_len"),
    ("OPTION_MAX_ROLLING_BATCH_SIZE", "option.max_rolling_batch_size"),
    ("OPTION_ROLLING_BATCH", "option.rolling_batch"),
    ("OPTION_TENSOR_PARALLEL_DEGREE", "option.tensor_parallel_degree"),
    ("OPTION_TRUST_REMOTE_CODE", "option.trust_remote_code"),
    ("OPTION_OUTPUT_FORMATTER", "option.output_formatter"),
    ("OPTION_TGI_COMPAT", "option.tgi_compat"),
    ("OPTION_ENABLE_LORA", "option.enable_lora"),
    ("OPTION_MAX_LORA_RANK", "option.max_lora_rank"),
    ("OPTION_MAX_LORAS", "option.max_loras"),
];

pub(super) fn resolve(sources: &mut Sources<'_>) -> Container {
    let multi_model = sources
        .variable("SAGEMAKER_MULTI_MODEL")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let contract = sources.switch("container.contract").unwrap_or(multi_model);
    let base = base_folder(sources);
    let told = sources.optional("container.model_dir", absolute);
    let found = match &told {
        None if !contract && !names_stores(sources) => found_folder(sources, &base),
        _ => None,
    };
    if told.is_some() && (contract || names_stores(sources)) {
        let why =
            "is for a server of one model: leave out stores, endpoints and the container contract";
        sources.fault("container.model_dir", why);
    }
    // Whoever names the folder on a machine of their own opens no port by it.
    let told_by_platform = ["SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_BASE_DIR"];
    let is_told = || told_by_platform.iter().any(|name| sources.variable(name).is_some());
    let platform = contract || found.is_some() || (told.is_some() && is_told());
    let model_dir = told.or(found);
    // The adapters of one model lie wherever the platform puts them.
    let is_one = model_dir.is_some();
    let mut container = Container {
        contract,
        models_root: sources
            .optional("container.models_root", absolute_path)
            .unwrap_or_else(|| if is_one { base } else { base.join("models") }),
        base_store: sources.optional("container.base_store", base_store),
        platform,
        program: None,
        default_accept: None,
        unheeded: Vec::new(),
        preset: Asked::default(),
        model_dir,
    };
    if contract || container.model_dir.is_some() {
        heed(sources, &mut container);
    }
    container
}

/// The folder that a platform has unpacked a model to, where this machine has it.
fn found_folder(sources: &Sources<'_>, base: &Path) -> Option<PathBuf> {
    // How images for one model are told of a folder that lies elsewhere.
    let named = ["HF_MODEL_ID", "OPTION_MODEL_ID"].into_iter();
    let named = named.filter_map(|name| sources.variable(name)).map(PathBuf::from);
    let places = named.filter(|it| it.is_absolute()).chain([base.join("model")]);
    places.into_iter().find(|place| sources.exists(place))
}

fn names_stores(sources: &Sources<'_>) -> bool {
    !sources.flags.store.is_empty()
        || sources.variable("ROUNDHOUSE_STORE").is_some()
        || sources.file.contains_key("endpoint")
}

fn base_folder(sources: &mut Sources<'_>) -> PathBuf {
    match sources.variable("SAGEMAKER_BASE_DIR").map(PathBuf::from) {
        Some(base) if base.is_absolute() => base,
        Some(base) => {
            let why = format!("SAGEMAKER_BASE_DIR is not an absolute path: '{}'", base.display());
            sources.fault("container.model_dir", why);
            BASE.into()
        }
        None => BASE.into(),
    }
}

/// Takes what the platform's variables say as settings, and keeps the names of those that nothing
/// honours.
fn heed(sources: &mut Sources<'_>, container: &mut Container) {
    port_range(sources);
    body_limit(sources);
    time_limits(sources);
    workers(sources);
    log_level(sources);
    container.program =
        sources.variable("SAGEMAKER_PROGRAM").and_then(|name| program(sources, name));
    container.default_accept = default_accept(sources);
    let given = UNHEEDED.iter().filter(|name| sources.variable(name).is_some());
    container.unheeded = given.map(|name| (*name).to_owned()).collect();
    let folder = container.model_dir.clone();
    for (name, key) in PROPERTIES {
        let said = sources.variable(name).filter(|said| Some(Path::new(said)) != folder.as_deref());
        if said.is_some_and(|value| !container.preset.take(key, value.trim())) {
            container.unheeded.push(name.to_owned());
        }
    }
    let code = container.model_dir.as_ref().map(|dir| dir.join("code"));
    let elsewhere = |folder: &PathBuf| Some(folder) != code.as_ref();
    if sources
        .variable("SAGEMAKER_SUBMIT_DIRECTORY")
        .map(PathBuf::from)
        .is_some_and(|it| elsewhere(&it))
    {
        // Scripts lie in the artefact.
        container.unheeded.push("SAGEMAKER_SUBMIT_DIRECTORY".into());
    }
}

/// Ports beside the platform's own lie in the range that it names.
fn port_range(sources: &mut Sources<'_>) {
    const NAME: &str = "SAGEMAKER_SAFE_PORT_RANGE";
    let Some(text) = sources.variable(NAME) else { return };
    let range = text.split_once('-').and_then(|(low, high)| {
        let range: (u16, u16) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        (range.0 <= range.1 && range.0 > 0).then_some(range)
    });
    let Some((low, high)) = range else {
        return sources.fault("listen.admin", format!("{NAME} is not like 9000-9999: '{text}'"));
    };
    // The data port's own may lie in it as well.
    let data = sources.variable("SAGEMAKER_BIND_TO_PORT").and_then(|port| port.trim().parse().ok());
    let data = data.unwrap_or(defaults::CONTAINER_PORT);
    match (low..=high).find(|port| *port != data) {
        Some(port) => sources.platform("listen.admin", format!("127.0.0.1:{port}"), NAME),
        None => {
            let why = format!("{NAME} has no port beside the data port's: '{text}'");
            sources.fault("listen.admin", why);
        }
    }
}

/// Bytes go before megabytes.
fn body_limit(sources: &mut Sources<'_>) {
    const KEY: &str = "serving.max_body";
    let units = [("SAGEMAKER_MAX_REQUEST_SIZE", "B"), ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "MiB")];
    for (name, unit) in units.into_iter().rev() {
        if let Some(number) = whole(sources, KEY, name) {
            sources.platform(KEY, format!("{number}{unit}"), name);
        }
    }
    const ANSWER: &str = "SAGEMAKER_MAX_RESPONSE_SIZE";
    if let Some(number) = whole(sources, "handlers.max_response", ANSWER) {
        sources.platform("handlers.max_response", format!("{number}B"), ANSWER);
    }
}

fn time_limits(sources: &mut Sources<'_>) {
    const KEY: &str = "serving.request_timeout";
    // The last one goes before the others.
    let names = [
        "SAGEMAKER_RESPONSE_TIMEOUT",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS",
    ];
    for name in names {
        let Some(seconds) = whole(sources, KEY, name) else { continue };
        sources.platform(KEY, format!("{seconds}s"), name);
        sources.platform("handlers.time_limit", format!("{seconds}s"), name);
        // Whoever waits for a load is told within the time of the request.
        let hold = seconds.min(defaults::HOLD.as_secs());
        sources.platform("serving.hold", format!("{hold}s"), name);
    }
    for name in ["SAGEMAKER_STARTUP_TIMEOUT", "OPTION_MODEL_LOADING_TIMEOUT"] {
        let Some(seconds) = whole(sources, "residency.load_timeout", name) else { continue };
        sources.platform("residency.load_timeout", format!("{seconds}s"), name);
        sources.platform("handlers.start_limit", format!("{seconds}s"), name);
    }
    const PREDICT: &str = "OPTION_PREDICT_TIMEOUT";
    if let Some(seconds) = whole(sources, "handlers.time_limit", PREDICT) {
        sources.platform("handlers.time_limit", format!("{seconds}s"), PREDICT);
    }
}

fn workers(sources: &mut Sources<'_>) {
    for name in ["SAGEMAKER_NUM_MODEL_WORKERS", "SAGEMAKER_MODEL_SERVER_WORKERS"] {
        let Some(count) = whole(sources, "handlers.workers", name) else { continue };
        sources.platform("handlers.workers", count.to_string(), name);
        let most = count.max(defaults::HANDLER_MAX_WORKERS as u64);
        sources.platform("handlers.max_workers", most.to_string(), name);
    }
}

/// Python's numbers and words.
fn log_level(sources: &mut Sources<'_>) {
    const NAME: &str = "SAGEMAKER_CONTAINER_LOG_LEVEL";
    let Some(text) = sources.variable(NAME) else { return };
    let level = match text.trim().to_ascii_lowercase().as_str() {
        "10" | "debug" => "debug",
        "20" | "info" => "info",
        "30" | "warn" | "warning" => "warn",
        "40" | "50" | "error" | "critical" | "fatal" => "error",
        _ => {
            let why = format!("{NAME} is no level of Python's logging, like 20 or INFO: '{text}'");
            return sources.fault("log.level", why);
        }
    };
    sources.platform("log.level", level.to_owned(), NAME);
}

fn default_accept(sources: &mut Sources<'_>) -> Option<String> {
    const NAME: &str = "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT";
    let text = sources.variable(NAME)?;
    let is_type =
        text.split_once('/').is_some_and(|(kind, rest)| !kind.is_empty() && !rest.is_empty());
    if is_type && text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Some(text);
    }
    sources.fault("container.contract", format!("{NAME} is not a media type: '{text}'"));
    None
}

/// A script's name in the artefact's folder of code.
fn program(sources: &mut Sources<'_>, name: String) -> Option<String> {
    let is_plain = name.ends_with(".py") && !name.contains(['/', '\\', '\0']);
    if is_plain {
        return Some(name);
    }
    let why = format!(
        "SAGEMAKER_PROGRAM is not the name of a script in code/, like inference.py: '{name}'"
    );
    sources.fault("container.contract", why);
    None
}

fn whole(sources: &mut Sources<'_>, key: &str, name: &str) -> Option<u64> {
    let text = sources.variable(name)?;
    match text.trim().parse::<u64>() {
        Ok(number) if number > 0 => Some(number),
        _ => {
            sources.fault(key, format!("{name} is not a whole number above 0: '{text}'"));
            None
        }
    }
}

/// A store, or a folder by its path alone.
fn base_store(text: &str) -> Result<StoreUri, String> {
    if !text.contains("://") {
        return Ok(StoreUri::File { root: absolute_path(text)? });
    }
    text.parse().map_err(|error: roundhouse_store::Error| error.to_string())
}

/// A folder, which may be given relative to where the server is started.
fn absolute(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err(format!("{text:?} is not a folder"));
    }
    std::path::absolute(text).map_err(|error| format!("'{text}' is not a folder: {error}"))
}

pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("'{text}' is not an absolute path")) }
}
