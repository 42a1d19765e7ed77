//! `POST /generate`, `POST /generate_stream` and `POST /`, as text-generation-inference answers
//! them. The model is named where such a client can: by header, as a field `model` of the body, or
//! by `parameters.adapter_id` alone. Where an endpoint has one target, nothing needs to be named.

mod info;
mod times;

use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use roundhouse_serving::Request as Asks;
use roundhouse_types::TargetModel;
use serde_json::{Map, Value};

use crate::accept::Accept;
use crate::addressed::{self, addressed};
use crate::aim::{self, Aim};
use crate::answer::{Ask, Delivery, answer};
use crate::body;
use crate::call::Context;
use crate::error::{Error, Face};
use crate::fields::Fields;
use crate::sagemaker::headers::Sent;
use crate::sagemaker::inputs::{self, Dialect};
use crate::state::EndpointFace;
use crate::{json, sagemaker, target};

pub(crate) use info::{health, info};

/// `max_new_tokens` of text-generation-inference where a request sets none.
const USUAL_TOKENS: usize = 100;

/// How one of the routes answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// One object, whatever the body says of streams.
    Whole,
    /// Events, whatever the body says.
    Stream,
    /// An array of one object, or events where the body asks for them.
    Either,
}

/// `POST /generate`.
pub(crate) async fn generate(context: Context, request: Request) -> Response {
    serve(context, request, Route::Whole).await
}

/// `POST /generate_stream`.
pub(crate) async fn generate_stream(context: Context, request: Request) -> Response {
    serve(context, request, Route::Stream).await
}

/// `POST /`.
pub(crate) async fn compatible(context: Context, request: Request) -> Response {
    serve(context, request, Route::Either).await
}

async fn serve(context: Context, request: Request, route: Route) -> Response {
    let operation = async {
        let Read { headers, map, .. } = read(&context, request).await?;
        let endpoint = target::default_endpoint(&context)?;
        let aim = aim_of(&context, endpoint, &headers, &map)?;
        let mut asked = inputs::parse(&mut Fields::new(map))?;
        let mut characters = None;
        if let Ask::Inputs(ask) = &mut asked.ask {
            ask.dialect = Dialect::Tgi { array: route == Route::Either };
            if let Asks::Inputs(inputs) = &mut asked.request {
                inputs.generation.usual_tokens = Some(USUAL_TOKENS);
            }
            match route {
                Route::Whole => ask.stream = false,
                Route::Stream => ask.stream = true,
                Route::Either => {}
            }
            // Where the model may be any, a list may be what it takes.
            if !ask.single && route != Route::Either {
                return Err(Error::field("inputs", "must be one string"));
            }
            if let (false, Asks::Inputs(inputs)) = (ask.stream, &asked.request) {
                characters = Some(inputs.texts.iter().map(|text| text.chars().count()).sum());
            }
        }
        let timeout = context.gateway.config.stream_timeout;
        let accept = Accept::default();
        let delivery = Delivery { accept, events: true, framed: false, gathers: true, timeout };
        let mut response = answer(&context, aim, asked, delivery).await?;
        if let Some(characters) = characters {
            times::tell(response.headers_mut(), &context, &context.notes.taken(), characters);
        }
        Ok(response)
    };
    operation.await.unwrap_or_else(|error| error.respond(Face::Tgi))
}

/// A request whose body is a JSON object.
pub(crate) struct Read {
    pub(crate) headers: HeaderMap,
    /// As it came.
    pub(crate) body: Bytes,
    /// What it says.
    pub(crate) map: Map<String, Value>,
}

/// Reads a request, as all routes do that name their model like this.
///
/// # Errors
/// `UnsupportedMediaType`, `InvalidInput`, and those of a body that does not come or is too large.
pub(crate) async fn read(context: &Context, request: Request) -> Result<Read, Error> {
    let (headers, body) = sagemaker::read(context, request).await?;
    body::only_json(&headers)?;
    let map = json::object(body.clone()).await?;
    Ok(Read { headers, body, map })
}

/// Whom a request names where such a client can: by header, `model` or `parameters.adapter_id`.
///
/// # Errors
/// Where it names none, or none that there is; `InvalidRequest` at an endpoint with containers.
pub(crate) fn aim_of(
    context: &Context,
    endpoint: &EndpointFace,
    headers: &HeaderMap,
    body: &Map<String, Value>,
) -> Result<Aim, Error> {
    addressed::without_containers(endpoint)?;
    let none = Sent::default();
    if aim::header(headers)?.is_some() || target::header(headers)?.is_some() {
        let found = addressed(context, endpoint, headers, &none, || Err(target::unnamed()));
        return Ok(found?.aim);
    }
    let named = |value: Option<&Value>| {
        value.and_then(Value::as_str).filter(|name| !name.is_empty()).map(TargetModel::new)
    };
    if let Some(name) = named(body.get("model")) {
        return target::model(endpoint, &name).map(Aim::at);
    }
    if let Some(adapter) = named(body.get("parameters").and_then(|it| it.get("adapter_id")))
        && endpoint.naming.is_multi_model()
    {
        // Named once: it is not to be looked for again.
        return Ok(Aim::by_header(target::model(endpoint, &adapter)?, None));
    }
    let unnamed = || {
        Err(Error::request(
            "the request names no target model: send X-Amzn-SageMaker-Target-Model, a field \
             model in the body, or parameters.adapter_id",
        ))
    };
    Ok(addressed(context, endpoint, headers, &none, unnamed)?.aim)
}
