//! Which requests are recorded.

use std::sync::Arc;

use http::HeaderMap;

use crate::context::{Context, SpanId, TraceId};
use crate::export::Spans;
use crate::span::Span;

/// Gives requests their places in traces. Clones are the same. The default one records nothing, and
/// passes on what requests say.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Recording>>);

struct Recording {
    /// Of 2^56 traces that begin here, how many are recorded.
    threshold: u64,
    to: Spans,
}

impl Tracer {
    /// One that records a part of the traces that begin here, from 0 to 1, and those that are recorded
    /// where they began.
    pub(crate) fn new(ratio: f64, to: Spans) -> Self {
        let threshold = (ratio.clamp(0.0, 1.0) * (1_u64 << 56) as f64) as u64;
        Self(Some(Arc::new(Recording { threshold, to })))
    }

    /// A request's place in a trace, by its headers; `None` where it says nothing of a trace and
    /// none begins here.
    pub fn accept(&self, headers: &HeaderMap) -> Option<Trace> {
        let said = Context::read(headers);
        let Some(recording) = &self.0 else {
            return said.map(|context| Trace { context, parent: None, recorded: false });
        };
        let parent = said.as_ref().map(|context| context.span);
        let mut context = said.unwrap_or_else(|| {
            let trace = TraceId::random();
            let sampled = trace.random_part() < recording.threshold;
            Context { trace, span: SpanId::random(), sampled, state: None }
        });
        // From here on we are who asks.
        context.span = SpanId::random();
        let recorded = context.sampled;
        Some(Trace { context, parent, recorded })
    }

    /// Takes what was recorded of a request, at its end. Never waits.
    pub fn ended(&self, trace: &Trace, spans: Vec<Span>) {
        if let Some(recording) = self.0.as_ref().filter(|_| trace.recorded) {
            recording.to.put(trace.context.trace, trace.context.state.clone(), spans);
        }
    }
}

/// A request's place in a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    context: Context,
    parent: Option<SpanId>,
    recorded: bool,
}

impl Trace {
    /// What those who are asked for it are told.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The trace.
    pub fn id(&self) -> TraceId {
        self.context.trace
    }

    /// The request's span.
    pub fn span(&self) -> SpanId {
        self.context.span
    }

    /// The span that asked for the request, where another server said so.
    pub fn parent(&self) -> Option<SpanId> {
        self.parent
    }

    /// Whether its spans are wanted.
    pub fn is_recorded(&self) -> bool {
        self.recorded
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::context::TRACEPARENT;

    fn said(sampled: bool) -> HeaderMap {
        let flags = if sampled { "01" } else { "00" };
        let text = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
        HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_str(&text).unwrap())])
    }

    #[test]
    fn who_records_nothing_passes_on_what_it_is_told() {
        let tracer = Tracer::default();
        assert_eq!(tracer.accept(&HeaderMap::new()), None);
        let trace = tracer.accept(&said(true)).unwrap();
        assert!(!trace.is_recorded());
        let mut passed = HeaderMap::new();
        trace.context().write(&mut passed);
        assert_eq!(passed, said(true));
    }

    #[test]
    fn where_a_trace_began_it_was_decided_whether_it_is_recorded() {
        let (to, _taken) = Spans::pair(1);
        for (ratio, sampled) in [(0.0, true), (1.0, false)] {
            let trace = Tracer::new(ratio, to.clone()).accept(&said(sampled)).unwrap();
            assert_eq!(trace.is_recorded(), sampled);
            assert_eq!(trace.id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
            assert_eq!(trace.parent().unwrap().to_string(), "00f067aa0ba902b7");
            assert_ne!(trace.parent(), Some(trace.span()));
        }
    }

    #[test]
    fn of_those_that_begin_here_a_part_is_recorded() {
        let (to, _taken) = Spans::pair(1);
        let recorded = |ratio: f64| {
            let tracer = Tracer::new(ratio, to.clone());
            let traces = (0..4000).filter_map(|_| tracer.accept(&HeaderMap::new()));
            traces.filter(Trace::is_recorded).count()
        };
        assert_eq!((recorded(0.0), recorded(1.0)), (0, 4000));
        // Some twenty standard deviations to either side.
        let quarter = recorded(0.25);
        assert!((450..1550).contains(&quarter), "{quarter}");
    }
}
