//! Spans as a collector reads them: OTLP's JSON
//! (<https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>): ids in hexadecimal, 64-bit
//! numbers in quotes, enumerations as numbers.

use std::time::SystemTime;

use bytes::Bytes;
use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use crate::context::{SpanId, TraceId};
use crate::export::{Ended, Origin};
use crate::span::{Kind, Span, Value};

/// `STATUS_CODE_ERROR`.
const FAILED: u8 = 2;

/// One request to `/v1/traces`.
pub(crate) fn encoded(origin: &Origin, traces: &[Ended]) -> Bytes {
    let spans: Vec<Written<'_>> = traces.iter().flat_map(written).collect();
    let texts =
        origin.attributes.iter().map(|(key, text)| attribute(key, &Value::Text(text.clone())));
    let body = json!({"resourceSpans": [{
        "resource": {"attributes": texts.collect::<Vec<_>>()},
        "scopeSpans": [{
            "scope": {"name": "roundhouse", "version": env!("CARGO_PKG_VERSION")},
            "spans": spans,
        }],
    }]});
    body.to_string().into()
}

/// A span in the words of `opentelemetry/proto/trace/v1/trace.proto`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    trace_id: TraceId,
    span_id: SpanId,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_span_id: Option<SpanId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_state: Option<&'a str>,
    name: &'a str,
    kind: u8,
    #[serde(serialize_with = "nanoseconds")]
    start_time_unix_nano: SystemTime,
    #[serde(serialize_with = "nanoseconds")]
    end_time_unix_nano: SystemTime,
    attributes: Vec<Json>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<Event>,
    status: Json,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    #[serde(serialize_with = "nanoseconds")]
    time_unix_nano: SystemTime,
    name: &'static str,
}

fn written(ended: &Ended) -> impl Iterator<Item = Written<'_>> {
    ended.spans.iter().map(|span: &Span| Written {
        trace_id: ended.trace,
        span_id: span.id,
        parent_span_id: span.parent,
        trace_state: ended.state.as_deref(),
        name: &span.name,
        kind: match span.kind {
            Kind::Internal => 1,
            Kind::Server => 2,
            Kind::Client => 3,
        },
        start_time_unix_nano: span.began,
        end_time_unix_nano: span.ended,
        attributes: span.attributes.iter().map(|(key, value)| attribute(key, value)).collect(),
        events: span
            .events
            .iter()
            .map(|(name, time)| Event { time_unix_nano: *time, name })
            .collect(),
        status: if span.failed { json!({"code": FAILED}) } else { json!({}) },
    })
}

fn attribute(key: &str, value: &Value) -> Json {
    let value = match value {
        Value::Text(text) => json!({"stringValue": text}),
        Value::Whole(number) => json!({"intValue": number.to_string()}),
        Value::Real(number) => json!({"doubleValue": number}),
        Value::Is(fact) => json!({"boolValue": fact}),
    };
    json!({"key": key, "value": value})
}

fn nanoseconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    serializer.collect_str(&since.as_nanos())
}
