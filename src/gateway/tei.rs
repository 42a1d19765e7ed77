//! `POST /embed`, `/embed_all`, `/predict` and `/similarity`, as text-embeddings-inference answers
//! them (its `/rerank` is [`ranking`](crate::ranking)'s). The model is named as on the routes of
//! text-generation-inference.

use axum::extract::Request;
use axum::response::Response;
use roundhouse_serving::Request as Asks;
use roundhouse_types::ModelKind;
use serde_json::{Map, Value, json};

use crate::accept::Accept;
use crate::answer::{Ask, Asked, Delivery, answer};
use crate::body;
use crate::call::Context;
use crate::error::{Error, Face};
use crate::fields::Fields;
use crate::sagemaker::inputs;
use crate::{json, sagemaker, target, tgi};

type Parse = fn(Map<String, Value>) -> Result<Asked, Error>;

/// `POST /embed`: a list of vectors, also of one text; of length 1 unless `normalize` is false.
pub(crate) async fn embed(context: Context, request: Request) -> Response {
    serve(context, request, vectors).await
}

/// `POST /embed_all`: a list of vectors per text, one for each token.
pub(crate) async fn embed_all(context: Context, request: Request) -> Response {
    serve(context, request, token_vectors).await
}

/// `POST /predict`: all labels of each text or pair, the likeliest first.
pub(crate) async fn predict(context: Context, request: Request) -> Response {
    serve(context, request, labels).await
}

/// `POST /similarity`: how near each of `sentences` is to `source_sentence`.
pub(crate) async fn similarity(context: Context, request: Request) -> Response {
    serve(context, request, similarities).await
}

/// A request whose body a route reads in its own way.
pub(crate) async fn serve(context: Context, request: Request, parse: Parse) -> Response {
    let operation = async {
        let (headers, body) = sagemaker::read(&context, request).await?;
        body::only_json(&headers)?;
        let map = json::object(body).await?;
        let endpoint = target::default_endpoint(&context)?;
        let aim = tgi::aim_of(&context, endpoint, &headers, &map)?;
        let asked = parse(map)?;
        let timeout = context.gateway.config.stream_timeout;
        let accept = Accept::default();
        let delivery = Delivery { accept, events: false, framed: false, gathers: true, timeout };
        answer(&context, aim, asked, delivery).await
    };
    operation.await.unwrap_or_else(|error| error.respond(Face::Tgi))
}

fn vectors(mut body: Map<String, Value>) -> Result<Asked, Error> {
    body.entry("normalize").or_insert(Value::Bool(true));
    let mut asked = of_kind(body, ModelKind::Embedding)?;
    as_list(&mut asked);
    Ok(asked)
}

fn token_vectors(mut body: Map<String, Value>) -> Result<Asked, Error> {
    body.insert("task".into(), "feature-extraction".into());
    let mut asked = of_kind(body, ModelKind::Embedding)?;
    as_list(&mut asked);
    Ok(asked)
}

fn labels(mut body: Map<String, Value>) -> Result<Asked, Error> {
    let raw = Fields::nested(body.swap_remove_entry("raw_scores").into_iter().collect(), "")
        .bool("raw_scores")?;
    let function = if raw == Some(true) { json!("none") } else { Value::Null };
    let inputs = body.swap_remove("inputs").map(sequences).transpose()?;
    body.insert("inputs".into(), inputs.unwrap_or_default());
    body.insert("parameters".into(), json!({"top_k": null, "function_to_apply": function}));
    of_kind(body, ModelKind::Classification)
}

/// A text, a pair, or a list of lists of one or two texts, as pipelines spell them.
fn sequences(given: Value) -> Result<Value, Error> {
    let wrong = || {
        let expected = "must be a string, a list of one or two strings, or a list of such lists";
        Error::field("inputs", expected)
    };
    let one = |texts: Vec<Value>| match <[Value; 2]>::try_from(texts) {
        Ok([text, pair]) => Ok(json!({"text": text, "text_pair": pair})),
        Err(mut texts) => match (texts.pop(), texts.is_empty()) {
            (Some(text), true) => Ok(text),
            _ => Err(wrong()),
        },
    };
    match given {
        Value::Array(items) if items.iter().all(Value::is_array) => {
            let lists = items.into_iter().map(|item| match item {
                Value::Array(texts) => one(texts),
                _ => Err(wrong()),
            });
            lists.collect()
        }
        Value::Array(texts) => one(texts),
        Value::String(text) => Ok(text.into()),
        _ => Err(wrong()),
    }
}

fn similarities(body: Map<String, Value>) -> Result<Asked, Error> {
    let asked = inputs::parse(&mut Fields::new(body))?;
    match &asked.request {
        Asks::Ranking(_) => Ok(asked),
        _ => Err(Error::field("inputs", "must be an object with source_sentence and sentences")),
    }
}

/// `inputs` for models of one kind.
fn of_kind(body: Map<String, Value>, kind: ModelKind) -> Result<Asked, Error> {
    let mut asked = inputs::parse(&mut Fields::new(body))?;
    match &mut asked.request {
        Asks::Inputs(inputs) => inputs.only = Some(kind),
        _ => return Err(Error::field("inputs", "must be a string or a list of strings")),
    }
    Ok(asked)
}

/// Answered with a list, also of one text.
fn as_list(asked: &mut Asked) {
    if let Ask::Inputs(ask) = &mut asked.ask {
        ask.single = false;
    }
}
