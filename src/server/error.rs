//! What can go wrong with a command, and what to do next.

use std::io;

pub(crate) use roundhouse_types::count;
use roundhouse_types::{ErrorKind, Failure, RetryHint};
use thiserror::Error;

use crate::config::Fault;

const WRONG_PORT: &str = "check --url: `invoke` needs the server's data address, every other \
                          command its admin address";

/// What the server says of a load that waits for models that operators keep.
const KEPT: &str = "kept models leave too little of the budget";

/// Why a command failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The settings are wrong; every fault is in the list.
    #[error("{} in the settings", count(.0.len(), "fault"))]
    Settings(Vec<Fault>),
    /// The command line is wrong in a way its parser cannot see.
    #[error("{0}")]
    Usage(String),
    /// Nothing listens at the address.
    #[error("no server answers at {url}")]
    NoServer {
        /// The address that was tried.
        url: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// The exchange with the server broke off.
    #[error("the request to {url} failed")]
    Request {
        /// The address that was asked.
        url: String,
        /// What the connection said.
        source: reqwest::Error,
    },
    /// The server answered with an error.
    #[error("the server answered {status}{}: {message}", kind_note(.kind.as_deref()))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The kind of error, where the server named one.
        kind: Option<String>,
        /// Its text.
        message: String,
    },
    /// The server's answer is not what this command reads: another program, or another version.
    #[error("the answer of {url} is not understood")]
    Answer {
        /// The address that was asked.
        url: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// Something could not be read, written or bound.
    #[error("{what}")]
    Io {
        /// What was tried, as in `cannot read /etc/roundhouse.toml`.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// Whoever read standard output has left. Not a failure.
    #[error("standard output was closed")]
    OutputClosed,
    /// A part of the server failed.
    #[error("{0}")]
    Failed(Failure),
    /// Some of what was asked for failed; the rest is printed already.
    #[error("{0}")]
    Rest(Failure),
    /// Keys cannot be read, minted or revoked.
    #[error("{0}")]
    Identity(#[source] roundhouse_tenancy::Error),
    /// Another error, with what to do next that only its finder knows.
    #[error("{error}")]
    Advised {
        /// What is wrong.
        #[source]
        error: Box<Error>,
        /// What to do next.
        hint: &'static str,
    },
    /// `doctor` found problems; they are printed already.
    #[error("{} found", count(*.0, "problem"))]
    Problems(usize),
}

impl Error {
    /// An I/O error with what was tried.
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// The same with what to do next.
    pub fn with_hint(self, hint: &'static str) -> Self {
        Self::Advised { error: Box::new(self), hint }
    }

    /// What a client would be told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Settings(_) | Self::Usage(_) | Self::Refused { status: 400..500, .. } => {
                ErrorKind::InvalidRequest
            }
            Self::Failed(failure) | Self::Rest(failure) => failure.kind(),
            Self::Identity(error) => error.kind(),
            Self::Advised { error, .. } => error.kind(),
            _ => ErrorKind::Internal,
        }
    }

    /// Whether the same command may succeed later.
    pub fn retry(&self) -> RetryHint {
        match self {
            Self::NoServer { .. } | Self::Request { .. } => RetryHint::Later,
            Self::Refused { status: 429 | 503, .. } => RetryHint::Later,
            Self::Failed(failure) | Self::Rest(failure) => failure.retry(),
            Self::Advised { error, .. } => error.retry(),
            _ => RetryHint::Never,
        }
    }

    /// The process's exit code: 2 for a wrong command line, 1 for every other failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Usage(_) => 2,
            Self::Advised { error, .. } => error.exit_code(),
            _ => 1,
        }
    }

    /// What to do next, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Settings(_) => Some(
                "config/default.toml explains every key; `roundhouse check-config FILE` checks a file",
            ),
            Self::NoServer { .. } => {
                Some("start one with `roundhouse serve`, or give --url (or ROUNDHOUSE_URL)")
            }
            Self::Request { .. } => Some(
                "the server may have been stopped: its log says so; or something else listens there: check --url",
            ),
            Self::Answer { .. } => Some(WRONG_PORT),
            Self::Refused { message, .. } if message.contains(KEPT) => Some(
                "release one with `roundhouse release TARGET`, or raise the budget: memory.budget (--memory), or that of a [[device]]",
            ),
            Self::Refused { status, kind, .. } => refused_hint(*status, kind.as_deref()),
            Self::Advised { hint, .. } => Some(*hint),
            Self::Identity(error) => identity_hint(error),
            Self::Failed(failure) | Self::Rest(failure) => failed_hint(failure.kind()),
            _ => None,
        }
    }
}

impl From<roundhouse_tenancy::Error> for Error {
    fn from(error: roundhouse_tenancy::Error) -> Self {
        Self::Identity(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn identity_hint(error: &roundhouse_tenancy::Error) -> Option<&'static str> {
    match error {
        roundhouse_tenancy::Error::Io { action: "read", source, .. }
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Some(
                "`roundhouse keys create --keys FILE --tenant NAME` mints a key, and makes the file where there is none",
            )
        }
        _ => None,
    }
}

fn refused_hint(status: u16, kind: Option<&str>) -> Option<&'static str> {
    match (kind.unwrap_or_default(), status) {
        ("model_not_found", _) => Some("`roundhouse models` lists what the store holds"),
        ("too_large", _) | (_, 507) => Some(
            "`roundhouse plan TARGET` shows what it needs and which device has as much; the budgets are memory.budget (--memory) or those of [[device]]s",
        ),
        ("wrong_host", _) => Some(
            "name the server in --url as localhost, by its address, or by a name that listen.admin_hosts of its settings has",
        ),
        ("model_invalid" | "model_failed", _) => Some(
            "`roundhouse explain TARGET` says what was tried; mend the files, then `roundhouse load --force TARGET`",
        ),
        ("timed_out", _) => Some("`roundhouse explain TARGET` says what it waits for"),
        ("store_denied", _) => failed_hint(ErrorKind::StoreDenied),
        ("store_unavailable", _) => failed_hint(ErrorKind::StoreUnavailable),
        ("unauthorized", _) => Some(
            "give an operator's key with --admin-key or ROUNDHOUSE_ADMIN_KEY; `roundhouse keys create --operator` mints one",
        ),
        (_, 401 | 403) => Some(
            "give a tenant's key with --key or ROUNDHOUSE_API_KEY; `roundhouse keys create --tenant NAME` mints one",
        ),
        // Another program's answers have no kind.
        ("" | "invalid_request" | "UnknownOperationException", 404 | 405) | ("", 501) => {
            Some(WRONG_PORT)
        }
        (_, 429 | 503) => {
            Some("try again in a moment; `roundhouse explain TARGET` says what it waits for")
        }
        _ => None,
    }
}

fn failed_hint(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::StoreDenied => Some(
            "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, roles) and the bucket's policy",
        ),
        ErrorKind::StoreUnavailable => Some(
            "check the network, AWS_REGION and AWS_ENDPOINT_URL_S3; `roundhouse doctor` tries the store",
        ),
        _ => None,
    }
}

fn kind_note(kind: Option<&str>) -> String {
    kind.map(|kind| format!(" ({kind})")).unwrap_or_default()
}
