//! The HTTP client of the commands that talk to a running server.

use std::path::Path;
use std::time::Duration;

use reqwest::{Method, Response};
use roundhouse_types::{ErrorKind, Failure};
use serde_json::Value;

use super::AdminArgs;
use crate::error::Error;
use crate::trust;

const NO_TLS: &str = "a server without [tls] is asked by http://; one whose certificate nobody here vouches for, with \
     --ca FILE";

/// A server on the same network answers well within this, or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One server's address and a connection to it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<Key>,
}

/// What is shown to the server; printed never.
#[derive(Clone)]
struct Key(String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

impl Client {
    /// A client for `http://host:port`, or `https://` with a certificate that this machine, or an
    /// authority in a file, vouches for.
    ///
    /// # Errors
    /// [`Error::Usage`] when the address is not one; when the file cannot be read.
    pub(crate) fn new(url: &str, ca: Option<&Path>) -> Result<Self, Error> {
        let usage = |why: &str| Error::Usage(format!("'{url}' {why}, like http://127.0.0.1:8081"));
        let parsed: reqwest::Url =
            url.parse().map_err(|_| usage("is not an address; write http://HOST:PORT"))?;
        if !["http", "https"].contains(&parsed.scheme()) {
            return Err(usage("is neither http nor https; write http://HOST:PORT"));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            // A load may take minutes without a byte: this finds out that the server is gone.
            .tcp_keepalive(Duration::from_secs(15))
            // The server is ours and near; a proxy for the outside world is never meant.
            .no_proxy()
            .tls_backend_preconfigured(trust::ours_and(ca)?)
            .build()
            .map_err(|source| Error::Request { url: url.into(), source })?;
        Ok(Self { http, base: url.trim_end_matches('/').to_owned(), key: None })
    }

    /// A client for an admin port, with the operator's key where one is given.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub(crate) fn admin(args: &AdminArgs) -> Result<Self, Error> {
        Ok(Self::new(&args.url, args.ca.as_deref())?.with_key(args.admin_key.as_deref()))
    }

    /// The same, showing a key.
    pub(crate) fn with_key(self, key: Option<&str>) -> Self {
        Self { key: key.map(|key| Key(key.trim().to_owned())), ..self }
    }

    /// A request to a path of the server.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(&key.0),
            None => request,
        }
    }

    /// Sends a request. An answer with an error's status is an error.
    ///
    /// # Errors
    /// [`Error::NoServer`], [`Error::Request`], [`Error::Refused`].
    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, Error> {
        let response = request.send().await.map_err(|source| self.broken(source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let named = response.headers().get("x-amzn-errortype").and_then(|it| it.to_str().ok());
        let named = named.map(str::to_owned);
        let text = response.text().await.map_err(|source| self.broken(source))?;
        let (kind, message) = error_body(&text);
        Err(Error::Refused { status: status.as_u16(), kind: kind.or(named), message })
    }

    /// Sends a request and reads its JSON answer.
    ///
    /// # Errors
    /// As [`Client::send`], and [`Error::Answer`].
    pub(crate) async fn json(&self, request: reqwest::RequestBuilder) -> Result<Value, Error> {
        let text = self.send(request).await?.text().await.map_err(|source| self.broken(source))?;
        serde_json::from_str(&text)
            .map_err(|source| Error::Answer { url: self.base.clone(), source })
    }

    /// An answer of a known shape.
    ///
    /// # Errors
    /// [`Error::Answer`].
    pub(crate) fn shaped<T: serde::de::DeserializeOwned>(&self, value: Value) -> Result<T, Error> {
        serde_json::from_value(value)
            .map_err(|source| Error::Answer { url: self.base.clone(), source })
    }

    /// What a broken exchange means.
    pub(crate) fn broken(&self, source: reqwest::Error) -> Error {
        let url = self.base.clone();
        // Its own text would repeat the address.
        let source = source.without_url();
        if source.is_builder() {
            let told = "a line break or another control character in a key or a content type";
            return Error::Usage(format!("the request cannot be written: {told}?"));
        }
        if is_of_tls(&source) {
            return Error::Request { url, source }.with_hint(NO_TLS);
        }
        if source.is_connect() {
            return Error::NoServer { url, source };
        }
        Error::Request { url, source }
    }

    /// A server that does not say what it should in time.
    pub(crate) fn silent(&self, what: &str) -> Error {
        let message = format!("{}: {what}", self.base);
        Error::Failed(Failure::new(ErrorKind::TimedOut, message))
    }

    /// An answer that is not the JSON it should be.
    pub(crate) fn unreadable(&self, source: serde_json::Error) -> Error {
        Error::Answer { url: self.base.clone(), source }
    }
}

/// Whether two ends could not agree on how to encrypt.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    // What an input or output failed by is not told as its cause.
    let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>()
        || inner.is_some_and(|inner| is_of_tls(inner))
        || error.source().is_some_and(is_of_tls)
}

/// Kind and text of an error's body, in the spellings of the admin port, SageMaker and OpenAI.
pub(crate) fn error_body(text: &str) -> (Option<String>, String) {
    let Ok(body) = serde_json::from_str::<Value>(text) else {
        if text.trim_start().starts_with('<') {
            return (None, "a page for browsers".into());
        }
        let line = text.trim().lines().next().unwrap_or_default();
        let shown: String = line.chars().take(500).collect();
        return (None, if shown.is_empty() { "without a message".into() } else { shown });
    };
    let inner = body.get("error").filter(|inner| inner.is_object()).unwrap_or(&body);
    let first = |keys: &[&str]| {
        keys.iter().find_map(|key| inner.get(*key).and_then(Value::as_str)).map(str::to_owned)
    };
    let kind = first(&["kind", "ErrorCode", "__type", "type", "error_type"]);
    let message = first(&["message", "Message", "OriginalMessage", "error"]);
    (kind, message.unwrap_or_else(|| body.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_read_in_every_spelling() {
        let cases = [
            (
                r#"{"error":{"kind":"model_not_found","message":"no a"}}"#,
                Some("model_not_found"),
                "no a",
            ),
            (r#"{"ErrorCode":"X","Message":"b"}"#, Some("X"), "b"),
            (r#"{"error":"c","error_type":"validation"}"#, Some("validation"), "c"),
            ("plain\nmore", None, "plain"),
            ("<!DOCTYPE HTML>\n<html>", None, "a page for browsers"),
            ("", None, "without a message"),
        ];
        for (text, kind, message) in cases {
            let (found_kind, found) = error_body(text);
            assert_eq!((found_kind.as_deref(), found.as_str()), (kind, message), "{text}");
        }
    }

    #[test]
    fn an_address_that_is_none_is_a_usage_error() {
        for url in ["", "localhost:8081", "ftp://x", "http//x"] {
            assert!(matches!(Client::new(url, None), Err(Error::Usage(_))), "{url}");
        }
    }
}
