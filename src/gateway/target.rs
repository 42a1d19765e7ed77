//! Which endpoint and which target model a request means.

use http::{HeaderMap, HeaderName};
use roundhouse_types::{ErrorKind, Failure, ModelId, TargetModel, TargetName};

use crate::addressed::{self, Addressed, addressed, answers, is_there};
use crate::aim::{self, Aim};
use crate::call::Context;
use crate::error::Error;
use crate::sagemaker::headers::{CUSTOM_ATTRIBUTES, Sent};
use crate::state::EndpointFace;
use crate::state::naming::ALL_TRAFFIC;

/// The header that names the target, taken as raw bytes: never percent-decoded, and not
/// necessarily ASCII.
pub(crate) const TARGET_MODEL: HeaderName =
    HeaderName::from_static("x-amzn-sagemaker-target-model");
/// What clients of text-generation-inference call whatever model it serves.
const ANY_MODEL: &str = "tgi";
/// So many endpoints are told where one has to be named.
const ENDPOINTS_TOLD: usize = 8;
/// The endpoint that is meant where a request names none and there are several.
const DEFAULT_ENDPOINT: &str = "default";

/// A configured endpoint that has something for the caller.
///
/// # Errors
/// `EndpointNotFound`.
pub(crate) fn endpoint<'a>(context: &'a Context, name: &str) -> Result<&'a EndpointFace, Error> {
    let found = context.endpoint(name).filter(|found| is_there(context, found));
    found.ok_or_else(|| no_endpoint(name))
}

/// The endpoint of this name, where it answers the caller by that name alone.
pub(crate) fn answering<'a>(context: &'a Context, name: &str) -> Option<&'a EndpointFace> {
    context.endpoint(name).filter(|found| answers(context, found))
}

/// The endpoints whose names mean something to the caller, before a target's and in lists.
pub(crate) fn known(context: &Context) -> impl Iterator<Item = &EndpointFace> {
    context.endpoints().filter(|found| is_known(context, found))
}

/// Whether an endpoint's name means something to the caller. Where requests name their targets, those are
/// judged one by one. Elsewhere it must have something of the endpoint's own, or a grant that names the
/// endpoint; the one that is meant where none is named goes by its name, too.
fn is_known(context: &Context, endpoint: &EndpointFace) -> bool {
    let is_granted = || context.offered.policy.names(&context.caller, &endpoint.name);
    let is_default = || default_endpoint(context).is_ok_and(|it| it.name == endpoint.name);
    is_there(context, endpoint) || endpoint.containers.is_none() && (is_granted() || is_default())
}

/// What is said of an endpoint that is not there, or not for this caller.
pub(crate) fn no_endpoint(name: &str) -> Error {
    let message = format!("endpoint {name} not found");
    Error::Failed(Failure::new(ErrorKind::EndpointNotFound, message))
}

/// Whether a model may be an external engine, which reads bodies itself.
pub(crate) fn has_engines(context: &Context, model: &ModelId) -> bool {
    context.endpoint(model.endpoint.as_str()).is_some_and(|endpoint| endpoint.engines)
}

/// The endpoint that is meant where none is named: the only one, or `default`.
///
/// # Errors
/// `EndpointNotFound`, also where it has containers and the caller may ask none.
pub(crate) fn default_endpoint(context: &Context) -> Result<&EndpointFace, Error> {
    let endpoints = context.offered.endpoints.as_slice();
    let found = match endpoints {
        [only] => Some(only),
        several => several.iter().find(|face| face.name.as_str() == DEFAULT_ENDPOINT),
    };
    let is_usable = |face: &&EndpointFace| face.containers.is_none() || is_there(context, face);
    found.filter(is_usable).ok_or_else(no_default)
}

/// What is said where a request leaves the endpoint open and none is meant.
pub(crate) fn no_default() -> Error {
    let message = "the request names no endpoint, and there is neither a single one nor one called \
                   default";
    Error::Failed(Failure::new(ErrorKind::EndpointNotFound, message))
}

/// What the target model header says, if it is there.
///
/// # Errors
/// `InvalidRequest` where it is there twice.
pub(crate) fn header(headers: &HeaderMap) -> Result<Option<TargetModel>, Error> {
    let mut values = headers.get_all(TARGET_MODEL).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Error::request(format!("the header {TARGET_MODEL} is there more than once")));
    }
    Ok(first.map(|value| TargetModel::new(value.as_bytes())))
}

/// What is said where no header names a target and nothing else may.
pub(crate) fn unnamed() -> Error {
    Error::request("the request is missing the target model header X-Amzn-SageMaker-Target-Model")
}

/// `target-model` of the Custom-Attributes: where the client of an operation without a header for it may
/// name the target. They are `k=v` pairs between commas or semicolons.
pub(crate) fn custom_attribute(headers: &HeaderMap) -> Option<TargetModel> {
    let attributes = headers.get(CUSTOM_ATTRIBUTES)?.as_bytes();
    attributes.split(|byte| matches!(byte, b',' | b';')).find_map(|pair| {
        let target = pair.trim_ascii().strip_prefix(b"target-model=")?;
        Some(TargetModel::new(target.trim_ascii()))
    })
}

/// Checks a target and puts it under its endpoint.
///
/// # Errors
/// `InvalidRequest` with the rule that the name breaks.
pub(crate) fn model(endpoint: &EndpointFace, target: &TargetModel) -> Result<ModelId, Error> {
    let checked = target.check().map_err(|reason| {
        Error::request(format!("the target model is not a legal name: {reason}"))
    })?;
    Ok(ModelId { endpoint: endpoint.name.clone(), target: checked })
}

/// Whom a request of `/v1/…` asks: the adapter header, else its model, which is a target, a configured
/// component of the endpoint, or `endpoint:target` with a configured endpoint's name. What it names is
/// taken as the store has it; variants are for those who leave the target to the endpoint.
///
/// # Errors
/// `Field` for a missing or illegal `model`, `EndpointNotFound`, and those of [`addressed()`].
pub(crate) fn openai(
    context: &Context,
    headers: &HeaderMap,
    model_field: &str,
) -> Result<Addressed, Error> {
    let none = Sent::default();
    let is_in_headers = header(headers)?.is_some() || aim::header(headers)?.is_some();
    if is_in_headers || model_field.is_empty() {
        let unnamed = || Err(unnamed_field());
        let found = default_endpoint(context);
        let endpoint = match found {
            found if is_in_headers => found?,
            Ok(found) if answers(context, found) => found,
            _ => return Err(unnamed_field()),
        };
        return addressed(context, endpoint, headers, &none, unnamed);
    }
    let meant = match model_field {
        ANY_MODEL => default_endpoint(context).ok().filter(|found| answers(context, found)),
        _ => answering(context, model_field),
    };
    if let Some(endpoint) = meant
        && !endpoint.naming.is_multi_model()
    {
        return addressed(context, endpoint, headers, &none, || Err(unnamed_field()));
    }
    let (endpoint, name) =
        split(context, None, model_field).map_err(|error| unprefixed(context, error))?;
    addressed::without_containers(endpoint)?;
    if let Some(found) = addressed::usable_component(context, endpoint, name) {
        return Ok(found);
    }
    let model = ModelId { endpoint: endpoint.name.clone(), target: field(name)? };
    Ok(Addressed { aim: Aim::at(model), variant: ALL_TRAFFIC.into() })
}

/// What an answer calls the model that a request asks, where the body says nothing: as the request
/// called it. What a component, a variant or an endpoint stands for is the operator's to tell.
pub(crate) fn called(
    context: &Context,
    headers: &HeaderMap,
    component: Option<&str>,
    aim: &Aim,
) -> String {
    let own = || aim.model.target.as_str().to_owned();
    if aim.of_platform {
        return own();
    }
    let named = |found: Result<Option<TargetModel>, Error>| {
        let checked = found.ok().flatten().and_then(|name| name.check().ok());
        checked.map(|name| name.as_str().to_owned())
    };
    let by_header = named(aim::header(headers)).or_else(|| named(header(headers)));
    let component = component.or_else(|| Sent::read(headers).ok()?.component);
    let called = by_header.or_else(|| component.map(str::to_owned));
    called.unwrap_or_else(|| {
        let endpoint = context.endpoint(aim.model.endpoint.as_str());
        let stands_for = endpoint.is_some_and(|endpoint| endpoint.naming.stands_for(&aim.model));
        if stands_for { aim.model.endpoint.as_str().to_owned() } else { own() }
    })
}

/// Whether a header names what is asked, and the body's `model` something else.
///
/// # Errors
/// Those of the headers.
pub(crate) fn is_overruled(
    context: &Context,
    headers: &HeaderMap,
    aim: &Aim,
    model_field: &str,
) -> Result<bool, Error> {
    if header(headers)?.is_none() && aim::header(headers)?.is_none() {
        return Ok(false);
    }
    let named = split(context, None, model_field).map_or(model_field, |(_, name)| name);
    Ok(named != aim.model.target.as_str())
}

/// The same of SageMaker's OpenAI route, which names the endpoint and maybe a component in its path:
/// `model` names a component or a target where the endpoint leaves that to requests, and says nothing
/// elsewhere.
///
/// # Errors
/// `Field` for a missing or illegal `model`, and those of [`addressed()`].
pub(crate) fn openai_at(
    context: &Context,
    endpoint: &EndpointFace,
    headers: &HeaderMap,
    component: Option<&str>,
    model_field: &str,
) -> Result<Addressed, Error> {
    let sent = Sent::read(headers)?;
    if sent.session.is_some() {
        return Err(Error::request("this route has no stateful sessions"));
    }
    let sent = Sent { component: component.or(sent.component), ..sent };
    let (_, name) = split(context, Some(endpoint), model_field)?;
    let is_in_headers = header(headers)?.is_some() || aim::header(headers)?.is_some();
    if sent.component.is_none()
        && !is_in_headers
        && let Some(found) = addressed::usable_component(context, endpoint, name)
    {
        return Ok(found);
    }
    addressed(context, endpoint, headers, &sent, || {
        field(name).map(|target| TargetModel::new(target.as_str()))
    })
}

/// How to write a `model` where no endpoint is meant unless it is named; with those that the caller
/// may know of.
fn unprefixed(context: &Context, error: Error) -> Error {
    let mut names: Vec<&str> = known(context).map(|it| it.name.as_str()).collect();
    if names.is_empty() {
        return error;
    }
    names.sort_unstable();
    let more = match names.len().saturating_sub(ENDPOINTS_TOLD) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    names.truncate(ENDPOINTS_TOLD);
    let message = format!("{error}: write model as ENDPOINT:TARGET, of {}{more}", names.join(", "));
    Error::Failed(Failure::new(error.kind(), message))
}

/// The target that a field `model` names.
fn field(name: &str) -> Result<TargetName, Error> {
    if name.is_empty() {
        return Err(unnamed_field());
    }
    let checked = TargetModel::new(name).check();
    checked.map_err(|reason| Error::field("model", &format!("is not a legal name: {reason}")))
}

fn unnamed_field() -> Error {
    Error::field("model", "must name a model (or send X-Amzn-SageMaker-Target-Model)")
}

/// Takes `endpoint:` off a model's name, where it is one.
pub(crate) fn split<'a, 'b>(
    context: &'a Context,
    fixed: Option<&'a EndpointFace>,
    name: &'b str,
) -> Result<(&'a EndpointFace, &'b str), Error> {
    if let Some((before, after)) = name.split_once(':') {
        let known = match fixed {
            Some(face) => Some(face).filter(|face| face.name.as_str() == before),
            None => context.endpoint(before).filter(|found| is_known(context, found)),
        };
        if let Some(endpoint) = known {
            return Ok((endpoint, after));
        }
    }
    let endpoint = fixed.map_or_else(|| default_endpoint(context), Ok)?;
    Ok((endpoint, name))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_header_is_taken_as_raw_bytes() {
        let mut headers = HeaderMap::new();
        headers.insert(TARGET_MODEL, HeaderValue::from_bytes("t/é%20a.gguf".as_bytes()).unwrap());
        let target = header(&headers).unwrap().unwrap();
        assert_eq!(target.check().unwrap().as_str(), "t/é%20a.gguf");
        headers.append(TARGET_MODEL, HeaderValue::from_static("other"));
        assert_eq!(header(&headers).unwrap_err().kind(), ErrorKind::InvalidRequest);
    }

    #[test]
    fn a_target_is_found_among_custom_attributes() {
        for text in ["a=b,target-model=x/y", "target-model=x/y; c=d", " target-model = no"] {
            let mut headers = HeaderMap::new();
            headers.insert(CUSTOM_ATTRIBUTES, HeaderValue::from_static(text));
            let found = custom_attribute(&headers);
            let want = (!text.contains("no")).then(|| TargetModel::new("x/y"));
            assert_eq!(found, want, "{text}");
        }
    }
}
