//! Requests whose callers do not wait, with a store that speaks S3: real clients, `kill -9`, those who
//! are told, and tenants.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::processes::{kill_after, random};
use roundhouse_tests::python;
use roundhouse_tests::s3::{ACCESS_KEY, S3, SECRET_KEY};
use roundhouse_tests::server::{Answer, Server, binary};
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const TARGET: &str = "team/sort";
const INPUT: &str = r#"{"inputs":"hello"}"#;
const PLACES: &str = "inputs = [\"s3://models/async/in/\"]\noutput = \"s3://models/async/out/\"\n";

/// A site with one model, whose answers go to the store.
fn site(more: &str) -> Site {
    let site = Site::default();
    site.put(TARGET, &signed_classifier(TARGET, 1, 100));
    site.configure("", "", &format!("[endpoint.async]\n{PLACES}{more}"));
    site
}

async fn start(site: &Site, store: &S3) -> Server {
    let config = site.at("roundhouse.toml");
    let env = S3::env(store.address());
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Server::start(&["serve", "--config", config.to_str().unwrap()], &env).await
}

/// Sends a request; `None` where the server died over it.
async fn ask(server: &Server, headers: &[(&str, &str)], body: &str) -> Option<Answer> {
    let url = format!("{}/endpoints/default/async-invocations", server.data);
    let mut request = server.http().post(url).timeout(Duration::from_secs(60));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.body(body.to_owned()).send().await.ok()?;
    let status = response.status().as_u16();
    let headers = response.headers().iter();
    let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()));
    let headers = headers.collect();
    let body = response.text().await.ok()?;
    Some(Answer { status, headers, body })
}

fn named(target: &str) -> String {
    format!("target-model={target}")
}

/// The keys of a taken request's answer and failure.
fn keys(taken: &Answer) -> (String, String) {
    let key = |name: &str| taken.header(name).strip_prefix("s3://models/").unwrap().to_owned();
    (key("x-amzn-sagemaker-outputlocation"), key("x-amzn-sagemaker-failurelocation"))
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_invokes_without_waiting() {
    let store = S3::start().await;
    let site = site("");
    let server = start(&site, &store).await;
    let (data, label) = (server.data.clone(), signature(TARGET, 1));
    let at = format!("http://{}", store.address());
    tokio::task::spawn_blocking(move || {
        let args: [&str; 7] = [&data, &at, "default", TARGET, &label, ACCESS_KEY, SECRET_KEY];
        python::client("boto3_async.py", &args);
    })
    .await
    .unwrap();
    // A failure is counted right behind what was processed.
    until("all that was taken is done, and half of it failed", || async {
        let failures = server.metric("roundhouse_async_failures_total").await;
        (server.metric("roundhouse_async_processed_total").await, failures) == (6.0, 3.0)
    })
    .await;
    assert_eq!(server.metric("roundhouse_async_download_failures_total").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_accepted_request_ends_in_one_object_whenever_the_process_dies() {
    const ROUNDS: u64 = 8;
    const ENOUGH: usize = 20;
    let store = S3::start().await;
    let site = site("failure = \"s3://models/async/bad/\"\nmax_concurrent = 3\n");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut accepted: Vec<(String, String, bool)> = Vec::new();
    // More of them where the machine is so busy that too few are accepted before the end.
    for round in 0..8 * ROUNDS {
        if round >= ROUNDS && accepted.len() >= ENOUGH {
            break;
        }
        // What answered in one round fails in the next, and the other way round: a request that is
        // decided twice would leave both objects.
        match round % 2 {
            0 => site.put("team/fickle", &signed_classifier("team/fickle", 1, 100)),
            _ => site.delete("team/fickle"),
        }
        store.put("async/in/one", INPUT.into()).await;
        let mut server = start(&site, &store).await;
        let by = [(TARGET, true), ("team/fickle", false), ("not/there", false)];
        let asking = async {
            let mut taken = Vec::new();
            for number in 0..40_usize {
                let (target, must_answer) = by[number % by.len()];
                let attributes = named(target);
                let mut headers = vec![("x-amzn-sagemaker-custom-attributes", attributes.as_str())];
                if number % 2 == 1 {
                    let location = "s3://models/async/in/one";
                    headers.push(("x-amzn-sagemaker-inputlocation", location));
                }
                let body = if number % 2 == 1 { "" } else { INPUT };
                let Some(answer) = ask(&server, &headers, body).await else { break };
                assert_eq!(answer.status, 202, "{}", answer.body);
                taken.push((answer, must_answer));
            }
            taken
        };
        let dies_after = Duration::from_millis(20 + random(&mut state) % 600);
        let killer = kill_after(server.pid(), dies_after);
        for (answer, must_answer) in asking.await {
            let (output, failure) = keys(&answer);
            accepted.push((output, failure, must_answer));
        }
        killer.await.unwrap();
        server.kill();
    }
    assert!(accepted.len() >= ENOUGH, "only {} requests were accepted", accepted.len());
    let server = start(&site, &store).await;
    let left = || async {
        let folder = site.at("cache/async");
        std::fs::read_dir(folder).unwrap().count() > 1
    };
    until("the queue is empty", || async { !left().await }).await;
    let found: BTreeSet<String> = store.keys("async/").await.into_iter().collect();
    for (output, failure, must_answer) in &accepted {
        let (answered, failed) = (found.contains(output), found.contains(failure));
        assert!(answered != failed, "{output}: {answered}, {failure}: {failed}");
        if *must_answer {
            let (kind, body) = store.get(output).await;
            assert_eq!(kind.as_deref(), Some("application/json"));
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body[0]["label"], signature(TARGET, 1), "{output}");
        }
    }
    drop(server);
}

/// Takes whatever is sent, and keeps the bodies.
async fn sink() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let kept = kept.clone();
            tokio::spawn(async move {
                let mut text = Vec::new();
                while !text.ends_with(b"}") {
                    if socket.read_buf(&mut text).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                kept.lock().unwrap().push(String::from_utf8_lossy(&text).into_owned());
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = socket.write_all(answer.as_bytes()).await;
            });
        }
    });
    (port, seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_are_listed_are_told_in_the_form_of_sns() {
    let (port, seen) = sink().await;
    let store = S3::start().await;
    let site = site(&format!(
        "region = \"us-east-1\"\nwebhook_networks = [\"127.0.0.0/8\"]\n\
         success_url = \"http://127.0.0.1:{port}/done\"\n\
         error_url = \"http://127.0.0.1:{port}/failed\"\n"
    ));
    let server = start(&site, &store).await;
    for target in [TARGET, "not/there"] {
        let attributes = named(target);
        let headers = [("x-amzn-sagemaker-custom-attributes", attributes.as_str())];
        assert_eq!(ask(&server, &headers, INPUT).await.unwrap().status, 202);
    }
    until("both were told", || async { seen.lock().unwrap().len() == 2 }).await;
    let mut told = seen.lock().unwrap().clone();
    told.sort_unstable();
    for (text, path, status) in [(&told[0], "/done", "Completed"), (&told[1], "/failed", "Failed")]
    {
        assert!(text.starts_with(&format!("POST {path} HTTP/1.1")), "{text}");
        assert!(text.contains("x-amz-sns-message-type: Notification"), "{text}");
        let body = text.split_once("\r\n\r\n").unwrap().1;
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["Type"], "Notification");
        let message: Value = serde_json::from_str(body["Message"].as_str().unwrap()).unwrap();
        assert_eq!(message["invocationStatus"], status, "{message}");
        assert_eq!(message["eventSource"], "aws:sagemaker");
        assert_eq!(message["awsRegion"], "us-east-1");
        assert_eq!(message["requestParameters"]["endpointName"], "default");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_of_sns_are_told_by_requests_that_aws_own_code_signs_alike() {
    let mut stand_in = python::started("sns_stand_in.py", &[ACCESS_KEY, SECRET_KEY, "eu-west-1"]);
    let mut lines = BufReader::new(stand_in.stdout.take().unwrap()).lines();
    let port = lines.next().unwrap().unwrap();
    let store = S3::start().await;
    let topic = |name: &str| format!("arn:aws:sns:eu-west-1:123456789012:{name}");
    let site = site(&format!(
        "sns_endpoint_url = \"http://127.0.0.1:{port}/\"\nsuccess_topic = \"{}\"\n\
         error_topic = \"{}\"\n\
         include_inference_response_in = [\"SUCCESS_NOTIFICATION_TOPIC\", \
         \"ERROR_NOTIFICATION_TOPIC\"]\n",
        topic("done"),
        topic("failed")
    ));
    let server = start(&site, &store).await;
    let mut told = Vec::new();
    for target in [TARGET, "not/there"] {
        let attributes = named(target);
        let headers = [("x-amzn-sagemaker-custom-attributes", attributes.as_str())];
        let taken = ask(&server, &headers, INPUT).await.unwrap();
        assert_eq!(taken.status, 202);
        let line = tokio::task::block_in_place(|| lines.next().unwrap().unwrap());
        told.push((serde_json::from_str::<Value>(&line).unwrap(), keys(&taken)));
    }
    for ((published, (output, failure)), (name, status)) in
        told.iter().zip([("done", "Completed"), ("failed", "Failed")])
    {
        assert_eq!(
            (&published["Action"], &published["Version"]),
            (&json!("Publish"), &json!("2010-03-31"))
        );
        assert_eq!(published["TopicArn"], topic(name));
        let message: Value = serde_json::from_str(published["Message"].as_str().unwrap()).unwrap();
        assert_eq!(
            (&message["invocationStatus"], &message["eventVersion"]),
            (&json!(status), &json!("1.0"))
        );
        assert_eq!(message["requestParameters"]["endpointName"], "default");
        // What the object holds stands in it.
        let told = message["responseBody"]["content"].as_str().unwrap();
        let (_, held) = store.get(if name == "done" { output } else { failure }).await;
        assert_eq!(BASE64_STANDARD.decode(told).unwrap(), held);
    }
    // What was refused as too much was told again, and counts as no failure.
    assert_eq!(server.metric("roundhouse_async_notification_failures_total").await, 0.0);
    stand_in.kill().unwrap();
    stand_in.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_inside_is_told_who_is_not_listed() {
    let (port, seen) = sink().await;
    let store = S3::start().await;
    // By its address and by a name that leads there; neither is asked twice.
    let site = site(&format!(
        "success_url = \"https://127.0.0.1:{port}/\"\nerror_url = \"https://localhost:{port}/\"\n"
    ));
    let server = start(&site, &store).await;
    for target in [TARGET, "not/there"] {
        let attributes = named(target);
        let headers = [("x-amzn-sagemaker-custom-attributes", attributes.as_str())];
        let taken = ask(&server, &headers, INPUT).await.unwrap();
        assert_eq!(taken.status, 202, "{}", taken.body);
    }
    until("both notices were given up", || async {
        server.metric("roundhouse_async_notification_failures_total").await == 2.0
    })
    .await;
    assert!(seen.lock().unwrap().is_empty());
    assert_eq!(store.keys("async/").await.len(), 2, "the objects are there all the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_read_and_write_below_their_own_names() {
    let store = S3::start().await;
    let site = Site::default();
    site.put("acme/sort", &signed_classifier("acme/sort", 1, 100));
    let file = site.at("keys.json");
    let key = |tenant: &str| {
        let args = ["keys", "create", "--tenant", tenant, "--json", "--keys"];
        let output = Command::new(binary()).args(args).arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let made: Value = serde_json::from_slice(&output.stdout).unwrap();
        format!("Bearer {}", made["key"].as_str().unwrap())
    };
    let (acme, evil) = (key("acme"), key("evil"));
    let places = "[endpoint.async]\ninputs = [\"s3://models/in/{tenant}/\"]\n\
                  output = \"s3://models/out/{tenant}/\"\n";
    site.configure(&format!("[auth]\nkeys = \"{}\"\n", file.display()), "", places);
    let server = start(&site, &store).await;
    for tenant in ["acme", "evil"] {
        store.put(&format!("in/{tenant}/x"), INPUT.into()).await;
    }
    let send = |key: &str, target: &str, location: &str| {
        let (key, attributes) = (key.to_owned(), named(target));
        let location = format!("s3://models/{location}");
        let server = &server;
        async move {
            let headers = [
                ("authorization", key.as_str()),
                ("x-amzn-sagemaker-custom-attributes", attributes.as_str()),
                ("x-amzn-sagemaker-inputlocation", location.as_str()),
            ];
            ask(server, &headers, "").await.unwrap()
        }
    };
    let taken = send(&acme, "acme/sort", "in/acme/x").await;
    assert_eq!(taken.status, 202, "{}", taken.body);
    let (output, _) = keys(&taken);
    assert!(output.starts_with("out/acme/"), "{output}");
    for (key, target, location) in [
        (&evil, "evil/sort", "in/acme/x"),
        (&evil, "evil/sort", "in/evil/../acme/x"),
        (&evil, "evil/sort", "out/acme/x"),
        (&evil, "evil/sort", "in/{tenant}/x"),
        (&evil, "acme/sort", "in/evil/x"),
    ] {
        let refused = send(key, target, location).await;
        assert_eq!(refused.status, 400, "{target} {location}: {}", refused.body);
    }
    until("the answer is there", || async { store.keys("out/").await == [output.clone()] }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_when_the_server_stops_runs_after_the_next_start() {
    let store = S3::start().await;
    // The store is away: what is decided cannot be written.
    let site = site("endpoint_url = \"http://127.0.0.1:1\"\n");
    let mut server = start(&site, &store).await;
    let attributes = named(TARGET);
    let headers = [("x-amzn-sagemaker-custom-attributes", attributes.as_str())];
    let taken = ask(&server, &headers, INPUT).await.unwrap();
    assert_eq!(taken.status, 202, "{}", taken.body);
    server.terminate();
    let status = server.wait(Duration::from_secs(90)).await.expect("it drains");
    assert!(status.success(), "{status}");
    site.configure("", "", &format!("[endpoint.async]\n{PLACES}"));
    let _server = start(&site, &store).await;
    let (output, _) = keys(&taken);
    until("the answer is there", || async { store.keys("async/").await == [output.clone()] }).await;
}
