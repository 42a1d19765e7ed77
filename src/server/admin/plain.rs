//! What the framework itself refuses (no such path, a wrong method, a body that is not the JSON
//! it should be), in the words of the other refusals.

use axum::Json;
use axum::body::to_bytes;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use roundhouse_types::ErrorKind;
use serde_json::json;

/// The framework's own texts are shorter.
const TEXT_MOST: usize = 8 * 1024;

/// The same answer; where it is a refusal in plain text, as JSON.
pub(super) async fn as_json(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_plain = kind.is_some_and(|kind| kind.starts_with("text/plain"));
    let is_bare = kind.is_none() && parts.status == StatusCode::METHOD_NOT_ALLOWED;
    if !parts.status.is_client_error() || !(is_plain || is_bare) {
        return Response::from_parts(parts, body);
    }
    let text = to_bytes(body, TEXT_MOST).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let message = match (text.trim(), parts.status) {
        ("", status) => status.canonical_reason().unwrap_or_default().to_lowercase(),
        (text, _) => text.to_owned(),
    };
    let kind = match parts.status {
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ErrorKind::UnsupportedMediaType,
        StatusCode::PAYLOAD_TOO_LARGE => ErrorKind::PayloadTooLarge,
        _ => ErrorKind::InvalidRequest,
    };
    let told = Json(json!({"error": {"kind": kind.as_str(), "message": message}})).into_response();
    let (json, body) = told.into_parts();
    parts.headers.extend(json.headers);
    Response::from_parts(parts, body)
}

/// No such path.
pub(super) async fn nothing_here(method: Method, uri: Uri) -> Response {
    let message = format!("{method} {} is nothing that this port answers", uri.path());
    (StatusCode::NOT_FOUND, message).into_response()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::Request;
    use axum::middleware::map_response;
    use axum::routing::post;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    async fn answer(request: Request<Body>) -> (StatusCode, Value) {
        let router = Router::new()
            .route("/order", post(async |Json(order): Json<Value>| Json(order)))
            .fallback(nothing_here)
            .layer(map_response(as_json));
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let length =
            response.headers().get("content-length").map(|length| length.to_str().unwrap());
        let length: Option<usize> = length.map(|length| length.parse().unwrap());
        let body = to_bytes(response.into_body(), TEXT_MOST).await.unwrap();
        assert!(length.is_none_or(|length| length == body.len()), "{length:?}");
        (status, serde_json::from_slice(&body).unwrap())
    }

    fn order(method: &str, path: &str, kind: &str, body: &'static str) -> Request<Body> {
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, kind);
        request.body(Body::from(body)).unwrap()
    }

    #[tokio::test]
    async fn what_the_framework_refuses_is_said_in_json() {
        let json = "application/json";
        let cases = [
            (order("POST", "/none", json, "{}"), 404, "invalid_request", "POST /none"),
            (order("GET", "/order", json, ""), 405, "invalid_request", "method not allowed"),
            (order("POST", "/order", json, "{"), 400, "invalid_request", "JSON"),
            (order("POST", "/order", "text/csv", "{}"), 415, "unsupported_media_type", "json"),
        ];
        for (request, status, kind, part) in cases {
            let (got, told) = answer(request).await;
            let message = told["error"]["message"].as_str().unwrap();
            assert_eq!((got.as_u16(), told["error"]["kind"].as_str()), (status, Some(kind)));
            assert!(message.contains(part), "{message}");
        }
    }

    #[tokio::test]
    async fn what_is_answered_stays_as_it_is() {
        let (status, told) = answer(order("POST", "/order", "application/json", "[1]")).await;
        assert_eq!((status, told), (StatusCode::OK, serde_json::json!([1])));
    }
}
