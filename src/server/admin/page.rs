//! The live page: plain files in the binary. They tell nothing about this server and are given to
//! everybody who comes by its name; what they show they ask for with the operator's key.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
    X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::guard::{self, Guard};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! file {
    ($kind:expr, $name:literal) => {
        (concat!("/page/", $name), $kind, include_str!(concat!("page/", $name)))
    };
}

/// Everything the page consists of: path, type, text.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("page/index.html")),
    file!(IMAGE, "icon.svg"),
    file!(STYLE, "base.css"),
    file!(STYLE, "parts.css"),
    file!(SCRIPT, "app.js"),
    file!(SCRIPT, "charts.js"),
    file!(SCRIPT, "containers.js"),
    file!(SCRIPT, "dom.js"),
    file!(SCRIPT, "house.js"),
    file!(SCRIPT, "loads.js"),
    file!(SCRIPT, "log.js"),
    file!(SCRIPT, "model.js"),
    file!(SCRIPT, "models.js"),
    file!(SCRIPT, "stalls.js"),
    file!(SCRIPT, "state.js"),
    file!(SCRIPT, "stream.js"),
    file!(SCRIPT, "words.js"),
];

/// Scripts, styles and requests of this server alone; no text ever becomes markup or code, so that
/// a model's name can do nothing; in no frame, so that nobody can be made to click on it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// The page's files. Foreign names are refused; no key is asked for.
pub(super) fn router(guard: Arc<Guard>) -> Router {
    let files = FILES.iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(async || answer(kind, text)))
    });
    files.layer(from_fn_with_state(guard, guard::by_name))
}

fn answer(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 7] = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            HeaderValue::from_static("same-origin"),
        ),
        // Another build has another page.
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, text).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::{Request, StatusCode};
    use roundhouse_tenancy::Identity;
    use tower::ServiceExt;

    use super::*;

    async fn get_of(path: &str, host: &str) -> Response {
        let guard = Guard {
            identity: Arc::new(Identity::nobody_is_asked()),
            operators: Arc::default(),
            always_asks: true,
            hosts: Vec::new(),
            audit: Arc::new(|_| {}),
        };
        let request = Request::builder().uri(path).header("host", host);
        router(Arc::new(guard)).oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn the_page_comes_without_a_key_to_our_own_names_only() {
        for (path, kind, text) in FILES {
            let answer = get_of(path, "localhost:8081").await;
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
            assert_eq!(answer.headers()[CONTENT_TYPE], *kind);
            assert_eq!(answer.headers()[CONTENT_SECURITY_POLICY], POLICY);
            assert_eq!(answer.headers()[X_CONTENT_TYPE_OPTIONS], "nosniff");
            assert_eq!(to_bytes(answer.into_body(), usize::MAX).await.unwrap(), text.as_bytes());
            assert_eq!(get_of(path, "evil.example").await.status(), 421, "{path}");
        }
    }

    #[test]
    fn nothing_of_it_is_elsewhere_and_nothing_in_it_is_inline() {
        for (path, _, text) in FILES {
            let text = text.replace("http://www.w3.org/", "");
            for foreign in ["http:", "https:", "innerHTML", "outerHTML", "insertAdjacentHTML"] {
                assert!(!text.contains(foreign), "{path} has {foreign}");
            }
        }
        let html = FILES[0].2;
        for inline in [" style=", "<style", " onclick", " onload", "javascript:", "<script>"] {
            assert!(!html.contains(inline), "the page has {inline}");
        }
        let named = |(path, _, _): &&(&str, &str, &str)| html.contains(&path[1..]);
        assert!(FILES[1..].iter().filter(named).count() >= 4, "it names its files");
    }
}
