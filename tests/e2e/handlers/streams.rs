//! Answers in pieces.

use std::time::Duration;

use roundhouse_tests::handlers::{Event, Running, Stage, events, until};

/// Yields numbered pieces, and remembers how each of its answers ended.
const STEPS: &str = "
import json, os, time

seen = []

def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept):
    asked = json.loads(body)
    if 'where' in asked:
        return os.getcwd(), 'text/plain'
    if 'seen' in asked:
        return json.dumps(seen), 'application/json'
    return pieces(asked), 'text/x-pieces'

def pieces(asked):
    try:
        for number in range(asked['count']):
            if number == asked.get('fail_at'):
                raise ValueError('piece %d is broken' % number)
            yield 'piece %d;' % number
            while number < asked.get('told', 0) and not os.path.exists('told %d' % number):
                time.sleep(0.005)
            time.sleep(asked.get('pause', 0))
        seen.append('finished')
    except GeneratorExit:
        seen.append('stopped at %d' % number)
        raise
";

async fn collect(mut response: reqwest::Response) -> Vec<Event> {
    let mut received = Vec::new();
    while let Some(piece) = response.chunk().await.unwrap() {
        received.extend_from_slice(&piece);
    }
    let all = events(&mut received);
    assert!(received.is_empty(), "{} bytes are no event", received.len());
    all
}

async fn seen(server: &Running) -> String {
    let headers = [("content-type", "application/json")];
    server.ask_with("steps", r#"{"seen": 1}"#, &headers).await.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_come_one_by_one_before_the_handler_is_done() {
    let mut stage = Stage::new();
    stage.script("steps", STEPS);
    let server = stage.serve().await;
    let headers = [("content-type", "application/json")];
    let folder = server.ask_with("steps", r#"{"where": 1}"#, &headers).await.text();
    // It would take longer than a minute to the end. Of the first pieces none is made before it is
    // told that the one before has come.
    let asked = r#"{"count": 200, "pause": 0.3, "told": 3}"#;
    let mut response = server.ask_stream("steps", asked).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/vnd.amazon.eventstream");
    assert_eq!(response.headers()["x-amzn-sagemaker-content-type"], "text/x-pieces");
    let (mut received, mut all) = (Vec::new(), Vec::new());
    while all.len() < 3 {
        let next = tokio::time::timeout(Duration::from_secs(50), response.chunk()).await;
        received.extend_from_slice(&next.unwrap().unwrap().expect("it goes on"));
        let new = events(&mut received);
        // Each is seen before the next is there.
        assert!(new.len() <= 1, "{new:?}");
        if !new.is_empty() {
            std::fs::write(format!("{folder}/told {}", all.len()), "").unwrap();
        }
        all.extend(new);
    }
    let texts: Vec<String> =
        all.iter().map(|event| String::from_utf8_lossy(&event.payload).into_owned()).collect();
    assert_eq!(texts, ["piece 0;", "piece 1;", "piece 2;"]);
    assert!(all.iter().all(|event| event.name == "PayloadPart"), "{all:?}");

    // The client leaves: the only worker is free again long before the minute is over.
    drop(response);
    until("the generator is stopped", Duration::from_secs(50), async || {
        seen(&server).await.contains("stopped at ")
    })
    .await;
    assert!(!seen(&server).await.contains("finished"));
    assert_eq!(server.started().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_midway_is_the_stream_s_last_event_and_one_at_its_start_has_a_status() {
    let mut stage = Stage::new();
    stage.script("steps", STEPS);
    let server = stage.serve().await;
    let all = collect(server.ask_stream("steps", r#"{"count": 5, "fail_at": 2}"#).await).await;
    let names: Vec<&str> = all.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["PayloadPart", "PayloadPart", "ModelStreamError"]);
    let said = String::from_utf8_lossy(&all[2].payload).into_owned();
    assert!(said.contains("ValueError: piece 2 is broken"), "{said}");

    let refused = server.ask_stream("steps", r#"{"count": 5, "fail_at": 0}"#).await;
    assert_eq!(refused.status(), 424);
    assert_eq!(refused.headers()["x-amzn-errortype"], "ModelError");
    assert_eq!(server.started().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_gathered_for_a_client_that_takes_one_answer() {
    let mut stage = Stage::new();
    stage.script("steps", STEPS);
    let server = stage.serve().await;
    let headers = [("content-type", "application/json")];
    let whole = server.ask_with("steps", r#"{"count": 3}"#, &headers).await;
    assert_eq!((whole.status, whole.text().as_str()), (200, "piece 0;piece 1;piece 2;"));
    assert_eq!(whole.header("content-type"), "text/x-pieces");
    let broken = server.ask_with("steps", r#"{"count": 3, "fail_at": 2}"#, &headers).await;
    assert_eq!(broken.status, 424, "{}", broken.text());
    assert!(broken.text().contains("piece 2 is broken"), "{}", broken.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_in_a_stream_ends_it_with_the_reason() {
    let mut stage = Stage::new();
    stage.script(
        "dies",
        "
import os, signal

def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept):
    def pieces():
        yield 'first'
        os.kill(os.getpid(), signal.SIGSEGV)
    return pieces()
",
    );
    let server = stage.serve().await;
    let all = collect(server.ask_stream("dies", "{}").await).await;
    assert_eq!(all[0].payload, b"first");
    assert_eq!(all[1].name, "ModelStreamError");
    let said = String::from_utf8_lossy(&all[1].payload).into_owned();
    assert!(said.contains("SIGSEGV"), "{said}");
}
