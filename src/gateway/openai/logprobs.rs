//! Log-probabilities in the two shapes OpenAI has for them.

use roundhouse_serving::{TokenInfo, TokenPlace};
use serde_json::{Map, Value, json};

use crate::json::logprob;

/// How a token is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// By its text.
    Text,
    /// By its id, which is there for tokens that are no text, too: vLLM's `token_id:5`.
    Id,
}

impl Calls {
    fn token(self, id: u32, text: &str) -> String {
        match self {
            Self::Text => text.to_owned(),
            Self::Id => format!("token_id:{id}"),
        }
    }
}

/// The tokens that are listed: all but the one that ended the answer and is no part of it. Special
/// tokens that the text leaves out are, so that entries can be counted against tokens.
pub(crate) fn listed(tokens: &[TokenInfo]) -> impl Iterator<Item = &TokenInfo> {
    tokens.iter().filter(|token| token.place != TokenPlace::End)
}

/// A chat's: one object per token.
pub(crate) fn chat_logprobs(tokens: &[TokenInfo], calls: Calls) -> Value {
    let one = |id: u32, text: &str, value: f32| json!({"token": calls.token(id, text), "logprob": logprob(value), "bytes": text.as_bytes()});
    let content: Vec<Value> = listed(tokens)
        .map(|token| {
            let mut said = one(token.id, &token.text, token.logprob.unwrap_or_default());
            let top = token.top.iter().map(|(id, text, value)| one(*id, text, *value));
            said["top_logprobs"] = top.collect();
            said
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// A completion's: parallel lists. `offset` is where the first token's text begins, in
/// characters; it is moved past the last one. Nothing where there is only the end.
pub(crate) fn completion_logprobs(tokens: &[TokenInfo], offset: &mut usize, calls: Calls) -> Value {
    let mut shown = listed(tokens).peekable();
    if shown.peek().is_none() {
        return Value::Null;
    }
    echoed_logprobs(shown, offset, calls, usize::MAX)
}

/// The same of all tokens, with so many alternatives at most. One that the text leaves out stands where
/// it would begin.
pub(crate) fn echoed_logprobs<'a>(
    tokens: impl Iterator<Item = &'a TokenInfo>,
    offset: &mut usize,
    calls: Calls,
    most: usize,
) -> Value {
    let mut texts = Vec::new();
    let mut values = Vec::new();
    let mut tops = Vec::new();
    let mut offsets = Vec::new();
    for token in tokens {
        texts.push(Value::from(calls.token(token.id, &token.text)));
        values.push(token.logprob.map_or(Value::Null, logprob));
        let top = token.top.iter().take(most);
        let top: Map<String, Value> =
            top.map(|(id, text, value)| (calls.token(*id, text), logprob(*value))).collect();
        tops.push(if top.is_empty() { Value::Null } else { top.into() });
        offsets.push(*offset);
        if token.place == TokenPlace::Text {
            *offset += token.text.chars().count();
        }
    }
    json!({
        "tokens": texts,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
    })
}
