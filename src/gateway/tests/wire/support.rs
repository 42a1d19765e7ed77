//! A router over scripted models, and requests to it.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream::{self, StreamExt};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use roundhouse_gateway::state::InvokeFn;
use roundhouse_gateway::{
    AccessRecord, Capture, ContainerFace, Containers, Cut, CutOff, DeferFn, EndpointFace,
    GatewayConfig, GatewayState, Health, KvTokens, Later, ModelFacts, Naming, Offered, PageWanted,
    PlatformFace, SessionLimits, Sessions, Target, TargetPage, router,
};
use roundhouse_serving::{
    Answer, AnswerStyle, EmbeddingsReply, Finish, Finished, GenerationReply, Invocation,
    LabelScore, Piece, PieceStream, Reply, Served, Taken, TokenInfo, TokenPlace,
};
use roundhouse_tenancy::{
    Accounts, AuthConfig, Caller, Current, Fetch, Identity, Peer, Policy, ProxyConfig, QuotaRules,
};
use roundhouse_traces::Tracer;
use roundhouse_types::{ErrorKind, Failure, ModelKind, Tier, Version};
use serde_json::Value;
use tower::ServiceExt;

/// Where the proxy in front of [`proxied`] names the tenant.
const TENANT: &str = "x-tenant";

/// Everybody is let in; who comes through the proxy is the tenant that it names.
pub(crate) fn proxied() -> Arc<Identity> {
    let header = http::HeaderName::from_static(TENANT);
    let proxy = ProxyConfig { networks: vec!["127.0.0.1/32".parse().unwrap()], header };
    let config = AuthConfig { proxy: Some(proxy), ..AuthConfig::default() };
    let fetch: Fetch =
        Arc::new(|_| Box::pin(async { Err("nothing is fetched".to_owned().into()) }));
    Arc::new(Identity::new(&config, fetch).unwrap())
}

/// A router, what it was asked and what it logged.
pub(crate) struct Harness {
    pub(crate) router: Router,
    pub(crate) asked: Arc<Mutex<Vec<Invocation>>>,
    pub(crate) logged: Arc<Mutex<Vec<AccessRecord>>>,
    pub(crate) offered: Arc<Current<Offered>>,
    /// Answers what was deferred.
    pub(crate) later: Later,
    /// Who sends the requests.
    pub(crate) caller: Caller,
    /// Ends what is under way.
    pub(crate) cut_off: CutOff,
}

/// How a router is made.
pub(crate) struct Setup {
    pub(crate) config: GatewayConfig,
    pub(crate) endpoints: Vec<&'static str>,
    pub(crate) targets: Vec<&'static str>,
    pub(crate) health: Health,
    pub(crate) container: Option<ContainerFace>,
    pub(crate) defer: Option<DeferFn>,
    pub(crate) platform: Option<PlatformFace>,
    pub(crate) handlers: bool,
    pub(crate) engines: bool,
    pub(crate) identity: Arc<Identity>,
    pub(crate) policy: Policy,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) naming: Naming,
    pub(crate) sessions: Option<SessionLimits>,
    pub(crate) capture: Option<Capture>,
    pub(crate) containers: Option<Containers>,
    pub(crate) tracer: Tracer,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            config: GatewayConfig::default(),
            endpoints: vec!["ep"],
            targets: vec!["a", "b/c.tar.gz", "d"],
            health: Health::Healthy,
            container: None,
            defer: None,
            platform: None,
            handlers: false,
            engines: false,
            identity: Arc::new(Identity::nobody_is_asked()),
            policy: Policy::default(),
            accounts: Arc::new(Accounts::new(QuotaRules::default())),
            naming: Naming::default(),
            sessions: Some(SessionLimits::default()),
            capture: None,
            containers: None,
            tracer: Tracer::default(),
        }
    }
}

impl Setup {
    /// A router whose models answer by a script.
    pub(crate) fn with(
        self,
        script: impl Fn(Invocation) -> Result<Answer, Failure> + Send + Sync + 'static,
    ) -> Harness {
        let script = Arc::new(script);
        self.with_async(Arc::new(move |invocation| {
            let script = script.clone();
            async move { script(invocation) }.boxed()
        }))
    }

    pub(crate) fn with_async(self, invoke: InvokeFn) -> Harness {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let logged = Arc::new(Mutex::new(Vec::new()));
        let (asking, logging) = (asked.clone(), logged.clone());
        let health = self.health;
        let face = |name: &&str| EndpointFace {
            handlers: self.handlers,
            engines: self.engines,
            naming: self.naming.clone(),
            capture: self.capture.clone(),
            containers: self.containers.clone(),
            ..endpoint(name, self.targets.clone())
        };
        let endpoints = self.endpoints.iter().map(face).collect();
        let policy = Arc::new(self.policy);
        let offered = Arc::new(Current::new(Offered { endpoints, policy }));
        let (cut_off, cut) = Cut::pair();
        let state = GatewayState {
            config: self.config,
            identity: self.identity,
            offered: offered.clone(),
            invoke: Arc::new(move |invocation: Invocation| {
                asking.lock().unwrap().push(invocation.clone());
                invoke(invocation)
            }),
            accounts: self.accounts,
            tracer: self.tracer,
            health: Arc::new(move || health.clone()),
            access: Arc::new(move |record| logging.lock().unwrap().push(record)),
            defer: self.defer,
            container: self.container,
            sessions: Sessions::new(self.sessions),
            cut,
            platform: self.platform,
        };
        let later = Later::new(&state);
        let (router, caller) = (router(state), Caller::anonymous());
        Harness { router, asked, logged, offered, later, caller, cut_off }
    }
}

/// What is known of the one model that is loaded.
fn facts() -> ModelFacts {
    let kv = KvTokens { dtype: "f16", block: 16, floor: 2048, now: 4096, most: 8192, used: 96 };
    ModelFacts { context: 2048, dtype: "q8_0, f32".into(), quantize: Some("q8_0"), kv: Some(kv) }
}

pub(crate) fn endpoint(name: &str, targets: Vec<&'static str>) -> EndpointFace {
    let target = |name: &str| Target {
        name: name.parse().unwrap(),
        modified: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)),
    };
    let found = targets.clone();
    EndpointFace {
        name: name.parse().unwrap(),
        handlers: false,
        engines: false,
        naming: Naming::default(),
        capture: None,
        containers: None,
        base: Arc::new(|name| (name.as_str() == "d").then(|| "a".parse().unwrap())),
        facts: Arc::new(|name| (name.as_str() == "b/c.tar.gz").then(facts)),
        list: Arc::new(move |wanted| {
            let PageWanted { after, limit, only } = wanted;
            let all = targets.iter().filter(|name| after.as_deref().is_none_or(|a| **name > a));
            let all = all.map(|name| target(name)).filter(|found| {
                only.as_ref().is_none_or(|only| only.iter().any(|it| it.covers(&found.name)))
            });
            let mut page: Vec<Target> = all.collect();
            let more = page.len() > limit;
            page.truncate(limit);
            async move { Ok(TargetPage { targets: page, more }) }.boxed()
        }),
        find: Arc::new(move |name| {
            let known = found.contains(&name.as_str());
            let answer = known
                .then(|| target(name.as_str()))
                .ok_or_else(|| Failure::new(ErrorKind::ModelNotFound, format!("no target {name}")));
            async move { answer }.boxed()
        }),
    }
}

/// A whole answer.
pub(crate) struct Got {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Got {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Harness {
    /// The same router, asked by a tenant.
    pub(crate) fn by(&self, tenant: &str) -> Self {
        let caller = Caller { tenant: Some(tenant.parse().unwrap()), credential: None };
        let (router, asked) = (self.router.clone(), self.asked.clone());
        let (logged, offered) = (self.logged.clone(), self.offered.clone());
        let (later, cut_off) = (self.later.clone(), self.cut_off.clone());
        Self { router, asked, logged, offered, later, caller, cut_off }
    }

    pub(crate) async fn raw(&self, mut request: Request<Body>) -> Response {
        if let Some(tenant) = &self.caller.tenant {
            let proxy = Peer { address: Ipv4Addr::LOCALHOST.into(), certificate: None };
            request.extensions_mut().insert(proxy);
            let tenant = tenant.as_str().parse().unwrap();
            request.headers_mut().insert(TENANT, tenant);
        }
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Got {
        let (parts, body) = self.raw(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Got { status: parts.status, headers: parts.headers, body }
    }

    /// A POST to a path, with a target model where one is given.
    pub(crate) async fn post(&self, path: &str, target: &str, body: impl Into<Body>) -> Got {
        self.send(post(path, target, body)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Got {
        self.send(Request::get(path).body(Body::empty()).unwrap()).await
    }

    /// The chunks of a streamed answer.
    pub(crate) async fn chunks(&self, request: Request<Body>) -> (Got, Vec<Bytes>) {
        let (parts, body) = self.raw(request).await.into_parts();
        let mut stream = body.into_data_stream();
        let mut chunks = Vec::new();
        while let Some(chunk) = stream.next().await {
            chunks.push(chunk.unwrap());
        }
        let got =
            Got { status: parts.status, headers: parts.headers, body: chunks.concat().into() };
        (got, chunks)
    }
}

pub(crate) fn post(path: &str, target: &str, body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::post(path);
    if !target.is_empty() {
        request = request.header("x-amzn-sagemaker-target-model", target.as_bytes());
    }
    request.body(body.into()).unwrap()
}

pub(crate) fn served(kind: ModelKind) -> Served {
    Served {
        version: Version::from_digest("0123abcd"),
        tier: Tier::Disk,
        kind,
        load: Duration::from_millis(120),
        queue: Duration::from_millis(7),
        style: AnswerStyle::default(),
    }
}

pub(crate) fn token(id: u32, text: &str, logprob: f32) -> TokenInfo {
    let top = vec![(id, text.to_owned(), logprob)];
    let (logprob, rank, place) = (Some(logprob), None, TokenPlace::Text);
    TokenInfo { id, text: text.into(), logprob, rank, special: false, place, top }
}

pub(crate) fn end_token() -> TokenInfo {
    TokenInfo { special: true, place: TokenPlace::End, ..token(2, "</s>", -0.25) }
}

pub(crate) fn piece(choice: usize, text: &str, tokens: Vec<TokenInfo>) -> Piece {
    Piece {
        choice,
        text: text.into(),
        tokens,
        prompt: Vec::new(),
        calls: Vec::new(),
        finished: None,
    }
}

pub(crate) fn last(choice: usize, reason: Finish, generated_tokens: usize) -> Piece {
    let tokens = if reason == Finish::EndOfSequence { vec![end_token()] } else { Vec::new() };
    let finished = Some(Finished { reason, generated_tokens, cached_tokens: 2 });
    Piece { choice, text: String::new(), tokens, prompt: Vec::new(), calls: Vec::new(), finished }
}

/// "Hello é" in two pieces and an end, for each choice.
pub(crate) fn hello(choices: usize) -> Vec<Piece> {
    let one = |choice| {
        [
            piece(choice, "Hello", vec![token(10, "Hello", -0.5)]),
            // A character of two tokens: neither is text by itself.
            piece(choice, " é", vec![token(11, "\u{fffd}", -1.0), token(12, "\u{fffd}", -0.1)]),
            last(choice, Finish::EndOfSequence, 4),
        ]
    };
    (0..choices).flat_map(one).collect()
}

pub(crate) fn generation(pieces: PieceStream, choices: usize) -> Answer {
    let (prompt_tokens, prompts) = (vec![3; choices], Vec::new());
    let taken = Taken::default();
    let reply = GenerationReply { prompt_tokens, prompts, pieces, seed: 42, taken };
    Answer { reply: Reply::Generation(reply), served: served(ModelKind::Generative) }
}

pub(crate) fn says(pieces: Vec<Piece>, choices: usize) -> Result<Answer, Failure> {
    let pieces = stream::iter(pieces.into_iter().map(Ok));
    Ok(generation(Box::pin(pieces), choices))
}

/// One piece, then a failure.
pub(crate) fn breaks(kind: ErrorKind) -> Result<Answer, Failure> {
    let first = Ok(piece(0, "Hello", vec![token(10, "Hello", -0.5)]));
    let pieces = stream::iter([first, Err(Failure::new(kind, "the device failed"))]);
    Ok(generation(Box::pin(pieces), 1))
}

pub(crate) fn embeds(vectors: Vec<Vec<f32>>) -> Result<Answer, Failure> {
    let reply = Reply::Embeddings(EmbeddingsReply { vectors, prompt_tokens: 5 });
    Ok(Answer { reply, served: served(ModelKind::Embedding) })
}

pub(crate) fn classifies(inputs: &[&[(&str, f32)]]) -> Result<Answer, Failure> {
    let scores = |labels: &[(&str, f32)]| {
        labels
            .iter()
            .map(|(label, score)| LabelScore { label: (*label).into(), score: *score })
            .collect()
    };
    let reply = Reply::Classification(inputs.iter().map(|labels| scores(labels)).collect());
    Ok(Answer { reply, served: served(ModelKind::Classification) })
}

/// Ids and times differ from run to run.
pub(crate) fn steady(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    for (key, stop) in [("\"id\":\"c", '"'), ("\"created\":", ',')].iter().cycle() {
        let Some(at) = rest.find(key) else { break };
        let from = at + key.len();
        out.push_str(&rest[..from]);
        out.push_str("[…]");
        let end = rest[from..].find(*stop).unwrap();
        rest = &rest[from + end..];
    }
    out + rest
}
