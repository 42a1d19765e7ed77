//! A request's spans, of what was logged of it. The names of attributes are OpenTelemetry's where it
//! has them (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>), else ours.

use std::time::{Duration, SystemTime};

use roundhouse_traces::{Kind, Span, SpanId, Trace, Value};
use roundhouse_types::{ErrorKind, Failure};

use crate::state::{AccessRecord, ContainerCall, Steps};

/// A stage of the load that a request waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadStage {
    /// What was done.
    pub name: &'static str,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
}

/// The stage at which a load has failed, or that it is at.
#[derive(Debug, Clone)]
pub struct HaltedLoad {
    /// What was done.
    pub name: &'static str,
    /// When that began.
    pub began: SystemTime,
    /// When it failed, or was looked at.
    pub ended: SystemTime,
    /// Why it failed; absent where it goes on.
    pub failure: Option<Failure>,
}

/// A request's spans, its own first; none where they are not wanted. `stages` are those of the load
/// that it may have waited for, `halted` is where that has ended for a request whose model it never
/// had, `names` whether tenants and models are told.
///
/// A request that came when its load was under way has waited for a part of it: stages are shown from
/// when it began to wait.
pub fn request_spans(
    record: &AccessRecord,
    stages: &[LoadStage],
    halted: Option<&HaltedLoad>,
    names: bool,
) -> Vec<Span> {
    let (Some(trace), Some(steps)) = (&record.trace, &record.steps) else { return Vec::new() };
    let ended = record.total.unwrap_or_default();
    let times = Times { arrived: record.time, ended };
    let root = trace.span();
    let mut spans = vec![server(record, (trace, steps), &times, names)];
    if let (Some(invoked), Some(load), Some(queue)) = (steps.invoked, record.load, record.queue) {
        let (loaded, begun) = (invoked + load, invoked + load + queue);
        if !load.is_zero() {
            let span = Span::within(root, "load", times.of(invoked, loaded));
            let parts = shown(stages, &span);
            spans.push(span);
            spans.extend(parts);
        }
        spans.push(Span::within(root, "queue", times.of(loaded, begun)));
        spans.push(answer(record, root, steps, times.of(begun, ended)));
    } else if let (Some(invoked), Some(halted)) = (steps.invoked, halted) {
        spans.extend(halted_load(root, times.of(invoked, ended), halted, names));
    }
    spans.extend(steps.calls.iter().map(|call| asked(call, root, &times, names)));
    spans
}

/// The times of a request.
struct Times {
    arrived: SystemTime,
    /// From its arrival on.
    ended: Duration,
}

impl Times {
    /// What is within the request of a stretch of time since its arrival.
    fn of(&self, began: Duration, ended: Duration) -> (SystemTime, SystemTime) {
        (self.arrived + began.min(self.ended), self.arrived + ended.min(self.ended))
    }
}

fn server(
    record: &AccessRecord,
    (trace, steps): (&Trace, &Steps),
    times: &Times,
    names: bool,
) -> Span {
    let mut known = vec![
        ("http.request.method", text(record.method.as_str())),
        ("roundhouse.route", text(record.route)),
        ("roundhouse.request_id", Value::Text(record.request_id.to_string())),
        ("http.request.body.size", Value::Whole(record.bytes_in)),
        ("http.response.body.size", Value::Whole(record.bytes_out)),
        ("roundhouse.complete", Value::Is(record.complete)),
    ];
    let failed = record.status >= 500;
    match record.status {
        // Nothing was answered.
        499 => known.push(("error.type", text("client left"))),
        status => {
            known.push(("http.response.status_code", Value::Whole(status.into())));
            if failed {
                known.push(("error.type", Value::Text(status.to_string())));
            }
        }
    }
    if let Some(tier) = record.tier {
        known.push(("roundhouse.tier", text(tier.as_str())));
    }
    if names {
        let target = record.target.as_ref();
        let mut put = |key, value: Option<&str>| known.extend(value.map(|it| (key, text(it))));
        put("url.path", Some(&steps.path));
        put("roundhouse.tenant", record.tenant.as_deref());
        put("roundhouse.endpoint", record.endpoint.as_ref().map(|it| it.as_str()));
        put("gen_ai.request.model", target.map(|it| it.as_str()));
        put("roundhouse.version", record.version.as_ref().map(|it| it.as_str()));
    }
    let name = format!("{} {}", record.method, record.route);
    let times = times.of(Duration::ZERO, times.ended);
    Span {
        id: trace.span(),
        parent: trace.parent(),
        kind: Kind::Server,
        attributes: known,
        failed,
        ..Span::within(trace.span(), name, times)
    }
}

/// What of a load's stages lies within the wait for it.
fn shown(stages: &[LoadStage], load: &Span) -> Vec<Span> {
    let within = stages.iter().filter(|it| it.ended > load.began && it.began < load.ended);
    let shown = within.map(|stage| {
        let times = (stage.began.max(load.began), stage.ended.min(load.ended));
        let mut span = Span::within(load.id, stage.name, times);
        if stage.began < load.began {
            // Another request, or an order, had begun the load.
            span.attributes.push(("roundhouse.load.joined", Value::Is(true)));
        }
        span
    });
    shown.collect()
}

/// A load that a request did not see the end of, and the stage at which it was left.
fn halted_load(
    root: SpanId,
    times: (SystemTime, SystemTime),
    halted: &HaltedLoad,
    names: bool,
) -> [Span; 2] {
    let mut load = Span::within(root, "load", times);
    let within = |time: SystemTime| time.clamp(load.began, load.ended);
    let mut stage =
        Span::within(load.id, halted.name, (within(halted.began), within(halted.ended)));
    if halted.began < load.began {
        stage.attributes.push(("roundhouse.load.joined", Value::Is(true)));
    }
    match &halted.failure {
        Some(failure) => {
            stage.attributes.push(("error.type", text(failure.kind().as_str())));
            if names {
                stage.attributes.push(("exception.message", text(failure.message())));
            }
            // Who names what there is not has nobody failed.
            stage.failed = failure.kind() != ErrorKind::ModelNotFound;
            load.failed = stage.failed;
            load.attributes.push(("error.type", text(failure.kind().as_str())));
        }
        None => stage.attributes.push(("roundhouse.load.unfinished", Value::Is(true))),
    }
    [load, stage]
}

/// From when the model had the request to the end of the answer.
fn answer(
    record: &AccessRecord,
    root: SpanId,
    steps: &Steps,
    times: (SystemTime, SystemTime),
) -> Span {
    let mut span = Span::within(root, "answer", times);
    let compute = steps.compute.as_secs_f64();
    span.attributes.push(("roundhouse.compute_seconds", Value::Real(compute)));
    let mut count = |key, tokens: Option<usize>| {
        let tokens = tokens.and_then(|tokens| u64::try_from(tokens).ok());
        span.attributes.extend(tokens.map(|tokens| (key, Value::Whole(tokens))));
    };
    count("gen_ai.usage.input_tokens", record.tokens_in);
    count("gen_ai.usage.output_tokens", record.tokens_out);
    if let Some(first) = record.first_token {
        span.events.push(("first token", (record.time + first).clamp(span.began, span.ended)));
    }
    span
}

fn asked(call: &ContainerCall, root: SpanId, times: &Times, names: bool) -> Span {
    let (began, ended) = times.of(call.began, call.ended.unwrap_or(times.ended));
    let mut span = Span {
        id: call.span,
        kind: Kind::Client,
        failed: call.status.is_none_or(|status| status >= 500),
        ..Span::within(root, "POST container", (began, ended))
    };
    span.attributes.push(("http.request.method", text("POST")));
    match call.status {
        Some(status) => {
            span.attributes.push(("http.response.status_code", Value::Whole(status.into())));
            if span.failed {
                span.attributes.push(("error.type", Value::Text(status.to_string())));
            }
        }
        None => span.attributes.push(("error.type", text("no answer"))),
    }
    if names {
        span.attributes.push(("roundhouse.container", text(call.container.as_str())));
    }
    span
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}
