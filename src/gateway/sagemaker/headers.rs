//! The request headers of `InvokeEndpoint` and `InvokeEndpointWithResponseStream`, within the bounds
//! that SageMaker's API reference gives each.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::error::Error;

/// What a client may send beside, for a handler and as a last place for the target's name.
pub(crate) const CUSTOM_ATTRIBUTES: HeaderName =
    HeaderName::from_static("x-amzn-sagemaker-custom-attributes");
/// The accept header of operations that answer in a form of their own.
pub(crate) const INNER_ACCEPT: HeaderName = HeaderName::from_static("x-amzn-sagemaker-accept");
/// Names a production variant.
pub(crate) const TARGET_VARIANT: HeaderName =
    HeaderName::from_static("x-amzn-sagemaker-target-variant");
/// Names one of an endpoint's containers.
pub(crate) const TARGET_CONTAINER: HeaderName =
    HeaderName::from_static("x-amzn-sagemaker-target-container-hostname");
/// Names an inference component.
const COMPONENT: HeaderName = HeaderName::from_static("x-amzn-sagemaker-inference-component");
/// What the client calls the request.
pub(crate) const INFERENCE_ID: HeaderName =
    HeaderName::from_static("x-amzn-sagemaker-inference-id");
/// Asks SageMaker Clarify for explanations: nothing here explains.
const EXPLANATIONS: HeaderName = HeaderName::from_static("x-amzn-sagemaker-enable-explanations");
/// Names a stateful session, or asks for one.
const SESSION: HeaderName = HeaderName::from_static("x-amzn-sagemaker-session-id");
/// Which prompts begin alike: prefixes are found by their tokens here, so nothing follows from it.
const PREFIX: HeaderName = HeaderName::from_static("x-amzn-sagemaker-prefix-aware-id");

/// What all of these begin with.
const OURS: &str = "x-amzn-sagemaker-";
/// What [`SESSION`] says where a session shall be opened.
const NEW_SESSION: &str = "NEW_SESSION";
/// Bytes of a name of a variant, container or component.
const NAME_MAX: usize = 63;
/// Bytes of a media type and of the custom attributes.
const TEXT_MAX: usize = 1024;
/// Bytes of an id.
const ID_MAX: usize = 64;
/// Bytes of a session's id.
const SESSION_MAX: usize = 256;

/// What a request's headers say, checked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent<'a> {
    /// The production variant that shall answer.
    pub(crate) variant: Option<&'a str>,
    /// The inference component that shall.
    pub(crate) component: Option<&'a str>,
    /// The container that shall.
    pub(crate) container: Option<&'a str>,
    /// What the client calls the request.
    pub(crate) inference_id: Option<&'a str>,
    /// The session that it belongs to.
    pub(crate) session: Option<InSession<'a>>,
}

/// What a request has to do with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InSession<'a> {
    /// It wants one.
    New,
    /// It is in this one.
    Of(&'a str),
}

impl<'a> Sent<'a> {
    /// Of the operations at an endpoint with models.
    ///
    /// # Errors
    /// `InvalidRequest` for a header that is out of its bounds, there twice, or asks for what there
    /// is not; it says which.
    pub(crate) fn read(headers: &'a HeaderMap) -> Result<Self, Error> {
        let sent = Self::with_container(headers)?;
        if let Some(host) = sent.container {
            return Err(Error::request(format!(
                "the header {TARGET_CONTAINER} names {host}, and the endpoint has no containers to \
                 be invoked directly"
            )));
        }
        Ok(sent)
    }

    /// Of the operations at an endpoint with containers.
    ///
    /// # Errors
    /// As [`Sent::read`].
    pub(crate) fn with_container(headers: &'a HeaderMap) -> Result<Self, Error> {
        for name in [header::CONTENT_TYPE, header::ACCEPT] {
            bounded(headers, &name, 0, TEXT_MAX)?;
        }
        // Mostly there is none of all those that follow.
        if !headers.keys().any(|name| name.as_str().starts_with(OURS)) {
            return Ok(Self::default());
        }
        for name in [INNER_ACCEPT, CUSTOM_ATTRIBUTES] {
            bounded(headers, &name, 0, TEXT_MAX)?;
        }
        bounded(headers, &PREFIX, 1, ID_MAX)?;
        if headers.contains_key(&EXPLANATIONS) {
            bounded(headers, &EXPLANATIONS, 1, ID_MAX)?;
            return Err(Error::request(format!(
                "the header {EXPLANATIONS} is not supported: the endpoint has no explainer"
            )));
        }
        let container = named(headers, &TARGET_CONTAINER)?;
        let variant = named(headers, &TARGET_VARIANT)?;
        let component = named(headers, &COMPONENT)?;
        Ok(Self { variant, component, container, ..Self::of_platform(headers)? })
    }

    /// Of `/invocations` and the container contract: whoever stands before them has chosen variant and
    /// component.
    ///
    /// # Errors
    /// As [`Sent::read`].
    pub(crate) fn of_platform(headers: &'a HeaderMap) -> Result<Self, Error> {
        let inference_id = bounded(headers, &INFERENCE_ID, 1, ID_MAX)?;
        let session = match single(headers, &SESSION)? {
            None => None,
            Some(value) if value == NEW_SESSION => Some(InSession::New),
            Some(value) => match value.to_str().ok().filter(|it| is_name(it, SESSION_MAX)) {
                Some(id) => Some(InSession::Of(id)),
                None => {
                    let message = format!(
                        "the header {SESSION} must be {NEW_SESSION} or an id of at most \
                         {SESSION_MAX} letters, digits and inner hyphens"
                    );
                    return Err(Error::request(message));
                }
            },
        };
        Ok(Self { inference_id, session, ..Self::default() })
    }
}

/// A header's value, where it is there; twice is none of them.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Error> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(Error::request(format!("the header {name} is there more than once")));
    }
    Ok(first)
}

/// The value of a header that takes printable ASCII.
fn bounded<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    least: usize,
    most: usize,
) -> Result<Option<&'a str>, Error> {
    // Media types are lists, which may come as several headers.
    for value in headers.get_all(name) {
        let text = value.to_str().ok().filter(|it| (least..=most).contains(&it.len()));
        if text.is_none() {
            let message =
                format!("the header {name} must have {least} to {most} printable ASCII characters");
            return Err(Error::request(message));
        }
    }
    if name == header::ACCEPT {
        return Ok(None);
    }
    Ok(single(headers, name)?.and_then(|value| value.to_str().ok()))
}

/// The value of a header that takes a name.
fn named<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Error> {
    let Some(value) = single(headers, name)? else { return Ok(None) };
    let text = value.to_str().ok().filter(|it| is_name(it, NAME_MAX));
    let text = text.ok_or_else(|| {
        Error::request(format!(
            "the header {name} must have at most {NAME_MAX} letters, digits and inner hyphens"
        ))
    })?;
    Ok(Some(text))
}

/// SageMaker's `[a-zA-Z0-9](-*[a-zA-Z0-9])*`.
pub(crate) fn is_name(text: &str, most: usize) -> bool {
    let inner = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    !text.is_empty()
        && text.len() <= most
        && inner
        && !text.starts_with('-')
        && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use roundhouse_types::ErrorKind;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(HeaderName::from_static(name), value);
        }
        headers
    }

    #[test]
    fn every_header_has_the_bounds_that_sagemaker_gives_it() {
        let long = |count: usize| "a".repeat(count);
        let cases = [
            ("content-type", long(1024), long(1025)),
            ("accept", long(1024), long(1025)),
            ("x-amzn-sagemaker-accept", long(1024), "é".to_owned()),
            ("x-amzn-sagemaker-custom-attributes", long(1024), long(1025)),
            ("x-amzn-sagemaker-custom-attributes", String::new(), "é".to_owned()),
            ("x-amzn-sagemaker-target-variant", long(63), long(64)),
            ("x-amzn-sagemaker-target-variant", "a--b".to_owned(), "-a".to_owned()),
            ("x-amzn-sagemaker-inference-component", long(63), "a_b".to_owned()),
            ("x-amzn-sagemaker-inference-component", "ic-1".to_owned(), String::new()),
            ("x-amzn-sagemaker-inference-id", long(64), long(65)),
            ("x-amzn-sagemaker-inference-id", "a b".to_owned(), String::new()),
            ("x-amzn-sagemaker-prefix-aware-id", "p".to_owned(), long(65)),
            ("x-amzn-sagemaker-session-id", long(256), long(257)),
            ("x-amzn-sagemaker-session-id", "NEW_SESSION".to_owned(), "A_SESSION".to_owned()),
        ];
        for (name, good, bad) in cases {
            let found = headers(&[(name, &good)]);
            assert!(Sent::read(&found).is_ok(), "{name}: {good}");
            let found = headers(&[(name, &bad)]);
            let error = Sent::read(&found).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest);
            assert!(error.to_string().starts_with(&format!("the header {name} must")), "{error}");
        }
    }

    #[test]
    fn what_there_is_not_is_refused_by_name_and_a_header_that_is_there_twice() {
        let cases = [
            ("x-amzn-sagemaker-target-container-hostname", "has no containers"),
            ("x-amzn-sagemaker-enable-explanations", "has no explainer"),
        ];
        for (name, why) in cases {
            let found = headers(&[(name, "c1")]);
            let error = Sent::read(&found).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(why), "{error}");
        }
        let one = ("x-amzn-sagemaker-target-variant", "blue");
        let twice = headers(&[one, one]);
        assert!(Sent::read(&twice).unwrap_err().to_string().ends_with("more than once"));
    }

    #[test]
    fn the_container_contract_leaves_variants_to_the_platform() {
        let found = headers(&[
            ("x-amzn-sagemaker-target-variant", "-"),
            ("x-amzn-sagemaker-session-id", "s-1"),
        ]);
        let sent = Sent::of_platform(&found).unwrap();
        assert_eq!((sent.variant, sent.session), (None, Some(InSession::Of("s-1"))));
    }
}
