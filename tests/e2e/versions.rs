//! Versions in an operator's hands: shown, chosen, taken back, deleted, and remembered.
//!
//! The models sign their version into their answers, so that what serves is seen from outside.

use roundhouse_tests::models::{File, signature, signed_classifier};
use roundhouse_tests::server::{Answer, Server};
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};

/// An endpoint with this rule, which looks at its store every second.
fn site(rule: &str) -> Site {
    let site = Site::default();
    let store = "catalogue_ttl = \"200ms\"\nupdate_settle = \"300ms\"";
    site.configure("[residency]\nrefresh_every = \"1s\"", store, rule);
    site
}

/// Puts a version of the model `m` in the place of the one before.
fn upload(site: &Site, version: u32) {
    site.put("m", &signed_classifier("m", version, 200));
}

async fn ask(server: &Server) -> Answer {
    server.invoke("default", "m", json!({"inputs": "hello"})).await
}

/// Asks, and holds the answer against the version; returns the version's digest.
async fn served(server: &Server, version: u32) -> String {
    let answer = ask(server).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.json()[0]["label"], signature("m", version), "{}", answer.body);
    answer.header("x-roundhouse-version").to_owned()
}

async fn use_version(server: &Server, version: &str) -> Answer {
    let body = json!({"endpoint": "default", "target": "m", "version": version});
    let url = format!("{}/admin/v1/use", server.admin);
    server.send(server.http().post(url).json(&body)).await
}

async fn versions(server: &Server) -> Value {
    server.admin_get("/admin/v1/versions?target=m").await.json()
}

fn row<'a>(versions: &'a Value, digest: &str) -> &'a Value {
    let rows = versions["versions"].as_array().expect("a list");
    rows.iter().find(|row| row["version"] == digest).unwrap_or(&Value::Null)
}

async fn explained(server: &Server) -> String {
    server.admin_get("/admin/v1/explain?target=m").await.body
}

/// Waits until the store's new files have settled to a version other than this one.
async fn settled(server: &Server, before: &str) {
    until("the upload settles", || async {
        let found = versions(server).await;
        let rows = found["versions"].as_array().expect("a list");
        rows.iter().any(|row| row["in_store"] == true && row["version"] != before)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_manual_a_new_version_is_shown_and_served_only_when_an_operator_says_so() {
    let site = site("update = \"manual\"");
    upload(&site, 1);
    let mut server = site.start().await;
    let first = served(&server, 1).await;
    upload(&site, 2);
    until("the new version is offered", || async {
        served(&server, 1).await;
        server.metric("roundhouse_residency_updates_waiting").await > 0.0
    })
    .await;
    let found = versions(&server).await;
    let old = row(&found, &first);
    assert_eq!((&old["state"], &old["held"]), (&"ready".into(), &true.into()), "{found}");
    assert_eq!((&old["in_store"], &found["held"]["by"]), (&false.into(), &"rule".into()));
    let rows = found["versions"].as_array().unwrap();
    let second = rows.iter().find(|row| row["in_store"] == true).expect("the store's");
    let second = second["version"].as_str().unwrap().to_owned();
    assert!(explained(&server).await.contains(&format!("\"offered\":\"{second}\"")));
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(residency["devices"][0]["residents"][0]["offered"], second.as_str());
    // A restart is no update, even one without warning.
    server.kill();
    let mut server = site.start().await;
    assert_eq!(served(&server, 1).await, first);
    let refreshed = server.admin_post("refresh", "default", "m").await.json();
    assert_eq!((&refreshed["updated"], &refreshed["serves"]), (&true.into(), &true.into()));
    assert_eq!(served(&server, 2).await, second);
    assert!(explained(&server).await.contains("\"by\":\"operator\""));
    server.kill();
    let server = site.start().await;
    assert_eq!(served(&server, 2).await, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_takes_over_without_a_failed_request_and_outlives_a_restart() {
    let site = site("update = \"auto\"");
    upload(&site, 1);
    let mut server = site.start().await;
    let first = served(&server, 1).await;
    upload(&site, 2);
    until("the new version takes over", || async {
        ask(&server).await.json()[0]["label"] == signature("m", 2)
    })
    .await;
    let second = served(&server, 2).await;
    assert!(explained(&server).await.contains("\"by\":\"store\""));
    for (text, status) in [(&first[..5], 400), ("nothing", 400), ("ffffffffffff", 404)] {
        assert_eq!(use_version(&server, text).await.status, status, "{text}");
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    let clients = async {
        let mut asked = 0;
        while !stop.load(std::sync::atomic::Ordering::SeqCst) {
            let answer = ask(&server).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            let number = if answer.header("x-roundhouse-version") == first { 1 } else { 2 };
            assert_eq!(answer.json()[0]["label"], signature("m", number), "a mixture");
            asked += 1;
        }
        assert!(asked > 0);
    };
    let operator = async {
        for _ in 0..3 {
            let used = use_version(&server, &first[..8]).await;
            assert_eq!(used.json()["serves"], true, "{}", used.body);
            assert_eq!(served(&server, 1).await, first, "asked after the answer");
            let used = use_version(&server, "latest").await;
            assert_eq!(used.json()["held"], false, "{}", used.body);
            assert_eq!(served(&server, 2).await, second, "asked after the answer");
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
    };
    tokio::join!(clients, operator);
    assert_eq!(use_version(&server, &first).await.status, 200);
    let refreshed = server.admin_post("refresh", "default", "m").await.json();
    assert_eq!(
        (&refreshed["updated"], &refreshed["version"]),
        (&false.into(), &first.as_str().into())
    );
    assert_eq!(refreshed["offered"], second.as_str(), "a refresh lifts no choice, and says so");
    server.kill();
    let server = site.start().await;
    assert_eq!(served(&server, 1).await, first);
    assert_eq!(versions(&server).await["held"]["by"], "operator");
}

/// A version that is fetched and does not load.
fn broken(version: u32) -> Vec<File> {
    let mut files = signed_classifier("m", version, 200);
    let tokenizer = files.iter_mut().find(|(path, _)| path == "tokenizer.json").unwrap();
    tokenizer.1 = b"{}".to_vec();
    files
}

/// Holds a refresh against what is to stay as it was: the version, and who holds it.
async fn stays(server: &Server, refreshed: &Answer, (number, digest): (u32, &str), by: &str) {
    assert_eq!(refreshed.status, 200, "{}", refreshed.body);
    let told = refreshed.json();
    assert_eq!(told["version"], digest, "{told}");
    assert!(told["offered"].is_string(), "{told}");
    let found = versions(server).await;
    assert_eq!((&found["held"]["version"], &found["held"]["by"]), (&digest.into(), &by.into()));
    assert_eq!(served(server, number).await, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_manual_a_refresh_lifts_no_rollback_and_only_offers_what_nothing_has_served() {
    let site = site("update = \"manual\"");
    upload(&site, 1);
    let server = site.start().await;
    let first = served(&server, 1).await;
    upload(&site, 2);
    settled(&server, &first).await;
    assert_eq!(server.admin_post("refresh", "default", "m").await.json()["serves"], true);
    let second = served(&server, 2).await;
    assert_eq!(use_version(&server, &first).await.status, 200);
    let refreshed = server.admin_post("refresh", "default", "m").await;
    assert_eq!(refreshed.json()["offered"], second.as_str(), "{}", refreshed.body);
    stays(&server, &refreshed, (1, &first), "operator").await;
    // Nor where nothing is loaded that could show what the store's version is worth.
    assert_eq!(server.admin_post("unload", "default", "m").await.status, 200);
    site.put("m", &broken(3));
    settled(&server, &second).await;
    let refreshed = server.admin_post("refresh", "default", "m").await;
    stays(&server, &refreshed, (1, &first), "operator").await;
    // The same without an operator's word.
    let third = refreshed.json()["offered"].as_str().expect("a version").to_owned();
    upload(&site, 4);
    settled(&server, &third).await;
    assert_eq!(use_version(&server, "latest").await.status, 200);
    let fourth = served(&server, 4).await;
    assert_eq!(server.admin_post("unload", "default", "m").await.status, 200);
    site.put("m", &broken(5));
    settled(&server, &fourth).await;
    let refreshed = server.admin_post("refresh", "default", "m").await;
    stays(&server, &refreshed, (4, &fourth), "rule").await;
    // Where one serves, the store's version is tried beside it.
    let refreshed = server.admin_post("refresh", "default", "m").await;
    assert!(refreshed.body.contains("serves as before"), "{}", refreshed.body);
    assert_eq!(served(&server, 4).await, fourth);
    site.delete("m");
    until("the store holds none", || async { versions(&server).await["in_store"] == false }).await;
    assert_eq!(versions(&server).await["store_failure"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_is_told_and_the_old_one_serves_on() {
    let site = site("update = \"manual\"");
    upload(&site, 1);
    let server = site.start().await;
    let first = served(&server, 1).await;
    site.put("m", &broken(2));
    settled(&server, &first).await;
    let used = use_version(&server, "latest").await;
    assert_eq!(used.json()["error"]["kind"], "model_invalid", "{}", used.body);
    assert!(used.body.contains("serves as before"), "{}", used.body);
    assert_eq!(served(&server, 1).await, first);
    assert_eq!(row(&versions(&server).await, &first)["held"], true);
    // Nor does the failure stand in the way of loading the old one again.
    assert_eq!(server.admin_post("unload", "default", "m").await.status, 200);
    assert_eq!(served(&server, 1).await, first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_that_leaves_half_an_upload_fails_and_says_what_is_missing_loaded_or_not() {
    let site = site("update = \"auto\"");
    upload(&site, 1);
    let server = site.start().await;
    let first = served(&server, 1).await;
    let mut half = signed_classifier("m", 2, 200);
    let weights = half.iter_mut().find(|(path, _)| path == "model.safetensors").unwrap();
    weights.1.pop();
    site.put("m", &half);
    let refreshed = server.admin_post("refresh", "default", "m").await;
    assert_ne!(refreshed.status, 200, "{}", refreshed.body);
    for told in ["model.safetensors", "serves as before", &first[..12]] {
        assert!(refreshed.body.contains(told), "{}", refreshed.body);
    }
    // The old one is on disk alone.
    let found = versions(&server).await;
    let old = row(&found, &first);
    assert_eq!((&old["in_store"], &old["in_part"]), (&false.into(), &false.into()), "{found}");
    let rows = found["versions"].as_array().unwrap();
    assert_eq!(rows.iter().filter(|row| row["in_part"] == true).count(), 1, "{found}");
    // Nothing is loaded: a look tells all who ask.
    assert_eq!(server.admin_post("unload", "default", "m").await.status, 200);
    until("it counts as damaged", || async {
        versions(&server).await;
        server.metric("roundhouse_residency_updates_failed").await > 0.0
    })
    .await;
    let told = explained(&server).await;
    assert!(told.contains("not loaded; another version, "), "{told}");
    assert_ne!(server.admin_post("refresh", "default", "m").await.status, 200);
    assert_eq!(served(&server, 1).await, first);
    upload(&site, 3);
    until("the mended one serves", || async {
        ask(&server).await.json()[0]["label"] == signature("m", 3)
    })
    .await;
    assert_eq!(server.admin_post("refresh", "default", "m").await.status, 200);
    assert!(server.metric("roundhouse_residency_updates_failed").await < 0.5);
}

/// Not before the pause after the failure is over.
async fn before_answers(server: &Server) {
    until("the version before answers", || async {
        let answer = ask(server).await;
        assert!([200, 424].contains(&answer.status), "{}", answer.body);
        answer.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_version_is_refused_the_one_before_answers_though_the_model_left_its_device() {
    let site = site("update = \"auto\"");
    upload(&site, 1);
    let mut server = site.start().await;
    let first = served(&server, 1).await;
    site.put("m", &broken(2));
    settled(&server, &first).await;
    assert_ne!(server.admin_post("refresh", "default", "m").await.status, 200);
    assert_eq!(served(&server, 1).await, first);
    assert_eq!(server.admin_post("unload", "default", "m").await.status, 200);
    before_answers(&server).await;
    server.kill();
    let server = site.start().await;
    // After a restart the newest is tried once.
    before_answers(&server).await;
    assert_eq!(served(&server, 1).await, first);
    assert!(explained(&server).await.contains("another version, "));
    upload(&site, 3);
    until("the mended one serves", || async {
        ask(&server).await.json()[0]["label"] == signature("m", 3)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_version_that_cannot_be_had_any_more_is_named_and_never_silently_replaced() {
    let site = site("update = \"never\"");
    upload(&site, 1);
    let mut server = site.start().await;
    let first = served(&server, 1).await;
    upload(&site, 2);
    assert_eq!(server.admin_post("refresh", "default", "m").await.status, 400);
    assert_eq!(served(&server, 1).await, first);
    server.kill();
    site.remove("cache/artefacts");
    let server = site.start().await;
    let answer = ask(&server).await;
    assert_eq!(answer.status, 424, "{}", answer.body);
    assert!(
        answer.body.contains(&first[..12]) && answer.body.contains("latest"),
        "{}",
        answer.body
    );
    let used = use_version(&server, "latest").await;
    assert_eq!(used.json()["serves"], false, "it is not loaded: {}", used.body);
    let second = served(&server, 2).await;
    assert_eq!(versions(&server).await["held"]["version"], second.as_str());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_model_serves_or_drains_as_its_endpoint_says() {
    for rule in ["serve", "drain"] {
        let site = site(&format!("on_delete = \"{rule}\""));
        upload(&site, 1);
        let server = site.start().await;
        served(&server, 1).await;
        // A store that is not there says nothing about its models.
        std::fs::rename(site.at("store"), site.at("away")).unwrap();
        let refreshed = server.admin_post("refresh", "default", "m").await;
        assert_eq!(refreshed.status, 502, "{}", refreshed.body);
        served(&server, 1).await;
        assert_eq!(server.admin_post("keep", "default", "m").await.status, 200);
        assert_eq!(server.admin_post("keep", "default", "unheard-of").await.status, 200);
        std::fs::rename(site.at("away"), site.at("store")).unwrap();
        until("the store is back", || async {
            server.admin_post("refresh", "default", "m").await.status == 200
        })
        .await;
        assert_eq!(server.admin_post("keep", "default", "no-such-name").await.status, 404);
        assert_eq!(server.admin_post("release", "default", "no-such-name").await.status, 404);
        site.delete("m");
        until("the deletion is noticed", || async {
            ask(&server).await;
            explained(&server).await.contains("\"action\":\"deleted\"")
        })
        .await;
        if rule == "serve" {
            served(&server, 1).await;
            continue;
        }
        let answer = ask(&server).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert!(explained(&server).await.contains("\"why\":\"deleted\""));
        upload(&site, 1);
        until("it is back", || async { ask(&server).await.status == 200 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_takes_every_version_and_the_choice() {
    let site = site("update = \"manual\"");
    upload(&site, 1);
    let server = site.start().await;
    let first = served(&server, 1).await;
    upload(&site, 2);
    settled(&server, &first).await;
    assert_eq!(use_version(&server, "latest").await.status, 200);
    let second = served(&server, 2).await;
    assert_eq!(use_version(&server, &first).await.status, 200);
    let url = format!("{}/admin/v1/unload", server.admin);
    let body = json!({"target": "m", "purge": true});
    let purged = server.send(server.http().post(url).json(&body)).await.json();
    let mut freed: Vec<&str> = purged["freed"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it["version"].as_str())
        .collect();
    freed.sort_unstable();
    let mut both = [first.as_str(), second.as_str()];
    both.sort_unstable();
    assert_eq!(freed, both, "{purged}");
    assert!(purged["freed"][0]["bytes"].as_u64() > Some(50_000), "{purged}");
    assert_eq!(purged["choice_lifted"], true);
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(residency["disk"]["artefacts"], 0, "{residency}");
    assert_eq!(served(&server, 2).await, second, "the store decides again");
}
