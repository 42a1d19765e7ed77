//! What vLLM tells of tokens beside OpenAI's fields: `prompt_logprobs`, `return_token_ids`.

use roundhouse_serving::{ALTERNATIVES_MAX, Generation, TokenInfo};
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::fields::Fields;
use crate::json::logprob;

/// The tokens' ids of a choice.
pub(super) const TOKEN_IDS: &str = "token_ids";
/// Those of its prompt; of a chat they are the whole answer's.
pub(super) const PROMPT_TOKEN_IDS: &str = "prompt_token_ids";
/// What the model gave the prompt's tokens.
pub(super) const PROMPT_LOGPROBS: &str = "prompt_logprobs";

/// What a request wants to be told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside {
    /// Of the prompt's tokens what the model gave them, with so many alternatives.
    prompt_top: Option<usize>,
    /// The ids of the prompt's tokens and the answer's.
    ids: bool,
}

impl Beside {
    /// Takes the fields, and asks for what they take of the model.
    ///
    /// # Errors
    /// `Field`; also where scores of the prompt are wanted in a stream.
    pub(super) fn read(
        fields: &mut Fields,
        generation: &mut Generation,
        stream: bool,
    ) -> Result<Self, Error> {
        let prompt_top = fields.count(PROMPT_LOGPROBS, 0..=ALTERNATIVES_MAX)?;
        if stream && prompt_top.is_some_and(|top| top > 0) {
            return Err(fields.wrong(PROMPT_LOGPROBS, "is allowed only where stream is false"));
        }
        let ids = fields.bool("return_token_ids")?.unwrap_or(false);
        // As vLLM: a stream that asks for none beside the tokens' own is no fault, and is told none.
        let prompt_top = prompt_top.filter(|_| !stream);
        generation.ranked_prompt = prompt_top;
        generation.prompt_ids = ids;
        Ok(Self { prompt_top, ids })
    }

    /// A prompt's tokens as they were scored, where that is wanted: for each but the first an object
    /// from ids to what they were given, its own first.
    pub(super) fn scores(self, prompt: &[TokenInfo]) -> Option<Value> {
        let most = self.prompt_top?;
        Some(prompt.iter().map(|token| scored(token, most)).collect())
    }

    /// The ids of an answer's tokens, where they are wanted: of all that were generated.
    pub(super) fn ids_of(self, tokens: &[TokenInfo]) -> Option<Value> {
        self.ids.then(|| tokens.iter().map(|token| token.id).collect())
    }
}

fn scored(token: &TokenInfo, most: usize) -> Value {
    let (Some(own), Some(rank)) = (token.logprob, token.rank) else { return Value::Null };
    let one = |value: f32, rank: usize, text: &str| json!({"logprob": logprob(value), "rank": rank, "decoded_token": text});
    let mut all = Map::new();
    all.insert(token.id.to_string(), one(own, rank, &token.text));
    for (rank, (id, text, value)) in (1..).zip(token.top.iter().take(most)) {
        all.entry(id.to_string()).or_insert_with(|| one(*value, rank, text));
    }
    Value::Object(all)
}

/// Adds a field that is told only to those who ask for it.
pub(super) fn add(to: &mut Value, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        to[name] = value;
    }
}
