//! `/generate`, `/generate_stream` and `/`, as text-generation-inference answers them.

use roundhouse_serving::{AnswerStyle, Piece, Request as Asked, TokenInfo};
use roundhouse_types::{ErrorKind, Failure};
use serde_json::{Value, json};

use crate::support::*;

const BODY: &str = r#"{"inputs":"hi","parameters":{"max_new_tokens":4,"details":true,"seed":7}}"#;

fn events(text: &str) -> Vec<Value> {
    let data = text.split("\n\n").filter_map(|event| event.strip_prefix("data:"));
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn generate_answers_with_an_object_and_the_root_with_an_array() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let got = harness.post("/generate", "t/a", r#"{"inputs":"hi","stream":true}"#).await;
    assert_eq!((got.status.as_u16(), got.json()), (200, json!({"generated_text": "Hello é"})));
    let got = harness.post("/", "t/a", r#"{"inputs":"hi"}"#).await;
    assert_eq!(got.json(), json!([{"generated_text": "Hello é"}]));
    let got = harness.post("/generate", "t/a", BODY).await.json();
    assert_eq!(got["details"]["finish_reason"], "eos_token", "{got}");
    assert_eq!(got["details"]["generated_tokens"], 4);
    assert_eq!(got["details"]["tokens"][0]["text"], "Hello");
    assert_eq!(got["details"]["prefill"], json!([]));
}

#[tokio::test]
async fn the_prompt_s_tokens_come_where_they_are_asked_for() {
    let harness = Setup::default().with(|_| {
        let scored = |id, text, logprob| TokenInfo { logprob, ..token(id, text, 0.0) };
        let prompt = vec![scored(7, "Hi", None), scored(8, "!", Some(-2.0))];
        let lead = Piece { prompt, ..piece(0, "", vec![]) };
        says(std::iter::once(lead).chain(hello(1)).collect(), 1)
    });
    let body = r#"{"inputs":"Hi!","parameters":{"details":true,"decoder_input_details":true}}"#;
    let got = harness.post("/generate", "t/a", body).await.json();
    assert_eq!(got["generated_text"], "Hello é");
    let want =
        json!([{"id": 7, "text": "Hi", "logprob": null}, {"id": 8, "text": "!", "logprob": -2.0}]);
    assert_eq!(got["details"]["prefill"], want);
}

#[tokio::test]
async fn a_stream_is_events_of_one_token_each_and_the_last_has_the_whole() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    for (path, body) in [("/generate_stream", BODY), ("/", r#"{"inputs":"hi","stream":true}"#)] {
        let got = harness.post(path, "t/a", body).await;
        assert!(got.header("content-type").starts_with("text/event-stream"), "{path}");
        let events = events(&got.text());
        let said: String = events
            .iter()
            .filter(|event| event["token"]["special"] == false)
            .map(|event| event["token"]["text"].as_str().unwrap())
            .collect();
        assert_eq!(said, "Hello é");
        let last = events.last().unwrap();
        assert_eq!(last["generated_text"], "Hello é");
        assert_eq!(last["details"]["input_length"], 3);
        assert!(!got.text().contains("[DONE]"));
    }
}

#[tokio::test]
async fn a_fault_names_the_field_that_was_sent() {
    let harness = Setup::default().with(|invocation| {
        let Asked::Inputs(inputs) = invocation.request else { panic!("not inputs") };
        let names = inputs.generation.names;
        let (most, least) = (names.max_tokens, names.min_tokens);
        let form = inputs.generation.form.map_or(String::new(), |form| form.field);
        let told = format!("{} {most} {least} {form}", names.prompt);
        Err(Failure::new(ErrorKind::InvalidInput, told))
    });
    let (most, least) = ("parameters.max_new_tokens", "parameters.min_new_tokens");
    for (parameters, told) in [
        (json!({}), format!("inputs {most} {least} ")),
        (json!({"max_new_tokens": 5, "max_tokens": 4}), format!("inputs {most} {least} ")),
        (
            json!({"max_tokens": 5, "min_tokens": 1}),
            "inputs parameters.max_tokens parameters.min_tokens ".to_owned(),
        ),
        (
            json!({"grammar": {"type": "regex", "value": "a"}}),
            format!("inputs {most} {least} parameters.grammar"),
        ),
    ] {
        let body = json!({"inputs": "hi", "parameters": parameters}).to_string();
        let got = harness.post("/generate", "t/a", body).await.json();
        assert_eq!(got["error"], told, "{parameters}");
    }
    for (parameters, field) in [
        (json!({"stop_sequences": ["a".repeat(1025)]}), "parameters.stop_sequences must"),
        (
            json!({"stop": vec!["a"; 9], "stop_sequences": vec!["b"; 8]}),
            "parameters.stop_sequences",
        ),
        (json!({"max_new_tokens": 0}), "parameters.max_new_tokens must"),
        (json!({"top_n_tokens": 21}), "parameters.top_n_tokens must"),
    ] {
        let body = json!({"inputs": "hi", "parameters": parameters}).to_string();
        let got = harness.post("/generate", "t/a", body).await.json();
        assert!(got["error"].as_str().unwrap().starts_with(field), "{got}");
    }
}

#[tokio::test]
async fn the_model_is_named_by_header_body_or_adapter() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let bodies = [
        ("t/a", r#"{"inputs":"hi","model":"t/b"}"#),
        ("", r#"{"inputs":"hi","model":"t/b"}"#),
        ("", r#"{"inputs":"hi","parameters":{"adapter_id":"t/c"}}"#),
        ("", r#"{"inputs":"hi","model":"t/b","parameters":{"adapter_id":"t/c"}}"#),
    ];
    for (header, body) in bodies {
        assert_eq!(harness.post("/generate", header, body).await.status, 200, "{body}");
    }
    let asked = harness.asked.lock().unwrap();
    let named: Vec<_> = asked
        .iter()
        .map(|asked| {
            (asked.model.target.as_str(), asked.base.as_ref().map(|it| it.target.as_str()))
        })
        .collect();
    assert_eq!(named, [("t/a", None), ("t/b", None), ("t/c", None), ("t/c", Some("t/b"))]);
}

#[tokio::test]
async fn errors_have_the_types_that_its_clients_raise_by() {
    let failing =
        |kind| Setup::default().with(move |_| Err(Failure::new(kind, "it does not work")));
    let cases = [
        (ErrorKind::InvalidInput, 422, "validation"),
        (ErrorKind::Overloaded, 429, "overloaded"),
        (ErrorKind::ModelFailed, 424, "generation"),
        (ErrorKind::ModelNotFound, 404, "not_found"),
    ];
    for (kind, status, name) in cases {
        let got = failing(kind).post("/generate", "t/a", BODY).await;
        let want = json!({"error": "it does not work", "error_type": name});
        assert_eq!((got.status.as_u16(), got.json()), (status, want));
    }
    let harness = Setup::default().with(|_| breaks(ErrorKind::ModelFailed));
    let got = harness.post("/generate", "", r#"{"inputs":"hi"}"#).await;
    assert_eq!((got.status.as_u16(), &got.json()["error_type"]), (422, &json!("validation")));
    let got = harness.post("/generate", "t/a", r#"{"inputs":["a","b"]}"#).await;
    assert_eq!(got.json()["error"], "inputs must be one string");
    let got = harness.post("/generate_stream", "t/a", BODY).await;
    let last = events(&got.text()).pop().unwrap();
    assert_eq!(last, json!({"error": "the device failed", "error_type": "generation"}));
    assert_eq!(harness.get("/generate").await.status, 405);
}

#[tokio::test]
async fn info_tells_the_server_and_the_model_that_is_named() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let server = harness.get("/info").await.json();
    assert_eq!((&server["router"], server.get("model_id")), (&json!("roundhouse"), None));
    let loaded = harness.get("/info?model=b/c.tar.gz").await.json();
    assert_eq!(
        (&loaded["model_id"], &loaded["max_total_tokens"]),
        (&json!("b/c.tar.gz"), &json!(2048))
    );
    assert_eq!(loaded["model_dtype"], "q8_0, f32");
    let cold = harness.get("/info?model=a").await.json();
    assert_eq!((&cold["model_id"], cold.get("model_dtype")), (&json!("a"), None));
    let none = harness.get("/info?model=none").await;
    assert_eq!(
        (none.status.as_u16(), none.json()["error_type"].as_str()),
        (404, Some("not_found"))
    );
    let health = harness.get("/health").await;
    assert_eq!((health.status.as_u16(), health.text().as_str()), (200, ""));
}

#[tokio::test]
async fn a_whole_answer_tells_its_times_and_tokens() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let got = harness.post("/generate", "t/a", r#"{"inputs":"hé"}"#).await;
    for (name, value) in
        [("x-compute-characters", "2"), ("x-prompt-tokens", "3"), ("x-generated-tokens", "4")]
    {
        assert_eq!(got.header(name), value, "{name}");
    }
    for name in ["x-total-time", "x-queue-time", "x-inference-time", "x-time-per-token"] {
        assert!(got.header(name).parse::<u64>().is_ok(), "{name}");
    }
    let stream = harness.post("/generate_stream", "t/a", r#"{"inputs":"hi"}"#).await;
    assert_eq!(stream.header("x-total-time"), "");
}

#[tokio::test]
async fn a_models_author_may_ask_for_answers_in_this_servers_way() {
    let styled = |style: AnswerStyle| {
        Setup::default().with(move |_| {
            let mut answer = says(hello(1), 1)?;
            answer.served.style = style;
            Ok(answer)
        })
    };
    let (tgi, events) =
        (AnswerStyle { tgi: true, events: false }, AnswerStyle { tgi: false, events: true });
    let (whole, stream) = (r#"{"inputs":"hi"}"#, r#"{"inputs":"hi","stream":true}"#);
    for (style, array, sse) in
        [(tgi, true, true), (events, false, true), (AnswerStyle::default(), false, false)]
    {
        let harness = styled(style);
        let got = harness.post("/invocations", "a", whole).await;
        assert_eq!(got.json().is_array(), array, "{}", got.text());
        let got = harness.post("/invocations", "a", stream).await;
        assert_eq!(got.header("content-type").starts_with("text/event-stream"), sse, "{style:?}");
    }
    // Its own routes have their own way.
    let got = styled(tgi).post("/generate", "a", whole).await;
    assert!(got.json().is_object(), "{}", got.text());
}

#[tokio::test]
async fn wrong_bodies_are_refused_by_each_face_in_its_own_words() {
    // What is longer than the model's context is known to nobody before the model.
    let harness = Setup::default().with(|asked| match asked.request {
        Asked::Inputs(inputs) if inputs.texts[0] == "long" => {
            Err(Failure::new(ErrorKind::InvalidInput, "the prompt is 9 tokens too long"))
        }
        _ => says(hello(1), 1),
    });
    let value = "parameters.top_p must be a number from 0 to 1";
    let cases = [
        (r#"{"inputs":"long"}"#, "the prompt is 9 tokens too long"),
        (r#"{"inputs":"a","parameters":{"top_p":7}}"#, value),
        (r#"{"inputs":"a","parameters":"none"}"#, "parameters must be an object"),
        (r#"{"parameters":{}}"#, ""),
        ("[", ""),
        (r#"{"inputs":"a","parameters":{"truncate":0}}"#, ""),
        (r#"{"inputs":"a","parameters":{"typical_p":0.5}}"#, ""),
        (r#"{"inputs":"a","parameters":{"watermark":true}}"#, ""),
        (r#"{"inputs":"a","parameters":{"best_of":2}}"#, ""),
    ];
    for (body, message) in cases {
        for path in ["/generate", "/generate_stream", "/"] {
            let got = harness.post(path, "t/a", body).await;
            let told = got.json();
            assert_eq!(
                (got.status.as_u16(), &told["error_type"]),
                (422, &json!("validation")),
                "{told}"
            );
            let said = told["error"].as_str().unwrap();
            assert!(!said.is_empty() && said.starts_with(message), "{body}: {said}");
        }
        let got = harness.post("/endpoints/ep/invocations", "t/a", body).await;
        let told = got.json();
        assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (424, "ModelError"));
        assert_eq!(told["OriginalStatusCode"], 400, "{told}");
        assert!(told["OriginalMessage"].as_str().unwrap().starts_with(message), "{told}");
        let got = harness.post("/invocations", "t/a", body).await;
        assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
        assert!(got.json()["Message"].as_str().unwrap().starts_with(message), "{body}");
    }
    for path in ["/generate", "/", "/invocations"] {
        let body = r#"{"inputs":"a","colour":1,"parameters":{"shade":2}}"#;
        let got = harness.post(path, "t/a", body).await;
        assert_eq!(got.status, 200, "{path}: {}", got.text());
        assert_eq!(got.header("x-roundhouse-ignored"), "colour, parameters.shade", "{path}");
    }
}

#[tokio::test]
async fn answers_are_as_long_as_its_own_where_nothing_is_said_and_others_as_before() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let paths = ["/generate", "/generate_stream", "/", "/invocations"];
    for path in paths {
        assert_eq!(harness.post(path, "t/a", r#"{"inputs":"hi"}"#).await.status, 200, "{path}");
    }
    let asked = harness.asked.lock().unwrap();
    let usual: Vec<_> = asked
        .iter()
        .map(|asked| match &asked.request {
            Asked::Inputs(inputs) => inputs.generation.usual_tokens,
            _ => panic!("not inputs"),
        })
        .collect();
    assert_eq!(usual, [Some(100), Some(100), Some(100), None]);
}
