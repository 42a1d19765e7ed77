//! What callers send: names, headers, credentials, bodies, streams of events.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, to_bytes};
use futures_util::{FutureExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use roundhouse::cli::others;
use roundhouse_gateway::state::InvokeFn;
use roundhouse_gateway::{
    Cut, EndpointFace, GatewayConfig, GatewayState, Health, ModelFacts, Naming, Offered,
    SessionLimits, Sessions, Target as Listed, TargetPage, router,
};
use roundhouse_serving::{
    Answer, AnswerStyle, Finish, Finished, GenerationReply, HandledBody, HandledReply, Invocation,
    Origin, Piece, Reply, Route, Served, Taken, TokenInfo, TokenPlace,
};
use roundhouse_store::{ArchiveKind, StoreUri};
use roundhouse_tenancy::{
    Accounts, Asked, AuthConfig, Current, Fetch, IamConfig, Identified, Identity, Jwks, KeyFile,
    OidcConfig, Pattern, Place, Policy, QuotaRules, Wanted, parse_instant, place,
};
use roundhouse_traces::{Context, TRACEPARENT, Tracer};
use roundhouse_types::{
    Bytes, EndpointName, ErrorKind, Failure, ModelKind, TargetModel, TargetName, TenantName, Tier,
    Version,
};

use crate::driver::Target;

/// Bytes of an answer that are read.
const ANSWER_MOST: usize = 16 << 20;

/// A name in the first line, a pattern in the second.
pub(crate) fn names() -> Target {
    Box::new(|input| {
        let mut lines = input.splitn(2, |byte| *byte == b'\n');
        let name = lines.next().unwrap_or_default();
        let rest = String::from_utf8_lossy(lines.next().unwrap_or_default());
        let text = String::from_utf8_lossy(name);
        let checked = TargetModel::new(name).check();
        let pattern = rest.parse::<Pattern>();
        if let Ok(target) = &checked {
            let segments: Vec<&str> = target.as_str().split('/').collect();
            assert!(!segments.iter().any(|it| matches!(*it, "" | "." | "..")), "{target}");
            assert!(!target.as_str().contains('\0'), "{target:?}");
            assert_eq!(target.as_str().parse::<TargetName>().as_ref(), Ok(target));
        }
        if let (Ok(target), Ok(pattern)) = (&checked, &pattern) {
            let standing = place(std::slice::from_ref(pattern), target.as_str());
            assert_eq!(standing == Place::Covered, pattern.covers(target), "{pattern} {target}");
            if let Place::Before(next) = standing {
                assert!(next.as_str() > target.as_str(), "{pattern} {target} {next}");
            }
        }
        if let Ok(pattern) = &pattern {
            assert_eq!(pattern.to_string().parse::<Pattern>().as_ref(), Ok(pattern));
        }
        let told = |text: String| text.split_whitespace().take(6).collect::<Vec<_>>().join(" ");
        format!(
            "{} {} {} {} {} {} {} {} {}",
            checked.map_or_else(|why| told(why.to_string()), |_| "ok".into()),
            pattern.map_or_else(|why| told(why.to_string()), |it| format!("{:?}", it.reach())),
            text.parse::<EndpointName>().is_ok(),
            text.parse::<TenantName>().is_ok(),
            text.parse::<Bytes>().is_ok(),
            text.parse::<StoreUri>().map_or_else(|why| told(why.to_string()), |_| "uri".into()),
            ArchiveKind::of(&text).is_some(),
            parse_instant(&text).is_ok(),
            traced(&text),
        )
    })
}

/// Whether a text is a trace's context.
fn traced(text: &str) -> bool {
    let Ok(value) = HeaderValue::from_str(text) else { return false };
    Context::read(&HeaderMap::from_iter([(TRACEPARENT, value)])).is_some()
}

/// A request as it stands on the wire: a line, headers, an empty line, a body.
struct Whole {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Whole {
    /// What hyper would hand on; nothing where it would refuse.
    fn read(input: &[u8]) -> Option<Self> {
        let mut rest = input;
        let mut line = || {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            let line = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            line.strip_suffix(b"\r").unwrap_or(line)
        };
        let first = line();
        let mut words = first.splitn(2, |byte| *byte == b' ');
        let method = Method::from_bytes(words.next()?).ok()?;
        let uri = Uri::try_from(words.next()?).ok()?;
        let mut headers = HeaderMap::new();
        loop {
            let line = line();
            if line.is_empty() {
                break;
            }
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            let value = line[colon + 1..].trim_ascii();
            headers.try_append(name, HeaderValue::from_bytes(value).ok()?).ok()?;
        }
        Some(Self { method, uri, headers, body: rest.to_vec() })
    }
}

/// A router whose models answer everything that generates with two words.
fn gateway(identity: Identity, invoke: InvokeFn, engines: bool) -> Router {
    let face = |name: &str| EndpointFace {
        name: name.parse().unwrap(),
        // Bodies are read here, not by a handler.
        handlers: false,
        engines,
        naming: Naming::default(),
        capture: None,
        containers: None,
        base: Arc::new(|_| None),
        facts: Arc::new(|_| None::<ModelFacts>),
        list: Arc::new(|_| {
            let target = Listed { name: "acme/a".parse().unwrap(), modified: None };
            async move { Ok(TargetPage { targets: vec![target], more: false }) }.boxed()
        }),
        find: Arc::new(|name| {
            async move { Ok(Listed { name, modified: Some(SystemTime::UNIX_EPOCH) }) }.boxed()
        }),
    };
    let endpoints = vec![face("default"), face("ep")];
    let offered = Offered { endpoints, policy: Arc::new(Policy::default()) };
    let (_, cut) = Cut::pair();
    router(GatewayState {
        config: GatewayConfig { body_timeout: Duration::from_secs(5), ..GatewayConfig::default() },
        identity: Arc::new(identity),
        offered: Arc::new(Current::new(offered)),
        invoke,
        accounts: Arc::new(Accounts::new(QuotaRules::default())),
        health: Arc::new(|| Health::Healthy),
        access: Arc::new(drop),
        tracer: Tracer::default(),
        defer: None,
        container: None,
        sessions: Sessions::new(Some(SessionLimits::default())),
        cut,
        platform: None,
    })
}

fn talks() -> InvokeFn {
    Arc::new(|invocation| async move { says(&invocation) }.boxed())
}

fn served() -> Served {
    Served {
        version: Version::from_digest("0123abcd"),
        tier: Tier::Disk,
        kind: ModelKind::Generative,
        load: Duration::ZERO,
        queue: Duration::ZERO,
        style: AnswerStyle::default(),
    }
}

fn says(invocation: &Invocation) -> Result<Answer, Failure> {
    use roundhouse_serving::Request as What;
    let choices = match &invocation.request {
        What::Chat(chat) => chat.n,
        What::Completion(completion) => completion.n * completion.prompts.len(),
        What::Inputs(inputs) if inputs.only.is_none_or(|kind| kind == ModelKind::Generative) => {
            inputs.texts.len()
        }
        _ => return Err(Failure::new(ErrorKind::Overloaded, "no room")),
    };
    let one = |choice| {
        let token = TokenInfo {
            id: 10,
            text: "Hello é".into(),
            logprob: Some(-0.5),
            rank: Some(1),
            special: false,
            place: TokenPlace::Text,
            top: vec![(10, "Hello".to_owned(), -0.5)],
        };
        let finished =
            Finished { reason: Finish::EndOfSequence, generated_tokens: 1, cached_tokens: 0 };
        let text = "Hello é".to_owned();
        let finished = Some(finished);
        let (prompt, calls) = (Vec::new(), Vec::new());
        Piece { choice, text, tokens: vec![token], prompt, calls, finished }
    };
    let choices = choices.max(1);
    let pieces = Box::pin(stream::iter((0..choices).map(one).map(Ok)));
    let (prompt_tokens, prompts) = (vec![3; choices], Vec::new());
    let taken = Taken::default();
    let reply = GenerationReply { prompt_tokens, prompts, pieces, seed: 42, taken };
    Ok(Answer { reply: Reply::Generation(reply), served: served() })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Sends a request and reads its answer to the end.
fn answered(runtime: &tokio::runtime::Runtime, router: &Router, whole: Whole) -> String {
    let mut request = Request::new(Body::from(whole.body));
    *request.method_mut() = whole.method;
    *request.uri_mut() = whole.uri;
    *request.headers_mut() = whole.headers;
    runtime.block_on(async {
        let mut service = router.clone();
        let answer = tower::Service::call(&mut service, request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let body = to_bytes(body, ANSWER_MOST).await.unwrap_or_default();
        let text: String = String::from_utf8_lossy(&body).chars().take(300).collect();
        assert_ne!(parts.status.as_u16(), 500, "{text}");
        format!("{} {text}", "s".repeat(usize::from(parts.status.as_u16() % 97)))
    })
}

/// All of a request.
pub(crate) fn whole_requests() -> Target {
    let runtime = runtime();
    let router = gateway(Identity::nobody_is_asked(), talks(), false);
    Box::new(move |input| match Whole::read(input) {
        Some(whole) => answered(&runtime, &router, whole),
        None => "not a request".into(),
    })
}

/// A path in the first line, JSON below.
pub(crate) fn json_bodies() -> Target {
    let runtime = runtime();
    let router = gateway(Identity::nobody_is_asked(), talks(), false);
    Box::new(move |input| {
        let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len());
        let Ok(uri) = Uri::try_from(&input[..end]) else { return "not a path".into() };
        let body = input.get(end + 1..).unwrap_or_default().to_vec();
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let target = HeaderValue::from_static("acme/a");
        headers.insert("x-amzn-sagemaker-target-model", target);
        answered(&runtime, &router, Whole { method: Method::POST, uri, headers, body })
    })
}

/// A request whose sender must say who it is. Nothing that is not signed by one of our keys may be let
/// in, and those are made anew for each run.
pub(crate) fn credentials() -> Target {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let acme: TenantName = "acme".parse().unwrap();
    KeyFile::create(&path, Wanted::Bearer(acme.clone()), None).unwrap();
    KeyFile::create(&path, Wanted::Sigv4(acme.clone()), None).unwrap();
    let jwks = folder.path().join("jwks.json");
    std::fs::write(&jwks, r#"{"keys":[]}"#).unwrap();
    let issuer = |name: &str| OidcConfig {
        issuer: name.to_owned(),
        audience: "roundhouse".to_owned(),
        jwks: Jwks::File(jwks.clone()),
        claim: "tenant".to_owned(),
        tenants: roundhouse_tenancy::Named::Any,
        leeway: Duration::ZERO,
    };
    let config = AuthConfig {
        keys: Some(path),
        oidc: vec![issuer("https://a.example"), issuer("https://b.example")],
        iam: Some(IamConfig {
            sts: vec!["https://sts.eu-central-1.amazonaws.com".to_owned()],
            server_id: "house-1".to_owned(),
            tenants: vec![("123456789012".parse().unwrap(), acme)],
        }),
        anonymous: false,
        ..AuthConfig::default()
    };
    let fetch: Fetch =
        Arc::new(|_| Box::pin(async { Err("nothing is fetched".to_owned().into()) }));
    // The date of the corpus.
    let identity = runtime
        .block_on(async { Identity::new(&config, fetch) })
        .unwrap()
        .with_clock(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160));
    Box::new(move |input| {
        let _kept = &folder;
        let Some(whole) = Whole::read(input) else { return "not a request".into() };
        let asked =
            Asked { method: &whole.method, uri: &whole.uri, headers: &whole.headers, peer: None };
        runtime.block_on(async {
            match identity.identify(&asked).await {
                Ok(Identified::Caller(caller)) => panic!("let in: {caller:?}"),
                Ok(Identified::IfBody(signed)) => match identity.verify(*signed, &whole.body) {
                    Ok(caller) => panic!("let in: {caller:?}"),
                    Err(denied) => denied.to_string(),
                },
                Err(denied) => denied.to_string(),
            }
        })
    })
}

/// An engine's answer as it goes out through us, and a server's as our own client reads it.
pub(crate) fn event_streams() -> Target {
    let runtime = runtime();
    let slot: Arc<Mutex<bytes::Bytes>> = Arc::default();
    let body = slot.clone();
    let invoke: InvokeFn = Arc::new(move |_| {
        let reply = HandledReply {
            status: 200,
            content_type: Some("text/event-stream".to_owned()),
            headers: Vec::new(),
            body: HandledBody::Whole(body.lock().unwrap().clone()),
            origin: Origin::Engine(Route::Chat),
        };
        async move { Ok(Answer { reply: Reply::Handled(reply), served: served() }) }.boxed()
    });
    let router = gateway(Identity::nobody_is_asked(), invoke, true);
    let chat = br#"{"model":"acme/a","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    Box::new(move |input| {
        *slot.lock().unwrap() = bytes::Bytes::copy_from_slice(input);
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let uri = Uri::from_static("/v1/chat/completions");
        let whole = Whole { method: Method::POST, uri, headers, body: chat.to_vec() };
        let relayed = answered(&runtime, &router, whole);
        let read = others::event_stream(input);
        let read = read.map_or_else(
            |why| why.to_string(),
            |count| format!("{} frames", "f".repeat(count.min(3))),
        );
        format!("{read} {relayed}")
    })
}
