//! What a platform asks of its container's port beside the models.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, header};
use serde_json::json;

use crate::error::{Error, Face};
use crate::router::Gateway;
use crate::state::PlatformFace;

/// Prometheus' text format.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// `GET /metrics`: the platform scrapes the port that it knows.
pub(crate) async fn metrics(State(gateway): State<Gateway>) -> Response {
    match face(&gateway) {
        Ok(face) => ([(header::CONTENT_TYPE, TEXT)], (face.metrics)()).into_response(),
        Err(error) => error.respond(Face::Container),
    }
}

/// `GET /execution-parameters`: how a batch job shall send its records. One each, for a body here is
/// one request.
pub(crate) async fn execution_parameters(State(gateway): State<Gateway>) -> Response {
    match face(&gateway) {
        Ok(face) => {
            // The job's own smallest is a megabyte.
            let megabytes = (gateway.config.body_limit.0 >> 20).max(1);
            axum::Json(json!({
                "MaxConcurrentTransforms": face.transforms,
                "BatchStrategy": "SINGLE_RECORD",
                "MaxPayloadInMB": megabytes,
            }))
            .into_response()
        }
        Err(error) => error.respond(Face::Container),
    }
}

/// Takes the operator's choice for the `Accept` of requests that leave it open.
pub(crate) fn with_default_accept(routes: Router, gateway: &Gateway) -> Router {
    let Some(accept) = gateway.config.default_accept.clone() else { return routes };
    let accept = Arc::new(accept);
    routes.layer(from_fn(move |mut request: Request, next: Next| {
        if is_open(request.headers()) {
            request.headers_mut().insert(header::ACCEPT, (*accept).clone());
        }
        next.run(request)
    }))
}

fn is_open(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).is_none_or(|said| ["", "*/*"].iter().any(|open| said == open))
}

fn face(gateway: &Gateway) -> Result<&PlatformFace, Error> {
    gateway.platform.as_ref().ok_or(Error::UnknownPath)
}
