//! The live page in a real browser, where `ROUNDHOUSE_CHROMIUM` names one, and the same data on a
//! terminal's page and as a stream.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use roundhouse_tests::models::{decoder, signed_classifier};
use roundhouse_tests::python::{node, node_client};
use roundhouse_tests::server::{Server, binary};
use roundhouse_tests::site::{Site, until};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

/// What would be more than text, were it markup.
const MARKUP: &str = "acme/<img src=x onerror=alert(1)>";

/// Long: the machine may be busy, and a browser slow.
const PATIENCE: Duration = Duration::from_secs(600);

fn site() -> Site {
    let site = Site::default();
    for (version, name) in (1..).zip(["acme/alpha", "acme/beta", "globex/gamma", MARKUP]) {
        site.put(name, &signed_classifier("signed", version, 0));
    }
    let mut broken = decoder(1);
    broken.retain(|(path, _)| path != "tokenizer.json");
    site.put("globex/broken", &broken);
    site.configure("[memory]\nbudget = \"256MiB\"", "", "");
    site
}

/// A server at the admin port of one that has ended, whose pages and clients wait for it. Another
/// test's connection may have the port for a moment.
async fn again(site: &Site, ended: &Server) -> Server {
    let port = |url: &str| url.rsplit_once(':').unwrap().1.to_owned();
    let address = format!("127.0.0.1:{}", port(&ended.admin));
    until("the port is free", || async { std::net::TcpListener::bind(&address).is_ok() }).await;
    let mut command = Command::new(binary());
    command.args(["serve", "--config", site.at("roundhouse.toml").to_str().unwrap()]);
    command.args(["--listen", "127.0.0.1:0", "--admin-listen", &address]);
    Server::spawn(command, &[]).await
}

/// The browser; a test that has none does nothing, and fails where everything must be tested.
fn chromium() -> Option<String> {
    let named = std::env::var("ROUNDHOUSE_CHROMIUM").ok().filter(|path| !path.is_empty());
    let must = named.is_none() && std::env::var_os("CI").is_some();
    assert!(!must, "ROUNDHOUSE_CHROMIUM names no browser");
    named
}

/// What comes next; a process that says nothing any more fails the test.
async fn heard<T>(told: &mut UnboundedReceiver<T>) -> Option<T> {
    timeout(PATIENCE, told.recv()).await.expect("nothing was heard for ten minutes")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_driven_in_a_browser_and_survives_a_restart() {
    let Some(chromium) = chromium() else { return };
    let _alone = crate::HEAVY.lock().await;
    let site = site();
    let mut server = site.start().await;
    let args = ["open", &server.admin, &chromium, "acme/alpha", "globex/broken"];
    let mut script = node("live_page.mjs", &args);
    let mut child = script.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (lines, mut told) = tokio::sync::mpsc::unbounded_channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    let reading = std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            let _ = lines.send(line);
        }
    });
    let mut last = String::new();
    while let Some(line) = heard(&mut told).await {
        match line.as_str() {
            "stop" => {
                server.terminate();
                assert!(server.wait(Duration::from_secs(60)).await.is_some_and(|it| it.success()));
            }
            "start" => server = again(&site, &server).await,
            _ => {}
        }
        last = line;
    }
    reading.join().unwrap();
    let mut wrong = String::new();
    child.stderr.take().unwrap().read_to_string(&mut wrong).unwrap();
    assert!(child.wait().unwrap().success() && last == "done", "{last}: {wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_asks_for_a_key_where_operators_have_one() {
    let Some(chromium) = chromium() else { return };
    let _alone = crate::HEAVY.lock().await;
    let site = site();
    let keys = site.at("keys.json");
    let mut create = Command::new(binary());
    create.args(["keys", "create", "--operator", "--json", "--keys"]).arg(&keys);
    let key: Value = serde_json::from_slice(&create.output().unwrap().stdout).unwrap();
    let auth = format!("[auth]\nkeys = \"{}\"\nanonymous = true", keys.display());
    site.configure(&auth, "", "");
    let server = site.start().await;
    let (admin, key) = (server.admin.clone(), key["key"].as_str().unwrap().to_owned());
    let told = tokio::task::spawn_blocking(move || {
        node_client("live_page.mjs", &["key", &admin, &chromium, &key])
    });
    assert!(told.await.unwrap().ends_with("done\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_how_containers_stand() {
    let Some(chromium) = chromium() else { return };
    let _alone = crate::HEAVY.lock().await;
    let site = Site::default();
    let fine = well().await;
    let endpoint = format!(
        "[[endpoint]]\nname = \"pipe\"\ncontainers = \"direct\"\n\
         [[endpoint.container]]\nhostname = \"fine\"\nurl = \"{fine}\"\n\
         [[endpoint.container]]\nhostname = \"absent\"\nurl = \"http://127.0.0.1:1\"\n\
         health_every = \"20ms\"\n"
    );
    site.configure(&endpoint, "", "");
    let server = site.start().await;
    let admin = server.admin.clone();
    let told = tokio::task::spawn_blocking(move || {
        node_client("live_page.mjs", &["containers", &admin, &chromium, &fine])
    });
    assert!(told.await.unwrap().ends_with("done\n"));
}

/// A container that says that it is well; its address.
async fn well() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = [0; 4096];
                while stream.read(&mut read).await.is_ok_and(|count| count > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn top(server: &Server, args: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(binary());
    let output = command.args(["top", "--url", &server.admin]).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn top_tells_once_what_is_loaded_failed_and_decided() {
    let site = site();
    let mut server = site.start().await;
    for target in ["acme/alpha", MARKUP] {
        assert_eq!(server.admin_post("load", "default", target).await.status, 200);
    }
    assert_ne!(server.admin_post("load", "default", "globex/broken").await.status, 200);
    let (ok, out, err) = top(&server, &["--once"]);
    assert!(ok && err.is_empty(), "{err}");
    let words = ["default:acme/alpha", MARKUP, "failed: ", "cpu [", "of 256.0 MiB", "ready, takes"];
    for words in words {
        assert!(out.contains(words), "'{words}' is not in {out}");
    }
    assert!(!out.contains('\u{1b}'), "no terminal is steered");
    let (ok, out, _) = top(&server, &["--once", "--json"]);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert!(ok && told["state"]["devices"]["cpu"]["residents"].as_object().unwrap().len() == 2);
    assert!(told["decisions"].as_array().unwrap().iter().any(|it| it["action"] == "ready"));
    server.kill();
    let (ok, _, err) = top(&server, &["--once"]);
    assert!(!ok && err.contains("hint: start one"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn top_goes_on_when_its_server_comes_again() {
    let site = site();
    let mut server = site.start().await;
    let mut command = Command::new(binary());
    command.args(["top", "--json", "--url", &server.admin]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let (pages, mut told) = tokio::sync::mpsc::unbounded_channel();
    let out = BufReader::new(child.stdout.take().unwrap());
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            let _ = pages.send(serde_json::from_str::<Value>(&line).unwrap());
        }
    });
    let mut page = heard(&mut told).await.unwrap();
    assert!(page["lost"].is_null() && page["state"]["devices"]["cpu"].is_object(), "{page}");
    server.kill();
    // Pages come on, one a second, also where what is waited for does not.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while page["lost"].is_null() {
        assert!(tokio::time::Instant::now() < deadline, "it was not told: {page}");
        page = heard(&mut told).await.unwrap();
    }
    assert!(page["state"]["devices"]["cpu"].is_object(), "what was known stays: {page}");
    server = again(&site, &server).await;
    while !page["lost"].is_null() {
        page = heard(&mut told).await.unwrap();
    }
    drop(server);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The first event of a name off a stream, with the id that it has.
async fn event(answer: &mut reqwest::Response, name: &str) -> (String, Value) {
    let mut text = String::new();
    loop {
        let chunk = answer.chunk().await.unwrap().expect("the stream goes on");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        let mut frames: Vec<&str> = text.split("\n\n").collect();
        let rest = frames.pop().unwrap_or_default().to_owned();
        for frame in frames {
            let of = |field: &str| {
                frame.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default()
            };
            if of("event: ") == name {
                return (of("id: ").to_owned(), serde_json::from_str(of("data: ")).unwrap());
            }
        }
        text = rest;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_begins_with_the_state_and_tells_a_returning_reader_what_it_missed() {
    let site = site();
    let server = site.start().await;
    let open = async |path: &str, seen: &str| {
        let request = server.http().get(format!("{}{path}", server.admin));
        request.header("last-event-id", seen).send().await.unwrap()
    };
    let mut stream = open("/admin/v1/live", "").await;
    let (_, whole) = event(&mut stream, "state").await;
    assert!(whole["state"]["devices"]["cpu"]["residents"].as_object().unwrap().is_empty());
    assert_eq!(server.admin_post("load", "default", "acme/alpha").await.status, 200);
    let (first, _) = event(&mut stream, "decision").await;
    until("the change is told", || async {
        let mut stream = open("/admin/v1/live", "").await;
        let (_, whole) = event(&mut stream, "state").await;
        whole["state"]["devices"]["cpu"]["residents"].as_object().unwrap().len() == 1
    })
    .await;
    drop(stream);
    let number = |id: &str| id.rsplit_once('-').unwrap().1.parse::<u64>().unwrap();
    for path in ["/admin/v1/live", "/admin/v1/events"] {
        let (next, decision) = event(&mut open(path, &first).await, "decision").await;
        assert_eq!(number(&next), number(&first) + 1, "{path}");
        assert_eq!(decision["target"], "acme/alpha");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_comes_with_a_policy_and_to_our_own_names_only() {
    let site = site();
    let server = site.start().await;
    let page = server.admin_get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    let named = page.body.split('"').filter(|it| it.starts_with("page/"));
    for path in named {
        let file = server.admin_get(&format!("/{path}")).await;
        assert_eq!(
            (file.status, file.header("x-content-type-options")),
            (200, "nosniff"),
            "{path}"
        );
    }
    let foreign = server.http().get(format!("{}/", server.admin)).header("host", "evil.example");
    assert_eq!(server.send(foreign).await.status, 421);
    let unknown = server.admin_get("/page/../admin.rs").await;
    assert_eq!(unknown.status, 404);
}

#[test]
fn completions_are_printed_for_each_shell() {
    for (shell, words) in [("bash", "complete -F"), ("zsh", "#compdef"), ("fish", "complete -c")] {
        let output = Command::new(binary()).args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && script.contains(words), "{shell}");
        assert!(script.contains("roundhouse") && script.contains("explain"), "{shell}");
    }
}
