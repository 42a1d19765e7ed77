//! Answers of a given form and calls of tools, through the real binary and a real client.

use roundhouse_tests::python;
use roundhouse_tests::server::{Server, root};
use serde_json::{Value, json};
use tempfile::TempDir;

async fn demo() -> (TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&["demo", "--data-dir", folder.path().to_str().unwrap()], &[]).await;
    (folder, server)
}

/// The demo's model that chats.
fn chat() -> String {
    let text = std::fs::read_to_string(root().join("tests/models/demo_expectations.json")).unwrap();
    let entries: Vec<Value> = serde_json::from_str(&text).unwrap();
    let chat = entries.iter().find(|entry| entry["messages"].is_array()).unwrap();
    chat["target"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_client_gets_forms_tool_calls_biases_and_cached_tokens() {
    let (_folder, server) = demo().await;
    let args = [server.data.clone(), chat()];
    tokio::task::spawn_blocking(move || python::client("openai_forms.py", &[&args[0], &args[1]]))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_client_gets_responses_structural_tags_and_messages_that_go_on() {
    let (_folder, server) = demo().await;
    let args = [server.data.clone(), chat()];
    let client = move || python::client("openai_responses.py", &[&args[0], &args[1]]);
    tokio::task::spawn_blocking(client).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invocation_takes_tgis_grammar_and_tells_the_likeliest_tokens() {
    let (_folder, server) = demo().await;
    let target = chat();
    let asked =
        |parameters: Value| json!({"inputs": "The parcel number is ", "parameters": parameters});
    let grammar = json!({"type": "regex", "value": "[0-9]{4}(-[0-9])?"});
    let parameters =
        json!({"grammar": grammar, "max_new_tokens": 40, "details": true, "top_n_tokens": 2});
    let answer = server.invoke("demo", &target, asked(parameters)).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let said = answer.json();
    let text = said["generated_text"].as_str().unwrap();
    let (digits, rest) = text.split_at(4);
    assert!(digits.bytes().all(|b| b.is_ascii_digit()), "{text}");
    assert!(rest.is_empty() || (rest.len() == 2 && rest.starts_with('-')), "{text}");
    let tokens = said["details"]["tokens"].as_array().unwrap();
    let tops = said["details"]["top_tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), tops.len());
    assert!(tops.iter().all(|top| top.as_array().unwrap().len() == 2), "{said}");

    let grammar = json!({"type": "regex", "value": "(unclosed"});
    let refused = server.invoke("demo", &target, asked(json!({"grammar": grammar}))).await;
    assert_eq!(refused.status, 424, "{}", refused.body);
    assert_eq!(refused.json()["OriginalStatusCode"], 400);
    assert!(refused.body.contains("grammar"), "{}", refused.body);
}
