//! What goes wrong, said rightly, at nobody else's cost.

use std::time::{Duration, Instant};

use roundhouse_tests::models::{File, decoder, signature, signed_classifier, tar_gz};
use roundhouse_tests::proxy::{Mode, Proxy};
use roundhouse_tests::python;
use roundhouse_tests::s3::S3;
use roundhouse_tests::server::Server;
use serde_json::json;

fn as_refs<'a>(env: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    env.iter().map(|(k, v)| (*k, v.as_str())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn boto3_raises_the_right_error_for_each_fault_and_others_go_on() {
    let s3 = S3::start().await;
    s3.put_folder("good", &signed_classifier("good", 1, 0)).await;
    s3.put("packed.tar.gz", tar_gz(&signed_classifier("packed", 2, 0))).await;
    let mut corrupt = tar_gz(&signed_classifier("corrupt", 2, 4_000));
    let half = corrupt.len() / 2;
    corrupt[half..half + 64].fill(0x55);
    s3.put("corrupt.tar.gz", corrupt).await;
    let mut short = tar_gz(&signed_classifier("short", 2, 4_000));
    short.truncate(short.len() / 2);
    s3.put("short.tar.gz", short).await;
    let mut unknown = signed_classifier("unknown", 1, 0);
    let config = String::from_utf8(unknown[0].1.clone()).unwrap();
    unknown[0].1 = config.replace("BertForSequenceClassification", "ZebraForStripes").into();
    s3.put_folder("unknown", &unknown).await;
    // A truncated file within a whole archive: the lengths of a folder would show in the listing.
    let mut cut = signed_classifier("cut", 1, 4_000);
    cut[2].1.truncate(600_000);
    s3.put("cut.tar.gz", tar_gz(&cut)).await;
    s3.put_folder("huge", &decoder(60)).await;
    s3.put("empty/readme.md", b"nothing here".to_vec()).await;

    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().display().to_string();
    let env = S3::env(s3.address());
    let args = ["serve", "--store", "s3://models/", "--cache-dir", &cache, "--memory", "32MiB"];
    let server = Server::start(&args, &as_refs(&env)).await;
    let fine = r#"{"inputs": "hello"}"#;
    let cases = json!([
        {"target": "absent", "body": fine, "raises": "ValidationError", "says": "absent"},
        {"target": "corrupt.tar.gz", "body": fine, "raises": "ModelError", "original": 400, "says": "corrupt.tar.gz"},
        {"target": "short.tar.gz", "body": fine, "raises": "ModelError", "original": 400, "says": "short.tar.gz"},
        {"target": "cut.tar.gz", "body": fine, "raises": "ModelError", "original": 400, "says": "model.safetensors"},
        {"target": "unknown", "body": fine, "raises": "ModelError", "original": 400, "says": "ZebraForStripes"},
        {"target": "huge", "body": fine, "raises": "ModelError", "original": 507},
        {"target": "good", "body": "this is not JSON", "raises": "ModelError", "original": 400, "says": "JSON"},
        {"target": "good", "body": "x", "repeat": 7_340_032, "raises": "ValidationError"},
        {"target": "../secret", "body": fine, "raises": "ValidationError", "says": "segment"},
        {"target": "a/../../b", "body": fine, "raises": "ValidationError", "says": "segment"},
        {"target": "/etc/passwd", "body": fine, "raises": "ValidationError"},
        {"target": null, "body": fine, "raises": "ValidationError", "says": "Target-Model"},
        {"endpoint": "nowhere", "target": "good", "body": fine, "raises": "ValidationError", "says": "nowhere"},
    ]);
    let (url, text) = (server.data.clone(), cases.to_string());
    tokio::task::spawn_blocking(move || {
        python::client("boto3_errors.py", &[&url, "default", &text])
    })
    .await
    .unwrap();

    let good = server.invoke("default", "good", json!({"inputs": "hello"})).await;
    assert_eq!(good.json()[0]["label"], signature("good", 1), "{}", good.body);
    let packed = server.invoke("default", "packed.tar.gz", json!({"inputs": "hello"})).await;
    assert_eq!(packed.json()[0]["label"], signature("packed", 2), "{}", packed.body);
    assert_eq!(server.get("/ping").await.status, 200);
}

/// A model with another number where one of its tensors begins.
fn spoilt(mut files: Vec<File>, tensor: &str, number: f32) -> Vec<File> {
    let weights = &mut files.iter_mut().find(|(name, _)| name == "model.safetensors").unwrap().1;
    let begin = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&weights[8..begin]).unwrap();
    let at = begin + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
    weights[at..at + 4].copy_from_slice(&number.to_le_bytes());
    files
}

/// The same weights without their head.
fn embedder() -> Vec<File> {
    let mut files = signed_classifier("embedder", 1, 0);
    let config = String::from_utf8(files[0].1.clone()).unwrap();
    files[0].1 = config.replace("BertForSequenceClassification", "BertModel").into();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_that_are_not_numbers_fail_the_load_and_not_every_request() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, files: &[File]| {
        let target = folder.path().join("store").join(name);
        std::fs::create_dir_all(&target).unwrap();
        for (path, body) in files {
            std::fs::write(target.join(path), body).unwrap();
        }
    };
    let damaged = ["decoder", "classifier", "infinite", "embedder"];
    put("good", &signed_classifier("good", 1, 0));
    put("sound", &embedder());
    put("decoder", &spoilt(decoder(1), "model.norm.weight", f32::NAN));
    let classifier = |name| signed_classifier(name, 1, 0);
    put("classifier", &spoilt(classifier("classifier"), "classifier.bias", f32::NAN));
    put("infinite", &spoilt(classifier("infinite"), "classifier.weight", f32::INFINITY));
    put("embedder", &spoilt(embedder(), "bert.embeddings.LayerNorm.weight", f32::NAN));
    let store = format!("file://{}/", folder.path().join("store").display());
    let cache = folder.path().join("cache");
    let args = ["serve", "--store", &store, "--cache-dir", cache.to_str().unwrap()];
    let server = Server::start(&args, &[]).await;
    let ask = |target| server.invoke("default", target, json!({"inputs": "hello"}));
    for target in damaged {
        let got = ask(target).await;
        assert_eq!(got.status, 424, "{target}: {}", got.body);
        assert_eq!(got.json()["OriginalStatusCode"], 400, "{target}: {}", got.body);
        for said in [target, "not finite"] {
            assert!(got.body.contains(said), "{target}: {}", got.body);
        }
    }
    for target in ["good", "sound"] {
        assert_eq!(ask(target).await.status, 200, "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn residents_and_what_is_on_disk_answer_while_the_store_is_busy_silent_or_gone() {
    let _alone = crate::HEAVY.lock().await;
    let s3 = S3::start().await;
    for name in ["resident", "on-disk", "cold"] {
        s3.put_folder(name, &signed_classifier(name, 4, 2_000)).await;
    }
    let proxy = Proxy::start(s3.address(), None).await;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("roundhouse.toml");
    let text = format!(
        "version = 1\n[cache]\ndir = \"{}\"\n[serving]\nhold = \"8s\"\n[store]\nsettle = \"0s\"\ncatalogue_ttl = \"300ms\"\nstall_timeout = \"1s\"\nmax_retries = 2\n[residency]\nrefresh_every = \"1s\"\n[[endpoint]]\nname = \"default\"\n[[endpoint.mount]]\nuri = \"s3://models/\"\n",
        dir.path().join("cache").display()
    );
    std::fs::write(&config, text).unwrap();
    let env = S3::env(proxy.address());
    let server =
        Server::start(&["serve", "--config", config.to_str().unwrap()], &as_refs(&env)).await;
    let ask = |target: &'static str| server.invoke("default", target, json!({"inputs": "hello"}));
    assert_eq!(ask("resident").await.status, 200);
    assert_eq!(ask("on-disk").await.status, 200);
    assert_eq!(server.admin_post("unload", "default", "on-disk").await.status, 200);

    for mode in [Mode::Busy, Mode::Stall, Mode::Gone] {
        proxy.set(mode);
        // A store that holds answers up does so each time; a busy machine does not.
        let mut slowest = Duration::MAX;
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            let mut of_these = Duration::ZERO;
            for _ in 0..20 {
                let began = Instant::now();
                let answer = ask("resident").await;
                let label = &answer.json()[0]["label"];
                assert_eq!(*label, signature("resident", 4), "{mode:?}: {}", answer.body);
                of_these = of_these.max(began.elapsed());
            }
            slowest = slowest.min(of_these);
            if slowest < Duration::from_secs(1) {
                break;
            }
        }
        assert!(slowest < Duration::from_secs(1), "{mode:?}: {slowest:?}");
        let answer = ask("on-disk").await;
        assert_eq!(answer.json()[0]["label"], signature("on-disk", 4), "{mode:?}: {}", answer.body);
        assert_eq!(server.admin_post("unload", "default", "on-disk").await.status, 200);
        let answer = ask("cold").await;
        assert!(
            answer.status == 530 || answer.status == 429,
            "{mode:?}: {} {}",
            answer.status,
            answer.body
        );
        proxy.set(Mode::Pass);
        // The failure is remembered for a moment only.
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = ask("cold").await;
            if answer.status == 200 {
                break;
            }
            assert!(Instant::now() < until, "{mode:?}: {} {}", answer.status, answer.body);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let purged = server
            .send(
                server
                    .http()
                    .post(format!("{}/admin/v1/unload", server.admin))
                    .json(&json!({"endpoint": "default", "target": "cold", "purge": true})),
            )
            .await;
        assert_eq!(purged.status, 200, "{}", purged.body);
    }
}
