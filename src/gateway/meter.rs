//! What a request is charged before it is answered, and what it took in the end.

use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue};
use roundhouse_serving::{Generation, Request};
use roundhouse_tenancy::{Durable, Estimate, Facts, Level, Levels, Visit};
use roundhouse_types::{ModelId, Spent};

use crate::aim::Aim;
use crate::call::Context;
use crate::error::Error;
use crate::fields::Fields;
use crate::layers::Notes;
use crate::state::AccessRecord;

/// Bytes of a body per token, as English text has them; the rest is put right by fact.
const BYTES_PER_TOKEN: u64 = 4;
/// What an answer is taken to have where the request sets no end: what models say on average.
const ANSWER_TOKENS: usize = 256;
/// What it is taken to have where nothing ends it: all that there is, since no bucket is larger.
const ENDLESS: usize = u32::MAX as usize;
/// What the longest prompts have: a larger body holds pictures or sound.
const PROMPT_MOST: u64 = 128 * 1024;
/// Tokens that a handler's body is taken to have at most: what is larger is hardly text.
const RAW_TOKENS: u64 = 4096;

/// One request's account while it is served. Part of its notes.
#[derive(Default)]
pub(crate) struct Meter {
    spent: Spent,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Taken when it is settled.
    visit: Option<Visit>,
    tokens_cached: u64,
    /// Tokens that the body lets the answer have, where it was read that far.
    asked: Option<u64>,
}

impl Meter {
    /// Where serving and devices add what it takes.
    pub(crate) fn spent(&self) -> &Spent {
        &self.spent
    }

    fn admitted(&self, visit: Visit) {
        self.lock().visit = Some(visit);
    }

    /// Notes how long an answer a body of OpenAI's asks for, for the estimate where who is asked reads it
    /// itself. What is no number there is for that one to refuse.
    pub(crate) fn asks(&self, fields: &Fields) {
        let most = ["max_completion_tokens", "max_tokens"].into_iter();
        let most = most.filter_map(|name| fields.number(name)).next();
        // Of another route: whoever sends both has nothing of the smaller one.
        let most = most.max(fields.number("max_output_tokens"));
        let count = fields.number("n").unwrap_or(1).max(1);
        let prompts = fields.texts("prompt").max(1) as u64;
        let tokens = most.unwrap_or(ANSWER_TOKENS as u64);
        let tokens = tokens.saturating_mul(count).saturating_mul(prompts);
        self.lock().asked = Some(tokens.min(ENDLESS as u64));
    }

    /// What an answer is taken to have that nothing here knows the end of.
    fn answer_tokens(&self) -> u64 {
        self.lock().asked.unwrap_or(ANSWER_TOKENS as u64)
    }

    /// Adds tokens of prompts that were not computed.
    pub(crate) fn cached(&self, tokens: usize) {
        self.lock().tokens_cached += tokens as u64;
    }

    /// Takes the charge back of a request that was put back before anything was computed for it: it
    /// comes again, and counts then.
    pub(crate) fn withdraw(&self) {
        if !self.spent.compute().is_zero() {
            return;
        }
        if let Some(visit) = self.lock().visit.take() {
            visit.withdraw();
        }
    }

    /// Whether there is nothing to settle, or not any more.
    pub(crate) fn is_settled(&self) -> bool {
        self.lock().visit.is_none()
    }

    /// Settles it with what is known; once, whoever comes first. `unsent` are bytes of the answer
    /// that are on their way.
    pub(crate) fn settle(&self, record: &AccessRecord, complete: bool, unsent: u64) -> Durable {
        let mut state = self.lock();
        let Some(visit) = state.visit.take() else {
            return Durable::now();
        };
        let model = record.endpoint.clone().zip(record.target.clone());
        let model = model.map(|(endpoint, target)| ModelId { endpoint, target });
        let compute = self.spent.compute();
        let is_reached = record.version.is_some() || !compute.is_zero();
        let tokens_in = record.tokens_in.map_or(self.spent.tokens_in(), |tokens| tokens as u64);
        visit.settle(Facts {
            model: model.filter(|_| is_reached),
            complete,
            tokens_in,
            tokens_cached: state.tokens_cached.min(tokens_in),
            tokens_out: record.tokens_out.unwrap_or_default() as u64,
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out + unsent,
            compute,
            load: record.load.unwrap_or_default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves plain facts behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens of each prompt that were not computed: what the choice found that computed it first.
#[derive(Debug, Default)]
pub(crate) struct Cached(Vec<Option<usize>>);

impl Cached {
    /// A choice has ended.
    pub(crate) fn finished(&mut self, prompt: usize, tokens: usize) {
        if self.0.len() <= prompt {
            self.0.resize(prompt + 1, None);
        }
        let least = self.0[prompt].map_or(tokens, |so_far| so_far.min(tokens));
        self.0[prompt] = Some(least);
    }

    /// Of all prompts.
    pub(crate) fn sum(&self) -> usize {
        self.0.iter().flatten().sum()
    }
}

/// Charges a request by estimate, before anything is leased, loaded or tokenised for it.
///
/// # Errors
/// `Refused` with the limit that its tenant has reached.
pub(crate) fn admit(context: &Context, aim: &Aim, request: &Request) -> Result<Levels, Error> {
    let notes = &context.notes;
    let estimate = estimate(request, notes);
    let accounts = &context.gateway.accounts;
    let visit = accounts.admit(&context.caller, &aim.model, notes.request_id(), estimate)?;
    let levels = visit.levels();
    notes.meter().admitted(visit);
    Ok(levels)
}

/// The same of a request whose body nothing here reads, for the target that its notes name.
///
/// # Errors
/// `Refused` with the limit that its tenant has reached.
pub(crate) fn admit_raw(context: &Context) -> Result<Levels, Error> {
    let notes = &context.notes;
    let estimate = raw_estimate(notes);
    let asked = notes.model().ok_or_else(|| Error::internal("a request asks nobody"))?;
    let visit =
        context.gateway.accounts.admit(&context.caller, &asked, notes.request_id(), estimate)?;
    let levels = visit.levels();
    notes.meter().admitted(visit);
    Ok(levels)
}

/// Charges a request that lists or shows models: one request and no tokens.
///
/// # Errors
/// `Refused` with the limit that its tenant has reached.
pub(crate) fn admit_look(context: &Context, model: Option<&ModelId>) -> Result<(), Error> {
    let (accounts, caller) = (&context.gateway.accounts, &context.caller);
    let id = context.notes.request_id();
    let visit = match model {
        Some(model) => accounts.admit(caller, model, id, Estimate::default())?,
        None => accounts.admit_to_none(caller, id)?,
    };
    context.notes.meter().admitted(visit);
    Ok(())
}

/// The end of an answer goes out when it is settled, and its usage is where it is asked to be. One that
/// says an error has failed, whoever said it.
pub(crate) async fn settled(notes: &Notes, response: Response) -> Response {
    let is_good = response.status().as_u16() < 400;
    if let Some(length) = response.body().size_hint().exact() {
        notes.settle(is_good, length).wait().await;
        return response;
    }
    let notes = notes.clone();
    response.map(|body| {
        let end = stream::once(async move {
            notes.settle(is_good, 0).wait().await;
            None
        });
        let pieces = body.into_data_stream().map(Some).chain(end);
        Body::from_stream(pieces.filter_map(async |piece| piece))
    })
}

/// What a prompt of this length is taken to have where nobody says: as many as a text of it.
pub(crate) fn text_tokens(bytes: u64) -> usize {
    usize::try_from(bytes.div_ceil(BYTES_PER_TOKEN).min(PROMPT_MOST)).unwrap_or(usize::MAX)
}

/// A text of the body's length, and an answer of the length that it asks for, else of the usual one.
fn raw_estimate(notes: &Notes) -> Estimate {
    let tokens_in = notes.bytes_in().div_ceil(BYTES_PER_TOKEN).min(RAW_TOKENS);
    Estimate { tokens_in, tokens_out: notes.meter().answer_tokens() }
}

/// What a handler takes cannot be known by anything in its body, so it is charged as a text of that
/// length and an answer of the usual one, until it is known; so is what an engine takes, but for the end
/// of its answer where that was read.
fn estimate(request: &Request, notes: &Notes) -> Estimate {
    let answers = |generation: &Generation, count: usize| {
        let most = if generation.ignore_eos { ENDLESS } else { ANSWER_TOKENS };
        let most = generation.max_tokens.or(generation.usual_tokens).unwrap_or(most);
        most.max(generation.min_tokens.unwrap_or_default()).saturating_mul(count) as u64
    };
    let tokens_out = match request {
        Request::Inputs(inputs) => answers(&inputs.generation, inputs.texts.len()),
        Request::Chat(chat) => answers(&chat.generation, chat.n),
        Request::Completion(completion) => {
            let count = completion.prompts.len().saturating_mul(completion.n);
            answers(&completion.generation, count)
        }
        Request::Embeddings(_) | Request::Ranking(_) | Request::Tokens(_) => 0,
        Request::Raw(_) => notes.meter().answer_tokens(),
    };
    let tokens_in = match (request, notes.bytes_in().div_ceil(BYTES_PER_TOKEN)) {
        (Request::Raw(_), tokens) => tokens.min(RAW_TOKENS),
        // The model reads none of it.
        (Request::Tokens(_), _) => 0,
        // The query is read with each document.
        (Request::Ranking(ranking), tokens) => {
            let query = (ranking.query.len() as u64).div_ceil(BYTES_PER_TOKEN);
            tokens.saturating_add(query.saturating_mul(ranking.documents.len() as u64))
        }
        // Each text is read with each label.
        (Request::Inputs(inputs), tokens) => {
            let zero_shot = inputs.options.zero_shot.as_ref();
            tokens.saturating_mul(zero_shot.map_or(1, |asked| asked.labels.len()) as u64)
        }
        (_, tokens) => tokens,
    };
    Estimate { tokens_in, tokens_out }
}

/// Says how near a tenant is to its limits, as OpenAI does.
pub(crate) fn rate_headers(headers: &mut HeaderMap, levels: Levels) {
    let mut put = |names: [&'static str; 3], level: Option<Level>| {
        let Some(Level { limit, remaining, reset }) = level else {
            return;
        };
        let [of_limit, of_remaining, of_reset] = names.map(HeaderName::from_static);
        headers.insert(of_limit, HeaderValue::from(limit));
        headers.insert(of_remaining, HeaderValue::from(remaining));
        let reset = format!("{}ms", reset.as_millis());
        headers.extend(HeaderValue::from_str(&reset).ok().map(|value| (of_reset, value)));
    };
    let requests = [
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
    ];
    put(requests, levels.requests);
    let tokens =
        ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];
    put(tokens, levels.tokens);
}

/// The same for an answer of OpenAI's routes that carries its levels.
pub(crate) fn with_rate_headers(mut response: Response) -> Response {
    if let Some(levels) = response.extensions_mut().remove::<Levels>() {
        rate_headers(response.headers_mut(), levels);
    }
    response
}
