//! Bodies that are not read before the model is known: a handler reads its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use roundhouse_serving::{RawBody, RawRequest, ReadBody, Request, Route};
use roundhouse_traces::{TRACEPARENT, TRACESTATE};
use roundhouse_types::Failure;
use uuid::Uuid;

use super::headers::CUSTOM_ATTRIBUTES;
use super::{accepted, parse};
use crate::aim::{Adapters, Aim};
use crate::answer::{Ask, Asked};
use crate::error::Error;

/// What SageMaker passes on to a container beside the types.
const PASSED_ON: &str = "x-amzn-sagemaker-";

/// What was found when the body was read.
pub(crate) enum Found {
    /// How the answer shall look, and the field by which the body names another adapter than the
    /// header that goes before it.
    Ask(Ask, Option<&'static str>),
    /// The whole request: it asks adapters of the model.
    Asked(Box<Asked>),
    /// What is wrong with the body, as the client is to be told.
    Wrong(Error),
}

/// What is known of the request once the body has been read.
#[derive(Clone, Default)]
pub(crate) struct Later {
    found: Arc<Mutex<Option<Found>>>,
    /// Fields that whoever reads the body itself is not sent as they are, as the answer tells them.
    ignored: Option<HeaderValue>,
}

impl Later {
    /// Of a body of which a reader of its own is not sent these fields.
    pub(crate) fn without(ignored: Option<HeaderValue>) -> Self {
        Self { ignored, ..Self::default() }
    }

    /// Those fields.
    pub(crate) fn ignored(&self) -> Option<HeaderValue> {
        self.ignored.clone()
    }

    pub(crate) fn set(&self, found: Found) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    /// Keeps how the answer shall look, or all of a request that asks adapters of `aim`.
    pub(crate) fn read(&self, aim: &Aim, asked: Asked) -> ReadBody {
        if aim.heeds(asked.adapters.clone()) != Adapters::None {
            self.set(Found::Asked(Box::new(asked)));
            return ReadBody::OfAdapters;
        }
        self.set(Found::Ask(asked.ask, aim.overrules(&asked.adapters)));
        ReadBody::Request(Box::new(asked.request))
    }

    /// Keeps what is wrong with the body, and says so.
    pub(crate) fn wrong(&self, error: Error) -> Failure {
        let failure = match &error {
            Error::Failed(failure) => failure.clone(),
            other => Failure::new(other.kind(), other.to_string()),
        };
        self.set(Found::Wrong(error));
        failure
    }

    /// Set where the model is none that reads bodies itself.
    pub(crate) fn take(&self) -> Option<Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a handler sees of a request, and the way to read it for any other model, which its answer
/// calls as it was `called`.
pub(crate) fn asked(
    headers: &HeaderMap,
    body: Bytes,
    (aim, called): (&Aim, String),
    accept: &HeaderName,
    (stream, request_id): (bool, Uuid),
) -> Asked {
    let later = Later::default();
    let raw = RawRequest {
        body: raw_body(headers, body, accept, (stream, request_id)),
        route: Route::Invocations,
        read: {
            let headers = (media_headers(headers, accept), accept.clone());
            let (aim, later) = ((aim.clone(), called), later.clone());
            Arc::new(move |body| {
                let (headers, aim, later) = (headers.clone(), aim.clone(), later.clone());
                async move {
                    read(headers, body, &aim, &later).await.map_err(|error| later.wrong(error))
                }
                .boxed()
            })
        },
    };
    Asked::new(Request::Raw(raw), Ask::Later(later))
}

async fn read(
    (headers, accept): (HeaderMap, HeaderName),
    body: Bytes,
    (aim, called): &(Aim, String),
    later: &Later,
) -> Result<ReadBody, Error> {
    let asked = parse(&headers, body).await?.asked(aim, called)?;
    Ok(later.read(aim, accepted(asked, &headers, &accept)?))
}

/// The headers that say how a body is read and its answer written.
fn media_headers(headers: &HeaderMap, accept: &HeaderName) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in [&header::CONTENT_TYPE, &header::CONTENT_ENCODING, accept] {
        for value in headers.get_all(name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// A body with what of its request a handler is told.
pub(crate) fn raw_body(
    headers: &HeaderMap,
    body: Bytes,
    accept: &HeaderName,
    (stream, request_id): (bool, Uuid),
) -> RawBody {
    let text = |name: &HeaderName| {
        headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let mut passed_on = BTreeMap::new();
    for (name, value) in headers {
        let is_passed_on =
            name.as_str().starts_with(PASSED_ON) || [&TRACEPARENT, &TRACESTATE].contains(&name);
        if is_passed_on && let Ok(value) = value.to_str() {
            passed_on.insert(name.as_str().to_owned(), value.to_owned());
        }
    }
    let mut call = RawBody {
        content_type: text(&header::CONTENT_TYPE),
        accept: text(accept).or_else(|| text(&header::ACCEPT)),
        body,
        stream,
        ..RawBody::default()
    };
    call.meta.headers = passed_on;
    call.meta.request_id = request_id.to_string();
    call.meta.custom_attributes = text(&CUSTOM_ATTRIBUTES);
    call
}
