//! Limits of tenants and the ledger of what they used, seen from outside; also after `kill -9`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use roundhouse_tests::models::decoder;
use roundhouse_tests::server::{Server, binary};
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};

const TENANTS: [&str; 3] = ["a", "b", "c"];
const CLIENTS: usize = 6;

fn site(sections: &str) -> Site {
    let site = Site::default();
    for tenant in TENANTS {
        site.put(&format!("{tenant}/m"), &decoder(1));
    }
    site.configure(sections, "", "");
    site
}

fn usage(site: &Site, keys: &str) -> String {
    format!("[usage]\nfile = \"{}\"\n{keys}\n", site.at("usage.jsonl").display())
}

/// What the command line says of the ledger.
fn report(site: &Site, more: &[&str]) -> Value {
    let file = site.at("usage.jsonl");
    let told = Command::new(binary())
        .args(["usage", "--json", "--file", file.to_str().unwrap()])
        .args(more)
        .output()
        .unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    serde_json::from_slice(&told.stdout).unwrap()
}

/// Every line of every file.
fn lines(site: &Site) -> Vec<Value> {
    let folder = site.at("usage.jsonl");
    let folder = folder.parent().unwrap();
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    files.retain(|path| is_ledger(path));
    let text = files.iter().map(|path| std::fs::read_to_string(path).unwrap());
    let text: String = text.collect();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn is_ledger(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name.starts_with("usage.") && name.ends_with(".jsonl")
}

/// What clients have in hand: tokens by request id, and the tenant.
type Counted = Arc<Mutex<BTreeMap<String, (String, u64)>>>;

/// Asks without end until told to stop or the server is gone.
async fn client(data: String, number: usize, counted: Counted, stop: Arc<AtomicBool>) {
    let http = reqwest::Client::new();
    let mut turn = number;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let tenant = TENANTS[turn % TENANTS.len()];
        let streams = turn.is_multiple_of(2);
        let body = json!({
            "model": format!("{tenant}/m"), "prompt": "hello world", "max_tokens": 1 + turn % 7,
            "temperature": 0, "ignore_eos": true, "stream": streams,
            "stream_options": streams.then(|| json!({"include_usage": true})),
        });
        let sent = http.post(format!("{data}/v1/completions")).json(&body).send().await;
        let Ok(response) = sent else { continue };
        let id = response.headers()["x-amzn-requestid"].to_str().unwrap().to_owned();
        let status = response.status();
        // A kill in between leaves no whole answer.
        let Ok(text) = response.text().await else { continue };
        if status != 200 || (streams && !text.contains("[DONE]")) {
            continue;
        }
        let whole = if streams {
            let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
            let mut events = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
            events.rfind(|event| event["usage"].is_object()).unwrap_or(Value::Null)
        } else {
            serde_json::from_str(&text).unwrap()
        };
        let tokens = whole["usage"]["completion_tokens"].as_u64().unwrap();
        counted.lock().unwrap().insert(id, (tenant.to_owned(), tokens));
    }
}

/// Runs clients until so many answers more are counted, then does as told to the server.
async fn under_load(mut server: Server, counted: &Counted, more: usize, kill: bool) {
    let enough = counted.lock().unwrap().len() + more;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            tokio::spawn(client(server.data.clone(), number, counted.clone(), stop.clone()))
        })
        .collect();
    until("there is load", || async { counted.lock().unwrap().len() >= enough }).await;
    if kill {
        server.kill();
    } else {
        stop.store(true, Ordering::Relaxed);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    if !kill {
        server.terminate();
        let ended = server.wait(Duration::from_secs(60)).await.unwrap();
        assert!(ended.success(), "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_has_is_in_the_ledger_whenever_the_process_is_killed() {
    let _alone = crate::HEAVY.lock().await;
    let site = site("");
    let keys = usage(&site, "detail = \"request\"\nsync = \"each\"\nrotate_size = \"1MiB\"");
    site.configure(&keys, "", "");
    let counted = Counted::default();
    // Instants that nobody planned: how far clients are when so many are answered.
    for more in [7, 33, 55, 6, 62] {
        under_load(site.start().await, &counted, more, true).await;
    }
    under_load(site.start().await, &counted, 37, false).await;
    let counted = counted.lock().unwrap();
    let lines = lines(&site);
    let mut seen = BTreeMap::new();
    for line in lines.iter().filter(|line| line["kind"] == "request") {
        let id = line["request_id"].as_str().unwrap().to_owned();
        assert!(seen.insert(id, line.clone()).is_none(), "twice: {line}");
    }
    for (id, (tenant, tokens)) in counted.iter() {
        let line = seen.get(id).unwrap_or_else(|| panic!("{id} was answered and has no line"));
        assert_eq!((&line["tenant"], &line["tokens_out"]), (&json!(tenant), &json!(tokens)));
        assert_eq!(line["failed"], 0);
    }
    // Others have a line only where the kill came between line and answer.
    let unanswered = seen.len() - counted.len();
    assert!(unanswered <= 5 * CLIENTS, "{unanswered}");
    let instances: BTreeSet<_> = lines.iter().map(|line| line["instance"].to_string()).collect();
    assert_eq!(instances.len(), 6);
    let told = report(&site, &[]);
    assert_eq!((&told["damaged_lines"], &told["repeated_lines"]), (&json!(0), &json!(0)));
    assert_eq!(told["total"]["requests"], json!(seen.len()));
    let tokens: u64 = seen.values().map(|line| line["tokens_out"].as_u64().unwrap()).sum();
    assert_eq!(told["total"]["tokens_out"], json!(tokens));
    assert!(told["total"]["compute_us"].as_u64() > Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_lose_an_interval_at_most_and_count_nothing_twice() {
    let _alone = crate::HEAVY.lock().await;
    let site = site("");
    site.configure(&usage(&site, "interval = \"1s\""), "", "");
    let counted = Counted::default();
    under_load(site.start().await, &counted, 60, false).await;
    let sum = |counted: &Counted| {
        let counted = counted.lock().unwrap();
        (counted.len() as u64, counted.values().map(|(_, tokens)| tokens).sum::<u64>())
    };
    let total = |told: &Value| {
        let of = |key: &str| told["total"][key].as_u64().unwrap();
        (of("requests"), of("tokens_out"))
    };
    assert_eq!(total(&report(&site, &[])), sum(&counted), "an orderly end loses nothing");
    let a: u64 = counted.lock().unwrap().values().filter(|it| it.0 == "a").map(|it| it.1).sum();
    assert_eq!(report(&site, &["--tenant", "a"])["total"]["tokens_out"], json!(a));

    let server = site.start().await;
    let (before, _) = sum(&counted);
    // All of these are in the ledger when the next are asked.
    let asked = AtomicU64::new(0);
    while asked.fetch_add(1, Ordering::Relaxed) < 10 {
        let body = json!({"model": "a/m", "prompt": "hi", "max_tokens": 3, "ignore_eos": true});
        assert_eq!(server.post("/v1/completions", body).await.status, 200);
    }
    until("they are written", || async { total(&report(&site, &[])).0 == before + 10 }).await;
    let later = Counted::default();
    under_load(server, &later, 25, true).await;
    let after_kill = total(&report(&site, &[])).0;
    let most = before + 10 + sum(&later).0 + CLIENTS as u64;
    assert!((before + 10..=most).contains(&after_kill), "{after_kill} of {most}");
    let last = Counted::default();
    under_load(site.start().await, &last, 20, false).await;
    assert_eq!(total(&report(&site, &[])).0, after_kill + sum(&last).0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_beyond_its_limits_is_refused_before_anything_is_loaded() {
    let site = site("");
    let limits = "[tenant_defaults]\nrequests_per_day = 2\n\
                  [[tenant]]\nname = \"b\"\nrequests_per_day = 4\n\
                  [[tenant]]\nname = \"c\"\ntokens_out_per_minute = 4\n";
    site.configure(&(usage(&site, "interval = \"1s\"") + limits), "", "");
    let server = site.start().await;
    let body = json!({"inputs": "hi", "parameters": {"max_new_tokens": 4, "do_sample": false}});
    let ask = async |target: &str| server.invoke("default", target, body.clone()).await;
    for target in ["a/nothing", "a/nothing"] {
        assert_eq!(ask(target).await.status, 400);
    }
    let refused = ask("a/m").await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.header("x-amzn-errortype"), "ThrottlingException");
    assert!(refused.body.contains("requests_per_day = 2"), "{}", refused.body);
    let devices = server.admin_get("/admin/v1/residency").await.json()["devices"].clone();
    assert_eq!(devices[0]["residents"], json!([]), "nothing was loaded for it");
    for _ in 0..4 {
        assert_eq!(ask("b/m").await.status, 200);
    }
    assert_eq!(ask("c/m").await.status, 200);
    assert_eq!(ask("c/m").await.status, 429, "it generated some of four a minute");
    let refused = "roundhouse_tenancy_refused_requests_total";
    assert_eq!(server.metric_with(refused, "tenant=\"other\"").await, 1.0);
    assert_eq!(server.metric_with(refused, "tenant=\"c\"").await, 1.0);
    let live = server.admin_get("/admin/v1/usage?tenant=b").await.json()["usage"].clone();
    assert_eq!(live[0]["requests"], 4);
    assert!(live[0]["tokens_out"].as_u64() > Some(3));
    until("residents are counted", || async {
        let live = server.admin_get("/admin/v1/usage?tenant=b").await.json()["usage"].clone();
        live[0]["device_byte_seconds"].as_u64() > Some(1_000_000)
    })
    .await;
    // The day's budget is remembered by the ledger.
    let mut server = server;
    until("it is written", || async { report(&site, &[])["total"]["requests"] == json!(7) }).await;
    server.kill();
    let server = site.start().await;
    let answer = server.invoke("default", "b/m", body.clone()).await;
    assert_eq!(answer.status, 429, "{}", answer.body);
}
