//! Captured requests in the store: whole lines where SageMaker puts them, whatever becomes of the server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use roundhouse_tests::models::signed_classifier;
use roundhouse_tests::processes::{kill_after, random};
use roundhouse_tests::server::Server;
use roundhouse_tests::site::until;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A server that captures by these keys beside its destination, a folder `kept`.
async fn serve(folder: &TempDir, keys: &str) -> Server {
    for (path, body) in signed_classifier("m", 1, 0) {
        let file = folder.path().join("store/m").join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, body).unwrap();
    }
    let at = folder.path().display();
    let text = format!(
        "version = 1\n[cache]\ndir = \"{at}/cache\"\n[store]\nsettle = \"0s\"\n[memory]\nbudget = \"64MiB\"\n\
         [[endpoint]]\nname = \"ep\"\ntarget = \"m\"\n[endpoint.capture]\ndestination = \"file://{at}/kept/\"\n\
         {keys}\n[[endpoint.mount]]\nuri = \"file://{at}/store/\"\n"
    );
    let file = folder.path().join("roundhouse.toml");
    std::fs::write(&file, text).unwrap();
    Server::start(&["serve", "--config", file.to_str().unwrap()], &[]).await
}

async fn ask(server: &Server, operation: &str, id: &str) -> String {
    let request = server
        .http()
        .post(format!("{}/endpoints/ep/{operation}", server.data))
        .header("x-amzn-sagemaker-inference-id", id)
        .json(&json!({"inputs": "hello"}));
    let answer = server.send(request).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let all = paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] });
    all.filter(|path| path.extension().is_some_and(|it| it == "jsonl")).collect()
}

/// All captured lines; each must be whole.
fn lines(folder: &TempDir) -> Vec<Value> {
    let mut lines = Vec::new();
    for file in files(&folder.path().join("kept")) {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.ends_with('\n'), "{}", file.display());
        lines.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_written_when_the_server_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = serve(&folder, "flush_every = \"1h\"").await;
    let whole = ask(&server, "invocations", "plain").await;
    ask(&server, "invocations-response-stream", "stream").await;
    assert!(lines(&folder).is_empty(), "nothing is due");
    server.terminate();
    assert!(server.wait(Duration::from_secs(60)).await.expect("it ends").success());
    let mut lines = lines(&folder);
    lines.sort_by_key(|line| line["eventMetadata"]["inferenceId"].to_string());
    let [plain, stream] = lines.as_slice() else { panic!("{lines:?}") };
    let file = files(&folder.path().join("kept")).remove(0);
    let place = file.strip_prefix(folder.path().join("kept/ep/AllTraffic")).unwrap();
    let parts: Vec<&str> = place.iter().map(|part| part.to_str().unwrap()).collect();
    let time = plain["eventMetadata"]["inferenceTime"].as_str().unwrap();
    assert_eq!(parts[..4], [&time[..4], &time[5..7], &time[8..10], &time[11..13]], "{time}");
    assert_eq!(plain["eventMetadata"]["inferenceId"], "plain");
    assert_eq!(plain["eventVersion"], "0");
    let input = &plain["captureData"]["endpointInput"];
    assert_eq!((&input["mode"], &input["encoding"]), (&json!("INPUT"), &json!("JSON")));
    assert_eq!(input["data"], r#"{"inputs":"hello"}"#);
    let output = &plain["captureData"]["endpointOutput"];
    assert_eq!((&output["mode"], &output["data"]), (&json!("OUTPUT"), &json!(whole)));
    // What was inside of the stream's messages.
    assert_eq!(stream["captureData"]["endpointOutput"]["data"], json!(whole + "\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_instant_leaves_whole_lines_and_none_twice() {
    const ROUNDS: u64 = 8;
    const ENOUGH: usize = 20;
    let folder = tempfile::tempdir().unwrap();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    // More of them where the machine is so busy that too few lines are written before the end.
    for round in 0..8 * ROUNDS {
        if round >= ROUNDS && lines(&folder).len() >= ENOUGH {
            break;
        }
        // Each line by itself, some together, and files of many.
        let size = ["1B", "2KiB", "8KiB"][(round % 3) as usize];
        let keys = format!("flush_size = \"{size}\"\nflush_every = \"1s\"");
        let mut server = serve(&folder, &keys).await;
        let dies_after = Duration::from_millis(100 + random(&mut state) % 700);
        let killer = kill_after(server.pid(), dies_after);
        let asking = (0..4).map(|client| {
            let (http, url) = (server.http(), format!("{}/endpoints/ep", server.data));
            async move {
                for number in 0.. {
                    let operation = ["invocations", "invocations-response-stream"][number % 2];
                    let id = format!("{round}-{client}-{number}");
                    let request = http
                        .post(format!("{url}/{operation}"))
                        .header("x-amzn-sagemaker-inference-id", id)
                        .json(&json!({"inputs": "hello"}));
                    let Ok(answer) = request.send().await else { break };
                    if answer.bytes().await.is_err() {
                        break;
                    }
                }
            }
        });
        futures_util::future::join_all(asking).await;
        killer.await.unwrap();
        server.kill();
    }
    let lines = lines(&folder);
    assert!(lines.len() >= ENOUGH, "only {} lines were written", lines.len());
    let mut ids = BTreeSet::new();
    for line in &lines {
        let data = &line["captureData"];
        assert_eq!(data["endpointInput"]["data"], r#"{"inputs":"hello"}"#, "{line}");
        assert!(data["endpointOutput"]["data"].is_string(), "{line}");
        let id = line["eventMetadata"]["inferenceId"].as_str().unwrap();
        assert!(ids.insert(id), "{id} was captured twice");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_cannot_be_written_costs_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    // Where the folder would be is a file.
    std::fs::write(folder.path().join("kept"), "").unwrap();
    let server = serve(&folder, "flush_size = \"1B\"\nredact = true").await;
    for number in 0..3 {
        ask(&server, "invocations", &number.to_string()).await;
    }
    until("the loss is counted", || async {
        server.metric_with("roundhouse_server_captures_total", "failed").await >= 1.0
    })
    .await;
    ask(&server, "invocations", "again").await;
}
