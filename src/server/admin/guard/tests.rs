use std::sync::Mutex;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use roundhouse_tenancy::{AuthConfig, KeyFile, Wanted};
use tower::ServiceExt;

use super::*;

struct Port {
    router: Router,
    guard: Arc<Guard>,
    written: Arc<Mutex<Vec<AuditRecord>>>,
}

fn port(identity: Identity, always_asks: bool) -> Port {
    behind(Arc::new(identity), always_asks)
}

fn behind(identity: Arc<Identity>, always_asks: bool) -> Port {
    let written = Arc::new(Mutex::new(Vec::new()));
    let writing = written.clone();
    let state = Arc::new(Guard {
        identity,
        operators: Arc::default(),
        always_asks,
        hosts: vec!["house.example".to_owned()],
        audit: Arc::new(move |record| writing.lock().unwrap().push(record)),
    });
    let router = Router::new()
        .route("/see", get(|| async { "seen" }))
        .route("/do", post(|body: String| async move { body }))
        .layer(from_fn_with_state(state.clone(), guard));
    Port { router, guard: state, written }
}

impl Port {
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(r#"{"target":"a"}"#)).unwrap();
        self.router.clone().oneshot(request).await.unwrap().status().as_u16()
    }
}

fn open() -> Port {
    port(Identity::nobody_is_asked(), false)
}

#[tokio::test]
async fn names_of_others_are_refused_also_on_loopback() {
    let port = open();
    for host in
        ["localhost", "localhost:8081", "127.0.0.1:1", "[::1]:8081", "10.0.0.7", "House.example:1"]
    {
        assert_eq!(port.ask("GET", "/see", &[("host", host)]).await, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example:8081", "127.0.0.1.nip.io", "", "a:b"] {
        assert_eq!(port.ask("GET", "/see", &[("host", host)]).await, 421, "{host}");
    }
    assert_eq!(port.ask("GET", "/see", &[]).await, 421);
    let twice = [("host", "localhost"), ("host", "evil.example")];
    assert_eq!(port.ask("GET", "/see", &twice).await, 421);
}

#[tokio::test]
async fn pages_of_others_cannot_act() {
    let port = open();
    let act = async |headers: &[(&str, &str)]| {
        let headers = [&[("host", "localhost:8081")], headers].concat();
        port.ask("POST", "/do", &headers).await
    };
    assert_eq!(act(&[]).await, 200);
    assert_eq!(act(&[("origin", "http://localhost:8081")]).await, 200);
    assert_eq!(act(&[("sec-fetch-site", "same-origin")]).await, 200);
    for origin in ["http://evil.example", "null", "http://localhost:3000", "", "http://localhost"] {
        assert_eq!(act(&[("origin", origin)]).await, 403, "{origin}");
    }
    for site in ["cross-site", "same-site", "anything"] {
        assert_eq!(act(&[("sec-fetch-site", site)]).await, 403, "{site}");
    }
    let twice = [("origin", "http://localhost:8081"), ("origin", "http://evil.example")];
    assert_eq!(act(&twice).await, 403);
    let see = async |headers: &[(&str, &str)]| {
        let headers = [&[("host", "localhost:8081")], headers].concat();
        port.ask("GET", "/see", &headers).await
    };
    assert_eq!(see(&[("sec-fetch-site", "same-origin")]).await, 200);
    assert_eq!(see(&[("sec-fetch-site", "none")]).await, 200);
    for foreign in [("sec-fetch-site", "cross-site"), ("origin", "http://evil.example")] {
        assert_eq!(see(&[foreign]).await, 403, "unread over there, and still work here");
    }
}

#[tokio::test]
async fn each_action_is_written_down_with_who_and_what_came_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let operator = KeyFile::create(&path, Wanted::Operator, None).unwrap();
    let tenant = Wanted::Bearer("acme".parse().unwrap());
    let tenant = KeyFile::create(&path, tenant, None).unwrap();
    let config = AuthConfig { keys: Some(path), anonymous: false, ..AuthConfig::default() };
    let fetch: roundhouse_tenancy::Fetch =
        Arc::new(|_| Box::pin(async { Err(String::new().into()) }));
    let port = port(Identity::new(&config, fetch).unwrap(), false);
    let key = format!("Bearer {}", operator.secret.reveal());
    let others = format!("Bearer {}", tenant.secret.reveal());
    let host = ("host", "localhost");
    for (shown, want) in [(Some(&key), 200), (Some(&others), 401), (None, 401)] {
        let headers: Vec<_> =
            [host].into_iter().chain(shown.map(|it| ("authorization", it.as_str()))).collect();
        assert_eq!(port.ask("POST", "/do", &headers).await, want);
        assert_eq!(port.ask("GET", "/see", &headers).await, want);
    }
    let written = port.written.lock().unwrap();
    let told: Vec<_> = written.iter().map(|it| (it.operator.as_deref(), it.status)).collect();
    let id = operator.record.id.as_str();
    assert_eq!(told, [(Some(id), 200), (None, 401), (None, 401)]);
    assert_eq!(written[0].asked.as_deref(), Some(r#"{"target":"a"}"#));
    assert_eq!(written[0].path, "/do");
    let line = serde_json::to_string(&*written).unwrap();
    assert!(!line.contains(operator.secret.reveal()) && !line.contains(tenant.secret.reveal()));
}

#[tokio::test]
async fn beyond_loopback_nobody_is_let_in_without_a_key() {
    let port = port(Identity::nobody_is_asked(), true);
    let headers = [("host", "10.0.0.7"), ("authorization", "Bearer rh-a-b")];
    assert_eq!(port.ask("GET", "/see", &headers).await, 401);
    assert_eq!(port.ask("GET", "/see", &headers[..1]).await, 401);
}

#[tokio::test]
async fn a_port_that_asked_once_asks_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let last = KeyFile::create(&path, Wanted::Operator, None).unwrap();
    let config = AuthConfig { keys: Some(path.clone()), ..AuthConfig::default() };
    let fetch: roundhouse_tenancy::Fetch =
        Arc::new(|_| Box::pin(async { Err(String::new().into()) }));
    let identity = Arc::new(Identity::new(&config, fetch).unwrap());
    let port = behind(identity.clone(), false);
    let key = format!("Bearer {}", last.secret.reveal());
    let headers = [("host", "localhost"), ("authorization", key.as_str())];
    assert_eq!(port.ask("POST", "/do", &headers).await, 200);
    let shown = HeaderValue::from_str(&key).ok();
    let pass = Pass { guard: port.guard.clone(), shown };
    assert!(pass.holds());
    identity.apply(&AuthConfig::default()).unwrap();
    assert!(!identity.has_operators());
    assert!(!pass.holds(), "a stream that was let in by the key ends");
    assert_eq!(port.ask("POST", "/do", &headers[..1]).await, 401);
    assert_eq!(port.ask("POST", "/do", &headers).await, 401);
}
