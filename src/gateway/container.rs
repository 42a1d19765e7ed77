//! The container contract of multi-model endpoints: `/models…` and `/adapters…`, as SageMaker calls
//! them.

pub(crate) mod adapters;
pub(crate) mod path;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, Uri};
use roundhouse_types::{ErrorKind, Failure, TargetModel};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use crate::aim::{self, Aim};
use crate::call::Context;
use crate::error::{Error, Face};
use crate::fields::Fields;
use crate::json;
use crate::router::Gateway;
use crate::sagemaker;
use crate::state::{ContainerAdapter, ContainerFace, ContainerModel, LoadOutcome};

/// Models on a page, where the client does not say, and at most; as in multi-model-server.
const PAGE_MAX: usize = 100;

type NamePath = Result<Path<String>, PathRejection>;

/// Which page is wanted.
#[derive(Deserialize)]
pub(crate) struct PageQuery {
    /// Models at most.
    limit: Option<usize>,
    /// What the page before gave.
    next_page_token: Option<String>,
}

/// `POST /models {"model_name", "url"}`, as JSON or as a query: 200, 409 where it is loaded, 507
/// without memory, 404 where the path does not exist, 400.
pub(crate) async fn load(context: Context, request: Request) -> Response {
    let operation = async {
        let face = face(&context.gateway)?;
        let mut fields = fields(&context, request).await?;
        let name = required(&mut fields, "model_name")?;
        checked_name(&fields, "model_name", &name)?;
        let url = required(&mut fields, "url")?;
        if face.models.get(&name).is_some() {
            return Err(taken(face, &name));
        }
        let path = path::checked("url", &url, &face.models_root).await?;
        let loading = face.models.load(name.clone(), url, path);
        let outcome = timeout(context.gateway.config.container_timeout, loading)
            .await
            .map_err(|_| late("load", &name))??;
        match outcome {
            LoadOutcome::Loaded => Ok(status(format!("Model \"{name}\" registered"))),
            LoadOutcome::AlreadyLoaded => Err(taken(face, &name)),
            LoadOutcome::NoMemory => Err(Error::NoMemory(format!("model {name}"))),
        }
    };
    answered(operation.await)
}

/// `GET /models?limit=&next_page_token=`. Part of SageMaker's health check: never waits.
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    query: Result<Query<PageQuery>, QueryRejection>,
) -> Response {
    let page = || {
        let (limit, query) = limit(query)?;
        page(face(&gateway)?.models.list(), limit, query.next_page_token.as_deref())
    };
    answered(page().map(|page| axum::Json(page).into_response()))
}

/// `GET /models/{name}`: 200, 404.
pub(crate) async fn get(State(gateway): State<Gateway>, path: NamePath) -> Response {
    let found = || {
        let model = loaded(face(&gateway)?, &model_name(path)?)?;
        Ok(axum::Json(object(&model)).into_response())
    };
    answered(found())
}

/// `DELETE /models/{name}`: 200 when the memory is free, 404.
pub(crate) async fn unload(State(gateway): State<Gateway>, path: NamePath) -> Response {
    let operation = async {
        let face = face(&gateway)?;
        let name = model_name(path)?;
        let unloaded = timeout(gateway.config.container_timeout, face.models.unload(&name))
            .await
            .map_err(|_| late("unload", &name))??;
        if !unloaded {
            return Err(not_loaded(&name));
        }
        Ok(status(format!("Model \"{name}\" unregistered")))
    };
    answered(operation.await)
}

/// `POST /models/{name}/invoke`: what `/invocations` answers, 404 where it is not loaded.
pub(crate) async fn invoke(context: Context, path: NamePath, request: Request) -> Response {
    let operation = async {
        let (headers, body): (HeaderMap, _) = sagemaker::read(&context, request).await?;
        let face = face(&context.gateway)?;
        let model = loaded(face, &model_name(path)?)?;
        let read = sagemaker::Read { handlers: face.handlers, gathers: false };
        let aim = match aim::header(&headers)? {
            None => Aim::at(model.model),
            Some(adapter) => {
                let adapter = registered(face, &adapter)?;
                Aim::by_header(adapter.model, Some(model.model))
            }
        };
        let aim = aim.of_platform();
        sagemaker::invoke_loaded(context, aim, &headers, body, read).await
    };
    answered(operation.await)
}

/// What `/invocations` names of the contract's, and whether that may be a handler: an adapter by its
/// header, a loaded model by `?model_name=`; where no endpoint is configured that could be meant
/// instead, the only loaded model.
pub(crate) fn named(
    context: &Context,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Option<(Aim, bool)>, Error> {
    let Some(face) = &context.gateway.container else { return Ok(None) };
    let is_alone = is_alone(context);
    if let Some(name) = aim::header(headers)? {
        return match registered(face, &name) {
            Ok(adapter) => Ok(Some((Aim::by_header(adapter.model, None).of_platform(), false))),
            // It may be a target of an endpoint.
            Err(_) if !is_alone => Ok(None),
            Err(error) => Err(error),
        };
    }
    let model = match queried(uri)?.string("model_name")? {
        Some(name) if face.loads => loaded(face, &name)?,
        Some(_) => return Ok(None),
        None if !is_alone => return Ok(None),
        None => only(face)?,
    };
    Ok(Some((Aim::at(model.model).of_platform(), face.handlers)))
}

/// Whether there is nothing to ask but the contract's models.
pub(crate) fn is_alone(context: &Context) -> bool {
    context.gateway.container.is_some() && context.offered.endpoints.is_empty()
}

/// The only loaded model.
fn only(face: &ContainerFace) -> Result<ContainerModel, Error> {
    let mut models = face.models.list();
    match (models.pop(), models.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(not_found("no model is loaded")),
        (Some(_), false) => Err(Error::request(
            "several models are loaded: name one by /models/{name}/invoke or ?model_name=",
        )),
    }
}

/// The fields of a request's body; of its query where there is no body.
async fn fields(context: &Context, request: Request) -> Result<Fields, Error> {
    let asked = queried(request.uri())?;
    let (_, body) = sagemaker::read(context, request).await?;
    if body.is_empty() { Ok(asked) } else { Ok(Fields::new(json::object(body).await?)) }
}

/// The fields of a query.
fn queried(uri: &Uri) -> Result<Fields, Error> {
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
        return Err(Error::request("the query cannot be read"));
    };
    Ok(Fields::new(pairs.into_iter().map(|(name, text)| (name, Value::String(text))).collect()))
}

fn registered(face: &ContainerFace, name: &TargetModel) -> Result<ContainerAdapter, Error> {
    let name = name.check().map_err(|reason| {
        Error::request(format!("the adapter's name is not a legal one: {reason}"))
    })?;
    face.adapters.get(name.as_str()).ok_or_else(|| adapters::none_such(name.as_str()))
}

/// How many of a page are wanted.
fn limit(query: Result<Query<PageQuery>, QueryRejection>) -> Result<(usize, PageQuery), Error> {
    let Query(query) = query.map_err(|_| Error::request("limit must be a whole number"))?;
    match query.limit {
        Some(0) => Err(Error::request("limit must be at least 1")),
        Some(limit) => Ok((limit.min(PAGE_MAX), query)),
        None => Ok((PAGE_MAX, query)),
    }
}

/// Refuses names that targets and paths cannot have.
fn checked_name(fields: &Fields, field: &str, name: &str) -> Result<(), Error> {
    if name.contains('/') {
        return Err(fields.wrong(field, "must be a name without slashes"));
    }
    let checked = TargetModel::new(name).check();
    checked.map_err(|why| fields.wrong(field, &format!("is not a legal name: {why}")))?;
    Ok(())
}

/// What has a name that is wanted for another.
fn taken(face: &ContainerFace, name: &str) -> Error {
    Error::AlreadyLoaded(match face.adapters.get(name) {
        Some(_) => format!("adapter {name} is already registered"),
        None => format!("model {name} is already loaded"),
    })
}

/// Its routes exist only where the contract is switched on.
fn face(gateway: &Gateway) -> Result<&ContainerFace, Error> {
    gateway.container.as_ref().ok_or(Error::UnknownPath)
}

fn loaded(face: &ContainerFace, name: &str) -> Result<ContainerModel, Error> {
    face.models.get(name).ok_or_else(|| not_loaded(name))
}

fn not_loaded(name: &str) -> Error {
    not_found(&format!("model {name} is not loaded"))
}

fn not_found(message: &str) -> Error {
    Error::Failed(Failure::new(ErrorKind::ModelNotFound, message))
}

fn late(what: &str, name: &str) -> Error {
    let message = format!("the {what} of model {name} took too long; it goes on");
    Error::Failed(Failure::new(ErrorKind::TimedOut, message))
}

fn model_name(path: NamePath) -> Result<String, Error> {
    match path {
        Ok(Path(name)) => Ok(name),
        Err(_) => Err(Error::request("the model's name in the path is not UTF-8")),
    }
}

fn required(fields: &mut Fields, name: &str) -> Result<String, Error> {
    let value = fields.string(name)?.filter(|value| !value.is_empty());
    value.ok_or_else(|| fields.wrong(name, "is required"))
}

fn answered(result: Result<Response, Error>) -> Response {
    result.unwrap_or_else(|error| error.respond(Face::Container))
}

fn status(text: String) -> Response {
    axum::Json(json!({"status": text})).into_response()
}

fn object(model: &ContainerModel) -> Value {
    json!({"modelName": model.name, "modelUrl": model.url})
}

/// A page in name order. The token is the last name before it, so that loads and unloads
/// between two pages neither repeat nor lose a model.
fn page(
    mut models: Vec<ContainerModel>,
    limit: usize,
    token: Option<&str>,
) -> Result<Value, Error> {
    if let Some(after) = after(token)? {
        models.retain(|model| model.name > after);
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    let more = models.len() > limit;
    models.truncate(limit);
    let mut page = Map::new();
    page.insert("models".into(), models.iter().map(object).collect());
    if let Some(last) = models.last().filter(|_| more) {
        page.insert("nextPageToken".into(), self::token(&last.name));
    }
    Ok(page.into())
}

/// The token of the page that follows a name.
fn token(last: &str) -> Value {
    URL_SAFE_NO_PAD.encode(last).into()
}

/// The name that a token stands for.
fn after(token: Option<&str>) -> Result<Option<String>, Error> {
    let Some(token) = token else { return Ok(None) };
    let name = URL_SAFE_NO_PAD.decode(token).ok().and_then(|name| String::from_utf8(name).ok());
    name.map(Some).ok_or_else(|| Error::request("next_page_token is not one of ours"))
}
