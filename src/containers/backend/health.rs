//! Whether a container says that it is well.

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use http::Request;
use roundhouse_types::Bytes;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{Backend, Incoming, Inner, Outgoing};
use crate::Error;
use crate::metrics;

/// What of a check's answer is read, so that its connection can be used again.
const ANSWER_MAX: Bytes = Bytes::kib(64);
/// Between a check and the next one that somebody asks for.
const SOONEST: Duration = Duration::from_millis(100);

/// How a container is asked whether it is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// What is asked for by `GET`; success is any status from 200 to 299.
    pub path: http::uri::PathAndQuery,
    /// From one check's end to the next.
    pub interval: Duration,
    /// How long one may take.
    pub timeout: Duration,
}

impl Default for HealthConfig {
    /// As SageMaker asks its containers.
    fn default() -> Self {
        Self {
            path: http::uri::PathAndQuery::from_static("/ping"),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
        }
    }
}

impl Backend {
    /// Asks once, whatever was found before. It takes no request's place.
    ///
    /// # Errors
    /// Where no answer came in time, or one without success.
    pub async fn check(&self, health: &HealthConfig) -> Result<(), Error> {
        self.0.check(health).await
    }
}

impl Inner {
    async fn check(self: &Arc<Self>, health: &HealthConfig) -> Result<(), Error> {
        let mut request = Request::new(Outgoing::empty());
        *request.uri_mut() = health.path.clone().into();
        self.prepare(&mut request);
        let container = || Arc::clone(&self.config.name);
        let asked = async {
            let deadline = Instant::now() + health.timeout;
            let (response, connection) = self.exchange(request, deadline).await?;
            let status = response.status();
            let body = (response.into_body(), connection);
            let body = Incoming::new(body, Arc::clone(self), None, deadline);
            // Read only for the connection's sake.
            let _ = body.collect(ANSWER_MAX).await;
            match status.is_success() {
                true => Ok(()),
                false => Err(Error::Unwell { container: container(), status: status.as_u16() }),
            }
        };
        let limit = health.timeout;
        let timed = tokio::time::timeout(limit, asked).await;
        timed.unwrap_or_else(|_| Err(Error::Silent { container: container(), limit }))
    }
}

/// Asks again and again, until nobody needs the container; also when one of its connections broke off.
pub(super) async fn watch(backend: Weak<Inner>, health: HealthConfig) {
    loop {
        let Some(strong) = backend.upgrade() else { return };
        let checked = strong.check(&health).await;
        strong.note(checked);
        let look = Arc::clone(&strong.look);
        drop(strong);
        let soonest = SOONEST.min(health.interval);
        sleep(soonest).await;
        tokio::select! {
            () = sleep(health.interval - soonest) => {}
            () = look.notified() => {}
        }
    }
}

impl Inner {
    fn note(&self, checked: Result<(), Error>) {
        let name = &self.config.name;
        let is_healthy = checked.is_ok();
        let before = {
            let mut healthy = self.healthy.lock().unwrap_or_else(PoisonError::into_inner);
            healthy.replace(is_healthy)
        };
        metrics::healthy(name, is_healthy);
        match checked {
            Ok(()) => {
                self.breaker().well();
                if before != Some(true) {
                    info!(container = %name, "container is well");
                }
            }
            Err(error) => {
                self.last.note(&error);
                self.fail();
                if before != Some(false) {
                    warn!(container = %name, %error, "container is not well");
                }
            }
        }
    }
}
