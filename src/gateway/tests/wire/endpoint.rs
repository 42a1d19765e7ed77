//! `InvokeEndpoint` and `/invocations`.

use axum::body::Body;
use http::Request;
use roundhouse_serving::{FieldNames, Finish, Generation, Prompt, Request as Asked};
use roundhouse_types::{ErrorKind, Failure, RetryHint};
use serde_json::json;

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const PLAIN: &str = "/invocations";

#[tokio::test]
async fn an_invocation_answers_with_the_truth_about_itself() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    for path in [INVOKE, PLAIN] {
        let got = harness.post(path, "t/a b.tar.gz", r#"{"inputs":"hi"}"#).await;
        assert_eq!(got.status, 200, "{}", got.text());
        assert_eq!(got.json(), json!({"generated_text": "Hello é"}));
        assert_eq!(got.header("content-type"), "application/json");
        assert_eq!(got.header("x-roundhouse-version"), "0123abcd");
        assert_eq!(got.header("x-roundhouse-tier"), "disk");
        assert_eq!(got.header("x-roundhouse-load-ms"), "120");
        assert_eq!(got.header("x-roundhouse-queue-ms"), "7");
        assert_eq!(got.header("x-amzn-requestid").len(), 36);
        let variant = if path == INVOKE { "AllTraffic" } else { "" };
        assert_eq!(got.header("x-amzn-invoked-production-variant"), variant);
    }
    let asked = harness.asked.lock().unwrap();
    assert_eq!(asked[0].model.to_string(), "ep:t/a b.tar.gz");
    assert!(asked[0].hold_until < asked[0].deadline);
}

#[tokio::test]
async fn the_target_header_is_raw_bytes_and_checked() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    for name in ["é/…", "t/a+b%20c#d?.tar.gz", "%2e%2e/a"] {
        assert_eq!(harness.post(INVOKE, name, r#"{"inputs":"hi"}"#).await.status, 200, "{name}");
        assert_eq!(harness.asked.lock().unwrap().last().unwrap().model.target.as_str(), name);
    }
    let long = "a".repeat(1025);
    for name in ["../a", "/a", "a//b", "a/../b", "a\\b", long.as_str()] {
        let got = harness.post(INVOKE, name, r#"{"inputs":"hi"}"#).await;
        assert_eq!(got.status, 400, "{name}");
        assert_eq!(got.header("x-amzn-errortype"), "ValidationError", "{name}");
        let message = got.json()["Message"].as_str().unwrap().to_owned();
        assert!(message.contains("not a legal name"), "{message}");
    }
    let mut bytes = post(INVOKE, "", r#"{"inputs":"hi"}"#);
    let value = http::HeaderValue::from_bytes(b"a\xff").unwrap();
    bytes.headers_mut().insert("x-amzn-sagemaker-target-model", value);
    assert_eq!(harness.send(bytes).await.status, 400);
    assert_eq!(harness.asked.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn custom_attributes_name_a_target_at_invocations_where_no_header_does() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let ask = |path: &str, target: &str, attributes: &'static str| {
        let mut request = post(path, target, r#"{"inputs":"hi"}"#);
        let value = http::HeaderValue::from_static(attributes);
        request.headers_mut().insert("x-amzn-sagemaker-custom-attributes", value);
        harness.send(request)
    };
    assert_eq!(ask(PLAIN, "", "trace=1,target-model=t/b").await.status, 200);
    assert_eq!(ask(PLAIN, "t/a", "target-model=t/b").await.status, 200);
    let asked: Vec<String> =
        harness.asked.lock().unwrap().iter().map(|it| it.model.to_string()).collect();
    assert_eq!(asked, ["ep:t/b", "ep:t/a"], "the header goes before them");
    assert_eq!(ask(PLAIN, "", "target-model=../a").await.status, 400);
    assert_eq!(ask(PLAIN, "", "trace=1").await.status, 400);
    // SageMaker's own operation has a header for it, and says so.
    assert_eq!(ask(INVOKE, "", "target-model=t/b").await.status, 400);
}

#[tokio::test]
async fn a_missing_target_or_endpoint_is_a_validation_error() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let got = harness.post(INVOKE, "", r#"{"inputs":"hi"}"#).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
    assert!(got.text().contains("X-Amzn-SageMaker-Target-Model"), "{}", got.text());
    let got = harness.post("/endpoints/my%2Fep/invocations", "a", r#"{"inputs":"hi"}"#).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
    assert_eq!(got.json()["Message"], "endpoint my/ep not found");
    let got = harness.post("/endpoints/%ff/invocations", "a", "{}").await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));

    let several = Setup { endpoints: vec!["x", "y"], ..Setup::default() };
    let harness = several.with(|_| says(hello(1), 1));
    let got = harness.post(PLAIN, "a", r#"{"inputs":"hi"}"#).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
    let with_default = Setup { endpoints: vec!["x", "default"], ..Setup::default() };
    let harness = with_default.with(|_| says(hello(1), 1));
    assert_eq!(harness.post(PLAIN, "a", r#"{"inputs":"hi"}"#).await.status, 200);
    assert_eq!(harness.asked.lock().unwrap()[0].model.endpoint.as_str(), "default");
}

#[tokio::test]
async fn what_is_not_there_cannot_be_asked_for() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let cases = [
        ("x-amzn-sagemaker-target-variant", "AllTraffic", 200),
        ("x-amzn-sagemaker-target-variant", "Blue", 400),
        ("x-amzn-sagemaker-inference-component", "ic-1", 400),
        ("x-amzn-sagemaker-target-container-hostname", "c1", 400),
        ("x-amzn-sagemaker-enable-explanations", "`true`", 400),
        ("x-amzn-sagemaker-session-id", "NEW_SESSION", 400),
        ("x-amzn-sagemaker-session-id", "never-opened", 400),
        ("x-amzn-sagemaker-inference-id", "inf-1", 200),
        ("x-amzn-sagemaker-prefix-aware-id", "prompts", 200),
    ];
    for (name, value, status) in cases {
        let mut request = post(INVOKE, "a", r#"{"inputs":"hi"}"#);
        request.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(harness.send(request).await.status, status, "{name}: {value}");
    }
}

#[tokio::test]
async fn the_body_decides_what_is_asked() {
    let harness = Setup::default().with(|invocation| match invocation.request {
        Asked::Embeddings(_) => embeds(vec![vec![0.5]]),
        _ => says(hello(1), 1),
    });
    let bodies = [
        r#"{"messages":[{"role":"user","content":"hi"}]}"#,
        r#"{"prompt":"hi"}"#,
        r#"{"inputs":"hi","parameters":{"max_new_tokens":7,"temperature":0.5,"stop":["x"],"foo":1}}"#,
        r#"{"input":"hi"}"#,
    ];
    for body in bodies {
        let got = harness.post(INVOKE, "a", body).await;
        assert_eq!(got.status, 200, "{body}: {}", got.text());
    }
    let asked = harness.asked.lock().unwrap();
    assert!(matches!(&asked[0].request, Asked::Chat(chat) if chat.messages.len() == 1));
    let Asked::Completion(completion) = &asked[1].request else { panic!("not a completion") };
    assert_eq!(completion.prompts, [Prompt::Text("hi".into())]);
    let Asked::Inputs(inputs) = &asked[2].request else { panic!("not inputs") };
    let names = FieldNames {
        prompt: "inputs",
        max_tokens: "parameters.max_new_tokens",
        min_tokens: "parameters.min_new_tokens",
        prefix: "parameters.",
        function: ".function",
    };
    let want = Generation {
        max_tokens: Some(7),
        temperature: Some(0.5),
        do_sample: Some(true),
        stop: vec!["x".into()],
        names,
        ..Generation::default()
    };
    assert_eq!(inputs.generation, want);
    assert!(matches!(&asked[3].request, Asked::Embeddings(_)));
}

#[tokio::test]
async fn a_plain_text_body_is_one_input() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let mut request = post(INVOKE, "a", "hi {");
    request.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    assert_eq!(harness.send(request).await.json(), json!({"generated_text": "Hello é"}));
    let asked = harness.asked.lock().unwrap();
    assert!(matches!(&asked[0].request, Asked::Inputs(inputs) if inputs.texts == ["hi {"]));
}

#[tokio::test]
async fn a_list_of_inputs_gets_a_list_with_details_where_asked() {
    let harness = Setup::default().with(|_| says(hello(2), 2));
    let body = r#"{"inputs":["a","b"],"parameters":{"details":true}}"#;
    let got = harness.post(INVOKE, "a", body).await.json();
    assert_eq!(got.as_array().unwrap().len(), 2);
    insta::assert_json_snapshot!(got[1]);
}

#[tokio::test]
async fn labels_take_the_hugging_face_shapes() {
    let harness = Setup::default().with(|invocation| {
        let Asked::Inputs(inputs) = invocation.request else { panic!("not inputs") };
        let all: &[(&str, f32)] = &[("good", 0.9), ("bad", 0.1)];
        let labels = &all[..inputs.top_k.unwrap_or(1).min(2)];
        classifies(&vec![labels; inputs.texts.len()])
    });
    let good = json!({"label": "good", "score": 0.9});
    let bad = json!({"label": "bad", "score": 0.1});
    let cases = [
        (r#"{"inputs":"x"}"#, json!([good])),
        (r#"{"inputs":"x","parameters":{"top_k":2}}"#, json!([good, bad])),
        (r#"{"inputs":["x","y"]}"#, json!([good, good])),
        (r#"{"inputs":["x"],"parameters":{"top_k":null}}"#, json!([[good, bad]])),
        (r#"{"inputs":["x"],"parameters":{"return_all_scores":true}}"#, json!([[good, bad]])),
    ];
    for (body, want) in cases {
        assert_eq!(harness.post(INVOKE, "a", body).await.json(), want, "{body}");
    }
}

#[tokio::test]
async fn vectors_come_bare_for_a_string_and_listed_for_a_list() {
    let harness = Setup::default().with(|invocation| {
        let Asked::Inputs(inputs) = invocation.request else { panic!("not inputs") };
        embeds(vec![vec![0.1, -2.0]; inputs.texts.len()])
    });
    assert_eq!(harness.post(INVOKE, "a", r#"{"inputs":"x"}"#).await.text(), "[0.1,-2.0]");
    let got = harness.post(INVOKE, "a", r#"{"inputs":["x","y"]}"#).await;
    assert_eq!(got.text(), "[[0.1,-2.0],[0.1,-2.0]]");
}

#[tokio::test]
async fn a_vector_that_is_not_finite_is_a_failure_of_the_model() {
    let harness = Setup::default().with(|_| embeds(vec![vec![f32::NAN]]));
    let got = harness.post(INVOKE, "a", r#"{"inputs":"x"}"#).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (424, "ModelError"));
    assert_eq!(got.json()["OriginalStatusCode"], 500);
}

const INPUTS: &str = "inputs must be a string or a list of 1 to 2048 strings, or, as the model \
    takes them, objects with text and text_pair, with question and context, or with \
    source_sentence and sentences";

#[tokio::test]
async fn a_wrong_body_is_a_model_error_here_and_a_plain_400_there() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let cases = [
        ("nonsense", "the body is not valid JSON: expected ident at line 1 column 2"),
        ("{}", "the body must have one of inputs, messages, prompt, input or query"),
        (r#"{"inputs":7}"#, INPUTS),
        (r#"{"inputs":[]}"#, INPUTS),
        (r#"{"inputs":"a","parameters":[]}"#, "parameters must be an object"),
        (
            r#"{"inputs":"a","parameters":{"num_beams":4}}"#,
            "parameters.num_beams is not supported with this value",
        ),
        (
            r#"{"inputs":"a","parameters":{"decoder_input_details":true}}"#,
            "parameters.decoder_input_details is for answers in one piece, with details",
        ),
        (
            r#"{"inputs":"a","parameters":{"max_new_tokens":0}}"#,
            "parameters.max_new_tokens must be a whole number of at least 1",
        ),
        (r#"{"inputs":["a","b"],"stream":true}"#, "stream takes one input, not a list of several"),
    ];
    for (body, message) in cases {
        let got = harness.post(INVOKE, "a", body).await;
        assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (424, "ModelError"));
        assert_eq!(got.json()["OriginalStatusCode"], 400);
        assert_eq!(got.json()["OriginalMessage"], message);
        assert_eq!(got.json()["LogStreamArn"], "");
        let got = harness.post(PLAIN, "a", body).await;
        assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (400, "ValidationError"));
        assert_eq!(got.json(), json!({"Message": message}));
    }
    assert!(harness.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn media_types_that_nobody_reads_are_refused() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    for (path, status, original) in [(INVOKE, 424, json!(415)), (PLAIN, 415, json!(null))] {
        let mut request = post(path, "a", "<inputs>hi</inputs>");
        request.headers_mut().insert("content-type", "text/xml".parse().unwrap());
        let got = harness.send(request).await;
        assert_eq!(got.status, status);
        assert_eq!(got.json()["OriginalStatusCode"], original);
        assert!(got.text().contains("text/xml is not what"), "{}", got.text());
    }
}

#[tokio::test]
async fn failures_keep_their_meaning() {
    let cases = [
        (ErrorKind::ModelNotFound, 400, "ValidationError"),
        (ErrorKind::ModelInvalid, 424, "ModelError"),
        (ErrorKind::NotReady, 429, "ModelNotReadyException"),
        (ErrorKind::Throttled, 429, "ThrottlingException"),
        (ErrorKind::Internal, 500, "InternalFailure"),
        (ErrorKind::Overloaded, 503, "ServiceUnavailable"),
        (ErrorKind::StoreUnavailable, 530, "InternalDependencyException"),
    ];
    for (kind, status, name) in cases {
        let harness = Setup::default().with(move |_| {
            let retry = RetryHint::After(std::time::Duration::from_millis(2500));
            Err(Failure::new(kind, "why").with_retry(retry))
        });
        for path in [INVOKE, PLAIN, "/endpoints/ep/invocations-response-stream"] {
            let got = harness.post(path, "a", r#"{"inputs":"hi"}"#).await;
            assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (status, name));
            assert_eq!(got.header("retry-after"), "3");
            assert_eq!(got.header("x-amz-retry-after"), "2500");
            assert!(!got.header("x-amzn-requestid").is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_too_slow_times_out_before_the_client_does() {
    let never: roundhouse_gateway::state::InvokeFn =
        std::sync::Arc::new(|_| Box::pin(std::future::pending()));
    let harness = Setup::default().with_async(never);
    let start = tokio::time::Instant::now();
    let got = harness.post(INVOKE, "a", r#"{"inputs":"hi"}"#).await;
    assert_eq!(start.elapsed().as_secs(), 60);
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (424, "ModelError"));
    assert_eq!(got.json()["OriginalStatusCode"], 0);
}

#[tokio::test]
async fn a_stream_that_ends_without_a_reason_is_a_fault_of_ours() {
    let harness = Setup::default().with(|_| says(vec![piece(0, "Hello", Vec::new())], 1));
    let got = harness.post(INVOKE, "a", r#"{"inputs":"hi"}"#).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (500, "InternalFailure"));
}

#[tokio::test]
async fn seven_megabytes_are_too_many() {
    let harness = Setup::default().with(|_| says(vec![last(0, Finish::Length, 1)], 1));
    let big = format!("{{\"inputs\":\"{}\"}}", "a".repeat(7 << 20));
    for path in [INVOKE, PLAIN] {
        let got = harness.post(path, "a", big.clone()).await;
        assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (413, "ValidationError"));
        assert_eq!(got.json(), json!({"Message": "the request body is larger than 6291456 bytes"}));
    }
    let declared = Request::post("/v1/completions")
        .header("content-length", (7 << 20).to_string())
        .body(Body::from(big.clone()))
        .unwrap();
    let got = harness.send(declared).await;
    assert_eq!(got.status, 413);
    assert_eq!(got.json()["error"]["code"], "request_too_large");
    let fits = format!("{{\"inputs\":\"{}\"}}", "a".repeat((6 << 20) - 13));
    assert_eq!(fits.len(), 6 << 20);
    assert_eq!(harness.post(INVOKE, "a", fits).await.status, 200);
    assert_eq!(harness.logged.lock().unwrap()[3].bytes_in, 6 << 20);
}

#[tokio::test]
async fn a_million_tiny_pieces_are_refused() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let pieces = (0..1_000_000).map(|_| Ok::<_, std::io::Error>(" "));
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    let got = harness.post(INVOKE, "a", body).await;
    assert_eq!(got.status, 400);
    assert!(got.text().contains("pieces"), "{}", got.text());
}

#[tokio::test]
async fn fields_that_nothing_reads_are_told_and_no_fault() {
    let harness = Setup::default().with(|_| says(hello(1), 1));
    let ignored = async |body: &'static str| {
        let got = harness.post(INVOKE, "a", body).await;
        assert_eq!(got.status, 200, "{body}: {}", got.text());
        got.headers.get("x-roundhouse-ignored").map(|names| names.to_str().unwrap().to_owned())
    };
    let plain = r#"{"inputs":"hi","parameters":{"max_new_tokens":7},"stream":false,"model":"a"}"#;
    assert_eq!(ignored(plain).await, None);
    let odd = r#"{"inputs":"hi","options":{},"parameters":{"max_tokns":1,"x\u0007":2,"no":null}}"#;
    assert_eq!(ignored(odd).await.as_deref(), Some("options, parameters.max_tokns, and 1 more"));
}
