//! What passes between a client and a container beside the bodies, and what it takes.

use std::pin::Pin;
use std::task::{Context as Polling, Poll};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, header};
use metrics::Histogram;
use roundhouse_traces::{TRACEPARENT, TRACESTATE};
use roundhouse_types::{Failure, Spent};
use tokio::time::Instant;

use crate::call::Context;
use crate::layers::Calling;
use crate::state::ContainerBody;

/// What a container sees of a request's headers beside `Accept`: SageMaker's list and the
/// trace, never a credential.
const ON: [HeaderName; 9] = [
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    HeaderName::from_static("x-amzn-sagemaker-custom-attributes"),
    HeaderName::from_static("x-amzn-sagemaker-inference-id"),
    HeaderName::from_static("x-amzn-sagemaker-session-id"),
    HeaderName::from_static("x-amzn-sagemaker-target-model"),
    HeaderName::from_static("x-amzn-sagemaker-prefix-aware-id"),
    TRACEPARENT,
    TRACESTATE,
];
/// What a client sees of an answer's headers beside its type.
const BACK: [HeaderName; 4] = [
    header::CONTENT_ENCODING,
    HeaderName::from_static("x-amzn-sagemaker-custom-attributes"),
    HeaderName::from_static("x-amzn-sagemaker-new-session-id"),
    HeaderName::from_static("x-amzn-sagemaker-closed-session-id"),
];
/// By which a container's log lines can be found.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// The headers that a container is sent; `accept` names the one that says what the client takes.
pub(super) fn on(context: &Context, headers: &HeaderMap, accept: &HeaderName) -> HeaderMap {
    let mut kept = listed(headers, &ON);
    let wanted = headers.get(accept).or_else(|| headers.get(header::ACCEPT));
    if let Some(value) = wanted.or(context.gateway.config.default_accept.as_ref()) {
        kept.insert(header::ACCEPT, value.clone());
    }
    kept.insert(REQUEST_ID, context.notes.shown_id());
    kept
}

/// The headers that a client is sent.
pub(super) fn back(headers: &HeaderMap) -> HeaderMap {
    listed(headers, &BACK)
}

/// Requests have few headers, and mostly none of these: to look at each is less than to look each up.
fn listed(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        if names.contains(name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// A container's answer that counts how long the container worked for it: from the request to the last
/// piece, or to when nobody wants more.
pub(super) struct Timed {
    body: ContainerBody,
    began: Instant,
    /// Absent when it is counted: what the caller is charged with, and the metric.
    spent: Option<(Spent, Option<Histogram>)>,
    calling: Option<Calling>,
}

impl Timed {
    pub(super) fn new(
        body: ContainerBody,
        (began, calling): (Instant, Option<Calling>),
        spent: (Spent, Option<Histogram>),
    ) -> Self {
        Self { body, began, spent: Some(spent), calling }
    }

    fn add_up(&mut self) {
        self.calling = None;
        if let Some((spent, seconds)) = self.spent.take() {
            let took = self.began.elapsed();
            spent.computed(took);
            if let Some(seconds) = seconds {
                seconds.record(took);
            }
        }
    }
}

impl Stream for Timed {
    type Item = Result<Bytes, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, polling: &mut Polling<'_>) -> Poll<Option<Self::Item>> {
        let polled = self.body.poll_next_unpin(polling);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.add_up();
        }
        polled
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.add_up();
    }
}
