//! What cannot be served as an adapter, and what is said of it.

use std::process::Command;

use roundhouse_tests::adapters::{config, label, labelled_base, signed_adapter};
use roundhouse_tests::server::binary;
use serde_json::{Value, json};

use super::{LABELS, hello, place, said, server};

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_an_adapter_is_named() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = store.path();
    place(at, "base", &labelled_base(LABELS));
    let adapter = |base: &str| signed_adapter(base, LABELS, 3);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut files = adapter("base");
        let mut changed = config("base", &["classifier"]);
        change(&mut changed);
        files[0].1 = serde_json::to_vec(&changed).unwrap();
        files
    };
    place(at, "good", &adapter("base"));
    place(at, "mapped", &adapter("meta-llama/Llama-3.2-1B"));
    place(at, "lost", &adapter("no/such-base"));
    place(at, "uri", &adapter("s3://elsewhere/base"));
    place(at, "absolute", &adapter("/home/me/base"));
    place(at, "above", &adapter("../base"));
    place(at, "chained", &adapter("good"));
    place(at, "own", &adapter("own"));
    place(at, "narrow", &signed_adapter("base", LABELS - 1, 3));
    place(at, "unnamed", &with(&|it| it["base_model_name_or_path"] = Value::Null));
    place(at, "ia3", &with(&|it| it["peft_type"] = json!("IA3")));
    let mut pickled = adapter("base");
    pickled[1].0 = "adapter_model.bin".into();
    place(at, "pickled", &pickled);
    let text = format!(
        "version = 1\n[cache]\ndir = \"{}\"\n[store]\nsettle = \"1ms\"\n[[endpoint]]\nname = \"default\"\n[endpoint.bases]\n\"meta-llama/Llama-3.2-1B\" = \"base/\"\n[[endpoint.mount]]\nuri = \"file://{}/\"\n",
        cache.path().join("c").display(),
        at.display(),
    );
    let path = cache.path().join("roundhouse.toml");
    std::fs::write(&path, text).unwrap();
    let args = ["serve", "--config", path.to_str().unwrap()];
    let server = roundhouse_tests::server::Server::start(&args, &[]).await;
    for target in ["good", "mapped"] {
        let answer = server.invoke("default", target, hello()).await;
        assert_eq!(said(&answer), label(3), "{target}: {}", answer.body);
    }
    for (target, whys) in [
        ("lost", &["default:lost", "'no/such-base'", "[endpoint.bases]"][..]),
        ("uri", &["'s3://elsewhere/base'", "a URI", "[endpoint.bases]"]),
        ("absolute", &["'/home/me/base'", "it begins with '/'"]),
        ("above", &["'../base'", "'..' segment"]),
        ("chained", &["an adapter itself"]),
        ("own", &["default:own", "no target"]),
        ("narrow", &["default:narrow"]),
        ("unnamed", &["base_model_name_or_path"]),
        ("ia3", &["IA3"]),
        ("pickled", &["adapter_model.bin"]),
    ] {
        let answer = server.invoke("default", target, hello()).await;
        assert_eq!(answer.status, 424, "{target}: {}", answer.body);
        for why in whys {
            let said = answer.json()["Message"].as_str().unwrap_or_default().to_owned();
            assert!(said.contains(why), "{target}: {why}? {said}");
        }
    }
    // Nothing of it harmed those that are there.
    assert_eq!(said(&server.invoke("default", "good", hello()).await), label(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_brings_its_bases_tokenizer_again_does_not_hold_it_twice() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    place(store.path(), "base", &labelled_base(LABELS));
    let mut files = signed_adapter("base", LABELS, 5);
    let base = labelled_base(LABELS);
    // As trainers save it: the base's tokenizer again, and a card.
    files.push(base[1].clone());
    files.push(("README.md".into(), b"# adapter".to_vec()));
    let packed = roundhouse_tests::models::tar_gz(&files);
    std::fs::write(store.path().join("packed.tar.gz"), packed).unwrap();
    let server = server(store.path(), cache.path(), "").await;
    let answer = server.invoke("default", "packed.tar.gz", hello()).await;
    assert_eq!(said(&answer), label(5), "{}", answer.body);
    let residency = server.admin_get("/admin/v1/residency").await.json();
    let bytes = &super::resident(&residency, "packed.tar.gz")["bytes"];
    // The tokenizer is its base's, and not held a second time.
    assert!(bytes["host"].as_u64().unwrap() < 64 * 1024, "{bytes}");
}

#[test]
fn a_survey_holds_adapters_against_the_bases_that_lie_beside_them() {
    let store = tempfile::tempdir().unwrap();
    let at = store.path();
    place(at, "base", &labelled_base(LABELS));
    place(at, "good", &signed_adapter("base", LABELS, 3));
    place(at, "lost", &signed_adapter("no/such-base", LABELS, 3));
    place(at, "narrow", &signed_adapter("base", LABELS - 1, 3));
    place(at, "chained", &signed_adapter("good", LABELS, 3));
    place(at, "broken", &[("config.json".into(), b"{}".to_vec())]);
    place(at, "hopeless", &signed_adapter("broken", LABELS, 3));
    place(at, "nameless", &signed_adapter("", LABELS, 3));
    let packed = roundhouse_tests::models::tar_gz(&labelled_base(LABELS));
    std::fs::write(at.join("packed.tar.gz"), packed).unwrap();
    place(at, "unseen", &signed_adapter("packed.tar.gz", LABELS, 3));
    let uri = format!("file://{}/", at.display());
    let survey = |more: &[&str]| {
        let output = Command::new(binary()).args(["survey", &uri]).args(more).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let told: Value = serde_json::from_str(&survey(&["--json"])).unwrap();
    let finding = |target: &str| {
        let all = told["targets"].as_array().unwrap();
        all.iter().find(|it| it["target"] == target).unwrap()
    };
    for (target, base_is) in [("good", "here"), ("lost", "not_here"), ("unseen", "not_seen")] {
        let found = finding(target);
        assert_eq!(found["verdict"], "runs_beside_base", "{found}");
        assert_eq!(found["base_is"], base_is, "{found}");
    }
    for (target, why) in [
        ("narrow", "has shape"),
        ("chained", "itself an adapter"),
        ("hopeless", "its base does not run: "),
        ("nameless", "has no base_model_name_or_path"),
    ] {
        let found = finding(target);
        assert_eq!(found["verdict"], "does_not_run", "{found}");
        assert!(found["reason"].as_str().unwrap().contains(why), "{found}");
    }
    let table = survey(&[]);
    let told = "1 will run beside their base, 1 will run if they fit their base, 1 without a base \
                here, 1 unknown until fetched, 5 will not run";
    assert!(table.contains("[endpoint.bases]") && table.contains(told), "{table}");
}
