//! `/v1/responses`.

use super::*;

const RESPONSES: &str = "/v1/responses";

fn body(extra: Value) -> String {
    let mut body = json!({"model": "a", "input": "hi"});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body.to_string()
}

/// The names of events with their objects.
fn events(text: &str) -> Vec<(String, Value)> {
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
        Some((name.to_owned(), serde_json::from_str(data).unwrap()))
    };
    text.split("\n\n").filter_map(event).collect()
}

#[tokio::test]
async fn a_response_is_answered_whole() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let extra = json!({"instructions": "be brief", "temperature": 0.7, "max_output_tokens": 9,
        "metadata": {"k": "v"}, "store": false, "text": {"format": null, "verbosity": null}});
    let got = harness.post(RESPONSES, "", body(extra)).await;
    assert_eq!(got.status, 200, "{}", got.text());
    assert_eq!(got.headers.get("x-roundhouse-ignored"), None);
    let got = got.json();
    assert!(got["id"].as_str().unwrap().starts_with("resp_"), "{got}");
    for (field, want) in [
        ("object", json!("response")),
        ("status", json!("completed")),
        ("model", json!("a")),
        ("instructions", json!("be brief")),
        ("temperature", json!(0.7)),
        ("max_output_tokens", json!(9)),
        ("metadata", json!({"k": "v"})),
        ("store", json!(false)),
        ("tools", json!([])),
        ("tool_choice", json!("auto")),
        ("parallel_tool_calls", json!(true)),
        ("incomplete_details", Value::Null),
        ("text", json!({"format": {"type": "text"}})),
    ] {
        assert_eq!(got[field], want, "{field}");
    }
    let [item] = got["output"].as_array().unwrap().as_slice() else { panic!("{got}") };
    assert!(item["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(item["status"], "completed");
    let part = json!({"type": "output_text", "text": "Hello é", "annotations": [], "logprobs": []});
    assert_eq!(item["content"], json!([part]));
    assert_eq!(got["usage"]["input_tokens"], 3);
    assert_eq!(got["usage"]["input_tokens_details"]["cached_tokens"], 2);
    assert_eq!(got["usage"]["output_tokens"], 4);
    assert_eq!(got["usage"]["total_tokens"], 7);
    let asked = harness.asked.lock().unwrap();
    let Asked::Chat(chat) = &asked[0].request else { panic!("not a chat") };
    let system = json!({"role": "system", "content": "be brief"});
    assert_eq!(chat.messages, [system, json!({"role": "user", "content": "hi"})]);
    assert_eq!(chat.generation.max_tokens, Some(9));
    assert_eq!(chat.generation.names.max_tokens, "max_output_tokens");
    assert_eq!(chat.generation.names.function, "", "a tool's fields are its function's");
}

#[tokio::test]
async fn a_response_that_its_length_ends_is_incomplete() {
    let pieces = || vec![piece(0, "so", vec![token(1, "so", -0.5)]), last(0, Finish::Length, 2)];
    let harness = Setup::default().with(move |_| says(pieces(), 1));
    let got = harness.post(RESPONSES, "", body(json!({}))).await.json();
    assert_eq!(
        (&got["status"], &got["output"][0]["status"]),
        (&json!("incomplete"), &json!("incomplete"))
    );
    assert_eq!(got["incomplete_details"], json!({"reason": "max_output_tokens"}));
    let got = harness.post(RESPONSES, "", body(json!({"stream": true}))).await.text();
    let (name, event) = events(&got).pop().unwrap();
    assert_eq!(
        (name.as_str(), &event["response"]["status"]),
        ("response.incomplete", &json!("incomplete"))
    );
}

#[tokio::test]
async fn a_stream_tells_each_item_from_its_beginning_to_its_end_and_the_whole() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let got = harness.post(RESPONSES, "", body(json!({"stream": true}))).await;
    assert_eq!(got.headers["content-type"], "text/event-stream; charset=utf-8");
    let text = got.text();
    assert!(!text.contains("[DONE]"), "{text}");
    let told = events(&text);
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    for (index, (name, event)) in told.iter().enumerate() {
        assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(index)));
    }
    let deltas: String = told.iter().filter_map(|(_, event)| event["delta"].as_str()).collect();
    let whole = &told.last().unwrap().1["response"];
    assert_eq!((deltas.as_str(), &told[6].1["text"]), ("Hello é", &json!("Hello é")));
    assert_eq!(whole["output"][0], told[8].1["item"]);
    assert_eq!(whole["output"][0]["id"], told[2].1["item"]["id"]);
    assert_eq!(
        (&whole["status"], &whole["usage"]["output_tokens"]),
        (&json!("completed"), &json!(4))
    );
}

#[tokio::test]
async fn calls_are_items_of_their_own() {
    let harness = Setup::default().with(|_| says(calling(), 1));
    let tool = json!({"type": "function", "name": "f", "description": "d", "strict": true,
        "parameters": {"type": "object"}});
    let extra = json!({"tools": [tool], "tool_choice": {"type": "function", "name": "f"}});
    let got = harness.post(RESPONSES, "", body(extra.clone())).await.json();
    let [first, second] = got["output"].as_array().unwrap().as_slice() else { panic!("{got}") };
    assert_eq!((&first["type"], &first["call_id"]), (&json!("function_call"), &json!("call_1")));
    assert_eq!((&first["name"], &first["arguments"]), (&json!("f"), &json!("{\"x\":1}")));
    assert_eq!(second["call_id"], "call_2");
    assert_eq!((&got["tools"], &got["tool_choice"]), (&json!([tool]), &extra["tool_choice"]));
    {
        let asked = harness.asked.lock().unwrap();
        let Asked::Chat(chat) = &asked[0].request else { panic!("not a chat") };
        let function = json!({"name": "f", "description": "d", "parameters": {"type": "object"}});
        assert_eq!(chat.tools, Some(vec![json!({"type": "function", "function": function})]));
        assert_eq!(chat.tool_choice, ToolChoice::Named("f".into()));
    }
    let streamed = harness.post(RESPONSES, "", body(json!({"stream": true}))).await.text();
    let told = events(&streamed);
    let names: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).skip(2).collect();
    let call = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ];
    assert_eq!(names, [&call[..], &call[..], &["response.completed"]].concat());
    assert_eq!(told[7].1["output_index"], 1);
    assert_eq!(told[4].1["arguments"], "{\"x\":1}");
}

#[tokio::test]
async fn items_of_a_conversation_become_its_messages() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let call = |id: &str| {
        json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "f",
            "arguments": "{\"x\": 1}", "status": "completed"})
    };
    let said = json!({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": "let me see", "annotations": []}]});
    let output = |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "7"});
    let items = json!([
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "summary": []},
        said, call("c1"), call("c2"), output("c1"), output("c2"), call("c3"),
    ]);
    let got = harness.post(RESPONSES, "", body(json!({"input": items}))).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let asked = harness.asked.lock().unwrap();
    let Asked::Chat(chat) = &asked[0].request else { panic!("not a chat") };
    let called = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": {"x": 1}}});
    let tool = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "7"});
    let want = json!([
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "let me see", "tool_calls": [called("c1"), called("c2")]},
        tool("c1"), tool("c2"),
        {"role": "assistant", "content": "", "tool_calls": [called("c3")]},
    ]);
    assert_eq!(json!(chat.messages), want);
}

#[tokio::test]
async fn an_output_belongs_to_a_call_before_it() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let call =
        |id: &str| json!({"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"});
    let output = |id: &str| json!({"type": "function_call_output", "call_id": id, "output": "7"});
    let user = json!({"role": "user", "content": "hi"});
    for (items, refused) in [
        (json!([user, call("c1"), call("c2"), output("c2"), output("c1")]), None),
        (json!([user, call("c1"), user, output("c1")]), None),
        (json!([user, output("c1")]), Some("input[1].call_id")),
        (json!([user, call("c1"), output("c1"), output("c9")]), Some("input[3].call_id")),
        (json!([user, output("c1"), call("c1")]), Some("input[1].call_id")),
    ] {
        let got = harness.post(RESPONSES, "", body(json!({"input": items}))).await;
        assert_eq!(got.status, if refused.is_some() { 400 } else { 200 }, "{items}");
        if let Some(place) = refused {
            assert_eq!(got.json()["error"]["param"], place, "{}", got.text());
        }
    }
}

#[tokio::test]
async fn answers_have_the_form_of_text_and_tell_log_probabilities() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let schema = json!({"type": "object"});
    let format = json!({"type": "json_schema", "name": "n", "schema": schema, "strict": true});
    let extra = json!({"text": {"format": format, "verbosity": "low"}, "store": true,
        "include": ["message.output_text.logprobs"], "top_logprobs": 1,
        "reasoning": {"effort": "low", "summary": "auto", "generate_summary": null}});
    let got = harness.post(RESPONSES, "", body(extra)).await;
    let told = got.headers.get("x-roundhouse-ignored").unwrap().to_str().unwrap();
    assert_eq!(told, "reasoning.summary, store, text.verbosity");
    let got = got.json();
    assert_eq!(got["text"], json!({"format": format}));
    let logprobs = got["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!((logprobs.len(), &logprobs[0]["token"]), (3, &json!("Hello")));
    let asked = harness.asked.lock().unwrap();
    let Asked::Chat(chat) = &asked[0].request else { panic!("not a chat") };
    let form = chat.generation.form.as_ref().unwrap();
    assert_eq!((form.field.as_str(), &form.kind), ("text.format", &FormKind::JsonSchema(schema)));
    assert_eq!(chat.template_kwargs["reasoning_effort"], "low");
}

#[tokio::test]
async fn what_a_response_cannot_do_is_refused_by_name() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let item = |item: Value| json!({"input": [item]});
    let image = json!({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]});
    for (extra, param) in [
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"background": true}), "background"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (item(json!(1)), "input[0]"),
        (item(json!({"type": "item_reference", "id": "i"})), "input[0]"),
        (item(json!({"type": "computer_call"})), "input[0].type"),
        (item(json!({"content": "a"})), "input[0].role"),
        (item(json!({"role": "", "content": "a"})), "input[0].role"),
        (item(json!({"role": "tool", "content": "a"})), "input[0].role"),
        (item(json!({"role": "User", "content": "a"})), "input[0].role"),
        (item(json!({"role": "user"})), "input[0].content"),
        (item(json!({"type": "reasoning", "summary": []})), "input"),
        (item(image), "input[0].content[0].type"),
        (item(json!({"type": "function_call", "name": "f", "call_id": "c"})), "input[0].arguments"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n"}}}), "text.format.schema"),
        (json!({"text": {"format": {"type": "json_object"}}, "guided_regex": "a"}), "text.format"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
    ] {
        let got = harness.post(RESPONSES, "", body(extra.clone())).await;
        let error = &got.json()["error"];
        assert_eq!(
            (got.status.as_u16(), &error["param"]),
            (400, &json!(param)),
            "{extra}: {error}"
        );
    }
    assert!(harness.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_response_that_fails_under_way_says_so_as_its_last_event() {
    let harness = Setup::default().with(|_| breaks(ErrorKind::ModelFailed));
    let got = harness.post(RESPONSES, "", body(json!({"stream": true}))).await.text();
    let (name, event) = events(&got).pop().unwrap();
    assert_eq!(name, "response.failed");
    assert_eq!(event["response"]["status"], "failed");
    assert_eq!(event["response"]["error"]["code"], "server_error");
    assert!(event["response"]["error"]["message"].is_string(), "{event}");
}
