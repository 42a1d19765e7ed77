//! Fetches a document from another server: the keys of a tokens' issuer, STS's word on who signed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use reqwest::Client;
use reqwest::header::ACCEPT;
use reqwest::redirect::Policy;
use roundhouse_tenancy::{Document, Fetch, Unfetched};

use crate::trust;

/// The longest a fetch may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest document. Sets of keys have a few kilobytes.
const BYTES_MOST: usize = 1 << 20;

/// A client that trusts whom this machine trusts, follows no redirect and uses no proxy.
pub(crate) fn client() -> Fetch {
    let made: Arc<OnceLock<Result<Client, String>>> = Arc::default();
    Arc::new(move |document| {
        let made = made.clone();
        Box::pin(async move {
            let client = made.get_or_init(build).clone();
            get(&client.map_err(|why| format!("no TLS client: {why}"))?, document).await
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

/// An address is in no error: it may hold a signature.
async fn get(client: &Client, document: Document) -> Result<String, Unfetched> {
    let chain = |error: reqwest::Error| chain(&error.without_url());
    let request = client.get(&document.url).header(ACCEPT, "application/json");
    let request =
        document.header.into_iter().fold(request, |it, (name, value)| it.header(name, value));
    let mut response = request.send().await.map_err(chain)?;
    let status = response.status();
    if status.is_client_error() {
        return Err(Unfetched::Refused(status.as_u16()));
    }
    if !status.is_success() {
        return Err(format!("answered {status}").into());
    }
    let mut taken = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(chain)? {
        if taken.len() + piece.len() > BYTES_MOST {
            return Err(format!("answered more than {BYTES_MOST} bytes").into());
        }
        taken.extend_from_slice(&piece);
    }
    String::from_utf8(taken).map_err(|_| "answered no text".to_owned().into())
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
            .route("/no", get(|| async { axum::http::StatusCode::FORBIDDEN }))
            .route("/moved", get(|| async { axum::response::Redirect::to("/keys") }));
        let at = site(router).await;
        let fetch = client();
        let fetch = async |path: &str| fetch(Document::at(format!("{at}{path}"))).await;
        assert_eq!(fetch("/keys").await.unwrap(), "{}");
        assert_eq!(fetch("/no").await, Err(Unfetched::Refused(403)));
        for path in ["/long", "/moved"] {
            assert!(matches!(fetch(path).await, Err(Unfetched::Failed(_))), "{path}");
        }
    }
}
