//! Fetches a document from another server: the keys of a tokens' issuer.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::Client;
use reqwest::header::ACCEPT;
use reqwest::redirect::Policy;
use roundhouse_tenancy::Fetch;

use crate::trust;

/// The longest a fetch may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest document. Sets of keys have a few kilobytes.
const BYTES_MOST: usize = 1 << 20;

/// A client that trusts whom this machine trusts, follows no redirect and uses no proxy.
pub(crate) fn client() -> Fetch {
    let made: Arc<OnceLock<Result<Client, String>>> = Arc::default();
    Arc::new(move |url| {
        let made = made.clone();
        Box::pin(async move {
            let client = made.get_or_init(build).clone();
            get(&client.map_err(|why| format!("no TLS client: {why}"))?, &url).await
        })
    })
}

fn build() -> Result<Client, String> {
    let trusted = trust::ours_and(None).map_err(|error| error.to_string())?;
    let client = Client::builder()
        .timeout(TIMEOUT)
        .redirect(Policy::none())
        .no_proxy()
        .tls_backend_preconfigured(trusted);
    client.build().map_err(|error| chain(&error))
}

async fn get(client: &Client, url: &str) -> Result<String, String> {
    let request = client.get(url).header(ACCEPT, "application/json");
    let mut response = request.send().await.map_err(|error| chain(&error))?;
    if !response.status().is_success() {
        return Err(format!("{url} answered {}", response.status()));
    }
    let mut document = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| chain(&error))? {
        if document.len() + piece.len() > BYTES_MOST {
            return Err(format!("{url} answered more than {BYTES_MOST} bytes"));
        }
        document.extend_from_slice(&piece);
    }
    String::from_utf8(document).map_err(|_| format!("{url} answered no text"))
}

/// An error with its causes: the outermost says little.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;

    use super::*;

    async fn site(router: Router) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = format!("http://{}", listener.local_addr().unwrap());
        let connections =
            crate::connections::Connections::new(8, std::time::Duration::from_secs(300));
        let port = crate::http::Port { router, tls: None, connections, threads: None };
        let stop = tokio_util::sync::CancellationToken::new();
        tokio::spawn(crate::http::serve(listener, port, stop));
        at
    }

    #[tokio::test]
    async fn a_document_is_fetched_and_nothing_else_is_taken() {
        let long = "x".repeat(BYTES_MOST + 1);
        let router = Router::new()
            .route("/keys", get(|| async { "{}" }))
            .route("/long", get(|| async { long }))
            .route("/moved", get(|| async { axum::response::Redirect::to("/keys") }));
        let at = site(router).await;
        let fetch = client();
        assert_eq!(fetch(format!("{at}/keys")).await.unwrap(), "{}");
        for path in ["/long", "/moved", "/none"] {
            assert!(fetch(format!("{at}{path}")).await.is_err(), "{path}");
        }
    }
}
