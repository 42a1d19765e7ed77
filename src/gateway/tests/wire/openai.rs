//! `/v1/…`.

mod completions;
mod logprobs;
mod responses;
mod vllm;

use http::Request;
use roundhouse_serving::{
    ALTERNATIVES_MAX, ANSWERS_MAX, Finish, FormKind, Generation, Piece, Prompt, Request as Asked,
    STOPS_MAX, TokenInfo, TokenPlace, ToolCall, ToolChoice,
};
use roundhouse_types::{Detail, ErrorKind, Failure, RetryHint};
use serde_json::{Value, json};

use crate::support::*;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(extra: Value) -> String {
    let mut body = json!({"model": "a", "messages": [{"role": "user", "content": "hi"}]});
    let extra = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(extra);
    body.to_string()
}

#[tokio::test]
async fn a_chat_is_answered_whole_with_usage_and_log_probabilities() {
    let harness = Setup::default().with(|_| says(hello(2), 2));
    let body = chat(json!({"n": 2, "logprobs": true, "top_logprobs": 1}));
    let got = harness.post(CHAT, "", body).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert!(got.json()["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(got.json()["created"].as_u64().unwrap() > 1_700_000_000);
    insta::assert_snapshot!(steady(&got.text()));
}

#[tokio::test]
async fn every_field_of_a_chat_reaches_the_model() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let body = chat(json!({
        "max_completion_tokens": 9, "max_tokens": 5, "temperature": 0.5, "top_p": 0.25,
        "top_k": -1, "min_p": 0.125, "repetition_penalty": 1.5, "presence_penalty": 1,
        "frequency_penalty": -1, "seed": 7, "stop": "x", "stop_token_ids": [4],
        "ignore_eos": true, "min_tokens": 2, "logprobs": true, "top_logprobs": 3,
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto",
        "chat_template_kwargs": {"enable_thinking": false}, "response_format": {"type": "json_object"},
        "user": "u", "metadata": {}, "logit_bias": {"5": 1.5}, "parallel_tool_calls": false,
        "include_stop_str_in_output": true, "skip_special_tokens": false, "add_special_tokens": false,
        "truncate_prompt_tokens": 50, "documents": [{"text": "d"}], "reasoning_effort": "low",
        "continue_final_message": true, "add_generation_prompt": false, "echo": true,
        "prompt_logprobs": 2, "return_token_ids": true,
    }));
    assert_eq!(harness.post(CHAT, "", body).await.status, 200);
    let asked = harness.asked.lock().unwrap();
    let Asked::Chat(chat) = &asked[0].request else { panic!("not a chat") };
    insta::assert_debug_snapshot!(chat);
}

#[tokio::test]
async fn what_would_change_the_answer_and_is_not_supported_is_refused() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let cases = [
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": "json"}), "response_format"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": {"type": "custom"}, "tools": [{}]}), "tool_choice"),
        (json!({"tools": [1]}), "tools"),
        (json!({"logit_bias": {"5": 101}}), "logit_bias"),
        (json!({"logit_bias": {"five": 1}}), "logit_bias"),
        (json!({"best_of": 2}), "best_of"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"guided_json": 5}), "guided_json"),
        (json!({"guided_grammar": 5}), "guided_grammar"),
        (json!({"structural_tag": "<tool>"}), "structural_tag"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"n": 0}), "n"),
        (json!({"n": ANSWERS_MAX + 1}), "n"),
        (json!({"logprobs": true, "top_logprobs": ALTERNATIVES_MAX + 1}), "top_logprobs"),
        (json!({"stop": vec!["a"; STOPS_MAX + 1]}), "stop"),
        (json!({"stop_token_ids": vec![1; STOPS_MAX + 1]}), "stop_token_ids"),
        (json!({"messages": []}), "messages"),
        (json!({"chat_template": "x"}), "chat_template"),
        (json!({"stream": 1}), "stream"),
        (json!({"allowed_token_ids": [1]}), "allowed_token_ids"),
        (json!({"bad_words": ["a"]}), "bad_words"),
        (json!({"logits_processors": ["a"]}), "logits_processors"),
        (json!({"no_repeat_ngram_size": 2}), "no_repeat_ngram_size"),
        (json!({"typical_p": 0.5}), "typical_p"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"web_search_options": {}}), "web_search_options"),
        (json!({"truncate_prompt_tokens": 0}), "truncate_prompt_tokens"),
        (json!({"truncation_side": "middle"}), "truncation_side"),
        (json!({"documents": ["a"]}), "documents"),
        (
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
        ),
        (
            json!({"response_format": {"type": "structural_tag", "format": 1}, "guided_regex": "a"}),
            "guided_regex",
        ),
    ];
    for (extra, param) in cases {
        let got = harness.post(CHAT, "", chat(extra)).await;
        let error = &got.json()["error"];
        assert_eq!((got.status.as_u16(), &error["param"]), (400, &json!(param)), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().starts_with(param), "{error}");
    }
    assert!(harness.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn fields_that_openais_routes_do_not_read_are_told_and_no_fault() {
    let harness = Setup::default().with(|invocation| match invocation.request {
        Asked::Embeddings(_) => embeds(vec![vec![0.5]]),
        _ => says(hello(1), 1),
    });
    let ignored = async |path: &'static str, extra: Value| {
        let mut body: Value = serde_json::from_str(&chat(extra)).unwrap();
        match path {
            CHAT => {}
            COMPLETIONS => body = renamed(body, "prompt"),
            _ => body = renamed(body, "input"),
        }
        let got = harness.post(path, "", body.to_string()).await;
        assert_eq!(got.status, 200, "{path}: {}", got.text());
        got.headers.get("x-roundhouse-ignored").map(|names| names.to_str().unwrap().to_owned())
    };
    for path in [CHAT, COMPLETIONS, "/v1/embeddings"] {
        let usual = json!({"user": "u", "metadata": {}, "store": true, "service_tier": "auto"});
        assert_eq!(ignored(path, usual).await, None, "{path}");
        let odd = json!({"repetiton_penalty": 2, "dimension": 4, "no": null});
        let told = ignored(path, odd).await;
        assert_eq!(told.as_deref(), Some("dimension, repetiton_penalty"), "{path}");
    }
    let neutral = json!({
        "bad_words": [], "allowed_token_ids": null, "logits_processors": null, "typical_p": 1,
        "no_repeat_ngram_size": 0, "max_completion_tokens": 5, "max_tokens": 5, "n": 1,
        "stream": true, "stream_options": {"include_usage": true}, "tools": [],
        "tool_choice": "none", "parallel_tool_calls": true, "modalities": ["text"],
        "functions": [], "function_call": "auto", "spaces_between_special_tokens": true,
        "return_tokens_as_token_ids": false, "truncation_side": "left", "echo": false,
    });
    assert_eq!(ignored(CHAT, neutral).await, None);
    let streamed = json!({"stream": true, "verbosity": "low"});
    assert_eq!(ignored(COMPLETIONS, streamed).await.as_deref(), Some("verbosity"));
}

/// The same body with a text of this name instead of messages.
fn renamed(mut body: Value, field: &str) -> Value {
    let fields = body.as_object_mut().unwrap();
    fields.remove("messages");
    fields.insert(field.into(), "hi".into());
    body
}

#[tokio::test]
async fn a_chat_says_whether_its_tools_are_called() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let named = json!({"type": "function", "function": {"name": "f"}});
    let cases = [
        (json!({"tools": tools}), true, ToolChoice::Auto),
        (json!({"tools": tools, "tool_choice": "auto"}), true, ToolChoice::Auto),
        (json!({"tools": tools, "tool_choice": "none"}), false, ToolChoice::Auto),
        (json!({"tools": tools, "tool_choice": "required"}), true, ToolChoice::Required),
        (json!({"tools": tools, "tool_choice": named}), true, ToolChoice::Named("f".into())),
        (json!({"tools": [], "tool_choice": "none"}), false, ToolChoice::Auto),
    ];
    for (extra, offered, choice) in cases {
        let got = harness.post(CHAT, "", chat(extra.clone())).await;
        assert_eq!(got.status, 200, "{}", got.text());
        let asked = harness.asked.lock().unwrap();
        let Asked::Chat(chat) = &asked.last().unwrap().request else { panic!("not a chat") };
        assert_eq!((chat.tools.is_some(), &chat.tool_choice), (offered, &choice), "{extra}");
    }
}

fn calling() -> Vec<Piece> {
    let call = |id: &str, arguments: &str| ToolCall {
        id: id.into(),
        name: "f".into(),
        arguments: arguments.into(),
    };
    let calls = vec![call("call_1", "{\"x\":1}")];
    let tokens = vec![token(10, "<tool_call>", -0.5)];
    let end = Piece { calls: vec![call("call_2", "{}")], ..last(0, Finish::ToolCalls, 2) };
    vec![Piece { calls, ..piece(0, "", tokens) }, end]
}

#[tokio::test]
async fn calls_of_tools_are_part_of_the_message() {
    let harness = Setup::default().with(|_| says(calling(), 1));
    let got = harness.post(CHAT, "", chat(json!({}))).await.json();
    let function = |arguments: &str| json!({"name": "f", "arguments": arguments});
    let want = json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "call_1", "type": "function", "function": function("{\"x\":1}")},
        {"id": "call_2", "type": "function", "function": function("{}")},
    ]});
    assert_eq!(got["choices"][0]["message"], want);
    assert_eq!(got["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(got["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
}

#[tokio::test]
async fn calls_of_tools_stream_by_their_place() {
    let harness = Setup::default().with(|_| says(calling(), 1));
    let got = harness.post(CHAT, "", chat(json!({"stream": true}))).await.text();
    let deltas: Vec<Value> = got
        .split("\n\n")
        .filter_map(|event| serde_json::from_str(event.strip_prefix("data: ")?).ok())
        .map(|event: Value| event["choices"][0]["delta"].clone())
        .collect();
    let first = |index, id| {
        json!({"tool_calls": [{"index": index, "id": id, "type": "function",
            "function": {"name": "f", "arguments": ""}}]})
    };
    let rest = |index, arguments| json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]});
    let want = [
        json!({"role": "assistant", "content": ""}),
        first(0, "call_1"),
        rest(0, "{\"x\":1}"),
        first(1, "call_2"),
        rest(1, "{}"),
        json!({}),
    ];
    assert_eq!(deltas, want);
    assert!(got.contains("\"finish_reason\":\"tool_calls\""), "{got}");
}

#[tokio::test]
async fn only_one_call_is_told_where_they_shall_not_be_parallel() {
    // A model ends with it, where it is told so.
    let harness = Setup::default().with(|invocation| {
        let Asked::Chat(chat) = invocation.request else { panic!("not a chat") };
        let mut pieces = calling();
        if !chat.parallel_tool_calls {
            pieces[1].calls.clear();
        }
        says(pieces, 1)
    });
    for (extra, count) in [
        (json!({"parallel_tool_calls": false}), 1),
        (json!({"parallel_tool_calls": true}), 2),
        (json!({}), 2),
    ] {
        let got = harness.post(CHAT, "", chat(extra.clone())).await.json();
        let calls = got["choices"][0]["message"]["tool_calls"].as_array().unwrap();
        assert_eq!((calls.len(), &calls[0]["id"]), (count, &json!("call_1")), "{extra}");
        assert_eq!(got["choices"][0]["finish_reason"], "tool_calls");
        let mut streamed = extra.clone();
        streamed["stream"] = true.into();
        let got = harness.post(CHAT, "", chat(streamed)).await.text();
        assert_eq!(got.matches("\"id\":\"call_").count(), count, "{extra}: {got}");
        assert!(got.contains("\"finish_reason\":\"tool_calls\""), "{got}");
    }
}

#[tokio::test]
async fn the_model_is_a_target_or_an_endpoint_and_a_target() {
    let setup = || Setup { endpoints: vec!["default", "other"], ..Setup::default() };
    let harness = setup().with(|_| says(hello(1), 1));
    let cases = [
        ("a", "", "default:a"),
        ("a/b/", "", "default:a/b"),
        ("other:a", "", "other:a"),
        ("nobody:a", "", "default:nobody:a"),
        ("other:a", "h/1", "default:h/1"),
        ("", "h/1", "default:h/1"),
    ];
    for (name, header, want) in cases {
        let got = harness.post(CHAT, header, chat(json!({"model": name}))).await;
        assert_eq!(got.status, 200, "{name}: {}", got.text());
        assert_eq!(harness.asked.lock().unwrap().last().unwrap().model.to_string(), want);
        // What answered, where a header overrules the body.
        let echoed = if header.is_empty() { name } else { header };
        assert_eq!(got.json()["model"], echoed);
    }
    for name in ["", "../a"] {
        let got = harness.post(CHAT, "", chat(json!({"model": name}))).await;
        assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!("model")));
    }
    let none = Setup { endpoints: vec!["x", "y"], ..Setup::default() };
    let got = none.with(|_| says(hello(1), 1)).post(CHAT, "", chat(json!({}))).await;
    assert_eq!(
        (got.status.as_u16(), &got.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
}

#[tokio::test]
async fn sagemakers_openai_path_takes_an_empty_model() {
    let setup = Setup { endpoints: vec!["x", "y"], ..Setup::default() };
    let harness = setup.with(|_| says(hello(1), 1));
    let path = "/endpoints/y/openai/v1/chat/completions";
    let got = harness.post(path, "a", chat(json!({"model": ""}))).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let got = harness.post(path, "", chat(json!({"model": "y:b"}))).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let asked = harness.asked.lock().unwrap();
    assert_eq!(asked[0].model.to_string(), "y:a");
    assert_eq!(asked[1].model.to_string(), "y:b");
}

#[tokio::test]
async fn embeddings_come_as_numbers_or_as_bytes() {
    let harness = Setup::default().with(|_| embeds(vec![vec![0.1, -2.0]]));
    let ask = |extra: Value| {
        let mut body = json!({"model": "a", "input": "hi"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body.to_string()
    };
    let got = harness.post("/v1/embeddings", "", ask(json!({}))).await;
    let want = r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,-2.0]}],"model":"a","usage":{"prompt_tokens":5,"total_tokens":5}}"#;
    assert_eq!(got.text(), want);
    let got = harness.post("/v1/embeddings", "", ask(json!({"encoding_format": "base64"}))).await;
    // 0.1 and -2.0 as little-endian singles.
    assert_eq!(got.json()["data"][0]["embedding"], "zczMPQAAAMA=");
    assert_eq!(harness.post("/v1/embeddings", "", ask(json!({"dimensions": 2}))).await.status, 200);
    let asked = harness.asked.lock().unwrap().pop().unwrap();
    assert!(matches!(asked.request, Asked::Embeddings(asked) if asked.dimensions == Some(2)));
    let got = harness.post("/v1/embeddings", "", ask(json!({"dimensions": 0}))).await;
    assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!("dimensions")));
}

#[tokio::test]
async fn large_vectors_are_written_too() {
    let harness = Setup::default().with(|_| embeds(vec![vec![1.0; 1024]; 32]));
    let got = harness.post("/v1/embeddings", "", r#"{"model":"a","input":"hi"}"#).await;
    assert_eq!(got.json()["data"][31]["embedding"].as_array().unwrap().len(), 1024);
}

#[tokio::test]
async fn models_are_listed_in_pages() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let ids = |page: &Value| -> Vec<String> {
        let data = page["data"].as_array().unwrap();
        data.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    let all = harness.get("/v1/models").await.json();
    assert_eq!(ids(&all), ["a", "b/c.tar.gz", "d"]);
    assert_eq!(all["has_more"], false);
    let model = json!({"id": "a", "object": "model", "created": 1000, "owned_by": "ep"});
    assert_eq!(all["data"][0], model);
    let first = harness.get("/v1/models?limit=2").await.json();
    assert_eq!((ids(&first).len(), &first["has_more"]), (2, &json!(true)));
    assert_eq!(first["last_id"], "b/c.tar.gz");
    let second = harness.get("/v1/models?limit=2&after=b/c.tar.gz").await.json();
    assert_eq!((ids(&second), &second["has_more"]), (vec!["d".to_owned()], &json!(false)));
    assert_eq!(harness.get("/v1/models?after=z").await.json()["data"], json!([]));
    assert_eq!(harness.get("/v1/models?limit=x").await.status, 400);

    let several = Setup { endpoints: vec!["x", "y"], ..Setup::default() };
    let harness = several.with(|_| says(hello(1), 1));
    let mut after = String::new();
    let mut seen = Vec::new();
    loop {
        let page = harness.get(&format!("/v1/models?limit=2{after}")).await.json();
        seen.extend(ids(&page));
        if page["has_more"] == false {
            break;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
    assert_eq!(seen, ["x:a", "x:b/c.tar.gz", "x:d", "y:a", "y:b/c.tar.gz", "y:d"]);
}

#[tokio::test]
async fn one_model_is_found_by_an_id_with_slashes() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    for id in ["a", "b/c.tar.gz", "b%2Fc.tar.gz", "ep:a"] {
        let got = harness.get(&format!("/v1/models/{id}")).await;
        assert_eq!(got.status, 200, "{id}");
        assert_eq!(got.json()["id"], id.replace("%2F", "/"));
    }
    let loaded = harness.get("/v1/models/b/c.tar.gz").await.json();
    assert_eq!(
        loaded,
        json!({
            "id": "b/c.tar.gz", "object": "model", "created": 1000, "owned_by": "ep",
            "max_model_len": 2048, "dtype": "q8_0, f32", "quantization": "q8_0",
            "kv": {
                "dtype": "f16", "block_tokens": 16, "floor_tokens": 2048, "tokens": 4096, "most_tokens": 8192,
                "used_tokens": 96,
            },
        })
    );
    assert_eq!(harness.get("/v1/models").await.json()["data"][1], loaded);
    let got = harness.get("/v1/models/none").await;
    assert_eq!(
        (got.status.as_u16(), &got.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    assert_eq!(harness.get("/v1/models/a/../b").await.status, 400);
}

#[tokio::test]
async fn failures_take_openais_shape() {
    let cases = [
        (ErrorKind::ModelNotFound, 404, "model_not_found"),
        (ErrorKind::NotReady, 503, "model_not_ready"),
        (ErrorKind::Throttled, 429, "rate_limit_exceeded"),
        (ErrorKind::Overloaded, 503, "overloaded"),
        (ErrorKind::TooLarge, 400, "model_too_large"),
    ];
    for (kind, status, code) in cases {
        let harness = Setup::default().with(move |_| {
            let retry = RetryHint::After(std::time::Duration::from_secs(4));
            Err(Failure::new(kind, "why").with_retry(retry))
        });
        let got = harness.post(CHAT, "", chat(json!({}))).await;
        assert_eq!((got.status.as_u16(), &got.json()["error"]["code"]), (status, &json!(code)));
        assert_eq!(got.json()["error"]["message"], "why");
        assert_eq!(got.header("retry-after"), "4");
    }
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let request = Request::post(CHAT).header("content-type", "text/plain").body("x".into());
    let got = harness.send(request.unwrap()).await;
    assert_eq!(got.status, 415);
    let message = got.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("send application/json without a coding"), "{message}");
    assert_eq!(harness.post(CHAT, "", "{").await.status, 400);
}

#[tokio::test]
async fn what_is_longer_than_the_context_has_the_code_that_clients_look_for() {
    for field in ["messages", "prompt", "max_tokens"] {
        let harness = Setup::default().with(move |_| {
            let failure = Failure::new(ErrorKind::InvalidInput, "9 tokens too many");
            Err(failure.with_detail(Detail::ContextExceeded { field }))
        });
        let got = harness.post(CHAT, "", chat(json!({}))).await;
        let want = json!({"error": {
            "message": "9 tokens too many", "type": "invalid_request_error", "param": field,
            "code": "context_length_exceeded",
        }});
        assert_eq!((got.status.as_u16(), got.json()), (400, want));
    }
}

#[tokio::test]
async fn a_length_that_does_not_fit_is_told_by_the_field_that_was_sent() {
    let harness = Setup::default().with(|invocation| {
        let Asked::Chat(chat) = invocation.request else { panic!("not a chat") };
        let field = chat.generation.names.max_tokens;
        assert_eq!(chat.generation.names.prompt, "messages");
        let failure = Failure::new(ErrorKind::InvalidInput, format!("{field}: 600 new ones"));
        Err(failure.with_detail(Detail::ContextExceeded { field }))
    });
    for (sent, field) in [
        (json!({"max_tokens": 600}), "max_tokens"),
        (json!({"max_completion_tokens": 600}), "max_completion_tokens"),
        (json!({"max_completion_tokens": 600, "max_tokens": 5}), "max_completion_tokens"),
    ] {
        let got = harness.post(CHAT, "", chat(sent)).await;
        let error = &got.json()["error"];
        assert_eq!((got.status.as_u16(), &error["param"]), (400, &json!(field)));
        assert_eq!(error["message"], format!("{field}: 600 new ones"));
        assert_eq!(error["code"], "context_length_exceeded");
    }
}

#[tokio::test]
async fn a_field_that_the_model_does_not_take_is_the_param() {
    let harness = Setup::default().with(|_| {
        let failure = Failure::new(ErrorKind::InvalidInput, "tools[0].name: too long");
        Err(failure.with_detail(Detail::Field { name: "tools[0].name".into() }))
    });
    let got = harness.post(CHAT, "", chat(json!({}))).await;
    let error = &got.json()["error"];
    assert_eq!((got.status.as_u16(), &error["param"]), (400, &json!("tools[0].name")));
    assert_eq!(
        (&error["message"], &error["code"]),
        (&json!("tools[0].name: too long"), &json!(null))
    );
}

#[tokio::test]
async fn a_model_without_its_endpoint_is_told_how_to_write_it() {
    let several = Setup { endpoints: vec!["y", "x"], ..Setup::default() };
    let harness = several.with(|_| says(hello(1), 1));
    for model in ["t/a", "none:t/a"] {
        let got = harness.post(CHAT, "", chat(json!({"model": model}))).await;
        let message = got.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.ends_with(": write model as ENDPOINT:TARGET, of x, y"), "{message}");
        assert_eq!(got.status, 404, "{model}");
    }
}
