//! `/v1/completions`.

use super::*;

#[tokio::test]
async fn completions_take_texts_and_tokens() {
    let harness = Setup::default().with(|invocation| {
        let Asked::Completion(completion) = invocation.request else { panic!("not a completion") };
        let choices = completion.prompts.len() * completion.n;
        says(hello(choices), choices)
    });
    let cases = [
        (json!("x"), vec![Prompt::Text("x".into())]),
        (json!(["x", "y"]), vec![Prompt::Text("x".into()), Prompt::Text("y".into())]),
        (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
        (json!([[1], [2]]), vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2])]),
    ];
    for (prompt, want) in cases {
        let body = json!({"model": "a", "prompt": prompt, "n": 2});
        let got = harness.post(COMPLETIONS, "", body.to_string()).await;
        assert_eq!(got.json()["choices"].as_array().unwrap().len(), want.len() * 2);
        // Three tokens per prompt, four per completion, each prompt counted once.
        let usage = &got.json()["usage"];
        assert_eq!(usage["prompt_tokens"], want.len() * 3);
        assert_eq!(usage["completion_tokens"], want.len() * 8);
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], want.len() * 2);
        let asked = harness.asked.lock().unwrap();
        let Asked::Completion(asked) = &asked.last().unwrap().request else { panic!() };
        // The default is no wish: it is cut to what fits.
        let Generation { max_tokens, usual_tokens, .. } = asked.generation;
        assert_eq!((&asked.prompts, max_tokens, usual_tokens), (&want, None, Some(16)));
    }
    for prompt in [json!(null), json!([]), json!([[]]), json!(["x", 1]), json!([-1]), json!({})] {
        let body = json!({"model": "a", "prompt": prompt});
        let got = harness.post(COMPLETIONS, "", body.to_string()).await;
        assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!("prompt")));
    }
}

#[tokio::test]
async fn a_list_of_prompts_is_refused_with_the_number_that_is_taken() {
    let harness = Setup::default().with(|_| says(hello(64), 64));
    let refused = async |path: &'static str, body: Value| {
        let got = harness.post(path, "", body.to_string()).await;
        assert_eq!(got.status, 400, "{}", got.text());
        let message = got.json()["error"]["message"].as_str().unwrap().to_owned();
        message.rsplit_once(", or ").unwrap().1.to_owned()
    };
    for (n, count) in [(1, 0), (2, 0), (1, 65)] {
        let body = json!({"model": "a", "prompt": vec!["x"; count], "n": n});
        assert_eq!(refused(COMPLETIONS, body).await, "a list of 1 to 64 of either", "{count}");
    }
    for count in [0, 2049] {
        let body = json!({"model": "a", "input": vec!["x"; count]});
        let said = refused("/v1/embeddings", body).await;
        assert_eq!(said, "a list of 1 to 2048 of either", "{count}");
    }
    assert!(harness.asked.lock().unwrap().is_empty(), "no model is loaded for it");
    let body = json!({"model": "a", "prompt": vec!["x"; 64]});
    assert_eq!(harness.post(COMPLETIONS, "", body.to_string()).await.status, 200);
}

#[tokio::test]
async fn answers_times_prompts_are_bounded_and_both_are_named() {
    let harness = Setup::default().with(|_| says(hello(64), 64));
    for (n, most) in [(2, 32), (16, 4), (ANSWERS_MAX, 1)] {
        let body =
            |count: usize| json!({"model": "a", "prompt": vec!["x"; count], "n": n}).to_string();
        let error = harness.post(COMPLETIONS, "", body(most + 1)).await.json()["error"].clone();
        let said = format!(
            "n times the {} entries of prompt is {}, more than the 64 answers of one request",
            most + 1,
            n * (most + 1)
        );
        assert_eq!((&error["param"], error["message"].as_str()), (&json!("n"), Some(&*said)));
        assert_eq!(harness.post(COMPLETIONS, "", body(most)).await.status, 200);
    }
}

#[tokio::test]
async fn a_completion_is_answered_whole() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let body = r#"{"model":"a","prompt":"hi","logprobs":1}"#;
    let got = harness.post(COMPLETIONS, "", body).await;
    insta::assert_snapshot!(steady(&got.text()));
}

/// `hello`, after a prompt of a special token and two others that were scored.
fn echoed() -> Vec<Piece> {
    let scored = |id, text, logprob: Option<f32>| {
        let drawn = token(id, text, logprob.unwrap_or_default());
        TokenInfo { logprob, ..drawn }
    };
    let place = TokenPlace::Hidden;
    let first = TokenInfo { special: true, place, top: vec![], ..scored(1, "<s>", None) };
    let prompt = vec![first, scored(7, "Hi", Some(-2.0)), scored(8, " é", Some(-0.5))];
    let lead = Piece { prompt, ..piece(0, "Hi é", vec![]) };
    std::iter::once(lead).chain(hello(1)).collect()
}

#[tokio::test]
async fn an_echoed_completion_has_the_prompt_s_log_probabilities_too() {
    let harness = Setup::default().with(|asked| {
        let Asked::Completion(completion) = asked.request else { panic!("not a completion") };
        assert!(completion.generation.prompt_logprobs && completion.echo);
        says(echoed(), 1)
    });
    let body =
        json!({"model": "a", "prompt": "Hi é", "logprobs": 1, "echo": true, "max_tokens": 2});
    let got = harness.post(COMPLETIONS, "", body.to_string()).await.json();
    assert_eq!(got["choices"][0]["text"], "Hi éHello é");
    let logprobs = &got["choices"][0]["logprobs"];
    // Every token is there, so that clients can count off the prompt's.
    let tokens = logprobs["tokens"].as_array().unwrap();
    assert_eq!(tokens[..3], [json!("<s>"), json!("Hi"), json!(" é")]);
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["token_logprobs"][1], -2.0);
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][2], json!({" é": -0.5}));
    assert_eq!(logprobs["text_offset"].as_array().unwrap()[..4], [0, 0, 2, 4].map(|it| json!(it)));
    let mut streamed = body;
    streamed["stream"] = true.into();
    let text = harness.post(COMPLETIONS, "", streamed.to_string()).await.text();
    let first = text.lines().next().unwrap().strip_prefix("data: ").unwrap();
    let first: Value = serde_json::from_str(first).unwrap();
    assert_eq!(first["choices"][0]["text"], "Hi é");
    assert_eq!(first["choices"][0]["logprobs"]["tokens"], json!(["<s>", "Hi", " é"]));
}

#[tokio::test]
async fn a_prompt_is_scored_without_a_token_of_an_answer() {
    let harness = Setup::default().with(|asked| {
        let Asked::Completion(completion) = asked.request else { panic!("not a completion") };
        assert_eq!(completion.generation.max_tokens, Some(1));
        let end = last(0, Finish::EndOfSequence, 1);
        let end = Piece { text: "Hello".into(), tokens: vec![token(10, "Hello", -0.5)], ..end };
        says(vec![echoed().remove(0), end], 1)
    });
    let mut body =
        json!({"model": "a", "prompt": "Hi é", "logprobs": 1, "echo": true, "max_tokens": 0});
    let got = harness.post(COMPLETIONS, "", body.to_string()).await.json();
    let choice = &got["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("Hi é"), &json!("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["<s>", "Hi", " é"]));
    assert_eq!(
        (&got["usage"]["prompt_tokens"], &got["usage"]["completion_tokens"]),
        (&json!(3), &json!(0))
    );
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let streamed = harness.post(COMPLETIONS, "", body.to_string()).await.text();
    assert!(!streamed.contains("Hello"), "{streamed}");
    assert!(streamed.contains("\"finish_reason\":\"length\""), "{streamed}");
    assert!(streamed.contains("\"completion_tokens\":0"), "{streamed}");
    for (extra, param) in
        [(json!({"echo": false}), "max_tokens"), (json!({"min_tokens": 1}), "min_tokens")]
    {
        let mut body = body.clone();
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let got = harness.post(COMPLETIONS, "", body.to_string()).await;
        assert_eq!((got.status.as_u16(), &got.json()["error"]["param"]), (400, &json!(param)));
    }
}
