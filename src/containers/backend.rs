//! One container's address: its connections, its deadlines, and how many requests it may have.

mod body;
mod breaker;
mod connect;
mod connection;
mod health;
mod pool;
mod url;

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response};
use rustls::ClientConfig;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::warn;

use crate::Error;
use crate::metrics::{self, Meters};
use crate::seen::Remembered;
use body::{Broken, Place};
use breaker::{Breaker, Pass};
use connect::Connector;
use connection::{Connection, Lost};
use pool::Pool;

pub use body::{Incoming, Outgoing};
pub use breaker::{Breaking, State};
pub use health::HealthConfig;
pub use url::{BaseUrl, InvalidUrl};

/// The address of a container, and what is allowed to it.
#[derive(Debug, Clone)]
pub struct BackendConfig {
    /// What the operator calls it: for errors, logs and metrics. There are few.
    pub name: Arc<str>,
    /// Where it answers.
    pub url: BaseUrl,
    /// How long a connection may take, a TLS handshake included.
    pub connect_timeout: Duration,
    /// How long an answer may take to begin, from when the request was sent.
    pub head_timeout: Duration,
    /// The longest silence within an answer, while it is waited for.
    pub idle_timeout: Duration,
    /// Requests under way at once; more are refused.
    pub max_in_flight: usize,
    /// How long a connection that nothing uses is kept. Below what servers keep theirs, so that few
    /// are used at the moment when they are closed.
    pub keep_connections: Duration,
    /// Its health checks; absent is none.
    pub health: Option<HealthConfig>,
    /// When it is left alone.
    pub breaking: Breaking,
    /// Whether somebody sees its end in another way. Then only connections that it does not take speak
    /// against it.
    pub is_watched: bool,
    /// Whom an `https` address must be vouched for by; nobody is trusted where it is absent.
    pub tls: Option<Arc<ClientConfig>>,
}

impl BackendConfig {
    /// A container at an address, with limits that suit one on the same machine.
    pub fn new(name: impl Into<Arc<str>>, url: BaseUrl) -> Self {
        Self {
            name: name.into(),
            url,
            connect_timeout: Duration::from_secs(2),
            // SageMaker's limit for real-time inference.
            head_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            max_in_flight: 256,
            // uvicorn closes what is idle after 5 s, node after 5 s, nginx after 75 s.
            keep_connections: Duration::from_secs(4),
            health: Some(HealthConfig::default()),
            breaking: Breaking::default(),
            is_watched: false,
            tls: None,
        }
    }
}

/// One container. Cheap to clone; all clones share connections and limits. When the last one is
/// dropped its health checks end and idle connections close; answers under way go on.
#[derive(Clone)]
pub struct Backend(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: BackendConfig,
    pool: Arc<Pool>,
    /// How it is called in requests.
    host: HeaderValue,
    places: Arc<Semaphore>,
    meters: Meters,
    breaker: Mutex<Breaker>,
    /// What the last health check said; absent before the first.
    healthy: Mutex<Option<bool>>,
    /// Asks for a health check before its time.
    look: Arc<Notify>,
    pub(crate) last: Remembered,
}

/// What has come of an answer, and the connection that the rest of it comes on.
type Answer = (Response<hyper::body::Incoming>, Box<Connection>);

impl Backend {
    /// Begins with its health checks, where it has any. Within a runtime.
    pub fn new(config: BackendConfig) -> Self {
        let connector = Connector::new(config.connect_timeout, config.tls.as_deref());
        let kept = (config.keep_connections, config.max_in_flight);
        let inner = Arc::new(Inner {
            pool: Pool::new(connector, config.url.root(), kept),
            host: config.url.host(),
            places: Arc::new(Semaphore::new(config.max_in_flight)),
            meters: Meters::of(&config.name),
            breaker: Mutex::new(Breaker::new(config.breaking)),
            healthy: Mutex::new(None),
            look: Arc::default(),
            last: Remembered::default(),
            config,
        });
        if let Some(health) = inner.config.health.clone() {
            tokio::spawn(health::watch(Arc::downgrade(&inner), health));
        }
        Self(inner)
    }

    /// What it was made of.
    pub fn config(&self) -> &BackendConfig {
        &self.0.config
    }

    /// Whether requests go to it now.
    pub fn state(&self) -> State {
        self.0.breaker().state()
    }

    /// What its last health check said; `None` before the first.
    pub fn is_healthy(&self) -> Option<bool> {
        *self.0.healthy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What went wrong last.
    pub(crate) fn remembered(&self) -> &Remembered {
        &self.0.last
    }

    /// Requests under way.
    pub fn in_flight(&self) -> usize {
        self.0.config.max_in_flight - self.0.places.available_permits()
    }

    /// Sends a request and returns when its answer begins, whatever its status is. The URI is a path
    /// below the container's address, with its query. Headers that are between neighbours only are
    /// taken off both ways, and so is the host.
    ///
    /// The request is sent again only where its connection had ended before anything was sent, or once
    /// where its method is idempotent and its body in memory. If dropped, it is cancelled, and its
    /// connection closed.
    ///
    /// # Errors
    /// `LeftAlone` and `Full` before anything is sent; `Unreachable`, `BrokeOff`, `Silent`, `TimedOut`
    /// and `Unsent` after.
    pub async fn send(
        &self,
        mut request: Request<Outgoing>,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Error> {
        // What has no place is no trial.
        let place = self.0.place()?;
        let mut admitted = self.0.admit()?;
        self.0.prepare(&mut request);
        let began = Instant::now();
        let answer = self.0.exchange(request, deadline).await;
        match answer {
            Ok((response, connection)) => {
                admitted.succeeded();
                self.0.meters.answered(began.elapsed());
                let (mut head, body) = response.into_parts();
                strip_hop_by_hop(&mut head.headers);
                let body = (body, connection);
                let body = Incoming::new(body, Arc::clone(&self.0), Some(place), deadline);
                Ok(Response::from_parts(head, body))
            }
            Err(error) => {
                let (outcome, is_its_fault) = self.0.judge(&error);
                metrics::request(&self.0.config.name, outcome);
                self.0.last.note(&error);
                match is_its_fault {
                    true => admitted.failed(),
                    false => admitted.abandoned(),
                }
                if matches!(error, Error::BrokeOff { .. }) {
                    self.0.look.notify_one();
                }
                Err(error)
            }
        }
    }

    /// Sends what is no client's request: it takes no place, and goes also while the container is left
    /// alone. Its outcome decides nothing.
    ///
    /// # Errors
    /// Those of [`Backend::send`], but `LeftAlone` and `Full`.
    pub(crate) async fn instruct(
        &self,
        mut request: Request<Outgoing>,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Error> {
        self.0.prepare(&mut request);
        let (response, connection) = self.0.exchange(request, deadline).await?;
        let backend = Arc::clone(&self.0);
        Ok(response.map(|body| Incoming::new((body, connection), backend, None, deadline)))
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.0.config;
        f.debug_struct("Backend").field("name", &config.name).field("url", &config.url).finish()
    }
}

impl Inner {
    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self) -> Result<Admitted<'_>, Error> {
        match self.breaker().admit(Instant::now()) {
            Ok(pass) => Ok(Admitted { backend: self, pass: Some(pass) }),
            Err(after) => {
                metrics::request(&self.config.name, "left_alone");
                Err(Error::LeftAlone { container: Arc::clone(&self.config.name), after })
            }
        }
    }

    fn place(&self) -> Result<Place, Error> {
        let permit = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            metrics::request(&self.config.name, "full");
            let limit = self.config.max_in_flight;
            Error::Full { container: Arc::clone(&self.config.name), limit }
        })?;
        self.meters.in_flight.increment(1.0);
        Ok(Place { _permit: permit, gauge: self.meters.in_flight.clone() })
    }

    /// A failure outside of an exchange: of a health check.
    pub(crate) fn fail(&self) {
        self.failed(Pass::Ordinary);
    }

    /// An answer's body broke off.
    pub(crate) fn cut(&self) {
        match self.breaks_count() {
            true => self.failed(Pass::Ordinary),
            false => self.look.notify_one(),
        }
    }

    /// Whether a connection that breaks off speaks against the container. Where anything else tells how
    /// it is that decides: one client's input may break its own request each time.
    fn breaks_count(&self) -> bool {
        self.config.health.is_none() && !self.config.is_watched
    }

    fn failed(&self, pass: Pass) {
        let has_opened = self.breaker().failed(pass, Instant::now());
        if has_opened {
            metrics::broken(&self.config.name);
            warn!(container = %self.config.name, "container fails, it is left alone for a while");
        }
    }

    fn prepare(&self, request: &mut Request<Outgoing>) {
        let below = self.config.url.below(request.uri());
        if let Some(below) = below {
            *request.uri_mut() = below;
        }
        let headers = request.headers_mut();
        strip_hop_by_hop(headers);
        headers.insert(header::HOST, self.host.clone());
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::EXPECT);
    }

    /// One request and, where that is safe, once more.
    async fn exchange(
        &self,
        request: Request<Outgoing>,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let method = request.method();
        let is_idempotent = matches!(*method, Method::GET | Method::HEAD | Method::DELETE);
        let again = is_idempotent.then(|| copy(&request)).flatten();
        match (self.once(request, deadline).await, again) {
            (Err(Error::BrokeOff { .. }), Some(again)) => self.once(again, deadline).await,
            (outcome, _) => outcome,
        }
    }

    async fn once(
        &self,
        mut request: Request<Outgoing>,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let limit = self.config.head_timeout;
        let taken = request.body_mut().watch();
        let container = || Arc::clone(&self.config.name);
        let late = async {
            if let Some(taken) = taken
                && timeout_at(deadline, taken).await.is_err()
            {
                return Error::TimedOut { container: container() };
            }
            // Its sender is dropped, never used.
            let silent = Instant::now() + limit;
            sleep_until(silent.min(deadline)).await;
            match silent < deadline {
                true => Error::Silent { container: container(), limit },
                false => Error::TimedOut { container: container() },
            }
        };
        tokio::select! {
            biased;
            answer = self.pool.ask(request) => answer.map_err(|lost| self.told(lost)),
            error = late => Err(error),
        }
    }

    fn told(&self, lost: Lost) -> Error {
        let container = Arc::clone(&self.config.name);
        let error = match lost {
            Lost::Unmade(error) => return Error::Unreachable { container, source: error.into() },
            Lost::Ended(error) => error,
        };
        let mut source: Option<&(dyn StdError + 'static)> = Some(&error);
        while let Some(cause) = source {
            if cause.is::<Broken>() {
                return Error::Unsent { container, source: Arc::new(error) };
            }
            source = cause.source();
        }
        Error::BrokeOff { container, source: Arc::new(error) }
    }

    /// What an error is counted as, and whether it speaks against the container. That one answer takes
    /// long or breaks off does not, where something else tells how it is: else a client with hard
    /// questions would close it to all others.
    fn judge(&self, error: &Error) -> (&'static str, bool) {
        match error {
            Error::Unreachable { .. } => ("unreachable", true),
            Error::Silent { .. } => ("timed_out", self.breaks_count()),
            Error::TimedOut { .. } => ("timed_out", false),
            Error::Unsent { .. } => ("cancelled", false),
            _ => ("broke_off", self.breaks_count()),
        }
    }
}

/// The same request once more, where its body is in memory.
fn copy(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    let mut again = Request::new(request.body().again()?);
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

/// A request that was let pass. Dropped before its outcome is known, it says nothing.
struct Admitted<'a> {
    backend: &'a Inner,
    pass: Option<Pass>,
}

impl Admitted<'_> {
    fn succeeded(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.backend.breaker().succeeded(pass);
        }
    }

    fn failed(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.backend.failed(pass);
        }
    }

    fn abandoned(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.backend.breaker().abandoned(pass);
        }
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if self.pass.is_some() {
            metrics::request(&self.backend.config.name, "cancelled");
        }
        self.abandoned();
    }
}

/// Headers that are between neighbours only (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Takes off the headers that are between neighbours only, and those that `Connection` names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Mostly there are none: to look at each is less than to look each up.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests;
