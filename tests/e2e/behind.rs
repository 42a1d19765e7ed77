//! Containers behind endpoints: real clients, faults, and a container of our own that dies.

mod operators;
mod shared;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use roundhouse_tests::python;
use roundhouse_tests::server::{Server, root};
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Several containers in one process.
struct Containers {
    process: Child,
    port: u16,
}

impl Containers {
    async fn start(site: &Site) -> Self {
        Self::start_with(site, &[]).await
    }

    /// Further arguments are a certificate and its key.
    async fn start_with(site: &Site, certificate: &[&std::path::Path]) -> Self {
        let file = site.at("port");
        let process = Command::new(python::interpreter())
            .arg(script())
            .arg(&file)
            .args(certificate)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the containers listen", || async { file.exists() }).await;
        let port = std::fs::read_to_string(file).unwrap().parse().unwrap();
        Self { process, port }
    }

    /// An endpoint of some of them.
    fn endpoint(&self, name: &str, mode: &str, hostnames: &[&str], more: &str) -> String {
        let containers: String =
            hostnames.iter().map(|hostname| self.container(hostname, more)).collect();
        format!("[[endpoint]]\nname = \"{name}\"\ncontainers = \"{mode}\"\n{containers}")
    }

    /// One of them.
    fn container(&self, hostname: &str, more: &str) -> String {
        let port = self.port;
        format!(
            "[[endpoint.container]]\nhostname = \"{hostname}\"\n\
             url = \"http://127.0.0.1:{port}/{hostname}\"\n{more}\n"
        )
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn script() -> std::path::PathBuf {
    root().join("tests/clients/a_container.py")
}

async fn start(site: &Site, endpoints: &str, env: &[(&str, &str)]) -> Server {
    let config = site.at("roundhouse.toml");
    let log = site.at("access.log");
    let text = format!("version = 1\n[log]\naccess = \"{}\"\n{endpoints}", log.display());
    std::fs::write(&config, text).unwrap();
    Server::start(&["serve", "--config", config.to_str().unwrap()], env).await
}

/// A port that nobody listens at, and what keeps others from it.
fn closed_port() -> (u16, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap().port(), socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_asks_a_pipeline_fifteen_containers_and_those_that_fail() {
    let site = Site::default();
    let containers = Containers::start(&site).await;
    let names: Vec<String> = (1..=15).map(|at| format!("c{at}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let (port, _closed) = closed_port();
    let closed = format!(
        "[[endpoint.container]]\nhostname = \"closed\"\nurl = \"http://127.0.0.1:{port}\"\n\
         health = false\n"
    );
    let endpoints = [
        containers.endpoint("pipe", "serial", &["split", "double", "sum"], ""),
        containers.endpoint("fifteen", "direct", &names, "health_every = \"1h\""),
        containers.endpoint("streams", "direct", &["stream", "next"], ""),
        containers.endpoint("faults", "direct", &["oom", "lies", "sound"], "")
            + &containers.container("stalls", "response_timeout = \"500ms\"")
            + &closed,
    ];
    let server = start(&site, &endpoints.concat(), &[]).await;
    let data = server.data.clone();
    tokio::task::spawn_blocking(move || python::client("boto3_containers.py", &[&data]))
        .await
        .unwrap();
    let in_flight = "roundhouse_containers_in_flight_requests";
    until("no request is left", || async { server.metric(in_flight).await == 0.0 }).await;
    assert!(server.metric_with("roundhouse_containers_cut_answers_total", "cut").await >= 3.0);
    let of = |name: &str| {
        let log = std::fs::read_to_string(site.at("access.log")).unwrap();
        // The last line may be on its way.
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["container"] == name).count()
    };
    until("all is logged", || async { (of("c7"), of("sum"), of("oom")) == (1, 1, 3) }).await;
    let seconds = "roundhouse_gateway_container_seconds_count";
    assert_eq!(server.metric_with(seconds, "container=\"c7\"").await, 1.0);
    assert!(server.metric_with(seconds, "endpoint=\"pipe\"").await >= 3.0, "each step is timed");
    assert!(server.metric_with(seconds, "container=\"stalls\"").await >= 1.0, "time-outs are, too");
    assert_eq!(server.metric_with(seconds, "container=\"closed\"").await, 0.0, "nobody was asked");
    let listed = server.get("/v1/models").await.json();
    let listed = listed["data"].as_array().unwrap();
    assert!(listed.iter().any(|model| model["id"] == "fifteen:c7"), "{listed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_we_start_comes_back_when_it_is_killed_and_ends_with_us() {
    let site = Site::default();
    let endpoints = format!(
        "[[endpoint]]\nname = \"own\"\n[[endpoint.container]]\nhostname = \"own\"\n\
         command = \"{}\"\nargs = [\"{}\"]\nenv = {{ TOKEN = \"at-{{port}}\" }}\n",
        python::interpreter().display(),
        script().display()
    );
    let secret = [("AWS_SECRET_ACCESS_KEY", "not for containers")];
    let mut server = start(&site, &endpoints, &secret).await;
    let ask = || async { server.post("/endpoints/own/invocations", json!({"asked": 1})).await };
    // It is waited for while it starts.
    let first = ask().await;
    assert_eq!(first.status, 200, "{}", first.body);
    let first = first.json();
    assert!(first["token"].as_str().unwrap().starts_with("at-"), "{first}");
    assert_eq!(first["secret"], Value::Null);
    let process = |said: &Value| said["process"].as_u64().unwrap().to_string();
    let killed = Command::new("kill").args(["-9", &process(&first)]).status().unwrap();
    assert!(killed.success());
    let mut second = Value::Null;
    for _ in 0..600 {
        let answer = ask().await;
        if answer.status == 200 && answer.json()["process"] != first["process"] {
            second = answer.json();
            break;
        }
        assert!([424, 429, 503].contains(&answer.status), "{}", answer.body);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(second, Value::Null, "it did not come back");
    assert_eq!(server.metric_with("roundhouse_containers_ended_total", "died").await, 1.0);
    assert_eq!(server.metric("roundhouse_containers_started_total").await, 2.0);
    server.terminate();
    assert!(server.wait(Duration::from_secs(60)).await.unwrap().success());
    let left = std::path::Path::new("/proc").join(process(&second));
    assert!(!left.exists(), "the container outlived its server");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_change_bring_containers_and_take_them_away() {
    let site = Site::default();
    let containers = Containers::start(&site).await;
    let one = containers.endpoint("one", "direct", &["a"], "");
    let server = start(&site, &one, &[]).await;
    let ask = async |container: &str| {
        let url = format!("{}/endpoints/one/invocations", server.data);
        let request = server.http().post(url).body("hello");
        let request = request.header("x-amzn-sagemaker-target-container-hostname", container);
        server.send(request).await.status
    };
    assert_eq!((ask("a").await, ask("b").await), (200, 400));
    let config = site.at("roundhouse.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let other = containers.endpoint("one", "direct", &["b"], "");
    std::fs::write(&config, text.replace(&one, &other)).unwrap();
    until("the other container answers", || async { ask("b").await == 200 }).await;
    assert_eq!(ask("a").await, 400);
}

/// Answers on one connection until that is closed.
async fn answer_on(mut connection: TcpStream) {
    let mut read = Vec::new();
    while connection.read_buf(&mut read).await.unwrap_or(0) > 0 {
        // Requests of this test are small, and have one end.
        if read.ends_with(b"\"end\"") {
            read.clear();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\"ok\"";
            connection.write_all(answer).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_serves_one_connection_at_a_time_answers_all_clients_in_turn() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            answer_on(connection).await;
        }
    });
    let endpoint = format!(
        "[[endpoint]]\nname = \"slow\"\n[[endpoint.container]]\nhostname = \"one\"\n\
         url = \"http://127.0.0.1:{port}\"\nhealth = false\n"
    );
    let site = Site::default();
    let server = start(&site, &endpoint, &[]).await;
    let url = format!("{}/endpoints/slow/invocations", server.data);
    // Each is a connection of its own, and they are served by all threads.
    let clients: Vec<reqwest::Client> = (0..8).map(|_| reqwest::Client::new()).collect();
    // An idle one is kept for four seconds: where the machine stood still there is another.
    let (mut last, mut pauses) = (Instant::now(), 0);
    for _ in 0..4 {
        for client in &clients {
            let answer = client.post(&url).json(&"end").send().await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), answer.text().await.unwrap()),
                (200, "\"ok\"".into())
            );
            pauses += usize::from(last.elapsed() > Duration::from_secs(3));
            last = Instant::now();
        }
    }
    let connections = connections.load(Ordering::SeqCst);
    assert!((1..=1 + pauses).contains(&connections), "{connections} connections");
}
