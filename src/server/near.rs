//! What the data port refuses where it asks nobody and only this machine can reach it.
//!
//! Loopback keeps others out, and their pages are in our users' browsers: one that got here by a
//! name of its own (DNS rebinding) is known by its `Host`, one that only sends by its `Origin`.
//! Where callers are asked who they are a page has nothing to show; where the port is reached from
//! afar, or by SageMaker, names are not ours to know.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use axum::{Json, Router};
use roundhouse_tenancy::Identity;
use serde_json::json;
use tower::{ServiceExt, service_fn};

use crate::admin::{host, is_foreign, is_ours};
use crate::config::Config;

/// What probes ask; it tells nothing.
const PROBES: [&str; 2] = ["/ping", "/health"];

struct Near {
    identity: Arc<Identity>,
    /// Names of this server beside `localhost` and addresses.
    hosts: Vec<String>,
}

/// The data port's routes with that refused.
pub(crate) fn around(router: Router, config: &Config, identity: Arc<Identity>) -> Router {
    if config.container.platform || !config.listen.data.ip().is_loopback() {
        return router;
    }
    let near = Near { identity, hosts: config.listen.admin_hosts.clone() };
    let near = Arc::new(near);
    Router::new().fallback_service(service_fn(move |request: Request| {
        let refused = near.refuses(&request).map(IntoResponse::into_response);
        let routes = router.clone();
        async move {
            match refused {
                Some(refused) => Ok(refused),
                None => routes.oneshot(request).await,
            }
        }
    }))
}

impl Near {
    fn refuses(&self, request: &Request) -> Option<impl IntoResponse + use<>> {
        if self.identity.asks() || PROBES.contains(&request.uri().path()) {
            return None;
        }
        let headers = request.headers();
        let said = host(request.uri(), headers);
        let refused = |status: StatusCode, message: &str| {
            Some((status, Json(json!({"error": {"message": message}}))))
        };
        match said {
            // Browsers always say one.
            None if !headers.contains_key(header::HOST) => return None,
            Some(host) if is_ours(host, &self.hosts) => {}
            _ => {
                let message = "without [auth] this port is reached as localhost, by an address, or \
                               by a name of listen.admin_hosts";
                return refused(StatusCode::MISDIRECTED_REQUEST, message);
            }
        }
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match !is_read && is_foreign(headers, said.unwrap_or_default()) {
            true => refused(StatusCode::FORBIDDEN, "a page of another origin may not do this"),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::any;
    use roundhouse_tenancy::AuthConfig;

    use super::*;
    use crate::cli::ServeFlags;

    fn port(settings: &str, auth: &AuthConfig) -> Router {
        let fetch: roundhouse_tenancy::Fetch =
            Arc::new(|_| Box::pin(async { Err(String::new().into()) }));
        let flags = ServeFlags { store: vec!["file:///m/".into()], ..ServeFlags::default() };
        let text = format!("version = 1\n{settings}");
        let config = Config::parse(Some(&text), &|_| None, &flags).unwrap();
        let router = Router::new().fallback(any(async || "here"));
        around(router, &config, Arc::new(Identity::new(auth, fetch).unwrap()))
    }

    async fn ask(port: &Router, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        port.clone().oneshot(request).await.unwrap().status().as_u16()
    }

    #[tokio::test]
    async fn pages_of_others_reach_no_port_that_asks_nobody() {
        let port = port("[listen]\nadmin_hosts = \"house.lan\"\n", &AuthConfig::default());
        for host in ["localhost:8080", "127.0.0.1:8080", "[::1]:1", "house.lan"] {
            assert_eq!(ask(&port, "POST", "/invocations", &[("host", host)]).await, 200, "{host}");
        }
        assert_eq!(ask(&port, "GET", "/v1/models", &[("host", "evil.example")]).await, 421);
        let twice = [("host", "localhost"), ("host", "evil.example")];
        assert_eq!(ask(&port, "GET", "/v1/models", &twice).await, 421);
        let foreign = [("host", "localhost:8080"), ("origin", "http://evil.example")];
        assert_eq!(ask(&port, "POST", "/invocations", &foreign).await, 403);
        assert_eq!(ask(&port, "GET", "/ping", &[("host", "evil.example")]).await, 200);
        assert_eq!(ask(&port, "POST", "/invocations", &[]).await, 200);
    }

    #[tokio::test]
    async fn where_callers_are_asked_or_come_from_afar_every_name_is_taken() {
        let asks = AuthConfig { certificates: true, ..AuthConfig::default() };
        let afar = "[listen]\ndata = \"0.0.0.0:1\"\ninsecure_no_auth = true\n";
        let contract = "[container]\ncontract = true\n";
        let ports = [
            port("", &asks),
            port(afar, &AuthConfig::default()),
            port(contract, &AuthConfig::default()),
        ];
        for port in ports {
            let headers = [("host", "evil.example"), ("origin", "http://evil.example")];
            assert_eq!(ask(&port, "POST", "/invocations", &headers).await, 200);
        }
    }
}
