//! A container's routes for models.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use roundhouse_types::Bytes as Amount;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

use crate::{Backend, Error, Outgoing};

/// By which a container's log says whose model it is.
pub(super) const TARGET_MODEL: HeaderName =
    HeaderName::from_static("x-amzn-sagemaker-target-model");
/// It is to answer during loads as well.
const LIST_LIMIT: Duration = Duration::from_secs(10);
/// Of answers to what is not a client's request.
const TOLD_MAX: Amount = Amount::mib(1);
/// A hundred models on each is common.
const PAGES_MAX: usize = 100;
/// What of a container's words a failure shows.
const SHOWN: usize = 2048;

/// A container's status, and what it says.
pub(super) struct Said {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Said {
    /// Its words: those of its JSON `message` or `error` where there is one, else all.
    pub(super) fn words(&self) -> String {
        let json = serde_json::from_slice::<serde_json::Value>(&self.body).ok();
        let said = json.as_ref().and_then(|json| {
            let part = json.get("message").or_else(|| json.get("error"))?;
            part.as_str().or_else(|| part.get("message")?.as_str())
        });
        let whole = String::from_utf8_lossy(&self.body);
        said.unwrap_or(whole.trim()).chars().take(SHOWN).collect()
    }
}

#[derive(Deserialize)]
struct Page {
    models: Vec<Listed>,
    #[serde(rename = "nextPageToken")]
    next: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "modelName")]
    name: String,
}

/// Asks for a model to be loaded.
pub(super) async fn load(
    backend: &Backend,
    (name, target): (&str, &HeaderValue),
    folder: &str,
    limit: Duration,
) -> Result<Said, Error> {
    let body = json!({ "model_name": name, "url": folder }).to_string();
    let mut request = request(Method::POST, "/models", Outgoing::whole(Bytes::from(body)));
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::CONTENT_TYPE, json);
    request.headers_mut().insert(TARGET_MODEL, target.clone());
    say(backend, request, limit).await
}

/// Asks for a model to leave. What a load said of its target is said again: Triton takes that for the
/// model's name, and never ends an unload of another one. Absent for what somebody else has loaded.
pub(super) async fn unload(
    backend: &Backend,
    (name, target): (&str, Option<&HeaderValue>),
    limit: Duration,
) -> Result<Said, Error> {
    let mut request = request(Method::DELETE, &format!("/models/{name}"), Outgoing::empty());
    if let Some(target) = target {
        request.headers_mut().insert(TARGET_MODEL, target.clone());
    }
    say(backend, request, limit).await
}

/// Whether a model is loaded; `None` where the answer tells neither.
pub(super) async fn has(backend: &Backend, name: &str) -> Result<Option<bool>, Error> {
    let request = request(Method::GET, &format!("/models/{name}"), Outgoing::empty());
    let said = say(backend, request, LIST_LIMIT).await?;
    Ok(match said.status {
        StatusCode::NOT_FOUND => Some(false),
        status if status.is_success() => Some(true),
        _ => None,
    })
}

/// The names of all loaded models; `None` where the answer is no such list: not all containers have it.
pub(super) async fn list(backend: &Backend) -> Result<Option<BTreeSet<String>>, Error> {
    let (mut names, mut path) = (BTreeSet::new(), "/models".to_owned());
    for _ in 0..PAGES_MAX {
        let said = say(backend, request(Method::GET, &path, Outgoing::empty()), LIST_LIMIT).await?;
        let page = serde_json::from_slice::<Page>(&said.body).ok();
        let Some(page) = page.filter(|_| said.status.is_success()) else { return Ok(None) };
        names.extend(page.models.into_iter().map(|it| it.name));
        let token = match page.next {
            Some(serde_json::Value::String(token)) if !token.is_empty() => token,
            Some(serde_json::Value::Number(token)) => token.to_string(),
            _ => return Ok(Some(names)),
        };
        path = format!("/models?next_page_token={}", escaped(&token));
    }
    Ok(None)
}

fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// A request; paths are of our own making.
pub(super) fn request(method: Method, path: &str, body: Outgoing) -> Request<Outgoing> {
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap_or_default();
    request
}

async fn say(
    backend: &Backend,
    request: Request<Outgoing>,
    limit: Duration,
) -> Result<Said, Error> {
    let response = backend.send(request, Instant::now() + limit).await?;
    let status = response.status();
    Ok(Said { status, body: response.into_body().collect(TOLD_MAX).await? })
}
