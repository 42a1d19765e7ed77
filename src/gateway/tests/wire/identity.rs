//! Who is let in, and what the others are told.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use http::{HeaderName, HeaderValue, Request};
use roundhouse_gateway::GatewayConfig;
use roundhouse_tenancy::{AuthConfig, Fetch, Identity, KeyFile, Peer, ProxyConfig, Wanted};
use roundhouse_types::TenantName;

use crate::support::{Got, Setup, hello, says};

const CHAT: &str = r#"{"model":"a","messages":[{"role":"user","content":"hi"}]}"#;

fn fetch() -> Fetch {
    Arc::new(|_| Box::pin(async { Err("nothing is fetched".to_owned().into()) }))
}

struct Keyed {
    _folder: tempfile::TempDir,
    config: AuthConfig,
    key: String,
}

fn keyed() -> Keyed {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let acme: TenantName = "acme".parse().unwrap();
    let minted = KeyFile::create(&path, Wanted::Bearer(acme), None).unwrap();
    let key = minted.secret.reveal().to_owned();
    let config = AuthConfig { keys: Some(path), anonymous: false, ..AuthConfig::default() };
    Keyed { _folder: folder, config, key }
}

fn setup(config: &AuthConfig) -> Setup {
    let identity = Arc::new(Identity::new(config, fetch()).unwrap());
    Setup { identity, ..Setup::default() }
}

fn chat(authorization: Option<&str>) -> Request<Body> {
    let mut request =
        Request::post("/v1/chat/completions").header("content-type", "application/json");
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    request.body(Body::from(CHAT)).unwrap()
}

#[tokio::test]
async fn a_key_lets_its_tenant_in_and_is_logged_by_its_id() {
    let Keyed { _folder, config, key } = keyed();
    let harness = setup(&config).with(|_| says(hello(1), 1));
    let got = harness.send(chat(Some(&format!("Bearer {key}")))).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let asked = harness.asked.lock().unwrap();
    assert_eq!(asked[0].caller.tenant.as_ref().unwrap().as_str(), "acme");
    let logged = harness.logged.lock().unwrap();
    assert_eq!(logged[0].tenant.as_deref(), Some("acme"));
    let id = logged[0].credential.as_deref().unwrap();
    assert!(key.contains(id) && !id.contains(key.rsplit('-').next().unwrap()), "{id}");
}

#[tokio::test]
async fn without_a_credential_each_face_says_so_in_its_words() {
    let Keyed { _folder, config, .. } = keyed();
    let harness = setup(&config).with(|_| panic!("nobody may ask"));
    let got = harness.send(chat(None)).await;
    assert_eq!((got.status.as_u16(), got.header("www-authenticate")), (401, "Bearer"));
    assert_eq!(got.json()["error"]["code"], "invalid_api_key");
    let got = harness.send(chat(Some("Bearer sk-wrong"))).await;
    assert_eq!(
        (got.status.as_u16(), &got.json()["error"]["type"]),
        (401, &"invalid_request_error".into())
    );
    for path in
        ["/endpoints/ep/invocations", "/invocations", "/endpoints/ep/invocations-response-stream"]
    {
        let request = Request::post(path).body(Body::from("{}")).unwrap();
        let got = harness.send(request).await;
        assert_eq!(got.status, 403, "{path}");
        assert_eq!(got.header("x-amzn-errortype"), "MissingAuthenticationTokenException");
        assert_eq!(got.json()["Message"], "Missing Authentication Token");
    }
    // What is not there is not shown to strangers either.
    for path in ["/v1/models", "/none", "/v1/models/a"] {
        let got = harness.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert!([401, 403].contains(&got.status.as_u16()), "{path}: {}", got.status);
    }
    let got = harness.send(Request::get("/ping").body(Body::empty()).unwrap()).await;
    assert_eq!(got.status, 200);
    let logged = harness.logged.lock().unwrap();
    assert!(logged.iter().all(|record| record.tenant.is_none()));
}

fn proxied(request: Request<Body>, peer: Option<&str>) -> Request<Body> {
    let mut request = request;
    request.headers_mut().insert("x-who", HeaderValue::from_static("umbrella"));
    if let Some(peer) = peer {
        let peer = Peer { address: peer.parse().unwrap(), certificate: None };
        request.extensions_mut().insert(peer);
    }
    request
}

#[tokio::test]
async fn a_tenant_in_a_header_is_believed_from_the_proxy_alone() {
    let proxy = ProxyConfig {
        networks: vec!["10.0.0.0/8".parse().unwrap()],
        header: HeaderName::from_static("x-who"),
    };
    let config = AuthConfig { proxy: Some(proxy), anonymous: false, ..AuthConfig::default() };
    let harness = setup(&config).with(|_| says(hello(1), 1));
    for peer in [None, Some("11.0.0.1"), Some("127.0.0.1")] {
        let got: Got = harness.send(proxied(chat(None), peer)).await;
        assert_eq!(got.status, 401, "{peer:?}");
    }
    assert!(harness.asked.lock().unwrap().is_empty());
    let got = harness.send(proxied(chat(None), Some("10.9.9.9"))).await;
    assert_eq!(got.status, 200);
    let asked = harness.asked.lock().unwrap();
    assert_eq!(asked[0].caller.tenant.as_ref().unwrap().as_str(), "umbrella");
}

/// A request whose body never ends.
fn endless() -> Request<Body> {
    let body = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some((Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"x")), ()))
    });
    Request::post("/invocations").body(Body::from_stream(body)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn whoever_has_no_key_cannot_have_a_body_held() {
    let Keyed { _folder, config, .. } = keyed();
    let harness = setup(&config).with(|_| panic!("nobody may ask"));
    // Thrown away for some seconds, then the answer comes.
    let got = harness.send(endless()).await;
    assert_eq!(got.status, 403);
    let logged = harness.logged.lock().unwrap();
    assert_eq!(logged[0].bytes_in, 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_refused_takes_no_place_of_somebody_who_signs() {
    let Keyed { _folder, config, .. } = keyed();
    let acme: TenantName = "acme".parse().unwrap();
    let path = config.keys.clone().unwrap();
    let pair = KeyFile::create(&path, Wanted::Sigv4(acme), None).unwrap();
    let noon = || SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_262_700);
    let identity = Arc::new(Identity::new(&config, fetch()).unwrap().with_clock(noon));
    let config = GatewayConfig { max_requests: 1, ..GatewayConfig::default() };
    let harness = Setup { config, identity, ..Setup::default() }.with(|_| panic!("nobody may ask"));
    // Its signature is wrong, which only its body can tell.
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/20261121/eu-central-1/sagemaker/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature={}",
        pair.record.id,
        "0".repeat(64)
    );
    let signed = Request::post("/invocations")
        .header("host", "here")
        .header("x-amz-date", "20261121T120500Z")
        .header("authorization", authorization)
        .body(Body::from("{}"))
        .unwrap();
    let (refused, signed) = tokio::join!(harness.send(endless()), harness.send(signed));
    assert_eq!((refused.status.as_u16(), signed.status.as_u16()), (403, 403), "{}", signed.text());
    assert!(signed.text().contains("signature we calculated does not match"), "{}", signed.text());
}
