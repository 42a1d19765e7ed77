//! The container contract's `/adapters…`: adapters that the platform has put on this machine, on
//! top of a base that it does not name.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::Uri;
use roundhouse_types::{ErrorKind, Failure};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{
    NamePath, PageQuery, after, answered, checked_name, face, limit, path, required, status, token,
};
use crate::call::Context;
use crate::error::Error;
use crate::fields::Fields;
use crate::json;
use crate::router::Gateway;
use crate::sagemaker;
use crate::state::{ContainerAdapter, LoadOutcome, Registration};

/// What the contract answers where an adapter cannot be loaded.
const LOAD_FAILED: u16 = 424;

/// `POST /adapters {"name", "src", "preload", "pin"}`, as JSON or as a query: 200, 409 where the
/// name is taken, 507 without memory, 424 where it cannot be loaded, 400.
pub(crate) async fn register(context: Context, request: Request) -> Response {
    let operation = async {
        let face = face(&context.gateway)?;
        let asked = queried(request.uri())?;
        let (_, body) = sagemaker::read(&context, request).await?;
        let mut fields =
            if body.is_empty() { asked } else { Fields::new(json::object(body).await?) };
        let name = required(&mut fields, "name")?;
        checked_name(&fields, "name", &name)?;
        let src = required(&mut fields, "src")?;
        let preload = fields.bool("preload")?.unwrap_or(true);
        let pin = fields.bool("pin")?.unwrap_or(false);
        if face.adapters.get(&name).is_some() {
            return Err(Error::AlreadyRegistered(name));
        }
        let path = path::checked(&src, &face.models_root).await?;
        let registration = Registration { name: name.clone(), src, path, preload, pin };
        let registering = face.adapters.register(registration);
        let outcome = timeout(context.gateway.config.container_timeout, registering)
            .await
            .map_err(|_| late("registration", &name))?
            .map_err(not_loaded)?;
        match outcome {
            LoadOutcome::Loaded => Ok(status(format!("Adapter {name} registered"))),
            LoadOutcome::AlreadyLoaded => Err(Error::AlreadyRegistered(name)),
            LoadOutcome::NoMemory => Err(Error::NoMemory(name)),
        }
    };
    answered(operation.await)
}

/// `GET /adapters?limit=&next_page_token=`. Never waits.
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Response {
    let page = || {
        let (limit, query) = limit(query)?;
        let after = after(query.next_page_token.as_deref())?;
        let (adapters, more) = face(&gateway)?.adapters.page(after.as_deref(), limit);
        let mut page = Map::new();
        page.insert("adapters".into(), adapters.iter().map(object).collect());
        if let Some(last) = adapters.last().filter(|_| more) {
            page.insert("nextPageToken".into(), token(&last.name));
        }
        Ok(axum::Json(page).into_response())
    };
    answered(page())
}

/// `GET /adapters/{name}`: a list of one, 404.
pub(crate) async fn get(State(gateway): State<Gateway>, path: NamePath) -> Response {
    let found = || {
        let name = super::model_name(path)?;
        let adapter = face(&gateway)?.adapters.get(&name).ok_or_else(|| unknown(&name))?;
        Ok(axum::Json(json!([object(&adapter)])).into_response())
    };
    answered(found())
}

/// `DELETE /adapters/{name}`: 200 when its memory is free, 404.
pub(crate) async fn unregister(State(gateway): State<Gateway>, path: NamePath) -> Response {
    let operation = async {
        let face = face(&gateway)?;
        let name = super::model_name(path)?;
        let removed = timeout(gateway.config.container_timeout, face.adapters.unregister(&name))
            .await
            .map_err(|_| late("removal", &name))??;
        if !removed {
            return Err(unknown(&name));
        }
        Ok(status(format!("Adapter {name} unregistered")))
    };
    answered(operation.await)
}

/// The same fields in a query, where `true` and `false` are words.
fn queried(uri: &Uri) -> Result<Fields, Error> {
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
        return Err(Error::request("the query cannot be read"));
    };
    let value = |text: String| match text.as_str() {
        "true" | "True" => Value::Bool(true),
        "false" | "False" => Value::Bool(false),
        _ => Value::String(text),
    };
    Ok(Fields::new(pairs.into_iter().map(|(name, text)| (name, value(text))).collect()))
}

/// What makes an adapter unfit for its base is told as the platform expects it.
fn not_loaded(failure: Failure) -> Error {
    let failure = match failure.kind() {
        ErrorKind::ModelInvalid | ErrorKind::ModelNotFound | ErrorKind::ModelFailed => {
            Failure::new(ErrorKind::ModelFailed, failure.message()).with_status(LOAD_FAILED)
        }
        _ => failure,
    };
    failure.into()
}

pub(super) fn unknown(name: &str) -> Error {
    let message = format!("adapter {name} is not registered");
    Error::Failed(Failure::new(ErrorKind::ModelNotFound, message))
}

fn late(what: &str, name: &str) -> Error {
    let message = format!("the {what} of adapter {name} took too long; it goes on");
    Error::Failed(Failure::new(ErrorKind::TimedOut, message))
}

fn object(adapter: &ContainerAdapter) -> Value {
    json!({"name": adapter.name, "src": adapter.src, "pin": adapter.pin})
}
