//! What people's programs are written with, unmodified, against the demo's models.

use roundhouse_tests::python::{framework_client, node_client};
use roundhouse_tests::server::Server;

use crate::demo::demo;

const CHAT: &str = "support/cobalt";
const QUESTION: &str = "When are you open?";
const WANTED: &str = "7 am to 7 pm";
const ENCODER: &str = "search/encoder";
const CLASSIFIER: &str = "tickets/intent.tar.gz";
const TICKET: &str = "My parcel has not arrived yet";

type Run = fn(&str, &[&str]) -> String;

/// Runs a client with the data port's address before its other arguments.
async fn check(run: Run, script: &'static str, args: &'static [&'static str]) {
    let (_folder, server) = demo(&[]).await;
    let url = server.data.clone();
    let said = tokio::task::spawn_blocking(move || {
        let args: Vec<&str> = std::iter::once(url.as_str()).chain(args.iter().copied()).collect();
        run(script, &args)
    });
    assert_eq!(said.await.unwrap().lines().last(), Some("all as expected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sagemaker_sdks_predictors_call_targets_and_read_streams() {
    let args = &["demo", CHAT, QUESTION, WANTED, CLASSIFIER, TICKET, "delivery"];
    check(framework_client, "sagemaker_sdk.py", args).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn langchains_sagemaker_and_openai_classes_answer_whole_and_streamed() {
    let args = &["demo", CHAT, QUESTION, WANTED, CHAT, ENCODER];
    check(framework_client, "langchain_demo.py", args).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn litellms_openai_and_sagemaker_routes_answer_whole_and_streamed() {
    let args = &["demo", CHAT, QUESTION, WANTED, ENCODER];
    check(framework_client, "litellm_demo.py", args).await;
}

/// LiteLLM's text route names no target: each of these endpoints has one, or a component that has.
#[tokio::test(flavor = "multi_thread")]
async fn litellms_text_route_reads_the_answers_of_inputs_whole_and_streamed() {
    let (folder, _demo) = demo(&[]).await;
    let at = folder.path().display();
    let mount = format!("[[endpoint.mount]]\nuri = \"file://{at}/s3/models/\"\n");
    let component = format!("[[endpoint.component]]\nname = \"ic-chat\"\ntarget = \"{CHAT}\"");
    let mut text =
        format!("version = 1\n[cache]\ndir = \"{at}/own\"\n[memory]\nbudget = \"512MiB\"\n");
    for (name, keys) in [
        ("chat", format!("target = \"{CHAT}\"")),
        ("fleet", component),
        ("vectors", format!("target = \"{ENCODER}\"")),
    ] {
        text += &format!("[[endpoint]]\nname = \"{name}\"\n{keys}\n{mount}");
    }
    let file = folder.path().join("endpoints.toml");
    std::fs::write(&file, text).unwrap();
    let server = Server::start(&["serve", "--config", file.to_str().unwrap()], &[]).await;
    let url = server.data.clone();
    let said = tokio::task::spawn_blocking(move || {
        framework_client("litellm_text.py", &[&url, "chat", "fleet", "ic-chat", "vectors"])
    });
    assert_eq!(said.await.unwrap().lines().last(), Some("all as expected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_those_of_the_library_that_the_models_files_are_for() {
    let (folder, server) = demo(&[]).await;
    let store = folder.path().join("s3/models").display().to_string();
    let url = server.data.clone();
    let said = tokio::task::spawn_blocking(move || {
        framework_client("tokens.py", &[&url, &store, CHAT, ENCODER])
    });
    assert_eq!(said.await.unwrap().lines().last(), Some("all as expected"));
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_node_client_chats_streams_leaves_completes_and_embeds() {
    check(node_client, "openai_node.mjs", &[CHAT, QUESTION, WANTED, ENCODER]).await;
}
