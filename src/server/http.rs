//! Accepts connections and ends them gently.

use std::io;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// A client that has not sent its headers by then is let go: it holds a connection for nothing.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits before it accepts again when the process is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Serves `router` until `stop` is cancelled, then waits for the connections' current
/// exchanges to end. Dropping the future cuts them.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_READ_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                refused(&error).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "connection without TCP_NODELAY");
        }
        let service = TowerToHyperService::new(router.clone());
        let (builder, watcher, stop) = (builder.clone(), graceful.watcher(), stop.clone());
        tokio::spawn(async move {
            // The header timeout begins with the first byte, which may never come.
            let mut first = [0];
            tokio::select! {
                first = timeout(HEADER_READ_TIMEOUT, stream.peek(&mut first)) => match first {
                    Ok(Ok(1..)) => {}
                    Ok(_) | Err(_) => return,
                },
                () = stop.cancelled() => return,
            }
            let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                debug!(%error, "connection ended");
            }
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn refused(error: &io::Error) {
    debug!(%error, "could not accept a connection");
    tokio::time::sleep(ACCEPT_RETRY).await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn server(stop: CancellationToken) -> (TcpStream, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        let served = tokio::spawn(serve(listener, router, stop));
        (TcpStream::connect(address).await.unwrap(), served)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_says_a_word_is_let_go() {
        let (mut client, _served) = server(CancellationToken::new()).await;
        assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_client_that_asks_is_answered() {
        let (mut client, _served) = server(CancellationToken::new()).await;
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
    }

    #[tokio::test]
    async fn a_silent_client_does_not_hold_up_the_end() {
        let stop = CancellationToken::new();
        let (_client, served) = server(stop.clone()).await;
        stop.cancel();
        served.await.unwrap();
    }
}
