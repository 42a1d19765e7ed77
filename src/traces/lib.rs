//! Which request of whose trace is this, and where did its time go?
//!
//! Reading order: `context` (what W3C's headers say), `tracer` (which requests are recorded),
//! `span` (what is recorded), `otlp` (how a collector reads it), `export` (how it gets there).
//!
//! Invariants:
//! 1. Nobody who answers a request waits for a collector: what does not fit the queue is dropped and
//!    counted.
//! 2. What is said of a request is said once, at its end.

mod context;
mod export;
mod metrics;
mod otlp;
mod span;
mod tracer;

pub use context::{Context, SpanId, TRACEPARENT, TRACESTATE, TraceId};
pub use export::{Exporter, Origin, Refused, SendFn};
pub use metrics::describe_metrics;
pub use span::{Kind, Span, Value};
pub use tracer::{Trace, Tracer};
