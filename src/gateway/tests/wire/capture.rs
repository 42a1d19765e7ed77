//! What is kept of requests and answers.

use std::sync::{Arc, Mutex};

use axum::body::Body;
use http::Request;
use roundhouse_gateway::{Capture, CaptureRoom, Captured, Done, Due};
use roundhouse_tenancy::Caller;
use roundhouse_types::{ErrorKind, Failure};

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const STREAM: &str = "/endpoints/ep/invocations-response-stream";
const INPUTS: &str = r#"{"inputs":"hi"}"#;

type Kept = Arc<Mutex<Vec<Captured>>>;

fn capture(most: usize, room: usize) -> (Capture, Kept) {
    let kept = Kept::default();
    let taking = kept.clone();
    let capture = Capture {
        sampling: 10_000,
        input: true,
        output: true,
        redacted: false,
        most,
        room: CaptureRoom::new(room),
        take: Arc::new(move |captured| taking.lock().unwrap().push(captured)),
    };
    (capture, kept)
}

fn harness(capture: Capture) -> Harness {
    let setup = Setup { capture: Some(capture), ..Setup::default() };
    setup.with(|_| says(hello(1), 1))
}

fn request(path: &str, body: &'static str) -> Request<Body> {
    let mut request = post(path, "a", body);
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    request.headers_mut().insert("x-amzn-sagemaker-inference-id", "inf-1".parse().unwrap());
    request
}

#[tokio::test]
async fn a_request_and_its_answer_are_kept_as_the_model_said_it() {
    let (capture, kept) = capture(1 << 20, 1 << 20);
    let harness = harness(capture);
    let whole = harness.send(request(INVOKE, INPUTS)).await;
    assert_eq!(whole.header("content-length"), whole.body.len().to_string());
    let body = r#"{"inputs":"hi","stream":true}"#;
    let plain = harness.send(request(INVOKE, body)).await;
    let framed = harness.send(request(STREAM, body)).await;
    assert_eq!(framed.status, 200);
    let kept = kept.lock().unwrap();
    let [first, second, third] = kept.as_slice() else { panic!("{} are kept", kept.len()) };
    assert_eq!(first.id.to_string(), whole.header("x-amzn-requestid"));
    assert_eq!(first.inference_id.as_deref(), Some("inf-1"));
    assert_eq!(&*first.variant, "AllTraffic");
    let input = first.input.as_ref().unwrap();
    assert_eq!(input.content_type.as_deref(), Some("application/json"));
    assert_eq!(input.data.as_ref().unwrap(), INPUTS);
    assert_eq!(first.output.as_ref().unwrap().data.as_ref().unwrap(), &whole.body);
    for streamed in [second, third] {
        // Of the framed stream what is inside of its messages.
        let output = streamed.output.as_ref().unwrap();
        assert_eq!(output.content_type.as_deref(), Some("application/jsonlines"));
        assert_eq!(output.data.as_ref().unwrap(), &plain.body);
    }
}

#[tokio::test]
async fn calls_of_sagemakers_openai_route_and_deferred_ones_are_kept_and_those_of_v1_are_not() {
    let (capture, kept) = capture(1 << 20, 1 << 20);
    let harness = harness(capture);
    let chat = r#"{"messages":[{"role":"user","content":"hi"}],"model":"a"}"#;
    let streamed = chat.replace("\"model\"", "\"stream\":true,\"model\"");
    let at = "/endpoints/ep/openai/v1/chat/completions";
    let mut said = Vec::new();
    for body in [chat.to_owned(), streamed] {
        let mut request = post(at, "", body.clone());
        request.headers_mut().insert("x-amzn-sagemaker-inference-id", "inf-1".parse().unwrap());
        let got = harness.send(request).await;
        assert_eq!(got.status, 200);
        said.push((body, got.body));
        assert_eq!(harness.post("/v1/chat/completions", "", chat).await.status, 200);
        assert_eq!(harness.post("/invocations", "a", INPUTS).await.status, 200);
    }
    let due = Due {
        endpoint: "ep".parse().unwrap(),
        caller: Caller::anonymous(),
        headers: vec![
            ("x-amzn-sagemaker-target-model".into(), b"a".to_vec()),
            ("x-amzn-sagemaker-inference-id".into(), b"inf-1".to_vec()),
        ],
        body: INPUTS.into(),
        most: 1 << 20,
    };
    let Done::Answered { body, .. } = harness.later.answer(due).await else {
        panic!("it is answered")
    };
    said.push((INPUTS.to_owned(), body));
    let kept = kept.lock().unwrap();
    assert_eq!(kept.len(), 3);
    for (captured, (input, output)) in kept.iter().zip(said) {
        assert_eq!(captured.inference_id.as_deref(), Some("inf-1"));
        assert_eq!(captured.input.as_ref().unwrap().data.as_ref().unwrap(), &input);
        assert_eq!(captured.output.as_ref().unwrap().data.as_ref().unwrap(), &output);
    }
}

#[tokio::test]
async fn what_is_kept_has_its_bounds() {
    let (small, kept) = capture(10, 1 << 20);
    let harness = harness(small);
    let got = harness.send(request(INVOKE, INPUTS)).await;
    let framed = harness.send(request(STREAM, r#"{"inputs":"hi","stream":true}"#)).await;
    assert!(framed.body.len() > 10);
    for captured in kept.lock().unwrap().iter() {
        for side in [&captured.input, &captured.output] {
            let side = side.as_ref().unwrap();
            assert!(side.is_cut && side.data.as_ref().unwrap().len() == 10, "{side:?}");
        }
    }
    assert!(
        got.body
            .starts_with(kept.lock().unwrap()[0].output.as_ref().unwrap().data.as_ref().unwrap())
    );
}

#[tokio::test]
async fn what_finds_no_room_is_not_kept_and_costs_no_answer() {
    let (full, kept) = capture(1 << 20, 1500);
    let harness = harness(full);
    let whole = harness.send(request(INVOKE, INPUTS)).await;
    assert_eq!(whole.status, 200);
    assert_eq!(kept.lock().unwrap().len(), 1);
    for path in [INVOKE, STREAM] {
        assert_eq!(harness.send(request(path, INPUTS)).await.status, 200);
        assert_eq!(kept.lock().unwrap().len(), 1, "the room is held until it is written");
    }
    kept.lock().unwrap().clear();
    assert_eq!(harness.send(request(INVOKE, INPUTS)).await.status, 200);
    assert_eq!(kept.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_redacted_holds_no_data_and_a_side_that_is_not_wanted_is_not_there() {
    let (all, kept) = capture(1 << 20, 1 << 20);
    let cases = [
        Capture { redacted: true, ..all.clone() },
        Capture { output: false, ..all.clone() },
        Capture { input: false, ..all.clone() },
        Capture { sampling: 0, ..all },
    ];
    for capture in cases {
        assert_eq!(harness(capture).send(request(STREAM, INPUTS)).await.status, 200);
    }
    let kept = kept.lock().unwrap();
    let [redacted, input, output] = kept.as_slice() else { panic!("{} are kept", kept.len()) };
    assert_eq!(redacted.input.as_ref().unwrap().data, None);
    assert_eq!(redacted.output.as_ref().unwrap().data, None);
    assert!(input.input.is_some() && input.output.is_none());
    assert!(output.input.is_none() && output.output.is_some());
}

#[tokio::test]
async fn a_part_of_the_requests_is_drawn_and_none_that_failed() {
    let (capture, kept) = capture(1 << 20, 1 << 20);
    let half = harness(Capture { sampling: 5_000, ..capture.clone() });
    for _ in 0..400 {
        assert_eq!(half.send(request(INVOKE, INPUTS)).await.status, 200);
    }
    let drawn = kept.lock().unwrap().len();
    assert!((140..260).contains(&drawn), "{drawn}");
    kept.lock().unwrap().clear();
    let setup = Setup { capture: Some(capture), ..Setup::default() };
    let failing = setup.with(|_| Err(Failure::new(ErrorKind::ModelFailed, "no")));
    assert_eq!(failing.send(request(INVOKE, INPUTS)).await.status, 424);
    assert!(kept.lock().unwrap().is_empty());
}
