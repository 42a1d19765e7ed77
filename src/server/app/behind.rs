//! Containers behind endpoints: what runs of them, and how the gateway asks it.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use http::Request;
use http_body_util::{BodyDataStream, BodyExt as _};
use hyper::body::Body as _;
use roundhouse_containers::{
    Backend, BackendConfig, BaseUrl, Command, Error, HealthConfig, Outgoing, Seen, Supervised,
    TenantPlaces,
};
use roundhouse_gateway::{
    AskContainerFn, Capture, Containers, EndpointContainer, EndpointFace, FromContainer, Naming,
    PageWanted, Target, TargetPage, ToContainer,
};
use roundhouse_tenancy::Current;
use roundhouse_types::{EndpointName, ErrorKind, Failure, TargetName};
use rustls::ClientConfig;
use tokio::time::Instant;
use tracing::debug;

use crate::admin::{Kind, Shown};
use crate::config::{Behind, Config, ContainerBehind, ContainerOrigin, Endpoint};
use crate::trust;

/// Containers by their endpoints and hostnames.
pub(super) type Standing = BTreeMap<(EndpointName, String), Arc<Stand>>;

/// The containers in force. Clones are the same. Those that no settings name any more stay until the
/// last request that saw them has ended.
#[derive(Clone, Default)]
pub(super) struct Behinds(Arc<Current<Standing>>);

/// Whom containers are believed by, by the files with authorities of their own.
type Trusts = BTreeMap<Option<PathBuf>, Arc<ClientConfig>>;

/// One container.
pub(super) struct Stand {
    config: ContainerBehind,
    reach: Reach,
    shares: Arc<TenantPlaces>,
}

enum Reach {
    At(Backend),
    Started(Supervised),
}

impl Behinds {
    /// Those in force.
    pub(super) fn get(&self) -> Arc<Standing> {
        self.0.get()
    }

    /// Puts others in force.
    pub(super) fn put(&self, standing: Standing) {
        self.0.set(standing);
    }

    /// What settings name: containers in force that they say the same of, and new ones, which begin.
    ///
    /// # Errors
    /// Where our own executable, or the authorities of this machine, cannot be found.
    pub(super) fn prepared(&self, config: &Config) -> Result<Standing, Failure> {
        let before = self.get();
        let mut trusts = Trusts::new();
        let mut standing = Standing::new();
        for (endpoint, behind) in with_containers(config) {
            for container in &behind.containers {
                let key = (endpoint.name.clone(), container.hostname.clone());
                let stand = match before.get(&key).filter(|it| it.config == *container) {
                    Some(stand) => stand.clone(),
                    None => Arc::new(Stand::start(&endpoint.name, container, &mut trusts)?),
                };
                standing.insert(key, stand);
            }
        }
        Ok(standing)
    }

    /// How they stand, for operators, in the order of their endpoints.
    pub(super) fn seen(&self) -> Vec<Shown> {
        let standing = self.get();
        let one = |((endpoint, name), stand): (&(EndpointName, String), &Arc<Stand>)| Shown {
            endpoint: endpoint.clone(),
            name: name.clone(),
            kind: Kind::Container,
            device: None,
            models: None,
            seen: stand.seen(),
        };
        standing.iter().map(one).collect()
    }

    /// Ends those that we started, and returns when they are gone.
    pub(super) async fn stop(&self) {
        let standing = self.get();
        let ends = standing.values().filter_map(|stand| match &stand.reach {
            Reach::Started(supervised) => Some(supervised.stop()),
            Reach::At(_) => None,
        });
        futures_util::future::join_all(ends).await;
    }
}

/// The endpoints that have containers.
fn with_containers(config: &Config) -> impl Iterator<Item = (&Endpoint, &Behind)> {
    config.endpoints.iter().filter_map(|it| Some((it, it.containers.as_ref()?)))
}

impl Stand {
    fn start(
        endpoint: &EndpointName,
        container: &ContainerBehind,
        trusts: &mut Trusts,
    ) -> Result<Self, Failure> {
        let name = format!("{endpoint}/{}", container.hostname);
        let reach = match &container.origin {
            ContainerOrigin::Url(url) => {
                let mut backend = backend(&name, url.clone(), container);
                if url.is_https() {
                    backend.tls = Some(trusted(trusts, container.ca_file.as_deref())?);
                }
                Reach::At(Backend::new(backend))
            }
            ContainerOrigin::Command(command) => {
                let exe = super::settings::own_executable()
                    .map_err(|error| Failure::from_error(ErrorKind::Internal, &error))?;
                let secret = |(name, value): (&String, &crate::config::Secret)| {
                    (name.clone(), value.reveal().to_owned())
                };
                Reach::Started(Supervised::start(Command {
                    exe,
                    program: command.program.clone(),
                    args: command.args.clone(),
                    env: command.env.iter().map(secret).collect(),
                    dir: command.dir.clone(),
                    port: command.port,
                    start_timeout: command.start_timeout,
                    grace: command.grace,
                    own_processes: command.own_processes,
                    // Its address is known when it is started.
                    backend: backend(&name, BaseUrl::local(1), container),
                }))
            }
        };
        let shares = TenantPlaces::new(name, container.max_requests);
        Ok(Self { config: container.clone(), reach, shares })
    }

    /// How it stands, for operators.
    fn seen(&self) -> Seen {
        match &self.reach {
            Reach::At(backend) => backend.seen(),
            Reach::Started(supervised) => supervised.seen(),
        }
    }

    async fn backend(&self, until: Instant) -> Result<Backend, Error> {
        match &self.reach {
            Reach::At(backend) => Ok(backend.clone()),
            Reach::Started(supervised) => supervised.backend(until).await,
        }
    }

    async fn ask(&self, request: ToContainer) -> Result<FromContainer, Failure> {
        let ToContainer { path, headers, body, tenant, hold_until, deadline } = request;
        let share = self.shares.take(tenant).map_err(told)?;
        let backend = self.backend(hold_until).await.map_err(told)?;
        let mut asked = Request::new(Outgoing::whole(body));
        *asked.method_mut() = http::Method::POST;
        // A route of ours is a path.
        *asked.uri_mut() = path.parse().unwrap_or_default();
        *asked.headers_mut() = headers;
        let (head, body) = backend.send(asked, deadline).await.map_err(told)?.into_parts();
        let length = body.size_hint().exact();
        let pieces = BodyDataStream::new(body.map_err(told));
        let body = share.until_end(pieces).boxed();
        Ok(FromContainer { status: head.status, headers: head.headers, length, body })
    }
}

fn backend(name: &str, url: BaseUrl, container: &ContainerBehind) -> BackendConfig {
    let health = container.health.clone().map(|path| HealthConfig {
        path,
        interval: container.health_every,
        ..HealthConfig::default()
    });
    BackendConfig {
        connect_timeout: container.connect_timeout,
        head_timeout: container.response_timeout,
        idle_timeout: container.idle_timeout,
        max_in_flight: container.max_requests,
        health,
        ..BackendConfig::new(name, url)
    }
}

/// Who vouches for a container: the authorities of this machine, and those of its own file.
fn trusted(trusts: &mut Trusts, file: Option<&Path>) -> Result<Arc<ClientConfig>, Failure> {
    if let Some(known) = trusts.get(&file.map(Path::to_owned)) {
        return Ok(known.clone());
    }
    let read = trust::ours_and(file)
        .map_err(|error| Failure::from_error(ErrorKind::InvalidRequest, &error))?;
    let read = Arc::new(read);
    trusts.insert(file.map(Path::to_owned), read.clone());
    Ok(read)
}

/// What callers are told: what happened to which container, not where it is.
fn told(error: Error) -> Failure {
    if error.source().is_some() {
        debug!(error = %Failure::from(error.clone()), "a container failed");
    }
    let (kind, retry) = (error.kind(), error.retry());
    let failure = Failure::new(kind, error.to_string()).with_retry(retry);
    match kind {
        ErrorKind::ModelFailed => failure.with_status(0),
        _ => failure,
    }
}

/// All endpoints with containers, as the gateway sees them.
pub(super) fn faces(
    config: &Config,
    standing: &Standing,
    captures: &BTreeMap<EndpointName, Capture>,
) -> Vec<EndpointFace> {
    let face = |(endpoint, behind): (&Endpoint, &Behind)| EndpointFace {
        capture: captures.get(&endpoint.name).cloned(),
        ..face(endpoint, behind, standing)
    };
    with_containers(config).map(face).collect()
}

fn face(endpoint: &Endpoint, behind: &Behind, standing: &Standing) -> EndpointFace {
    let containers = behind.containers.iter().filter_map(|container| {
        let key = (endpoint.name.clone(), container.hostname.clone());
        let ask = asking(standing.get(&key)?.clone());
        let name: TargetName = container.hostname.parse().ok()?;
        Some(Arc::new(EndpointContainer { name, ask }))
    });
    let list: Vec<Arc<EndpointContainer>> = containers.collect();
    let mut names: Vec<TargetName> = list.iter().map(|it| it.name.clone()).collect();
    names.sort_unstable();
    let found = names.clone();
    EndpointFace {
        name: endpoint.name.clone(),
        list: Arc::new(move |wanted| std::future::ready(Ok(page(&names, wanted))).boxed()),
        find: Arc::new(move |name| {
            let found = match found.contains(&name) {
                true => Ok(Target { name, modified: None }),
                false => {
                    let message = format!("container '{name}' not found");
                    Err(Failure::new(ErrorKind::ModelNotFound, message))
                }
            };
            std::future::ready(found).boxed()
        }),
        base: Arc::new(|_| None),
        facts: Arc::new(|_| None),
        handlers: false,
        engines: false,
        naming: Naming::default(),
        capture: None,
        containers: Some(Containers { mode: behind.mode, list }),
    }
}

fn asking(stand: Arc<Stand>) -> AskContainerFn {
    Arc::new(move |request| {
        let stand = stand.clone();
        async move { stand.ask(request).await }.boxed()
    })
}

/// The hostnames that a listing wants, of those in order.
fn page(names: &[TargetName], wanted: PageWanted) -> TargetPage {
    let PageWanted { after, limit, only } = wanted;
    let covers =
        |name: &TargetName| only.as_ref().is_none_or(|only| only.iter().any(|it| it.covers(name)));
    let behind = |name: &&TargetName| after.as_deref().is_none_or(|after| name.as_str() > after);
    let mut found = names.iter().filter(behind).filter(|name| covers(name)).cloned();
    let targets = found.by_ref().take(limit).map(|name| Target { name, modified: None }).collect();
    TargetPage { targets, more: found.next().is_some() }
}
