//! Requests to external engines: their bodies and answers, untouched, and what is counted of them.

use std::sync::Arc;

use axum::body::Body;
use futures_util::FutureExt;
use http::Request;
use roundhouse_serving::{
    Answer, HandledBody, HandledReply, Origin, ReadBody, Reply, Request as Asked, Route, Taken,
    Tokens, TokensReply,
};
use roundhouse_types::{Failure, ModelKind};
use serde_json::json;

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"model": "a", "messages": [ {"role": "user", "content": 1e0} ]}"#;

fn engines() -> Setup {
    Setup { handlers: true, engines: true, ..Setup::default() }
}

/// An engine's whole answer at the route that it was asked at.
fn answers(asked: &Asked, status: u16, body: &str) -> Result<Answer, Failure> {
    let Asked::Raw(raw) = asked else { panic!("it was read") };
    let reply = HandledReply {
        status,
        content_type: Some("application/json".into()),
        headers: Vec::new(),
        body: HandledBody::Whole(body.to_owned().into()),
        origin: Origin::Engine(raw.route),
    };
    Ok(Answer { reply: Reply::Handled(reply), served: served(ModelKind::External) })
}

#[tokio::test]
async fn an_engine_is_asked_as_the_client_asked_and_its_errors_are_its_own() {
    let said = r#"{"error": {"message": "too long", "param": "messages"}}"#;
    let harness = engines().with(move |invocation| answers(&invocation.request, 422, said));
    for (path, route) in [
        (CHAT, Route::Chat),
        ("/v1/completions", Route::Completions),
        ("/v1/embeddings", Route::Embeddings),
        ("/v1/responses", Route::Responses),
    ] {
        let got = harness.post(path, "", BODY).await;
        assert_eq!((got.status.as_u16(), got.text()), (422, said.to_owned()), "{path}");
        let asked = harness.asked.lock().unwrap();
        let Asked::Raw(raw) = &asked.last().unwrap().request else { panic!("it was read") };
        assert_eq!((raw.route, &raw.body.body[..]), (route, BODY.as_bytes()));
        assert!(!raw.body.stream);
    }
    // SageMaker has a form of its own for what a container says.
    let got = harness.post(INVOKE, "a", BODY).await;
    assert_eq!((got.status.as_u16(), &got.json()["OriginalStatusCode"]), (424, &json!(422)));
    assert_eq!(got.json()["OriginalMessage"], said);
}

#[tokio::test]
async fn what_an_engine_says_of_a_response_is_counted_whole_and_streamed() {
    let usage = r#""usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}"#;
    let created = r#"{"type": "response.created", "response": {"id": "resp_1", "usage": null}}"#;
    let delta = r#"{"type": "response.output_text.delta", "delta": "x"}"#;
    let completed = format!(r#"{{"type": "response.completed", "response": {{{usage}}}}}"#);
    let events: String =
        [("created", created), ("output_text.delta", delta), ("completed", completed.as_str())]
            .map(|(name, data)| format!("event: response.{name}\ndata: {data}\n\n"))
            .concat();
    for (stream, media, said) in [
        (false, "application/json", format!(r#"{{"object": "response", {usage}}}"#)),
        (true, "text/event-stream", events),
    ] {
        let answer = said.clone();
        let harness = engines().with(move |invocation| {
            let Asked::Raw(raw) = &invocation.request else { panic!("it was read") };
            assert_eq!((raw.route, raw.body.stream), (Route::Responses, stream));
            let mut answer = answers(&invocation.request, 200, &answer)?;
            if let Reply::Handled(reply) = &mut answer.reply {
                reply.content_type = Some(media.into());
            }
            Ok(answer)
        });
        let body = json!({"model": "a", "input": "hi", "stream": stream, "store": true});
        let got = harness.post("/v1/responses", "", body.to_string()).await;
        assert_eq!((got.status.as_u16(), got.text()), (200, said));
        assert_eq!(got.header("content-type"), media);
        assert_eq!(got.header("x-roundhouse-ignored"), "store", "no engine is asked to store it");
        let logged = harness.logged.lock().unwrap();
        let record = logged.last().unwrap();
        assert_eq!((record.tokens_in, record.tokens_out), (Some(5), Some(7)), "{media}");
    }
}

#[tokio::test]
async fn no_engine_is_asked_for_what_it_may_have_stored_of_others_or_for_work_without_an_end() {
    let harness = engines().with(|invocation| answers(&invocation.request, 200, "{}"));
    for (field, value) in [
        ("previous_response_id", json!("resp_1")),
        ("conversation", json!("conv_1")),
        ("prompt", json!({"id": "pmpt_1"})),
        ("background", json!(true)),
    ] {
        let mut body = json!({"model": "a", "input": "hi"});
        body[field] = value;
        let got = harness.post("/v1/responses", "", body.to_string()).await;
        assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!(field)));
    }
    assert!(harness.asked.lock().unwrap().is_empty());
    let body = json!({"model": "a", "input": "hi", "background": false}).to_string();
    assert_eq!(harness.post("/v1/responses", "", body.clone()).await.text(), "{}");
    let asked = harness.asked.lock().unwrap();
    let Asked::Raw(raw) = &asked.last().unwrap().request else { panic!("it was read") };
    assert_eq!(&raw.body.body[..], body.as_bytes(), "it goes on as it came");
}

#[tokio::test]
async fn a_model_of_ours_beside_engines_is_read_when_it_is_known() {
    let harness = engines().with_async(Arc::new(|invocation| {
        async move {
            let Asked::Raw(raw) = invocation.request else { panic!("it was read") };
            let ReadBody::Request(request) = (raw.read)(raw.body.body).await? else {
                panic!("it names no adapters")
            };
            assert!(matches!(*request, Asked::Chat(_)));
            says(hello(1), 1)
        }
        .boxed()
    }));
    let chat = r#"{"model": "a", "messages": [{"role": "user", "content": "hi"}]}"#;
    let got = harness.post(CHAT, "", chat).await;
    assert_eq!(got.json()["choices"][0]["message"]["content"], "Hello é", "{}", got.text());
    let got = harness.post(CHAT, "", r#"{"model": "a", "messages": 1}"#).await;
    assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!("messages")));
    let stream = chat.replacen('{', r#"{"stream": true, "#, 1);
    let request = Request::post(CHAT).header("content-type", "application/json");
    let (_, chunks) = harness.chunks(request.body(Body::from(stream)).unwrap()).await;
    assert!(chunks.last().unwrap().ends_with(b"data: [DONE]\n\n"));
}

#[tokio::test]
async fn what_an_engine_says_that_it_took_is_counted_else_its_events_are() {
    let event = r#"data: {"choices": [{"delta": {"content": "x"}}]}"#;
    let usage = r#"{"usage": {"prompt_tokens": 5, "completion_tokens": 7}}"#;
    let (sent, all) = (BODY.len().div_ceil(4), (Some(5), Some(7)));
    for (body, counted) in [
        (usage.to_owned(), (Some(5), Some(7))),
        (format!("{event}\n\n{event}\n\ndata: [DONE]\n\n"), (Some(sent), Some(2))),
        (format!("{event}\n\ndata: {usage}\n\ndata: [DONE]\n\n"), (Some(5), Some(7))),
        ("{\n\"usage\": {\"prompt_tokens\": 5,\n \"completion_tokens\": 7}}\n".to_owned(), all),
        ("plain text".to_owned(), (Some(sent), None)),
        (format!(r#"{{"x": "{}", {}"#, "x".repeat(2 << 20), &usage[1..]), all),
    ] {
        let said = body.clone();
        let harness = engines().with(move |invocation| answers(&invocation.request, 200, &said));
        assert_eq!(harness.post(INVOKE, "a", BODY).await.text(), body);
        let logged = harness.logged.lock().unwrap();
        let record = logged.last().unwrap();
        let shown = &body[..body.len().min(100)];
        assert_eq!((record.tokens_in, record.tokens_out), counted, "{shown}");
    }
    let harness = engines().with(move |invocation| answers(&invocation.request, 422, "no"));
    harness.post(CHAT, "", BODY).await;
    assert_eq!(harness.logged.lock().unwrap().last().unwrap().tokens_in, None);
}

#[tokio::test]
async fn an_engines_tokenizer_is_asked_at_its_own_route_and_costs_no_tokens() {
    let said = r#"{"tokens": [1, 2]}"#;
    let harness = engines().with(move |invocation| answers(&invocation.request, 200, said));
    for (path, route) in [
        ("/tokenize", Route::Tokenize),
        ("/detokenize", Route::Detokenize),
        ("/decode", Route::Decode),
    ] {
        // What the body asks is the engine's to know: this is llama-server's.
        let body = r#"{"model": "a", "content": "x", "tokens": [1e0]}"#;
        let got = harness.post(path, "", body).await;
        assert_eq!((got.status.as_u16(), got.text()), (200, said.to_owned()), "{path}");
        let asked = harness.asked.lock().unwrap();
        let Asked::Raw(raw) = &asked.last().unwrap().request else { panic!("it was read") };
        assert_eq!((raw.route, &raw.body.body[..]), (route, body.as_bytes()));
        let logged = harness.logged.lock().unwrap();
        let record = logged.last().unwrap();
        assert_eq!((record.tokens_in, record.tokens_out), (None, None));
    }
    let got = harness.post("/tokenize", "", "[]").await;
    assert_eq!(got.status, 422, "what is no object goes to nobody");
}

#[tokio::test]
async fn an_engine_without_such_a_route_says_no_word_of_models() {
    for status in [404, 405, 501] {
        let harness =
            engines().with(move |invocation| answers(&invocation.request, status, "no such model"));
        let got = harness.post("/decode", "a", r#"{"ids": [1]}"#).await;
        assert_eq!((got.status.as_u16(), &got.json()["error_type"]), (422, &json!("validation")));
        assert!(got.text().contains("no route /decode") && !got.text().contains("such model"));
    }
    // Anything else is the engine's own word.
    let harness = engines().with(|invocation| answers(&invocation.request, 400, "too long"));
    let got = harness.post("/tokenize", "a", r#"{"prompt": "x"}"#).await;
    assert_eq!((got.status.as_u16(), got.text().as_str()), (400, "too long"));
}

#[tokio::test]
async fn an_engine_without_responses_says_so_and_one_without_the_model_as_well() {
    let unrouted = r#"{"detail": "Not Found"}"#;
    let unknown = r#"{"error": {"message": "no model m", "code": "model_not_found"}}"#;
    let of_vllm = r#"{"error": {"message": "no model m", "code": 404, "param": "model"}}"#;
    for (body, is_unrouted) in [(unrouted, true), ("", true), (unknown, false), (of_vllm, false)] {
        let harness = engines().with(move |invocation| answers(&invocation.request, 404, body));
        let got = harness.post("/v1/responses", "", r#"{"model": "a", "input": "x"}"#).await;
        if is_unrouted {
            assert_eq!(got.status, 400, "{}", got.text());
            assert!(got.text().contains("no route /v1/responses"), "{}", got.text());
        } else {
            assert_eq!((got.status.as_u16(), got.text().as_str()), (404, body));
        }
        // Of other routes it is the engine's own word.
        let got = harness.post(CHAT, "", BODY).await;
        assert_eq!((got.status.as_u16(), got.text().as_str()), (404, body));
    }
}

#[tokio::test]
async fn a_tokenizer_of_ours_beside_engines_is_asked_as_anywhere() {
    let harness = engines().with_async(Arc::new(|invocation| {
        async move {
            let Asked::Raw(raw) = invocation.request else { panic!("it was read") };
            let ReadBody::Request(request) = (raw.read)(raw.body.body).await? else {
                panic!("it names no adapters")
            };
            let Asked::Tokens(Tokens::Join { lists, .. }) = *request else { panic!("{request:?}") };
            let (texts, kind) = (vec![format!("{lists:?}")], ModelKind::Generative);
            let (lists, taken) = (Vec::new(), Taken::default());
            let reply = TokensReply { lists, texts, kind, context: 7, taken };
            Ok(Answer { reply: Reply::Tokens(reply), served: served(kind) })
        }
        .boxed()
    }));
    let got = harness.post("/detokenize", "a", r#"{"tokens": [3]}"#).await;
    assert_eq!(got.json(), json!({"prompt": "[[3]]"}), "{}", got.text());
    let got = harness.post("/detokenize", "a", r#"{"tokens": "3"}"#).await;
    assert_eq!(got.status, 422, "{}", got.text());
}
