//! From the settings as they are meant to what each part calls them.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use roundhouse_engine::{Claim, EngineConfig};
use roundhouse_gateway::GatewayConfig;
use roundhouse_models::{Card, DeviceMemory, LoadSettings};
use roundhouse_residency::{Collation, TenantLimits, tenant};
use roundhouse_serving::{ClaimFn, InProcess};
use roundhouse_store::{CatalogConfig, DiskCache, DiskLimits, RetryConfig};
use roundhouse_tenancy::{Current, Policy, Standing};
use roundhouse_types::{Bytes, EndpointName, TargetName, TenantName};
use tracing::warn;

use crate::config::{Config, EngineRule, OnDelete, Sharing, Tenant, VersionRule};
use crate::error::Error;
use crate::templates::{self, Processes, Templates};
use crate::witness::WitnessConfig;

pub(crate) fn load(config: &Config) -> LoadSettings {
    LoadSettings {
        context: config.serving.context,
        kv_sequences: config.serving.kv_sequences,
        step_tokens: config.serving.step_tokens,
        step_rows: config.serving.max_running,
        dtype: config.serving.dtype,
        quantize: config.serving.quantize,
        kv_dtype: config.serving.kv_dtype,
        idle_ttl: config.residency.idle_ttl,
        preset: config.container.preset,
        cards: config.devices.iter().any(|device| device.id.is_card()),
    }
}

pub(super) fn engine(config: &Config) -> EngineConfig {
    let at_least_one = |n: usize| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
    EngineConfig {
        max_running: at_least_one(config.serving.max_running),
        max_waiting: at_least_one(config.serving.max_queue),
        step_time: config.serving.step_time,
        ..EngineConfig::default()
    }
}

/// What all handlers of the process get; none can take more than `budget`, the largest device's.
pub(super) fn workers(config: &Config, budget: Bytes) -> Result<roundhouse_workers::Config, Error> {
    Ok(roundhouse_workers::Config { exe: own_executable()?, ..handlers(config, budget) })
}

/// Our own binary, which confines handlers' processes and keeps engines' and containers'. By the path
/// that it was started from: after it was replaced the kernel knows none.
pub(super) fn own_executable() -> Result<PathBuf, Error> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found.clone());
    }
    let found = std::env::current_exe();
    let found = found.map_err(|source| Error::io("cannot find our own binary", source))?;
    Ok(FOUND.get_or_init(|| found).clone())
}

/// The same for who starts none of them: without our own binary.
pub(crate) fn handlers(config: &Config, budget: Bytes) -> roundhouse_workers::Config {
    let of = &config.handlers;
    roundhouse_workers::Config {
        exe: PathBuf::new(),
        dir: config.cache.dir.join("handlers"),
        python: of.python.clone(),
        isolation: of.isolation,
        uids: roundhouse_workers::DYNAMIC_USERS,
        assumed_memory: of.memory,
        max_memory: of.max_memory.map_or(budget, |most| most.min(budget)),
        workers: of.workers,
        max_workers: of.max_workers,
        time_limit: of.time_limit,
        start_limit: of.start_limit,
        max_response: of.max_response,
        max_temp: of.max_temp,
        processes: of.processes,
        max_queue: config.serving.max_queue,
        packages: of.packages.clone(),
        warm: of.warm.clone(),
    }
}

pub(crate) fn residency(config: &Config) -> roundhouse_residency::Config {
    let of = &config.residency;
    roundhouse_residency::Config {
        max_fetches: of.concurrent_fetches,
        max_loads: of.concurrent_loads,
        max_handler_loads: config.handlers.concurrent_starts,
        max_waiters: of.max_waiters,
        max_waiters_per_model: of.max_waiters,
        load_timeout: of.load_timeout,
        refresh_every: of.refresh_every,
        idle_ttl: of.idle_ttl,
        minimum_residence: of.minimum_residence,
        policy: of.policy,
        collation: Collation {
            most_waited_first: of.collation,
            overtaken_at_most: u32::try_from(of.overtaken_at_most).unwrap_or(u32::MAX),
            overtaken_within: of.overtaken_within,
        },
        tenants: tenants(config),
        drain_deleted: drain_deleted(config),
        replicas: Some(config.replicas),
        ..roundhouse_residency::Config::default()
    }
}

/// What tenants are promised and asked.
pub(super) fn tenants(config: &Config) -> BTreeMap<String, TenantLimits> {
    config.tenants.iter().map(limits).collect()
}

fn limits(tenant: &Tenant) -> (String, TenantLimits) {
    let limits = TenantLimits {
        floor: tenant.floor,
        ceiling: tenant.ceiling,
        share: tenant.share,
        load_bandwidth: tenant.load_bandwidth,
    };
    (tenant.name.clone(), limits)
}

/// Tells the disk cache what concerns it of tenants' limits.
pub(super) fn tell_disk(cache: &DiskCache, config: &Config) {
    let tenants = config.tenants.iter();
    let bandwidths = tenants.filter_map(|it| Some((it.name.clone(), it.load_bandwidth?)));
    cache.set_load_bandwidths(&bandwidths.collect());
    let limits = config
        .tenants
        .iter()
        .map(|it| (it.name.clone(), DiskLimits { floor: it.disk_floor, ceiling: it.disk_ceiling }));
    cache.set_disk_limits(limits.filter(|(_, it)| *it != DiskLimits::default()).collect());
}

pub(super) fn drain_deleted(config: &Config) -> BTreeSet<EndpointName> {
    let drains = config.endpoints.iter().filter(|it| it.versions.on_delete == OnDelete::Drain);
    drains.map(|endpoint| endpoint.name.clone()).collect()
}

/// Targets by the names that adapters have for them.
pub(super) fn bases(config: &Config) -> BTreeMap<EndpointName, BTreeMap<String, TargetName>> {
    config.endpoints.iter().map(|it| (it.name.clone(), it.bases.clone())).collect()
}

/// Engines that are started for targets of each endpoint.
pub(super) fn engines(config: &Config) -> BTreeMap<EndpointName, Vec<EngineRule>> {
    config.endpoints.iter().map(|it| (it.name.clone(), it.engines.clone())).collect()
}

/// What each endpoint does when the store changes.
pub(super) fn version_rules(config: &Config) -> BTreeMap<EndpointName, VersionRule> {
    config.endpoints.iter().map(|endpoint| (endpoint.name.clone(), endpoint.versions)).collect()
}

/// `configured` is what all devices and copies in the host's memory may take together.
pub(super) fn witness(config: &Config, configured: Bytes) -> WitnessConfig {
    WitnessConfig {
        every: config.memory.witness_every,
        tolerance: config.memory.witness_tolerance,
        yields: config.memory.yield_to_others,
        in_flight: config.store.bytes_in_flight,
        configured,
    }
}

/// The memories of all devices, of which these are cards.
pub(super) fn memories(config: &Config, cards: &[Card]) -> impl Iterator<Item = DeviceMemory> {
    config.devices.iter().map(|device| {
        let card = cards.iter().find(|card| card.id() == device.id);
        let other = || DeviceMemory::new(device.id, device.copy_bandwidth);
        card.map_or_else(other, DeviceMemory::of_card)
    })
}

pub(super) fn dispatch(config: &Config) -> roundhouse_serving::Config {
    roundhouse_serving::Config {
        max_in_flight_per_model: config.serving.max_queue,
        ..roundhouse_serving::Config::default()
    }
}

/// Who gets how much of a device: callers by their names; where nobody is asked who they are, the
/// first segments of targets.
pub(super) fn claims(config: &Config, policy: Arc<Current<Policy>>) -> ClaimFn {
    let own_prefixes = own_prefixes(config);
    Arc::new(move |caller, model| {
        let first = || tenant(model).parse().ok();
        let tenant: Option<TenantName> = caller.tenant.clone().or_else(first);
        let policy = policy.get();
        let standing = tenant.as_ref().map(|tenant| policy.standing(tenant)).unwrap_or_default();
        let Standing { share, priority } = standing;
        Claim { tenant, share: thousandths(share), priority, own_prefixes, spent: None }
    })
}

/// Where chat templates are rendered.
pub(super) fn templates(config: &Config) -> Templates {
    match config.serving.template_process {
        true => Templates::Apart(Processes::new(templates::Settings::new(
            config.serving.template_memory,
        ))),
        false => {
            warn!(
                "chat templates are rendered in this process: one of them can take all of its memory"
            );
            Templates::Here(InProcess::default())
        }
    }
}

/// Whether what is computed of one tenant's prompts is kept from others.
pub(crate) fn own_prefixes(config: &Config) -> bool {
    config.serving.share_prefixes == Sharing::Tenant
}

/// Who may use what.
pub(crate) fn policy(config: &Config) -> Policy {
    let tenants = config.tenants.iter();
    let tenants =
        tenants.filter_map(|tenant| Some((tenant.name.parse().ok()?, tenant.grants.clone())));
    let bases = config.endpoints.iter().map(|it| {
        let named = it.bases.values().cloned().collect();
        (it.name.clone(), named)
    });
    Policy::new(tenants, config.asks_callers())
        .with_aliases(config.aliases.clone())
        .with_bases(bases.collect())
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share is between a hundredth and a hundred"
)]
fn thousandths(share: f64) -> NonZeroU32 {
    NonZeroU32::new((share * 1000.0).round() as u32).unwrap_or(NonZeroU32::MIN)
}

pub(super) fn gateway(config: &Config) -> GatewayConfig {
    GatewayConfig {
        body_limit: config.serving.max_body,
        invoke_timeout: config.serving.request_timeout,
        stream_timeout: config.serving.stream_timeout,
        hold: config.serving.hold,
        gathered_limit: config.handlers.max_response,
        served_headers: config.serving.response_headers,
        own_waits_only: config.serving.share_headers == Sharing::Tenant,
        // Read where it was written.
        default_accept: config.container.default_accept.as_deref().and_then(|it| it.parse().ok()),
        ..GatewayConfig::default()
    }
}

pub(super) fn catalogue(config: &Config) -> CatalogConfig {
    CatalogConfig {
        ttl: config.store.catalogue_ttl,
        negative_ttl: config.store.negative_ttl,
        settle: config.store.settle,
        update_settle: config.store.update_settle,
        retry: RetryConfig {
            attempts: config.store.max_retries.saturating_add(1),
            stall: config.store.stall_timeout,
            ..RetryConfig::default()
        },
        ..CatalogConfig::default()
    }
}
