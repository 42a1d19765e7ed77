//! What a client is told when something went wrong: one table of statuses, types and bodies.

mod denied;
mod statuses;

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use roundhouse_tenancy::{Denied, Refused};
use roundhouse_types::{Detail, EndpointName, ErrorKind, Failure, RetryHint, TargetName};
use serde_json::{Value, json};
use thiserror::Error;

use crate::meter::rate_headers;
use denied::Gate;
pub(crate) use statuses::statuses;

/// SageMaker's limit for `Message`, in characters.
const MESSAGE_MAX: usize = 2048;
/// Milliseconds; the one retry header that boto3 reads.
const AMZ_RETRY_AFTER: HeaderName = HeaderName::from_static("x-amz-retry-after");
/// Where boto3 looks for an error's type.
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// Which dialect an answer is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    /// `InvokeEndpoint` and `InvokeEndpointWithResponseStream`: a fault of the body or the
    /// model is a `ModelError`, as if a container had answered it.
    Endpoint,
    /// `POST /invocations`: the same, but a fault of the body is a plain 400.
    Invocations,
    /// `/models…` and `/adapters…` as multi-model-server says it.
    Container,
    /// `/v1/…`.
    OpenAi,
    /// `/generate…`.
    Tgi,
}

/// Why a request got no answer.
#[derive(Debug, Clone, Error)]
pub(crate) enum Error {
    /// What the layers below report, and most of what is found here.
    #[error("{0}")]
    Failed(#[from] Failure),
    /// Whoever asks is not let in.
    #[error("{0}")]
    Denied(#[from] Denied),
    /// A field of the body is wrong.
    #[error("{message}")]
    Field {
        /// Its path in the body.
        name: String,
        /// Which field, what was expected.
        message: String,
        /// `InvalidInput`, but where it is who is asked that is wrong.
        kind: ErrorKind,
    },
    /// No route has this path.
    #[error("no such path")]
    UnknownPath,
    /// The route exists for another method.
    #[error("this path does not take this method")]
    WrongMethod,
    /// What operators look for is asked for here.
    #[error(
        "metrics, health and the live page are on the admin port (8081 unless listen.admin says otherwise)"
    )]
    OnAdmin {
        /// Whether the path is there for another method.
        path_exists: bool,
    },
    /// The body did not arrive in time.
    #[error("the request body did not arrive within {} s", .0.as_secs_f32())]
    SlowBody(Duration),
    /// The tenant has reached one of its limits.
    #[error("{0}")]
    Refused(#[from] Box<Refused>),
    /// The container contract's 409, with what is there already.
    #[error("{0}")]
    AlreadyLoaded(String),
    /// A target model is named at an endpoint that has one of its own.
    #[error("Endpoint {0} is not a multi-model endpoint and does not support target model header.")]
    NotMultiModel(EndpointName),
    /// A container behind the endpoint failed.
    #[error("{failure}")]
    OfContainer {
        /// Which.
        container: TargetName,
        /// With what.
        failure: Failure,
    },
    /// The container contract's 507, with what there is no memory for.
    #[error("there is no memory for {0} now")]
    NoMemory(String),
}

/// What the table has rows for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Kind(ErrorKind),
    Denied(Gate),
    UnknownPath,
    WrongMethod,
    SlowBody,
    AlreadyLoaded,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    status: u16,
    /// `x-amzn-ErrorType`, the container contract's or OpenAI's `type`.
    name: &'static str,
    /// `OriginalStatusCode` of a `ModelError`.
    original: Option<u16>,
    /// OpenAI's `code`.
    code: Option<&'static str>,
}

impl Error {
    /// The envelope is wrong.
    pub(crate) fn request(message: impl Into<String>) -> Self {
        Self::Failed(Failure::new(ErrorKind::InvalidRequest, message))
    }

    /// The body is wrong.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::Failed(Failure::new(ErrorKind::InvalidInput, message))
    }

    /// One field of the body is wrong; the message begins with its name.
    pub(crate) fn field(name: &str, expected: &str) -> Self {
        let message = format!("{name} {expected}");
        Self::Field { name: name.into(), message, kind: ErrorKind::InvalidInput }
    }

    /// A field of the body, or of the query, has a name that no target can have: told as where a
    /// header has it.
    pub(crate) fn name(field: &str, reason: &dyn std::fmt::Display) -> Self {
        let message = format!("{field} is not a legal name: {reason}");
        Self::Field { name: field.into(), message, kind: ErrorKind::InvalidRequest }
    }

    /// A fault of ours.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::Failed(Failure::new(ErrorKind::Internal, message))
    }

    /// What the client is told.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Failed(failure) | Self::OfContainer { failure, .. } => failure.kind(),
            Self::Field { kind, .. } => *kind,
            Self::Denied(_)
            | Self::UnknownPath
            | Self::WrongMethod
            | Self::OnAdmin { .. }
            | Self::SlowBody(_)
            | Self::AlreadyLoaded(_)
            | Self::NotMultiModel(_) => ErrorKind::InvalidRequest,
            Self::NoMemory(_) => ErrorKind::TooLarge,
            Self::Refused(_) => ErrorKind::Throttled,
        }
    }

    /// Whether the same request may succeed later.
    pub(crate) fn retry(&self) -> RetryHint {
        match self {
            Self::Failed(failure) | Self::OfContainer { failure, .. } => failure.retry(),
            Self::Refused(refused) => RetryHint::After(refused.after),
            Self::SlowBody(_) | Self::NoMemory(_) | Self::Denied(Denied::Unavailable) => {
                RetryHint::Later
            }
            Self::Denied(_)
            | Self::Field { .. }
            | Self::UnknownPath
            | Self::WrongMethod
            | Self::OnAdmin { .. }
            | Self::AlreadyLoaded(_)
            | Self::NotMultiModel(_) => RetryHint::Never,
        }
    }

    /// The table's row; where the model itself answered with a status, that is the one told.
    fn row(&self, face: Face) -> Row {
        let row = row(face, self.case());
        let (Self::Failed(failure) | Self::OfContainer { failure, .. }) = self else { return row };
        match (failure.status(), face) {
            (None, _) => row,
            (Some(status), Face::Endpoint) => model_error(status),
            // As a container would: what is the client's fault is so here too.
            (Some(status @ 400..500), Face::Invocations) => amazon(status, "ModelError"),
            (Some(status), Face::Invocations) => model_error(status),
            // The platform understands these as "not loaded", "loaded before" and "no memory".
            (Some(404 | 409 | 507), Face::Container) => Row { status: 500, ..row },
            (Some(status), Face::Container) => Row { status, ..row },
            (Some(_), Face::OpenAi | Face::Tgi) => row,
        }
    }

    fn case(&self) -> Case {
        match self {
            Self::Denied(denied) => Case::Denied(denied.into()),
            Self::UnknownPath | Self::OnAdmin { path_exists: false } => Case::UnknownPath,
            Self::WrongMethod | Self::OnAdmin { path_exists: true } => Case::WrongMethod,
            Self::SlowBody(_) => Case::SlowBody,
            Self::AlreadyLoaded(_) => Case::AlreadyLoaded,
            Self::Failed(_)
            | Self::Field { .. }
            | Self::NotMultiModel(_)
            | Self::NoMemory(_)
            | Self::OfContainer { .. }
            | Self::Refused(_) => Case::Kind(self.kind()),
        }
    }

    /// What SageMaker calls the container that failed.
    fn container(&self) -> &str {
        match self {
            Self::OfContainer { container, .. } => container.as_str(),
            _ => "primary",
        }
    }

    /// The error as a JSON object: a whole body, or the last event of a stream.
    pub(crate) fn object(&self, face: Face) -> Value {
        let row = self.row(face);
        let message = match self {
            Self::Denied(denied) => denied::words(denied, face),
            other => other.to_string(),
        };
        match face {
            Face::Endpoint | Face::Invocations => {
                let mut object = amazon_object(row, self.container(), &message);
                if matches!(self, Self::NotMultiModel(_)) {
                    object["ErrorCode"] = "TARGET_MODEL_HEADER_NOT_SUPPORTED".into();
                }
                object
            }
            Face::Container => {
                json!({"code": row.status, "type": row.name, "message": cut(&message)})
            }
            Face::Tgi => json!({"error": message, "error_type": row.name}),
            Face::OpenAi => json!({"error": {
                "message": cut(&message),
                "type": row.name,
                "param": self.param(),
                "code": self.code(row),
            }}),
        }
    }

    /// OpenAI's `param`.
    fn param(&self) -> Option<&str> {
        match self {
            Self::Field { name, .. } => Some(name),
            other => match other.detail()? {
                Detail::Field { name } => Some(name),
                Detail::ContextExceeded { field } => Some(field),
                Detail::OtherBase { .. } => None,
            },
        }
    }

    /// OpenAI's `code`.
    fn code(&self, row: Row) -> Option<&'static str> {
        match self.detail() {
            Some(Detail::ContextExceeded { .. }) => Some("context_length_exceeded"),
            Some(Detail::Field { .. } | Detail::OtherBase { .. }) | None => row.code,
        }
    }

    fn detail(&self) -> Option<&Detail> {
        let Self::Failed(failure) = self else { return None };
        failure.detail()
    }

    /// The whole response.
    pub(crate) fn respond(&self, face: Face) -> Response {
        let row = self.row(face);
        if self.kind() == ErrorKind::Internal {
            tracing::error!(error = %self, "a request failed by a fault of ours");
        } else {
            tracing::debug!(error = %self, status = row.status, "a request failed");
        }
        let mut response = axum::Json(self.object(face)).into_response();
        *response.status_mut() =
            StatusCode::from_u16(row.status).expect("the table has valid statuses");
        let headers = response.headers_mut();
        if matches!(face, Face::Endpoint | Face::Invocations) {
            headers.insert(ERROR_TYPE, HeaderValue::from_static(row.name));
        }
        if row.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Self::Refused(refused) = self {
            rate_headers(headers, refused.levels);
        }
        if let RetryHint::After(wait) = self.retry() {
            // Rounded up: a client that comes back early finds the same answer.
            let seconds = wait.as_millis().div_ceil(1000).max(1).min(u128::from(u32::MAX));
            let milliseconds = wait.as_millis().min(u128::from(u32::MAX));
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds as u64));
            headers.insert(AMZ_RETRY_AFTER, HeaderValue::from(milliseconds as u64));
        }
        response
    }
}

/// The body that boto3 reads; its keys are case-sensitive.
fn amazon_object(row: Row, container: &str, message: &str) -> Value {
    let Some(original) = row.original else {
        return json!({"Message": cut(message)});
    };
    let side = if (400..500).contains(&original) { "client" } else { "server" };
    let whole =
        format!("Received {side} error ({original}) from {container} with message \"{message}\"");
    json!({
        "Message": cut(&whole),
        "OriginalStatusCode": original,
        "OriginalMessage": cut(message),
        "LogStreamArn": "",
    })
}

/// The first [`MESSAGE_MAX`] characters.
fn cut(message: &str) -> &str {
    match message.char_indices().nth(MESSAGE_MAX) {
        Some((end, _)) => &message[..end],
        None => message,
    }
}

fn row(face: Face, case: Case) -> Row {
    match (face, case) {
        (Face::Invocations, Case::Kind(ErrorKind::InvalidInput)) => amazon(400, "ValidationError"),
        (Face::Invocations, Case::Kind(ErrorKind::UnsupportedMediaType)) => {
            amazon(415, "ValidationError")
        }
        (Face::Endpoint | Face::Invocations, case) => amazon_row(case),
        (Face::Container, case) => container_row(case),
        (Face::OpenAi, case) => openai_row(case),
        (Face::Tgi, case) => tgi_row(case),
    }
}

fn amazon(status: u16, name: &'static str) -> Row {
    Row { status, name, original: None, code: None }
}

fn model_error(original: u16) -> Row {
    Row { original: Some(original), ..amazon(424, "ModelError") }
}

fn openai(status: u16, name: &'static str, code: &'static str) -> Row {
    Row { code: Some(code), ..amazon(status, name) }
}

fn amazon_row(case: Case) -> Row {
    match case {
        Case::Kind(kind) => match kind {
            ErrorKind::InvalidRequest
            | ErrorKind::EndpointNotFound
            | ErrorKind::ModelNotFound
            | ErrorKind::StoreDenied => amazon(400, "ValidationError"),
            ErrorKind::InvalidInput | ErrorKind::ModelInvalid => model_error(400),
            ErrorKind::PayloadTooLarge => amazon(413, "ValidationError"),
            ErrorKind::UnsupportedMediaType => model_error(415),
            ErrorKind::TooLarge => model_error(507),
            ErrorKind::NotReady => amazon(429, "ModelNotReadyException"),
            ErrorKind::Overloaded => amazon(503, "ServiceUnavailable"),
            ErrorKind::Throttled => amazon(429, "ThrottlingException"),
            ErrorKind::StoreUnavailable => amazon(530, "InternalDependencyException"),
            ErrorKind::ModelFailed => model_error(500),
            ErrorKind::TimedOut => model_error(0),
            ErrorKind::Internal => amazon(500, "InternalFailure"),
        },
        Case::Denied(gate) => denied::amazon_row(gate),
        Case::UnknownPath => amazon(404, "UnknownOperationException"),
        Case::WrongMethod => amazon(405, "UnknownOperationException"),
        Case::SlowBody => amazon(408, "RequestTimeoutException"),
        Case::AlreadyLoaded => amazon(409, "ConflictException"),
    }
}

fn container_row(case: Case) -> Row {
    match case {
        Case::Kind(kind) => match kind {
            ErrorKind::InvalidRequest | ErrorKind::InvalidInput | ErrorKind::StoreDenied => {
                amazon(400, "BadRequestException")
            }
            ErrorKind::ModelInvalid => amazon(400, "InvalidModelException"),
            ErrorKind::PayloadTooLarge => amazon(413, "RequestEntityTooLargeException"),
            ErrorKind::UnsupportedMediaType => amazon(415, "UnsupportedMediaTypeException"),
            ErrorKind::EndpointNotFound | ErrorKind::ModelNotFound => {
                amazon(404, "ModelNotFoundException")
            }
            ErrorKind::TooLarge => amazon(507, "InsufficientMemoryException"),
            ErrorKind::NotReady | ErrorKind::Overloaded | ErrorKind::StoreUnavailable => {
                amazon(503, "ServiceUnavailableException")
            }
            ErrorKind::Throttled => amazon(429, "ThrottlingException"),
            ErrorKind::TimedOut => amazon(504, "TimeoutException"),
            ErrorKind::ModelFailed => amazon(500, "PredictionException"),
            ErrorKind::Internal => amazon(500, "InternalServerException"),
        },
        Case::Denied(gate) => denied::container_row(gate),
        Case::UnknownPath => amazon(404, "ResourceNotFoundException"),
        Case::WrongMethod => amazon(405, "MethodNotAllowedException"),
        Case::SlowBody => amazon(408, "RequestTimeoutException"),
        Case::AlreadyLoaded => amazon(409, "ConflictStatusException"),
    }
}

/// The OpenAI clients retry 408, 409, 429 and 5xx, so what will not go away stays below.
/// TGI's own types where it has one: its clients raise their errors by them.
fn tgi_row(case: Case) -> Row {
    match case {
        Case::Kind(kind) => match kind {
            ErrorKind::InvalidRequest | ErrorKind::InvalidInput => amazon(422, "validation"),
            ErrorKind::PayloadTooLarge => amazon(413, "validation"),
            ErrorKind::UnsupportedMediaType => amazon(415, "validation"),
            ErrorKind::EndpointNotFound | ErrorKind::ModelNotFound => amazon(404, "not_found"),
            ErrorKind::StoreDenied => amazon(403, "store_denied"),
            ErrorKind::ModelInvalid => amazon(424, "model_invalid"),
            ErrorKind::TooLarge => amazon(424, "model_too_large"),
            ErrorKind::NotReady => amazon(503, "model_not_ready"),
            ErrorKind::Overloaded | ErrorKind::Throttled => amazon(429, "overloaded"),
            ErrorKind::StoreUnavailable => amazon(503, "store_unavailable"),
            ErrorKind::ModelFailed => amazon(424, "generation"),
            ErrorKind::TimedOut => amazon(504, "timeout"),
            ErrorKind::Internal => amazon(500, "internal"),
        },
        Case::Denied(gate) => denied::tgi_row(gate),
        Case::UnknownPath => amazon(404, "not_found"),
        Case::WrongMethod => amazon(405, "validation"),
        Case::SlowBody => amazon(408, "validation"),
        Case::AlreadyLoaded => amazon(409, "validation"),
    }
}

fn openai_row(case: Case) -> Row {
    let invalid = amazon(400, "invalid_request_error");
    match case {
        Case::Kind(kind) => match kind {
            ErrorKind::InvalidRequest | ErrorKind::InvalidInput => invalid,
            ErrorKind::PayloadTooLarge => openai(413, invalid.name, "request_too_large"),
            ErrorKind::UnsupportedMediaType => openai(415, invalid.name, "unsupported_media_type"),
            ErrorKind::EndpointNotFound | ErrorKind::ModelNotFound => {
                openai(404, invalid.name, "model_not_found")
            }
            ErrorKind::StoreDenied => openai(403, "permission_error", "store_denied"),
            ErrorKind::ModelInvalid => openai(400, invalid.name, "model_invalid"),
            ErrorKind::TooLarge => openai(400, invalid.name, "model_too_large"),
            ErrorKind::NotReady => openai(503, "server_error", "model_not_ready"),
            ErrorKind::Overloaded => openai(503, "server_error", "overloaded"),
            ErrorKind::Throttled => openai(429, "rate_limit_error", "rate_limit_exceeded"),
            ErrorKind::StoreUnavailable => openai(503, "server_error", "store_unavailable"),
            ErrorKind::ModelFailed => openai(500, "server_error", "model_failed"),
            ErrorKind::TimedOut => openai(504, "server_error", "timeout"),
            ErrorKind::Internal => openai(500, "server_error", "internal_error"),
        },
        Case::Denied(gate) => denied::openai_row(gate),
        Case::UnknownPath => openai(404, invalid.name, "unknown_url"),
        Case::WrongMethod => openai(405, invalid.name, "method_not_allowed"),
        Case::SlowBody => openai(408, invalid.name, "request_timeout"),
        Case::AlreadyLoaded => openai(409, invalid.name, "conflict"),
    }
}

#[cfg(test)]
mod tests;
