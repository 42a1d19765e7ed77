//! The whole of SageMaker's runtime operations through the real binary and boto3, and streams that are
//! cut.

use std::path::Path;
use std::time::Duration;

use roundhouse_tests::handlers::{Event, events};
use roundhouse_tests::models::{decoder, signature, signed_classifier};
use roundhouse_tests::python;
use roundhouse_tests::server::Server;
use roundhouse_tests::site::until;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Streams of each test.
const STREAMS: usize = 6;

fn place(folder: &Path, target: &str, files: Vec<(String, Vec<u8>)>) {
    for (path, body) in files {
        let file = folder.join("store").join(target).join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, body).unwrap();
    }
}

/// A server whose file of settings ends with `endpoints`, each over the one store.
async fn serve(folder: &TempDir, settings: &str, endpoints: &[(&str, &str)]) -> Server {
    let at = folder.path().display();
    let mut text = format!(
        "version = 1\n{settings}\n[cache]\ndir = \"{at}/cache\"\n[store]\nsettle = \"0s\"\n\
         [memory]\nbudget = \"512MiB\"\n"
    );
    for (name, keys) in endpoints {
        text.push_str(&format!(
            "[[endpoint]]\nname = \"{name}\"\n{keys}\n[[endpoint.mount]]\nuri = \"file://{at}/store/\"\n"
        ));
    }
    let file = folder.path().join("roundhouse.toml");
    std::fs::write(&file, text).unwrap();
    Server::start(&["serve", "--config", file.to_str().unwrap()], &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_finds_variants_components_and_sessions() {
    let folder = tempfile::tempdir().unwrap();
    for target in ["acme/m", "acme/n"] {
        place(folder.path(), target, signed_classifier(target, 1, 0));
    }
    let component = "[[endpoint.component]]\nname = \"ic-1\"\ntarget = \"acme/m/\"";
    let variant = |name: &str, weight: u32, target: &str| {
        let named = format!("[[endpoint.variant]]\nname = \"{name}\"\nweight = {weight}\n");
        format!("{named}target = \"{target}\"\n")
    };
    let variants = variant("blue", 9, "acme/m") + &variant("green", 1, "acme/n");
    let endpoints =
        [("many", component), ("one", "target = \"acme/m\""), ("split", variants.as_str())];
    let server = serve(&folder, "", &endpoints).await;
    let args = [server.data.clone(), signature("acme/m", 1), signature("acme/n", 1)];
    tokio::task::spawn_blocking(move || {
        python::client("boto3_runtime.py", &[&args[0], &args[1], &args[2]])
    })
    .await
    .unwrap();
    assert_eq!(server.metric("roundhouse_gateway_sessions_opened_total").await, 3.0);
    assert_eq!(server.metric("roundhouse_gateway_sessions_ended_total").await, 3.0);
}

/// A stream that would go on for some hundred tokens.
async fn stream(server: &Server) -> reqwest::Response {
    let url = format!("{}/endpoints/default/invocations-response-stream", server.data);
    let body = json!({
        "model": "m", "prompt": "hello world", "max_tokens": 480, "ignore_eos": true, "stream": true,
    });
    let response = server.http().post(url).json(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    response
}

async fn chatty(folder: &TempDir, settings: &str) -> Server {
    place(folder.path(), "m", decoder(40));
    serve(folder, settings, &[("default", "")]).await
}

fn leases(residency: &Value) -> u64 {
    let residents = residency["devices"][0]["residents"].as_array().unwrap();
    residents.iter().map(|it| it["leases"].as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_client_leaves_anywhere_leaves_nothing_behind() {
    let _alone = crate::HEAVY.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let server = chatty(&folder, "").await;
    let mut random = 7_u64;
    for _ in 0..STREAMS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let enough = (random >> 33) as usize % 6000;
        let mut response = stream(&server).await;
        let mut received = Vec::new();
        while received.len() <= enough {
            received.extend_from_slice(&response.chunk().await.unwrap().expect("it goes on"));
        }
        drop(response);
        let whole = events(&mut received);
        assert!(whole.iter().all(|it| it.name == "PayloadPart" && it.payload.ends_with(b"\n")));
    }
    server.residency_once(|residency| leases(residency) == 0).await;
    until("every sequence has ended", || async {
        let ended = server.metric("roundhouse_engine_sequences_ended_total").await;
        let submitted = server.metric("roundhouse_engine_sequences_submitted_total").await;
        submitted >= STREAMS as f64 && submitted == ended
    })
    .await;
    // And the next one is answered to its end.
    let mut response = stream(&server).await;
    let mut received = Vec::new();
    while let Some(piece) = response.chunk().await.unwrap() {
        received.extend_from_slice(&piece);
    }
    let all = events(&mut received);
    assert!(received.is_empty() && all.iter().all(|it| it.name == "PayloadPart"));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_the_server_ends_say_so() {
    let _alone = crate::HEAVY.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let mut server = chatty(&folder, "[shutdown]\ndrain_timeout = \"0s\"").await;
    // All of them under way at once: on a busy machine some may be over before others begin.
    let mut attempts = 0..5;
    let begun = loop {
        let opened = (0..STREAMS).map(|_| async {
            let mut response = stream(&server).await;
            let first = response.chunk().await.unwrap().expect("it begins");
            (response, first.to_vec())
        });
        let opened = futures_util::future::join_all(opened).await;
        let residency = server.admin_get("/admin/v1/residency").await.json();
        if leases(&residency) == STREAMS as u64 || attempts.next().is_none() {
            break opened;
        }
        drop(opened);
        server.residency_once(|residency| leases(residency) == 0).await;
    };
    server.terminate();
    for (mut response, mut received) in begun {
        while let Some(piece) = response.chunk().await.expect("the stream is not torn") {
            received.extend_from_slice(&piece);
        }
        let all: Vec<Event> = events(&mut received);
        assert!(received.is_empty(), "{} bytes are no event", received.len());
        let (last, before) = all.split_last().unwrap();
        assert_eq!(last.name, "ModelStreamError");
        let told: Value = serde_json::from_slice(&last.payload).unwrap();
        assert_eq!(told["ErrorCode"], "StreamBroken");
        assert!(before.iter().all(|it| it.name == "PayloadPart" && it.payload.ends_with(b"\n")));
    }
    let status = server.wait(Duration::from_secs(60)).await.expect("it ends");
    assert!(status.success(), "{status}");
}
