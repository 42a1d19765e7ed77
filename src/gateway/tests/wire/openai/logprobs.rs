//! Log-probabilities: one entry per token, hidden ones too.

use super::*;

const LOGPROBS: &str = "message.output_text.logprobs";

fn special(place: TokenPlace) -> TokenInfo {
    TokenInfo { special: true, place, ..token(5, "<|é|>", -0.75) }
}

/// "Hello é" with a special token between its words that the text has or leaves out, then a stop
/// token that is no special one.
fn parted(place: TokenPlace) -> Vec<Piece> {
    let said = if place == TokenPlace::Text { "<|é|>" } else { "" };
    let stop = TokenInfo { place: TokenPlace::End, ..token(9, "!", -0.25) };
    let end = last(0, Finish::StopSequence, 4);
    vec![
        piece(0, "Hello", vec![token(10, "Hello", -0.5)]),
        piece(0, said, vec![special(place)]),
        piece(0, " é", vec![token(11, " é", -1.0)]),
        Piece { tokens: vec![stop], ..end },
    ]
}

/// The objects of a stream's data.
fn data(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter_map(|data| serde_json::from_str(data).ok()).collect()
}

/// The lists at `path` in all of a stream's objects, as one.
fn joined(events: &[Value], path: &str) -> Value {
    let lists = events.iter().filter_map(|event| event.pointer(path)?.as_array());
    lists.flatten().cloned().collect()
}

fn entry(text: &str, logprob: f64) -> Value {
    let one = json!({"token": text, "logprob": logprob, "bytes": text.as_bytes()});
    let mut entry = one.clone();
    entry["top_logprobs"] = json!([one]);
    entry
}

#[tokio::test]
async fn a_completion_lists_special_tokens_and_not_the_end() {
    for (place, offsets) in
        [(TokenPlace::Hidden, json!([0, 5, 5])), (TokenPlace::Text, json!([0, 5, 10]))]
    {
        let harness = Setup::default().with(move |_| says(parted(place), 1));
        let mut body = json!({"model": "a", "prompt": "x", "logprobs": 1});
        let got = harness.post(COMPLETIONS, "", body.to_string()).await.json();
        let logprobs = &got["choices"][0]["logprobs"];
        let tokens = json!(["Hello", "<|é|>", " é"]);
        assert_eq!((&logprobs["tokens"], &logprobs["text_offset"]), (&tokens, &offsets));
        assert_eq!(logprobs["token_logprobs"], json!([-0.5, -0.75, -1.0]));
        assert_eq!(logprobs["top_logprobs"][1], json!({"<|é|>": -0.75}));
        body["stream"] = true.into();
        body["return_tokens_as_token_ids"] = true.into();
        let streamed = data(&harness.post(COMPLETIONS, "", body.to_string()).await.text());
        let ids = json!(["token_id:10", "token_id:5", "token_id:11"]);
        assert_eq!(joined(&streamed, "/choices/0/logprobs/tokens"), ids);
        assert_eq!(joined(&streamed, "/choices/0/logprobs/text_offset"), offsets);
    }
}

#[tokio::test]
async fn chats_and_responses_list_special_tokens_and_not_the_end() {
    let want = json!([entry("Hello", -0.5), entry("<|é|>", -0.75), entry(" é", -1.0)]);
    let harness = Setup::default().with(|_| says(parted(TokenPlace::Hidden), 1));
    let asked = |stream| chat(json!({"logprobs": true, "top_logprobs": 1, "stream": stream}));
    let got = harness.post(CHAT, "", asked(false)).await.json();
    assert_eq!(got["choices"][0]["logprobs"]["content"], want);
    let streamed = data(&harness.post(CHAT, "", asked(true)).await.text());
    assert_eq!(joined(&streamed, "/choices/0/logprobs/content"), want);

    let asked = |stream: bool| {
        json!({"model": "a", "input": "hi", "include": [LOGPROBS], "top_logprobs": 1,
            "stream": stream})
        .to_string()
    };
    let got = harness.post("/v1/responses", "", asked(false)).await.json();
    assert_eq!(got["output"][0]["content"][0]["logprobs"], want);
    let streamed = data(&harness.post("/v1/responses", "", asked(true)).await.text());
    let (deltas, others): (Vec<Value>, Vec<Value>) =
        streamed.into_iter().partition(|event| event["type"] == "response.output_text.delta");
    assert_eq!(joined(&deltas, "/logprobs"), want);
    let done = others.iter().find(|event| event["type"] == "response.output_text.done").unwrap();
    assert_eq!(done["logprobs"], want);
}
