//! Against containers that misbehave, byte by byte.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use roundhouse_types::{Bytes as Amount, ErrorKind, Failure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

mod kept;
mod standing;

/// Longer than any of this takes on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_millis(50);
const LIMIT: Amount = Amount::mib(1);

/// A container that treats each connection as a function says; how many there were.
async fn container<F>(treat: impl Fn(Peer) -> F + Send + 'static) -> (BaseUrl, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = BaseUrl::local(listener.local_addr().unwrap().port());
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(treat(Peer(stream)));
        }
    });
    (url, connections)
}

/// The container's end of a connection.
struct Peer(TcpStream);

impl Peer {
    /// A request's head, and as much of its body as came with it; empty at the connection's end.
    async fn head(&mut self) -> String {
        let mut read = Vec::new();
        while !read.windows(4).any(|four| four == b"\r\n\r\n") {
            if self.0.read_buf(&mut read).await.unwrap_or(0) == 0 {
                break;
            }
        }
        String::from_utf8(read).unwrap()
    }

    async fn say(&mut self, text: &str) {
        // We may have left.
        let _ = self.0.write_all(text.as_bytes()).await;
    }

    /// Returns when we have closed the connection.
    async fn until_closed(mut self) {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest).await;
    }

    fn reset(self) {
        self.0.set_zero_linger().unwrap();
    }
}

fn config(url: BaseUrl) -> BackendConfig {
    BackendConfig { health: None, ..BackendConfig::new("of-tests", url) }
}

fn post(body: &'static str) -> Request<Outgoing> {
    Request::post("/invocations").body(Outgoing::whole(Bytes::from(body))).unwrap()
}

async fn ask(backend: &Backend) -> Result<(StatusCode, HeaderMap, Bytes), Error> {
    let answer = backend.send(post("question"), Instant::now() + PATIENCE).await?;
    let (head, body) = answer.into_parts();
    Ok((head.status, head.headers, body.collect(LIMIT).await?))
}

#[tokio::test]
async fn an_answer_passes_as_it_is_whatever_its_body_says() {
    let (url, _) = container(|mut peer| async move {
        assert!(peer.head().await.ends_with("question"));
        peer.say("HTTP/1.1 200 OK\r\ncontent-length: 15\r\nx-own: 1\r\nkeep-alive: 5\r\n\r\n")
            .await;
        peer.say("{\"error\":\"oom\"}").await;
        peer.until_closed().await;
    })
    .await;
    let backend = Backend::new(config(url));
    let (status, headers, body) = ask(&backend).await.unwrap();
    assert_eq!((status, &*body), (StatusCode::OK, &b"{\"error\":\"oom\"}"[..]));
    assert_eq!(headers.get("x-own").unwrap(), "1");
    assert!(headers.get("keep-alive").is_none());
    assert_eq!(backend.in_flight(), 0);
}

#[tokio::test]
async fn silence_is_an_error_and_its_connection_is_closed() {
    let (told, mut closed) = tokio::sync::mpsc::channel(1);
    let (url, _) = container(move |mut peer| {
        let told = told.clone();
        async move {
            peer.head().await;
            peer.until_closed().await;
            told.send(()).await.unwrap();
        }
    })
    .await;
    let backend = Backend::new(BackendConfig { head_timeout: SOON, ..config(url) });
    let error = ask(&backend).await.unwrap_err();
    assert!(matches!(error, Error::Silent { .. }), "{error}");
    assert_eq!(Failure::from(error).kind(), ErrorKind::TimedOut);
    closed.recv().await.unwrap();
    let late = backend.send(post(""), Instant::now() + SOON / 5).await.unwrap_err();
    assert!(matches!(late, Error::TimedOut { .. }), "{late}");
    assert_eq!(backend.in_flight(), 0);
}

#[tokio::test]
async fn an_answer_that_stands_still_breaks_off_with_an_error() {
    let (url, _) = container(|mut peer| async move {
        peer.head().await;
        peer.say("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbegun").await;
        peer.until_closed().await;
    })
    .await;
    let backend = Backend::new(BackendConfig { idle_timeout: SOON, ..config(url.clone()) });
    let error = ask(&backend).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    let whole = backend.send(post(""), Instant::now() + SOON / 2).await;
    if let Ok(answer) = whole {
        let error = answer.into_body().collect(LIMIT).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    }
    assert_eq!(backend.in_flight(), 0);
}

#[tokio::test]
async fn a_reset_and_a_length_that_lies_are_errors_and_never_short_answers() {
    let answers = [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nless than that",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n",
    ];
    for answer in answers {
        for resets in [false, true] {
            let (url, _) = container(move |mut peer| async move {
                peer.head().await;
                peer.say(answer).await;
                if resets {
                    peer.reset();
                }
            })
            .await;
            let backend = Backend::new(config(url));
            let error = ask(&backend).await.unwrap_err();
            // A reset may overtake the head that was sent before it.
            let is_told = match error {
                Error::Cut { .. } => true,
                Error::BrokeOff { .. } => resets,
                _ => false,
            };
            assert!(is_told, "{error}");
            let failure = Failure::from(error);
            assert_eq!((failure.kind(), failure.status()), (ErrorKind::ModelFailed, Some(0)));
            assert_eq!(backend.in_flight(), 0);
        }
    }
}

#[tokio::test]
async fn what_follows_the_length_that_was_said_reaches_nobody() {
    let (url, connections) = container(|mut peer| async move {
        while !peer.head().await.is_empty() {
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nlie")
                .await;
        }
    })
    .await;
    let backend = Backend::new(config(url));
    for _ in 0..20 {
        match ask(&backend).await {
            Ok((_, _, body)) => assert_eq!(body, "ok"),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(connections.load(Ordering::SeqCst) > 1);
}

#[tokio::test]
async fn what_is_no_http_is_an_error_of_the_container() {
    for answer in ["SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", ""] {
        let (url, _) = container(move |mut peer| async move {
            peer.head().await;
            peer.say(answer).await;
        })
        .await;
        let error = ask(&Backend::new(config(url))).await.unwrap_err();
        assert!(matches!(error, Error::BrokeOff { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_answer_that_is_dropped_gives_back_its_place_and_closes_its_connection() {
    let (told, mut closed) = tokio::sync::mpsc::channel(1);
    let (url, _) = container(move |mut peer| {
        let told = told.clone();
        async move {
            peer.head().await;
            peer.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n").await;
            peer.until_closed().await;
            told.send(()).await.unwrap();
        }
    })
    .await;
    let backend = Backend::new(BackendConfig { max_in_flight: 1, ..config(url) });
    for _ in 0..3 {
        let mut answer = backend.send(post(""), Instant::now() + PATIENCE).await.unwrap();
        let piece = answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(piece, "begun");
        assert_eq!(backend.in_flight(), 1);
        let error = ask(&backend).await.unwrap_err();
        assert!(matches!(error, Error::Full { limit: 1, .. }), "{error}");
        drop(answer);
        closed.recv().await.unwrap();
        assert_eq!(backend.in_flight(), 0);
    }
}

#[tokio::test]
async fn a_container_is_read_no_faster_than_its_client() {
    const PIECE: usize = 64 * 1024;
    const PIECES: usize = 2000;
    // What the kernel and we may hold between the two, with room to spare.
    const AHEAD: usize = 24 * 1024 * 1024;
    let written = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&written);
    let (url, _) = container(move |mut peer| {
        let count = Arc::clone(&count);
        async move {
            peer.head().await;
            let length = PIECE * PIECES;
            peer.say(&format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n")).await;
            for _ in 0..PIECES {
                peer.0.write_all(&[b'x'; PIECE]).await.unwrap();
                count.fetch_add(PIECE, Ordering::SeqCst);
            }
        }
    })
    .await;
    let backend = Backend::new(config(url));
    let answer = backend.send(post(""), Instant::now() + PATIENCE).await.unwrap();
    let mut body = answer.into_body();
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.unwrap().into_data().unwrap().len();
        let ahead = written.load(Ordering::SeqCst).saturating_sub(read);
        assert!(ahead < AHEAD, "{ahead} bytes ahead");
        tokio::task::yield_now().await;
    }
    assert_eq!(read, PIECE * PIECES);
}

#[tokio::test]
async fn connections_are_used_again_and_one_that_ended_idle_is_replaced() {
    let (url, connections) = container(|mut peer| async move {
        for _ in 0..5 {
            peer.head().await;
            peer.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    })
    .await;
    let backend = Backend::new(config(url));
    for _ in 0..25 {
        assert_eq!(ask(&backend).await.unwrap().2, "ok");
    }
    // Each ends after five; a connection may also be made while the last one is not yet free.
    let connections = connections.load(Ordering::SeqCst);
    assert!((5..25).contains(&connections), "{connections}");
}

#[tokio::test]
async fn only_what_may_be_repeated_is_sent_again() {
    let (url, connections) = container(|mut peer| async move {
        peer.head().await;
    })
    .await;
    let backend = Backend::new(config(url));
    let error = ask(&backend).await.unwrap_err();
    assert!(matches!(error, Error::BrokeOff { .. }), "{error}");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let request = Request::get("/models").body(Outgoing::empty()).unwrap();
    let error = backend.send(request, Instant::now() + PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::BrokeOff { .. }), "{error}");
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_body_in_pieces_is_sent_and_one_that_breaks_is_its_clients_fault() {
    let (url, _) = container(|mut peer| async move {
        let mut said = peer.head().await;
        while !said.ends_with("0\r\n\r\n") {
            match peer.0.read_u8().await {
                Ok(byte) => said.push(char::from(byte)),
                Err(_) => return,
            }
        }
        assert!(said.contains("one") && said.contains("two"), "{said}");
        peer.say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    })
    .await;
    let breaking = Breaking { failures: 1, ..Breaking::default() };
    let backend = Backend::new(BackendConfig { breaking, ..config(url) });
    let send = |last: Result<&'static str, std::io::Error>| {
        let pieces = [Ok("one"), last].map(|piece| piece.map(|it| Frame::data(Bytes::from(it))));
        let body = Outgoing::pieces(StreamBody::new(stream::iter(pieces)));
        let request = Request::post("/invocations").body(body).unwrap();
        backend.send(request, Instant::now() + PATIENCE)
    };
    let answer = send(Ok("two")).await.unwrap();
    assert_eq!(answer.into_body().collect(LIMIT).await.unwrap(), "ok");
    let error = send(Err(std::io::ErrorKind::ConnectionReset.into())).await.unwrap_err();
    assert!(matches!(error, Error::Unsent { .. }), "{error}");
    assert_eq!(backend.state(), State::Closed);
}

#[tokio::test]
async fn neighbours_headers_are_taken_off_and_the_host_is_the_containers() {
    let (told, mut heads) = tokio::sync::mpsc::channel(1);
    let (url, _) = container(move |mut peer| {
        let told = told.clone();
        async move {
            told.send(peer.head().await).await.unwrap();
            peer.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        }
    })
    .await;
    let mut request = post("");
    for (name, value) in [
        ("host", "elsewhere"),
        ("connection", "close, x-named"),
        ("x-named", "1"),
        ("te", "trailers"),
        ("transfer-encoding", "chunked"),
        ("content-length", "77"),
        ("x-kept", "1"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let backend = Backend::new(config(url.clone()));
    backend.send(request, Instant::now() + PATIENCE).await.unwrap();
    let head = heads.recv().await.unwrap();
    let host = url.to_string().replace("http://", "host: ");
    assert!(head.contains(&host) && head.contains("x-kept: 1"), "{head}");
    for gone in ["elsewhere", "x-named", "te:", "chunked", "content-length: 77"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
}

#[tokio::test]
async fn an_answer_above_its_limit_is_refused_as_soon_as_that_is_known() {
    let long = "y".repeat(2 * 1024 * 1024);
    for head in ["content-length: 2097152\r\n", ""] {
        let long = long.clone();
        let (url, _) = container(move |mut peer| {
            let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n{long}");
            async move {
                peer.head().await;
                peer.say(&answer).await;
            }
        })
        .await;
        let backend = Backend::new(config(url));
        let error = ask(&backend).await.unwrap_err();
        assert!(matches!(error, Error::AnswerTooLarge { .. }), "{error}");
        assert_eq!(backend.in_flight(), 0);
    }
}
