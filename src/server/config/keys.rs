//! Every key there is, and what an unknown one was probably meant to be.

use super::Fault;
use super::quotas::DEFAULTS;

/// What stands in the file to the right of a key. In the environment and in flags all is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// A string, with its unit where it has one.
    Text,
    /// A string with a unit, or a whole number of bytes.
    Size,
    /// A whole number.
    Count,
    /// `true` or `false`.
    Switch,
}

impl Written {
    /// What is expected, for a fault.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Text => "a string in quotes",
            Self::Size => "a string with a unit, like \"24GiB\"",
            Self::Count => "a whole number",
            Self::Switch => "true or false",
        }
    }
}

/// A key outside `[[endpoint]]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// Its dotted name.
    pub(super) name: &'static str,
    /// How it is written in the file.
    pub(super) written: Written,
    /// The flag that sets it, without its hyphens.
    pub(super) flag: Option<&'static str>,
}

impl Key {
    /// The environment variables that set it: after the key, and after the flag if that differs.
    pub(super) fn variables(&self) -> Vec<String> {
        let mut names = vec![variable(self.name)];
        if let Some(flag) = self.flag {
            let after_flag = variable(flag);
            if after_flag != names[0] {
                names.push(after_flag);
            }
        }
        names
    }
}

fn variable(name: &str) -> String {
    let body: String = name
        .chars()
        .map(|c| if c == '.' || c == '-' { '_' } else { c.to_ascii_uppercase() })
        .collect();
    format!("ROUNDHOUSE_{body}")
}

const fn key(name: &'static str, written: Written) -> Key {
    Key { name, written, flag: None }
}

const fn with_flag(name: &'static str, written: Written, flag: &'static str) -> Key {
    Key { name, written, flag: Some(flag) }
}

/// Every key outside `[[endpoint]]`, in the order of the file.
pub(super) const KEYS: &[Key] = &[
    with_flag("listen.data", Written::Text, "listen"),
    with_flag("listen.admin", Written::Text, "admin-listen"),
    with_flag("listen.health", Written::Text, "health-listen"),
    key("listen.admin_hosts", Written::Text),
    with_flag("listen.insecure_no_auth", Written::Switch, "insecure-no-auth"),
    key("listen.max_connections", Written::Count),
    with_flag("auth.keys", Written::Text, "keys"),
    key("auth.anonymous", Written::Switch),
    key("auth.unsigned_payload", Written::Switch),
    key("auth.proxy_networks", Written::Text),
    key("auth.proxy_header", Written::Text),
    key("auth.oidc_issuer", Written::Text),
    key("auth.oidc_audience", Written::Text),
    key("auth.oidc_jwks", Written::Text),
    key("auth.oidc_claim", Written::Text),
    key("auth.oidc_tenants", Written::Text),
    key("auth.oidc_leeway", Written::Text),
    key("auth.aws_sts", Written::Text),
    key("auth.aws_server_id", Written::Text),
    key("auth.aws_tenants", Written::Text),
    key("tls.certificate", Written::Text),
    key("tls.key", Written::Text),
    key("tls.client_ca", Written::Text),
    key("tls.client_name", Written::Text),
    key("tls.admin_certificate", Written::Text),
    key("tls.admin_key", Written::Text),
    with_flag("memory.budget", Written::Size, "memory"),
    with_flag("memory.device", Written::Text, "device"),
    key("memory.host", Written::Size),
    key("memory.witness_every", Written::Text),
    key("memory.witness_tolerance", Written::Count),
    key("memory.yield_to_others", Written::Switch),
    key("memory.share_tensors", Written::Text),
    with_flag("cache.dir", Written::Text, "cache-dir"),
    with_flag("cache.size", Written::Size, "cache-size"),
    key("cache.max_unpacked", Written::Size),
    key("store.part_size", Written::Size),
    key("store.parts_in_flight", Written::Count),
    key("store.bytes_in_flight", Written::Size),
    key("store.catalogue_ttl", Written::Text),
    key("store.negative_ttl", Written::Text),
    key("store.settle", Written::Text),
    key("store.update_settle", Written::Text),
    key("store.stall_timeout", Written::Text),
    key("store.max_retries", Written::Count),
    key("residency.load_timeout", Written::Text),
    key("residency.refresh_every", Written::Text),
    key("residency.idle_ttl", Written::Text),
    key("residency.minimum_residence", Written::Text),
    key("residency.max_waiters", Written::Count),
    key("residency.concurrent_fetches", Written::Count),
    key("residency.concurrent_loads", Written::Count),
    key("residency.load_niceness", Written::Count),
    key("residency.policy", Written::Text),
    key("residency.collation", Written::Switch),
    key("residency.overtaken_at_most", Written::Count),
    key("residency.overtaken_within", Written::Text),
    key("replicas.at_leases", Written::Count),
    key("replicas.max", Written::Count),
    key("serving.request_timeout", Written::Text),
    key("serving.stream_timeout", Written::Text),
    key("serving.hold", Written::Text),
    key("serving.max_body", Written::Size),
    key("serving.max_queue", Written::Count),
    key("serving.response_headers", Written::Switch),
    key("serving.share_headers", Written::Text),
    key("serving.share_prefixes", Written::Text),
    key("serving.template_process", Written::Switch),
    key("serving.template_memory", Written::Size),
    with_flag("serving.context", Written::Count, "context"),
    with_flag("serving.kv_sequences", Written::Count, "kv-sequences"),
    with_flag("serving.step_tokens", Written::Count, "step-tokens"),
    key("serving.step_time", Written::Text),
    key("serving.max_running", Written::Count),
    key("serving.dtype", Written::Text),
    key("serving.quantize", Written::Text),
    key("serving.kv_cache_dtype", Written::Text),
    key("sessions.enabled", Written::Switch),
    key("sessions.expiration", Written::Text),
    key("sessions.max", Written::Count),
    key("sessions.max_per_tenant", Written::Count),
    with_flag("handlers.enabled", Written::Switch, "handlers"),
    with_flag("handlers.isolation", Written::Text, "handlers-isolation"),
    with_flag("handlers.python", Written::Text, "handlers-python"),
    key("handlers.memory", Written::Size),
    key("handlers.max_memory", Written::Size),
    key("handlers.workers", Written::Count),
    key("handlers.max_workers", Written::Count),
    key("handlers.time_limit", Written::Text),
    key("handlers.start_limit", Written::Text),
    key("handlers.concurrent_starts", Written::Count),
    key("handlers.max_response", Written::Size),
    key("handlers.max_temp", Written::Size),
    key("handlers.processes", Written::Count),
    key("handlers.index", Written::Text),
    key("handlers.allowed_indexes", Written::Text),
    key("handlers.source_builds", Written::Switch),
    key("handlers.share_environments", Written::Switch),
    key("handlers.environments_size", Written::Size),
    key("handlers.install_limit", Written::Text),
    key("handlers.warm", Written::Switch),
    key("handlers.warm_memory", Written::Size),
    key("handlers.warm_imports", Written::Text),
    key("handlers.warm_idle_after", Written::Text),
    key("async.dir", Written::Text),
    key("usage.file", Written::Text),
    key("usage.detail", Written::Text),
    key("usage.interval", Written::Text),
    key("usage.sync", Written::Text),
    key("usage.rotate_size", Written::Size),
    key("usage.rotate_daily", Written::Switch),
    key("lane.wedged_after", Written::Text),
    with_flag("shutdown.drain_timeout", Written::Text, "drain-timeout"),
    with_flag("log.format", Written::Text, "log-format"),
    with_flag("log.level", Written::Text, "log-level"),
    with_flag("log.access", Written::Text, "access-log"),
    key("log.audit", Written::Text),
    key("tracing.otlp", Written::Text),
    key("tracing.sampled", Written::Text),
    key("tracing.service", Written::Text),
    key("tracing.names", Written::Switch),
    key("cloudwatch.to", Written::Text),
    key("cloudwatch.namespace", Written::Text),
    key("cloudwatch.period", Written::Text),
    key("cloudwatch.log_group", Written::Text),
    with_flag("container.contract", Written::Switch, "container-contract"),
    with_flag("container.models_root", Written::Text, "container-models-root"),
    with_flag("container.base_store", Written::Text, "base-store"),
    with_flag("container.model_dir", Written::Text, "model-dir"),
];

/// Keys of an `[[endpoint]]`.
pub(super) const ENDPOINT_KEYS: &[&str] = &[
    "name",
    "handlers",
    "target",
    "preload",
    "keep",
    "update",
    "on_delete",
    "bases",
    "async",
    "capture",
    "containers",
    "container",
    "component",
    "variant",
    "engine",
    "mount",
];

/// Keys of an `[[endpoint.engine]]`.
pub(super) const ENGINE_KEYS: &[&str] = &[
    "target",
    "contract",
    "url",
    "path_map",
    "memory_factor",
    "process_memory",
    "load_timeout",
    "command",
    "environment",
    "memory",
    "measure",
    "own_processes",
    "name",
    "health",
    "start_timeout",
    "stop_timeout",
    "idle_ttl",
    "pickles",
    "invocations",
    "sleep",
    "adapters",
    "slots",
    "cache_salt",
];

/// Keys of an `[endpoint.capture]`.
pub(super) const CAPTURE_KEYS: &[&str] = &[
    "destination",
    "sampling",
    "input",
    "output",
    "redact",
    "csv_content_types",
    "json_content_types",
    "max_payload",
    "buffer",
    "flush_size",
    "flush_every",
];

/// Keys of an `[[endpoint.container]]`.
pub(super) const CONTAINER_KEYS: &[&str] = &[
    "hostname",
    "url",
    "command",
    "args",
    "env",
    "dir",
    "port",
    "start_timeout",
    "grace",
    "connect_timeout",
    "response_timeout",
    "idle_timeout",
    "max_requests",
    "health",
    "health_every",
    "ca_file",
    "own_processes",
];

/// Keys of an `[[endpoint.component]]`.
pub(super) const COMPONENT_KEYS: &[&str] = &["name", "target"];

/// Keys of an `[[endpoint.variant]]`.
pub(super) const VARIANT_KEYS: &[&str] = &["name", "weight", "target", "prefix"];

/// Keys of an `[endpoint.async]`; those of its stores are an `[[endpoint.mount]]`'s.
pub(super) const ASYNC_KEYS: &[&str] = &[
    "inputs",
    "output",
    "failure",
    "shared",
    "max_concurrent",
    "queue_requests",
    "queue_bytes",
    "max_input",
    "max_output",
    "give_up_after",
    "success_url",
    "error_url",
    "webhook_networks",
    "success_topic",
    "error_topic",
    "sns_endpoint_url",
    "include_inference_response_in",
    "region",
    "endpoint_url",
    "path_style",
    "role_arn",
    "external_id",
    "request_payer",
    "expected_bucket_owner",
];

/// Keys of a `[[device]]`.
pub(super) const DEVICE_KEYS: &[&str] = &["id", "budget", "copy_bandwidth"];

/// Keys of a `[[tenant]]`.
pub(super) const TENANT_KEYS: &[&str] = &[
    "name",
    "floor",
    "ceiling",
    "disk_floor",
    "disk_ceiling",
    "load_bandwidth",
    "share",
    "priority",
    "invoke",
    "load",
    "see",
    "requests_per_second",
    "request_burst",
    "tokens_in_per_minute",
    "tokens_out_per_minute",
    "concurrent_requests",
    "requests_per_day",
    "tokens_per_day",
    "compute_per_day",
];

/// Keys of an `[[issuer]]`.
pub(super) const ISSUER_KEYS: &[&str] =
    &["issuer", "audience", "jwks", "claim", "tenants", "leeway"];

/// Keys of an `[[alias]]`.
pub(super) const ALIAS_KEYS: &[&str] = &["name", "endpoint", "tenant", "target", "routes"];

/// Keys of one of its routes.
pub(super) const ROUTE_KEYS: &[&str] = &["target", "weight"];

/// Keys of an `[[endpoint.mount]]`.
pub(super) const MOUNT_KEYS: &[&str] = &[
    "prefix",
    "uri",
    "region",
    "endpoint_url",
    "path_style",
    "role_arn",
    "external_id",
    "request_payer",
    "expected_bucket_owner",
];

/// The key of this name.
///
/// # Panics
/// When the name is not in [`KEYS`]: every caller names one that is.
pub(super) fn find(name: &str) -> &'static Key {
    KEYS.iter().find(|key| key.name == name).expect("callers name keys of the table")
}

/// Faults for every key of the file that is not known. The lists are left to their readers.
pub(super) fn unknown(file: &toml::Table) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (section, value) in file {
        let lists = ["version", "endpoint", "device", "tenant", "alias", "issuer", DEFAULTS];
        if lists.contains(&section.as_str()) {
            continue;
        }
        let known_section = KEYS.iter().any(|key| section_of(key.name) == section);
        let Some(table) = value.as_table() else {
            let message = if known_section {
                format!("is a section: write [{section}] and its keys below")
            } else {
                unknown_message(section, &sections(), section)
            };
            faults.push(Fault::new(section, message));
            continue;
        };
        if !known_section {
            faults.push(Fault::new(section, unknown_message(section, &sections(), section)));
            continue;
        }
        for leaf in table.keys() {
            let name = format!("{section}.{leaf}");
            if KEYS.iter().all(|key| key.name != name) {
                let names: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
                faults.push(Fault::new(&name, unknown_message(&name, &names, leaf)));
            }
        }
    }
    faults
}

/// Faults for the keys of one table that are not in `known`.
pub(super) fn unknown_in(table: &toml::Table, known: &[&str], at: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    for leaf in table.keys().filter(|leaf| !known.contains(&leaf.as_str())) {
        faults.push(Fault::new(format!("{at}.{leaf}"), unknown_message(leaf, known, leaf)));
    }
    faults
}

fn section_of(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn sections() -> Vec<&'static str> {
    let mut sections = vec!["version", "endpoint", "device", "tenant", "alias", "issuer", DEFAULTS];
    for key in KEYS {
        let section = section_of(key.name);
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    sections
}

fn unknown_message(name: &str, known: &[&str], leaf: &str) -> String {
    // A key under the wrong section is as common a slip as a misspelt one.
    let moved = known.iter().find(|candidate| candidate.rsplit('.').next() == Some(leaf));
    let close = known
        .iter()
        .map(|candidate| (edits(name, candidate), *candidate))
        .filter(|(edits, candidate)| *edits <= 2.max(candidate.len() / 5))
        .min();
    match moved.copied().or(close.map(|(_, candidate)| candidate)) {
        Some(candidate) => format!("is not a key; did you mean {candidate}?"),
        None => "is not a key".into(),
    }
}

/// How many letters to add, drop or change to get from one word to the other.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}
