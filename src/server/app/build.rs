//! From settings to parts.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use roundhouse_engine::{EngineConfig, Lane, LaneConfig};
use roundhouse_gateway::{
    ContainerFace, Cut, CutOff, GatewayState, Later, Offered, PlatformFace, Sessions,
};
use roundhouse_residency::Residency;
use roundhouse_serving::Dispatcher;
use roundhouse_store::{
    ArtifactStore, Catalog, DiskCache, FileStore, MountConfig, S3Store, StoreUri,
};
use roundhouse_tenancy::{Current, Identity};
use roundhouse_types::{Bytes, DeviceId, EndpointName, ErrorKind, Failure};
use tracing::{info, warn};

use super::asynchronous::Deferrals;
use super::behind::{self, Behinds};
use super::budgets::{self, Budgets};
use super::capture::Captures;
use super::disk::Disk;
use super::live::Live;
use super::single::{self, Single};
use super::traces::Tracing;
use super::{accounts, cards, described, faces, settings, warm};
use crate::admin::{Admin, ContainersFn, Vitals};
use crate::cloudwatch::{CloudWatch, Sending, Told};
use crate::config::{Config, Endpoint};
use crate::container::PlatformModels;
use crate::error::Error;
use crate::loader::{Aside, Bases, Handlers, LocalModels, ModelLoader, Source};
use crate::witness::Witness;
use crate::{exporter, limits};

/// The endpoint that the container contract's models belong to.
const CONTAINER_ENDPOINT: &str = "container";
/// And the bases of its adapters. No request can name it.
const BASES_ENDPOINT: &str = "container-bases";

/// Keys for every mount, in place of the AWS chain: the demo's own.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

/// The parts that the ports serve.
pub(crate) struct App {
    pub(crate) data: Router,
    pub(crate) admin: Admin,
    /// What changes of the settings are applied to.
    pub(super) live: Live,
    /// Ends answers that are under way.
    pub(super) cut_off: CutOff,
    /// Still to be loaded.
    pub(super) single: Option<Single>,
    /// Sends spans of requests.
    pub(super) tracing: Tracing,
    /// Sends embedded metrics.
    pub(super) cloudwatch: Sending,
}

/// Every endpoint's catalogue.
pub(crate) type Catalogs = BTreeMap<EndpointName, Arc<Catalog>>;

/// Starts everything but the ports.
pub(super) async fn build(
    mut config: Config,
    credentials: Option<Credentials>,
    identity: Arc<Identity>,
) -> Result<App, Error> {
    let cloudwatch = CloudWatch::of(config.cloudwatch.as_ref());
    let metrics = exporter::install(cloudwatch.book())?;
    described::describe_metrics();
    let accounts = accounts::open(&config).await?;
    let cards = cards::open(&mut config.devices).await?;
    let budgets = budgets(&config)?;
    let lanes = start_lanes(&config, &budgets)?;
    prime(&lanes).await?;
    let vitals = Arc::new(Vitals::new(lanes.clone()));

    let fetches_bases = matches!(config.container.base_store, Some(StoreUri::S3 { .. }))
        && config.container.contract;
    let has_stores = config.endpoints.iter().any(|endpoint| endpoint.containers.is_none());
    let disk = Disk::default();
    if has_stores || fetches_bases {
        settings::tell_disk(disk.open(&config).await?, &config);
    }
    let cache = disk.opened();
    let catalogs = match cache {
        Some(cache) => connect(&config, cache, credentials.as_ref()).await?,
        None => BTreeMap::new(),
    };
    let handlers = handlers(&config, budgets.of_handlers()).await?;
    let single = open_single(&config).await?;
    let local = single.as_ref().map_or_else(Arc::default, |single| single.local.clone());
    let container_name =
        single.as_ref().map_or_else(container_endpoint, |single| single.model.endpoint.clone());
    let here = (&container_name, &local, single.as_ref());
    let (sources, bases) = sources(&config, cache, &catalogs, here).await?;
    let loader = ModelLoader::new(
        sources,
        lanes,
        settings::load(&config),
        settings::engine(&config),
        handlers.clone(),
    );
    let rules = settings::version_rules(&config);
    let loader = loader.sharing(config.memory.share_tensors);
    let loader = loader.with_memories(settings::memories(&config, &cards));
    let loader = loader.with_rules(rules, config.store.update_settle);
    let policy = Arc::new(Current::new(settings::policy(&config)));
    let exe = settings::own_executable()?;
    let templates = settings::templates(&config);
    let loader = loader.with_accounts(accounts.clone()).with_templates(templates.clone());
    let loader = loader.with_engines((exe, &config.cache.dir), settings::engines(&config));
    let loader = Arc::new(loader.with_bases(bases).under(policy.clone()));
    let limits =
        roundhouse_residency::Config { host_budget: budgets.host, ..settings::residency(&config) };
    let aside = Aside::start(loader.clone(), config.residency.load_niceness)?;
    let residency = Residency::start(limits, budgets.devices.clone(), Arc::new(aside));
    loader.asks(residency.clone());
    let watched = settings::witness(&config, budgets.in_host_memory() + budgets.host);
    let (witness, cards) = Witness::start(watched, budgets, cards).await?;
    tokio::spawn(witness.clone().watch(cards, residency.clone(), loader.clone()));
    if let Some(workers) = handlers.workers.clone().filter(|workers| workers.warm().is_some()) {
        tokio::spawn(warm::give_room(residency.clone(), workers));
    }
    let dispatcher = Arc::new(Dispatcher::new(
        residency.clone(),
        settings::dispatch(&config),
        settings::claims(&config, policy.clone()),
        Arc::new(templates),
    ));

    let container = (config.container.contract || single.is_some()).then(|| {
        let models = PlatformModels::new(container_name, local, residency.clone(), loader.clone());
        container_face(&config, models, single.as_ref())
    });
    let platform = container.as_ref().map(|_| {
        let metrics = metrics.clone();
        let metrics = Arc::new(move || metrics.render());
        PlatformFace { metrics, transforms: config.serving.max_running }
    });
    let captures = Captures::default();
    let prepared = captures.prepared(&config).await?;
    let captured = prepared.captures();
    captures.put(prepared);
    let mut endpoints = faces::endpoints(&config, &catalogs, &handlers, &loader, &captured);
    let behinds = Behinds::default();
    behinds.put(behinds.prepared(&config)?);
    endpoints.extend(behind::faces(&config, &behinds.get(), &captured));
    if let Some(single) = &single {
        vitals.await_model();
        endpoints.push(single.face(config.handlers.enabled, &loader));
    }
    let offered = Arc::new(Current::new(Offered { endpoints, policy: policy.get() }));
    let health = vitals.clone();
    let (cut_off, cut) = Cut::pair();
    let deferrals = Deferrals::of(&config, credentials.as_ref());
    deferrals.apply(&config).await?;
    let tracing = Tracing::start(config.traces.as_ref())?;
    let (asked, own_prefixes) = (loader.clone(), settings::own_prefixes(&config));
    let state = GatewayState {
        config: settings::gateway(&config),
        identity: identity.clone(),
        offered: offered.clone(),
        invoke: Arc::new(move |invocation| {
            // No engine is started for what it would refuse.
            let refused = asked.refusal(&invocation, own_prefixes);
            let dispatcher = dispatcher.clone();
            Box::pin(async move {
                match refused {
                    Some(failure) => Err(failure),
                    None => dispatcher.invoke(invocation).await,
                }
            })
        }),
        accounts: accounts.clone(),
        health: Arc::new(move || faces::health(&health)),
        access: cloudwatch
            .before(tracing.before(faces::access_log(&config.log.access)?, loader.recent())),
        tracer: tracing.tracer.clone(),
        defer: Some(deferrals.taking()),
        container,
        sessions: Sessions::new(config.sessions.clone()),
        cut,
        platform,
    };
    deferrals.start(Later::new(&state));
    let cloudwatch = cloudwatch.send(Told {
        offered: offered.clone(),
        residency: residency.clone(),
        disk: disk.clone(),
        folder: config.cache.dir.clone(),
    });
    let catalogs = Arc::new(Current::new(catalogs));
    let containers: ContainersFn = {
        let (behinds, loader) = (behinds.clone(), loader.clone());
        Box::new(move || behinds.seen().into_iter().chain(loader.engines_seen()).collect())
    };
    let live = Live {
        residency: residency.clone(),
        loader: loader.clone(),
        disk: disk.clone(),
        catalogs: catalogs.clone(),
        offered,
        policy,
        handlers,
        credentials,
        identity,
        captures,
        behinds,
        accounts: accounts.clone(),
        deferrals,
        budget: witness.configured().on_devices(),
        single: single.clone(),
    };
    let admin = Admin {
        residency,
        loader,
        catalogs,
        disk,
        vitals,
        witness,
        accounts,
        metrics,
        containers,
        reload: None,
    };
    let data = roundhouse_gateway::router(state);
    Ok(App { data, admin, live, single, cut_off, tracing, cloudwatch })
}

/// What endpoints load from, the container's own and a base's among them, and which models adapters
/// mean. `here`: the container's endpoint, the folders that it is told, and its one model.
async fn sources(
    config: &Config,
    cache: Option<&DiskCache>,
    catalogs: &Catalogs,
    (name, local, single): (&EndpointName, &Arc<LocalModels>, Option<&Single>),
) -> Result<(BTreeMap<EndpointName, Source>, Bases), Error> {
    let mut sources: BTreeMap<EndpointName, Source> = BTreeMap::new();
    if let Some(cache) = cache {
        for (name, catalog) in catalogs {
            sources.insert(name.clone(), Source::Store(catalog.clone(), cache.clone()));
        }
    }
    let mut bases = Bases { named: settings::bases(config), ..Bases::default() };
    if config.container.contract || single.is_some() {
        sources.insert(name.clone(), Source::Local(local.clone()));
    }
    if let Some(Single { model, .. }) = single {
        bases.only.insert(model.endpoint.clone(), model.target.clone());
    }
    if config.container.contract
        && let Some((base, source)) = base_store(config, cache).await?
    {
        bases.elsewhere.insert(name.clone(), base.clone());
        sources.insert(base, source);
    }
    Ok((sources, bases))
}

/// The container contract's face, or that of a server with one model.
fn container_face(
    config: &Config,
    models: PlatformModels,
    single: Option<&Single>,
) -> ContainerFace {
    if let Some(single) = single {
        models.has_found(&single.adapters, &single.model);
    }
    let models = Arc::new(models);
    ContainerFace {
        loads: config.container.contract,
        models_root: config.container.models_root.clone(),
        handlers: config.handlers.enabled,
        adapters: models.clone(),
        models,
    }
}

/// The one model of a server that has but one.
async fn open_single(config: &Config) -> Result<Option<Single>, Error> {
    let Some(folder) = config.container.model_dir.clone() else { return Ok(None) };
    let opened = tokio::task::spawn_blocking(move || Single::open(&folder)).await;
    let opened = opened.map_err(|error| Failure::new(ErrorKind::Internal, error.to_string()))?;
    Ok(Some(opened?))
}

fn container_endpoint() -> EndpointName {
    CONTAINER_ENDPOINT.parse().expect("a plain word is a name")
}

/// What models may take, where that holds what tenants are promised.
fn budgets(config: &Config) -> Result<Budgets, Error> {
    let faults = budgets::faults(config, &limits::Memory::read());
    if !faults.is_empty() {
        return Err(Error::Settings(faults));
    }
    let budgets = budgets::budgets(config)?;
    if budgets.beyond > Bytes::ZERO {
        let (devices, host, beyond) = (budgets.on_devices(), budgets.host, budgets.beyond);
        match config.memory.yield_to_others && !config.memory.witness_every.is_zero() {
            true => {
                warn!(%devices, %host, %beyond, "budgets are beyond what can safely be had now: models are given less");
            }
            false => {
                warn!(%devices, %host, %beyond, "budgets are beyond what can safely be had now: the system ends the process when it runs out");
            }
        }
    }
    Ok(budgets)
}

/// A lane for each device. Simulated ones compute on the processor's one pool of threads: steps
/// of several lanes are interleaved there, each slower and none different.
fn start_lanes(config: &Config, budgets: &Budgets) -> Result<BTreeMap<DeviceId, Arc<Lane>>, Error> {
    let settings = LaneConfig { wedged_after: config.lane.wedged_after, ..LaneConfig::default() };
    let mut lanes = BTreeMap::new();
    for (device, budget) in &budgets.devices {
        info!(%device, %budget, "device");
        let lane = Lane::start(*device, settings)
            .map_err(|source| Error::io("cannot start the lane's thread", source))?;
        lanes.insert(*device, Arc::new(lane));
    }
    if budgets.host > Bytes::ZERO {
        info!(budget = %budgets.host, "copies in the host's memory");
    }
    Ok(lanes)
}

/// Brings up on each lane what its models share, so that it is in the baseline.
async fn prime(lanes: &BTreeMap<DeviceId, Arc<Lane>>) -> Result<(), Error> {
    for lane in lanes.values() {
        let runner = roundhouse_models::primer();
        lane.place("primer", runner, EngineConfig::default()).await?.remove().await;
    }
    Ok(())
}

/// Endpoints that serve Python handlers.
pub(super) fn endpoints_with_handlers(config: &Config) -> Vec<EndpointName> {
    let on = |endpoint: &&Endpoint| {
        endpoint.containers.is_none() && endpoint.handlers.unwrap_or(config.handlers.enabled)
    };
    let mut endpoints: Vec<EndpointName> =
        config.endpoints.iter().filter(on).map(|endpoint| endpoint.name.clone()).collect();
    if config.container.contract && config.handlers.enabled {
        endpoints.push(container_endpoint());
    }
    if config.container.model_dir.is_some() && config.handlers.enabled {
        endpoints.push(single::ENDPOINT.parse().expect("a plain word is a name"));
    }
    endpoints
}

/// What runs Python handlers, where an endpoint serves them.
async fn handlers(config: &Config, budget: Bytes) -> Result<Handlers, Error> {
    let endpoints = endpoints_with_handlers(config);
    if endpoints.is_empty() {
        return Ok(Handlers::default());
    }
    let settings = settings::workers(config, budget)?;
    let runtime = tokio::runtime::Handle::current();
    let start = move || {
        let _within = runtime.enter();
        roundhouse_workers::Workers::start(settings)
    };
    let workers = tokio::task::spawn_blocking(start)
        .await
        .map_err(|error| Failure::new(ErrorKind::Internal, error.to_string()))?
        .map_err(Failure::from)?;
    let endpoints = Arc::new(Current::new(endpoints));
    let program = config.container.program.as_deref().map(Arc::from);
    Ok(Handlers { workers: Some(Arc::new(workers)), endpoints, budget, program })
}

/// Where the bases of the container contract's adapters are.
async fn base_store(
    config: &Config,
    cache: Option<&DiskCache>,
) -> Result<Option<(EndpointName, Source)>, Error> {
    let name: EndpointName = BASES_ENDPOINT.parse().expect("plain words are a name");
    let source = match (&config.container.base_store, cache) {
        (Some(StoreUri::File { root }), _) => {
            Source::Local(Arc::new(LocalModels::below(root.clone())))
        }
        (Some(uri), Some(cache)) => {
            let mounts = vec![MountConfig::new(uri.clone())];
            let settings = settings::catalogue(config);
            let catalog = Catalog::connect(name.clone(), mounts, settings);
            let catalog = catalog.await.map_err(Failure::from)?.with_disk(cache.clone());
            Source::Store(Arc::new(catalog), cache.clone())
        }
        (Some(_), None) | (None, _) => return Ok(None),
    };
    Ok(Some((name, source)))
}

async fn connect(
    config: &Config,
    cache: &DiskCache,
    credentials: Option<&Credentials>,
) -> Result<Catalogs, Error> {
    let mut catalogs = BTreeMap::new();
    for endpoint in config.endpoints.iter().filter(|it| it.containers.is_none()) {
        let catalog = catalogue(config, endpoint, cache, credentials).await?;
        catalogs.insert(endpoint.name.clone(), catalog);
    }
    Ok(catalogs)
}

/// The catalogue of one endpoint, over its stores.
pub(super) async fn catalogue(
    config: &Config,
    endpoint: &Endpoint,
    cache: &DiskCache,
    credentials: Option<&Credentials>,
) -> Result<Arc<Catalog>, Failure> {
    let mut stores: Vec<(Option<String>, Arc<dyn ArtifactStore>)> = Vec::new();
    for mount in &endpoint.mounts {
        let mount = mount.to_store();
        let store: Arc<dyn ArtifactStore> = match (&mount.uri, credentials) {
            (StoreUri::File { root }, _) => {
                if !root.is_dir() {
                    warn!(uri = %mount.uri, "the store's folder does not exist");
                }
                Arc::new(FileStore::new(root))
            }
            (StoreUri::S3 { .. }, None) => Arc::new(S3Store::connect(&mount).await?),
            (StoreUri::S3 { .. }, Some(keys)) => {
                let store = S3Store::connect_with_keys(&mount, &keys.access_key, &keys.secret_key);
                Arc::new(store.await?)
            }
        };
        stores.push((mount.name, store));
    }
    let catalog = Catalog::over(endpoint.name.clone(), stores, settings::catalogue(config))?;
    Ok(Arc::new(catalog.with_disk(cache.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ServeFlags;

    #[test]
    fn floors_are_held_against_the_budget_that_the_machine_gives() {
        let config = |floor: &str| {
            let text = format!("version = 1\n[[tenant]]\nname = \"a\"\nfloor = \"{floor}\"");
            let flags =
                ServeFlags { store: vec!["file:///models/".into()], ..ServeFlags::default() };
            Config::parse(Some(&text), &|_| None, &flags).unwrap()
        };
        // No machine has a pebibyte.
        let Err(Error::Settings(faults)) = budgets(&config("1024TiB")) else {
            panic!("it was promised");
        };
        let told = faults[0].to_string();
        assert!(told.starts_with("tenant: the floors sum up to 1024.0 TiB, and"), "{told}");
        assert!(budgets(&config("1kB")).is_ok());
    }
}
