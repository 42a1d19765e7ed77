//! From an engine's start to its end.

use roundhouse_tests::handlers::until;
use roundhouse_tests::models::signed_classifier;
use roundhouse_tests::python;
use roundhouse_tests::server::Server;
use serde_json::json;

use super::{PATIENCE, Stage, ask, chat, gone, lives, parts, residents, said, streamed};

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_started_for_its_target_and_answers_on_every_route_of_its_own() {
    let stage = Stage::new();
    stage.model("gpt/a");
    let files = signed_classifier("own", 1, 0);
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, body)| (name.as_str(), body.as_slice())).collect();
    stage.put("own", &files);
    let engine = stage.engine("gpt/*", &["--mib", "64"], "memory = \"200MiB\"");
    let server = stage.serve("", &[engine]).await;
    assert!(stage.engines().is_empty(), "none is started before it is asked for");
    let answer = server.invoke("default", "gpt/a", json!({"inputs": "x"})).await;
    assert_eq!(answer.status, 424, "{}", answer.body);
    assert!(answer.body.contains("messages, prompt or input"), "{}", answer.body);
    let loads = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!((&loads["loads"], residents(&server).await.len()), (&json!([]), 0), "{loads}");
    assert!(stage.journal().is_empty(), "none is started for what it would refuse");

    let [weights, name, prompt, process] = said(&server, "default:gpt/a", "hé").await;
    assert_eq!((&*weights, &*name, &*prompt), ("gpt/a", "gpt/a", "hé"));
    let answer = server.post("/v1/completions", json!({"model": "gpt/a", "prompt": "x"})).await;
    assert_eq!(parts(answer.json()["choices"][0]["text"].as_str().unwrap())[3], process);
    let answer = server.post("/v1/embeddings", json!({"model": "gpt/a", "input": "x"})).await;
    assert_eq!(answer.json()["data"][0]["embedding"], json!([1.0, 2.0]), "{}", answer.body);

    // Its own tokenizer is asked, where it has a route for it.
    let answer = server.post("/tokenize", json!({"model": "gpt/a", "prompt": "hi"})).await;
    assert_eq!(answer.json()["tokens"], json!([104, 105]), "{}", answer.body);
    let answer = server.post("/detokenize", json!({"model": "gpt/a", "tokens": [104]})).await;
    assert_eq!((answer.status, &answer.json()["error_type"]), (422, &json!("validation")));
    assert!(answer.body.contains("no route /detokenize"), "{}", answer.body);

    // SageMaker's operations go where their fields belong.
    let answer = server.invoke("default", "gpt/a", chat("", "x")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let text = answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(parts(&text)[1], "gpt/a", "{text}");
    let answer = server.invoke("default", "gpt/a", json!({"inputs": "x"})).await;
    assert_eq!((answer.status, &answer.json()["OriginalStatusCode"]), (424, &json!(400)));
    assert!(answer.body.contains("messages, prompt or input"), "{}", answer.body);

    // Streams come piece by piece, and as PayloadParts.
    let mut body = chat("gpt/a", "x");
    body["stream"] = json!(true);
    let answer = server.post("/v1/chat/completions", body.clone()).await;
    assert!(answer.header("content-type").starts_with("text/event-stream"), "{answer:?}");
    assert_eq!(parts(&streamed(&answer.body))[3], process);
    let stream = format!("{}/endpoints/default/invocations-response-stream", server.data);
    let request = server.http().post(stream).header("x-amzn-sagemaker-target-model", "gpt/a");
    let response = request.json(&body).send().await.unwrap();
    let framed = String::from_utf8_lossy(&response.bytes().await.unwrap()).into_owned();
    assert!(framed.contains("PayloadPart") && framed.contains("data: [DONE]"), "{framed}");

    // What the engine says of a request is the client's to hear.
    let answer = ask(&server, "gpt/a", "status 418").await;
    assert_eq!((answer.status, &answer.json()["error"]["message"]), (418, &json!("as you wish")));
    let answer = server.invoke("default", "gpt/a", chat("", "status 418")).await;
    assert_eq!((answer.status, &answer.json()["OriginalStatusCode"]), (424, &json!(418)));

    // It is a resident like others, measured.
    let resident = residents(&server).await.remove(0);
    assert_eq!((&resident["kind"], &resident["target"]), (&json!("external"), &json!("gpt/a")));
    until("it is measured", PATIENCE, async || {
        let taken = residents(&server).await[0]["bytes"]["weights"].as_u64().unwrap();
        (64 << 20..150 << 20).contains(&taken)
    })
    .await;
    // Its process is shown beside it.
    let shown = server.admin_get("/admin/v1/residency").await.json();
    let row = shown["containers"][0].clone();
    assert_eq!((&row["kind"], &row["name"]), (&json!("engine"), &json!("gpt/a")), "{row}");
    assert_eq!((&row["state"], &row["in_flight"]), (&json!("running"), &json!(0)), "{row}");
    assert_eq!(row["pid"].as_u64().unwrap().to_string(), process);
    let why = server.admin_get("/admin/v1/explain?target=gpt/a").await.json();
    assert!(
        why["runs"][0].as_str().unwrap().starts_with("engine, running on cpu, at http"),
        "{why}"
    );

    // A model of our own beside it answers on the same routes.
    let answer = server.invoke("default", "own", json!({"inputs": "hello"})).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let answer = ask(&server, "own", "x").await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.body.contains("classification model"), "{}", answer.body);
    let answer = server.admin_post("unload", "default", "gpt/a").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert!(!lives(&process), "an unload returns when the process is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_client_talks_to_an_engine() {
    let stage = Stage::new();
    stage.model("gpt/a");
    let engine = stage.engine("gpt/*", &[], "memory = \"64MiB\"");
    let server = stage.serve("", &[engine]).await;
    let url = format!("{}/v1", server.data);
    let told = python::client("openai_engine.py", &[&url, "gpt/a"]);
    assert!(told.contains("engine answers"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn engines_make_room_for_each_other() {
    let stage = Stage::new();
    stage.model("gpt/a").model("gpt/b");
    let keys = "memory = \"200MiB\"\nmeasure = false";
    let engines = [stage.engine("gpt/*", &[], keys)];
    let server = stage.serve("[memory]\nbudget = \"300MiB\"", &engines).await;
    let [_, _, _, first] = said(&server, "gpt/a", "x").await;
    let [weights, _, _, second] = said(&server, "gpt/b", "x").await;
    assert_eq!(weights, "gpt/b");
    assert!(!lives(&first) && lives(&second));
    assert_eq!(stage.journal(), ["gpt/a start", "gpt/b start"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_nobody_uses_is_stopped() {
    let stage = Stage::new();
    stage.model("gpt/a");
    stage.model("gpt/b");
    // Where its rule has a time, by that; else by everybody's.
    let engines = [
        stage.engine("gpt/a", &[], "memory = \"64MiB\"\nidle_ttl = \"1s\""),
        stage.engine("gpt/b", &[], "memory = \"64MiB\""),
    ];
    let server = stage.serve("[residency]\nidle_ttl = \"1h\"", &engines).await;
    let [_, _, _, other] = said(&server, "gpt/b", "x").await;
    let [_, _, _, process] = said(&server, "gpt/a", "x").await;
    gone(&process).await;
    assert!(lives(&other));
    let [_, _, _, again] = said(&server, "gpt/a", "x").await;
    assert_ne!(process, again);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_does_not_start_is_told_without_its_words_and_not_started_for_each_request()
{
    let stage = Stage::new();
    stage.model("dies").model("never").model("absent");
    let memory = "memory = \"64MiB\"";
    let limits = format!("{memory}\nstart_timeout = \"5s\"\nstop_timeout = \"1s\"");
    let absent = "[[endpoint.engine]]\ntarget = \"absent\"\nmemory = \"64MiB\"\n\
                  command = [\"/no/such/engine\", \"{port}\"]\n";
    let engines = [
        stage.engine("dies", &["--start", "dies"], memory),
        stage.engine("never", &["--start", "never"], &limits),
        absent.to_owned(),
    ];
    let server = stage.serve("", &engines).await;
    for (target, says, keeps) in [
        ("dies", "ended with exit status 7", "CUDA out of memory"),
        ("never", "was not healthy within 5s", "reading weights"),
        ("absent", "ended with exit status 126", "/no/such/engine"),
    ] {
        for _ in 0..20 {
            let answer = server.invoke("default", target, chat("", "x")).await;
            assert_eq!(answer.status, 424, "{target}: {}", answer.body);
            assert_eq!(answer.header("x-amzn-errortype"), "ModelError");
            let message = answer.json()["OriginalMessage"].as_str().unwrap_or_default().to_owned();
            assert!(message.contains(says) && message.contains(target), "{target}: {message}");
            // That is the operator's, in the log.
            assert!(!message.contains(keeps), "{target}: {message}");
        }
    }
    let starts = |target: &str| stage.journal().iter().filter(|it| it.starts_with(target)).count();
    // More than one where the pause of the first attempt was over; twenty without any.
    assert!((1..9).contains(&starts("dies")) && (1..9).contains(&starts("never")));
    assert!(stage.engines().is_empty(), "{:?}", stage.engines());
    let page = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(page["devices"][0]["reserved_bytes"], 0, "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_takes_its_request_along_and_is_started_again() {
    let stage = Stage::new();
    stage.model("gpt/a").model("gpt/b");
    let server = stage.serve("", &[stage.engine("gpt/*", &[], "memory = \"64MiB\"")]).await;
    let [_, _, _, other] = said(&server, "gpt/b", "x").await;
    let [_, _, _, first] = said(&server, "gpt/a", "x").await;

    let answer = server.invoke("default", "gpt/a", chat("", "die")).await;
    assert_eq!(answer.status, 424, "{}", answer.body);
    assert!(answer.body.contains("ended with exit status 9"), "{}", answer.body);
    let [_, _, _, second] = said(&server, "gpt/a", "x").await;
    assert_ne!(first, second);

    // In the middle of a stream: its last event says so, and nobody takes it for whole.
    let mut body = chat("gpt/a", "die later");
    body["stream"] = json!(true);
    assert!(breaks_off(&server, body).await);
    let third = once_answered(&server, &second).await;
    assert!(third != first && third != second);
    assert_eq!(said(&server, "gpt/b", "x").await[3], other, "others are undisturbed");
}

/// Whether a stream ends with an error behind its first pieces.
async fn breaks_off(server: &Server, body: serde_json::Value) -> bool {
    let url = format!("{}/v1/chat/completions", server.data);
    let response = server.http().post(url).json(&body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    last.starts_with("data: {\"error\"")
        && text.matches("data: ").count() > 1
        && !text.contains("[DONE]")
}

/// Asks until another process than this one answers: after a second death there is a pause.
async fn once_answered(server: &Server, before: &str) -> String {
    let mut process = String::new();
    until("the engine is back", PATIENCE, async || {
        let answer = ask(server, "gpt/a", "x").await;
        let said = answer.json()["choices"][0]["message"]["content"].as_str().map(str::to_owned);
        process = said.map(|said| parts(&said)[3].clone()).unwrap_or_default();
        !process.is_empty() && process != before
    })
    .await;
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_told_whose_prompts_it_reads_by_a_salt_that_nobody_else_can_send() {
    let stage = Stage::new();
    stage.model("shared/a").model("raw/a");
    let settings = "[auth]\nproxy_networks = \"127.0.0.1/32\"\n\
                    [[tenant]]\nname = \"acme\"\ninvoke = [\"shared/**\", \"raw/**\"]\n\
                    [[tenant]]\nname = \"evil\"\ninvoke = [\"shared/**\"]\n";
    let keys = "memory = \"64MiB\"\ncache_salt = true";
    let raw = format!("{keys}\ninvocations = \"/in\"");
    let engines = [stage.engine("shared/*", &[], keys), stage.engine("raw/*", &[], &raw)];
    let server = stage.serve(settings, &engines).await;
    let salt = async |tenant: &str, own: Option<&str>| {
        let mut body = chat("shared/a", "salt");
        if let Some(own) = own {
            body["cache_salt"] = own.into();
        }
        let request = server.http().post(format!("{}/v1/chat/completions", server.data));
        let request = request.header("x-roundhouse-tenant", tenant).json(&body);
        let answer = server.send(request).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let [_, _, salt, _] =
            parts(answer.json()["choices"][0]["message"]["content"].as_str().unwrap());
        salt
    };
    let acme = salt("acme", None).await;
    assert_eq!(acme.len(), 32, "{acme}");
    assert_eq!(salt("acme", None).await, acme);
    for (tenant, own) in [("evil", None), ("evil", Some(&*acme)), ("acme", Some("mine"))] {
        assert_ne!(salt(tenant, own).await, acme, "{tenant} {own:?}");
    }

    // What cannot be salted starts no engine.
    let url = format!("{}/endpoints/default/invocations", server.data);
    let request = server.http().post(url).header("x-roundhouse-tenant", "acme");
    let request = request.header("x-amzn-sagemaker-target-model", "raw/a");
    let answer = server.send(request.body(r#"{"prompt": NaN}"#)).await;
    assert_eq!(answer.status, 424, "{}", answer.body);
    assert!(answer.body.contains("messages, prompt or input"), "{}", answer.body);
    assert_eq!(stage.journal(), ["shared/a start"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_is_asked_who_they_are_no_engine_is_told() {
    let stage = Stage::new();
    stage.model("acme/a");
    let keys = "memory = \"64MiB\"\ncache_salt = true";
    let server = stage.serve("", &[stage.engine("acme/*", &[], keys)]).await;
    let [_, _, salt, _] = said(&server, "acme/a", "salt").await;
    assert_eq!(salt, "None");
}
