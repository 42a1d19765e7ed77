//! What operators see of containers.

use std::process::Command;

use roundhouse_tests::python;
use roundhouse_tests::server::{Server, binary};
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::{Containers, closed_port, script, start};

fn run(args: &[&str], server: &Server) -> String {
    let output = Command::new(binary()).args(args).args(["--url", &server.admin]).output().unwrap();
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn row(server: &Server, name: &str) -> Value {
    let shown = server.admin_get("/admin/v1/residency").await.json();
    let rows = shown["containers"].as_array().unwrap();
    rows.iter().find(|row| row["name"] == name).unwrap().clone()
}

/// An endpoint of one container that answers, one at which nobody listens, and one that we start.
async fn mixed(site: &Site, containers: &Containers) -> (Server, TcpSocket) {
    let (port, held) = closed_port();
    let endpoint = containers.endpoint("mixed", "direct", &["fine"], "health_every = \"20ms\"");
    let closed = format!(
        "[[endpoint.container]]\nhostname = \"closed\"\nurl = \"http://127.0.0.1:{port}\"\n\
         health_every = \"20ms\"\n"
    );
    let own = format!(
        "[[endpoint.container]]\nhostname = \"own\"\ncommand = {}\n",
        json!([python::interpreter(), script()])
    );
    (start(site, &format!("{endpoint}{closed}{own}"), &[]).await, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_how_each_container_stands() {
    let site = Site::default();
    let containers = Containers::start(&site).await;
    let (server, _closed) = mixed(&site, &containers).await;
    until("the one that we start is healthy", || async {
        row(&server, "own").await["state"] == "healthy"
    })
    .await;
    until("one answers", || async { row(&server, "fine").await["state"] == "healthy" }).await;
    until("the other is left alone", || async {
        row(&server, "closed").await["state"] == "left_alone"
    })
    .await;
    let closed = row(&server, "closed").await;
    assert!(closed["failure"].as_str().unwrap().contains("no connection"), "{closed}");
    assert!(closed["failed_at"].as_str().unwrap().ends_with('Z'), "{closed}");
    let fine = row(&server, "fine").await;
    let address = format!("http://127.0.0.1:{}/fine", containers.port);
    assert_eq!((&fine["address"], &fine["in_flight"]), (&json!(address), &json!(0)), "{fine}");
    assert_eq!((&fine["kind"], &fine["endpoint"]), (&json!("container"), &json!("mixed")));

    // One that is killed is started again, and tells so.
    let own = row(&server, "own").await;
    let process = own["pid"].as_u64().unwrap().to_string();
    assert!(Command::new("kill").args(["-9", &process]).status().unwrap().success());
    until("it is started again", || async {
        let own = row(&server, "own").await;
        own["restarts"] == 1 && own["state"] == "healthy" && own["pid"].is_u64()
    })
    .await;
    let own = row(&server, "own").await;
    assert_ne!(own["pid"].as_u64().unwrap().to_string(), process);
    assert!(own["failure"].as_str().unwrap().contains("signal 9"), "{own}");

    // The same for those who type, and for programs.
    let told = tokio::task::block_in_place(|| {
        let listed = run(&["models", "--endpoint", "mixed"], &server);
        let json: Value = serde_json::from_str(&run(&["models", "--json"], &server)).unwrap();
        let why = run(&["explain", "mixed:closed"], &server);
        let top = run(&["top", "--once"], &server);
        (listed, json, why, top)
    });
    let (listed, listed_json, why, top) = told;
    let line = |text: &str, name: &str| {
        text.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned()
    };
    assert!(line(&listed, "closed").contains("left alone"), "{listed}");
    assert!(line(&listed, "fine").contains(&address), "{listed}");
    let names: Vec<&Value> =
        listed_json["models"].as_array().unwrap().iter().map(|row| &row["target"]).collect();
    assert_eq!(names, ["closed", "fine", "own"]);
    assert_eq!(listed_json["models"][2]["container"]["restarts"], 1);
    assert!(why.contains("left alone") && why.contains("no connection"), "{why}");
    assert!(line(&top, "mixed:closed").contains("left alone"), "{top}");
    assert!(line(&top, "mixed:own").contains("healthy"), "{top}");

    // What is loaded nowhere cannot be loaded, and says why.
    let answer = server.admin_post("load", "mixed", "fine").await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.body.contains("has containers, and loads no models"), "{}", answer.body);
    let answer = server.admin_get("/admin/v1/models?endpoint=none").await;
    assert!(answer.body.contains("there are: mixed"), "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_and_check_config_tell_what_containers_miss() {
    let site = Site::default();
    let containers = Containers::start(&site).await;
    let config = site.at("roundhouse.toml");
    let endpoint = containers.endpoint("mixed", "direct", &["fine"], "");
    let (closed, _held) = closed_port();
    let text = format!(
        "version = 1\n[memory]\nbudget = \"64MiB\"\n[listen]\nadmin = \"127.0.0.1:{}\"\n\
         data = \"127.0.0.1:{}\"\n{endpoint}\
         [[endpoint.container]]\nhostname = \"closed\"\nurl = \"http://127.0.0.1:{closed}\"\n\
         [[endpoint.container]]\nhostname = \"own\"\ncommand = [\"no-such-program\"]\n\
         [[endpoint]]\nname = \"engines\"\n[[endpoint.engine]]\ntarget = \"gpt/*\"\n\
         command = [\"sh\", \"{{port}}\"]\nmemory = \"1MiB\"\nidle_ttl = \"90s\"\n\
         [[endpoint.mount]]\nuri = \"file:///tmp/\"\n",
        closed_port().0,
        closed_port().0,
    );
    std::fs::write(&config, text).unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(binary()).args(args).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let config = config.to_str().unwrap();
    let (is_fine, told) = run(&["check-config", config]);
    assert!(is_fine, "{told}");
    let engine = "engines starts sh for gpt/*, 1.0 MiB each, unused for 90s at most";
    assert!(told.contains(engine), "{told}");
    let missing = "endpoint[0].container[2].command: no-such-program is not found in PATH";
    assert!(told.contains(&format!("not on this machine: {missing}")), "{told}");
    let (is_fine, told) = run(&["doctor", "--config", config]);
    assert!(!is_fine && told.contains(&format!("BAD  {missing}")), "{told}");
    assert!(told.contains("ok   container mixed:fine: answers /ping"), "{told}");
    assert!(told.contains("odd  container mixed:closed: no connection"), "{told}");
}
