//! `/v1/models`: what the store holds, resident or not; adapters that are say what they build on, and
//! loaded models how long their sequences may be, how their weights lie and how much room they have.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::response::{IntoResponse, Response};
use roundhouse_types::TargetModel;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::call::Context;
use crate::error::{Error, Face};
use crate::openai::unix_seconds;
use crate::state::{EndpointFace, GatewayState, Target};
use crate::target;

/// Models on a page, where the client does not say, and at most.
const PAGE_MAX: usize = 1000;

/// Which page is wanted.
#[derive(Deserialize)]
pub(crate) struct PageQuery {
    /// Models at most.
    limit: Option<usize>,
    /// The id before the page.
    after: Option<String>,
}

/// `GET /v1/models?limit=&after=`.
pub(crate) async fn list(
    context: Context,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Response {
    let operation = async {
        let Query(query) = query.map_err(|_| Error::request("limit must be a number"))?;
        let limit = query.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
        page(&context.gateway, query.after.as_deref(), limit).await
    };
    match operation.await {
        Ok(page) => axum::Json(page).into_response(),
        Err(error) => error.respond(Face::OpenAi),
    }
}

/// `GET /v1/models/{id}`; ids may have slashes.
pub(crate) async fn one(context: Context, path: Result<Path<String>, PathRejection>) -> Response {
    let operation = async {
        let Path(id) = path.map_err(|_| Error::request("the model's id is not UTF-8"))?;
        let (endpoint, name) = target::split(&context.gateway, None, &id)?;
        let model = target::model(endpoint, &TargetModel::new(name))?;
        context.notes.asked(&model);
        let found = (endpoint.find)(model.target).await?;
        Ok(object(&id, endpoint, &found))
    };
    match operation.await {
        Ok(model) => axum::Json(model).into_response(),
        Err(error) => Error::respond(&error, Face::OpenAi),
    }
}

async fn page(state: &GatewayState, after: Option<&str>, limit: usize) -> Result<Value, Error> {
    let mut data = Vec::new();
    let mut more = false;
    let (skip, mut after) = place(state, after)?;
    for endpoint in state.endpoints.iter().skip(skip) {
        if data.len() == limit {
            // Whether the rest is empty is not worth a listing: an empty page is a fine answer.
            more = true;
            break;
        }
        let page = (endpoint.list)(after.take(), limit - data.len()).await?;
        let objects =
            page.targets.iter().map(|found| object(&id(state, endpoint, found), endpoint, found));
        data.extend(objects);
        if page.more {
            more = true;
            break;
        }
    }
    let edge = |model: Option<&Value>| model.map_or(Value::Null, |model| model["id"].clone());
    Ok(json!({
        "object": "list",
        "first_id": edge(data.first()),
        "last_id": edge(data.last()),
        "has_more": more,
        "data": data,
    }))
}

/// The endpoint to begin with, and the target name to begin after.
fn place(state: &GatewayState, after: Option<&str>) -> Result<(usize, Option<String>), Error> {
    let Some(after) = after else {
        return Ok((0, None));
    };
    if state.endpoints.len() == 1 {
        return Ok((0, Some(after.to_owned())));
    }
    let (endpoint, name) = target::split(state, None, after)?;
    let index = state.endpoints.iter().position(|other| other.name == endpoint.name);
    Ok((index.unwrap_or(0), Some(name.to_owned())))
}

/// What `model` and `after` take.
fn id(state: &GatewayState, endpoint: &EndpointFace, found: &Target) -> String {
    if state.endpoints.len() == 1 {
        found.name.to_string()
    } else {
        format!("{}:{}", endpoint.name, found.name)
    }
}

fn object(id: &str, endpoint: &EndpointFace, found: &Target) -> Value {
    let mut object = json!({
        "id": id,
        "object": "model",
        "created": found.modified.map_or(0, unix_seconds),
        "owned_by": endpoint.name.as_str(),
    });
    // As vLLM tells its adapters from their base.
    if let Some(base) = (endpoint.base)(&found.name) {
        object["root"] = found.name.as_str().into();
        object["parent"] = base.as_str().into();
    }
    // The length under the name that clients of vLLM know.
    if let Some(facts) = (endpoint.facts)(&found.name) {
        object["max_model_len"] = facts.context.into();
        object["dtype"] = facts.dtype.into();
        object["quantization"] = facts.quantize.into();
        object["kv"] = json!(facts.kv);
    }
    object
}
