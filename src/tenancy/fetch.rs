//! Documents of other servers: the keys of a tokens' issuer, whose signature AWS says it is.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue};
use thiserror::Error;

/// Gets a document. Must end of its own accord, bound what it takes, and follow no redirect.
pub type Fetch =
    Arc<dyn Fn(Document) -> BoxFuture<'static, Result<String, Unfetched>> + Send + Sync>;

/// What is fetched, by GET, as JSON where there is a choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Its address.
    pub url: String,
    /// A header that goes along.
    pub header: Option<(HeaderName, HeaderValue)>,
}

impl Document {
    /// The document at an address.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), header: None }
    }
}

/// Why a document was not had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unfetched {
    /// The other side answered that it does not give it: a status of 400 to 499.
    #[error("answered {0}")]
    Refused(u16),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<String> for Unfetched {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}
