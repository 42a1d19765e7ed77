//! One request and what came of it.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::header::HeaderMap;

use crate::face::Face;
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
    /// SageMaker's name of the endpoint.
    pub(crate) endpoint: String,
    pub(crate) face: Face,
    /// Whether answers come in pieces.
    pub(crate) stream: bool,
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
        let asked = way.face.asked(case, &way.endpoint, way.stream)?;
        let url = format!("{}{}", way.base.trim_end_matches('/'), asked.path);
        let mut request = self.http.post(url).json(&asked.body);
        if let Some((name, value)) = asked.header {
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
        if !self.way.stream || !response.status().is_success() {
            return response.text().await.map_err(|error| error.to_string());
        }
        let mut bytes = response.bytes_stream();
        let (mut waiting, mut text, mut done) = (Vec::new(), String::new(), false);
        while let Some(part) = bytes.next().await {
            waiting.extend_from_slice(&part.map_err(|error| error.to_string())?);
            while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = waiting.drain(..=end).collect();
                match piece(&String::from_utf8_lossy(&line)) {
                    Piece::Text(piece) => {
                        seen.pieces.push(Instant::now());
                        text += &piece;
                    }
                    Piece::End => done = true,
                    Piece::Failure(message) => return Err(message),
                    Piece::Nothing => {}
                }
            }
        }
        if done { Ok(text) } else { Err("the stream stopped before its end".into()) }
    }
}

/// What a line of an event stream says.
#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    End,
    Failure(String),
    Nothing,
}

fn piece(line: &str) -> Piece {
    let Some(data) = line.trim().strip_prefix("data:").map(str::trim) else {
        return Piece::Nothing;
    };
    if data == "[DONE]" {
        return Piece::End;
    }
    let event: serde_json::Value = serde_json::from_str(data).unwrap_or_default();
    if let Some(error) = event.get("error") {
        return Piece::Failure(error.to_string());
    }
    let choice = &event["choices"][0];
    let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
    // A token may be no text, or half a character: it counts as long as it is no end.
    match text {
        Some("") if choice["delta"].get("role").is_some() => Piece::Nothing,
        Some(text) if !text.is_empty() || choice["finish_reason"].is_null() => {
            Piece::Text(text.to_owned())
        }
        _ => Piece::Nothing,
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_both_kinds_of_completions_are_text() {
        let text = |it: &str| Piece::Text(it.into());
        assert_eq!(
            piece("data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\n"),
            text("a")
        );
        assert_eq!(piece("data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\r\n"), text("b"));
        let role = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}";
        assert_eq!(piece(role), Piece::Nothing);
        let last = "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"stop\"}]}";
        assert_eq!(piece(last), Piece::Nothing);
        assert_eq!(piece("data: [DONE]"), Piece::End);
        assert_eq!(piece(": a comment"), Piece::Nothing);
        assert!(matches!(piece("data: {\"error\":{\"message\":\"no\"}}"), Piece::Failure(_)));
    }
}
