//! What strangers may send to the data port: each is refused or answered in bounded time and memory,
//! and others are served beside.

use std::time::Duration;

use roundhouse_tests::models::signed_classifier;
use roundhouse_tests::server::Server;
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than any limit of the server, on the slowest machine.
const DEADLINE: Duration = Duration::from_secs(150);
/// What one attack may cost at most; it is given back after.
const MEMORY: u64 = 96 << 20;

async fn site() -> (Site, Server) {
    site_with("").await
}

async fn site_with(sections: &str) -> (Site, Server) {
    let site = Site::default();
    site.put("t/m", &signed_classifier("t/m", 1, 500));
    // Outside of the store, and a model that would run.
    site.put("../secret", &signed_classifier("secret", 1, 500));
    site.configure(sections, "", "");
    let server = site.start().await;
    served(&server).await;
    (site, server)
}

/// A guest like any other.
async fn served(server: &Server) {
    // Over a connection of its own: one that a client keeps may be made to leave just now.
    let body = r#"{"inputs": "hello"}"#;
    let head = "POST /endpoints/default/invocations HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                x-amzn-sagemaker-target-model: t/m\r\ncontent-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    let answer = exchange(server, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.data.trim_start_matches("http://")).await.unwrap()
}

/// All that comes until the server closes. A reset after an answer is a close too.
async fn rest(socket: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match timeout(DEADLINE, socket.read(&mut piece)).await.expect("the server closes in time") {
            Ok(0) | Err(_) => return String::from_utf8_lossy(&all).into_owned(),
            Ok(count) => all.extend_from_slice(&piece[..count]),
        }
    }
}

/// Sends, as far as the server takes it, and reads what it says.
async fn exchange(server: &Server, bytes: &[u8]) -> String {
    let mut socket = connect(server).await;
    let (mut reading, mut writing) = socket.split();
    let mut said = Vec::new();
    let sending = async {
        // A server that has refused reads no more.
        let _ = writing.write_all(bytes).await;
    };
    let hearing = async {
        let mut piece = [0; 4096];
        loop {
            match timeout(DEADLINE, reading.read(&mut piece)).await.expect("it closes in time") {
                Ok(0) | Err(_) => return,
                Ok(count) => said.extend_from_slice(&piece[..count]),
            }
        }
    };
    tokio::join!(sending, hearing);
    String::from_utf8_lossy(&said).into_owned()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

/// Anonymous memory of the server's process.
fn memory(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

const HEAD: &str = "POST /invocations HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                    content-type: application/json\r\nx-amzn-sagemaker-target-model: t/m\r\n";

fn chunked(chunks: &str) -> String {
    format!("{HEAD}transfer-encoding: chunked\r\n\r\n{chunks}")
}

fn with_length(body: &str) -> String {
    format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sends_by_the_byte_is_let_go_and_holds_up_nobody() {
    let (_site, server) = site().await;
    let mut slow = Vec::new();
    for index in 0..60 {
        let mut socket = connect(&server).await;
        let start: &[u8] = match index % 3 {
            0 => b"POST /invo",
            1 => b"POST /invocations HTTP/1.1\r\nhost: localhost\r\nx-a: b",
            _ => {
                b"POST /invocations HTTP/1.1\r\nhost: localhost\r\nx-amzn-sagemaker-target-model: t/m\r\n\
                   content-length: 1000000\r\n\r\n{"
            }
        };
        socket.write_all(start).await.unwrap();
        slow.push(tokio::spawn(async move {
            let (mut reading, mut writing) = socket.into_split();
            let dribble = tokio::spawn(async move {
                while writing.write_all(b"a").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            });
            let mut said = Vec::new();
            timeout(DEADLINE, reading.read_to_end(&mut said)).await.expect("it is let go").ok();
            dribble.abort();
            (index % 3, String::from_utf8_lossy(&said).into_owned())
        }));
    }
    for _ in 0..20 {
        served(&server).await;
    }
    for guest in slow {
        let (kind, said) = guest.await.unwrap();
        match kind {
            2 => assert_eq!(status(&said), "408", "{said}"),
            _ => assert!(said.is_empty() || status(&said) == "408", "{said}"),
        }
        if kind == 0 {
            served(&server).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_in_a_million_pieces_is_refused_before_its_end() {
    let (_site, server) = site().await;
    let before = memory(&server);
    let answer = exchange(&server, chunked(&"1\r\n \r\n".repeat(1_000_000)).as_bytes()).await;
    assert!(["400", "413", "none"].contains(&status(&answer)), "{answer}");
    assert!(memory(&server) < before + MEMORY);
    // An endless size of a chunk, and endless extensions of one.
    for chunk in ["f".repeat(100_000), format!("1;{}", "x".repeat(1_000_000))] {
        let answer = exchange(&server, chunked(&chunk).as_bytes()).await;
        assert!(["400", "none"].contains(&status(&answer)), "{answer}");
    }
    served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_without_end_are_refused() {
    let (_site, server) = site().await;
    let before = memory(&server);
    let many: String = (0..100_000).map(|number| format!("x-{number}: y\r\n")).collect();
    let long = format!("x-long: {}\r\n", "y".repeat(10_000_000));
    let name = format!("{}: y\r\n", "x".repeat(1_000_000));
    for headers in [&many, &long, &name] {
        let request = format!("POST /invocations HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        let answer = exchange(&server, request.as_bytes()).await;
        assert!(["431", "400", "none"].contains(&status(&answer)), "{answer}");
    }
    let path = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(1_000_000));
    let answer = exchange(&server, path.as_bytes()).await;
    assert!(["414", "431", "400", "none"].contains(&status(&answer)), "{answer}");
    assert!(memory(&server) < before + MEMORY);
    served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_bodies_are_refused_unread() {
    let (_site, server) = site().await;
    let before = memory(&server);
    // A quarter of a gibibyte of spaces in some hundred kilobytes.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..256 {
        std::io::Write::write_all(&mut packed, &vec![b' '; 1 << 20]).unwrap();
    }
    let bomb = packed.finish().unwrap();
    for coding in ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x-unknown"] {
        for (path, wanted) in [("/invocations", 415), ("/v1/chat/completions", 415)] {
            let request = server.http().post(format!("{}{path}", server.data));
            let request = request
                .header("x-amzn-sagemaker-target-model", "t/m")
                .header("content-type", "application/json")
                .header("content-encoding", coding)
                .body(bomb.clone());
            let answer = server.send(request).await;
            assert_eq!(answer.status, wanted, "{path} {coding}: {}", answer.body);
        }
    }
    assert!(memory(&server) < before + MEMORY);
    served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_and_wide_json_is_refused() {
    let (_site, server) = site().await;
    let before = memory(&server);
    let deep = |open: &str, close: &str| {
        format!("{{\"inputs\":{}1{}}}", open.repeat(100_000), close.repeat(100_000))
    };
    let wide = format!("{{\"inputs\":[{}1]}}", "1,".repeat(2_900_000));
    let twice = "{\"inputs\":\"a\",\"inputs\":\"b\"}".to_owned();
    for body in [deep("[", "]"), deep("{\"a\":", "}"), deep("[", ""), wide, twice] {
        let answer = exchange(&server, with_length(&body).as_bytes()).await;
        assert_eq!(status(&answer), "400", "{answer}");
    }
    assert!(memory(&server) < before + 4 * MEMORY);
    served(&server).await;
}

/// Ways out of a store, and out of a name.
const TRICKS: [&str; 22] = [
    "../secret",
    "t/../../secret",
    "/../secret",
    "//secret",
    "./../secret",
    "t/..",
    "..",
    ".",
    "..\\secret",
    "t\\..\\..\\secret",
    "%2e%2e/secret",
    "%2e%2e%2fsecret",
    "..%2fsecret",
    "..%252fsecret",
    "....//secret",
    "..;/secret",
    "t/m/../../../secret",
    "file:///etc/passwd",
    "s3://other/secret",
    "\u{ff0e}\u{ff0e}/secret",
    "..\u{2215}secret",
    "t//m",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_name_leads_out_of_the_store_wherever_it_stands() {
    let (_site, server) = site().await;
    let inputs = json!({"inputs": "hello"});
    let chat = |model: &str| json!({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    for trick in TRICKS {
        let mut told = Vec::new();
        let url = |path: &str| format!("{}{path}", server.data);
        let header = |name: &str, value: &str| {
            let value = reqwest::header::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            server.http().post(url("/invocations")).header(name, value).json(&inputs)
        };
        told.push(server.send(header("x-amzn-sagemaker-target-model", trick)).await);
        told.push(server.send(header("x-amzn-sagemaker-adapter-identifier", trick)).await);
        let both = header("x-amzn-sagemaker-adapter-identifier", trick);
        told.push(server.send(both.header("x-amzn-sagemaker-target-model", "t/m")).await);
        let framed = server.http().post(url("/endpoints/default/invocations-response-stream"));
        let custom = format!("target-model={trick}");
        let custom = reqwest::header::HeaderValue::from_bytes(custom.as_bytes()).unwrap();
        let framed = framed.header("x-amzn-sagemaker-custom-attributes", custom).json(&inputs);
        told.push(server.send(framed).await);
        for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"] {
            told.push(server.post(path, chat(trick)).await);
        }
        told.push(server.post("/v1/chat/completions", chat(&format!("default:{trick}"))).await);
        let adapters = json!({"inputs": ["hi"], "adapters": [trick]});
        told.push(server.invoke("default", "t/m", adapters).await);
        for answer in told {
            assert!(
                (400..500).contains(&answer.status),
                "{trick}: {} {}",
                answer.status,
                answer.body
            );
            assert!(!answer.body.contains("secret@1"), "{trick}: {}", answer.body);
            assert!(!answer.body.contains("root:"), "{trick}: {}", answer.body);
        }
        // As it is, for clients put paths right before they send them.
        for path in [
            format!("/endpoints/{trick}/invocations"),
            format!("/v1/models/{trick}"),
            format!("/endpoints/default/../{trick}/invocations"),
        ] {
            let method = if path.starts_with("/v1") { "GET" } else { "POST" };
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            );
            let answer = exchange(&server, request.as_bytes()).await;
            let first: u16 = status(&answer).parse().unwrap_or(0);
            assert!((400..500).contains(&first), "{path}: {answer}");
        }
    }
    for bytes in [&b"t/\0m"[..], b"t/\xff\xfe", b"t/m\x01", b"\xc0\xae\xc0\xae/secret"] {
        let mut request = b"POST /invocations HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
            x-amzn-sagemaker-target-model: "
            .to_vec();
        request.extend_from_slice(bytes);
        request.extend_from_slice(b"\r\ncontent-length: 2\r\n\r\n{}");
        let answer = exchange(&server, &request).await;
        assert_eq!(status(&answer), "400", "{bytes:?}: {answer}");
    }
    served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_one_piece_are_answered_in_their_order() {
    let (_site, server) = site().await;
    let keep = with_length("{\"inputs\":\"a\"}").replace("connection: close\r\n", "");
    let bad = with_length("{").replace("connection: close\r\n", "");
    let last = with_length("{\"inputs\":\"b\"}");
    let answers = exchange(&server, format!("{keep}{bad}{keep}{last}").as_bytes()).await;
    assert_eq!(statuses(&answers), ["200", "400", "200", "200"], "{answers}");
    // A thousand in a row wait for each other, not in memory.
    let before = memory(&server);
    let answers = exchange(&server, (keep.repeat(1000) + &last).as_bytes()).await;
    assert_eq!(statuses(&answers).len(), 1001);
    assert!(statuses(&answers).iter().all(|status| *status == "200"));
    assert!(memory(&server) < before + MEMORY);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_end_can_be_read_in_two_ways_hides_no_other() {
    let (_site, server) = site().await;
    // What a proxy before us took for the body of the first would be a request of its own.
    let hidden = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let start = "POST /ping HTTP/1.1\r\nhost: localhost\r\n";
    let shapes = [
        format!("{start}content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{start}transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{start}content-length: 5\r\ncontent-length: 0\r\n\r\n{hidden}"),
        format!("{start}content-length: 0, 5\r\n\r\n{hidden}"),
        format!("{start}content-length: +0\r\n\r\n{hidden}"),
        format!("{start}content-length: 0x0\r\n\r\n{hidden}"),
        format!("{start}content-length: -1\r\n\r\n{hidden}"),
        format!("{start}content-length : 0\r\n\r\n{hidden}"),
        format!("{start}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{start}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{start}transfer-encoding: identity\r\ncontent-length: 3\r\n\r\nabc{hidden}"),
        format!("{start}transfer-encoding : chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{start}transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n{hidden}"),
        format!("{start}transfer-encoding: chunked\r\n\r\n0;\n\r\n\r\n{hidden}"),
        format!("{start}transfer-encoding: chunked\r\n\r\n-0\r\n\r\n{hidden}"),
        format!("{start}transfer-encoding: chunked\r\n\r\n0x0\r\n\r\n{hidden}"),
        format!(
            "POST /ping HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
    ];
    for shape in shapes {
        let answers = exchange(&server, shape.as_bytes()).await;
        let seen = statuses(&answers);
        assert!(seen.len() <= 1, "a hidden request was answered:\n{shape}\n{answers}");
        assert!(seen.iter().all(|status| status.starts_with('4')), "{shape}\n{answers}");
    }
    served(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room_and_busy_ones_stay() {
    let (_site, server) = site_with("[listen]\nmax_connections = 32").await;
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    let before = descriptors();
    let mut idle = Vec::new();
    for index in 0..400 {
        let mut socket = connect(&server).await;
        if index % 2 == 0 {
            socket.write_all(b"POST /invocations HTTP/1.1\r\nhos").await.unwrap();
        }
        idle.push(socket);
        if index % 50 == 0 {
            served(&server).await;
        }
    }
    until("the first of them are closed", || async { descriptors() <= before + 48 }).await;
    // The first that came are gone.
    assert_eq!(rest(&mut idle[0]).await, "");
    served(&server).await;
    let pinged: Value = server.get("/ping").await.json();
    assert_eq!(pinged["status"], "Healthy");
}
