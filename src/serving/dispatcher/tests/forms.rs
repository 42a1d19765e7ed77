//! Answers of a form, and calls of tools.

use super::*;
use crate::{FormKind, OutputForm};

/// Goes on past the end token wherever it may: the form alone ends the answer.
fn formed(kind: FormKind) -> Generation {
    let form = OutputForm { field: "response_format".into(), kind };
    Generation { form: Some(form), temperature: Some(50.0), seed: Some(3), ..greedy(100) }
}

#[tokio::test]
async fn every_answer_to_a_prompt_has_the_form_and_ends_with_it() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let texts: Vec<String> = vec!["yes".into(), "no, never".into()];
    let request = completion(&["one"], 6, formed(FormKind::Choice(texts.clone())));
    let choices = collect(server.generate(request).await).await.unwrap();
    assert_eq!(choices.len(), 6);
    for choice in &choices {
        assert!(texts.contains(&choice.text), "{choice:?}");
        assert_eq!(choice.finish, Some(Finish::EndOfSequence));
        assert_eq!(codec().decode(&choice.tokens).unwrap(), choice.text);
    }
    // Blind choice takes both.
    assert!(choices.iter().any(|choice| choice.text != choices[0].text));
    server.let_go().await;
}

#[tokio::test]
async fn an_answer_that_is_cut_says_so() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let generation =
        Generation { max_tokens: Some(2), ..formed(FormKind::Regex("[0-9]{40}".into())) };
    let choices =
        collect(server.generate(completion(&["one"], 1, generation)).await).await.unwrap();
    assert_eq!((choices[0].finish, choices[0].tokens.len()), (Some(Finish::Length), 2));
    server.let_go().await;
}

#[tokio::test]
async fn a_form_that_is_none_is_refused_before_anything_runs() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let request = completion(&["one"], 2, formed(FormKind::Regex("(".into())));
    let failure = server.ask(request).await.err().unwrap();
    assert_eq!(failure.kind(), ErrorKind::InvalidInput);
    assert!(failure.to_string().starts_with("response_format: "), "{failure}");
    server.let_go().await;
}

fn with_tools(choice: ToolChoice) -> Request {
    let Request::Chat(chat) = chat("hi") else { panic!("not a chat") };
    let parameters = json!({"type": "object", "properties": {"x": {"type": "integer"}},
        "required": ["x"], "additionalProperties": false});
    let tools = ["look", "stop"].map(
        |name| json!({"type": "function", "function": {"name": name, "parameters": parameters}}),
    );
    let generation = Generation { max_tokens: Some(300), temperature: Some(1.0), ..greedy(300) };
    Request::Chat(Chat { tools: Some(tools.into()), tool_choice: choice, generation, ..chat })
}

/// The calls of all pieces, and why the answer ended.
async fn called(mut reply: GenerationReply) -> (Vec<ToolCall>, String, Option<Finish>) {
    let (mut calls, mut text, mut finish) = (Vec::new(), String::new(), None);
    while let Some(piece) = reply.pieces.next().await {
        let piece = piece.unwrap();
        calls.extend(piece.calls);
        text.push_str(&piece.text);
        finish = piece.finished.map(|finished| finished.reason).or(finish);
    }
    (calls, text, finish)
}

#[tokio::test]
async fn a_demanded_call_is_made_by_a_model_that_knows_nothing_of_tools() {
    let server = Server::generative(EchoRunner::new(GENERATIVE));
    let reply = server.generate(with_tools(ToolChoice::Required)).await;
    let (calls, text, finish) = called(reply).await;
    // A number may go on until the answer is cut; then there is no call.
    if finish == Some(Finish::ToolCalls) {
        assert_eq!((calls.len(), text.as_str()), (1, ""));
        let arguments: Value = serde_json::from_str(&calls[0].arguments).unwrap();
        assert!(arguments["x"].is_number(), "{calls:?}");
    } else {
        assert_eq!((calls.len(), finish), (0, Some(Finish::Length)));
    }
    let reply = server.generate(with_tools(ToolChoice::Named("stop".into()))).await;
    let (calls, _, finish) = called(reply).await;
    assert!(calls.iter().all(|call| call.name == "stop"));
    assert_ne!(finish, Some(Finish::ToolCalls), "it was not the model's choice");
    let nobody = with_tools(ToolChoice::Named("nobody".into()));
    let failure = server.ask(nobody).await.err().unwrap();
    assert!(failure.to_string().starts_with("tool_choice: "), "{failure}");
    server.let_go().await;
}
