//! The ports: bound before anything is built, answered when all is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::door::Door;
use super::{faces, settings};
use crate::admin::Guard;
use crate::config::{Config, Listen};
use crate::connections::Connections;
use crate::error::Error;
use crate::http::{self, Port};
use crate::threads::Threads;

/// What to do where a port is taken.
const OTHER_DATA: &str = "another process listens there: end it, or give the data port another address with --listen (listen.data)";
const OTHER_ADMIN: &str = "another process listens there: end it, or give the admin port another address with --admin-listen (listen.admin)";
const OTHER_HEALTH: &str = "another process listens there: end it, or give the health port another address with --health-listen (listen.health)";

/// The longest that an answer of the health port takes.
const HEALTH_GRACE: Duration = Duration::from_secs(30);

/// How many connections a port has at most, and how long their requests may take and keep their places where
/// it is full.
pub(super) struct Bounds {
    pub(super) most: usize,
    data: Duration,
    admin: Duration,
}

impl Bounds {
    pub(super) fn of(config: &Config) -> Self {
        let gateway = settings::gateway(config);
        let answer = gateway.invoke_timeout.max(gateway.stream_timeout);
        let answer = match config.container.contract || config.container.model_dir.is_some() {
            true => answer.max(gateway.container_timeout),
            false => answer,
        };
        // An operator may wait for a load, or for the last request of what is unloaded.
        Self {
            most: config.listen.max_connections,
            data: answer + gateway.body_timeout,
            admin: answer.max(config.residency.load_timeout) + gateway.body_timeout,
        }
    }
}

/// What each port answers.
pub(super) struct Routers {
    pub(super) data: Router,
    pub(super) admin: Router,
    pub(super) health: Router,
}

/// What ends them: the health port goes with the admin port.
#[derive(Default)]
pub(super) struct Stops {
    pub(super) data: CancellationToken,
    pub(super) admin: CancellationToken,
}

/// Ports that are bound.
pub(super) struct Listeners {
    data: TcpListener,
    admin: TcpListener,
    health: Option<TcpListener>,
}

impl Listeners {
    pub(super) async fn bind(listen: &Listen) -> Result<Self, Error> {
        Ok(Self {
            data: bind(listen.data, OTHER_DATA).await?,
            admin: bind(listen.admin, OTHER_ADMIN).await?,
            health: match listen.health {
                Some(address) => Some(bind(address, OTHER_HEALTH).await?),
                None => None,
            },
        })
    }

    /// Of the data port, as in `http://127.0.0.1:8080`, and of the admin port.
    pub(super) fn urls(&self, door: &Door) -> Result<(String, String), Error> {
        Ok((url(&self.data, door.data.is_some())?, url(&self.admin, door.admin.is_some())?))
    }

    /// Answers, on the data port by these threads. The data port's task is the first.
    pub(super) fn answer(
        self,
        routers: Routers,
        (door, threads): (&Door, &Arc<Threads>),
        bounds: &Bounds,
        stops: &Stops,
    ) -> Vec<JoinHandle<()>> {
        let most = bounds.most;
        let data = Port {
            router: routers.data,
            tls: door.data.clone(),
            connections: Connections::new(most, bounds.data),
            threads: Some(threads.clone()),
        };
        let admin = Port {
            router: routers.admin,
            tls: door.admin.clone(),
            connections: Connections::new(most, bounds.admin),
            threads: None,
        };
        let mut ports = vec![
            tokio::spawn(http::serve(self.data, data, stops.data.clone())),
            tokio::spawn(http::serve(self.admin, admin, stops.admin.clone())),
        ];
        if let Some(listener) = self.health {
            let connections = Connections::new(most, HEALTH_GRACE);
            let port = Port { router: routers.health, tls: None, connections, threads: None };
            ports.push(tokio::spawn(http::serve(listener, port, stops.admin.clone())));
        }
        ports
    }
}

/// Who is let through to the admin port.
pub(super) fn guard(config: &Config, door: &Door) -> Result<Guard, Error> {
    Ok(Guard {
        identity: door.identity.clone(),
        operators: door.operators.clone(),
        always_asks: !config.listen.admin.ip().is_loopback() && !config.listen.insecure_no_auth,
        hosts: config.listen.admin_hosts.clone(),
        audit: faces::audit_log(&config.log.audit)?,
    })
}

/// Binds a port; `other` is what to do where somebody else has it.
async fn bind(address: SocketAddr, other: &'static str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| {
        let is_taken = source.kind() == std::io::ErrorKind::AddrInUse;
        let error = Error::io(format!("cannot listen on {address}"), source);
        if is_taken { error.with_hint(other) } else { error }
    })
}

fn url(listener: &TcpListener, encrypted: bool) -> Result<String, Error> {
    let address =
        listener.local_addr().map_err(|source| Error::io("a port without an address", source))?;
    let scheme = if encrypted { "https" } else { "http" };
    Ok(format!("{scheme}://{address}"))
}
