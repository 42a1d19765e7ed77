//! What a handler is given and what its client gets.

use roundhouse_tests::handlers::Stage;
use serde_json::{Value, json};

use super::ECHO;

/// Tells what it was called with.
const REPORT: &str = "
import json

def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept, context):
    text = body if isinstance(body, str) else bytes(body).hex()
    context.set_response_header(0, 'X-Amzn-SageMaker-Custom-Attributes', 'seen=1')
    context.set_response_header(0, 'Set-Cookie', 'never=1')
    report = {'body': text, 'is_text': isinstance(body, str), 'content_type': content_type,
              'accept': accept, 'attributes': context.custom_attributes,
              'inference': context.get_request_header(0, 'X-Amzn-SageMaker-Inference-Id')}
    return json.dumps(report), 'application/vnd.report+json'
";

#[tokio::test(flavor = "multi_thread")]
async fn all_byte_values_pass_untouched_both_ways_on_every_face() {
    let mut stage = Stage::new();
    stage.script("echo", ECHO);
    let server = stage.serve().await;
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let answer = server.ask("echo", &bytes).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.body == bytes, "{} bytes came back", answer.body.len());
    assert_eq!(answer.header("x-roundhouse-tier"), "store");

    let plain = server
        .http()
        .post(format!("{}/invocations", server.data))
        .header("x-amzn-sagemaker-target-model", "echo")
        .header("content-type", "application/x-anything")
        .body(bytes.clone());
    let answer = server.send_raw(plain).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.body == bytes, "{} bytes came back", answer.body.len());
    // What no other model would take: no type, no body, and what is no JSON.
    for (body, kind) in [("", ""), ("{", "application/json"), ("a,b\n1,\"\n", "text/csv")] {
        let headers = [("content-type", kind)];
        let headers = if kind.is_empty() { &headers[..0] } else { &headers[..] };
        let answer = server.ask_with("echo", body, headers).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, body), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn types_and_headers_reach_the_handler_and_its_own_come_back() {
    let mut stage = Stage::new();
    stage.script("report", REPORT);
    let server = stage.serve().await;
    let cases = [
        ("application/json", "{ \"a\" : [1e400, NaN] }", true),
        ("text/csv; charset=utf-8", "1,2\r\n\u{fc}", true),
        ("text/plain", "a\tb", true),
        ("application/x-npy", "NUMPY", false),
    ];
    for (content_type, body, is_text) in cases {
        let headers = [
            ("content-type", content_type),
            ("accept", "application/x-wanted"),
            ("x-amzn-sagemaker-custom-attributes", "trace=7;user=a"),
            ("x-amzn-sagemaker-inference-id", "i-1"),
        ];
        let answer = server.ask_with("report", body, &headers).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let seen = answer.json();
        let hex = body.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(seen["body"], if is_text { body.to_owned() } else { hex }, "{content_type}");
        assert_eq!(seen["is_text"], is_text, "{content_type}");
        assert_eq!(seen["content_type"], content_type);
        assert_eq!(seen["accept"], "application/x-wanted");
        assert_eq!(seen["attributes"], "trace=7;user=a");
        assert_eq!(seen["inference"], "i-1");
        assert_eq!(answer.header("content-type"), "application/vnd.report+json");
        assert_eq!(answer.header("x-amzn-sagemaker-custom-attributes"), "seen=1");
        assert_eq!(answer.header("set-cookie"), "");
        assert_eq!(answer.header("x-amzn-invoked-production-variant"), "AllTraffic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn input_predict_and_output_functions_run_in_order_over_one_model() {
    let mut stage = Stage::new();
    stage.file("sum/weights.json", "[10, 100]").script(
        "sum",
        "
import json, os

def model_fn(model_dir):
    with open(os.path.join(model_dir, 'weights.json')) as file:
        return json.load(file)

def input_fn(body, content_type):
    assert content_type == 'text/csv', content_type
    return [float(cell) for cell in body.strip().split(',')]

def predict_fn(data, model):
    return sum(a * b for a, b in zip(data, model))

def output_fn(prediction, accept):
    return '%s as %s' % (prediction, accept), 'text/x-sum'
",
    );
    let server = stage.serve().await;
    let headers = [("content-type", "text/csv"), ("accept", "*/*")];
    let answer = server.ask_with("sum", "1,2\n", &headers).await;
    assert_eq!(answer.text(), "210.0 as application/json");
    assert_eq!(answer.header("content-type"), "text/x-sum");
}

const FAULTS: &str = "
class Refusal(Exception):
    status_code = 422

def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept, context):
    if body == 'raise':
        return 1 / 0
    if body == 'refuse':
        raise Refusal('four columns are needed')
    if body == 'status':
        context.set_response_status(429, 'Busy')
        return 'not now'
    if body == 'exit':
        raise SystemExit(3)
    return 'fine'
";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_handler_raises_is_a_model_error_with_its_own_status_and_line() {
    let mut stage = Stage::new();
    stage.script("faults", FAULTS);
    let server = stage.serve().await;
    let cases = [
        ("raise", 500, "ZeroDivisionError: division by zero (inference.py, line 10)"),
        ("refuse", 422, "Refusal: four columns are needed (inference.py, line 12)"),
        ("status", 429, "not now"),
        ("exit", 500, "SystemExit: 3"),
    ];
    for (body, original, says) in cases {
        let answer = server.ask_with("faults", body, &[("content-type", "text/plain")]).await;
        assert_eq!(answer.status, 424, "{body}: {}", answer.text());
        assert_eq!(answer.header("x-amzn-errortype"), "ModelError");
        let said = answer.json();
        assert_eq!(said["OriginalStatusCode"], original, "{said}");
        let message = said["OriginalMessage"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
    // One process has answered all of it.
    let fine = server.ask_with("faults", "fine", &[("content-type", "text/plain")]).await;
    assert_eq!(fine.text(), "fine");
    assert_eq!(server.started().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn openai_requests_to_a_handler_are_refused_with_a_hint() {
    let mut stage = Stage::new();
    stage.script("echo", ECHO);
    let server = stage.serve().await;
    let chat = json!({"model": "echo", "messages": [{"role": "user", "content": "hi"}]});
    let embed = json!({"model": "echo", "input": "hi"});
    for (path, body) in [("/v1/chat/completions", chat), ("/v1/embeddings", embed)] {
        let answer = server.post(path, body).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.body);
        let message = answer.json()["error"]["message"].clone();
        let message = message.as_str().unwrap();
        assert!(message.contains("a Python handler"), "{message}");
        assert!(message.contains("/invocations"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_container_contract_loads_invokes_and_unloads_a_handler() {
    let mut stage = Stage::new();
    stage.script("hash/model", ECHO);
    let root = stage.path().join("store").display().to_string();
    stage.variable("SAGEMAKER_MULTI_MODEL", "true").arg("--container-models-root").arg(&root);
    let server = stage.start(&["--handlers"]).await;
    let url = format!("{root}/hash/model");
    let loaded = server.post("/models", json!({"model_name": "hash", "url": url})).await;
    assert_eq!(loaded.status, 200, "{}", loaded.body);
    assert_eq!(server.processes().len(), 1);
    let bytes: Vec<u8> = (0..=255).collect();
    let invoke = || {
        let request = server.http().post(format!("{}/models/hash/invoke", server.data));
        server.send_raw(request.header("content-type", "image/x-raw").body(bytes.clone()))
    };
    let answer = invoke().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.body == bytes);
    let listed = server.get("/models").await.json();
    assert_eq!(listed["models"][0]["modelUrl"], Value::from(url), "{listed}");
    let gone = server.send(server.http().delete(format!("{}/models/hash", server.data))).await;
    assert_eq!(gone.status, 200, "{}", gone.body);
    // Its memory is free when the answer is sent.
    assert!(server.processes().is_empty(), "{:?}", server.processes());
    assert_eq!(invoke().await.status, 404);
}
