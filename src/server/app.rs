//! Puts the server together: build, then bind, then run, then drain.

mod accounts;
mod asynchronous;
mod behind;
pub(crate) mod budgets;
mod build;
mod capture;
mod cards;
mod described;
mod disk;
pub(crate) mod door;
mod faces;
mod live;
mod ports;
mod preload;
mod reload;
pub(crate) mod settings;
mod single;
mod traces;
mod warm;

use std::sync::Arc;
use std::time::Duration;

use roundhouse_gateway::CutOff;
use roundhouse_residency::Residency;
use roundhouse_serving::ServedModel;
use roundhouse_tenancy::Accounts;
use roundhouse_types::{ErrorKind, Failure};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use self::asynchronous::Deferrals;
use self::behind::Behinds;
use self::capture::Captures;
use self::door::Door;
use self::ports::{Bounds, Listeners, Routers, Stops};
use self::preload::Wishes;
use self::traces::Tracing;
use crate::admin::{self, Vitals};
use crate::cloudwatch::Sending;
use crate::config::Config;
use crate::connections;
use crate::error::Error;
use crate::loader::ModelLoader;
use crate::logging;
use crate::near;
use crate::threads::Threads;

pub(crate) use build::{Catalogs, Credentials};
pub(crate) use disk::Disk;
pub(crate) use door::Operators;
pub(crate) use reload::{Origin, Reading, Reload};
#[cfg(test)]
pub(crate) use settings::policy as policy_of;
pub(crate) use settings::residency as residency_settings;

/// How often the lanes are looked at for a failed device.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// How often the regret is calculated for the gauges.
const REGRET_EVERY: Duration = Duration::from_secs(10);

/// How long those whose answers are cut off are given to read that.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// A server whose ports are bound and which answers on them.
pub(crate) struct Running {
    /// The data port, as in `http://127.0.0.1:8080`.
    pub(crate) data: String,
    /// The admin port.
    pub(crate) admin: String,
    ports: Vec<JoinHandle<()>>,
    /// Those that answer on the data port.
    threads: Arc<Threads>,
    /// Tasks that look at something now and then.
    watches: Vec<JoinHandle<()>>,
    residency: Residency<ServedModel>,
    loader: Arc<ModelLoader>,
    accounts: Arc<Accounts>,
    /// Requests whose callers do not wait.
    deferrals: Deferrals,
    captures: Captures,
    /// Containers behind endpoints.
    behinds: Behinds,
    /// Sends spans of requests.
    tracing: Tracing,
    /// Sends embedded metrics.
    cloudwatch: Sending,
    vitals: Arc<Vitals>,
    stops: Stops,
    cut_off: CutOff,
    drain_timeout: Duration,
}

/// Builds a server, says where it listens, and runs it to its end.
///
/// # Errors
/// When it cannot be built, a port is taken, or a device fails while it runs.
pub(crate) async fn serve(config: Config, origin: Option<Origin>) -> Result<(), Error> {
    let mut stop = Stop::listen()?;
    let Some(running) = stop.unless(start(config, None, origin)).await? else {
        return Ok(());
    };
    announce(&running);
    running.until_stopped(stop).await
}

/// Prints the ready lines that scripts wait for.
pub(crate) fn announce(running: &Running) {
    logging::say(&format!("admin on {}\nlistening on {}\n", running.admin, running.data));
}

/// Builds a server and starts to answer.
pub(crate) async fn start(
    config: Config,
    credentials: Option<Credentials>,
    origin: Option<Origin>,
) -> Result<Running, Error> {
    let listeners = Listeners::bind(&config.listen).await?;
    let drain_timeout = config.shutdown.drain_timeout;
    let bounds = Bounds::of(&config);
    connections::allow(bounds.most);
    let wishes = Wishes::of(&config.endpoints);
    let door = Door::open(&config)?;
    let guard = ports::guard(&config, &door)?;
    if !config.container.unheeded.is_empty() {
        let names = config.container.unheeded.join(", ");
        warn!(%names, "these variables of the environment change nothing here");
    }
    let mut app = build::build(config.clone(), credentials, door.identity.clone()).await?;
    let deferrals = app.live.deferrals.clone();
    let captures = app.live.captures.clone();
    let behinds = app.live.behinds.clone();
    let data = near::around(app.data, &config, door.identity.clone());
    app.admin.reload = match origin {
        Some(origin) => Some(Reload::start(origin, config, app.live)?),
        None => None,
    };
    let parts = Arc::new(app.admin);
    let (residency, vitals) = (parts.residency.clone(), parts.vitals.clone());
    let (loader, accounts) = (parts.loader.clone(), parts.accounts.clone());
    let (data_url, admin_url) = listeners.urls(&door)?;
    if let Some(single) = app.single {
        tokio::spawn(single.load(residency.clone(), vitals.clone()));
    }
    tokio::spawn(accounts::watch(accounts.clone(), residency.clone()));
    let threads = Threads::start();
    let threads = threads.map_err(|source| Error::io("cannot start threads", source))?;
    let threads = Arc::new(threads);
    let health = admin::health_router(&parts.vitals, &parts.metrics);
    let routers = Routers { data, admin: admin::router(parts, guard), health };
    let stops = Stops::default();
    let ports = listeners.answer(routers, (&door, &threads), &bounds, &stops);
    tokio::spawn(wishes.fulfil(residency.clone()));
    let watches = vec![tokio::spawn(watch_regret(residency.clone())), door.watch()];
    vitals.set_ready(true);
    info!(data = %data_url, admin = %admin_url, "ready");
    Ok(Running {
        data: data_url,
        admin: admin_url,
        ports,
        threads,
        watches,
        residency,
        loader,
        accounts,
        deferrals,
        captures,
        behinds,
        tracing: app.tracing,
        cloudwatch: app.cloudwatch,
        vitals,
        stops,
        cut_off: app.cut_off,
        drain_timeout,
    })
}

impl Running {
    /// Answers until SIGTERM or an interrupt, then drains; or until a device fails.
    pub(crate) async fn until_stopped(mut self, mut stop: Stop) -> Result<(), Error> {
        let tracing = std::mem::take(&mut self.tracing);
        let cloudwatch = std::mem::take(&mut self.cloudwatch);
        let failed = tokio::select! {
            signal = stop.signal() => {
                info!(signal, "stopping");
                None
            }
            why = device_failure(&self.vitals) => Some(why),
        };
        if let Some(why) = &failed {
            error!(%why, "a device failed; what can be answered is, then the process ends");
        }
        let (timeout, loader) = (self.drain_timeout, self.loader.clone());
        let (accounts, cut_off) = (self.accounts.clone(), self.cut_off.clone());
        let (captures, behinds) = (self.captures.clone(), self.behinds.clone());
        let threads = self.threads.clone();
        let mut drain = std::pin::pin!(self.drain());
        let is_drained = tokio::select! {
            () = &mut drain => {
                info!("drained");
                true
            }
            () = tokio::time::sleep(timeout) => {
                warn!(?timeout, "requests were cut off by the drain timeout");
                false
            }
            _ = stop.signal() => {
                warn!("a second signal cut off the requests under way");
                false
            }
        };
        if !is_drained {
            // Streams end with an error that says so, for as long as somebody reads it.
            cut_off.now();
            let _ = tokio::time::timeout(CUT_GRACE, drain).await;
        }
        // What is written down is not to wait for containers' grace times.
        let written = async {
            captures.close().await;
            // Who is cut off has no whole answer, and no line.
            accounts::close(accounts).await;
            tracing.close().await;
            cloudwatch.close().await;
            if failed.is_none() {
                loader.forgive_loads().await;
            }
        };
        tokio::join!(behinds.stop(), written);
        // What they do for models and containers may have gone on until here.
        threads.end().await;
        match failed {
            None => Ok(()),
            Some(why) => Err(Failure::new(ErrorKind::ModelFailed, why).into()),
        }
    }

    /// Readiness fails first, then no connection is accepted, then requests end, deferred ones
    /// too, then models are unloaded. Requests that still wait for a model when half of the drain timeout is
    /// over are told so. The admin port answers until all is done.
    async fn drain(mut self) {
        self.vitals.set_ready(false);
        self.watches.iter().for_each(JoinHandle::abort);
        self.stops.data.cancel();
        self.deferrals.stop();
        // The data port is the first.
        let admin = self.ports.split_off(1);
        let patience = self.drain_timeout / 2;
        let (residency, deferrals) = (self.residency.clone(), self.deferrals.clone());
        let late = tokio::spawn(async move {
            tokio::time::sleep(patience).await;
            // What nobody waits for runs after the next start. First: a model that is about to
            // leave would fail it.
            deferrals.abort().await;
            residency.shutdown().await;
        });
        for port in self.ports {
            if let Err(error) = port.await {
                warn!(%error, "the data port ended badly");
            }
        }
        self.deferrals.drain().await;
        late.abort();
        self.residency.shutdown().await;
        self.stops.admin.cancel();
        for port in admin {
            // Event streams have no end of their own.
            port.abort();
        }
    }
}

/// The signals that end a server.
///
/// Listened for from before it starts: one that comes as it gets ready would else end the process without
/// a drain, or, as the first process of a container, be lost.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub(crate) fn listen() -> Result<Self, Error> {
        let listen =
            |kind| signal(kind).map_err(|source| Error::io("cannot listen for signals", source));
        let (terminate, interrupt) =
            (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt })
    }

    /// Starts something, or nothing if a signal comes first.
    ///
    /// # Errors
    /// As the start.
    pub(crate) async fn unless<T>(
        &mut self,
        start: impl Future<Output = Result<T, Error>>,
    ) -> Result<Option<T>, Error> {
        tokio::select! {
            started = start => started.map(Some),
            signal = self.signal() => {
                info!(signal, "stopped before it was ready");
                Ok(None)
            }
        }
    }

    /// Waits for the next one.
    async fn signal(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Keeps the gauges of the regret fresh until residency ends.
async fn watch_regret(residency: Residency<ServedModel>) {
    loop {
        tokio::time::sleep(REGRET_EVERY).await;
        if let Err(error) = residency.regret().await {
            debug!(%error, "no regret any more");
            return;
        }
    }
}

async fn device_failure(vitals: &Vitals) -> String {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(why) = vitals.device_failure() {
            return why;
        }
    }
}
