//! Bodies that are not read before the model is known: a handler reads its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, header};
use roundhouse_serving::{RawBody, RawRequest, Request};
use roundhouse_types::{Failure, ModelId};
use uuid::Uuid;

use super::{CUSTOM_ATTRIBUTES, parse};
use crate::answer::{Ask, Asked};
use crate::error::Error;

/// What SageMaker passes on to a container beside the types.
const PASSED_ON: &str = "x-amzn-sagemaker-";

/// How the answer shall look, once the body has been read.
#[derive(Clone, Default)]
pub(crate) struct Later(Arc<Mutex<Option<Ask>>>);

impl Later {
    fn set(&self, ask: Ask) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ask);
    }

    /// Set where the model is none that reads bodies itself.
    pub(crate) fn take(&self) -> Option<Ask> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What a handler sees of a request, and the way to read it for any other model.
pub(crate) fn asked(
    headers: &HeaderMap,
    body: Bytes,
    model: &ModelId,
    accept: &HeaderName,
    (stream, request_id): (bool, Uuid),
) -> Asked {
    let later = Later::default();
    let raw = RawRequest {
        body: raw_body(headers, body, accept, (stream, request_id)),
        read: {
            let (headers, model, later) = (media_headers(headers), model.clone(), later.clone());
            Arc::new(move |body| {
                let (headers, model, later) = (headers.clone(), model.clone(), later.clone());
                async move { read(&headers, body, &model, &later).await.map_err(failure) }.boxed()
            })
        },
    };
    Asked { request: Request::Raw(raw), ask: Ask::Later(later) }
}

async fn read(
    headers: &HeaderMap,
    body: Bytes,
    model: &ModelId,
    later: &Later,
) -> Result<Request, Error> {
    let Asked { request, ask } = parse(headers, body).await?.asked(model)?;
    later.set(ask);
    Ok(request)
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Failed(failure) => failure,
        other => Failure::new(other.kind(), other.to_string()),
    }
}

/// The headers that say how a body is read.
fn media_headers(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
        if let Some(value) = headers.get(&name) {
            kept.insert(name, value.clone());
        }
    }
    kept
}

fn raw_body(
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
        if name.as_str().starts_with(PASSED_ON)
            && let Ok(value) = value.to_str()
        {
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
