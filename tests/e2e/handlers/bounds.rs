//! Handlers that do not end when they should, take long to begin, or say too much.

use std::time::{Duration, Instant};

use roundhouse_tests::handlers::{Running, Stage, until};
use roundhouse_tests::models::{signature, signed_classifier};
use serde_json::json;

use super::ECHO;

async fn loading(server: &Running, target: &str) -> bool {
    let page = server.admin_get("/admin/v1/residency").await.json();
    page["loads"].as_array().unwrap().iter().any(|load| load["target"] == target)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_ignores_signals_is_gone_at_once_when_unloaded() {
    let mut stage = Stage::new();
    stage.hostile("ignore_sigterm");
    let server = stage.serve().await;
    // Whoever waits for it does so each time; a machine that does much else is slow now and then.
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        assert_eq!(server.ask("ignore_sigterm", "fine").await.text(), "fine");
        assert_eq!(server.processes().len(), 1);
        let began = Instant::now();
        server.unload("ignore_sigterm").await;
        quickest = quickest.min(began.elapsed());
        assert!(server.processes().is_empty(), "{:?}", server.processes());
    }
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_stops_within_its_time_whatever_its_handlers_do() {
    let mut stage = Stage::new();
    stage.hostile("ignore_sigterm").hostile("slow_import").hostile("hang");
    stage.setting("DRAIN_TIMEOUT", "1s");
    let mut server = stage.serve().await;
    for target in ["ignore_sigterm", "hang"] {
        assert_eq!(server.ask(target, "fine").await.text(), "fine");
    }
    // One imports for a minute, one runs a call for an hour, one does not listen.
    let requests: Vec<_> = [("slow_import", "fine"), ("hang", "hang"), ("ignore_sigterm", "hang")]
        .into_iter()
        .map(|(target, body)| {
            let request = server
                .http()
                .post(format!("{}/endpoints/default/invocations", server.data))
                .header("x-amzn-sagemaker-target-model", target)
                .body(body);
            tokio::spawn(request.send())
        })
        .collect();
    until("all three are at it", Duration::from_secs(40), async || {
        server.leases("hang").await == 1
            && server.leases("ignore_sigterm").await == 1
            && server.processes_of("slow_import").len() == 1
    })
    .await;
    // Long before any of them would end by itself or at its limit.
    server.terminate();
    let status = server.server().wait(Duration::from_secs(9)).await;
    assert!(status.is_some(), "it did not stop");
    assert!(server.processes().is_empty(), "{:?}", server.processes());
    for request in requests {
        request.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_import_holds_up_neither_other_handlers_nor_other_models() {
    let mut stage = Stage::new();
    stage.hostile("slow_import").asks("slow_import", "env = { SLOW_IMPORT = \"20\" }");
    stage.script("echo", ECHO);
    for (path, body) in signed_classifier("native", 3, 0) {
        stage.file(&format!("native/{path}"), body);
    }
    stage.setting("RESIDENCY_CONCURRENT_LOADS", "1");
    let server = stage.serve().await;
    let began = Instant::now();
    let slow = server.ask("slow_import", "fine");
    let others = async {
        until("it imports", Duration::from_secs(60), async || {
            server.processes_of("slow_import").len() == 1
        })
        .await;
        assert_eq!(server.ask("echo", "x").await.text(), "x");
        let native = server.invoke("default", "native", json!({"inputs": "hello"})).await;
        assert_eq!(native.json()[0]["label"], signature("native", 3), "{}", native.body);
        assert!(loading(&server, "slow_import").await);
    };
    let (answer, ()) = tokio::join!(slow, others);
    assert_eq!(answer.text(), "fine");
    assert!(began.elapsed() >= Duration::from_secs(20), "it did not import slowly");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_is_not_ready_in_time_is_ended() {
    let mut stage = Stage::new();
    stage.hostile("slow_import").setting("HANDLERS_START_LIMIT", "1s");
    let server = stage.serve().await;
    let answer = server.ask("slow_import", "fine").await;
    assert_eq!(answer.status, 424, "{}", answer.text());
    assert!(answer.text().contains("not ready within 1s"), "{}", answer.text());
    assert!(server.processes().is_empty(), "{:?}", server.processes());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_above_the_limit_is_refused_and_its_worker_lives_on() {
    let mut stage = Stage::new();
    stage.hostile("huge");
    let server = stage.serve().await;
    assert_eq!(server.ask("huge", "fine").await.text(), "fine");
    let processes = server.processes();
    let answer = server.ask("huge", "huge").await;
    assert_eq!(answer.status, 424, "{}", answer.text());
    let message = answer.json()["OriginalMessage"].as_str().unwrap().to_owned();
    assert!(message.contains("104857600 bytes"), "{message}");
    assert!(message.contains("the limit is 33554432 bytes"), "{message}");
    assert_eq!(server.ask("huge", "fine").await.text(), "fine");
    assert_eq!(server.processes(), processes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_leaves_in_its_temporary_folder_is_bounded_and_deleted() {
    let mut stage = Stage::new();
    stage.script("run", super::RUN).setting("HANDLERS_MAX_TEMP", "8MiB");
    let server = stage.serve().await;
    let write = "open('kept', 'wb').write(bytes(1 << 20)); answer = os.getcwd()";
    let folder = server.ask("run", write).await.text();
    assert!(std::path::Path::new(&folder).join("kept").exists(), "{folder}");
    let flood = "
for number in range(64):
    open('%d' % number, 'wb').write(bytes(1 << 20))
time.sleep(30)";
    let answer = server.ask("run", flood).await;
    assert_eq!(answer.status, 424, "{}", answer.text());
    assert!(answer.text().contains("temporary files took"), "{}", answer.text());
    assert!(
        answer.text().contains("8 MiB") || answer.text().contains("8.0 MiB"),
        "{}",
        answer.text()
    );
    assert_eq!(server.ask("run", "answer = 1").await.text(), "1");
    assert!(!std::path::Path::new(&folder).exists(), "{folder} is still there");
}
