//! A container's address: a scheme, a host, and what its paths begin with.

use std::fmt;
use std::str::FromStr;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Uri};
use thiserror::Error;

/// An address such as `http://127.0.0.1:8080` or `https://models.example/team`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    scheme: Scheme,
    authority: Authority,
    /// Without its last slash; empty where paths begin at the root.
    prefix: String,
}

/// Why a text is no container's address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is no address of a container: {reason}")]
pub struct InvalidUrl {
    text: String,
    reason: &'static str,
}

impl InvalidUrl {
    /// Why, without the text, which may hold a password.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

impl BaseUrl {
    /// A port of this machine, in the clear.
    pub fn local(port: u16) -> Self {
        let authority = format!("127.0.0.1:{port}");
        Self {
            scheme: Scheme::HTTP,
            authority: authority.parse().expect("an address and a port are an authority"),
            prefix: String::new(),
        }
    }

    /// Whether connections are encrypted.
    pub fn is_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// What connections are made to.
    pub(crate) fn root(&self) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
        Uri::from_parts(parts).expect("all parts are there")
    }

    /// The host as requests name it: with its port, unless that is the scheme's own.
    pub(crate) fn host(&self) -> HeaderValue {
        let usual = if self.is_https() { 443 } else { 80 };
        let host = match self.authority.port_u16() {
            Some(port) if port != usual => self.authority.as_str(),
            _ => self.authority.host(),
        };
        HeaderValue::from_str(host).expect("an authority is ASCII")
    }

    /// The path and query below it that stand for a URI's, where they are not the URI itself.
    pub(crate) fn below(&self, uri: &Uri) -> Option<Uri> {
        if self.prefix.is_empty() && uri.authority().is_none() {
            return None;
        }
        let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let path = self.prefix.clone() + path;
        Some(path.parse().expect("two paths are a path"))
    }
}

impl FromStr for BaseUrl {
    type Err = InvalidUrl;

    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let refuse = |reason| InvalidUrl { text: text.to_owned(), reason };
        let uri: Uri = text.parse().map_err(|_| refuse("it is no URL"))?;
        let parts = uri.into_parts();
        let scheme = parts.scheme.filter(|it| *it == Scheme::HTTP || *it == Scheme::HTTPS);
        let scheme = scheme.ok_or_else(|| refuse("it begins with neither http:// nor https://"))?;
        let authority = parts.authority.filter(|it| !it.host().is_empty());
        let authority = authority.ok_or_else(|| refuse("it names no host"))?;
        if authority.as_str().contains('@') {
            // It would be printed with every error.
            return Err(refuse("it holds a user name or password"));
        }
        let path = parts.path_and_query.as_ref();
        if path.is_some_and(|it| it.query().is_some()) {
            return Err(refuse("it has a query"));
        }
        let prefix = path.map_or("", PathAndQuery::path).trim_end_matches('/').to_owned();
        Ok(Self { scheme, authority, prefix })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_below_an_address() {
        let below = |base: &str, path: &str| {
            let base: BaseUrl = base.parse().unwrap();
            let uri: Uri = path.parse().unwrap();
            base.below(&uri).unwrap_or(uri).to_string()
        };
        assert_eq!(below("http://a:1", "/invocations"), "/invocations");
        assert_eq!(below("http://a:1", "http://b/invocations?x=1"), "/invocations?x=1");
        assert_eq!(below("https://a/team/", "/ping?x=1"), "/team/ping?x=1");
        assert_eq!(below("http://[::1]:80", "/"), "/");
    }

    #[test]
    fn hosts_are_named_with_a_port_that_is_not_their_schemes() {
        let host = |base: &str| base.parse::<BaseUrl>().unwrap().host();
        assert_eq!(host("http://a:1/x"), "a:1");
        assert_eq!(host("https://a:443"), "a");
        assert_eq!(host("http://[::1]:80"), "[::1]");
        assert_eq!(host("https://a:80"), "a:80");
        assert_eq!(host("http://a"), "a");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let bad =
            ["", "a:1", "/x", "ftp://a", "http://", "http://u:p@a", "http://a/?q", "http://a b"];
        for text in bad {
            assert!(text.parse::<BaseUrl>().is_err(), "{text}");
        }
    }
}
