//! One request and what came of it.

use std::time::{Duration, Instant};

use crate::schedule::Case;

/// What came of a request.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) target: String,
    /// Since the start of the run, when it was to be sent.
    pub(crate) planned: Duration,
    /// From the planned time to the last byte of the answer.
    pub(crate) latency: Duration,
    pub(crate) outcome: Outcome,
    /// Where the server found the model.
    pub(crate) tier: Option<String>,
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

/// Sends requests to one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    deadline: Duration,
}

impl Client {
    pub(crate) fn new(base: &str, endpoint: &str, deadline: Duration) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .pool_max_idle_per_host(usize::MAX)
            .build()
            .map_err(|e| format!("HTTP client: {e}"))?;
        let url = format!("{}/endpoints/{endpoint}/invocations", base.trim_end_matches('/'));
        Ok(Self { http, url, deadline })
    }

    /// Sends `case` now; latency counts from `planned` after `start`.
    pub(crate) async fn send(&self, case: &Case, start: Instant, planned: Duration) -> Sample {
        let budget = (start + planned + self.deadline).saturating_duration_since(Instant::now());
        let (outcome, tier) = match tokio::time::timeout(budget, self.exchange(case)).await {
            Ok(answered) => answered,
            Err(_) => (Outcome::Late, None),
        };
        Sample {
            target: case.target.clone(),
            planned,
            latency: start.elapsed().saturating_sub(planned),
            outcome,
            tier,
        }
    }

    async fn exchange(&self, case: &Case) -> (Outcome, Option<String>) {
        let sent = self
            .http
            .post(&self.url)
            .header("x-amzn-sagemaker-target-model", &case.target)
            .json(&case.body)
            .send()
            .await;
        let response = match sent {
            Ok(response) => response,
            Err(error) => return (Outcome::Broken(error.to_string()), None),
        };
        let header = |name: &str| {
            response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let (status, tier) = (response.status(), header("x-roundhouse-tier"));
        let kind = header("x-amzn-errortype").unwrap_or_default();
        let body = match response.text().await {
            Ok(body) => body,
            Err(error) => return (Outcome::Broken(error.to_string()), tier),
        };
        if !status.is_success() {
            return (Outcome::Refused(format!("{} {kind} {body}", status.as_u16())), tier);
        }
        let right = case.contains.iter().all(|text| body.contains(text));
        (if right { Outcome::Right } else { Outcome::Wrong(body) }, tier)
    }
}
