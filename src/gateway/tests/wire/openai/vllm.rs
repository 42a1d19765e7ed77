//! What clients of vLLM ask for beside OpenAI's fields, and OpenAI's newer ones.

use roundhouse_serving::{Answer, GenerationReply, Opening, Reply, Truncation};

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
async fn a_demanded_call_and_a_form_of_the_whole_answer_contradict_each_other() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let tag = json!({"type": "structural_tag", "format": {"type": "any_text"}});
    let schema = json!({"type": "json_schema", "json_schema": {"schema": {"type": "object"}}});
    let named = json!({"type": "function", "function": {"name": "f"}});
    let (required, auto) = (json!("required"), json!("auto"));
    for (choice, form, value, taken) in [
        (&required, "response_format", tag.clone(), false),
        (&named, "response_format", tag.clone(), false),
        (&required, "structured_outputs", json!({"regex": "a"}), false),
        (&named, "guided_choice", json!(["a"]), false),
        (&required, "guided_grammar", json!("root ::= \"a\""), false),
        (&auto, "response_format", tag, true),
        (&auto, "guided_choice", json!(["a"]), true),
        // OpenAI's: what is said beside calls has the form.
        (&required, "response_format", schema, true),
        (&named, "response_format", json!({"type": "json_object"}), true),
    ] {
        let mut fields = json!({"tools": [tool], "tool_choice": choice});
        fields[form] = value;
        let got = harness.post(CHAT, "", chat(fields.clone())).await;
        assert_eq!(got.status, if taken { 200 } else { 400 }, "{fields}: {}", got.text());
        if !taken {
            let error = &got.json()["error"];
            assert_eq!(error["param"], "tool_choice");
            assert!(error["message"].as_str().unwrap().contains(form), "{error}");
        }
    }
    assert_eq!(harness.asked.lock().unwrap().len(), 4, "nothing is loaded for it");
    let tool = json!({"type": "function", "name": "f"});
    let body = json!({"model": "a", "input": "hi", "tools": [tool], "tool_choice": "required",
        "guided_regex": "a"});
    let got = harness.post("/v1/responses", "", body.to_string()).await;
    assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!("tool_choice")));
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

/// `hello`, for so many answers to one prompt whose tokens the first answer has.
fn with_scored_prompt(choices: usize) -> Result<Answer, Failure> {
    let scored = |rank, top: &[(u32, &str, f32)], of: TokenInfo| TokenInfo {
        rank,
        top: top.iter().map(|(id, text, value)| (*id, (*text).to_owned(), *value)).collect(),
        ..of
    };
    let first = TokenInfo { logprob: None, ..token(1, "<s>", 0.0) };
    let prompt = vec![
        scored(None, &[], first),
        scored(Some(2), &[(8, " é", -0.5), (7, "Hi", -1.5)], token(7, "Hi", -1.5)),
        scored(Some(9), &[(5, "a", -0.5), (6, "b", -1.0)], token(8, "\u{fffd}", f32::NEG_INFINITY)),
    ];
    let lead = Piece { prompt, ..piece(0, "", vec![]) };
    let pieces = std::iter::once(lead).chain(hello(choices)).collect();
    let Ok(Answer { reply: Reply::Generation(reply), served }) = says(pieces, choices) else {
        panic!("no generation")
    };
    let reply = GenerationReply { prompts: vec![vec![1, 7, 8]], ..reply };
    Ok(Answer { reply: Reply::Generation(reply), served })
}

#[tokio::test]
async fn a_prompts_scores_are_told_as_vllm_tells_them() {
    let harness = Setup::default().with(|asked| {
        let (generation, n) = match asked.request {
            Asked::Chat(chat) => (chat.generation, chat.n),
            Asked::Completion(completion) => (completion.generation, completion.n),
            _ => panic!("neither"),
        };
        assert_eq!((generation.ranked_prompt, generation.prompt_logprobs), (Some(1), false));
        with_scored_prompt(n)
    });
    let one = |logprob: f64, rank: u64, text: &str| json!({"logprob": logprob, "rank": rank, "decoded_token": text});
    // Its own goes first, and is there once; no more alternatives than were asked for.
    let want = json!([
        null,
        {"7": one(-1.5, 2, "Hi"), "8": one(-0.5, 1, " é")},
        {"8": one(-9999.0, 9, "\u{fffd}"), "5": one(-0.5, 1, "a")},
    ]);
    let body = json!({"model": "a", "prompt": "Hi é", "n": 2, "prompt_logprobs": 1});
    let got = harness.post(COMPLETIONS, "", body.to_string()).await;
    let text = got.text();
    assert!(text.contains(r#"{"7":{"logprob":-1.5,"rank":2"#), "its own first: {text}");
    for choice in got.json()["choices"].as_array().unwrap() {
        assert_eq!(choice["prompt_logprobs"], want);
        assert_eq!(choice["logprobs"], Value::Null);
        assert_eq!(choice["text"], "Hello é");
    }
    let got = harness.post(CHAT, "", chat(json!({"n": 2, "prompt_logprobs": 1}))).await.json();
    assert_eq!(got["prompt_logprobs"], want);
    assert!(got["choices"][0].get("prompt_logprobs").is_none());
}

#[tokio::test]
async fn scores_that_cannot_be_told_are_refused_and_named() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    for (value, stream, status) in [
        (json!(0), true, 200),
        (json!(1), true, 400),
        (json!(21), false, 400),
        (json!(-1), false, 400),
        (json!(true), false, 400),
        (json!(20), false, 200),
    ] {
        let fields = json!({"prompt_logprobs": value, "stream": stream});
        let mut body = json!({"model": "a", "prompt": "x"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        for (path, body) in [(COMPLETIONS, body.to_string()), (CHAT, chat(fields.clone()))] {
            let got = harness.post(path, "", body).await;
            assert_eq!(got.status, status, "{path} {fields}");
            if status == 400 {
                assert_eq!(got.json()["error"]["param"], "prompt_logprobs", "{path} {fields}");
            }
        }
    }
    let body = json!({"model": "a", "input": "x", "prompt_logprobs": 1}).to_string();
    let got = harness.post("/v1/responses", "", body).await;
    assert_eq!(
        (got.status.as_u16(), &got.json()["error"]["param"]),
        (400, &json!("prompt_logprobs"))
    );
    let none = json!({"model": "a", "input": "x", "prompt_logprobs": 0}).to_string();
    assert_eq!(harness.post("/v1/responses", "", none).await.status, 200, "it asks for nothing");
}

#[tokio::test]
async fn tokens_are_told_by_their_ids_whole_and_in_streams() {
    let harness = Setup::default().with(|asked| {
        let (generation, n) = match asked.request {
            Asked::Chat(chat) => (chat.generation, chat.n),
            Asked::Completion(completion) => (completion.generation, completion.n),
            _ => panic!("neither"),
        };
        assert!(generation.prompt_ids);
        let Ok(Answer { reply: Reply::Generation(reply), served }) = says(hello(n), n) else {
            panic!("no generation")
        };
        let reply = GenerationReply { prompts: vec![vec![1, 7, 8]], ..reply };
        Ok(Answer { reply: Reply::Generation(reply), served })
    });
    let (prompt, tokens) = (json!([1, 7, 8]), json!([10, 11, 12, 2]));
    let fields = |stream: bool| json!({"n": 2, "return_token_ids": true, "stream": stream});
    let completion = |stream| {
        let mut body = json!({"model": "a", "prompt": "x"});
        body.as_object_mut().unwrap().extend(fields(stream).as_object().unwrap().clone());
        body.to_string()
    };
    let got = harness.post(COMPLETIONS, "", completion(false)).await;
    assert_eq!(got.header("x-roundhouse-ignored"), "");
    for choice in got.json()["choices"].as_array().unwrap() {
        assert_eq!((&choice["prompt_token_ids"], &choice["token_ids"]), (&prompt, &tokens));
    }
    let got = harness.post(CHAT, "", chat(fields(false))).await.json();
    assert_eq!(got["prompt_token_ids"], prompt);
    for choice in got["choices"].as_array().unwrap() {
        assert_eq!((&choice["token_ids"], choice.get("prompt_token_ids")), (&tokens, None));
    }
    let streamed = |events: &[Value], index: usize| -> Value {
        let of = |event: &Value| {
            let choice = event["choices"].as_array()?.iter().find(|it| it["index"] == index)?;
            choice["token_ids"].as_array().cloned()
        };
        events.iter().filter_map(of).flatten().collect()
    };
    let told = events(&harness.post(COMPLETIONS, "", completion(true)).await.text());
    for index in [0, 1] {
        assert_eq!(streamed(&told, index), tokens);
        let mut of = told.iter().map(|event| &event["choices"][0]);
        let first = of.find(|it| it["index"] == index).unwrap();
        assert_eq!(first["prompt_token_ids"], prompt);
    }
    let prompts = |told: &[Value], path: &str| {
        told.iter().filter(|event| event.pointer(path).is_some()).count()
    };
    assert_eq!(prompts(&told, "/choices/0/prompt_token_ids"), 2, "once for each answer");
    let told = events(&harness.post(CHAT, "", chat(fields(true))).await.text());
    assert_eq!((streamed(&told, 0), streamed(&told, 1)), (tokens.clone(), tokens));
    assert_eq!(told[0]["prompt_token_ids"], prompt);
    assert_eq!(prompts(&told, "/prompt_token_ids"), 1, "with the first chunk");
}

#[tokio::test]
async fn echoed_log_probabilities_have_no_more_alternatives_than_they_were_asked_for() {
    let harness = Setup::default().with(|_| with_scored_prompt(1));
    let body = json!({
        "model": "a", "prompt": "Hi é", "echo": true, "logprobs": 1, "prompt_logprobs": 2,
    });
    let got = harness.post(COMPLETIONS, "", body.to_string()).await.json();
    let choice = &got["choices"][0];
    assert_eq!(choice["logprobs"]["top_logprobs"][1], json!({" é": -0.5}));
    assert_eq!(choice["prompt_logprobs"][2].as_object().unwrap().len(), 3);
}
