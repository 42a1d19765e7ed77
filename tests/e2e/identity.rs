//! Who is let in: the real clients with right and wrong credentials, files of keys and certificates
//! that change while the server runs, and the admin port.

use std::path::Path;
use std::process::{Command, Output};

use roundhouse_tests::models::signed_classifier;
use roundhouse_tests::python;
use roundhouse_tests::server::{Answer, Server, binary};
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};

const TARGET: &str = "acme/sort";

/// `roundhouse keys …` on a file, and what it printed.
fn keys(file: &Path, args: &[&str]) -> Value {
    let output =
        roundhouse(&[&["keys"], args, &["--json", "--keys", file.to_str().unwrap()]].concat(), &[]);
    assert!(output.status.success(), "{args:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn roundhouse(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(binary()).args(args).envs(env.iter().copied()).output().unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

/// A site with one model that is asked who calls.
fn asking(more: &str) -> Site {
    let site = Site::default();
    site.put(TARGET, &signed_classifier(TARGET, 1, 100));
    let auth = format!("[auth]\nkeys = \"{}\"\n{more}", site.at("keys.json").display());
    site.configure(&auth, "", "");
    site
}

async fn with_key(server: &Server, key: Option<&str>) -> Answer {
    let url = format!("{}/endpoints/default/invocations", server.data);
    let request = server.http().post(url).header("x-amzn-sagemaker-target-model", TARGET);
    let request = request.json(&json!({"inputs": "hello"}));
    server
        .send(match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn real_clients_are_let_in_by_what_they_sign() {
    let site = asking("");
    let file = site.at("keys.json");
    let pair = keys(&file, &["create", "--tenant", "acme", "--kind", "sigv4"]);
    let old = keys(&file, &["create", "--tenant", "acme", "--kind", "sigv4", "--expires", "1s"]);
    let bearer = keys(&file, &["create", "--tenant", "acme"]);
    let operator = keys(&file, &["create", "--operator"]);
    let server = site.start().await;
    let shown = |pair: &Value| json!([pair["access_key_id"], pair["secret_access_key"]]);
    let given = json!({
        "right": shown(&pair), "expired": shown(&old),
        "bearer": bearer["key"], "operator": operator["key"],
    });
    let data = server.data.clone();
    let key = text(&bearer, "key").to_owned();
    tokio::task::spawn_blocking(move || {
        python::client("boto3_identity.py", &[&data, "default", TARGET, &given.to_string()]);
        python::client("openai_identity.py", &[&data, TARGET, &key]);
    })
    .await
    .unwrap();
    let admin = server.http().get(format!("{}/metrics", server.admin));
    let metrics = server.send(admin.bearer_auth(text(&operator, "key"))).await.body;
    for (method, outcome) in [
        ("sigv4", "accepted"),
        ("sigv4", "signature"),
        ("anonymous", "missing"),
        ("bearer", "unknown"),
    ] {
        let labels = format!("{{method=\"{method}\",outcome=\"{outcome}\"}}");
        assert!(
            metrics.contains(&format!("roundhouse_identity_decisions_total{labels}")),
            "{labels}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_and_go_while_the_server_answers() {
    let site = asking("");
    let file = site.at("keys.json");
    let first = keys(&file, &["create", "--tenant", "acme"]);
    let server = site.start().await;
    let first_key = text(&first, "key");
    assert_eq!(with_key(&server, Some(first_key)).await.status, 200);
    assert_eq!(with_key(&server, None).await.status, 403);
    let second = keys(&file, &["create", "--tenant", "acme"]);
    until("the second key is in force", || async {
        with_key(&server, Some(text(&second, "key"))).await.status == 200
    })
    .await;
    std::fs::write(&file, "{").unwrap();
    assert_eq!(
        with_key(&server, Some(first_key)).await.status,
        200,
        "a broken file changes nothing"
    );
    std::fs::write(&file, r#"{"version":1,"keys":[]}"#).unwrap();
    until("no key is in force", || async {
        with_key(&server, Some(first_key)).await.status == 403
    })
    .await;
    assert_eq!(server.get("/ping").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_asks_for_an_operators_key_and_writes_down_what_is_done() {
    let site = asking("");
    let file = site.at("keys.json");
    let tenant = keys(&file, &["create", "--tenant", "acme"]);
    let audit = site.at("audit.log");
    let settings =
        format!("[auth]\nkeys = \"{}\"\n[log]\naudit = \"{}\"\n", file.display(), audit.display());
    site.configure(&settings, "", "");
    let server = site.start().await;
    let load = ["load", TARGET, "--url", &server.admin];
    // Nobody is an operator yet, and this is loopback.
    assert!(roundhouse(&load, &[]).status.success());
    let operator = keys(&file, &["create", "--operator"]);
    until("operators are asked for", || async {
        server.admin_get("/admin/v1/residency").await.status == 401
    })
    .await;
    assert_eq!(server.admin_get("/readyz").await.status, 200, "probes are told");
    let refused = roundhouse(&load, &[("ROUNDHOUSE_ADMIN_KEY", text(&tenant, "key"))]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("--admin-key"), "{told}");
    assert!(
        roundhouse(&load, &[("ROUNDHOUSE_ADMIN_KEY", text(&operator, "key"))]).status.success()
    );
    for (name, value) in [("host", "evil.example"), ("origin", "http://evil.example")] {
        let request = server.http().post(format!("{}/admin/v1/unload", server.admin));
        let request = request.header(name, value).bearer_auth(text(&operator, "key"));
        let status = server.send(request.json(&json!({"target": TARGET}))).await.status;
        assert!([421, 403].contains(&status), "{name}: {status}");
    }
    let read = server.http().get(format!("{}/admin/v1/residency", server.admin));
    let read = read.header("sec-fetch-site", "cross-site").bearer_auth(text(&operator, "key"));
    assert_eq!(server.send(read).await.status, 403, "a foreign page makes us do no work");
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&audit).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    until("five lines are written", || async { lines().len() == 5 }).await;
    let lines = lines();
    let told: Vec<u64> = lines.iter().map(|line| line["status"].as_u64().unwrap()).collect();
    assert_eq!(told, [200, 401, 200, 421, 403]);
    assert_eq!(lines[2]["operator"], operator["id"]);
    assert_eq!(lines[0]["operator"], Value::Null);
    assert!(lines.iter().all(|line| line["path"].as_str().unwrap().starts_with("/admin/v1/")));
    assert!(text(&lines[2], "asked").contains(TARGET));
    let whole = std::fs::read_to_string(&audit).unwrap();
    for secret in [text(&operator, "key"), text(&tenant, "key")] {
        assert!(!whole.contains(secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_somebody_must_be_asked() {
    let site = asking("");
    keys(&site.at("keys.json"), &["create", "--tenant", "acme"]);
    let (config, store) =
        (site.at("roundhouse.toml"), format!("file://{}/", site.at("store").display()));
    let check = |args: &[&str]| roundhouse(&[&["check-config"], args].concat(), &[]);
    let outside = std::fs::read_to_string(&config).unwrap().replace(
        "version = 1\n",
        "version = 1\n[listen]\ndata = \"0.0.0.0:0\"\nadmin = \"0.0.0.0:0\"\n",
    );
    std::fs::write(&config, &outside).unwrap();
    let taken = check(&[config.to_str().unwrap()]);
    assert!(taken.status.success(), "{taken:?}");
    std::fs::write(&config, outside.replace("[auth]\n", "[auth]\nanonymous = true\n")).unwrap();
    let refused = String::from_utf8(check(&[config.to_str().unwrap()]).stderr).unwrap();
    assert!(refused.contains("listen.data") && !refused.contains("listen.admin"), "{refused}");
    let bare = roundhouse(&["serve", "--store", &store, "--listen", "0.0.0.0:0"], &[]);
    let told = String::from_utf8(bare.stderr).unwrap();
    assert!(told.contains("--keys") && told.contains("--insecure-no-auth"), "{told}");
    let gone = outside.replace("keys.json", "none.json");
    std::fs::write(&config, gone).unwrap();
    let told = String::from_utf8(check(&[config.to_str().unwrap()]).stderr).unwrap();
    assert!(told.contains("auth.keys: cannot read"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_lets_nobody_in_who_was_kept_out_and_a_bad_one_changes_nothing() {
    let site = asking("");
    let file = site.at("keys.json");
    let tenant = keys(&file, &["create", "--tenant", "acme"]);
    let operator = keys(&file, &["create", "--operator"]);
    let server = site.start().await;
    let reload = async || {
        let request = server.http().post(format!("{}/admin/v1/reload", server.admin));
        server.send(request.bearer_auth(text(&operator, "key"))).await.json()
    };
    let stays = async || {
        assert_eq!(with_key(&server, None).await.status, 403);
        assert_eq!(with_key(&server, Some(text(&tenant, "key"))).await.status, 200);
        assert_eq!(server.admin_get("/admin/v1/residency").await.status, 401);
    };
    stays().await;
    let lax = format!("[auth]\nkeys = \"{}\"\nanonymous = true\n", file.display());
    for opening in ["", &lax] {
        site.configure(opening, "", "");
        let told = reload().await;
        assert_eq!(told["outcome"], "refused", "{told}");
        let faults = told["faults"].to_string();
        assert!(faults.contains("auth: ") && faults.contains("restart"), "{told}");
        stays().await;
    }
    let gone = format!(
        "[auth]\nkeys = \"{}\"\n[[tenant]]\nname = \"acme\"\ninvoke = [\"none/**\"]\n",
        site.at("none.json").display()
    );
    site.configure(&gone, "", "");
    let told = reload().await;
    assert_eq!(told["outcome"], "refused", "{told}");
    stays().await;
}

/// All of an answer that depends on who asked for what, the name in it made equal.
fn told(answer: &Answer, name: &str) -> (u16, Vec<(String, String)>, String) {
    let varies = ["x-amzn-requestid", "x-request-id", "date"];
    let headers = answer.headers.iter().filter(|(key, _)| !varies.contains(&key.as_str()));
    let headers = headers.map(|(key, value)| (key.clone(), value.replace(name, "NAME")));
    (answer.status, headers.collect(), answer.body.replace(name, "NAME"))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_loaded_model_is_answered_as_a_missing_one_by_the_whole_server() {
    let site = asking("");
    let (hidden, missing) = ("evil/secret", "evil/nobody");
    site.put(hidden, &signed_classifier(hidden, 2, 100));
    let file = site.at("keys.json");
    let acme = keys(&file, &["create", "--tenant", "acme"]);
    let evil = keys(&file, &["create", "--tenant", "evil"]);
    keys(&file, &["create", "--operator"]);
    let server = site.start().await;
    let ask = |key: &Value, path: &str, body: Value| {
        let request = server.http().post(format!("{}{path}", server.data)).json(&body);
        server.send(request.bearer_auth(text(key, "key")))
    };
    let mine = ask(&evil, "/tokenize", json!({"model": hidden, "inputs": "hello"})).await;
    assert_eq!(mine.status, 200, "it is loaded, by its own tenant: {}", mine.body);
    let fields = |more: Value| {
        move |name: &str| {
            let mut body = more.clone();
            body["model"] = json!(name);
            body
        }
    };
    let posts = [
        ("/tokenize", fields(json!({"prompt": "hi"}))),
        ("/tokenize", fields(json!({"inputs": "hi"}))),
        ("/detokenize", fields(json!({"tokens": [1]}))),
        ("/decode", fields(json!({"ids": [1]}))),
        ("/embed", fields(json!({"inputs": "hi"}))),
        ("/predict", fields(json!({"inputs": "hi"}))),
        ("/rerank", fields(json!({"query": "q", "texts": ["a"]}))),
        ("/v1/embeddings", fields(json!({"input": "hi"}))),
        ("/v1/completions", fields(json!({"prompt": "hi"}))),
        ("/v1/score", fields(json!({"text_1": "a", "text_2": "b"}))),
    ];
    for (path, body) in posts {
        let there = ask(&acme, path, body(hidden)).await;
        let nowhere = ask(&acme, path, body(missing)).await;
        assert!((400..500).contains(&there.status), "{path}: {}", there.body);
        assert_eq!(told(&there, hidden), told(&nowhere, missing), "{path}");
    }
    let get = |base: &str, path: &str| {
        server.send(server.http().get(format!("{base}{path}")).bearer_auth(text(&acme, "key")))
    };
    let by_id =
        async |name: &str| told(&get(&server.data, &format!("/v1/models/{name}")).await, name);
    assert_eq!(by_id(hidden).await, by_id(missing).await);
    assert_eq!(by_id(hidden).await.0, 404);
    // A tenant's credential is none on the admin port, whatever it asks for there.
    for path in ["explain", "versions", "models", "residency", "usage", "regret", "live"] {
        let at = async |name: &str| {
            let path = format!("/admin/v1/{path}?endpoint=default&target={name}&tenant=evil");
            told(&get(&server.admin, &path).await, name)
        };
        assert_eq!(at(hidden).await, at(missing).await, "{path}");
        assert_eq!(at(hidden).await.0, 401, "{path}");
    }
    for command in ["load", "unload", "keep", "release", "refresh", "use"] {
        let at = async |name: &str| {
            let request = server.http().post(format!("{}/admin/v1/{command}", server.admin));
            let request = request.json(&json!({"endpoint": "default", "target": name}));
            told(&server.send(request.bearer_auth(text(&acme, "key"))).await, name)
        };
        assert_eq!(at(hidden).await, at(missing).await, "{command}");
        assert_eq!(at(hidden).await.0, 401, "{command}");
    }
}
