//! `/v1/models`: what the store holds of what the caller may see, resident or not, aliases, and inference
//! components; adapters that are resident say what they build on, and loaded models how long their sequences may be, how their
//! weights lie and how much room they have.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::response::{IntoResponse, Response};
use roundhouse_tenancy::{Alias, Pattern};
use roundhouse_types::{Failure, ModelId, TargetModel, TargetName};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::aim::Aim;
use crate::call::Context;
use crate::error::{Error, Face};
use crate::meter;
use crate::openai::unix_seconds;
use crate::permitted;
use crate::state::{EndpointFace, PageWanted, Target};
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
        meter::admit_look(&context, None)?;
        let limit = query.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
        page(&context, query.after.as_deref(), limit).await
    };
    match operation.await {
        Ok(page) => meter::settled(&context.notes, axum::Json(page).into_response()).await,
        Err(error) => error.respond(Face::OpenAi),
    }
}

/// `GET /v1/models/{id}`; ids may have slashes.
pub(crate) async fn one(context: Context, path: Result<Path<String>, PathRejection>) -> Response {
    let operation = async {
        let Path(id) = path.map_err(|_| Error::request("the model's id is not UTF-8"))?;
        let (endpoint, name) = target::split(&context, None, &id)?;
        let model = target::model(endpoint, &TargetModel::new(name))?;
        context.notes.asked(&model);
        meter::admit_look(&context, Some(&model))?;
        let found = find(&context, endpoint, &model).await?;
        Ok(object(&context, endpoint, &id, &found))
    };
    match operation.await {
        Ok(model) => meter::settled(&context.notes, axum::Json(model).into_response()).await,
        Err(error) => Error::respond(&error, Face::OpenAi),
    }
}

/// A line of the list.
struct Listed {
    name: TargetName,
    modified: Option<SystemTime>,
    /// What an alias stands for, where it is one target; itself for all others.
    target: Option<TargetName>,
    /// What a name beside the targets stands for, as far as the caller sees it: it is as old as the newest.
    behind: Vec<TargetName>,
}

impl Listed {
    fn target(found: Target) -> Self {
        let (name, modified) = (found.name, found.modified);
        Self { target: Some(name.clone()), name, modified, behind: Vec::new() }
    }

    fn alias(context: &Context, name: &TargetName, alias: &Alias) -> Self {
        let seen = context.offered.policy.sees(&context.caller);
        let is_seen =
            |it: &&ModelId| seen.as_ref().is_none_or(|seen| seen.iter().any(|by| by.matches(it)));
        let behind = alias.targets().filter(is_seen).map(|it| it.target.clone()).collect();
        let mut targets = alias.targets();
        let only = targets.next().filter(|_| targets.next().is_none());
        let target = only.map(|it| it.target.clone());
        Self { name: name.clone(), modified: None, target, behind }
    }

    fn component(name: TargetName, target: &TargetName) -> Self {
        Self { name, modified: None, target: Some(target.clone()), behind: vec![target.clone()] }
    }

    /// The same, as old as the newest of what it stands for.
    fn dated(mut self, targets: &[Target]) -> Self {
        let own = targets.iter().filter(|it| self.behind.contains(&it.name));
        self.modified = self.modified.max(own.filter_map(|it| it.modified).max());
        self
    }
}

/// What names stand for that are not among those listed already. A store that cannot be asked has none.
async fn behind(endpoint: &EndpointFace, beside: &[Listed], known: &[Target]) -> Vec<Target> {
    let names: BTreeSet<&TargetName> = beside.iter().flat_map(|it| &it.behind).collect();
    let others = names.into_iter().filter(|name| known.iter().all(|it| it.name != **name));
    let only: Vec<Pattern> =
        others.filter_map(|name| format!("{}:{name}", endpoint.name).parse().ok()).collect();
    if only.is_empty() {
        return Vec::new();
    }
    let wanted = PageWanted { after: None, limit: only.len(), only: Some(only) };
    (endpoint.list)(wanted).await.map(|page| page.targets).unwrap_or_default()
}

/// The endpoint's inference components that the caller may use and see.
fn components<'a>(
    context: &'a Context,
    endpoint: &'a EndpointFace,
) -> impl Iterator<Item = Listed> + 'a {
    let seen = context.offered.policy.sees(&context.caller);
    endpoint.naming.components.iter().filter_map(move |(name, target)| {
        let model = ModelId { endpoint: endpoint.name.clone(), target: target.clone() };
        let is_seen = seen.as_ref().is_none_or(|seen| seen.iter().any(|it| it.matches(&model)));
        let may_use = is_seen && permitted::permit(context, &Aim::at(model)).is_ok();
        let name = may_use.then(|| TargetModel::new(name.as_str()).check().ok()).flatten()?;
        Some(Listed::component(name, target))
    })
}

/// Whether there is a model, and the caller may see it.
///
/// # Errors
/// `ModelNotFound` where not; the store's failures.
pub(crate) async fn seen_one(
    context: &Context,
    endpoint: &EndpointFace,
    model: &ModelId,
) -> Result<(), Error> {
    find(context, endpoint, model).await.map(drop)
}

/// One model, where the caller may see it: then the store is asked, for no other name.
async fn find(
    context: &Context,
    endpoint: &EndpointFace,
    model: &ModelId,
) -> Result<Listed, Error> {
    let (policy, caller) = (&context.offered.policy, &context.caller);
    // As requests find it: a component goes before an alias or a target of its name.
    let component = components(context, endpoint).find(|it| it.name == model.target);
    let alias = || {
        let mut aliases = policy.aliases_seen(caller, &model.endpoint);
        let (name, alias) = aliases.find(|(name, _)| **name == model.target)?;
        Some(Listed::alias(context, name, alias))
    };
    if let Some(beside) = component.or_else(alias) {
        let targets = behind(endpoint, std::slice::from_ref(&beside), &[]).await;
        return Ok(beside.dated(&targets));
    }
    if policy.sees(caller).is_some_and(|seen| !seen.iter().any(|it| it.matches(model))) {
        return Err(permitted::not_found(model).into());
    }
    let found = (endpoint.find)(model.target.clone()).await;
    let found = found.map_err(|failure| permitted::told(caller, model, model, failure))?;
    Ok(Listed::target(found))
}

async fn page(context: &Context, after: Option<&str>, limit: usize) -> Result<Value, Error> {
    let endpoints: Vec<&EndpointFace> = target::known(context).collect();
    let mut data = Vec::new();
    let mut more = false;
    let (skip, mut after) = place(context, &endpoints, after)?;
    for endpoint in endpoints.into_iter().skip(skip) {
        if data.len() == limit {
            // Whether the rest is empty is not worth a listing: an empty page is a fine answer.
            more = true;
            break;
        }
        let (listed, others) = seen(context, endpoint, after.take(), limit - data.len()).await?;
        let shown = |it: &Listed| object(context, endpoint, &id(context, endpoint, &it.name), it);
        data.extend(listed.iter().map(shown));
        if others {
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

/// What a caller sees of an endpoint behind a name, aliases and components among targets, and whether others follow.
async fn seen(
    context: &Context,
    endpoint: &EndpointFace,
    after: Option<String>,
    limit: usize,
) -> Result<(Vec<Listed>, bool), Error> {
    let (policy, caller) = (&context.offered.policy, &context.caller);
    let only = policy
        .sees(caller)
        .map(|seen| seen.iter().filter(|pattern| pattern.is_at(&endpoint.name)).cloned().collect());
    let wanted = PageWanted { after: after.clone(), limit, only };
    let page = (endpoint.list)(wanted).await.map_err(|failure| {
        let message = format!("the store of endpoint '{}' is unavailable", endpoint.name);
        match caller.tenant {
            None => failure,
            Some(_) => Failure::new(failure.kind(), message).with_retry(failure.retry()),
        }
    })?;
    let aliases = policy.aliases_seen(caller, &endpoint.name);
    let aliases = aliases.map(|(name, alias)| Listed::alias(context, name, alias));
    // What lies behind a page that has others behind it comes with those.
    let last = page.targets.iter().map(|it| &it.name).max().filter(|_| page.more);
    let is_here = |name: &TargetName| {
        let is_behind = after.as_deref().is_none_or(|after| name.as_str() > after);
        is_behind && last.is_none_or(|last| name <= last)
    };
    let beside = aliases.chain(components(context, endpoint)).filter(|it| is_here(&it.name));
    let beside: Vec<Listed> = beside.collect();
    let mut known = behind(endpoint, &beside, &page.targets).await;
    known.extend(page.targets.iter().cloned());
    let targets = page.targets.into_iter().map(Listed::target);
    let beside = beside.into_iter().map(|it| it.dated(&known));
    let listed: BTreeMap<TargetName, Listed> =
        targets.chain(beside).map(|it| (it.name.clone(), it)).collect();
    let more = page.more || listed.len() > limit;
    Ok((listed.into_values().take(limit).collect(), more))
}

/// The endpoint to begin with, and the target name to begin after.
fn place(
    context: &Context,
    endpoints: &[&EndpointFace],
    after: Option<&str>,
) -> Result<(usize, Option<String>), Error> {
    let Some(after) = after else {
        return Ok((0, None));
    };
    if context.offered.endpoints.len() == 1 {
        return Ok((0, Some(after.to_owned())));
    }
    let (endpoint, name) = target::split(context, None, after)?;
    let index = endpoints.iter().position(|other| other.name == endpoint.name);
    Ok((index.unwrap_or(0), Some(name.to_owned())))
}

/// What `model` and `after` take.
fn id(context: &Context, endpoint: &EndpointFace, name: &TargetName) -> String {
    if context.offered.endpoints.len() == 1 {
        name.to_string()
    } else {
        format!("{}:{name}", endpoint.name)
    }
}

fn object(context: &Context, endpoint: &EndpointFace, id: &str, found: &Listed) -> Value {
    let mut object = json!({
        "id": id,
        "object": "model",
        "created": found.modified.map_or(0, unix_seconds),
        "owned_by": endpoint.name.as_str(),
    });
    let Some(target) = &found.target else { return object };
    if found.name != *target {
        object["root"] = target.as_str().into();
    }
    // What loaded models tell says that they are used, and how much.
    if !context.is_told_of(target) {
        return object;
    }
    // As vLLM tells its adapters from their base.
    let base = (endpoint.base)(target);
    // An adapter's numbers are its base's, which others may use as well.
    let is_all_own = base.as_ref().is_none_or(|base| context.is_told_of(base));
    if let Some(base) = base {
        object["root"] = target.as_str().into();
        let base = ModelId { endpoint: endpoint.name.clone(), target: base };
        if permitted::may_know(context, &base) {
            object["parent"] = base.target.as_str().into();
        }
    }
    // The length under the name that clients of vLLM know.
    if let Some(facts) = (endpoint.facts)(target) {
        object["max_model_len"] = facts.context.into();
        object["dtype"] = facts.dtype.into();
        object["quantization"] = facts.quantize.into();
        if is_all_own {
            object["kv"] = json!(facts.kv);
        }
    }
    object
}
