//! `POST /generate`, `POST /generate_stream` and `POST /`, as text-generation-inference answers
//! them. The model is named where such a client can: by header, as a field `model` of the body, or
//! by `parameters.adapter_id` alone.

use axum::extract::Request;
use axum::response::Response;
use http::HeaderMap;
use roundhouse_types::{ErrorKind, Failure, TargetModel};
use serde_json::{Map, Value};

use crate::accept::Accept;
use crate::aim::{self, Aim};
use crate::answer::{Ask, Delivery, answer};
use crate::body::{self, Media};
use crate::call::Context;
use crate::error::{Error, Face};
use crate::fields::Fields;
use crate::sagemaker::inputs::{self, Dialect};
use crate::state::EndpointFace;
use crate::{json, sagemaker, target};

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
        let (headers, body) = sagemaker::read(&context, request).await?;
        if body::media(&headers)? != Media::Json {
            let message = "the content type must be application/json";
            return Err(Failure::new(ErrorKind::UnsupportedMediaType, message).into());
        }
        let map = json::object(body).await?;
        let endpoint = target::default_endpoint(&context)?;
        let aim = aim_of(endpoint, &headers, &map)?;
        let mut asked = inputs::parse(&mut Fields::new(map))?;
        if let Ask::Inputs(ask) = &mut asked.ask {
            ask.dialect = Dialect::Tgi { array: route == Route::Either };
            match route {
                Route::Whole => ask.stream = false,
                Route::Stream => ask.stream = true,
                Route::Either => {}
            }
            // Where the model may be any, a list may be what it takes.
            if !ask.single && route != Route::Either {
                return Err(Error::field("inputs", "must be one string"));
            }
        }
        let timeout = context.gateway.config.stream_timeout;
        let accept = Accept::default();
        let delivery = Delivery { accept, events: true, framed: false, gathers: true, timeout };
        answer(&context, aim, asked, delivery).await
    };
    operation.await.unwrap_or_else(|error| error.respond(Face::Tgi))
}

fn aim_of(
    endpoint: &EndpointFace,
    headers: &HeaderMap,
    body: &Map<String, Value>,
) -> Result<Aim, Error> {
    if aim::header(headers)?.is_some() || target::header(headers)?.is_some() {
        return aim::named(endpoint, headers);
    }
    let named = |value: Option<&Value>| {
        value.and_then(Value::as_str).filter(|name| !name.is_empty()).map(TargetModel::new)
    };
    if let Some(name) = named(body.get("model")) {
        return target::model(endpoint, &name).map(Aim::at);
    }
    let adapter = named(body.get("parameters").and_then(|it| it.get("adapter_id")));
    let adapter = adapter.ok_or_else(|| {
        Error::request(
            "the request names no target model: send X-Amzn-SageMaker-Target-Model, a field \
             model in the body, or parameters.adapter_id",
        )
    })?;
    // Named once: it is not to be looked for again.
    Ok(Aim::by_header(target::model(endpoint, &adapter)?, None))
}
