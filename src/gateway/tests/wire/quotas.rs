//! Limits of tenants on the wire, and what their requests are counted as.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt};
use roundhouse_serving::{
    Answer, HandledBody, HandledReply, Invocation, Origin, Reply, Request, ScoresReply,
};
use roundhouse_tenancy::{Accounts, Limits, QuotaRules, Rate, Totals};
use roundhouse_types::{ErrorKind, Failure, ModelKind};
use serde_json::json;
use tokio::sync::Notify;

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const FRAMED: &str = "/endpoints/ep/invocations-response-stream";
const CHAT: &str = "/v1/chat/completions";

fn setup(limits: Limits) -> Setup {
    let rules = QuotaRules { others: limits, ..QuotaRules::default() };
    Setup { accounts: Arc::new(Accounts::new(rules)), ..Setup::default() }
}

/// One request in a thousand seconds.
fn one() -> Limits {
    let rate = Rate { per_second: 0.001, burst: 1 };
    Limits { requests: Some(rate), ..Limits::default() }
}

fn chat(model: &str, extra: &str) -> String {
    format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]{extra}}}"#)
}

#[tokio::test]
async fn a_request_too_many_is_told_in_each_dialect_and_reaches_no_model() {
    let body = r#"{"inputs":"hi"}"#;
    for (path, target, body) in [
        (INVOKE, "t/m", body.to_owned()),
        ("/invocations", "t/m", body.to_owned()),
        (CHAT, "", chat("t/m", "")),
    ] {
        let harness = setup(one()).with(|_| says(hello(1), 1));
        assert_eq!(harness.post(path, target, body.clone()).await.status, 200);
        let got = harness.post(path, target, body).await;
        assert_eq!(got.status, 429, "{path}");
        let seconds: u64 = got.header("retry-after").parse().unwrap();
        let milliseconds: u64 = got.header("x-amz-retry-after").parse().unwrap();
        assert!((990..=1000).contains(&seconds), "{seconds}");
        assert!(milliseconds <= seconds * 1000 && milliseconds > (seconds - 1) * 1000);
        let message = "the limit requests_per_second = 0.001 (at once 1) is reached; it frees in ";
        if path == CHAT {
            let error = &got.json()["error"];
            assert_eq!(error["code"], "rate_limit_exceeded");
            assert!(error["message"].as_str().unwrap().starts_with(message));
        } else {
            assert_eq!(got.header("x-amzn-errortype"), "ThrottlingException");
            assert!(got.json()["Message"].as_str().unwrap().starts_with(message));
        }
        assert_eq!(harness.asked.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn whoever_is_over_a_limit_is_told_on_each_face_how_far() {
    let body = r#"{"inputs":"hi"}"#;
    for (path, target, body) in [
        (INVOKE, "t/m", body.to_owned()),
        ("/invocations", "t/m", body.to_owned()),
        ("/generate", "t/m", body.to_owned()),
        ("/embed", "t/m", body.to_owned()),
        ("/tokenize", "t/m", body.to_owned()),
        (CHAT, "", chat("t/m", "")),
        ("/v1/responses", "", r#"{"model":"t/m","input":"hi"}"#.to_owned()),
    ] {
        let harness = setup(one()).with(|_| breaks(ErrorKind::ModelFailed));
        harness.post(path, target, body.clone()).await;
        let got = harness.post(path, target, body).await;
        assert_eq!(got.status, 429, "{path}: {}", got.text());
        assert_eq!(got.header("x-ratelimit-limit-requests"), "1", "{path}");
        assert_eq!(got.header("x-ratelimit-remaining-requests"), "0", "{path}");
        assert!(got.header("x-ratelimit-reset-requests").ends_with("ms"), "{path}");
    }
}

#[tokio::test]
async fn an_engines_answer_is_charged_beforehand_as_long_as_its_request_lets_it_be() {
    for (fields, remaining) in [
        ("", "744"),
        (r#","max_tokens":400"#, "600"),
        (r#","max_tokens":40,"n":5"#, "800"),
        (r#","max_completion_tokens":300.0,"max_tokens":40"#, "700"),
        (r#","max_tokens":5000"#, "0"),
        (r#","max_output_tokens":400"#, "600"),
        (r#","max_output_tokens":1,"max_tokens":400"#, "600"),
        // The engine may say what is wrong with it.
        (r#","max_tokens":"many","n":-1"#, "744"),
        (r#","max_tokens":10,"prompt":["a","b"]"#, "980"),
        (r#","max_tokens":10,"prompt":[1,2]"#, "990"),
    ] {
        let limits = Limits { tokens_out_per_minute: Some(1000), ..Limits::default() };
        let setup = Setup { handlers: true, engines: true, ..setup(limits) };
        let harness = setup.with(|invocation| engine_says(&invocation, 200));
        let got = harness.post(CHAT, "", chat("t/m", fields)).await;
        assert_eq!(got.status, 200, "{fields}: {}", got.text());
        assert_eq!(got.header("x-ratelimit-remaining-tokens"), remaining, "{fields}");
    }
}

#[tokio::test]
async fn what_an_engine_refuses_or_breaks_at_has_failed() {
    for (status, failed) in [(200, 0), (400, 1), (500, 1)] {
        let setup = setup(Limits::default());
        let accounts = setup.accounts.clone();
        let setup = Setup { handlers: true, engines: true, ..setup };
        let harness = setup.with(move |invocation| engine_says(&invocation, status));
        assert_eq!(harness.post(CHAT, "", chat("t/m", "")).await.status, status);
        let sums = accounts.totals();
        let [(_, totals)] = &sums[..] else { panic!("{sums:?}") };
        assert_eq!((totals.requests, totals.failed), (1, failed), "{status}");
    }
}

/// An engine's answer with this status.
fn engine_says(invocation: &Invocation, status: u16) -> Result<Answer, Failure> {
    let Request::Raw(raw) = &invocation.request else { panic!("it was read") };
    let reply = HandledReply {
        status,
        content_type: Some("application/json".into()),
        headers: Vec::new(),
        body: HandledBody::Whole("{}".into()),
        origin: Origin::Engine(raw.route),
    };
    Ok(Answer { reply: Reply::Handled(reply), served: served(ModelKind::External) })
}

#[tokio::test]
async fn a_tenant_is_the_first_segment_of_its_target_and_others_are_not_touched() {
    let harness = setup(one()).with(|_| says(hello(1), 1));
    let ask = |target: &'static str| harness.post(INVOKE, target, r#"{"inputs":"hi"}"#);
    assert_eq!(ask("a/m").await.status, 200);
    assert_eq!(ask("a/other").await.status, 429);
    assert_eq!(ask("b/m").await.status, 200);
}

#[tokio::test]
async fn openai_answers_say_what_is_left() {
    let limits = Limits { tokens_out_per_minute: Some(1000), ..one() };
    let harness = setup(limits).with(|_| says(hello(1), 1));
    let got = harness.post(CHAT, "", chat("t/m", r#","max_tokens":400"#)).await;
    assert_eq!(got.status, 200);
    assert_eq!(got.header("x-ratelimit-limit-tokens"), "1000");
    assert_eq!(got.header("x-ratelimit-remaining-tokens"), "600");
    assert_eq!(got.header("x-ratelimit-remaining-requests"), "0");
}

#[tokio::test]
async fn what_was_generated_is_settled_in_place_of_what_was_estimated() {
    let limits = Limits { tokens_out_per_minute: Some(1000), ..Limits::default() };
    let harness = setup(limits).with(|_| says(hello(1), 1));
    // 990 are promised each time, four are generated.
    for _ in 0..3 {
        let got = harness.post(CHAT, "", chat("t/m", r#","max_tokens":980"#)).await;
        assert_eq!(got.status, 200, "{}", got.text());
    }
    let streamed = chat("t/m", r#","max_tokens":900,"stream":true"#);
    assert_eq!(harness.post(CHAT, "", streamed).await.status, 200);
    assert_eq!(harness.post(CHAT, "", chat("t/m", r#","max_tokens":995"#)).await.status, 429);
}

#[tokio::test]
async fn whole_streamed_framed_and_cut_answers_are_counted_as_they_were() {
    let setup = setup(Limits::default());
    let accounts = setup.accounts.clone();
    let harness = setup.with(|_| says(hello(2), 2));
    let two = |extra: &str| chat("t/m", &format!(r#","n":2{extra}"#));
    let whole = harness.post(CHAT, "", two("")).await;
    let usage = &whole.json()["usage"];
    assert_eq!(usage["completion_tokens"], 8);
    let of = |target: &str| {
        let sums = accounts.totals();
        let of_model = |it: &&(roundhouse_tenancy::Key, Totals)| {
            it.0.model.as_ref().is_some_and(|model| model.target.as_str() == target)
        };
        sums.iter().find(of_model).map(|(_, totals)| *totals).unwrap_or_default()
    };
    let first = of("t/m");
    let body = two("").len() as u64;
    let wanted = Totals {
        requests: 1,
        tokens_in: 3,
        tokens_cached: usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(),
        tokens_out: 8,
        bytes_in: body,
        bytes_out: whole.body.len() as u64,
        load_ms: 120,
        ..Totals::default()
    };
    assert_eq!((first, first.tokens_cached), (wanted, 2));

    let streamed = harness.post(CHAT, "", two(r#","stream":true"#)).await;
    let second = of("t/m") - first;
    assert_eq!((second.tokens_out, second.bytes_out), (8, streamed.body.len() as u64));
    assert_eq!((second.failed, second.tokens_cached), (0, 2));

    let framed = harness.post(FRAMED, "f/m", r#"{"inputs":["a","b"]}"#).await;
    assert_eq!(of("f/m").bytes_out, framed.body.len() as u64);
    assert_eq!((of("f/m").requests, of("f/m").failed), (1, 0));

    // A client that leaves after the first event.
    let mut request = post(CHAT, "", two(r#","stream":true"#));
    request.headers_mut().insert("x-amzn-sagemaker-target-model", "left/m".parse().unwrap());
    let mut body = harness.raw(request).await.into_body().into_data_stream();
    body.next().await.unwrap().unwrap();
    assert_eq!(of("left/m"), Totals::default(), "it is under way");
    drop(body);
    let left = of("left/m");
    assert_eq!((left.requests, left.failed, left.tokens_in), (1, 1, 3));
    assert_eq!(left.tokens_out, 1);
}

#[tokio::test]
async fn failures_are_counted_for_the_model_only_where_it_was_reached() {
    let setup = setup(Limits::default());
    let accounts = setup.accounts.clone();
    let harness = setup.with(|invocation| match invocation.model.target.as_str() {
        "t/breaks" => breaks(ErrorKind::ModelFailed),
        _ => Err(Failure::new(ErrorKind::ModelNotFound, "no such target")),
    });
    let body = r#"{"inputs":"hi"}"#;
    assert_eq!(harness.post(INVOKE, "t/breaks", body).await.status, 424);
    for target in ["x/one", "x/two", "y"] {
        assert_eq!(harness.post(INVOKE, target, body).await.status, 400);
    }
    let sums = accounts.totals();
    let shown: Vec<_> = sums
        .iter()
        .map(|(key, totals)| {
            let model = key.model.as_ref().map(|model| model.target.to_string());
            json!([key.tenant, model, totals.requests, totals.failed, totals.tokens_out])
        })
        .collect();
    assert_eq!(shown, [json!([null, null, 3, 3, 0]), json!(["t", "t/breaks", 1, 1, 1])]);
}

#[tokio::test]
async fn lists_and_looks_count_as_requests() {
    for path in ["/v1/models", "/v1/models/a", "/v1/models/none"] {
        let setup = setup(one());
        let accounts = setup.accounts.clone();
        let harness = setup.with(|_| panic!("no model is asked"));
        assert!([200, 404].contains(&harness.get(path).await.status.as_u16()), "{path}");
        let refused = harness.get(path).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.json()["error"]["code"]),
            (429, &json!("rate_limit_exceeded"))
        );
        let sums = accounts.totals();
        let counted: Vec<_> = sums.iter().map(|(key, it)| (&key.model, it.requests)).collect();
        assert_eq!(counted, [(&None, 1)], "{path}");
    }
}

#[tokio::test]
async fn the_description_counts_as_a_request() {
    let harness = setup(one()).with(|_| panic!("no model is asked"));
    let got = harness.get("/openapi.json").await;
    assert_eq!((got.status.as_u16(), got.header("content-type")), (200, "application/json"));
    assert_eq!(got.json()["openapi"], "3.1.0");
    let got = harness.get("/openapi.json").await;
    let kind = got.header("x-amzn-errortype");
    assert_eq!((got.status.as_u16(), kind), (429, "ThrottlingException"));
}

#[tokio::test]
async fn what_a_handler_may_take_is_charged_while_it_runs_and_given_back() {
    let limits = Limits { tokens_out_per_minute: Some(300), ..Limits::default() };
    let go_on = Arc::new(Notify::new());
    let waiting = go_on.clone();
    let harness = Setup { handlers: true, ..setup(limits) }.with_async(Arc::new(move |_| {
        let go_on = waiting.clone();
        async move {
            go_on.notified().await;
            let body = HandledBody::Whole("ok".into());
            let reply = HandledReply {
                status: 200,
                content_type: None,
                headers: Vec::new(),
                body,
                origin: Origin::Handler,
            };
            Ok(Answer { reply: Reply::Handled(reply), served: served(ModelKind::Handler) })
        }
        .boxed()
    }));
    let beside = async {
        let got = harness.post(INVOKE, "a", "any").await;
        go_on.notify_one();
        got
    };
    let (first, second) = tokio::join!(harness.post(INVOKE, "a", "any"), beside);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 429));
    go_on.notify_one();
    assert_eq!(harness.post(INVOKE, "a", "any").await.status, 200);
}

#[tokio::test]
async fn an_answer_that_must_be_long_is_charged_as_one() {
    for (fields, remaining) in [
        (r#","min_tokens":700"#, "300"),
        (r#","max_tokens":10,"min_tokens":700"#, "300"),
        (r#","ignore_eos":true"#, "0"),
        (r#","ignore_eos":true,"max_tokens":100"#, "900"),
    ] {
        let limits = Limits { tokens_out_per_minute: Some(1000), ..Limits::default() };
        let harness = setup(limits).with(|_| says(hello(1), 1));
        let got = harness.post(CHAT, "", chat("t/m", fields)).await;
        assert_eq!(got.header("x-ratelimit-remaining-tokens"), remaining, "{fields}");
    }
}

#[tokio::test]
async fn a_query_is_charged_with_each_of_its_documents() {
    let limits = Limits { tokens_in_per_minute: Some(1000), ..Limits::default() };
    let harness = setup(limits).with(|_| {
        let scores = vec![0.5, 0.25, 0.125];
        let reply = Reply::Scores(ScoresReply { scores, prompt_tokens: 3 });
        Ok(Answer { reply, served: served(ModelKind::Classification) })
    });
    let query = "q".repeat(400);
    let body = json!({"model": "t/m", "query": query, "documents": ["x", "y", "z"]}).to_string();
    let charged = body.len().div_ceil(4) + 3 * 100;
    let got = harness.post("/v1/rerank", "", body).await;
    assert_eq!(got.header("x-ratelimit-remaining-tokens"), (1000 - charged).to_string());
}
