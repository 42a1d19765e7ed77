//! Who may use the admin port, and what is written down of it.
//!
//! 1. Browsers: a foreign page can have its visitor's browser send requests here. One that got here
//!    by a name of its own (DNS rebinding) is known by its `Host`, one that only sends by its
//!    `Origin` and `Sec-Fetch-Site`. All are checked on loopback, too: that is where browsers are.
//! 2. Operators: where any has a key, or had one since the process began, and wherever the port is
//!    beyond loopback, a key is asked for.
//! 3. Each action, carried out or refused, is a line of the audit log: who, what, what came of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use roundhouse_tenancy::{Denied, Identity, Peer};
use serde::Serialize;
use serde_json::json;

use crate::app::Operators;

/// The largest request that says what to do: a target's name has a kilobyte at most.
const BODY_MOST: usize = 64 * 1024;
/// Characters of it that are written down.
const SHOWN_MOST: usize = 1024;

/// Takes a line of the audit log. Must not block.
pub(crate) type AuditFn = Arc<dyn Fn(AuditRecord) + Send + Sync>;

/// What the guard works with.
pub(crate) struct Guard {
    pub(crate) identity: Arc<Identity>,
    pub(crate) operators: Arc<Operators>,
    /// Whether a key is asked for even where no operator has one.
    pub(crate) always_asks: bool,
    /// Names of this server, in lower case, beside `localhost` and addresses.
    pub(crate) hosts: Vec<String>,
    pub(crate) audit: AuditFn,
}

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct AuditRecord {
    /// What tells it from other lines of the same stream.
    audit: &'static str,
    /// When it was asked, in seconds since 1970.
    time: f64,
    /// The id of the operator's key; absent where none was asked for, or none was good.
    operator: Option<Arc<str>>,
    peer: Option<IpAddr>,
    method: String,
    path: String,
    /// What was asked, as it was sent.
    asked: Option<String>,
    /// The answer's status.
    status: u16,
    took_ms: u64,
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Host,
    Origin,
    Key(Denied),
    TooLarge,
}

/// By what a reader was let in, for answers that have no end.
#[derive(Clone)]
pub(crate) struct Pass {
    guard: Arc<Guard>,
    shown: Option<HeaderValue>,
}

impl Pass {
    /// Whether it would be let in now: its key is not revoked and not expired, and none is asked
    /// for that it has not shown.
    pub(crate) fn holds(&self) -> bool {
        self.guard.operator(self.shown.as_ref()).is_ok()
    }
}

/// Lets operators through, and writes down what they do.
pub(crate) async fn guard(
    State(guard): State<Arc<Guard>>,
    mut request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let mut record = AuditRecord::of(&request);
    let is_action = !matches!(*request.method(), Method::GET | Method::HEAD);
    let response = match guard.admit(&request) {
        Err(refused) => refused.into_response(),
        Ok(operator) => {
            record.operator = operator;
            match is_action {
                false => {
                    let shown = request.headers().get(header::AUTHORIZATION).cloned();
                    request.extensions_mut().insert(Pass { guard, shown });
                    return next.run(request).await;
                }
                true => act(&mut record, request, next).await,
            }
        }
    };
    if is_action {
        record.status = response.status().as_u16();
        record.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        (guard.audit)(record);
    }
    response
}

/// Lets through who came by a name of this server, and asks for no key: for what tells nothing of it.
pub(crate) async fn by_name(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    match guard.own_name(&request) {
        Ok(_) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

async fn act(record: &mut AuditRecord, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_MOST).await else {
        return Refused::TooLarge.into_response();
    };
    let text = String::from_utf8_lossy(&body);
    record.asked = (!text.is_empty()).then(|| text.chars().take(SHOWN_MOST).collect());
    next.run(Request::from_parts(parts, Body::from(body))).await
}

impl Guard {
    /// The name by which the request came, where it is one of this server's.
    fn own_name<'a>(&self, request: &'a Request) -> Result<&'a str, Refused> {
        let host = host(request.uri(), request.headers());
        host.filter(|host| is_ours(host, &self.hosts)).ok_or(Refused::Host)
    }

    /// Whose key it is, where one was asked for.
    fn admit(&self, request: &Request) -> Result<Option<Arc<str>>, Refused> {
        let headers = request.headers();
        let host = self.own_name(request)?;
        // Reads too: what a foreign page cannot see of an answer still costs us its making.
        if is_foreign(headers, host) {
            return Err(Refused::Origin);
        }
        self.operator(headers.get(header::AUTHORIZATION))
    }

    /// Whose key is shown, where one is asked for.
    fn operator(&self, shown: Option<&HeaderValue>) -> Result<Option<Arc<str>>, Refused> {
        if !self.always_asks && !self.operators.were_seen(&self.identity) {
            return Ok(None);
        }
        let shown = shown.ok_or(Refused::Key(Denied::Missing))?;
        let key = shown.to_str().ok().and_then(|shown| shown.split_once(' '));
        let key = key.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let (_, key) = key.ok_or(Refused::Key(Denied::Unknown))?;
        self.identity.operator(key.trim()).map(Some).map_err(Refused::Key)
    }
}

/// Whether it is a name of this server: `localhost`, one of `hosts`, or an address. That cannot be
/// rebound, so it is nobody's trick.
pub(crate) fn is_ours(host: &str, hosts: &[String]) -> bool {
    let name = name(host);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// What the client believes to be talking to; exactly one.
pub(crate) fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let mut said = headers.get_all(header::HOST).iter();
    match (said.next(), said.next()) {
        (Some(host), None) => host.to_str().ok(),
        (None, _) => uri.authority().map(axum::http::uri::Authority::as_str),
        (Some(_), Some(_)) => None,
    }
}

/// A host without its port.
fn name(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a browser says that another page than ours sends this. Programs say nothing.
pub(crate) fn is_foreign(headers: &HeaderMap, host: &str) -> bool {
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if site.is_some_and(|site| site != b"same-origin" && site != b"none") {
        return true;
    }
    headers.get_all(header::ORIGIN).iter().any(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        origin.is_none_or(|(_, origin)| !origin.eq_ignore_ascii_case(host))
    })
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, kind, message) = match self {
            Self::Host => (
                StatusCode::MISDIRECTED_REQUEST,
                "wrong_host",
                "this port is reached as localhost, by an address, or by a name of \
                 listen.admin_hosts"
                    .to_owned(),
            ),
            Self::Origin => (
                StatusCode::FORBIDDEN,
                "wrong_origin",
                "a page of another origin may not do this".to_owned(),
            ),
            Self::Key(Denied::Missing) => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "an operator's key is needed: send it as Authorization: Bearer KEY".to_owned(),
            ),
            Self::Key(Denied::Expired) => (
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "the operator's key is expired".to_owned(),
            ),
            Self::Key(_) => {
                (StatusCode::UNAUTHORIZED, "unauthorized", "this is no operator's key".to_owned())
            }
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "payload_too_large",
                format!("the request is larger than {BODY_MOST} bytes"),
            ),
        };
        let told = Json(json!({"error": {"kind": kind, "message": message}}));
        match status {
            StatusCode::UNAUTHORIZED => {
                (status, [(header::WWW_AUTHENTICATE, "Bearer")], told).into_response()
            }
            status => (status, told).into_response(),
        }
    }
}

impl AuditRecord {
    fn of(request: &Request) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            audit: "admin",
            time: since.as_secs_f64(),
            operator: None,
            peer: request.extensions().get::<Peer>().map(|peer| peer.address),
            method: request.method().to_string(),
            path: request.uri().path().chars().take(SHOWN_MOST).collect(),
            asked: None,
            status: 0,
            took_ms: 0,
        }
    }
}

#[cfg(test)]
mod tests;
