//! Handlers and other models under one budget, charged with what they really take.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use roundhouse_tests::handlers::{Running, Stage, until};
use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::processes::pss;
use serde_json::json;

use super::RUN;

const MIB: u64 = 1 << 20;
/// Answers in whose course each kind has made the other leave.
const ENOUGH: u64 = 50;

/// Signs what it is sent with its name, and takes 20 MiB beside its interpreter.
fn signed_handler(name: &str) -> String {
    format!(
        "
def model_fn(model_dir):
    return b'\\1' * (20 << 20)

def transform_fn(model, body, content_type, accept):
    return b'{name}:' + bytes(body)
"
    )
}

/// Whether a target's charge is what its processes take, give or take a tenth.
async fn is_charged_rightly(server: &Running, target: &str) -> bool {
    let charged = server.residents().await[target];
    let taken = pss(&server.processes_of(target));
    charged.abs_diff(taken) <= taken / 10
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_and_classifiers_evict_each_other_and_all_answers_are_right() {
    let _alone = crate::HEAVY.lock().await;
    let mut stage = Stage::new();
    for index in 0..4 {
        stage.script(&format!("h{index}"), &signed_handler(&format!("h{index}")));
        for (path, body) in signed_classifier(&format!("c{index}"), index, 80_000) {
            stage.file(&format!("c{index}/{path}"), body);
        }
    }
    stage.arg("--memory").arg("110MiB").setting("HANDLERS_MEMORY", "32MiB");
    let server = Arc::new(stage.serve().await);
    let answers = Arc::new(AtomicU64::new(0));
    // Longer where the machine does much else.
    let (until_then, at_last) = (Instant::now() + Duration::from_secs(6), Duration::from_secs(120));
    let mut clients = Vec::new();
    for client in 0..8u32 {
        let (server, answers) = (server.clone(), answers.clone());
        clients.push(tokio::spawn(async move {
            let mut turn = client;
            while Instant::now() < until_then
                || answers.load(Ordering::Relaxed) <= ENOUGH && until_then.elapsed() < at_last
            {
                turn = turn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let index = (turn >> 16) % 4;
                if turn >> 31 == 0 {
                    let target = format!("h{index}");
                    let answer = server.ask(&target, turn.to_string()).await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    assert_eq!(answer.text(), format!("{target}:{turn}"));
                } else {
                    let target = format!("c{index}");
                    let answer =
                        server.invoke("default", &target, json!({"inputs": "one two"})).await;
                    assert_eq!(answer.status, 200, "{}", answer.body);
                    assert_eq!(answer.json()[0]["label"], signature(&target, index));
                }
                answers.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    assert!(answers.load(Ordering::Relaxed) > ENOUGH, "{answers:?} answers");
    let log = server.log();
    let evicted: BTreeSet<String> = log
        .lines()
        .filter(|line| line.contains("unloaded"))
        .filter_map(|line| Some(line.split_once("default:")?.1.chars().take(2).collect()))
        .collect();
    for kind in ["h", "c"] {
        assert!(evicted.iter().any(|name| name.starts_with(kind)), "{evicted:?}");
    }

    // Whatever it measured under load, at rest it is what the kernel says.
    assert_eq!(server.ask("h0", "x").await.text(), "h0:x");
    until("charges are what is taken", Duration::from_secs(60), async || {
        let residents = server.residents().await;
        for target in residents.keys().filter(|target| target.starts_with('h')) {
            if !is_charged_rightly(&server, target).await {
                return false;
            }
        }
        residents.contains_key("h0") && server.device().await["over_bytes"] == 0
    })
    .await;
    for target in server.residents().await.keys() {
        server.unload(target).await;
    }
    let device = server.device().await;
    assert_eq!((&device["charged_bytes"], &device["reserved_bytes"]), (&json!(0), &json!(0)));
    assert!(server.processes().is_empty(), "{:?}", server.processes());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_grows_is_charged_within_two_seconds_and_others_make_room() {
    let _alone = crate::HEAVY.lock().await;
    let mut stage = Stage::new();
    stage.script("grows", RUN);
    stage.script("h1", &signed_handler("h1")).script("h2", &signed_handler("h2"));
    stage.arg("--memory").arg("150MiB").setting("HANDLERS_MEMORY", "32MiB");
    // By worth per byte the one that grew would leave; who leaves is not the point here.
    stage.setting("RESIDENCY_POLICY", "lru");
    let server = stage.serve().await;
    assert_eq!(server.ask("grows", "answer = 1").await.text(), "1");
    for target in ["h1", "h2"] {
        assert_eq!(server.ask(target, "x").await.text(), format!("{target}:x"));
    }
    let before = server.residents().await;
    assert_eq!(before.len(), 3, "{before:?}");

    assert_eq!(server.ask("grows", "kept.append(b'\\1' * (100 << 20))").await.status, 200);
    until("it is charged", Duration::from_secs(30), async || {
        server.residents().await["grows"] >= 100 * MIB
    })
    .await;
    until("others make room", Duration::from_secs(60), async || {
        server.device().await["over_bytes"] == 0
    })
    .await;
    let after = server.residents().await;
    assert!(after.contains_key("grows") && after.len() < 3, "{after:?}");
    let explained = server.explain("grows").await;
    assert!(explained.contains("the budget is exceeded by"), "{explained}");
    assert_eq!(server.ask("grows", "answer = len(kept)").await.text(), "1");
    // What it gives back is free again.
    assert_eq!(server.ask("grows", "kept.clear()").await.status, 200);
    until("it is charged less", Duration::from_secs(30), async || {
        server.residents().await["grows"] < before["grows"] + 10 * MIB
    })
    .await;
    for target in ["h1", "h2"] {
        assert_eq!(server.ask(target, "x").await.text(), format!("{target}:x"));
    }
    assert_eq!(server.ask("grows", "answer = len(kept)").await.text(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_peak_of_a_version_is_what_its_next_load_is_promised_after_a_restart() {
    let mut stage = Stage::new();
    stage.script("run", RUN).setting("HANDLERS_MEMORY", "64MiB");
    let mut server = stage.serve().await;
    assert_eq!(server.ask("run", "kept.append(b'\\1' * (100 << 20))").await.status, 200);
    until("it is seen", Duration::from_secs(60), async || {
        server.residents().await["run"] >= 100 * MIB
    })
    .await;
    assert_eq!(server.ask("run", "kept.clear()").await.status, 200);
    let promised = |explained: &str| -> Option<u64> {
        let page: serde_json::Value = serde_json::from_str(explained).ok()?;
        let decisions = page.as_array().or_else(|| page["decisions"].as_array())?.clone();
        let promise = decisions.iter().rev().find(|one| one["action"] == "promised")?;
        promise["bytes"].as_u64()
    };
    let first = promised(&server.explain("run").await);
    assert_eq!(first, Some(64 * MIB), "{}", server.explain("run").await);
    server.terminate();
    assert!(server.server().wait(Duration::from_secs(60)).await.is_some());
    let saved = std::fs::read(server.cache().join("handlers/peaks.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_slice(&saved).unwrap();
    let peak = saved.as_object().unwrap().values().next().unwrap().as_u64().unwrap();
    assert!((100 * MIB..140 * MIB).contains(&peak), "{saved}");

    let server = stage.serve().await;
    assert_eq!(server.ask("run", "answer = 1").await.text(), "1");
    let second = promised(&server.explain("run").await);
    assert_eq!(second, Some(peak), "{}", server.explain("run").await);
}
