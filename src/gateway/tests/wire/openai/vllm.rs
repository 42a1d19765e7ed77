//! What clients of vLLM ask for beside OpenAI's fields, and OpenAI's newer ones.

use roundhouse_serving::{Opening, Truncation};

use super::*;

/// The objects of a stream's events, `[DONE]` aside.
fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

#[tokio::test]
async fn only_the_tools_that_a_choice_allows_are_offered() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let of = |mode: &str, names: Value| {
        let allowed = json!({"mode": mode, "tools": names});
        chat(json!({"tools": [tool("f"), tool("g"), tool("h")],
            "tool_choice": {"type": "allowed_tools", "allowed_tools": allowed}}))
    };
    for (mode, choice) in [("auto", ToolChoice::Auto), ("required", ToolChoice::Required)] {
        let got = harness.post(CHAT, "", of(mode, json!([tool("h"), tool("f")]))).await;
        assert_eq!(got.status, 200, "{}", got.text());
        let asked = harness.asked.lock().unwrap();
        let Asked::Chat(chat) = &asked.last().unwrap().request else { panic!("not a chat") };
        assert_eq!(chat.tools, Some(vec![tool("f"), tool("h")]));
        assert_eq!(chat.tool_choice, choice);
    }
    for (body, param) in [
        (of("always", json!([tool("f")])), "tool_choice.allowed_tools.mode"),
        (of("auto", json!([tool("other")])), "tool_choice.allowed_tools.tools"),
        (of("auto", json!([])), "tool_choice.allowed_tools.tools"),
        (of("auto", json!([{"type": "custom"}])), "tool_choice.allowed_tools.tools"),
    ] {
        let got = harness.post(CHAT, "", body).await;
        assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!(param)));
    }
}

#[tokio::test]
async fn as_many_tools_as_a_body_holds_are_looked_up_by_name() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let tool = |name: String| json!({"type": "function", "function": {"name": name}});
    let tools: Vec<Value> = (0..40_000).map(|at| tool(format!("f{at}"))).collect();
    let allowed = json!({"mode": "auto", "tools": tools.iter().rev().collect::<Vec<_>>()});
    let choice = json!({"type": "allowed_tools", "allowed_tools": allowed});
    let got = harness.post(CHAT, "", chat(json!({"tools": tools, "tool_choice": choice}))).await;
    assert_eq!(got.status, 200, "{}", got.text());
}

#[tokio::test]
async fn an_answer_is_of_the_role_of_the_message_that_goes_on() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let ask = |role: &str, extra: Value| {
        let mut body = json!({"messages": [{"role": role, "content": "so"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        chat(body)
    };
    let goes_on = json!({"continue_final_message": true});
    let closed = json!({"add_generation_prompt": false});
    for (extra, role, opening, answers) in [
        (json!({}), "user", Opening::Answer, "assistant"),
        (goes_on.clone(), "assistant", Opening::Message, "assistant"),
        (goes_on, "user", Opening::Message, "user"),
        (closed, "user", Opening::Closed, "user"),
    ] {
        let got = harness.post(CHAT, "", ask(role, extra.clone())).await.json();
        assert_eq!(got["choices"][0]["message"]["role"], answers, "{extra}");
        let asked = harness.asked.lock().unwrap();
        let Asked::Chat(chat) = &asked.last().unwrap().request else { panic!("not a chat") };
        assert_eq!(chat.opening, opening, "{extra}");
    }
}

#[tokio::test]
async fn prompts_are_cut_to_a_length_or_to_what_there_is_room_for() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let whole = |most: Option<usize>, keeps_end| Some(Truncation { most, keeps_end });
    for (extra, want) in [
        (json!({}), None),
        (json!({"truncate_prompt_tokens": 4}), whole(Some(4), true)),
        (json!({"truncate_prompt_tokens": -1}), whole(None, true)),
        (json!({"truncate_prompt_tokens": 4, "truncation_side": "right"}), whole(Some(4), false)),
    ] {
        assert_eq!(harness.post(CHAT, "", chat(extra.clone())).await.status, 200);
        let asked = harness.asked.lock().unwrap();
        let Asked::Chat(chat) = &asked.last().unwrap().request else { panic!("not a chat") };
        assert_eq!(chat.generation.truncation, want, "{extra}");
    }
}

#[tokio::test]
async fn usage_goes_with_each_chunk_where_it_is_asked_for() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let asked = json!({"stream": true, "stream_options": options});
    let completion =
        json!({"model": "a", "prompt": "x", "stream": true, "stream_options": options});
    let counts = |text: &str| -> Vec<(u64, u64)> {
        let usage = |event: &Value| event["usage"].clone();
        let counts = |usage: Value| {
            let of = |name: &str| usage[name].as_u64().unwrap();
            assert_eq!(of("total_tokens"), of("prompt_tokens") + of("completion_tokens"));
            (of("prompt_tokens"), of("completion_tokens"))
        };
        events(text).iter().map(usage).map(counts).collect()
    };
    let got = harness.post(CHAT, "", chat(asked)).await;
    assert_eq!(counts(&got.text()), [(3, 0), (3, 1), (3, 3), (3, 4), (3, 4)]);
    let got = harness.post(COMPLETIONS, "", completion.to_string()).await;
    assert_eq!(counts(&got.text()), [(3, 1), (3, 3), (3, 4), (3, 4)]);
}

#[tokio::test]
async fn log_probabilities_call_tokens_by_their_ids_where_that_is_asked_for() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let asked = json!({"logprobs": true, "return_tokens_as_token_ids": true});
    let got = harness.post(CHAT, "", chat(asked)).await.json();
    let content = got["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let tokens: Vec<&Value> = content.iter().map(|one| &one["token"]).collect();
    assert_eq!(tokens, ["token_id:10", "token_id:11", "token_id:12"]);
    let body =
        json!({"model": "a", "prompt": "x", "logprobs": 0, "return_tokens_as_token_ids": true});
    let got = harness.post(COMPLETIONS, "", body.to_string()).await.json();
    let tokens = &got["choices"][0]["logprobs"]["tokens"];
    assert_eq!(tokens, &json!(["token_id:10", "token_id:11", "token_id:12"]));
}

#[tokio::test]
async fn inputs_are_cut_and_written_by_the_words_of_their_servers() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let parameters =
        json!({"truncate": 5, "skip_special_tokens": false, "include_stop_str_in_output": true});
    let body = json!({"inputs": "x", "parameters": parameters}).to_string();
    for path in ["/endpoints/ep/invocations", "/generate"] {
        let got = harness.post(path, "a", body.clone()).await;
        assert_eq!(got.status, 200, "{path}: {}", got.text());
        let asked = harness.asked.lock().unwrap();
        let Asked::Inputs(inputs) = &asked.last().unwrap().request else { panic!("not inputs") };
        let Generation { truncation, keep_special, include_stop, .. } = inputs.generation;
        let kept = Truncation { most: Some(5), keeps_end: true };
        assert_eq!((truncation, keep_special, include_stop), (Some(kept), true, true), "{path}");
    }
}
