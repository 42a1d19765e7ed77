//! Whoever reads what a server says may leave: lines are lost, requests are not.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::server::{Server, binary};
use roundhouse_tests::site::until;
use serde_json::json;

const LOST: &str = "roundhouse_server_access_records_lost_total";

/// A store of two models, and `serve` over it on free ports.
fn serve(folder: &Path) -> Command {
    for name in ["first", "second"] {
        let model = folder.join("store").join(name);
        std::fs::create_dir_all(&model).unwrap();
        for (path, body) in signed_classifier(name, 6, 0) {
            std::fs::write(model.join(path), body).unwrap();
        }
    }
    let store = format!("file://{}/", folder.join("store").display());
    let mut command = Command::new(binary());
    command.args(["serve", "--store", &store, "--cache-dir"]).arg(folder.join("cache"));
    command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command
}

/// The server answers, loads, counts what it lost, and ends as it should.
async fn serves_on(mut command: Command, to: impl Into<Stdio>, reader: Option<PipeReader>) {
    command.stderr(to);
    let mut server = Server::spawn(command, &[]).await;
    drop(reader);
    for name in ["first", "second", "first"] {
        let answer = server.invoke("default", name, json!({"inputs": "hello"})).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert!(answer.body.contains(&signature(name, 6)), "{}", answer.body);
    }
    for log in ["log=\"server\"", "log=\"access\""] {
        until("lost lines are counted", || async { server.metric_with(LOST, log).await > 0.0 })
            .await;
    }
    server.terminate();
    let status = server.wait(Duration::from_secs(60)).await.expect("it ends");
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_log_nobody_reads_any_more_answers_and_counts_the_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    serves_on(serve(folder.path()), writer, Some(reader)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_log_is_full_starts_answers_and_counts_the_lines() {
    let folder = tempfile::tempdir().unwrap();
    let full = File::options().write(true).open("/dev/full").unwrap();
    serves_on(serve(folder.path()), full, None).await;
}

/// Starts it with nobody at its standard output, and ends it when its log has the ready lines.
fn says_in_its_log_where_it_listens(mut command: Command) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut server = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    let mut log = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut seen = Vec::new();
    let ready = log.find(|line| {
        seen.push(line.clone());
        line.contains("standard output takes nothing") && line.contains("listening on http")
    });
    assert!(ready.is_some(), "{}", seen.join("\n"));
    let told = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().unwrap();
    assert!(told.success());
    let rest: Vec<_> = log.collect();
    assert!(server.wait().unwrap().success(), "{}", rest.join("\n"));
    assert!(rest.iter().any(|line| line.contains("signal=\"SIGTERM\"")), "{}", rest.join("\n"));
}

#[test]
fn a_server_whose_ready_lines_nobody_reads_says_them_in_its_log() {
    let folder = tempfile::tempdir().unwrap();
    says_in_its_log_where_it_listens(serve(folder.path()));
}

#[test]
fn nor_does_a_demo_need_a_reader() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary());
    command.args(["demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    command.env("TMPDIR", folder.path());
    says_in_its_log_where_it_listens(command);
}
