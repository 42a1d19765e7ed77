//! From the settings as written to the settings as meant, with every fault on the way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use roundhouse_models::{DtypeSetting, KvDtype, Quantize};
use roundhouse_residency::{Policy, Replicas};
use roundhouse_tenancy::AuthConfig;
use roundhouse_types::Bytes;
use tracing_subscriber::EnvFilter;

use super::raw::Sources;
use super::units::{parse_address, parse_file};
use super::{
    AccessLog, Cache, Config, Endpoint, Fault, Lane, Listen, Log, LogFormat, Memory, Residency,
    Serving, ShareTensors, Sharing, Shutdown, Store, asynchronous, auth, cloudwatch, container,
    defaults, devices, endpoints, engines, handlers, levels, policy, quotas, sessions, tenants,
    traces,
};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// Resolves every section. The config is complete even with faults; it is only good without.
pub(super) fn resolve(mut sources: Sources<'_>) -> (Config, Vec<Fault>) {
    let container = container::resolve(&mut sources);
    let tls = auth::tls(&mut sources);
    let auth = auth::resolve(&mut sources, container.platform, &tls);
    let listen = listen(&mut sources, container.platform, &auth);
    let endpoints = endpoints::resolve(&mut sources);
    let tenants = tenants::resolve(&mut sources);
    policy::check_endpoints(&tenants, &endpoints, &mut sources);
    let aliases = policy::aliases(&tenants, &endpoints, &mut sources);
    let config = Config {
        listen,
        auth,
        tls,
        endpoints,
        tenants,
        aliases,
        tenant_defaults: quotas::defaults(&mut sources),
        async_dir: sources.optional("async.dir", |text| match text {
            "" => Err("is empty: the path of a folder".to_owned()),
            path => Ok(PathBuf::from(path)),
        }),
        usage: quotas::usage(&mut sources),
        devices: devices::resolve(&mut sources),
        memory: memory(&mut sources),
        cache: cache(&mut sources),
        store: store(&mut sources),
        residency: residency(&mut sources),
        replicas: replicas(&mut sources),
        serving: serving(&mut sources),
        sessions: sessions::resolve(&mut sources, container.platform),
        handlers: handlers::resolve(&mut sources, container.model_dir.as_deref()),
        lane: Lane {
            wedged_after: sources
                .duration("lane.wedged_after", SECOND..=HOUR)
                .unwrap_or(defaults::WEDGED_AFTER),
        },
        shutdown: Shutdown {
            drain_timeout: sources
                .duration("shutdown.drain_timeout", Duration::ZERO..=HOUR)
                .unwrap_or(defaults::DRAIN_TIMEOUT),
        },
        log: log(&mut sources),
        traces: traces::resolve(&mut sources),
        cloudwatch: cloudwatch::resolve(&mut sources),
        container,
    };
    // An automatic budget is known where the server starts, and held against the floors there.
    if let Err(fault) = config.check_floors(config.written_budgets()) {
        sources.faults([fault]);
    }
    if let Err(fault) = config.check_disk_floors() {
        sources.faults([fault]);
    }
    sources.faults(config.burst_faults());
    sources.faults(asynchronous::faults(&config));
    sources.faults(engines::faults(&config));
    let has_own = config.devices.iter().any(|device| !device.id.is_host());
    if !has_own && config.memory.host.is_some_and(|host| host > Bytes::ZERO) {
        let why = "is for models that leave a device with a memory of its own, and there is none";
        sources.fault("memory.host", why);
    }
    if !config.devices.iter().any(|device| device.id.is_host())
        && let Some(key) = config.serves_handlers()
    {
        let why = "Python handlers live in the host's memory: write a [[device]] with id = \"cpu\"";
        sources.fault(key, why);
    }
    (config, sources.into_faults())
}

impl Config {
    /// The key that has Python handlers served, where one does.
    fn serves_handlers(&self) -> Option<String> {
        let asked = |endpoint: &Endpoint| endpoint.handlers == Some(true);
        match self.endpoints.iter().position(asked) {
            _ if self.handlers.enabled => Some("handlers.enabled".into()),
            index => index.map(|index| format!("endpoint[{index}].handlers")),
        }
    }

    /// What all devices are given, where each has its budget written.
    fn written_budgets(&self) -> Option<Bytes> {
        self.devices.iter().map(|device| device.budget).sum()
    }

    /// Whether callers are asked who they are: where not, what tenants may use binds nobody.
    pub(crate) fn asks_callers(&self) -> bool {
        self.auth.asks()
    }

    /// Whether devices of this budget together can keep what tenants are promised; where the
    /// budget is not known, whether that can be counted at all.
    ///
    /// # Errors
    /// The fault, with both sizes.
    pub(crate) fn check_floors(&self, budget: Option<Bytes>) -> Result<(), Fault> {
        let mut floors = self.tenants.iter().map(|tenant| tenant.floor);
        let sum = floors.try_fold(Bytes::ZERO, |sum, floor| sum.checked_add(floor));
        let Some(sum) = sum else {
            return Err(Fault::new("tenant", "the floors sum up to more than can be counted"));
        };
        match budget {
            Some(budget) if sum > budget => {
                let message = format!("the floors sum up to {sum}, and models may take {budget}");
                Err(Fault::new("tenant", message))
            }
            _ => Ok(()),
        }
    }
}

impl Config {
    /// Whether the disk cache holds what tenants are promised of it, where its size is written.
    ///
    /// # Errors
    /// The fault, with both sizes.
    pub(crate) fn check_disk_floors(&self) -> Result<(), Fault> {
        let mut floors = self.tenants.iter().map(|tenant| tenant.disk_floor);
        let sum = floors.try_fold(Bytes::ZERO, |sum, floor| sum.checked_add(floor));
        let fits = match (sum, self.cache.size) {
            (None, _) => {
                return Err(Fault::new(
                    "tenant",
                    "the floors on disk sum up to more than can be counted",
                ));
            }
            (Some(sum), Some(size)) if sum > size => Err((sum, size)),
            _ => Ok(()),
        };
        fits.map_err(|(sum, size)| {
            let message =
                format!("the floors on disk sum up to {sum}, and the disk cache may hold {size}");
            Fault::new("tenant", message)
        })
    }
}

fn listen(sources: &mut Sources<'_>, platform: bool, auth: &AuthConfig) -> Listen {
    let data = data_address(sources, platform);
    let admin = sources.optional("listen.admin", parse_address).unwrap_or(defaults::ADMIN);
    let health = sources.optional("listen.health", parse_address);
    let insecure_no_auth = sources.switch("listen.insecure_no_auth").unwrap_or(false);
    if !insecure_no_auth {
        if !platform && auth.anonymous && !data.ip().is_loopback() {
            sources.fault("listen.data", beyond_loopback(data));
        }
        // SageMaker is the door of the data port only, and operators' keys are in the file of keys.
        if auth.keys.is_none() && !admin.ip().is_loopback() {
            sources.fault("listen.admin", beyond_loopback(admin));
        }
    }
    let taken = |one: SocketAddr, other: SocketAddr| one == other && one.port() != 0;
    if taken(admin, data) {
        sources.fault("listen.admin", format!("{admin} is the data port's address too"));
    }
    if let Some(health) = health
        && (taken(health, data) || taken(health, admin))
    {
        sources.fault("listen.health", format!("{health} is another port's address too"));
    }
    let admin_hosts = auth::admin_hosts(sources);
    let max_connections = sources
        .count("listen.max_connections", 16..=1_000_000)
        .unwrap_or(defaults::MAX_CONNECTIONS);
    Listen { data, admin, health, admin_hosts, insecure_no_auth, max_connections }
}

/// On its platform SageMaker names the port, and all interfaces are meant.
fn data_address(sources: &mut Sources<'_>, platform: bool) -> SocketAddr {
    const KEY: &str = "listen.data";
    if let Some(said) = sources.outside_file(KEY) {
        return sources.read(KEY, said, parse_address).unwrap_or(defaults::DATA);
    }
    let everywhere = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    if platform && let Some(text) = sources.variable("SAGEMAKER_BIND_TO_PORT") {
        match text.trim().parse() {
            Ok(port) => return everywhere(port),
            Err(_) => {
                sources.fault(KEY, format!("SAGEMAKER_BIND_TO_PORT is not a port: '{text}'"));
            }
        }
    }
    let in_file = sources.in_file(KEY).and_then(|said| sources.read(KEY, said, parse_address));
    in_file.unwrap_or(if platform { everywhere(defaults::CONTAINER_PORT) } else { defaults::DATA })
}

fn beyond_loopback(address: SocketAddr) -> String {
    format!(
        "{address} is reachable from outside and nobody would be asked who they are; say who may \
         call (`serve --keys`, or another key of [auth]), listen on 127.0.0.1 behind a proxy that asks, or \
         say --insecure-no-auth"
    )
}

fn memory(sources: &mut Sources<'_>) -> Memory {
    Memory {
        host: sources.size("memory.host", Bytes::ZERO..=Bytes::gib(1 << 20)),
        witness_every: sources
            .duration("memory.witness_every", Duration::ZERO..=HOUR)
            .unwrap_or(defaults::WITNESS_EVERY),
        witness_tolerance: sources
            .count("memory.witness_tolerance", 1..=1000)
            .and_then(|percent| u64::try_from(percent).ok())
            .unwrap_or(defaults::WITNESS_TOLERANCE),
        yield_to_others: sources.switch("memory.yield_to_others").unwrap_or(true),
        share_tensors: sources.optional("memory.share_tensors", parse_share).unwrap_or_default(),
    }
}

fn parse_share(text: &str) -> Result<ShareTensors, String> {
    match text {
        "all" => Ok(ShareTensors::All),
        "tenant" => Ok(ShareTensors::Tenant),
        "off" => Ok(ShareTensors::Off),
        _ => Err(format!("'{text}' is not one of all, tenant and off")),
    }
}

fn cache(sources: &mut Sources<'_>) -> Cache {
    let dir = sources.optional("cache.dir", |text| match text {
        "" => Err("is empty".into()),
        _ => Ok(PathBuf::from(text)),
    });
    Cache {
        dir: dir.unwrap_or_else(|| platform_cache(sources)),
        size: sources.size("cache.size", Bytes::mib(1)..=Bytes::gib(1 << 20)),
        max_unpacked: sources.size("cache.max_unpacked", Bytes::mib(1)..=Bytes::gib(1 << 20)),
    }
}

fn platform_cache(sources: &Sources<'_>) -> PathBuf {
    // The XDG specification says that relative paths are to be ignored.
    let folder = |name| sources.variable(name).map(PathBuf::from).filter(|it| it.is_absolute());
    folder("XDG_CACHE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".cache")))
        .map_or_else(|| defaults::SYSTEM_CACHE.into(), |cache| cache.join("roundhouse"))
}

fn store(sources: &mut Sources<'_>) -> Store {
    let store = Store {
        // S3 allows no more than 5 GiB per read; below 64 KiB each read is all overhead.
        part_size: sources
            .size("store.part_size", Bytes(64 << 10)..=Bytes::gib(1))
            .unwrap_or(defaults::PART_SIZE),
        parts_in_flight: sources
            .count("store.parts_in_flight", 1..=512)
            .unwrap_or(defaults::PARTS_IN_FLIGHT),
        bytes_in_flight: sources
            .size("store.bytes_in_flight", Bytes::mib(1)..=Bytes::gib(64))
            .unwrap_or(defaults::BYTES_IN_FLIGHT),
        catalogue_ttl: sources
            .duration("store.catalogue_ttl", Duration::ZERO..=HOUR)
            .unwrap_or(defaults::CATALOGUE_TTL),
        negative_ttl: sources
            .duration("store.negative_ttl", Duration::ZERO..=2 * SECOND)
            .unwrap_or(defaults::NEGATIVE_TTL),
        settle: sources.duration("store.settle", Duration::ZERO..=HOUR).unwrap_or(defaults::SETTLE),
        update_settle: sources
            .duration("store.update_settle", Duration::ZERO..=HOUR)
            .unwrap_or(defaults::UPDATE_SETTLE),
        stall_timeout: sources
            .duration("store.stall_timeout", SECOND..=HOUR)
            .unwrap_or(defaults::STALL_TIMEOUT),
        max_retries: sources
            .count("store.max_retries", 0..=100)
            .and_then(|retries| u32::try_from(retries).ok())
            .unwrap_or(defaults::MAX_RETRIES),
    };
    if store.bytes_in_flight < store.part_size {
        sources
            .fault("store.bytes_in_flight", "is less than store.part_size: no part could be read");
    }
    store
}

fn residency(sources: &mut Sources<'_>) -> Residency {
    Residency {
        load_timeout: sources
            .duration("residency.load_timeout", SECOND..=DAY)
            .unwrap_or(defaults::LOAD_TIMEOUT),
        refresh_every: sources
            .duration("residency.refresh_every", SECOND..=DAY)
            .unwrap_or(defaults::REFRESH_EVERY),
        idle_ttl: sources.duration("residency.idle_ttl", SECOND..=30 * DAY),
        minimum_residence: sources
            .duration("residency.minimum_residence", Duration::ZERO..=DAY)
            .unwrap_or(Duration::ZERO),
        max_waiters: sources
            .count("residency.max_waiters", 1..=1_000_000)
            .unwrap_or(defaults::MAX_WAITERS),
        concurrent_fetches: sources
            .count("residency.concurrent_fetches", 1..=64)
            .unwrap_or(defaults::CONCURRENT_FETCHES),
        concurrent_loads: sources
            .count("residency.concurrent_loads", 1..=64)
            .unwrap_or(defaults::CONCURRENT_LOADS),
        load_niceness: sources
            .count("residency.load_niceness", 0..=19)
            .unwrap_or(defaults::LOAD_NICENESS),
        policy: sources.optional("residency.policy", policy).unwrap_or(defaults::POLICY),
        collation: sources.switch("residency.collation").unwrap_or(true),
        overtaken_at_most: sources
            .count("residency.overtaken_at_most", 0..=1_000_000)
            .unwrap_or(defaults::OVERTAKEN_AT_MOST),
        overtaken_within: sources
            .duration("residency.overtaken_within", Duration::ZERO..=HOUR)
            .unwrap_or(defaults::OVERTAKEN_WITHIN),
    }
}

fn replicas(sources: &mut Sources<'_>) -> Replicas {
    let default = Replicas::default();
    let at_leases = sources.count("replicas.at_leases", 1..=1_000_000);
    let at_leases = at_leases.and_then(|leases| u32::try_from(leases).ok());
    Replicas {
        at_leases: at_leases.unwrap_or(default.at_leases),
        at_most: sources.count("replicas.max", 1..=64).unwrap_or(default.at_most),
    }
}

fn policy(text: &str) -> Result<Policy, String> {
    match text {
        "greedy-dual" => Ok(Policy::GreedyDual),
        "lru" => Ok(Policy::LeastRecentlyUsed),
        _ => Err(format!("'{text}' is not a policy: write greedy-dual or lru")),
    }
}

fn parse_dtype(text: &str) -> Result<DtypeSetting, String> {
    DtypeSetting::named(text).map_err(|known| format!("is '{text}'; {known}"))
}

fn parse_quantize(text: &str) -> Result<Option<Quantize>, String> {
    Quantize::named(text).map_err(|known| format!("is '{text}'; {known}"))
}

fn parse_kv_dtype(text: &str) -> Result<Option<KvDtype>, String> {
    KvDtype::named(text).map_err(|known| format!("is '{text}'; {known}"))
}

fn sharing(sources: &mut Sources<'_>, name: &'static str) -> Sharing {
    let read = sources.optional(name, |text| match text {
        "tenant" => Ok(Sharing::Tenant),
        "endpoint" => Ok(Sharing::Endpoint),
        other => Err(format!("is '{other}'; it is tenant or endpoint")),
    });
    read.unwrap_or_default()
}

fn serving(sources: &mut Sources<'_>) -> Serving {
    let serving = Serving {
        request_timeout: sources
            .duration("serving.request_timeout", SECOND..=DAY)
            .unwrap_or(defaults::REQUEST_TIMEOUT),
        stream_timeout: sources
            .duration("serving.stream_timeout", SECOND..=DAY)
            .unwrap_or(defaults::STREAM_TIMEOUT),
        hold: sources.duration("serving.hold", Duration::ZERO..=DAY).unwrap_or(defaults::HOLD),
        max_body: sources
            .size("serving.max_body", Bytes(1 << 10)..=Bytes::gib(1))
            .unwrap_or(defaults::MAX_BODY),
        max_queue: sources.count("serving.max_queue", 1..=1_000_000).unwrap_or(defaults::MAX_QUEUE),
        response_headers: sources.switch("serving.response_headers").unwrap_or(true),
        share_headers: sharing(sources, "serving.share_headers"),
        share_prefixes: sharing(sources, "serving.share_prefixes"),
        template_process: sources.switch("serving.template_process").unwrap_or(true),
        template_memory: sources
            .size("serving.template_memory", Bytes::mib(16)..=Bytes::gib(1 << 20))
            .unwrap_or(defaults::TEMPLATE_MEMORY),
        context: sources.count("serving.context", 16..=16 << 20).unwrap_or(defaults::CONTEXT),
        kv_sequences: sources
            .count("serving.kv_sequences", 1..=4096)
            .unwrap_or(defaults::KV_SEQUENCES),
        step_tokens: sources
            .count("serving.step_tokens", 16..=1 << 20)
            .unwrap_or(defaults::STEP_TOKENS),
        step_time: sources
            .duration("serving.step_time", Duration::ZERO..=HOUR)
            .unwrap_or(defaults::STEP_TIME),
        max_running: sources
            .count("serving.max_running", 1..=4096)
            .unwrap_or(defaults::MAX_RUNNING),
        dtype: sources.optional("serving.dtype", parse_dtype).unwrap_or_default(),
        quantize: sources.optional("serving.quantize", parse_quantize).unwrap_or_default(),
        kv_dtype: sources.optional("serving.kv_cache_dtype", parse_kv_dtype).unwrap_or_default(),
    };
    if serving.hold > serving.request_timeout {
        sources.fault(
            "serving.hold",
            "is longer than serving.request_timeout: the request would end before it is told why",
        );
    }
    if serving.max_running > serving.step_tokens {
        sources.fault(
            "serving.max_running",
            "is more than serving.step_tokens: each running sequence needs a token of each step",
        );
    }
    serving
}

fn log(sources: &mut Sources<'_>) -> Log {
    let format = sources.optional("log.format", |text| match text {
        "human" => Ok(LogFormat::Human),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("'{text}' is not a format: human or json")),
    });
    let place = |text: &str| match text {
        "stderr" => Ok(AccessLog::Stderr),
        "off" => Ok(AccessLog::Off),
        "" => Err("is empty: stderr, off or a file".into()),
        path => parse_file(path, "stderr, off").map(AccessLog::File),
    };
    let access = sources.optional("log.access", place);
    let audit = sources.optional("log.audit", place);
    Log {
        format: format.unwrap_or(LogFormat::Human),
        level: log_level(sources),
        access: access.unwrap_or(AccessLog::Stderr),
        audit: audit.unwrap_or(AccessLog::Stderr),
    }
}

/// `RUST_LOG` is accepted because hands know it; our own names come first.
fn log_level(sources: &mut Sources<'_>) -> String {
    const KEY: &str = "log.level";
    let check = |text: &str| {
        levels::check(text)?;
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!(
                "'{text}' is not a filter ({error}): like info or info,roundhouse_store=debug"
            )),
        }
    };
    if let Some(said) = sources.outside_file(KEY) {
        return sources.read(KEY, said, check).unwrap_or_default();
    }
    if let Some(text) = sources.variable("RUST_LOG") {
        return check(&text).unwrap_or_else(|message| {
            sources.fault(KEY, format!("{message} (set by RUST_LOG)"));
            String::new()
        });
    }
    let said = sources.said(KEY).and_then(|said| sources.read(KEY, said, check));
    said.unwrap_or_else(|| defaults::LOG_LEVEL.into())
}
