//! Which endpoint and which target model a request means.

use http::{HeaderMap, HeaderName};
use roundhouse_types::{ErrorKind, Failure, ModelId, TargetModel};

use crate::aim::{self, Aim};
use crate::call::Context;
use crate::error::Error;
use crate::state::EndpointFace;

/// The header that names the target, taken as raw bytes: never percent-decoded, and not
/// necessarily ASCII.
pub(crate) const TARGET_MODEL: HeaderName =
    HeaderName::from_static("x-amzn-sagemaker-target-model");
/// Where a raw stream client may name the target: `target-model=…`.
const CUSTOM_ATTRIBUTES: HeaderName = HeaderName::from_static("x-amzn-sagemaker-custom-attributes");
/// Refused, since an answer from elsewhere than asked would be wrong; each with the one
/// value that changes nothing.
const ELSEWHERE: [(&str, Option<&str>); 4] = [
    ("x-amzn-sagemaker-target-variant", Some("AllTraffic")),
    ("x-amzn-sagemaker-target-container-hostname", None),
    ("x-amzn-sagemaker-inference-component", None),
    ("x-amzn-sagemaker-session-id", None),
];
/// The endpoint that is meant where a request names none and there are several.
const DEFAULT_ENDPOINT: &str = "default";

/// A configured endpoint that has something for the caller.
///
/// # Errors
/// `EndpointNotFound`.
pub(crate) fn endpoint<'a>(context: &'a Context, name: &str) -> Result<&'a EndpointFace, Error> {
    let found = context.endpoints().find(|endpoint| endpoint.name.as_str() == name);
    found.ok_or_else(|| {
        let message = format!("endpoint {name} not found");
        Error::Failed(Failure::new(ErrorKind::EndpointNotFound, message))
    })
}

/// The endpoint that is meant where none is named: the only one, or `default`.
///
/// # Errors
/// `EndpointNotFound`.
pub(crate) fn default_endpoint(context: &Context) -> Result<&EndpointFace, Error> {
    let endpoints = context.offered.endpoints.as_slice();
    if let [only] = endpoints {
        return Ok(only);
    }
    let found = endpoints.iter().find(|face| face.name.as_str() == DEFAULT_ENDPOINT);
    found.ok_or_else(|| {
        let message = "the request names no endpoint, and there is neither a single one nor \
                       one called default";
        Error::Failed(Failure::new(ErrorKind::EndpointNotFound, message))
    })
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

/// The same, where it must be there.
///
/// # Errors
/// `InvalidRequest` where it is missing or there twice.
pub(crate) fn required_header(headers: &HeaderMap) -> Result<TargetModel, Error> {
    header(headers)?.ok_or_else(|| {
        Error::request(
            "the request is missing the target model header X-Amzn-SageMaker-Target-Model",
        )
    })
}

/// `target-model` of the Custom-Attributes, which are `k=v` pairs between commas or semicolons.
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

/// Refuses requests that ask for a variant, container, component or session: there are none.
///
/// # Errors
/// `InvalidRequest` with the header's name.
pub(crate) fn refuse_elsewhere(headers: &HeaderMap) -> Result<(), Error> {
    for (name, allowed) in ELSEWHERE {
        let Some(value) = headers.get(name) else {
            continue;
        };
        if allowed.is_none_or(|allowed| value.as_bytes() != allowed.as_bytes()) {
            return Err(Error::request(format!("the header {name} is not supported here")));
        }
    }
    Ok(())
}

/// Whom an OpenAI request asks: the adapter header, else its model.
///
/// # Errors
/// As [`openai_model`].
pub(crate) fn openai_aim(
    context: &Context,
    fixed: Option<&EndpointFace>,
    headers: &HeaderMap,
    model_field: &str,
) -> Result<Aim, Error> {
    if aim::header(headers)?.is_none() {
        return openai_model(context, fixed, headers, model_field).map(Aim::at);
    }
    let endpoint = fixed.map_or_else(|| default_endpoint(context), Ok)?;
    aim::named(endpoint, headers)
}

/// The model that an OpenAI request means: the target model header where it is sent, else
/// `model`, which is a target or `endpoint:target` with a configured endpoint's name.
///
/// # Errors
/// `Field` for a missing or illegal `model`, `EndpointNotFound`, `InvalidRequest`.
fn openai_model(
    context: &Context,
    fixed: Option<&EndpointFace>,
    headers: &HeaderMap,
    model_field: &str,
) -> Result<ModelId, Error> {
    if let Some(target) = header(headers)? {
        let endpoint = fixed.map_or_else(|| default_endpoint(context), Ok)?;
        return model(endpoint, &target);
    }
    if model_field.is_empty() {
        return Err(Error::field(
            "model",
            "must name a model (or send X-Amzn-SageMaker-Target-Model)",
        ));
    }
    let (endpoint, target) = split(context, fixed, model_field)?;
    let checked = TargetModel::new(target)
        .check()
        .map_err(|reason| Error::field("model", &format!("is not a legal name: {reason}")))?;
    Ok(ModelId { endpoint: endpoint.name.clone(), target: checked })
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
            None => context.endpoints().find(|endpoint| endpoint.name.as_str() == before),
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
