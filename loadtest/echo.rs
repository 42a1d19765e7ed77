//! A bare server that sends every body back: what this machine's HTTP can do at best.

use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};

/// Serves until the process is ended.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) async fn serve(listen: &str) -> Result<(), String> {
    let echo = || post(|body: Bytes| async { body });
    // As a container too.
    let echo = Router::new()
        .route("/", echo())
        .route("/invocations", echo())
        .route("/ping", get(async || ()));
    let listener = tokio::net::TcpListener::bind(listen).await;
    let listener = listener.map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    println!("listening on http://{address}/");
    axum::serve(listener, echo).await.map_err(|error| error.to_string())
}
