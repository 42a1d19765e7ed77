//! Engines that sleep when they leave a device with a memory of its own.

use super::{Stage, gone, lives, residents, said};

const SETTINGS: &str = "[memory]\nhost = \"400MiB\"\n\
                        [[device]]\nid = \"simulated:0\"\nbudget = \"300MiB\"";

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_sleeps_instead_of_leaving_and_wakes_as_the_same_process() {
    for (level, wake) in [(1, "wake weights kv_cache"), (2, "wake weights")] {
        let stage = Stage::new();
        stage.model("gpt/a").model("gpt/b");
        let keys = format!("memory = \"200MiB\"\nsleep = {level}");
        let server = stage.serve(SETTINGS, &[stage.engine("gpt/*", &[], &keys)]).await;
        let [_, _, _, first] = said(&server, "gpt/a", "x").await;
        let [_, _, _, second] = said(&server, "gpt/b", "x").await;
        assert!(lives(&first) && lives(&second), "one of them sleeps");
        let page = server.admin_get("/admin/v1/residency").await.json();
        let copy = &page["host"]["copies"][0];
        assert_eq!(
            (&copy["target"], &copy["kind"]),
            (&"gpt/a".into(), &"external".into()),
            "{page}"
        );
        let taken = copy["bytes"]["host"].as_u64().unwrap();
        assert!((1 << 20..200 << 20).contains(&taken), "what its process takes is charged: {page}");
        assert_eq!(residents(&server).await[0]["target"], "gpt/b");

        assert_eq!(said(&server, "gpt/a", "x").await[3], first, "woken, not started");
        assert_eq!(said(&server, "gpt/b", "x").await[3], second);
        let journal = stage.journal();
        let sleeps = format!("gpt/a sleep {level}");
        assert_eq!(journal[..3], ["gpt/a start", &*sleeps, "gpt/b start"].map(str::to_owned));
        assert!(journal.contains(&format!("gpt/a {wake}")), "{journal:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_engine_that_is_killed_is_started_again() {
    let stage = Stage::new();
    stage.model("gpt/a").model("gpt/b");
    let keys = "memory = \"200MiB\"\nsleep = 1";
    let server = stage.serve(SETTINGS, &[stage.engine("gpt/*", &[], keys)]).await;
    let [_, _, _, first] = said(&server, "gpt/a", "x").await;
    said(&server, "gpt/b", "x").await;
    roundhouse_tests::processes::kill(first.parse().unwrap());
    gone(&first).await;
    let [_, _, _, again] = said(&server, "gpt/a", "x").await;
    assert_ne!(first, again);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_unload_ends_a_sleeping_engine() {
    let stage = Stage::new();
    stage.model("gpt/a").model("gpt/b");
    let keys = "memory = \"200MiB\"\nsleep = 1";
    let server = stage.serve(SETTINGS, &[stage.engine("gpt/*", &[], keys)]).await;
    let [_, _, _, first] = said(&server, "gpt/a", "x").await;
    said(&server, "gpt/b", "x").await;
    assert!(lives(&first));
    let answer = server.admin_post("unload", "default", "gpt/a").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(!lives(&first));
}
