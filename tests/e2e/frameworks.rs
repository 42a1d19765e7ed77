//! What people's programs are written with, unmodified, against the demo's models.

use roundhouse_tests::python::{framework_client, node_client};

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

#[tokio::test(flavor = "multi_thread")]
async fn openais_node_client_chats_streams_leaves_completes_and_embeds() {
    check(node_client, "openai_node.mjs", &[CHAT, QUESTION, WANTED, ENCODER]).await;
}
