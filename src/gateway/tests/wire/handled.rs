//! Handlers: bodies that are not read, and answers that are passed on.

use std::sync::Arc;

use axum::body::Body;
use futures_util::FutureExt;
use http::Request;
use roundhouse_serving::{
    Answer, HandledBody, HandledReply, Origin, ReadBody, Reply, Request as Asked,
};
use roundhouse_types::{ErrorKind, Failure, ModelKind};
use serde_json::json;

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const STREAM: &str = "/endpoints/ep/invocations-response-stream";
const PLAIN: &str = "/invocations";

fn handlers() -> Setup {
    Setup { handlers: true, ..Setup::default() }
}

fn answers(status: u16, body: &'static [u8]) -> Result<Answer, Failure> {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let reply = HandledReply {
        status,
        content_type: Some("text/csv".into()),
        headers: vec![
            header("X-Amzn-SageMaker-Custom-Attributes", "seen=1"),
            header("set-cookie", "a=b"),
            header("content-length", "3"),
            header("x-amzn-sagemaker-new\nline", "x"),
        ],
        body: HandledBody::Whole(body.into()),
        origin: Origin::Handler,
    };
    Ok(Answer { reply: Reply::Handled(reply), served: served(ModelKind::Handler) })
}

fn request(path: &str) -> Request<Body> {
    Request::post(path)
        .header("x-amzn-sagemaker-target-model", "a")
        .header("content-type", "application/x-npy")
        .header("accept", "text/csv")
        .header("x-amzn-sagemaker-custom-attributes", "trace=7")
        .header("x-amzn-sagemaker-inference-id", "i1")
        .header("authorization", "AWS4-HMAC-SHA256 …")
        .body(Body::from(&b"\x93NUMPY\xff\x00"[..]))
        .unwrap()
}

#[tokio::test]
async fn bytes_and_types_pass_through_and_other_headers_do_not() {
    let harness = handlers().with(|_| answers(200, b"1,2\n\xff"));
    for path in [INVOKE, PLAIN] {
        let got = harness.send(request(path)).await;
        assert_eq!(got.status, 200, "{path}");
        assert_eq!(&got.body[..], b"1,2\n\xff");
        assert_eq!(got.header("content-type"), "text/csv");
        assert_eq!(got.header("x-amzn-sagemaker-custom-attributes"), "seen=1");
        assert_eq!(got.header("x-roundhouse-tier"), "disk");
        assert!(!got.headers.contains_key("set-cookie"));
        let asked = harness.asked.lock().unwrap();
        let Asked::Raw(raw) = &asked.last().unwrap().request else { panic!("it was read") };
        assert_eq!(&raw.body.body[..], b"\x93NUMPY\xff\x00");
        assert_eq!(raw.body.content_type.as_deref(), Some("application/x-npy"));
        assert_eq!(raw.body.accept.as_deref(), Some("text/csv"));
        assert_eq!(raw.body.meta.custom_attributes.as_deref(), Some("trace=7"));
        assert_eq!(raw.body.meta.headers["x-amzn-sagemaker-inference-id"], "i1");
        assert!(!raw.body.meta.headers.contains_key("authorization"));
        assert_eq!(raw.body.meta.request_id, got.header("x-amzn-requestid"));
    }
}

#[tokio::test]
async fn a_whole_answer_on_the_stream_operation_is_one_part() {
    let harness = handlers().with(|_| answers(200, b"1,2\n"));
    let (got, chunks) = harness.chunks(request(STREAM)).await;
    assert_eq!(got.status, 200);
    assert_eq!(got.header("content-type"), "application/vnd.amazon.eventstream");
    assert_eq!(got.header("x-amzn-sagemaker-content-type"), "text/csv");
    assert_eq!(chunks.len(), 1);
    assert!(chunks[0].windows(4).any(|window| window == b"1,2\n"));
    let asked = harness.asked.lock().unwrap();
    let Asked::Raw(raw) = &asked[0].request else { panic!("it was read") };
    assert!(raw.body.stream);
}

#[tokio::test]
async fn a_status_of_the_handlers_is_told_as_a_containers() {
    let harness = handlers().with(|_| answers(422, b"no such customer"));
    let got = harness.send(request(INVOKE)).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (424, "ModelError"));
    assert_eq!(got.json()["OriginalStatusCode"], 422);
    assert_eq!(got.json()["OriginalMessage"], "no such customer");
    let got = harness.send(request(PLAIN)).await;
    assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (422, "ModelError"));
    let raised = handlers()
        .with(|_| Err(Failure::new(ErrorKind::ModelFailed, "ValueError: no").with_status(503)));
    for path in [INVOKE, PLAIN] {
        let got = raised.send(request(path)).await;
        assert_eq!(got.status, 424, "{path}");
        assert_eq!(got.json()["OriginalStatusCode"], 503, "{path}");
    }
}

#[tokio::test]
async fn a_model_of_ours_behind_the_same_endpoint_is_asked_as_ever() {
    let harness = handlers().with_async(Arc::new(|invocation| {
        async move {
            let Asked::Raw(raw) = invocation.request else { panic!("it was read") };
            let ReadBody::Request(request) = (raw.read)(raw.body.body).await? else {
                panic!("it names no adapters")
            };
            let Asked::Inputs(inputs) = *request else { panic!("these are inputs") };
            assert_eq!(inputs.texts, ["hi"]);
            says(hello(1), 1)
        }
        .boxed()
    }));
    for path in [INVOKE, PLAIN] {
        let got = harness.post(path, "a", r#"{"inputs":"hi"}"#).await;
        assert_eq!(got.json(), json!({"generated_text": "Hello é"}), "{path}");
        let got = harness.post(path, "a", r#"{"inputs":["#).await;
        let told =
            if path == INVOKE { got.json()["OriginalStatusCode"].clone() } else { json!(400) };
        assert_eq!(told, 400, "{path}");
        assert!(got.text().contains("not valid JSON"), "{}", got.text());
        let got = harness.send(request(path)).await;
        assert!(got.text().contains("the npy body is of an unknown version"), "{}", got.text());
    }
    let (got, _) =
        harness.chunks(post(STREAM, "", r#"{"inputs":"hi","model":"a","stream":true}"#)).await;
    assert_eq!(got.status, 200);
    assert!(String::from_utf8_lossy(&got.body).contains("Hello"));
}
