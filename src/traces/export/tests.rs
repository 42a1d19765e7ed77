use std::sync::Mutex;
use std::time::SystemTime;

use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue};
use serde_json::Value as Json;
use tokio::sync::Semaphore;

use super::*;
use crate::context::{TRACEPARENT, TRACESTATE};
use crate::span::{Kind, Value};
use crate::tracer::Trace;

/// A collector that keeps what it takes, answers by a script, and takes only so much as it is let.
#[derive(Clone)]
struct Collector {
    taken: Arc<Mutex<Vec<Json>>>,
    answers: Arc<Mutex<Vec<Refused>>>,
    lets: Arc<Semaphore>,
}

impl Collector {
    fn new(lets: usize) -> Self {
        let lets = Arc::new(Semaphore::new(lets));
        Self { taken: Arc::default(), answers: Arc::default(), lets }
    }

    fn send(&self) -> SendFn {
        let this = self.clone();
        Arc::new(move |body| {
            let this = this.clone();
            async move {
                this.lets.acquire().await.unwrap().forget();
                if let Some(refused) = this.answers.lock().unwrap().pop() {
                    return Err(refused);
                }
                this.taken.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
                Ok(())
            }
            .boxed()
        })
    }

    /// All spans of all bodies.
    fn spans(&self) -> Vec<Json> {
        let taken = self.taken.lock().unwrap();
        let spans = |body: &Json| {
            body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone()
        };
        taken.iter().flat_map(spans).collect()
    }
}

fn origin() -> Origin {
    Origin { attributes: vec![("service.name".into(), "mme".into())] }
}

fn server(trace: &Trace) -> Span {
    let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
    let parts = (at, at + Duration::from_millis(5));
    Span { id: trace.span(), parent: trace.parent(), ..Span::within(trace.span(), "POST x", parts) }
}

fn one(tracer: &Tracer) -> Trace {
    let trace = tracer.accept(&HeaderMap::new()).unwrap();
    tracer.ended(&trace, vec![server(&trace)]);
    trace
}

#[tokio::test(start_paused = true)]
async fn spans_arrive_in_the_words_of_otlp() {
    let collector = Collector::new(100);
    let (tracer, exporter) = Exporter::start(origin(), 1.0, collector.send());
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = HeaderMap::from_iter([
        (TRACEPARENT, HeaderValue::from_static(parent)),
        (TRACESTATE, HeaderValue::from_static("a=1")),
    ]);
    let trace = tracer.accept(&headers).unwrap();
    let mut span = Span { kind: Kind::Server, failed: true, ..server(&trace) };
    span.attributes = vec![
        ("http.request.method", Value::Text("POST".into())),
        ("http.response.status_code", Value::Whole(503)),
        ("share", Value::Real(0.5)),
        ("complete", Value::Is(false)),
    ];
    span.events = vec![("first token", span.began)];
    tracer.ended(&trace, vec![span]);
    exporter.close(Duration::from_secs(5)).await;
    let resource = collector.taken.lock().unwrap()[0]["resourceSpans"][0]["resource"].clone();
    let want = serde_json::json!(
        {"attributes": [{"key": "service.name", "value": {"stringValue": "mme"}}]}
    );
    assert_eq!(resource, want);
    let want = serde_json::json!([{
        "traceId": "4bf92f3577b34da6a3ce929d0e0e4736",
        "spanId": trace.span().to_string(),
        "parentSpanId": "00f067aa0ba902b7",
        "traceState": "a=1",
        "name": "POST x",
        "kind": 2,
        "startTimeUnixNano": "1700000000123456789",
        "endTimeUnixNano": "1700000000128456789",
        "attributes": [
            {"key": "http.request.method", "value": {"stringValue": "POST"}},
            {"key": "http.response.status_code", "value": {"intValue": "503"}},
            {"key": "share", "value": {"doubleValue": 0.5}},
            {"key": "complete", "value": {"boolValue": false}},
        ],
        "events": [{"timeUnixNano": "1700000000123456789", "name": "first token"}],
        "status": {"code": 2},
    }]);
    assert_eq!(Json::Array(collector.spans()), want);
}

#[tokio::test(start_paused = true)]
async fn what_comes_together_is_sent_together() {
    let collector = Collector::new(100);
    let (tracer, exporter) = Exporter::start(origin(), 1.0, collector.send());
    for _ in 0..BATCH + 1 {
        one(&tracer);
    }
    exporter.close(Duration::from_secs(5)).await;
    assert_eq!(collector.spans().len(), BATCH + 1);
    assert_eq!(collector.taken.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn behind_a_collector_that_hangs_the_queue_is_bounded_and_nobody_waits() {
    let collector = Collector::new(0);
    let (tracer, exporter) = Exporter::start(origin(), 1.0, collector.send());
    // The first is on its way before the others come.
    let first = one(&tracer);
    tokio::time::sleep(GATHERED_FOR * 2).await;
    for _ in 0..WAITING_MOST * 2 {
        one(&tracer);
    }
    collector.lets.add_permits(1000);
    exporter.close(Duration::from_secs(60)).await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 1 + WAITING_MOST);
    assert_eq!(spans[0]["spanId"], first.span().to_string());
}

#[tokio::test(start_paused = true)]
async fn a_close_does_not_outlast_its_deadline() {
    let collector = Collector::new(0);
    let (tracer, exporter) = Exporter::start(origin(), 1.0, collector.send());
    one(&tracer);
    let began = Instant::now();
    exporter.close(Duration::from_secs(3)).await;
    assert_eq!(began.elapsed(), Duration::from_secs(3));
    // Nobody takes it, and nobody waits.
    one(&tracer);
    assert!(collector.spans().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_busy_is_asked_again_and_one_that_refuses_is_not() {
    let collector = Collector::new(100);
    let refused = |again| Refused { again, why: "no".into() };
    collector.answers.lock().unwrap().extend([refused(true), refused(true)]);
    let (tracer, exporter) = Exporter::start(origin(), 1.0, collector.send());
    let late = one(&tracer);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(collector.spans()[0]["spanId"], late.span().to_string());
    collector.answers.lock().unwrap().push(refused(false));
    one(&tracer);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let kept = one(&tracer);
    exporter.close(Duration::from_secs(5)).await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 2);
    assert_eq!(spans[1]["spanId"], kept.span().to_string());
}
