//! What is recorded of a request.

use std::borrow::Cow;
use std::time::SystemTime;

use crate::context::SpanId;

/// A stretch of a request's time.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its id.
    pub id: SpanId,
    /// The span that it is a part of; absent is the trace's first.
    pub parent: Option<SpanId>,
    /// What was done; few different ones.
    pub name: Cow<'static, str>,
    /// Who did it for whom.
    pub kind: Kind,
    /// When it began.
    pub began: SystemTime,
    /// When it ended; not before it began.
    pub ended: SystemTime,
    /// What is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// What happened meanwhile, and when.
    pub events: Vec<(&'static str, SystemTime)>,
    /// Whether it failed by our fault or that of what is behind us.
    pub failed: bool,
}

impl Span {
    /// A part of another span, of which nothing is known but its time.
    pub fn within(
        parent: SpanId,
        name: impl Into<Cow<'static, str>>,
        (began, ended): (SystemTime, SystemTime),
    ) -> Self {
        Self {
            id: SpanId::random(),
            parent: Some(parent),
            name: name.into(),
            kind: Kind::Internal,
            began,
            ended: ended.max(began),
            attributes: Vec::new(),
            events: Vec::new(),
            failed: false,
        }
    }
}

/// Who does what a span is about, for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// We, for ourselves.
    Internal,
    /// We, for who asked.
    Server,
    /// Another server, for us.
    Client,
}

/// What is known of a span.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A word.
    Text(String),
    /// A count or a size.
    Whole(u64),
    /// A quantity.
    Real(f64),
    /// A fact.
    Is(bool),
}
