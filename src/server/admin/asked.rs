//! What posts and queries may say: fields that are known, by their names.

use std::fmt;
use std::marker::PhantomData;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Fields of an object. As derived, a list of values would do as well, each taken by its place.
#[derive(Debug)]
pub(super) struct Fields<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Fields<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Object(PhantomData)).map(Self)
    }
}

struct Object<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(fields))
    }
}

/// No field at all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

/// A post that has nothing to say: without a body, or with an empty object.
#[derive(Debug)]
pub(super) struct Bare;

impl<S: Send + Sync> FromRequest<S> for Bare {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (head, body) = request.into_parts();
        let read = Bytes::from_request(Request::from_parts(head.clone(), body), state).await;
        let body = read.map_err(IntoResponse::into_response)?;
        if !body.is_empty() {
            let request = Request::from_parts(head, Body::from(body));
            let read = Json::<Fields<Nothing>>::from_request(request, state).await;
            read.map(drop).map_err(IntoResponse::into_response)?;
        }
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header::CONTENT_TYPE;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        endpoint: Option<String>,
        target: String,
    }

    #[test]
    fn fields_are_taken_by_their_names_alone_and_once() {
        let read = |text: &str| serde_json::from_str::<Fields<Order>>(text);
        let Fields(order) = read(r#"{"target":"a"}"#).unwrap();
        assert_eq!((order.endpoint, order.target.as_str()), (None, "a"));
        for (text, says) in [
            (r#"["e","a"]"#, "expected an object"),
            (r#""a""#, "expected an object"),
            (r#"{"target":"a","targt":"b"}"#, "unknown field `targt`"),
            (r#"{"target":"a","target":"b"}"#, "duplicate field `target`"),
        ] {
            let refused = read(text).unwrap_err().to_string();
            assert!(refused.contains(says), "{text}: {refused}");
        }
    }

    #[tokio::test]
    async fn a_post_that_has_nothing_to_say_says_nothing() {
        let read = async |kind: Option<&str>, body: &'static str| {
            let mut request = Request::builder().method("POST").uri("/");
            if let Some(kind) = kind {
                request = request.header(CONTENT_TYPE, kind);
            }
            let request = request.body(Body::from(body)).unwrap();
            Bare::from_request(request, &()).await.map_err(|refused| refused.status().as_u16())
        };
        let json = Some("application/json");
        for (kind, body) in [(None, ""), (json, ""), (json, "{}"), (json, " {} ")] {
            assert!(read(kind, body).await.is_ok(), "{kind:?} {body}");
        }
        for (kind, body, status) in [
            (json, r#"{"file":"x"}"#, 422),
            (json, "[]", 422),
            (json, r#"["x"]"#, 422),
            (json, "null", 422),
            (json, "{", 400),
            (None, "{}", 415),
            (Some("text/plain"), "x", 415),
        ] {
            assert_eq!(read(kind, body).await.unwrap_err(), status, "{kind:?} {body}");
        }
    }
}
