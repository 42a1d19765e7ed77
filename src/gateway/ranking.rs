//! Documents in the order of their nearness to a query: `/v1/rerank` as Cohere, Jina and vLLM have
//! it, `/rerank` also as text-embeddings-inference has it, `/v1/score` as vLLM has it, and
//! `sentence-similarity`.

use axum::extract::Request as HttpRequest;
use axum::response::Response;
use roundhouse_serving::{Ranking, Request, ScoresReply};
use serde_json::{Value, json};

use crate::answer::{Ask, Asked};
use crate::call::Context;
use crate::error::{Error, Face};
use crate::fields::{Fields, Neutral, neutral};
use crate::json::decimal;
use crate::openai::{Stamp, serve_as};

/// Documents of one request at most.
const DOCUMENTS_MAX: usize = 2048;

/// Fields that would change the answer and that nothing here honours, with the values that would
/// not.
const UNSUPPORTED: [Neutral; 6] = [
    ("max_chunks_per_doc", neutral::absent),
    ("max_tokens_per_doc", neutral::absent),
    ("rank_fields", neutral::absent),
    ("truncate", neutral::on),
    ("truncate_prompt_tokens", neutral::absent),
    ("truncation_direction", is_right),
];

fn is_right(value: &Value) -> bool {
    value.as_str().is_some_and(|side| side.eq_ignore_ascii_case("right"))
}

/// How the answer shall look.
pub(crate) enum RankingAsk {
    /// Scores alone, in the documents' order.
    Similarity,
    /// The best first.
    Rerank { stamp: Stamp, top_n: Option<usize>, documents: Option<Vec<String>> },
    /// The same as text-embeddings-inference writes it.
    Tei { texts: Option<Vec<String>> },
    /// In the documents' order.
    Score { stamp: Stamp },
}

/// `POST /v1/rerank`.
pub(crate) async fn rerank(context: Context, request: HttpRequest) -> Response {
    serve_as(Face::OpenAi, context, request, parse).await
}

/// `POST /rerank`.
pub(crate) async fn rerank_plain(context: Context, request: HttpRequest) -> Response {
    serve_as(Face::Tgi, context, request, parse).await
}

/// `POST /v1/score`.
pub(crate) async fn score(context: Context, request: HttpRequest) -> Response {
    serve_as(Face::OpenAi, context, request, parse_score).await
}

/// Reads a `query` with `documents` or `texts`. `fallback` is what the answer calls the model where
/// the body has no `model`.
///
/// # Errors
/// `Field`, with the path of what is wrong.
pub(crate) fn parse(fields: &mut Fields, fallback: &str) -> Result<Asked, Error> {
    fields.refuse(&UNSUPPORTED)?;
    let query = required(fields, "query")?;
    if fields.has("texts") {
        let documents = documents(fields, "texts")?;
        let raw = fields.bool("raw_scores")?.unwrap_or(false);
        let texts = fields.bool("return_text")?.unwrap_or(false).then(|| documents.clone());
        let ranking = Ranking { query, documents, raw, field: "texts", alike: false };
        return Ok(asked(ranking, RankingAsk::Tei { texts }));
    }
    let stamp = Stamp::new("rerank", fields, fallback)?;
    let documents = documents(fields, "documents")?;
    let top_n = fields.count("top_n", 1..=usize::MAX)?;
    let told = fields.bool("return_documents")?.unwrap_or(false).then(|| documents.clone());
    let raw = fields.bool("raw_scores")?.unwrap_or(false);
    let ranking = Ranking { query, documents, raw, field: "documents", alike: false };
    Ok(asked(ranking, RankingAsk::Rerank { stamp, top_n, documents: told }))
}

/// Reads `text_1` and `text_2`.
fn parse_score(fields: &mut Fields, fallback: &str) -> Result<Asked, Error> {
    fields.refuse(&UNSUPPORTED)?;
    let stamp = Stamp::new("score", fields, fallback)?;
    let query = required(fields, "text_1")?;
    let documents = documents(fields, "text_2")?;
    let ranking = Ranking { query, documents, raw: false, field: "text_2", alike: true };
    Ok(asked(ranking, RankingAsk::Score { stamp }))
}

/// A sentence with others.
pub(crate) fn similar(ranking: Ranking) -> Asked {
    asked(ranking, RankingAsk::Similarity)
}

fn asked(ranking: Ranking, ask: RankingAsk) -> Asked {
    Asked::new(Request::Ranking(ranking), Ask::Ranking(ask))
}

fn required(fields: &mut Fields, name: &str) -> Result<String, Error> {
    fields.string(name)?.ok_or_else(|| fields.wrong(name, "is required and must be a string"))
}

/// A list of strings, or of objects with `text`; one string is one document.
fn documents(fields: &mut Fields, name: &str) -> Result<Vec<String>, Error> {
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Object(mut map) => match (map.swap_remove("text"), map.is_empty()) {
            (Some(Value::String(text)), true) => Some(text),
            _ => None,
        },
        _ => None,
    };
    let documents: Option<Vec<String>> = match fields.take(name) {
        Some(Value::String(text)) => Some(vec![text]),
        Some(Value::Array(items)) if (1..=DOCUMENTS_MAX).contains(&items.len()) => {
            items.into_iter().map(text).collect()
        }
        _ => None,
    };
    documents.ok_or_else(|| {
        let expected =
            format!("must be 1 to {DOCUMENTS_MAX} strings, or objects with text and nothing else");
        fields.wrong(name, &expected)
    })
}

impl RankingAsk {
    /// The answer's object or list.
    pub(crate) fn told(&self, reply: &ScoresReply) -> Value {
        let usage =
            || json!({"prompt_tokens": reply.prompt_tokens, "total_tokens": reply.prompt_tokens});
        match self {
            Self::Similarity => reply.scores.iter().map(|score| decimal(*score)).collect(),
            Self::Rerank { stamp, top_n, documents } => {
                let result = |(index, score): (usize, f32)| {
                    let mut result = json!({"index": index, "relevance_score": decimal(score)});
                    if let Some(documents) = documents {
                        result["document"] = json!({"text": documents[index]});
                    }
                    result
                };
                let best = best(&reply.scores).into_iter().take(top_n.unwrap_or(usize::MAX));
                let results: Vec<Value> = best.map(result).collect();
                json!({
                    "id": stamp.id(), "object": "list", "model": stamp.model(),
                    "results": results, "usage": usage(),
                })
            }
            Self::Tei { texts } => {
                let result = |(index, score): (usize, f32)| match texts {
                    None => json!({"index": index, "score": decimal(score)}),
                    Some(texts) => {
                        json!({"index": index, "text": texts[index], "score": decimal(score)})
                    }
                };
                best(&reply.scores).into_iter().map(result).collect()
            }
            Self::Score { stamp } => {
                let scores = reply.scores.iter().enumerate();
                let data: Vec<Value> = scores
                    .map(|(index, score)| {
                        json!({"index": index, "object": "score", "score": decimal(*score)})
                    })
                    .collect();
                json!({
                    "id": stamp.id(), "object": "list", "created": stamp.created(),
                    "model": stamp.model(), "data": data, "usage": usage(),
                })
            }
        }
    }
}

/// Which documents are nearest; equal ones in their order.
fn best(scores: &[f32]) -> Vec<(usize, f32)> {
    let mut best: Vec<(usize, f32)> = scores.iter().copied().enumerate().collect();
    best.sort_by(|a, b| b.1.total_cmp(&a.1));
    best
}
