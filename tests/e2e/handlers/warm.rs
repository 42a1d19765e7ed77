//! Interpreters that are kept idle: the next model of an environment is forked from one.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use roundhouse_tests::handlers::{Running, Stage, until};
use roundhouse_tests::server::binary;

use super::RUN;

/// Longer than an interpreter takes to come on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);
/// Whether it was forked, whether a module is there that nobody has imported here, and what differs
/// from one start of an interpreter to the next.
const ASKED: &str = "answer = ['roundhouse_warm' in sys.modules, 'xml.dom.minidom' in sys.modules, \
                     hash('of this interpreter')]";

/// Why no interpreter can be kept here, as the server's own doctor says it.
fn hindrance(store: &str) -> Option<String> {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if !is_root {
        return Some("needs root".to_owned());
    }
    let mut doctor = Command::new(binary());
    doctor.args(["doctor", "--handlers", "--store", store]);
    let told = String::from_utf8(doctor.output().unwrap().stdout).unwrap();
    let line = told.lines().find(|line| line.contains("handlers.warm")).unwrap_or_default();
    line.contains("none can be kept").then(|| line.to_owned())
}

fn stage(warm: &str) -> Stage {
    let mut stage = Stage::new();
    stage.setting("HANDLERS_WARM", warm).setting("HANDLERS_WARM_IMPORTS", "xml.dom.minidom");
    for target in ["shop/one", "shop/two", "shop/three", "other/one"] {
        stage.script(target, RUN);
    }
    stage
}

async fn said(server: &Running, target: &str) -> String {
    let answer = server.ask(target, ASKED).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// How many starts found an idle interpreter, and how many did not.
async fn launches(server: &Running) -> (f64, f64) {
    let name = "roundhouse_workers_warm_launches_total";
    (server.metric_with(name, "hit").await, server.metric_with(name, "miss").await)
}

async fn until_idle(server: &Running, count: u64) {
    until("interpreters are idle", PATIENCE, async || {
        let shown = server.admin_get("/admin/v1/residency").await.json();
        shown["warm"]["interpreters"] == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_models_of_an_environment_come_of_one_interpreter_that_started_before() {
    let stage = stage("true");
    if let Some(why) = hindrance(&stage.uri()) {
        eprintln!("not tested here: {why}");
        return;
    }
    let server = stage.serve().await;
    let first = said(&server, "shop/one").await;
    assert!(first.starts_with("[False, False, "), "started as any: {first}");
    until_idle(&server, 1).await;
    let second = said(&server, "shop/two").await;
    assert!(second.starts_with("[True, True, "), "forked, its imports there: {second}");
    server.unload("shop/two").await;
    until_idle(&server, 1).await;
    let third = said(&server, "shop/three").await;
    assert_eq!(third, second, "both are of one interpreter");
    assert_ne!(third.rsplit(' ').next(), first.rsplit(' ').next());
    assert_eq!(launches(&server).await, (2.0, 1.0), "one interpreter was started for a load");

    // Another tenant's first model has none of it.
    let stranger = said(&server, "other/one").await;
    assert!(stranger.starts_with("[False, False, "), "{stranger}");
    assert_eq!(launches(&server).await, (2.0, 2.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_pool_every_model_starts_an_interpreter_of_its_own() {
    let stage = stage("false");
    let server = stage.serve().await;
    let mut seen = Vec::new();
    for target in ["shop/one", "shop/two", "shop/three"] {
        let answer = said(&server, target).await;
        assert!(answer.starts_with("[False, False, "), "{answer}");
        seen.push(answer);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "each has its own: {seen:?}");
}
