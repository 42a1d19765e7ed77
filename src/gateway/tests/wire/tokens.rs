//! `/tokenize`, `/detokenize` and `/decode`, as each of their servers answers them.

use roundhouse_serving::{Answer, CutToken, Reply, Request as Asked, Taken, Tokens, TokensReply};
use roundhouse_types::ModelKind;
use serde_json::{Value, json};

use crate::support::*;

/// A tokenizer of words of two letters, between 1 and 2.
fn harness(kind: ModelKind) -> Harness {
    Setup::default().with(move |asked| {
        let word = |text: &str, at: usize| CutToken {
            id: 10 + u32::try_from(at).unwrap(),
            name: format!("##{text}"),
            text: text.to_owned(),
            special: false,
            start: 2 * at,
            end: 2 * at + 2,
        };
        let edge = |id, name: &str| CutToken {
            id,
            name: name.to_owned(),
            text: String::new(),
            special: true,
            start: 0,
            end: 0,
        };
        let cut = |text: &str, special: bool| {
            let words = text.as_bytes().chunks(2).map(|word| std::str::from_utf8(word).unwrap());
            let words = words.enumerate().map(|(at, text)| word(text, at));
            let (first, last) = (edge(1, "<s>"), edge(2, "</s>"));
            match special {
                true => [vec![first], words.collect(), vec![last]].concat(),
                false => words.collect(),
            }
        };
        let Asked::Tokens(asked) = asked.request else { panic!("{asked:?}") };
        let (lists, texts) = match asked {
            Tokens::Cut { texts, special } => {
                (texts.iter().map(|text| cut(text, special)).collect(), Vec::new())
            }
            Tokens::Chat { messages, template_kwargs, special } => {
                let opens = template_kwargs.contains_key("add_generation_prompt");
                let text = format!("{}{}", messages[0]["content"].as_str().unwrap(), opens);
                (vec![cut(&text, special)], Vec::new())
            }
            Tokens::Join { lists, skip_special } => {
                let text = |list: &Vec<u32>| format!("{list:?}{skip_special}");
                (Vec::new(), lists.iter().map(text).collect())
            }
        };
        let reply =
            Reply::Tokens(TokensReply { lists, texts, kind, context: 77, taken: Taken::default() });
        Ok(Answer { reply, served: served(kind) })
    })
}

async fn told(kind: ModelKind, path: &str, body: Value) -> Value {
    let got = harness(kind).post(path, "a", body.to_string()).await;
    assert_eq!(got.status, 200, "{}", got.text());
    got.json()
}

#[tokio::test]
async fn tokens_are_told_as_each_server_tells_them() {
    use ModelKind::{Embedding, Generative};
    let ids = |names: Value, ids: &[u32]| json!({"count": ids.len(), "max_model_len": 77, "tokens": ids, "token_strs": names});
    let prompt = json!({"model": "a", "prompt": "abcd"});
    assert_eq!(told(Generative, "/tokenize", prompt).await, ids(Value::Null, &[1, 10, 11, 2]));
    let bare = json!({"prompt": "abcd", "add_special_tokens": false, "return_token_strs": true});
    let want = ids(json!(["##ab", "##cd"]), &[10, 11]);
    assert_eq!(told(Generative, "/tokenize", bare).await, want);
    let chat = json!({
        "messages": [{"role": "user", "content": "ab"}], "add_generation_prompt": false,
    });
    assert_eq!(told(Generative, "/tokenize", chat).await, ids(Value::Null, &[10, 11, 12]));

    let word = json!({"id": 10, "text": "ab", "special": false, "start": 0, "stop": 2});
    let edge = |id: u32, name: &str| json!({"id": id, "text": name, "special": true, "start": null, "stop": null});
    let list = json!([edge(1, "<s>"), word, edge(2, "</s>")]);
    for (inputs, want) in [(json!("ab"), json!([list])), (json!(["ab", "ab"]), json!([list, list]))]
    {
        assert_eq!(told(Embedding, "/tokenize", json!({"inputs": inputs})).await, want);
    }
    // text-generation-inference has one text and one list, text-embeddings-inference lists of them.
    let flat = json!([
        {"id": 1, "text": "", "start": 0, "stop": 0},
        {"id": 10, "text": "ab", "start": 0, "stop": 2},
        {"id": 2, "text": "", "start": 0, "stop": 0},
    ]);
    assert_eq!(told(Generative, "/tokenize", json!({"inputs": "ab"})).await, flat);

    let text = told(Generative, "/detokenize", json!({"model": "a", "tokens": [1, 2]})).await;
    assert_eq!(text, json!({"prompt": "[1, 2]false"}));
    for (body, want) in [
        (json!({"ids": [1, 2]}), json!(["[1, 2]true"])),
        (json!({"ids": [[1], [2]], "skip_special_tokens": false}), json!(["[1]false", "[2]false"])),
    ] {
        assert_eq!(told(Embedding, "/decode", body).await, want);
    }
}

#[tokio::test]
async fn what_is_no_text_and_no_token_is_refused() {
    let harness = harness(ModelKind::Generative);
    for (path, body) in [
        ("/tokenize", json!({})),
        ("/tokenize", json!({"inputs": 7})),
        ("/tokenize", json!({"inputs": ["a", 7]})),
        ("/tokenize", json!({"prompt": ["a"]})),
        ("/tokenize", json!({"messages": []})),
        ("/tokenize", json!({"prompt": "a", "tools": [{"type": "function"}]})),
        ("/tokenize", json!({"prompt": "a", "add_special_tokens": 1})),
        ("/detokenize", json!({})),
        ("/detokenize", json!({"tokens": [-1]})),
        ("/detokenize", json!({"tokens": [4_294_967_296_u64]})),
        ("/decode", json!({"ids": "1"})),
        ("/decode", json!({"ids": [[1], 2]})),
    ] {
        let got = harness.post(path, "a", body.to_string()).await;
        let kind = got.json()["error_type"].clone();
        assert_eq!((got.status.as_u16(), kind), (422, json!("validation")), "{path} {body}");
    }
    assert!(harness.asked.lock().unwrap().is_empty());
    let unnamed = harness.post("/tokenize", "", r#"{"inputs":"a"}"#).await;
    assert_eq!(unnamed.status, 422);
}
