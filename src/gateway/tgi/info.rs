//! `GET /info` and `GET /health`, as text-generation-inference answers them.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use roundhouse_serving::STOPS_MAX;
use roundhouse_types::{ModelId, TargetModel};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::addressed::addressed;
use crate::call::Context;
use crate::error::{Error, Face};
use crate::meter;
use crate::openai::models;
use crate::router::Gateway;
use crate::sagemaker::headers::Sent;
use crate::sagemaker::inputs::INPUTS_MAX;
use crate::state::{EndpointFace, Health};
use crate::target;

/// Which model is meant, where a header does not say it.
#[derive(Deserialize)]
pub(crate) struct InfoQuery {
    model: Option<String>,
}

/// `GET /health`: 200 without a body, 503. Never waits.
pub(crate) async fn health(State(gateway): State<Gateway>) -> Response {
    match (gateway.health)() {
        Health::Healthy => StatusCode::OK.into_response(),
        Health::Unhealthy(why) => {
            let body = json!({"error": why, "error_type": "healthcheck"});
            (StatusCode::SERVICE_UNAVAILABLE, axum::Json(body)).into_response()
        }
    }
}

/// `GET /info`: the server, and the model that is named by header, by `?model=`, or by the endpoint's
/// having one; of a loaded model also what it serves.
pub(crate) async fn info(
    context: Context,
    query: Result<Query<InfoQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let operation = async {
        let Query(query) = query.map_err(|_| Error::request("the query cannot be read"))?;
        let endpoint = target::default_endpoint(&context)?;
        let model = named(&context, endpoint, &headers, query.model)?;
        if let Some(model) = &model {
            context.notes.asked(model);
        }
        meter::admit_look(&context, model.as_ref())?;
        let mut told = server(&context);
        if let Some(model) = model {
            models::seen_one(&context, endpoint, &model).await?;
            add_model(&mut told, &context, endpoint, &model);
        }
        Ok(told)
    };
    match operation.await {
        Ok(told) => meter::settled(&context.notes, axum::Json(told).into_response()).await,
        Err(error) => Error::respond(&error, Face::Tgi),
    }
}

fn named(
    context: &Context,
    endpoint: &EndpointFace,
    headers: &HeaderMap,
    query: Option<String>,
) -> Result<Option<ModelId>, Error> {
    if !endpoint.naming.is_multi_model() {
        let unnamed = || Err(target::unnamed());
        let found = addressed(context, endpoint, headers, &Sent::default(), unnamed)?;
        return Ok(Some(found.aim.model));
    }
    let name = match target::header(headers)? {
        Some(name) => Some(name),
        None => query.filter(|name| !name.is_empty()).map(TargetModel::new),
    };
    name.map(|name| target::model(endpoint, &name)).transpose()
}

fn server(context: &Context) -> Value {
    json!({
        "router": "roundhouse",
        "version": env!("CARGO_PKG_VERSION"),
        "max_concurrent_requests": context.gateway.config.max_requests,
        "max_best_of": 1,
        "max_stop_sequences": STOPS_MAX,
        "max_client_batch_size": 1,
    })
}

/// What is known of the model; only of a loaded one how much it takes, as that tells that it is used.
fn add_model(told: &mut Value, context: &Context, endpoint: &EndpointFace, model: &ModelId) {
    told["model_id"] = model.target.as_str().into();
    if !context.is_told_of(&model.target) {
        return;
    }
    if let Some(facts) = (endpoint.facts)(&model.target) {
        told["model_dtype"] = facts.dtype.into();
        told["max_total_tokens"] = facts.context.into();
        told["max_input_tokens"] = facts.context.saturating_sub(1).into();
        // An encoder: its clients batch by what they are told.
        if facts.kv.is_none() {
            told["max_input_length"] = facts.context.into();
            told["max_client_batch_size"] = INPUTS_MAX.into();
        }
    }
}
