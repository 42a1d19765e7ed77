//! Sends spans of requests to a collector.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode};
use roundhouse_gateway::{AccessRecord, request_spans};
use roundhouse_traces::{Exporter, Origin, Refused, SendFn, Tracer};
use roundhouse_types::{ArtefactId, ErrorKind, Failure, ModelId};
use tracing::info;

use crate::config::Traces;
use crate::error::Error;
use crate::fetch::chain;
use crate::loader::RecentLoads;
use crate::trust;

/// How long the last spans may take when the server ends.
const LAST_WITHIN: Duration = Duration::from_secs(3);

/// The status of a request whose client left before it was answered.
const LEFT: u16 = 499;

/// What takes the record of a request that has ended.
type AccessFn = Arc<dyn Fn(AccessRecord) + Send + Sync>;

/// Where requests are recorded, and what sends that; nothing of the kind where traces are sent
/// nowhere.
#[derive(Default)]
pub(super) struct Tracing {
    pub(super) tracer: Tracer,
    exporter: Option<Exporter>,
    names: bool,
}

impl Tracing {
    /// Starts to send. Call inside a runtime.
    ///
    /// # Errors
    /// Where there is no TLS client.
    pub(super) fn start(config: Option<&Traces>) -> Result<Self, Error> {
        let Some(config) = config else { return Ok(Self::default()) };
        let text = |key: &str, text: &str| (key.to_owned(), text.to_owned());
        let origin = Origin {
            attributes: vec![
                text("service.name", &config.service),
                text("service.version", env!("CARGO_PKG_VERSION")),
                text("service.instance.id", &uuid::Uuid::new_v4().to_string()),
            ],
        };
        let (tracer, exporter) = Exporter::start(origin, config.sampled, sender(config)?);
        let to = config.url.origin().ascii_serialization();
        info!(to, sampled = config.sampled, "traces are sent");
        Ok(Self { tracer, exporter: Some(exporter), names: config.names })
    }

    /// Has the spans of ended requests recorded before their lines are logged.
    pub(super) fn before(&self, log: AccessFn, loads: RecentLoads) -> AccessFn {
        if self.exporter.is_none() {
            return log;
        }
        let (tracer, names) = (self.tracer.clone(), self.names);
        Arc::new(move |record| {
            if let Some(trace) = record.trace.as_ref().filter(|trace| trace.is_recorded()) {
                let stages = waited_for(&record).map(|id| loads.stages(&id)).unwrap_or_default();
                let halted = gave_up(&record);
                let halted =
                    halted.and_then(|(model, since, why)| loads.halted(&model, since, why));
                tracer.ended(trace, request_spans(&record, &stages, halted.as_ref(), names));
            }
            log(record);
        })
    }

    /// Sends what is left.
    pub(super) async fn close(self) {
        if let Some(exporter) = self.exporter {
            exporter.close(LAST_WITHIN).await;
        }
    }
}

/// What a request waited for the load of.
fn waited_for(record: &AccessRecord) -> Option<ArtefactId> {
    record.load.filter(|load| !load.is_zero())?;
    let (endpoint, target) = (record.endpoint.clone()?, record.target.clone()?);
    let model = ModelId { endpoint, target };
    Some(ArtefactId { model, version: record.version.clone()? })
}

/// What a request asked for and never had, since when, and why as far as that was said: a client may
/// have left.
fn gave_up(record: &AccessRecord) -> Option<(ModelId, SystemTime, Option<ErrorKind>)> {
    let steps = record.steps.as_ref().filter(|_| record.load.is_none())?;
    let since = record.time + steps.invoked?;
    let has_left = record.status == LEFT;
    let (endpoint, target) = (record.endpoint.clone()?, record.target.clone()?);
    let asked = (ModelId { endpoint, target }, since, steps.failed);
    (has_left || steps.failed.is_some()).then_some(asked)
}

/// A client that trusts whom this machine trusts, follows no redirect and uses no proxy.
fn sender(config: &Traces) -> Result<SendFn, Error> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, secret) in &config.headers {
        let mut value = HeaderValue::from_str(secret.reveal())
            .map_err(|error| Failure::from_error(ErrorKind::Internal, &error))?;
        value.set_sensitive(true);
        headers.insert(name.clone(), value);
    }
    let client = Client::builder()
        .default_headers(headers)
        .redirect(Policy::none())
        .no_proxy()
        .tls_backend_preconfigured(trust::ours_and(None)?)
        .build()
        .map_err(|error| Failure::from_error(ErrorKind::Internal, &error))?;
    let url = config.url.clone();
    Ok(Arc::new(move |body| {
        let request = client.post(url.clone()).body(body);
        async move {
            let response = request.send().await.map_err(|error| Refused {
                again: true,
                // An address may hold a key.
                why: chain(&error.without_url()),
            })?;
            taken(response.status())
        }
        .boxed()
    }))
}

/// What an answer means, as OTLP has it: these four are to be tried again.
fn taken(status: StatusCode) -> Result<(), Refused> {
    if status.is_success() {
        return Ok(());
    }
    let again = [
        StatusCode::TOO_MANY_REQUESTS,
        StatusCode::BAD_GATEWAY,
        StatusCode::SERVICE_UNAVAILABLE,
        StatusCode::GATEWAY_TIMEOUT,
    ];
    Err(Refused { again: again.contains(&status), why: format!("it answered {status}") })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use axum::Router;
    use axum::routing::post;
    use bytes::Bytes;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::cli::ServeFlags;
    use crate::config::Config;
    use crate::connections::Connections;

    /// A collector that keeps the keys and bodies it was sent.
    async fn collector(status: u16) -> (String, Arc<Mutex<Vec<(String, Bytes)>>>) {
        let taken = Arc::<Mutex<Vec<(String, Bytes)>>>::default();
        let keep = taken.clone();
        let take = move |headers: HeaderMap, body: Bytes| {
            let key = headers["x-key"].to_str().unwrap().to_owned();
            keep.lock().unwrap().push((key, body));
            async move { StatusCode::from_u16(status).unwrap() }
        };
        let router = Router::new().route("/v1/traces", post(take));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let connections = Connections::new(8, Duration::from_secs(300));
        let port = crate::http::Port { router, tls: None, connections, threads: None };
        tokio::spawn(crate::http::serve(listener, port, CancellationToken::new()));
        (at, taken)
    }

    fn config(at: &str) -> Traces {
        let env = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(at.to_owned()),
            "OTEL_EXPORTER_OTLP_HEADERS" => Some("x-key=secret".to_owned()),
            _ => None,
        };
        let flags = ServeFlags { store: vec!["file:///models/".into()], ..ServeFlags::default() };
        Config::parse(None, &env, &flags).unwrap().traces.unwrap()
    }

    #[tokio::test]
    async fn a_collector_is_sent_bodies_with_its_keys() {
        let (at, taken) = collector(200).await;
        let send = sender(&config(&at)).unwrap();
        send(Bytes::from_static(b"{}")).await.unwrap();
        assert_eq!(*taken.lock().unwrap(), [("secret".to_owned(), Bytes::from_static(b"{}"))]);
    }

    #[tokio::test]
    async fn only_who_may_take_it_later_is_asked_again() {
        for (status, again) in [(503, true), (429, true), (400, false), (302, false)] {
            let (at, _taken) = collector(status).await;
            let send = sender(&config(&at)).unwrap();
            let refused = send(Bytes::new()).await.unwrap_err();
            assert_eq!(refused.again, again, "{status}");
            assert!(refused.why.contains(&status.to_string()), "{}", refused.why);
        }
        let nobody = sender(&config("http://127.0.0.1:9/?secret")).unwrap();
        let refused = nobody(Bytes::new()).await.unwrap_err();
        assert!(refused.again && !refused.why.contains("secret"), "{}", refused.why);
    }

    #[tokio::test]
    async fn the_last_spans_are_sent_when_the_server_ends() {
        let (at, taken) = collector(200).await;
        let tracing = Tracing::start(Some(&config(&at))).unwrap();
        let trace = tracing.tracer.accept(&HeaderMap::new()).unwrap();
        let now = std::time::SystemTime::now();
        let span = roundhouse_traces::Span::within(trace.span(), "last", (now, now));
        tracing.tracer.ended(&trace, vec![span]);
        tracing.close().await;
        let taken = taken.lock().unwrap();
        let body = String::from_utf8_lossy(&taken[0].1);
        assert!(body.contains("\"last\"") && body.contains("service.instance.id"), "{body}");
    }
}
