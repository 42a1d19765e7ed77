//! `POST /tokenize`, `/detokenize` and `/decode`: what a model's tokenizer says by itself, in the words of
//! whoever asks: vLLM (`prompt`, `messages`, `tokens`), text-embeddings-inference (`inputs`, `ids`) or
//! text-generation-inference (`inputs` of a model that generates). The model is named as on the routes of
//! text-generation-inference. An engine or a container of the operator's is asked at the same path, with
//! the body that was sent, and answers in its own words.

use axum::extract::Request;
use axum::response::Response;
use roundhouse_serving::{CutToken, Request as Asks, Route, Tokens, TokensReply};
use roundhouse_types::ModelKind;
use serde_json::{Map, Value, json};

use crate::accept::Accept;
use crate::answer::{Ask, Asked, Delivery, answer};
use crate::behind;
use crate::call::Context;
use crate::error::{Error, Face};
use crate::fields::{Fields, Neutral, neutral};
use crate::openai;
use crate::relayed::{self, Sent};
use crate::target;
use crate::tgi::{self, Read};

/// Fields that would change the tokens and that nothing here honours, with the values that would not.
const UNSUPPORTED: [Neutral; 5] = [
    ("chat_template", neutral::absent),
    ("continue_final_message", neutral::off),
    ("mm_processor_kwargs", neutral::absent),
    ("prompt_name", neutral::absent),
    ("tools", neutral::empty),
];

/// How the answer shall look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokensAsk {
    /// vLLM's tokens: ids, and maybe their names.
    Ids { names: bool },
    /// A list of tokens for each text; of one text of a model that generates, its tokens alone.
    Lists { single: bool },
    /// vLLM's text.
    Prompt,
    /// A list of texts.
    Texts,
}

/// `POST /tokenize`.
pub(crate) async fn tokenize(context: Context, request: Request) -> Response {
    serve(context, request, Route::Tokenize, |fields, _| cut(fields)).await
}

/// `POST /detokenize`.
pub(crate) async fn detokenize(context: Context, request: Request) -> Response {
    serve(context, request, Route::Detokenize, |fields, _| {
        let list = ids(fields.take("tokens")).ok_or_else(|| wrong_ids(fields, "tokens"))?;
        let asked = Tokens::Join { lists: vec![list], skip_special: false };
        Ok(Asked::new(Asks::Tokens(asked), Ask::Tokens(TokensAsk::Prompt)))
    })
    .await
}

/// `POST /decode`.
pub(crate) async fn decode(context: Context, request: Request) -> Response {
    serve(context, request, Route::Decode, |fields, _| {
        let skip_special = fields.bool("skip_special_tokens")?.unwrap_or(true);
        let lists = match fields.take("ids") {
            Some(Value::Array(items)) if items.first().is_some_and(Value::is_array) => {
                items.into_iter().map(|item| ids(Some(item))).collect()
            }
            other => ids(other).map(|list| vec![list]),
        };
        let lists = lists.ok_or_else(|| wrong_ids(fields, "ids"))?;
        let asked = Tokens::Join { lists, skip_special };
        Ok(Asked::new(Asks::Tokens(asked), Ask::Tokens(TokensAsk::Texts)))
    })
    .await
}

async fn serve(context: Context, request: Request, route: Route, parse: openai::Parse) -> Response {
    let operation = async {
        let Read { headers, body, map } = tgi::read(&context, request).await?;
        let name = map.get("model").and_then(Value::as_str).unwrap_or_default();
        if let Some(found) = behind::meant(&context, None, name) {
            return behind::tokens(&context, found, &headers, (route, body)).await;
        }
        let endpoint = target::default_endpoint(&context)?;
        let aim = tgi::aim_of(&context, endpoint, &headers, &map)?;
        let asked = match target::has_engines(&context, &aim.model) {
            true => {
                let (echo, stream, ignored) = (String::new(), false, None);
                let sent = Sent { body, parse, echo, route, stream, ignored };
                relayed::asked(&headers, sent, &aim, context.notes.request_id())
            }
            false => openai::asked(&mut Fields::new(map), &aim, "", parse)?,
        };
        let timeout = context.gateway.config.stream_timeout;
        let accept = Accept::default();
        let delivery = Delivery { accept, events: false, framed: false, gathers: true, timeout };
        answer(&context, aim, asked, delivery).await
    };
    operation.await.unwrap_or_else(|error: Error| error.respond(Face::Tgi))
}

/// A list of token ids.
fn ids(value: Option<Value>) -> Option<Vec<u32>> {
    let Some(Value::Array(items)) = value else { return None };
    items.iter().map(|item| u32::try_from(item.as_u64()?).ok()).collect()
}

fn wrong_ids(fields: &Fields, name: &str) -> Error {
    fields.wrong(name, "must be a list of token ids")
}

fn cut(fields: &mut Fields) -> Result<Asked, Error> {
    fields.refuse(&UNSUPPORTED)?;
    let special = fields.bool("add_special_tokens")?;
    let (asked, ask) = if fields.has("messages") {
        let messages = openai::messages::read(fields)?;
        let mut template_kwargs = match fields.take("chat_template_kwargs") {
            None => Map::new(),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(fields.wrong("chat_template_kwargs", "must be an object")),
        };
        if let Some(opens) = fields.bool("add_generation_prompt")? {
            template_kwargs.insert("add_generation_prompt".into(), opens.into());
        }
        let special = special.unwrap_or(false);
        let names = fields.bool("return_token_strs")?.unwrap_or(false);
        (Tokens::Chat { messages, template_kwargs, special }, TokensAsk::Ids { names })
    } else {
        let special = special.unwrap_or(true);
        let by_prompt = fields.has("prompt");
        let name = if by_prompt { "prompt" } else { "inputs" };
        let (texts, single) = match fields.take(name) {
            Some(Value::String(text)) => (vec![text], true),
            Some(Value::Array(items)) if !by_prompt => {
                let texts = items.into_iter().map(|item| match item {
                    Value::String(text) => Ok(text),
                    _ => Err(fields.wrong(name, "must be a string or a list of strings")),
                });
                (texts.collect::<Result<_, _>>()?, false)
            }
            _ if by_prompt => return Err(fields.wrong(name, "must be a string")),
            _ => return Err(fields.wrong(name, "must be a string or a list of strings")),
        };
        let names = fields.bool("return_token_strs")?.unwrap_or(false);
        let ask = if by_prompt { TokensAsk::Ids { names } } else { TokensAsk::Lists { single } };
        (Tokens::Cut { texts, special }, ask)
    };
    Ok(Asked::new(Asks::Tokens(asked), Ask::Tokens(ask)))
}

impl TokensAsk {
    /// The answer.
    pub(crate) fn told(self, reply: TokensReply) -> Value {
        let first = reply.lists.first().map(Vec::as_slice).unwrap_or_default();
        match self {
            Self::Ids { names } => {
                let ids: Vec<u32> = first.iter().map(|token| token.id).collect();
                let names = names
                    .then(|| first.iter().map(|token| token.name.as_str()).collect::<Vec<&str>>());
                json!({
                    "count": ids.len(),
                    "max_model_len": reply.context,
                    "tokens": ids,
                    "token_strs": names,
                })
            }
            Self::Lists { single: true } if reply.kind == ModelKind::Generative => {
                first.iter().map(of_generator).collect()
            }
            Self::Lists { .. } => {
                let list = |tokens: &Vec<CutToken>| tokens.iter().map(of_encoder).collect();
                reply.lists.iter().map(list).collect::<Vec<Value>>().into()
            }
            Self::Prompt => json!({"prompt": reply.texts.first()}),
            Self::Texts => json!(reply.texts),
        }
    }
}

/// As text-generation-inference tells a token.
fn of_generator(token: &CutToken) -> Value {
    json!({"id": token.id, "text": token.text, "start": token.start, "stop": token.end})
}

/// As text-embeddings-inference does: what goes around a text is nowhere in it.
fn of_encoder(token: &CutToken) -> Value {
    let (text, place) = match token.special {
        true => (&token.name, None),
        false => (&token.text, Some((token.start, token.end))),
    };
    json!({
        "id": token.id,
        "text": text,
        "special": token.special,
        "start": place.map(|it| it.0),
        "stop": place.map(|it| it.1),
    })
}
