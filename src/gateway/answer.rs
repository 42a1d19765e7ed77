//! From what a client asked to the response it gets, whatever the dialect.

use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use roundhouse_serving::{
    AnswerStyle, EmbeddingsReply, GenerationReply, Reply, Request, TokenVectorsReply,
};
use roundhouse_types::{ErrorKind, Failure};
use tokio::time::Instant;

use crate::accept::{self, Accept, Form};
use crate::aim::{Adapters, Aim};
use crate::call::{self, Context};
use crate::cut::cut_off;
use crate::each;
use crate::error::Error;
use crate::handled;
use crate::kept;
use crate::meter;
use crate::openai::chat::ChatAsk;
use crate::openai::completions::CompletionAsk;
use crate::openai::embeddings::EmbeddingsAsk;
use crate::openai::responses::ResponseAsk;
use crate::ranking::RankingAsk;
use crate::sagemaker::found;
use crate::sagemaker::generated::InputsTranscript;
use crate::sagemaker::inputs::{Dialect, InputsAsk};
use crate::sagemaker::raw::{Found, Later};
use crate::stream::{self, Bounds, Format, Transcript, Wire};
use crate::tokens::TokensAsk;

/// Fields of the body that nothing reads.
const IGNORED: HeaderName = HeaderName::from_static("x-roundhouse-ignored");
/// Of those, so many are told, and only names of this length.
const NAMES_MAX: usize = 8;
const NAME_MAX: usize = 64;
/// Numbers above this are written as text on a blocking thread.
const INLINE_NUMBERS: usize = 16 * 1024;

/// A request and how its answer shall look.
pub(crate) struct Asked {
    pub(crate) request: Request,
    pub(crate) ask: Ask,
    /// Whom the body asks instead of the model that it was sent to.
    pub(crate) adapters: Adapters,
}

impl Asked {
    /// Of the model that it was sent to.
    pub(crate) fn new(request: Request, ask: Ask) -> Self {
        Self { request, ask, adapters: Adapters::None }
    }
}

/// How an answer shall look, by dialect.
pub(crate) enum Ask {
    /// LMI, TGI and the Hugging Face toolkit.
    Inputs(InputsAsk),
    Chat(ChatAsk),
    Completion(CompletionAsk),
    Response(ResponseAsk),
    Embeddings(EmbeddingsAsk),
    Ranking(RankingAsk),
    Tokens(TokensAsk),
    /// Not known before the body is read; a handler reads it itself.
    Later(Later),
}

/// How the answer goes out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivery {
    /// In what form a whole answer goes out.
    pub(crate) accept: Accept,
    /// Whether streams are server-sent events rather than lines of JSON.
    pub(crate) events: bool,
    /// Whether the answer is wrapped in AWS event-stream messages.
    pub(crate) framed: bool,
    /// Whether what a handler yields in pieces goes out as one.
    pub(crate) gathers: bool,
    /// From the request's arrival to the last byte.
    pub(crate) timeout: Duration,
}

impl Ask {
    pub(crate) fn streams(&self) -> bool {
        match self {
            Self::Inputs(ask) => ask.stream,
            Self::Chat(ask) => ask.stream,
            Self::Completion(ask) => ask.stream,
            Self::Response(ask) => ask.stream,
            Self::Embeddings(_) | Self::Ranking(_) | Self::Tokens(_) | Self::Later(_) => false,
        }
    }

    fn format(&self, events: bool) -> Format {
        match self {
            _ if !events => Format::JsonLines,
            Self::Inputs(_) | Self::Later(_) => Format::Sse { done: false },
            Self::Response(_) => Format::NamedEvents,
            Self::Chat(_)
            | Self::Completion(_)
            | Self::Embeddings(_)
            | Self::Ranking(_)
            | Self::Tokens(_) => Format::Sse { done: true },
        }
    }

    /// Fields of the body that nothing reads, where the face tells them.
    fn ignored(&self) -> Option<HeaderValue> {
        match self {
            Self::Inputs(ask) => ask.ignored.clone(),
            Self::Chat(ask) => ask.ignored.clone(),
            Self::Completion(ask) => ask.ignored.clone(),
            Self::Response(ask) => ask.ignored.clone(),
            Self::Embeddings(ask) => ask.ignored.clone(),
            // What it says so far is of who reads the body itself.
            Self::Later(later) => later.ignored(),
            Self::Ranking(_) | Self::Tokens(_) => None,
        }
    }

    /// Where only `inputs` can be answered so.
    fn inputs(&self) -> Result<&InputsAsk, Error> {
        match self {
            Self::Inputs(ask) => Ok(ask),
            _ => Err(mismatch()),
        }
    }

    /// How many prompts a completion's choices belong to: every one counts once.
    fn choices_per_prompt(&self) -> usize {
        match self {
            Self::Chat(ask) => ask.n,
            Self::Completion(ask) => ask.n,
            Self::Inputs(_)
            | Self::Response(_)
            | Self::Embeddings(_)
            | Self::Ranking(_)
            | Self::Tokens(_)
            | Self::Later(_) => 1,
        }
    }
}

/// Invokes the model, or the adapters that the body names, and writes the answer.
///
/// # Errors
/// Everything that fails before the response's first byte.
pub(crate) async fn answer(
    context: &Context,
    aim: Aim,
    asked: Asked,
    delivery: Delivery,
) -> Result<Response, Error> {
    let levels = meter::admit(context, &aim, &asked.request)?;
    let answered = tokio::select! {
        biased;
        answered = admitted(context, aim, asked, delivery) => answered?,
        () = context.gateway.cut.wait() => return Err(cut_off().into()),
    };
    let mut response = meter::settled(&context.notes, answered).await;
    response.extensions_mut().insert(levels);
    Ok(response)
}

/// The same, of a request that is within its tenant's limits.
async fn admitted(
    context: &Context,
    aim: Aim,
    asked: Asked,
    delivery: Delivery,
) -> Result<Response, Error> {
    let Asked { request, ask, adapters } = asked;
    let mut overruled = aim.overrules(&adapters);
    let aim = match aim.heeds(adapters) {
        Adapters::None => aim,
        Adapters::One(field, name) => aim.adapter(field, &name)?,
        Adapters::Each(field, names) => {
            let ignored = ask.ignored();
            let named = (field, names);
            let mut response = each::answer(context, &aim, named, request, ask, delivery).await?;
            tell_ignored(&mut response, context, ignored, None);
            return Ok(response);
        }
    };
    let invoked = call::invoke(context, &aim, request, delivery.timeout).await;
    let (answer, deadline) = invoked.map_err(|error| told_by_reader(&ask, error))?;
    let ask = match ask {
        Ask::Later(later) => match later.take() {
            Some(Found::Asked(asked)) => {
                // Such a request is not raw any more: this happens once.
                return Box::pin(admitted(context, aim, *asked, delivery)).await;
            }
            Some(Found::Ask(ask, field)) => {
                overruled = field;
                ask
            }
            Some(Found::Wrong(_)) | None => Ask::Later(later),
        },
        ask => ask,
    };
    let (ask, delivery) = styled(ask, delivery, answer.served.style);
    let ignored = ask.ignored();
    let mut response = written_reply(context, answer.reply, ask, delivery, deadline).await?;
    call::served_headers(response.headers_mut(), std::slice::from_ref(&answer.served), context);
    tell_ignored(&mut response, context, ignored, overruled);
    Ok(response)
}

/// Says which fields of a body nothing has read, and by which it names another adapter than the header
/// that went before it.
fn tell_ignored(
    response: &mut Response,
    context: &Context,
    ignored: Option<HeaderValue>,
    overruled: Option<&'static str>,
) {
    let overruled = overruled.map(HeaderValue::from_static);
    let is_told = context.gateway.config.served_headers;
    for names in ignored.into_iter().chain(overruled).filter(|_| is_told) {
        response.headers_mut().append(IGNORED, names);
    }
}

/// What was wrong with a body that was read late, in its reader's own words: the field included.
fn told_by_reader(ask: &Ask, error: Error) -> Error {
    match ask {
        Ask::Later(later) => match later.take() {
            Some(Found::Wrong(wrong)) => wrong,
            Some(Found::Ask(..) | Found::Asked(_)) | None => error,
        },
        _ => error,
    }
}

/// The names of fields that nothing reads, as [`IGNORED`] has them.
pub(crate) fn ignored_names(names: Vec<String>) -> Option<HeaderValue> {
    if names.is_empty() {
        return None;
    }
    let is_plain = |name: &String| {
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        name.len() <= NAME_MAX && name.bytes().all(is_known)
    };
    let count = names.len();
    let mut shown: Vec<String> = names.into_iter().filter(is_plain).take(NAMES_MAX).collect();
    shown.sort();
    if shown.len() < count {
        shown.push(format!("and {} more", count - shown.len()));
    }
    HeaderValue::try_from(shown.join(", ")).ok()
}

/// A reply as the client wants it.
async fn written_reply(
    context: &Context,
    reply: Reply,
    ask: Ask,
    delivery: Delivery,
    deadline: Instant,
) -> Result<Response, Error> {
    Ok(match reply {
        Reply::Handled(reply) => handled::respond(context, reply, delivery, deadline).await?,
        Reply::Generation(reply) => generation(context, reply, ask, delivery, deadline).await?,
        Reply::Embeddings(reply) => {
            context.notes.prompt(reply.prompt_tokens);
            let (body, form) = written(ask, reply, delivery.accept).await?;
            accept::whole(body, form, delivery)
        }
        Reply::TokenVectors(reply) => {
            context.notes.prompt(reply.prompt_tokens);
            let (body, form) = written_tokens(reply, delivery.accept).await?;
            accept::whole(body, form, delivery)
        }
        Reply::Scores(reply) => {
            context.notes.prompt(reply.prompt_tokens);
            let Ask::Ranking(ask) = ask else { return Err(mismatch()) };
            accept::written(&ask.told(&reply), delivery)?
        }
        Reply::Classification(labels) => {
            if labels.iter().flatten().any(|label| !label.score.is_finite()) {
                return Err(not_a_number());
            }
            on_blocking(move || accept::written(&ask.inputs()?.labels(&labels)?, delivery)).await?
        }
        Reply::Entities(found) => {
            on_blocking(move || accept::written(&ask.inputs()?.entities(&found)?, delivery)).await?
        }
        Reply::Fills(fills) => {
            on_blocking(move || accept::written(&ask.inputs()?.fills(&fills)?, delivery)).await?
        }
        Reply::Answers(answers) => {
            on_blocking(move || accept::written(&ask.inputs()?.answers(&answers)?, delivery))
                .await?
        }
        Reply::Tokens(reply) => {
            let Ask::Tokens(ask) = ask else { return Err(mismatch()) };
            let taken = reply.taken.clone();
            let told = on_blocking(move || accept::written(&ask.told(reply), delivery)).await?;
            kept::until_sent(told, taken)
        }
        // Whoever reads a body so leaves what it asks behind.
        Reply::OfAdapters => return Err(mismatch()),
    })
}

/// What the model's author asks for where the face has no way of its own.
fn styled(mut ask: Ask, mut delivery: Delivery, style: AnswerStyle) -> (Ask, Delivery) {
    if let Ask::Inputs(ask) = &mut ask
        && ask.dialect == Dialect::Lmi
    {
        if style.tgi {
            ask.dialect = Dialect::Tgi { array: true };
        }
        delivery.events |= style.tgi || style.events;
    }
    (ask, delivery)
}

/// Vectors as they are wanted; many of them on a blocking thread.
///
/// # Errors
/// `ModelFailed` where one is not of finite numbers.
pub(crate) async fn written(
    ask: Ask,
    reply: EmbeddingsReply,
    accept: Accept,
) -> Result<(Bytes, Form), Error> {
    if reply.vectors.iter().flatten().any(|number| !number.is_finite()) {
        return Err(not_a_number());
    }
    let numbers: usize = reply.vectors.iter().map(Vec::len).sum();
    let write = move || match &ask {
        Ask::Inputs(ask) => {
            let vectors = &reply.vectors;
            accept::written_vectors(vectors, ask.single, accept, || ask.vectors(&reply))
        }
        Ask::Embeddings(ask) => {
            accept::written_vectors(&reply.vectors, false, accept, || ask.vectors(&reply))
        }
        _ => Err(mismatch()),
    };
    if numbers <= INLINE_NUMBERS {
        return write();
    }
    on_blocking(write).await
}

/// Vectors of tokens as they are wanted.
async fn written_tokens(reply: TokenVectorsReply, accept: Accept) -> Result<(Bytes, Form), Error> {
    on_blocking(move || {
        accept::written_tokens(&reply.inputs, accept, || found::token_vectors(&reply))
    })
    .await
}

async fn on_blocking<T: Send + 'static>(
    write: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let written = tokio::task::spawn_blocking(write).await;
    written.map_err(|error| Error::internal(format!("writing an answer failed: {error}")))?
}

async fn generation(
    context: &Context,
    reply: GenerationReply,
    ask: Ask,
    delivery: Delivery,
    deadline: Instant,
) -> Result<Response, Error> {
    let notes = &context.notes;
    let choices_per_prompt = ask.choices_per_prompt();
    let reply = match &ask {
        Ask::Completion(ask) => ask.asked_for(reply),
        _ => reply,
    };
    let prompts = reply.prompt_tokens.iter().step_by(choices_per_prompt.max(1));
    let prompt_tokens = prompts.sum();
    notes.prompt(prompt_tokens);
    if ask.streams() {
        let wire = Wire { format: ask.format(delivery.events), framed: delivery.framed };
        let transcript: Box<dyn Transcript> = match ask {
            Ask::Inputs(ask) => Box::new(InputsTranscript::new(prompt_tokens, reply.seed, &ask)),
            Ask::Chat(ask) => Box::new(ask.transcript(prompt_tokens, &reply.prompts)),
            Ask::Response(ask) => Box::new(ask.transcript(prompt_tokens)),
            Ask::Completion(ask) => {
                let choices = reply.prompt_tokens.len();
                Box::new(ask.transcript((prompt_tokens, &reply.prompts), choices))
            }
            _ => return Err(mismatch()),
        };
        let keep_alive = context.gateway.config.keep_alive;
        let (notes, cut) = (notes.clone(), context.gateway.cut.clone());
        let bounds = Bounds { deadline, keep_alive, choices_per_prompt, notes, cut };
        return stream::respond(reply, transcript, wire, bounds).await;
    }
    let taken = reply.taken.clone();
    let generated = call::collect(reply, deadline, notes, choices_per_prompt).await?;
    let said = match ask {
        Ask::Inputs(ask) => ask.generated(&generated)?,
        Ask::Chat(ask) => ask.whole(&generated, prompt_tokens),
        Ask::Response(ask) => ask.whole(&generated, prompt_tokens)?,
        Ask::Completion(ask) => ask.whole(&generated, prompt_tokens),
        _ => return Err(mismatch()),
    };
    let response = accept::written(&said, delivery)?;
    Ok(if taken.is_nothing() { response } else { kept::until_sent(response, taken) })
}

/// Serving refuses requests that do not fit a model's kind, so this is a fault of ours.
pub(crate) fn mismatch() -> Error {
    Error::internal("the reply is not of the kind that was asked for")
}

fn not_a_number() -> Error {
    let message = "the model answered with a value that is not a finite number";
    Error::Failed(Failure::new(ErrorKind::ModelFailed, message))
}
