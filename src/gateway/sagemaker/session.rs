//! What a request has to do with a stateful session, and the answers that open and close one.
//!
//! The client opens a session with `SessionId="NEW_SESSION"` and the body
//! `{"requestType": "NEW_SESSION"}`, sends the id that it got with each further request, and closes it
//! with the body `{"requestType": "CLOSE"}`.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use roundhouse_tenancy::rfc3339_seconds;
use serde_json::{Value, json};
use uuid::Uuid;

use super::headers::{InSession, Sent};
use crate::addressed::Addressed;
use crate::call::Context;
use crate::error::Error;
use crate::meter;
use crate::permitted::permit;
use crate::sessions::{Bound, unknown};

/// Bytes of a body that opens or closes a session, at most: it has one field.
const BODY_MAX: usize = 4096;
/// The field that says what a request is for, where it is for no inference.
const REQUEST_TYPE: &str = "requestType";
/// Tells the client its new session.
const NEW_SESSION: HeaderName = HeaderName::from_static("x-amzn-sagemaker-new-session-id");
/// Tells it that it is closed.
const CLOSED_SESSION: HeaderName = HeaderName::from_static("x-amzn-sagemaker-closed-session-id");
/// What answers tell of sessions is ours to say.
pub(crate) const OURS: [HeaderName; 2] = [NEW_SESSION, CLOSED_SESSION];

/// What a request wants of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Nothing.
    Nothing,
    /// A new one, under this id.
    Open { id: String, by_header: bool },
    /// To be answered within one.
    Use { id: String },
    /// Its end.
    Close { id: String },
}

impl Wish {
    /// What headers and body say together.
    ///
    /// # Errors
    /// `InvalidRequest` where they contradict each other, and for any wish where sessions are off.
    pub(crate) fn read(context: &Context, sent: &Sent<'_>, body: &Bytes) -> Result<Self, Error> {
        let request_type = request_type(body);
        if sent.session.is_none() && request_type.is_none() {
            return Ok(Self::Nothing);
        }
        if !context.gateway.sessions.are_on() {
            return Err(Error::request("Invalid payload. stateful sessions not enabled"));
        }
        let asked = request_type.map(asked).transpose()?;
        match (sent.session, asked) {
            (None, None) => Ok(Self::Nothing),
            (Some(InSession::New), Some(Asked::New)) => {
                Ok(Self::Open { id: Uuid::new_v4().to_string(), by_header: true })
            }
            (None, Some(Asked::New)) => {
                Ok(Self::Open { id: Uuid::new_v4().to_string(), by_header: false })
            }
            (Some(InSession::Of(id)), None) => Ok(Self::Use { id: id.to_owned() }),
            (Some(InSession::Of(id)), Some(Asked::Close)) => Ok(Self::Close { id: id.to_owned() }),
            (Some(InSession::New), _) => Err(Error::request(
                "a session is opened by the body {\"requestType\": \"NEW_SESSION\"}",
            )),
            (Some(InSession::Of(_)), Some(Asked::New)) => {
                Err(Error::request("a session is opened with the session id NEW_SESSION"))
            }
            (None, Some(Asked::Close)) => {
                Err(Error::request("the request closes a session and names none"))
            }
        }
    }

    /// Whether a model answers.
    pub(crate) fn asks_a_model(&self) -> bool {
        matches!(self, Self::Nothing | Self::Use { .. })
    }

    /// What requests of the session are drawn by, so that they go the same way.
    pub(crate) fn key(&self) -> Option<HeaderValue> {
        match self {
            Self::Nothing => None,
            Self::Open { id, .. } | Self::Use { id } | Self::Close { id } => {
                HeaderValue::from_str(id).ok()
            }
        }
    }

    /// The same of an endpoint whose targets may be handlers: what their bodies say is theirs, unless
    /// a header speaks of a session.
    pub(crate) fn of_handlers(self) -> Self {
        match self {
            Self::Open { by_header: false, .. } => Self::Nothing,
            wish => wish,
        }
    }

    /// What the session that is named is bound to.
    ///
    /// # Errors
    /// `InvalidRequest` where the caller has none of this id.
    pub(crate) fn bound(&self, context: &Context) -> Result<Option<Bound>, Error> {
        match self {
            Self::Nothing | Self::Open { .. } => Ok(None),
            Self::Use { id } | Self::Close { id } => {
                let tenant = context.caller.tenant.as_ref();
                Ok(Some(context.gateway.sessions.find(id, tenant)?))
            }
        }
    }

    /// Opens or closes the session where that is what is wanted, and answers; `None` where a model is to
    /// answer.
    ///
    /// # Errors
    /// `InvalidRequest` where the session is another target's, `ModelNotFound` where the caller may not
    /// ask the target, `Throttled` and `Overloaded` where too many are open.
    pub(crate) async fn answered(
        &self,
        context: &Context,
        bound: Option<&Bound>,
        found: &Addressed,
    ) -> Result<Option<Response>, Error> {
        if bound.is_some_and(|bound| bound.model != found.aim.model) {
            return Err(unknown().into());
        }
        let (sessions, tenant) = (&context.gateway.sessions, context.caller.tenant.as_ref());
        let (result, name, value) = match self {
            Self::Nothing | Self::Use { .. } => return Ok(None),
            Self::Open { id, .. } => {
                self.charge(context, found)?;
                permit(context, &found.aim)?;
                let model = found.aim.model.clone();
                let until =
                    sessions.open(id, tenant, Bound { model, variant: found.variant.clone() })?;
                let value = format!("{id}; Expires={}", rfc3339_seconds(until));
                (format!("Session {id} created"), NEW_SESSION, value)
            }
            Self::Close { id } => {
                self.charge(context, found)?;
                sessions.close(id, tenant)?;
                (format!("Session {id} closed"), CLOSED_SESSION, id.clone())
            }
        };
        let mut response = axum::Json(json!({"result": result})).into_response();
        let value = HeaderValue::from_str(&value);
        let value = value.map_err(|_| Error::internal("a session's id is no header's value"))?;
        response.headers_mut().insert(name, value);
        Ok(Some(meter::settled(&context.notes, response).await))
    }

    /// One request, and no tokens.
    fn charge(&self, context: &Context, found: &Addressed) -> Result<(), Error> {
        context.notes.asked(&found.aim.model);
        meter::admit_look(context, Some(&found.aim.model))
    }
}

/// What [`REQUEST_TYPE`] may say.
enum Asked {
    New,
    Close,
}

/// A small JSON object with that field.
fn request_type(body: &Bytes) -> Option<Value> {
    let field = REQUEST_TYPE.as_bytes();
    if body.len() > BODY_MAX || !body.windows(field.len()).any(|part| part == field) {
        return None;
    }
    let object: Value = serde_json::from_slice(body).ok()?;
    object.get(REQUEST_TYPE).is_some().then_some(object)
}

fn asked(object: Value) -> Result<Asked, Error> {
    if object.as_object().is_some_and(|object| object.len() > 1) {
        return Err(Error::request("requestType must be the only field of the body"));
    }
    match object[REQUEST_TYPE].as_str() {
        Some("NEW_SESSION") => Ok(Asked::New),
        Some("CLOSE") => Ok(Asked::Close),
        _ => Err(Error::request("requestType must be NEW_SESSION or CLOSE")),
    }
}
