//! Answers requests whose callers do not wait: the way of any other request, but for the door, which
//! it passed when it came, and for the limits of people who wait.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::post;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderName, HeaderValue, header};
use roundhouse_types::{ErrorKind, Failure, RetryHint};
use serde_json::json;
use tower::ServiceExt as _;

use crate::call::Context;
use crate::cut::Cut;
use crate::error::{Error, Face};
use crate::layers;
use crate::router::{Gateway, named};
use crate::sagemaker;
use crate::sessions::Sessions;
use crate::state::{Done, Due, GatewayConfig, GatewayState};

/// The longest that such an answer may take: SageMaker's own limit. Whoever asks has a shorter one.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long a turn waits for a load, which goes on without it: the turns are few.
const HOLD: Duration = Duration::from_secs(10);

/// Answers deferred requests. Clones are the same.
#[derive(Clone)]
pub struct Later {
    router: Router,
}

/// Left in a response that says no more than "not now".
#[derive(Clone)]
struct NotNow {
    why: String,
    after: Option<Duration>,
}

impl Later {
    /// For the endpoints of a gateway.
    pub fn new(state: &GatewayState) -> Self {
        let config = GatewayConfig {
            invoke_timeout: LONGEST,
            stream_timeout: LONGEST,
            hold: state.config.hold.min(HOLD),
            served_headers: false,
            ..state.config.clone()
        };
        let gateway = Gateway::new(GatewayState {
            config,
            identity: state.identity.clone(),
            offered: state.offered.clone(),
            invoke: state.invoke.clone(),
            accounts: state.accounts.clone(),
            health: state.health.clone(),
            access: state.access.clone(),
            tracer: state.tracer.clone(),
            defer: None,
            container: None,
            platform: None,
            sessions: Sessions::new(None),
            // Whoever stops the server drops what is under way: it is not to fail, but to wait.
            cut: Cut::pair().1,
        });
        let routes = Router::new()
            .route("/endpoints/{endpoint}/invocations", named("invoke_deferred", post(answer)))
            .with_state(gateway.clone());
        Self { router: layers::around_known(routes, &gateway) }
    }

    /// Answers one. Dropping the future cancels it.
    pub async fn answer(&self, due: Due) -> Done {
        let most = due.most;
        let request = match request(due) {
            Ok(request) => request,
            Err(why) => return failed(400, "BadRequestException", &why),
        };
        let response = match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        let status = response.status();
        if let Some(NotNow { why, after }) = response.extensions().get().cloned() {
            return Done::NotNow { why, after };
        }
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|it| it.to_str().ok()).map(str::to_owned);
        match gather(response, most).await {
            Ok(body) if status.is_success() => Done::Answered { content_type, body },
            Ok(body) => Done::Failed { status: status.as_u16(), content_type, body },
            Err(why) => failed(500, "PredictionException", &why),
        }
    }
}

fn failed(status: u16, kind: &str, message: &str) -> Done {
    let body = json!({"code": status, "type": kind, "message": message}).to_string();
    Done::Failed { status, content_type: Some("application/json".into()), body: body.into() }
}

fn request(due: Due) -> Result<Request, String> {
    let length = due.body.len();
    let mut request = Request::post(format!("/endpoints/{}/invocations", due.endpoint))
        .header(header::CONTENT_LENGTH, length)
        .body(Body::from(due.body))
        .map_err(|error| error.to_string())?;
    for (name, value) in due.headers {
        let name = HeaderName::try_from(name).map_err(|error| error.to_string())?;
        let value = HeaderValue::try_from(value).map_err(|error| error.to_string())?;
        request.headers_mut().append(name, value);
    }
    request.extensions_mut().insert(due.caller);
    Ok(request)
}

/// The whole body; an answer that breaks off is none.
async fn gather(response: Response, most: u64) -> Result<Bytes, String> {
    let mut pieces = response.into_body().into_data_stream();
    let mut whole = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| format!("the answer broke off: {error}"))?;
        if whole.len() as u64 + piece.len() as u64 > most {
            return Err(format!("the answer is larger than {most} bytes"));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// The one route. Its errors are told as a container would: they are kept as an object, not answered.
async fn answer(context: Context, path: sagemaker::EndpointPath, request: Request) -> Response {
    match sagemaker::invoke_due(&context, path, request).await {
        Ok(response) => response,
        Err(error) => {
            let mut response = error.respond(Face::Container);
            if let Some(not_now) = not_now(&error) {
                context.notes.meter().withdraw();
                response.extensions_mut().insert(not_now);
            }
            response
        }
    }
}

/// Whether the request may be answered another time, as far as we know: what a model says is its
/// last word.
fn not_now(error: &Error) -> Option<NotNow> {
    let passes = |failure: &Failure| {
        let passing = [
            ErrorKind::NotReady,
            ErrorKind::Overloaded,
            ErrorKind::Throttled,
            ErrorKind::StoreUnavailable,
            // Settings that change take endpoints out and in.
            ErrorKind::EndpointNotFound,
        ];
        failure.status().is_none() && passing.contains(&failure.kind())
    };
    match error {
        Error::Failed(failure) | Error::OfContainer { failure, .. } if passes(failure) => {}
        Error::Refused(_) => {}
        _ => return None,
    }
    let after = match error.retry() {
        RetryHint::After(wait) => Some(wait),
        RetryHint::Later | RetryHint::Never => None,
    };
    Some(NotNow { why: error.to_string(), after })
}
