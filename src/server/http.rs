//! Accepts connections and ends them gently.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use roundhouse_tenancy::Peer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::debug;

use crate::connections::{Connections, Place};
use crate::threads::Threads;
use crate::tls::Tls;

/// A client that has not sent its headers by then is let go: it holds a connection for nothing.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A request's line and headers together, and what is read of a body at a time. A connection that
/// never gets on holds no more than that.
const BUFFER_MAX: usize = 64 * 1024;

/// Waits before it accepts again when the process is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// What a port is served with.
pub(crate) struct Port {
    pub(crate) router: Router,
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) connections: Arc<Connections>,
    /// Where its connections are served; here where that is absent.
    pub(crate) threads: Option<Arc<Threads>>,
}

/// Serves a port until `stop` is cancelled, then waits for the connections' current exchanges to end.
/// Dropping the future lets no more in. Each request carries its [`Peer`].
pub(crate) async fn serve(listener: TcpListener, port: Port, stop: CancellationToken) {
    let builder = builder(Handle::current());
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                port.connections.make_room();
                refused(&error).await;
                continue;
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "connection without TCP_NODELAY");
        }
        let Some(place) = port.connections.enter() else {
            debug!("all connections are busy: another one is closed");
            continue;
        };
        let connection = Connection {
            from,
            place,
            router: port.router.clone(),
            tls: port.tls.clone(),
            builder: builder.clone(),
            watcher: graceful.watcher(),
            stop: stop.clone(),
        };
        match &port.threads {
            None => drop(tokio::spawn(connection.serve(stream))),
            Some(threads) => match stream.into_std() {
                Ok(stream) => threads.serve(async move {
                    match TcpStream::from_std(stream) {
                        Ok(stream) => connection.serve(stream).await,
                        Err(error) => debug!(%error, "connection could not be handed over"),
                    }
                }),
                Err(error) => debug!(%error, "connection could not be handed over"),
            },
        }
    }
    drop(listener);
    graceful.shutdown().await;
}

/// How HTTP is spoken. Requests that share one connection, as HTTP/2's do, are answered by all the
/// threads of a runtime.
fn builder(shared: Handle) -> auto::Builder<Shared> {
    let mut builder = auto::Builder::new(Shared(shared));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .max_buf_size(BUFFER_MAX);
    builder.http2().timer(TokioTimer::new());
    builder
}

/// Where requests are answered that come on one connection at the same time.
#[derive(Clone)]
struct Shared(Handle);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Shared {
    fn execute(&self, request: F) {
        self.0.spawn(request);
    }
}

/// A connection that was accepted.
struct Connection {
    from: SocketAddr,
    place: Place,
    router: Router,
    tls: Option<Arc<Tls>>,
    builder: auto::Builder<Shared>,
    watcher: Watcher,
    stop: CancellationToken,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let Self { from, place, router, tls, builder, watcher, stop } = self;
        // The header timeout begins with the first byte, which may never come.
        let mut first = [0];
        tokio::select! {
            first = timeout(HEADER_READ_TIMEOUT, stream.peek(&mut first)) => match first {
                Ok(Ok(1..)) => {}
                Ok(_) | Err(_) => return,
            },
            () = stop.cancelled() => return,
            () = place.left() => return,
        }
        let shaken = tokio::select! {
            shaken = shake_hands(stream, from, tls, &stop) => shaken,
            () = place.left() => return,
        };
        let Some((stream, peer)) = shaken else { return };
        let service = router.map_request(move |mut request: Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(peer.clone());
            request
        });
        let service = TowerToHyperService::new(place.counting(service));
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        tokio::select! {
            biased;
            ended = watcher.watch(connection) => if let Err(error) = ended {
                debug!(%error, "connection ended");
            },
            () = place.left() => debug!("a connection made room for another"),
        }
    }
}

/// A connection that HTTP is spoken on, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The connection as HTTP is spoken on it, and who is at its other end; `None` where a handshake
/// fails, takes too long or is cut off by the end.
async fn shake_hands(
    stream: TcpStream,
    from: SocketAddr,
    tls: Option<Arc<Tls>>,
    stop: &CancellationToken,
) -> Option<(Box<dyn Stream>, Peer)> {
    let mut peer = Peer { address: from.ip(), certificate: None };
    let Some(tls) = tls else { return Some((Box::new(stream), peer)) };
    let shaken = tokio::select! {
        shaken = timeout(HEADER_READ_TIMEOUT, tls.acceptor().accept(stream)) => shaken,
        () = stop.cancelled() => return None,
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            debug!(%error, "no TLS handshake");
            return None;
        }
        Err(_) => return None,
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    peer.certificate = shown.and_then(|certificate| tls.name(certificate));
    Some((Box::new(stream), peer))
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
        with_places(Connections::new(8, Duration::from_secs(300)), stop).await
    }

    async fn with_places(
        connections: Arc<Connections>,
        stop: CancellationToken,
    ) -> (TcpStream, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        let port = Port { router, tls: None, connections, threads: None };
        let served = tokio::spawn(serve(listener, port, stop));
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

    #[tokio::test]
    async fn answers_under_way_on_all_threads_are_whole_at_the_end() {
        let (begun, mut begins) = tokio::sync::mpsc::channel(8);
        let (go_on, told) = tokio::sync::watch::channel(false);
        let slow = move || {
            let (begun, mut told) = (begun.clone(), told.clone());
            async move {
                begun.send(std::thread::current().name().map(str::to_owned)).await.unwrap();
                told.wait_for(|told| *told).await.unwrap();
                "here"
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let threads = Arc::new(Threads::start().unwrap());
        let router = Router::new().route("/", get(slow));
        let connections = Connections::new(8, Duration::from_secs(300));
        let port = Port { router, tls: None, connections, threads: Some(threads.clone()) };
        let stop = CancellationToken::new();
        let mut served = tokio::spawn(serve(listener, port, stop.clone()));
        let mut clients = Vec::new();
        let mut on = std::collections::BTreeSet::new();
        for _ in 0..8 {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            on.insert(begins.recv().await.unwrap());
            clients.push(client);
        }
        let processors = std::thread::available_parallelism().unwrap().get();
        assert_eq!(on.len(), processors.min(8), "{on:?}");
        stop.cancel();
        let ended = timeout(Duration::from_millis(50), &mut served).await;
        assert!(ended.is_err(), "it did not wait for them");
        go_on.send(true).unwrap();
        for mut client in clients {
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.ends_with("here"), "{answer}");
        }
        served.await.unwrap();
        threads.end().await;
    }

    /// What HTTP/2 begins with, a window of zero for answers, and `GET /` (RFC 9113, RFC 7541).
    const ASKS_AND_TAKES_NOTHING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
        \x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\
        \x00\x00\x06\x01\x05\x00\x00\x00\x01\x82\x86\x84\x41\x01x";

    #[tokio::test]
    async fn who_asks_and_takes_no_answer_does_not_close_the_port() {
        let connections = Connections::new(1, Duration::ZERO);
        let (mut stranger, _served) = with_places(connections, CancellationToken::new()).await;
        stranger.write_all(ASKS_AND_TAKES_NOTHING).await.unwrap();
        loop {
            let mut head = [0; 9];
            stranger.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            stranger.read_exact(&mut vec![0; length as usize]).await.unwrap();
            // Its headers: the answer is made.
            if head[3] == 1 {
                break;
            }
        }
        let mut client = TcpStream::connect(stranger.peer_addr().unwrap()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
    }
}
