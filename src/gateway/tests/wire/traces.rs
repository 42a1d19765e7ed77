//! What a trace collector is told of requests, and what those who are asked for them are.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use futures_util::FutureExt;
use http::{Request, StatusCode};
use roundhouse_gateway::{AccessRecord, ContainerMode, HaltedLoad, LoadStage, request_spans};
use roundhouse_serving::Request as Asked;
use roundhouse_traces::{Exporter, Origin, Refused, Tracer};
use roundhouse_types::{ErrorKind, Failure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::behind;
use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// How long is waited for what comes within milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A collector on loopback that keeps the bodies of requests.
struct Collector {
    at: std::net::SocketAddr,
    taken: Arc<Mutex<Vec<Value>>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let taken = Arc::<Mutex<Vec<Value>>>::default();
        let keep = taken.clone();
        let take = axum::routing::post(move |body: bytes::Bytes| {
            keep.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
            async { StatusCode::OK }
        });
        let router = axum::Router::new().route("/v1/traces", take);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { at, taken }
    }

    /// A tracer that records all, and what sends it here.
    fn tracer(&self) -> (Tracer, Exporter) {
        let at = self.at;
        let send = move |body| {
            async move { sent(at, body).await.map_err(|why| Refused { again: false, why }) }.boxed()
        };
        Exporter::start(Origin { attributes: Vec::new() }, 1.0, Arc::new(send))
    }

    fn spans(&self) -> Vec<Value> {
        let taken = self.taken.lock().unwrap();
        let spans = |body: &Value| {
            body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
        };
        taken.iter().flat_map(spans).collect()
    }
}

async fn sent(at: std::net::SocketAddr, body: bytes::Bytes) -> Result<(), String> {
    let mut stream = TcpStream::connect(at).await.map_err(|error| error.to_string())?;
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: c\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.map_err(|error| error.to_string())?;
    stream.write_all(&body).await.map_err(|error| error.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(|error| error.to_string())?;
    let is_taken = answer.starts_with("HTTP/1.1 200");
    is_taken.then_some(()).ok_or(answer)
}

fn asking(target: &str, parent: &str) -> Request<Body> {
    let mut request = post(INVOKE, target, r#"{"inputs":"a secret"}"#);
    request.headers_mut().insert("traceparent", parent.parse().unwrap());
    request.headers_mut().insert("tracestate", "a=1".parse().unwrap());
    request.headers_mut().insert("authorization", "Bearer secret".parse().unwrap());
    request
}

/// Gives the collector what a server's access function would.
fn tell(tracer: &Tracer, record: &AccessRecord, stages: &[LoadStage]) {
    let trace = record.trace.as_ref().unwrap();
    tracer.ended(trace, request_spans(record, stages, None, true));
}

fn named<'a>(spans: &'a [Value], name: &str) -> &'a Value {
    spans.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("no {name}: {spans:?}"))
}

fn time(span: &Value, key: &str) -> u64 {
    span[key].as_str().unwrap().parse().unwrap()
}

fn attribute<'a>(span: &'a Value, key: &str) -> &'a Value {
    let all = span["attributes"].as_array().unwrap();
    all.iter().find(|it| it["key"] == key).map_or(&Value::Null, |it| &it["value"])
}

#[tokio::test]
async fn a_collector_receives_a_requests_spans_with_their_parents_in_order() {
    let collector = Collector::start().await;
    let (tracer, exporter) = collector.tracer();
    let setup = Setup { tracer: tracer.clone(), ..Setup::default() };
    // The model is known after a load of 120 ms and a wait of 7 ms: the answer takes as long.
    let harness = setup.with_async(Arc::new(|_| {
        async {
            tokio::time::sleep(Duration::from_millis(130)).await;
            says(hello(1), 1)
        }
        .boxed()
    }));
    let got = harness.send(asking("a", PARENT)).await;
    assert_eq!(got.status, 200);
    let record = harness.logged.lock().unwrap()[0].clone();
    assert_eq!(serde_json::to_value(&record).unwrap()["trace_id"], TRACE);
    let at = |millis: u64| record.time + Duration::from_millis(millis);
    let stage = |name, began: SystemTime, ended| LoadStage { name, began, ended };
    let before = record.time - Duration::from_secs(1);
    let stages = [
        stage("list", before - Duration::from_secs(1), before),
        stage("fetch", before, at(60)),
        stage("read", at(60), at(110)),
        stage("warm", at(500_000), at(600_000)),
    ];
    tell(&tracer, &record, &stages);
    exporter.close(PATIENCE).await;

    let spans = collector.spans();
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    let want = ["POST invoke_endpoint", "load", "fetch", "read", "queue", "answer"];
    assert_eq!(names, want);
    let root = named(&spans, "POST invoke_endpoint");
    assert_eq!((&root["kind"], &root["parentSpanId"]), (&json!(2), &json!("00f067aa0ba902b7")));
    for span in &spans {
        assert_eq!((&span["traceId"], &span["traceState"]), (&json!(TRACE), &json!("a=1")));
        assert!(time(span, "startTimeUnixNano") <= time(span, "endTimeUnixNano"));
        let parent = spans.iter().find(|other| other["spanId"] == span["parentSpanId"]);
        if let Some(parent) = parent {
            let within = |key| {
                (time(parent, "startTimeUnixNano")..=time(parent, "endTimeUnixNano"))
                    .contains(&time(span, key))
            };
            assert!(within("startTimeUnixNano") && within("endTimeUnixNano"), "{span}");
        }
    }
    for (child, parent) in [
        ("load", "POST invoke_endpoint"),
        ("fetch", "load"),
        ("read", "load"),
        ("queue", "POST invoke_endpoint"),
        ("answer", "POST invoke_endpoint"),
    ] {
        let (child, parent) = (named(&spans, child), named(&spans, parent));
        assert_eq!(child["parentSpanId"], parent["spanId"], "{child}");
    }
    for (first, next) in [("load", "queue"), ("queue", "answer"), ("fetch", "read")] {
        let (first, next) = (named(&spans, first), named(&spans, next));
        assert_eq!(first["endTimeUnixNano"], next["startTimeUnixNano"], "{first}");
    }
    assert_eq!(attribute(named(&spans, "fetch"), "roundhouse.load.joined")["boolValue"], true);
    assert_eq!(attribute(named(&spans, "read"), "roundhouse.load.joined"), &Value::Null);
    assert_eq!(attribute(root, "http.request.method")["stringValue"], "POST");
    assert_eq!(attribute(root, "http.response.status_code")["intValue"], "200");
    assert_eq!(attribute(root, "gen_ai.request.model")["stringValue"], "a");
    let answer = named(&spans, "answer");
    assert_eq!(attribute(answer, "gen_ai.usage.output_tokens")["intValue"], "4");
    assert_eq!(answer["events"][0]["name"], "first token");
    let told = serde_json::to_string(&spans).unwrap();
    assert!(!told.contains("secret") && !told.contains("Hello"), "{told}");
}

#[tokio::test]
async fn names_are_left_out_where_they_are_not_wanted() {
    let collector = Collector::start().await;
    let (tracer, exporter) = collector.tracer();
    let harness = Setup { tracer, ..Setup::default() }.with(|_| says(hello(1), 1));
    harness.send(asking("t/named", PARENT)).await;
    let record = harness.logged.lock().unwrap()[0].clone();
    let spans = format!("{:?}", request_spans(&record, &[], None, false));
    assert!(!spans.contains("named") && !spans.contains("/endpoints/ep"), "{spans}");
    let spans = format!("{:?}", request_spans(&record, &[], None, true));
    assert!(spans.contains("t/named") && spans.contains("/endpoints/ep"), "{spans}");
    exporter.close(PATIENCE).await;
}

#[tokio::test]
async fn what_is_no_trace_context_is_ignored() {
    let collector = Collector::start().await;
    let (tracer, exporter) = collector.tracer();
    let harness = Setup { tracer: tracer.clone(), ..Setup::default() }.with(|_| says(hello(1), 1));
    let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
    for parent in [zeros, "hello", "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"] {
        assert_eq!(harness.send(asking("a", parent)).await.status, 200, "{parent}");
        let record = harness.logged.lock().unwrap().pop().unwrap();
        let trace = record.trace.clone().unwrap();
        assert_eq!(trace.parent(), None, "{parent}");
        assert_ne!(trace.id().to_string(), TRACE);
        tell(&tracer, &record, &[]);
    }
    exporter.close(PATIENCE).await;
    let spans = collector.spans();
    let roots = spans.iter().filter(|span| span["name"] == "POST invoke_endpoint");
    assert_eq!(roots.filter(|span| span["parentSpanId"].is_null()).count(), 3);
}

#[tokio::test]
async fn a_container_is_told_by_which_span_it_is_asked() {
    let collector = Collector::start().await;
    let (tracer, exporter) = collector.tracer();
    let (setup, sent) = behind::setup(ContainerMode::Serial, &["a", "refuses"]);
    let harness = Setup { tracer: tracer.clone(), ..setup }.with(|_| panic!("no model is asked"));
    harness.send(asking("", PARENT)).await;
    let record = harness.logged.lock().unwrap()[0].clone();
    tell(&tracer, &record, &[]);
    exporter.close(PATIENCE).await;
    let spans = collector.spans();
    let asked: Vec<&Value> = spans.iter().filter(|span| span["name"] == "POST container").collect();
    assert_eq!(asked.len(), 2);
    let sent = sent.lock().unwrap();
    let root = named(&spans, "POST invoke_endpoint");
    for (span, ((name, request), status)) in asked.iter().zip(sent.iter().zip(["200", "418"])) {
        let parent = format!("00-{TRACE}-{}-01", span["spanId"].as_str().unwrap());
        assert_eq!(request.headers["traceparent"], parent.as_str());
        assert_eq!(request.headers["tracestate"], "a=1");
        assert_eq!((&span["kind"], &span["parentSpanId"]), (&json!(3), &root["spanId"]));
        assert_eq!(attribute(span, "roundhouse.container")["stringValue"], name.as_str());
        assert_eq!(attribute(span, "http.response.status_code")["intValue"], status);
    }
    assert!(time(asked[0], "endTimeUnixNano") <= time(asked[1], "startTimeUnixNano"));
}

#[tokio::test]
async fn without_a_collector_a_context_is_passed_on_as_it_came() {
    let (setup, sent) = behind::setup(ContainerMode::Serial, &["a"]);
    let harness = setup.with(|_| panic!("no model is asked"));
    harness.send(asking("", PARENT)).await;
    harness.send(asking("", "hello")).await;
    let mut sent = sent.lock().unwrap();
    let (bad, good) = (sent.pop().unwrap().1, sent.pop().unwrap().1);
    assert_eq!(good.headers["traceparent"], PARENT);
    assert_eq!(good.headers["tracestate"], "a=1");
    assert!(!bad.headers.contains_key("traceparent") && !bad.headers.contains_key("tracestate"));
    let logged = harness.logged.lock().unwrap();
    assert_eq!(logged[0].trace.as_ref().unwrap().id().to_string(), TRACE);
    assert_eq!(logged[1].trace, None);
    assert!(request_spans(&logged[0], &[], None, true).is_empty());
}

#[tokio::test]
async fn a_handler_is_told_of_the_trace() {
    let harness = Setup { handlers: true, ..Setup::default() }
        .with(|_| Err(Failure::new(ErrorKind::ModelFailed, "it has seen enough")));
    harness.send(asking("a", PARENT)).await;
    let asked = harness.asked.lock().unwrap();
    let Asked::Raw(raw) = &asked[0].request else { panic!("it was read") };
    assert_eq!(raw.body.meta.headers["traceparent"], PARENT);
    assert_eq!(raw.body.meta.headers["tracestate"], "a=1");
    assert!(!raw.body.meta.headers.contains_key("authorization"));
}

#[tokio::test]
async fn a_request_whose_model_never_came_shows_where_its_load_has_ended() {
    let collector = Collector::start().await;
    let (tracer, exporter) = collector.tracer();
    let setup = Setup { tracer: tracer.clone(), ..Setup::default() };
    let harness = setup.with_async(Arc::new(|_| {
        async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            Err(Failure::new(ErrorKind::ModelInvalid, "a bad tensor"))
        }
        .boxed()
    }));
    assert_eq!(harness.send(asking("a", PARENT)).await.status, 424);
    let record = harness.logged.lock().unwrap()[0].clone();
    assert_eq!(record.steps.as_ref().unwrap().failed, Some(ErrorKind::ModelInvalid));
    let halted = |failure| HaltedLoad {
        name: "read",
        began: record.time - Duration::from_secs(1),
        ended: record.time + Duration::from_millis(20),
        failure,
    };
    let failed = halted(Some(Failure::new(ErrorKind::ModelInvalid, "ep/a: a bad tensor")));
    let trace = record.trace.as_ref().unwrap();
    tracer.ended(trace, request_spans(&record, &[], Some(&failed), true));
    exporter.close(PATIENCE).await;
    let spans = collector.spans();
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["POST invoke_endpoint", "load", "read"]);
    let (load, read) = (named(&spans, "load"), named(&spans, "read"));
    assert_eq!(read["parentSpanId"], load["spanId"]);
    assert!(time(read, "startTimeUnixNano") >= time(load, "startTimeUnixNano"));
    assert_eq!((&load["status"]["code"], &read["status"]["code"]), (&json!(2), &json!(2)));
    assert_eq!(attribute(read, "error.type"), &json!({"stringValue": "model_invalid"}));
    assert_eq!(attribute(read, "exception.message"), &json!({"stringValue": "ep/a: a bad tensor"}));
    assert_eq!(attribute(read, "roundhouse.load.joined"), &json!({"boolValue": true}));
    // Where no names are told, no message is: it may hold some.
    let spans = request_spans(&record, &[], Some(&failed), false);
    assert!(!format!("{spans:?}").contains("tensor") && spans.len() == 3);
    // One that goes on has not failed; a name of nothing is nobody's fault.
    let spans = request_spans(&record, &[], Some(&halted(None)), true);
    assert!(!spans[1].failed && !spans[2].failed);
    let missing = halted(Some(Failure::new(ErrorKind::ModelNotFound, "no such target")));
    assert!(!request_spans(&record, &[], Some(&missing), true)[2].failed);
}
