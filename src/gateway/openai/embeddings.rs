//! `/v1/embeddings`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use roundhouse_serving::{Config, Embeddings, EmbeddingsReply, Request};
use serde::Serialize;

use crate::answer::{Ask, Asked};
use crate::error::Error;
use crate::fields::Fields;
use crate::openai::completions::prompts;
use crate::openai::{Stamp, ignored};

/// How the answer shall look.
pub(crate) struct EmbeddingsAsk {
    model: String,
    base64: bool,
    /// Fields that nothing reads, as the answer tells them.
    pub(crate) ignored: Option<HeaderValue>,
}

/// Reads a request for embeddings. `fallback` is what the answer calls the model where the
/// body has no `model`.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn parse(fields: &mut Fields, fallback: &str) -> Result<Asked, Error> {
    let stamp = Stamp::new("embd", fields, fallback)?;
    let inputs = prompts(fields, "input", Config::default().max_inputs)?;
    let base64 = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => return Err(fields.wrong("encoding_format", "must be float or base64")),
    };
    let dimensions = fields.count("dimensions", 1..=usize::MAX)?;
    let prompt = fields.string("prompt_name")?;
    let ask = EmbeddingsAsk { model: stamp.model, base64, ignored: ignored(fields) };
    let embeddings = Embeddings { inputs, dimensions, prompt };
    Ok(Asked::new(Request::Embeddings(embeddings), Ask::Embeddings(ask)))
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Item<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Item<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Floats(&'a [f32]),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl EmbeddingsAsk {
    /// The list of vectors.
    ///
    /// # Errors
    /// `Internal` where they cannot be written.
    pub(crate) fn vectors(&self, reply: &EmbeddingsReply) -> Result<Bytes, Error> {
        let numbered = reply.vectors.iter().enumerate();
        let data = numbered
            .map(|(index, vector)| Item {
                object: "embedding",
                index,
                embedding: self.vector(vector),
            })
            .collect();
        let usage = Usage { prompt_tokens: reply.prompt_tokens, total_tokens: reply.prompt_tokens };
        let list = List { object: "list", data, model: &self.model, usage };
        serde_json::to_vec(&list)
            .map(Bytes::from)
            .map_err(|error| Error::internal(format!("writing vectors failed: {error}")))
    }

    fn vector<'a>(&self, vector: &'a [f32]) -> Vector<'a> {
        if !self.base64 {
            return Vector::Floats(vector);
        }
        let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        Vector::Base64(STANDARD.encode(bytes))
    }
}
