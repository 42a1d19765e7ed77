//! Chat templates that mean harm, in a server that has others to answer.

use std::fs;
use std::path::Path;
use std::time::Duration;

use roundhouse_tests::models::decoder;
use roundhouse_tests::processes::{cmdline, kill, processes_of_group, pss};
use roundhouse_tests::server::{Answer, Server};
use serde_json::{Value, json};

/// A text that is doubled sixty times.
const DOUBLES: &str = "{% set ns = namespace(x=messages[0].content) %}{% for i in range(60) %}\
                       {% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}";
const PLAIN: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";

fn put(store: &Path, target: &str, template: &str) {
    let folder = store.join(target);
    fs::create_dir_all(&folder).unwrap();
    for (path, body) in decoder(4) {
        fs::write(folder.join(path), body).unwrap();
    }
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
}

async fn chat(server: &Server, target: &str) -> Answer {
    let messages = json!([{"role": "user", "content": "sixteen letters."}]);
    let body = json!({"model": target, "messages": messages, "max_tokens": 2, "temperature": 0});
    server.post("/v1/chat/completions", body).await
}

/// The processes that render for a server.
fn renderers() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|process| cmdline(*process).contains("render-templates")).collect()
}

fn renderers_of(server: u32) -> Vec<u32> {
    let started_by = |process: &u32| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{server}"))
    };
    renderers().into_iter().filter(started_by).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_takes_all_memory_fails_alone_and_the_server_lives_on() {
    let store = tempfile::tempdir().unwrap();
    put(store.path(), "bad/doubles", DOUBLES);
    put(store.path(), "good/plain", PLAIN);
    let uri = format!("file://{}/", store.path().display());
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().to_str().unwrap();
    let args = ["serve", "--store", &uri, "--cache-dir", cache, "--memory", "1GiB"];
    let env = [("ROUNDHOUSE_SERVING_TEMPLATE_MEMORY", "128MiB")];
    let mut server = Server::start(&args, &env).await;
    let answer = chat(&server, "good/plain").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    // One was made ready by the load, and is enough.
    let [first] = renderers_of(server.pid())[..] else { panic!("one process renders") };
    assert_eq!(processes_of_group(first), [first], "a terminal's signals are not for it");
    println!("its proportional set size: {} bytes", pss(&[first].into()));

    let (bad, good) = tokio::join!(chat(&server, "bad/doubles"), chat(&server, "good/plain"));
    assert_eq!(good.status, 200, "{}", good.body);
    assert_eq!(bad.status, 400, "{}", bad.body);
    assert!(bad.body.contains("ran out of its memory of 128.0 MiB"), "{}", bad.body);
    let body = json!({"messages": [{"role": "user", "content": "sixteen letters."}]});
    let invoked = server.invoke("default", "bad/doubles", body.clone()).await;
    let said = invoked.json();
    assert_eq!((invoked.status, &said["OriginalStatusCode"]), (424, &json!(400)), "{said}");
    let paused = chat(&server, "bad/doubles").await;
    assert_eq!(paused.status, 503, "{}", paused.body);
    assert!(paused.body.contains("2 times in a row"), "{}", paused.body);
    // Its own tokens need no template.
    let body = json!({"model": "bad/doubles", "prompt": "a", "max_tokens": 2});
    assert_eq!(server.post("/v1/completions", body).await.status, 200);
    let ended = "roundhouse_templates_processes_ended_total";
    assert!(server.metric_with(ended, "memory").await >= 2.0);

    for _ in 0..3 {
        renderers_of(server.pid()).into_iter().for_each(kill);
        let answer = chat(&server, "good/plain").await;
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let last = renderers_of(server.pid());
    assert!(!last.is_empty() && !last.contains(&first));
    server.kill();
    let mut looks = 0;
    while last.iter().any(|process| cmdline(*process).contains("render-templates")) {
        looks += 1;
        assert!(looks < 500, "{last:?} outlive their server");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_may_have_templates_rendered_in_the_servers_process() {
    let store = tempfile::tempdir().unwrap();
    put(store.path(), "good/plain", PLAIN);
    let uri = format!("file://{}/", store.path().display());
    let cache = tempfile::tempdir().unwrap();
    let cache = cache.path().to_str().unwrap();
    let args = ["serve", "--store", &uri, "--cache-dir", cache, "--memory", "1GiB"];
    let said = |answer: Answer| {
        assert_eq!(answer.status, 200, "{}", answer.body);
        let said: Value = answer.json();
        (said["usage"].clone(), said["choices"][0]["message"].clone())
    };
    let server = Server::start(&args, &[("ROUNDHOUSE_SERVING_TEMPLATE_PROCESS", "false")]).await;
    let here = said(chat(&server, "good/plain").await);
    assert!(renderers_of(server.pid()).is_empty());
    drop(server);
    let server = Server::start(&args, &[]).await;
    assert_eq!(said(chat(&server, "good/plain").await), here);
    assert_eq!(renderers_of(server.pid()).len(), 1);
}
