//! One request and what came of it.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::header::HeaderMap;

use crate::face::{Face, How};
use crate::pieces::Reader;
use crate::schedule::Case;

/// What came of a request.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) target: String,
    /// Who asked: the place in the list of keys.
    pub(crate) tenant: Option<usize>,
    /// Since the start of the run, when it was to be sent.
    pub(crate) planned: Duration,
    /// From the planned time to the last byte of the answer.
    pub(crate) latency: Duration,
    pub(crate) outcome: Outcome,
    /// Where the server found the model.
    pub(crate) tier: Option<String>,
    /// Of a stream: from the planned time to each piece with text.
    pub(crate) pieces: Vec<Duration>,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Right,
    /// Answered, but without the expected text.
    Wrong(String),
    /// Refused, with the status and error type.
    Refused(String),
    /// No whole answer.
    Broken(String),
    /// Later than the deadline.
    Late,
}

impl Outcome {
    pub(crate) fn label(&self) -> &str {
        match self {
            Self::Right => "right",
            Self::Wrong(_) => "wrong",
            Self::Refused(_) => "refused",
            Self::Broken(_) => "broken",
            Self::Late => "late",
        }
    }

    pub(crate) fn detail(&self) -> &str {
        match self {
            Self::Wrong(text) | Self::Refused(text) | Self::Broken(text) => text,
            Self::Right | Self::Late => "",
        }
    }
}

/// Whom requests go to, and how.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// The data port.
    pub(crate) base: String,
    pub(crate) face: Face,
    pub(crate) how: How,
    /// Bearer keys of the tenants.
    pub(crate) keys: Vec<String>,
    pub(crate) deadline: Duration,
}

/// Sends requests to one server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    way: std::sync::Arc<Way>,
}

/// What an exchange saw, also where it did not come to its end.
#[derive(Default)]
struct Seen {
    tier: Option<String>,
    pieces: Vec<Instant>,
}

impl Client {
    pub(crate) fn new(way: Way) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(usize::MAX)
            .build()
            .map_err(|e| format!("HTTP client: {e}"))?;
        Ok(Self { http, way: way.into() })
    }

    /// Sends `case` now; latency counts from `planned` after `start`.
    pub(crate) async fn send(
        &self,
        case: &Case,
        tenant: Option<usize>,
        start: Instant,
        planned: Duration,
    ) -> Sample {
        let due = start + planned;
        let budget = (due + self.way.deadline).saturating_duration_since(Instant::now());
        let mut seen = Seen::default();
        let exchange = self.exchange(case, tenant, &mut seen);
        let outcome = match tokio::time::timeout(budget, exchange).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Outcome::Broken(error),
            Err(_) => Outcome::Late,
        };
        Sample {
            target: case.target.clone(),
            tenant,
            planned,
            latency: start.elapsed().saturating_sub(planned),
            outcome,
            tier: seen.tier,
            pieces: seen.pieces.into_iter().map(|at| at.saturating_duration_since(due)).collect(),
        }
    }

    async fn exchange(
        &self,
        case: &Case,
        tenant: Option<usize>,
        seen: &mut Seen,
    ) -> Result<Outcome, String> {
        let way = &*self.way;
        let asked = way.face.asked(case, &way.how)?;
        let url = format!("{}{}", way.base.trim_end_matches('/'), asked.path);
        let mut request = self.http.post(url).json(&asked.body);
        for (name, value) in asked.headers {
            request = request.header(name, value);
        }
        if let Some(key) = tenant.and_then(|tenant| way.keys.get(tenant)) {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| error.to_string())?;
        let (status, kind) = (response.status(), header(response.headers(), "x-amzn-errortype"));
        seen.tier = header(response.headers(), "x-roundhouse-tier");
        let body = self.body(response, seen).await?;
        if !status.is_success() {
            let kind = kind.unwrap_or_default();
            return Ok(Outcome::Refused(format!("{} {kind} {body}", status.as_u16())));
        }
        let right = case.contains.iter().all(|text| body.contains(text));
        Ok(if right { Outcome::Right } else { Outcome::Wrong(body) })
    }

    /// The whole answer; of a stream the texts, one after another.
    async fn body(&self, response: reqwest::Response, seen: &mut Seen) -> Result<String, String> {
        if !self.way.how.stream || !response.status().is_success() {
            return response.text().await.map_err(|error| error.to_string());
        }
        let mut bytes = response.bytes_stream();
        let (mut reader, mut text) = (Reader::new(self.way.face.framing()), String::new());
        while let Some(part) = bytes.next().await {
            for piece in reader.take(&part.map_err(|error| error.to_string())?)? {
                seen.pieces.push(Instant::now());
                text += &piece;
            }
        }
        if let Some(piece) = reader.end()? {
            seen.pieces.push(Instant::now());
            text += &piece;
        }
        Ok(text)
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}
