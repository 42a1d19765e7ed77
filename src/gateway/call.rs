//! From a checked request to the model's reply, within its time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use futures_util::StreamExt;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use roundhouse_serving::{
    Answer, Finished, GenerationReply, Invocation, Piece, Request, Served, TokenInfo, ToolCall,
};
use roundhouse_tenancy::Caller;
use roundhouse_types::{ErrorKind, Failure, TargetName, TenantName};
use tokio::time::{Instant, timeout_at};

use crate::aim::Aim;
use crate::error::Error;
use crate::layers::Notes;
use crate::meter::Cached;
use crate::permitted::{self, Permitted};
use crate::router::Gateway;
use crate::state::{EndpointFace, Offered};

/// Requests with equal values go to the same one of the targets that an alias stands for.
const ROUTE_KEY: HeaderName = HeaderName::from_static("x-roundhouse-route-key");

/// What a handler has at hand.
pub(crate) struct Context {
    pub(crate) gateway: Gateway,
    /// What was offered when the request came.
    pub(crate) offered: Arc<Offered>,
    pub(crate) notes: Notes,
    /// Who asks.
    pub(crate) caller: Caller,
    /// What the client, or its session, says for where a request goes that several targets could answer.
    pub(crate) route_key: Option<HeaderValue>,
}

impl FromRequestParts<Gateway> for Context {
    type Rejection = Infallible;

    /// Takes what the layers have left in the request.
    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Infallible> {
        let notes = parts.extensions.get::<Notes>().cloned();
        let caller = parts.extensions.get::<Caller>().cloned();
        Ok(Self {
            gateway: gateway.clone(),
            offered: gateway.offered.get(),
            notes: notes.expect("every request is observed"),
            caller: caller.expect("every request's caller is known"),
            route_key: parts.headers.get(ROUTE_KEY).cloned(),
        })
    }
}

impl Context {
    /// The endpoints that have something for the caller: others are not there for it.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &EndpointFace> {
        let reached = |face: &&EndpointFace| self.offered.policy.reaches(&self.caller, &face.name);
        self.offered.endpoints.iter().filter(reached)
    }

    /// The endpoint of this name, where it has something for the caller.
    pub(crate) fn endpoint(&self, name: &str) -> Option<&EndpointFace> {
        let found = self.offered.endpoints.iter().find(|face| face.name.as_str() == name)?;
        self.offered.policy.reaches(&self.caller, &found.name).then_some(found)
    }

    /// What decides where a request goes that several targets could answer: equal keys go the same way.
    pub(crate) fn draws_by(&self) -> Vec<u8> {
        match &self.route_key {
            Some(key) => key.as_bytes().to_vec(),
            None => self.notes.request_id().as_bytes().to_vec(),
        }
    }

    /// Whether the caller is told what shows how much a target is used: a tenant of its own targets,
    /// by the first segment of their names, and of others where they share that.
    pub(crate) fn is_told_of(&self, target: &TargetName) -> bool {
        let own = |tenant: &TenantName| target.as_str().split('/').next() == Some(tenant.as_str());
        !self.gateway.config.own_waits_only || self.caller.tenant.as_ref().is_none_or(own)
    }
}

/// Invokes a model. Everything after has the same deadline.
///
/// # Errors
/// The invocation's failure; `TimedOut` at the deadline.
pub(crate) async fn invoke(
    context: &Context,
    aim: &Aim,
    request: Request,
    timeout: Duration,
) -> Result<(Answer, Instant), Error> {
    context.notes.asked(&aim.model);
    let Permitted { model, base, only_loaded } = permitted::permit(context, aim)?;
    if model != aim.model {
        context.notes.routed(&model);
    }
    let arrived = context.notes.arrived();
    let deadline = arrived + timeout;
    let hold_until = (arrived + context.gateway.config.hold).min(deadline);
    let invocation = Invocation {
        caller: context.caller.clone(),
        spent: context.notes.meter().spent().clone(),
        model,
        base,
        only_loaded,
        request,
        deadline: deadline.into_std(),
        hold_until: hold_until.into_std(),
    };
    let target = invocation.model.clone();
    context.notes.invoked();
    let answered = timeout_at(deadline, (context.gateway.invoke)(invocation)).await;
    let answer = match answered {
        Ok(Ok(answer)) => answer,
        Ok(Err(failure)) => {
            context.notes.failed(failure.kind());
            return Err(permitted::refused(context, aim, &target, failure));
        }
        Err(_) => {
            context.notes.failed(ErrorKind::TimedOut);
            return Err(timed_out());
        }
    };
    context.notes.served(&answer.served);
    Ok((answer, deadline))
}

/// What is said at the deadline.
pub(crate) fn timed_out() -> Error {
    let message = "the invocation timed out before the model had answered";
    Error::Failed(Failure::new(ErrorKind::TimedOut, message))
}

/// A completion that has ended.
pub(crate) struct Choice {
    pub(crate) text: String,
    /// The prompt's tokens, where they were scored.
    pub(crate) prompt: Vec<TokenInfo>,
    pub(crate) tokens: Vec<TokenInfo>,
    pub(crate) calls: Vec<ToolCall>,
    pub(crate) finished: Finished,
}

/// All completions of one request.
pub(crate) struct Generated {
    pub(crate) choices: Vec<Choice>,
    /// Per choice.
    pub(crate) prompt_tokens: Vec<usize>,
    /// Each prompt's tokens, where they were asked for.
    pub(crate) prompts: Vec<Vec<u32>>,
    pub(crate) seed: u64,
}

/// A completion so far.
#[derive(Default)]
struct Said {
    text: String,
    prompt: Vec<TokenInfo>,
    tokens: Vec<TokenInfo>,
    calls: Vec<ToolCall>,
    finished: Option<Finished>,
}

/// Gathers all pieces of all choices.
///
/// # Errors
/// The stream's failure, `TimedOut`, or `Internal` where a choice never ends.
pub(crate) async fn collect(
    mut reply: GenerationReply,
    deadline: Instant,
    notes: &Notes,
    choices_per_prompt: usize,
) -> Result<Generated, Error> {
    let mut cached = Cached::default();
    let count = reply.prompt_tokens.len();
    let mut said: Vec<Said> = (0..count).map(|_| Said::default()).collect();
    let mut unfinished = count;
    while unfinished > 0 {
        let next = timeout_at(deadline, reply.pieces.next()).await.map_err(|_| timed_out())?;
        let piece =
            next.ok_or_else(|| Error::internal("a completion ended without a reason"))??;
        let Piece { choice, text, prompt, tokens, calls, finished } = piece;
        notes.generated(tokens.len());
        let slot =
            said.get_mut(choice).ok_or_else(|| Error::internal("a piece belongs to no choice"))?;
        slot.text.push_str(&text);
        slot.prompt.extend(prompt);
        slot.tokens.extend(tokens);
        slot.calls.extend(calls);
        if let Some(end) = finished
            && slot.finished.is_none()
        {
            cached.finished(choice / choices_per_prompt.max(1), end.cached_tokens);
            slot.finished = finished;
            unfinished -= 1;
        }
    }
    notes.meter().cached(cached.sum());
    let choices = said.into_iter().filter_map(|Said { text, prompt, tokens, calls, finished }| {
        finished.map(|finished| Choice { text, prompt, tokens, calls, finished })
    });
    Ok(Generated {
        choices: choices.collect(),
        prompt_tokens: reply.prompt_tokens,
        prompts: reply.prompts,
        seed: reply.seed,
    })
}

/// Adds the truth about how the answer came about. Where several models answered: all versions,
/// and the longest of each way and wait.
pub(crate) fn served_headers(headers: &mut HeaderMap, served: &[Served], context: &Context) {
    let config = &context.gateway.config;
    if !config.served_headers {
        return;
    }
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    let longest = |of: fn(&Served) -> Duration| {
        served.iter().map(of).max().unwrap_or_default().as_millis().to_string()
    };
    let versions: Vec<&str> = served.iter().map(|it| it.version.as_str()).collect();
    put("x-roundhouse-version", &versions.join(", "));
    if !context.notes.target().is_some_and(|target| context.is_told_of(&target)) {
        return;
    }
    if let Some(tier) = served.iter().map(|it| it.tier).max() {
        put("x-roundhouse-tier", tier.as_str());
    }
    put("x-roundhouse-load-ms", &longest(|it| it.load));
    put("x-roundhouse-queue-ms", &longest(|it| it.queue));
}
