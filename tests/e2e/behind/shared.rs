//! What containers are asked by several tenants, by TLS, and what is counted of their answers.

use std::time::Duration;

use roundhouse_tests::server::{Answer, Server, root};
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};

use super::{Containers, start};

const CONTAINER: &str = "x-amzn-sagemaker-target-container-hostname";
const TENANTS: &str = "[auth]\nproxy_networks = \"127.0.0.1/32\"\n\
                       [[tenant]]\nname = \"a\"\ninvoke = [\"one:**\"]\n\
                       [[tenant]]\nname = \"b\"\ninvoke = [\"one:**\"]\n";

fn ask(
    server: &Server,
    (tenant, container): (&str, &str),
    body: &Value,
) -> impl Future<Output = Answer> + use<> {
    let url = format!("{}/endpoints/one/invocations", server.data);
    let request = server.http().post(url).header(CONTAINER, container);
    let request = request.header("x-roundhouse-tenant", tenant).body(body.to_string());
    async move {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let body = response.text().await.unwrap();
        Answer { status, headers: Default::default(), body }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_flood_at_a_container_leaves_places_for_another() {
    let site = Site::default();
    let containers = Containers::start(&site).await;
    let endpoint = containers.endpoint("one", "direct", &["stream", "next"], "max_requests = 4");
    let server = start(&site, &format!("{TENANTS}{endpoint}"), &[]).await;
    // Each holds its place until it is told its turn.
    let flood: Vec<_> = (0..3)
        .map(|turn| {
            let body = json!({"turn": turn, "pieces": 2});
            tokio::spawn(ask(&server, ("a", "stream"), &body))
        })
        .collect();
    let in_flight = "roundhouse_containers_in_flight_requests";
    until("the flood is there", || async { server.metric(in_flight).await == 3.0 }).await;
    let refused = ask(&server, ("a", "stream"), &json!({"turn": 9, "pieces": 1})).await;
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert!(refused.body.contains("is for other tenants"), "{}", refused.body);
    let other = ask(&server, ("b", "stream"), &json!({"turn": 8, "pieces": 1})).await;
    assert_eq!(other.status, 200, "{}", other.body);
    for turn in 0..3 {
        let told = ask(&server, ("b", "next"), &json!({"turn": turn})).await;
        assert_eq!(told.status, 200, "{}", told.body);
    }
    for one in flood {
        assert_eq!(one.await.unwrap().status, 200);
    }
    let again = ask(&server, ("a", "stream"), &json!({"turn": 7, "pieces": 1})).await;
    assert_eq!(again.status, 200, "{}", again.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_a_container_tells_are_logged_and_count_for_its_tenants_quota() {
    let site = Site::default();
    let containers = Containers::start(&site).await;
    let endpoint = containers.endpoint("one", "direct", &["llm", "plain"], "");
    let limit = "tokens_out_per_minute = 1000\n";
    let tenants = TENANTS.replacen("name = \"a\"\n", &format!("name = \"a\"\n{limit}"), 1);
    let server = start(&site, &format!("{tenants}{endpoint}"), &[]).await;
    let body = |stream: bool| json!({"prompt": 5, "completion": 7, "stream": stream});
    for stream in [false, true] {
        assert_eq!(ask(&server, ("b", "llm"), &body(stream)).await.status, 200);
    }
    assert_eq!(ask(&server, ("b", "plain"), &json!({})).await.status, 200);
    let log = site.at("access.log");
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&log).unwrap();
        // The last line may be on its way.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    until("all is logged", || async { lines().len() >= 3 }).await;
    let counts: Vec<_> =
        lines().iter().map(|it| (it["tokens_in"].clone(), it["tokens_out"].clone())).collect();
    assert_eq!(counts, [(json!(5), json!(7)), (json!(5), json!(7)), (Value::Null, Value::Null)]);

    // What it took is what its tenant has used: 256 of 1000 are guessed before, 5000 are told after.
    let much = json!({"prompt": 5, "completion": 5000});
    assert_eq!(ask(&server, ("a", "llm"), &much).await.status, 200);
    let refused = ask(&server, ("a", "llm"), &much).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(ask(&server, ("b", "llm"), &much).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_by_tls_is_believed_by_the_authority_of_its_own_file_alone() {
    let site = Site::default();
    let folder = root().join("src/server/tests/tls");
    let (certificate, key) = (folder.join("server.crt"), folder.join("server.key"));
    let containers = Containers::start_with(&site, &[&certificate, &key]).await;
    let endpoint = |name: &str, more: &str| {
        let endpoint = containers.endpoint(name, "direct", &["echo"], more);
        endpoint.replace("http://", "https://")
    };
    let by = |file: &str| format!("ca_file = \"{}\"", folder.join(file).display());
    let endpoints = [
        endpoint("one", &by("ca.crt")),
        endpoint("stranger", &by("stranger.crt")),
        endpoint("nobody", ""),
    ];
    let server = start(&site, &endpoints.concat(), &[]).await;
    let invoke = async |endpoint: &str| {
        let url = format!("{}/endpoints/{endpoint}/invocations", server.data);
        let request = server.http().post(url).header(CONTAINER, "echo").body("hello");
        server.send(request.timeout(Duration::from_secs(30))).await
    };
    let answer = invoke("one").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()["body"], "hello");
    for endpoint in ["stranger", "nobody"] {
        let answer = invoke(endpoint).await;
        assert!([424, 503].contains(&answer.status), "{endpoint}: {}", answer.body);
    }
    let shown = server.admin_get("/admin/v1/residency").await.json();
    let row = shown["containers"].as_array().unwrap().iter();
    let row = row.clone().find(|row| row["endpoint"] == "nobody").unwrap();
    let failure = row["failure"].as_str().unwrap();
    assert!(failure.contains("certificate"), "{failure}");
}
