//! OpenAI's bodies that are not read before the model is known: an external engine reads its own.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, header};
use roundhouse_serving::{RawRequest, Request, Route};
use uuid::Uuid;

use crate::aim::Aim;
use crate::answer::{Ask, Asked};
use crate::error::Error;
use crate::fields::Fields;
use crate::json;
use crate::openai::{self, Parse};
use crate::sagemaker::raw::{Later, raw_body};

/// A body as it was sent, and how any other model's is read.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) body: Bytes,
    pub(crate) parse: Parse,
    /// What the answer calls the model.
    pub(crate) echo: String,
    /// Where it was sent to.
    pub(crate) route: Route,
    /// Whether it asks for a stream.
    pub(crate) stream: bool,
    /// Fields that an engine is not sent as they are, as the answer tells them.
    pub(crate) ignored: Option<HeaderValue>,
}

/// What an external engine is sent, and the way to read it for any other model, whose adapters it may
/// name.
pub(crate) fn asked(headers: &HeaderMap, sent: Sent, aim: &Aim, request_id: Uuid) -> Asked {
    let later = Later::without(sent.ignored.clone());
    let told = (sent.stream, request_id);
    let raw = RawRequest {
        body: raw_body(headers, sent.body.clone(), &header::ACCEPT, told),
        route: sent.route,
        read: {
            let later = later.clone();
            let (parse, known) = (sent.parse, Arc::new((aim.clone(), sent.echo)));
            Arc::new(move |body| {
                let (later, known) = (later.clone(), Arc::clone(&known));
                async move {
                    let read = async {
                        let (aim, echo) = &*known;
                        let mut fields = Fields::new(json::object(body).await?);
                        fields.take("model");
                        let asked = openai::asked(&mut fields, aim, echo, parse)?;
                        Ok::<_, Error>(later.read(aim, asked))
                    };
                    read.await.map_err(|error| later.wrong(error))
                }
                .boxed()
            })
        },
    };
    Asked::new(Request::Raw(raw), Ask::Later(later))
}
