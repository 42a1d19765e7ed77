//! Why a caller is not let in.

use thiserror::Error;

/// Why a request's sender is not let in. The words are AWS's own where AWS has some, because its
/// SDKs and their users know them. Never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Denied {
    /// No credential at all.
    #[error("Missing Authentication Token")]
    Missing,
    /// A credential that nobody here knows, or not any more.
    #[error("The security token included in the request is invalid.")]
    Unknown,
    /// A credential whose time is over.
    #[error("The security token included in the request is expired")]
    Expired,
    /// A signature that does not fit the request, its time or its scope.
    #[error("{0}")]
    Signature(String),
    /// A credential of a known form with parts missing or malformed.
    #[error("{0}")]
    Incomplete(String),
    /// A credential that is good, but not for this.
    #[error("{0}")]
    Forbidden(String),
    /// A JSON web token that does not hold.
    #[error("the bearer token {0}")]
    Token(String),
    /// Whoever could tell cannot be asked now.
    #[error("who issued the credential cannot be asked now")]
    Unavailable,
}

impl Denied {
    /// The label in metrics.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Signature(_) => "signature",
            Self::Incomplete(_) => "incomplete",
            Self::Forbidden(_) => "forbidden",
            Self::Token(_) => "token",
            Self::Unavailable => "unavailable",
        }
    }

    /// What AWS says to a signature that is not the one it calculates.
    pub(crate) fn mismatch() -> Self {
        Self::Signature(
            "The request signature we calculated does not match the signature you provided. Check \
             your AWS Secret Access Key and signing method. Consult the service documentation for \
             details."
                .to_owned(),
        )
    }
}
