//! Endpoints and their mounts: from `[[endpoint]]`, `--store` or `ROUNDHOUSE_STORE`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use roundhouse_gateway::Naming;
use roundhouse_store::{MountConfig, StoreUri};
use roundhouse_types::{EndpointName, TargetName};

use super::asynchronous::{self, Asynchronous};
use super::keys::{self, ENDPOINT_KEYS, MOUNT_KEYS};
use super::raw::Sources;
use super::rules::{self, VersionRule};
use super::{Behind, CaptureConfig, EngineRule, Fault, behind, capture, engines, naming};

/// The name of an endpoint that was given none.
const UNNAMED: &str = "default";
/// Stores in the environment, separated by white space.
const STORES_VARIABLE: &str = "ROUNDHOUSE_STORE";

/// A named front over one or more stores.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Its name in requests.
    pub name: EndpointName,
    /// Whether its targets may be Python handlers; absent is what `[handlers]` says.
    pub handlers: Option<bool>,
    /// Targets that are loaded when the server starts, in this order.
    pub preload: Vec<TargetName>,
    /// Targets that stay once they are loaded.
    pub keep: Vec<TargetName>,
    /// What it does when the store changes.
    pub versions: VersionRule,
    /// The targets that adapters mean by names which are none, or another's.
    pub bases: BTreeMap<String, TargetName>,
    /// What requests can name beside its targets.
    pub naming: Naming,
    /// Whether and how it takes requests whose callers do not wait.
    pub asynchronous: Option<Asynchronous>,
    /// What is kept of requests and answers; absent is nothing.
    pub capture: Option<CaptureConfig>,
    /// What answers in place of models of a store.
    pub containers: Option<Behind>,
    /// Targets that engines are started for.
    pub engines: Vec<EngineRule>,
    /// Its stores, with distinct prefixes; one at least where it has no containers.
    pub mounts: Vec<Mount>,
}

/// One store of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The first segments of the names of its targets; absent is the endpoint's root.
    pub prefix: Option<TargetName>,
    /// `s3://bucket/prefix/` or `file:///folder/`.
    pub uri: StoreUri,
    /// The bucket's region; absent is what the AWS chain says.
    pub region: Option<String>,
    /// Another S3-compatible service; absent is what the AWS chain says.
    pub endpoint_url: Option<String>,
    /// Whether the bucket stands in the path; absent decides by the service.
    pub path_style: Option<bool>,
    /// A role to assume for this store.
    pub role_arn: Option<String>,
    /// What the role's trust policy asks for.
    pub external_id: Option<Secret>,
    /// Whether we pay for requests.
    pub request_payer: bool,
    /// The account the bucket must belong to.
    pub expected_bucket_owner: Option<String>,
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Of a text that others may not see.
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one who needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// The endpoints that flags name, else the environment, else the file.
pub(super) fn resolve(sources: &mut Sources<'_>) -> Vec<Endpoint> {
    let from_file = match sources.file.get("endpoint").cloned() {
        None => Vec::new(),
        // The file's faults are reported even where a flag replaces what it says.
        Some(value) => file_endpoints(&value, sources),
    };
    if !sources.flags.store.is_empty() {
        let stores = sources.flags.store.clone();
        return store_endpoints(&stores, "--store", sources);
    }
    if let Some(text) = sources.variable(STORES_VARIABLE) {
        let stores: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        return store_endpoints(&stores, STORES_VARIABLE, sources);
    }
    from_file
}

fn store_endpoints(stores: &[String], by: &str, sources: &mut Sources<'_>) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for store in stores {
        let (name, uri) = split_store(store);
        let name = match name.parse::<EndpointName>() {
            Ok(name) => name,
            Err(why) => {
                sources.fault(by, format!("'{name}' is not an endpoint's name: {why}"));
                continue;
            }
        };
        let uri = match check_uri(uri) {
            Ok(uri) => uri,
            Err(message) => {
                sources.fault(by, message);
                continue;
            }
        };
        if endpoints.iter().any(|endpoint| endpoint.name == name) {
            sources.fault(
                by,
                format!("endpoint '{name}' is given twice; name each one: {by} NAME=URI"),
            );
            continue;
        }
        endpoints.push(Endpoint {
            name,
            handlers: None,
            preload: Vec::new(),
            keep: Vec::new(),
            versions: VersionRule::default(),
            bases: BTreeMap::new(),
            naming: Naming::default(),
            asynchronous: None,
            capture: None,
            containers: None,
            engines: Vec::new(),
            mounts: vec![Mount::plain(uri)],
        });
    }
    endpoints
}

/// Splits `NAME=URI`; a `=` within the URI does not count.
fn split_store(text: &str) -> (&str, &str) {
    match (text.find('='), text.find("://")) {
        (Some(equals), Some(scheme)) if equals < scheme => (&text[..equals], &text[equals + 1..]),
        (Some(equals), None) => (&text[..equals], &text[equals + 1..]),
        _ => (UNNAMED, text),
    }
}

impl Mount {
    fn plain(uri: StoreUri) -> Self {
        Self {
            prefix: None,
            uri,
            region: None,
            endpoint_url: None,
            path_style: None,
            role_arn: None,
            external_id: None,
            request_payer: false,
            expected_bucket_owner: None,
        }
    }

    /// The same as the store takes it. What comes out prints its secrets.
    pub fn to_store(&self) -> MountConfig {
        MountConfig {
            name: self.prefix.as_ref().map(ToString::to_string),
            uri: self.uri.clone(),
            region: self.region.clone(),
            endpoint_url: self.endpoint_url.clone(),
            path_style: self.path_style,
            role_arn: self.role_arn.clone(),
            external_id: self.external_id.as_ref().map(|secret| secret.reveal().to_owned()),
            request_payer: self.request_payer,
            expected_bucket_owner: self.expected_bucket_owner.clone(),
        }
    }
}

fn file_endpoints(value: &toml::Value, sources: &mut Sources<'_>) -> Vec<Endpoint> {
    let Some(entries) = tables(value) else {
        sources.fault("endpoint", "is a list: write [[endpoint]] and its keys below");
        return Vec::new();
    };
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let at = format!("endpoint[{index}]");
        sources.faults(keys::unknown_in(entry, ENDPOINT_KEYS, &at));
        let (containers, faults) = behind::read(entry, &at, &|name| sources.variable(name));
        sources.faults(faults);
        let has_containers = entry.contains_key("container");
        let mounts = if has_containers { Vec::new() } else { file_mounts(entry, &at, sources) };
        let handlers = match entry.get("handlers") {
            None => None,
            Some(toml::Value::Boolean(on)) => Some(*on),
            Some(_) => {
                sources.fault(format!("{at}.handlers"), "expected true or false");
                None
            }
        };
        let preload = targets(entry, "preload", &at, sources);
        let keep = targets(entry, "keep", &at, sources);
        let bases = bases(entry, &at, sources);
        let (naming, faults) = naming::read(entry, &at);
        sources.faults(faults);
        let (asynchronous, faults) = asynchronous::read(entry, &at);
        sources.faults(faults);
        let (capture, faults) = capture::read(entry, &at);
        sources.faults(faults);
        let (engines, faults) = engines::read(entry, &at, &|name| sources.variable(name));
        sources.faults(faults);
        let (versions, faults) = rules::read(entry);
        for (key, why) in faults {
            sources.fault(format!("{at}.{key}"), why);
        }
        let name = match entry.get("name").map(|name| name.as_str().map(str::parse::<EndpointName>))
        {
            Some(Some(Ok(name))) => name,
            Some(Some(Err(why))) => {
                sources.fault(format!("{at}.name"), format!("is not an endpoint's name: {why}"));
                continue;
            }
            Some(None) => {
                sources.fault(format!("{at}.name"), "expected a string in quotes");
                continue;
            }
            None => {
                sources.fault(format!("{at}.name"), "is missing");
                continue;
            }
        };
        if endpoints.iter().any(|endpoint| endpoint.name == name) {
            sources
                .fault(format!("{at}.name"), format!("'{name}' is the name of another endpoint"));
            continue;
        }
        endpoints.push(Endpoint {
            name,
            handlers,
            preload,
            keep,
            versions,
            bases,
            naming,
            asynchronous,
            capture,
            containers,
            engines,
            mounts,
        });
    }
    endpoints
}

/// Targets by the names that adapters have for them.
fn bases(entry: &toml::Table, at: &str, sources: &mut Sources<'_>) -> BTreeMap<String, TargetName> {
    let mut bases = BTreeMap::new();
    let Some(value) = entry.get("bases") else { return bases };
    let Some(named) = value.as_table() else {
        let expected = "is a table: write [endpoint.bases] and \"name\" = \"target\" below";
        sources.fault(format!("{at}.bases"), expected);
        return bases;
    };
    for (name, target) in named {
        let key = format!("{at}.bases.\"{name}\"");
        match target.as_str().map(str::parse::<TargetName>) {
            Some(Ok(target)) => drop(bases.insert(name.clone(), target)),
            Some(Err(why)) => sources.fault(key, format!("is not a target: {why}")),
            None => sources.fault(key, "expected a target's name in quotes"),
        }
    }
    bases
}

/// A list of targets' names.
fn targets(entry: &toml::Table, key: &str, at: &str, sources: &mut Sources<'_>) -> Vec<TargetName> {
    let Some(value) = entry.get(key) else {
        return Vec::new();
    };
    let mut targets = Vec::new();
    let names = value.as_array().map(|names| names.iter().map(toml::Value::as_str));
    let Some(Some(names)) = names.map(Iterator::collect::<Option<Vec<_>>>) else {
        let expected = "expected a list of targets' names in quotes";
        sources.fault(format!("{at}.{key}"), expected);
        return targets;
    };
    for name in names {
        match name.parse() {
            Ok(target) => targets.push(target),
            Err(why) => {
                sources.fault(format!("{at}.{key}"), format!("'{name}' is not a target: {why}"));
            }
        }
    }
    targets
}

fn file_mounts(endpoint: &toml::Table, at: &str, sources: &mut Sources<'_>) -> Vec<Mount> {
    let key = format!("{at}.mount");
    let Some(value) = endpoint.get("mount") else {
        sources.fault(key, "is missing: write [[endpoint.mount]] with a uri below the endpoint");
        return Vec::new();
    };
    let Some(entries) = tables(value) else {
        sources.fault(key, "is a list: write [[endpoint.mount]] and its keys below");
        return Vec::new();
    };
    let mut mounts = Vec::new();
    let mut prefixes = BTreeSet::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let at = format!("{key}[{index}]");
        sources.faults(keys::unknown_in(entry, MOUNT_KEYS, &at));
        let (mount, faults) = read_mount(entry, &at);
        sources.faults(faults);
        if let Some(mount) = mount {
            if !prefixes.insert(mount.prefix.clone()) {
                sources.fault(
                    format!("{at}.prefix"),
                    "is the prefix of another mount of the endpoint",
                );
            }
            mounts.push(mount);
        }
    }
    mounts
}

/// A store by the keys of one table that is called `at`.
pub(super) fn read_mount(entry: &toml::Table, at: &str) -> (Option<Mount>, Vec<Fault>) {
    let mut reader = MountReader { entry, at, faults: Vec::new() };
    let mount = reader.read();
    (mount, reader.faults)
}

/// The tables of a list; `None` if it is no list of tables.
fn tables(value: &toml::Value) -> Option<Vec<&toml::Table>> {
    value.as_array()?.iter().map(toml::Value::as_table).collect()
}

/// Reads the keys of one `[[endpoint.mount]]`.
struct MountReader<'a> {
    entry: &'a toml::Table,
    at: &'a str,
    faults: Vec<Fault>,
}

impl MountReader<'_> {
    fn read(&mut self) -> Option<Mount> {
        let prefix = self.checked("prefix", |text| {
            text.parse::<TargetName>().map_err(|why| format!("is not a prefix of targets: {why}"))
        });
        let uri = self.checked("uri", check_uri);
        if self.entry.get("uri").is_none() {
            self.fault("uri", "is missing: s3://bucket/prefix/ or file:///folder/");
        }
        let region = self.checked("region", not_empty);
        let endpoint_url = self.checked("endpoint_url", check_endpoint_url);
        let path_style = self.switch("path_style");
        let role_arn = self.checked("role_arn", check_role);
        let external_id = self.checked("external_id", not_empty).map(Secret);
        let request_payer = self.switch("request_payer").unwrap_or(false);
        let expected_bucket_owner = self.checked("expected_bucket_owner", check_account);
        if external_id.is_some() && self.entry.get("role_arn").is_none() {
            self.fault("external_id", "is of no use without role_arn");
        }
        if matches!(uri, Some(StoreUri::File { .. })) {
            self.refuse_s3_keys();
        }
        Some(Mount {
            prefix,
            uri: uri?,
            region,
            endpoint_url,
            path_style,
            role_arn,
            external_id,
            request_payer,
            expected_bucket_owner,
        })
    }

    fn refuse_s3_keys(&mut self) {
        let s3_only = MOUNT_KEYS.iter().filter(|key| !["prefix", "uri"].contains(key));
        for key in s3_only {
            if self.entry.contains_key(*key) {
                self.fault(key, "is for s3:// stores only");
            }
        }
    }

    fn checked<T>(
        &mut self,
        key: &str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = match self.entry.get(key)?.as_str() {
            Some(text) => text,
            None => {
                self.fault(key, "expected a string in quotes");
                return None;
            }
        };
        match check(text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(key, message);
                None
            }
        }
    }

    fn switch(&mut self, key: &str) -> Option<bool> {
        let value = self.entry.get(key)?.as_bool();
        if value.is_none() {
            self.fault(key, "expected true or false");
        }
        value
    }

    fn fault(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push(Fault::new(format!("{}.{key}", self.at), message));
    }
}

fn check_uri(text: &str) -> Result<StoreUri, String> {
    let example = "write s3://bucket/prefix/ or file:///folder/";
    text.parse().map_err(|error: roundhouse_store::Error| format!("{error}; {example}"))
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".into()) } else { Ok(text.to_owned()) }
}

fn check_endpoint_url(text: &str) -> Result<String, String> {
    let rest = text
        .strip_prefix("http://")
        .or_else(|| text.strip_prefix("https://"))
        .ok_or("is not a URL: write http://host:port or https://host")?;
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        // Not repeated: it may hold a password.
        return Err("has a user or password in it; credentials come from the AWS chain".into());
    }
    if authority.is_empty() {
        return Err("has no host".into());
    }
    Ok(text.to_owned())
}

fn check_role(text: &str) -> Result<String, String> {
    if text.starts_with("arn:") && text.contains(":role/") {
        return Ok(text.to_owned());
    }
    Err(format!("'{text}' is not a role: write arn:aws:iam::ACCOUNT:role/NAME"))
}

fn check_account(text: &str) -> Result<String, String> {
    if text.len() == 12 && text.bytes().all(|digit| digit.is_ascii_digit()) {
        return Ok(text.to_owned());
    }
    Err(format!("'{text}' is not an account: write its 12 digits"))
}
