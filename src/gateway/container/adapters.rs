//! The container contract's `/adapters…`, also below `/models/{model}`: adapters that the platform has
//! put on this machine, on top of a base that it does not name, or of the model in the path.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use roundhouse_types::{ErrorKind, Failure, ModelId};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{
    NamePath, PageQuery, after, answered, checked_name, face, fields, limit, path, required,
    status, taken, token,
};
use crate::call::Context;
use crate::error::Error;
use crate::fields::Fields;
use crate::router::Gateway;
use crate::state::{ContainerAdapter, ContainerFace, LoadOutcome, Registration, Update};

/// What the contract answers where an adapter cannot be loaded, and where one is asked that is not
/// registered: 404 says there that the model is not loaded, and has the platform load it again.
const FAILED: u16 = 424;

type NamesPath = Result<Path<(String, String)>, PathRejection>;

/// `POST /adapters {"name", "src", "preload", "pin"}`, as JSON or as a query: 200, 409 where the
/// name is taken, 507 without memory, 424 where it cannot be loaded, 400.
pub(crate) async fn register(context: Context, request: Request) -> Response {
    answered(registered(&context, request, None).await)
}

/// `POST /models/{model}/adapters`: the same, 424 where it is no adapter of that model, 404 where that
/// is not loaded.
pub(crate) async fn register_on(context: Context, path: NamePath, request: Request) -> Response {
    let operation = async {
        let base = base(face(&context.gateway)?, &super::model_name(path)?)?;
        registered(&context, request, Some(base)).await
    };
    answered(operation.await)
}

async fn registered(
    context: &Context,
    request: Request,
    base: Option<ModelId>,
) -> Result<Response, Error> {
    let face = face(&context.gateway)?;
    let mut fields = fields(context, request).await?;
    let name = required(&mut fields, "name")?;
    checked_name(&fields, "name", &name)?;
    let src = required(&mut fields, "src")?;
    let preload = switch(&mut fields, "preload")?.unwrap_or(true);
    let pin = switch(&mut fields, "pin")?.unwrap_or(false);
    if face.adapters.get(&name).is_some() {
        return Err(taken(face, &name));
    }
    let path = path::checked("src", &src, &face.models_root).await?;
    let registration = Registration { name: name.clone(), src, path, preload, pin, base };
    let registering = face.adapters.register(registration);
    let outcome = timeout(context.gateway.config.container_timeout, registering)
        .await
        .map_err(|_| late("registration", &name))?
        .map_err(not_loaded)?;
    match outcome {
        LoadOutcome::Loaded => Ok(status(format!("Adapter {name} registered"))),
        LoadOutcome::AlreadyLoaded => Err(taken(face, &name)),
        LoadOutcome::NoMemory => Err(no_memory(&name)),
    }
}

/// `POST /adapters/{name}/update {"src", "preload", "pin"}`, as JSON or as a query: what is not said
/// stays; an adapter that lies elsewhere now is loaded again. 200, 404, and as a registration.
pub(crate) async fn update(context: Context, path: NamePath, request: Request) -> Response {
    let operation = async {
        let name = super::model_name(path)?;
        face(&context.gateway)?.adapters.get(&name).ok_or_else(|| unknown(&name))?;
        updated(&context, name, request).await
    };
    answered(operation.await)
}

/// `POST /models/{model}/adapters/{name}/update`.
pub(crate) async fn update_on(context: Context, path: NamesPath, request: Request) -> Response {
    let operation = async {
        let adapter = of_model(face(&context.gateway)?, path)?;
        updated(&context, adapter.name, request).await
    };
    answered(operation.await)
}

async fn updated(context: &Context, name: String, request: Request) -> Result<Response, Error> {
    let face = face(&context.gateway)?;
    let mut fields = fields(context, request).await?;
    let place = match fields.string("src")?.filter(|src| !src.is_empty()) {
        Some(src) => {
            let path = path::checked("src", &src, &face.models_root).await?;
            Some((src, path))
        }
        None => None,
    };
    let preload = switch(&mut fields, "preload")?.unwrap_or(false);
    let pin = switch(&mut fields, "pin")?;
    let updating = face.adapters.update(Update { name: name.clone(), place, preload, pin });
    let outcome = timeout(context.gateway.config.container_timeout, updating)
        .await
        .map_err(|_| late("update", &name))?
        .map_err(not_loaded)?;
    match outcome {
        None => Err(unknown(&name)),
        Some(LoadOutcome::Loaded) => Ok(status(format!("Adapter {name} updated"))),
        Some(LoadOutcome::AlreadyLoaded) => Err(taken(face, &name)),
        Some(LoadOutcome::NoMemory) => Err(no_memory(&name)),
    }
}

/// `GET /adapters?limit=&next_page_token=`. Never waits.
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Response {
    answered(face(&gateway).and_then(|face| page(face, None, query)))
}

/// `GET /models/{model}/adapters`: those of one model.
pub(crate) async fn list_on(
    State(gateway): State<Gateway>,
    path: NamePath,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Response {
    let listed = || {
        let face = face(&gateway)?;
        let base = base(face, &super::model_name(path)?)?;
        page(face, Some(&base), query)
    };
    answered(listed())
}

fn page(
    face: &ContainerFace,
    base: Option<&ModelId>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Response, Error> {
    let (limit, query) = limit(query)?;
    let after = after(query.next_page_token.as_deref())?;
    let (adapters, more) = face.adapters.page(after.as_deref(), limit, base);
    let mut page = Map::new();
    page.insert("adapters".into(), adapters.iter().map(object).collect());
    if let Some(last) = adapters.last().filter(|_| more) {
        page.insert("nextPageToken".into(), token(&last.name));
    }
    Ok(axum::Json(page).into_response())
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

/// `GET /models/{model}/adapters/{name}`.
pub(crate) async fn get_on(State(gateway): State<Gateway>, path: NamesPath) -> Response {
    let found = || {
        let adapter = of_model(face(&gateway)?, path)?;
        Ok(axum::Json(json!([object(&adapter)])).into_response())
    };
    answered(found())
}

/// `DELETE /adapters/{name}`: 200 when its memory is free, 404.
pub(crate) async fn unregister(State(gateway): State<Gateway>, path: NamePath) -> Response {
    let operation = async { unregistered(&gateway, super::model_name(path)?).await };
    answered(operation.await)
}

/// `DELETE /models/{model}/adapters/{name}`.
pub(crate) async fn unregister_on(State(gateway): State<Gateway>, path: NamesPath) -> Response {
    let operation = async {
        let adapter = of_model(face(&gateway)?, path)?;
        unregistered(&gateway, adapter.name).await
    };
    answered(operation.await)
}

async fn unregistered(gateway: &Gateway, name: String) -> Result<Response, Error> {
    let face = face(gateway)?;
    let removed = timeout(gateway.config.container_timeout, face.adapters.unregister(&name))
        .await
        .map_err(|_| late("removal", &name))??;
    if !removed {
        return Err(unknown(&name));
    }
    Ok(status(format!("Adapter {name} unregistered")))
}

/// The loaded model of this name, as what adapters build on.
fn base(face: &ContainerFace, name: &str) -> Result<ModelId, Error> {
    super::loaded(face, name).map(|model| model.model)
}

/// The adapter that a path names, where it is one of the model before it.
fn of_model(face: &ContainerFace, path: NamesPath) -> Result<ContainerAdapter, Error> {
    let Ok(Path((model, name))) = path else {
        return Err(Error::request("a name in the path is not UTF-8"));
    };
    let base = base(face, &model)?;
    let found = face.adapters.get(&name).filter(|adapter| adapter.base.as_ref() == Some(&base));
    found.ok_or_else(|| unknown(&name))
}

/// A switch, which queries write as a word.
fn switch(fields: &mut Fields, name: &str) -> Result<Option<bool>, Error> {
    match fields.take(name) {
        None => Ok(None),
        Some(Value::Bool(on)) => Ok(Some(on)),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => Ok(Some(true)),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("false") => Ok(Some(false)),
        Some(_) => Err(fields.wrong(name, "must be true or false")),
    }
}

/// What makes an adapter unfit for its base is told as the platform expects it.
fn not_loaded(failure: Failure) -> Error {
    let failure = match failure.kind() {
        ErrorKind::ModelInvalid | ErrorKind::ModelNotFound | ErrorKind::ModelFailed => {
            Failure::new(ErrorKind::ModelFailed, failure.message()).with_status(FAILED)
        }
        _ => failure,
    };
    failure.into()
}

fn unknown(name: &str) -> Error {
    unregistered_failure(name).into()
}

/// What an invocation is told that names an adapter which is not registered.
pub(crate) fn none_such(name: &str) -> Error {
    unregistered_failure(name).with_status(FAILED).into()
}

fn unregistered_failure(name: &str) -> Failure {
    Failure::new(ErrorKind::ModelNotFound, format!("adapter {name} is not registered"))
}

fn no_memory(name: &str) -> Error {
    Error::NoMemory(format!("adapter {name}"))
}

fn late(what: &str, name: &str) -> Error {
    let message = format!("the {what} of adapter {name} took too long; it goes on");
    Error::Failed(Failure::new(ErrorKind::TimedOut, message))
}

fn object(adapter: &ContainerAdapter) -> Value {
    json!({"name": adapter.name, "src": adapter.src, "pin": adapter.pin})
}
