//! One request whose inputs go to different adapters of one model: each adapter is asked for its
//! inputs, side by side, and the answers are put together in the order of the inputs.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use axum::response::Response;
use futures_util::future::try_join_all;
use roundhouse_serving::{EmbeddingsReply, Inputs, LabelScore, Reply, Request, Served, Taken};
use uuid::Uuid;

use crate::accept;
use crate::aim::Aim;
use crate::answer::{Ask, Delivery, mismatch, written};
use crate::call::{self, Context, Generated};
use crate::error::Error;
use crate::kept;
use crate::permitted::permit;

/// The headers that show how much a target is used.
const WAITS: [&str; 3] = ["x-roundhouse-tier", "x-roundhouse-load-ms", "x-roundhouse-queue-ms"];

/// What one of the adapters answered, and which inputs it was asked for.
struct Part {
    places: Vec<usize>,
    said: Said,
    served: Served,
    /// What it tells takes it until it has gone out.
    taken: Taken,
}

/// What an adapter answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Vectors,
    Labels,
}

enum Said {
    Generated(Generated),
    Vectors(EmbeddingsReply),
    Labels(Vec<Vec<LabelScore>>),
}

/// Asks each of the named adapters of `aim` for the inputs beside which it is named; an empty name
/// is the model itself.
///
/// # Errors
/// The first failure of any of them; `Field` for a body that has no list of inputs.
pub(crate) async fn answer(
    context: &Context,
    aim: &Aim,
    (field, names): (&'static str, Vec<String>),
    request: Request,
    ask: Ask,
    delivery: Delivery,
) -> Result<Response, Error> {
    let (Request::Inputs(mut inputs), Ask::Inputs(ask)) = (request, ask) else {
        return Err(Error::field(field, "must be one name where the body has no inputs"));
    };
    // One seed for all, so that the answer can say which.
    inputs.generation.seed.get_or_insert_with(|| Uuid::new_v4().as_u64_pair().0 >> 11);
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (place, name) in names.into_iter().enumerate() {
        groups.entry(name).or_default().push(place);
    }
    // Of the first that has begun: all others' answers are of it.
    let kind = OnceLock::new();
    let mut asking = Vec::with_capacity(groups.len());
    let mut is_told = true;
    for (name, places) in groups {
        let aim = if name.is_empty() { aim.clone() } else { aim.adapter(field, &name)? };
        is_told &= permit(context, &aim).is_ok_and(|it| context.is_told_of(&it.model.target));
        asking.push(part(context, aim, &inputs, (field, places), &kind, delivery));
    }
    let mut parts = try_join_all(asking).await?;
    // The log has one model and one wait: the one named, and the longest.
    parts.sort_by_key(|part| part.served.load);
    context.notes.asked(&aim.model);
    if let Ok(base) = permit(context, aim)
        && base.model != aim.model
    {
        context.notes.routed(&base.model);
    }
    let served: Vec<Served> = parts.iter().map(|part| part.served.clone()).collect();
    if let Some(slowest) = served.last() {
        context.notes.served(slowest);
    }
    let taken: Vec<Taken> = parts.iter().map(|part| part.taken.clone()).collect();
    let (said, prompt_tokens) = together(parts, inputs.texts.len(), field)?;
    context.notes.prompt(prompt_tokens);
    let mut response = match said {
        Said::Generated(generated) => accept::written(&ask.generated(&generated)?, delivery)?,
        Said::Vectors(reply) => {
            let (body, form) = written(Ask::Inputs(ask), reply, delivery.accept).await?;
            accept::whole(body, form, delivery)
        }
        Said::Labels(labels) => accept::written(&ask.labels(&labels)?, delivery)?,
    };
    call::served_headers(response.headers_mut(), &served, context);
    // The longest wait may be that of any of them.
    if !is_told {
        WAITS.iter().for_each(|name| drop(response.headers_mut().remove(*name)));
    }
    let is_kept = taken.iter().any(|taken| !taken.is_nothing());
    Ok(if is_kept { kept::until_sent(response, taken) } else { response })
}

/// What one of them says. Once one has begun, others that answer with something else fail before
/// anything is generated.
async fn part(
    context: &Context,
    aim: Aim,
    inputs: &Inputs,
    (field, places): (&'static str, Vec<usize>),
    first: &OnceLock<Kind>,
    delivery: Delivery,
) -> Result<Part, Error> {
    let texts = places.iter().map(|place| inputs.texts[*place].clone()).collect();
    let beside = inputs.texts.len() - places.len();
    let second = |place: &usize| inputs.seconds.get(*place).cloned().flatten();
    let seconds = places.iter().map(second).collect();
    let parts = Inputs { texts, seconds, single: false, beside, ..inputs.clone() };
    let request = Request::Inputs(parts);
    let (answer, deadline) = call::invoke(context, &aim, request, delivery.timeout).await?;
    let alike = |kind: Kind| match *first.get_or_init(|| kind) == kind {
        true => Ok(()),
        false => Err(unlike(field)),
    };
    let mut taken = Taken::default();
    let said = match answer.reply {
        Reply::Generation(reply) => {
            alike(Kind::Text)?;
            taken = reply.taken.clone();
            Said::Generated(call::collect(reply, deadline, &context.notes, 1).await?)
        }
        Reply::Embeddings(reply) => {
            alike(Kind::Vectors)?;
            Said::Vectors(reply)
        }
        Reply::Classification(labels) => {
            alike(Kind::Labels)?;
            Said::Labels(labels)
        }
        Reply::TokenVectors(_) | Reply::Entities(_) | Reply::Fills(_) | Reply::Answers(_) => {
            let expected = "must be one name where tokens are answered";
            return Err(Error::field(field, expected));
        }
        Reply::Scores(_) | Reply::Tokens(_) | Reply::Handled(_) | Reply::OfAdapters => {
            return Err(mismatch());
        }
    };
    Ok(Part { places, said, served: answer.served, taken })
}

/// All parts in the order of the inputs, and the tokens of all prompts.
fn together(parts: Vec<Part>, inputs: usize, field: &'static str) -> Result<(Said, usize), Error> {
    let (mut choices, mut vectors, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    let (mut prompt_tokens, mut seed) = (0, 0);
    for Part { places, said, .. } in parts {
        match said {
            Said::Generated(generated) => {
                prompt_tokens += generated.prompt_tokens.iter().sum::<usize>();
                seed = generated.seed;
                let said = generated.choices.into_iter().zip(generated.prompt_tokens);
                choices.extend(places.into_iter().zip(said));
            }
            Said::Vectors(reply) => {
                prompt_tokens += reply.prompt_tokens;
                vectors.extend(places.into_iter().zip(reply.vectors));
            }
            Said::Labels(said) => labels.extend(places.into_iter().zip(said)),
        }
    }
    if choices.len() == inputs {
        let (choices, prompt_tokens_each) = ordered(choices).into_iter().unzip();
        let prompts = Vec::new();
        let generated = Generated { choices, prompt_tokens: prompt_tokens_each, prompts, seed };
        Ok((Said::Generated(generated), prompt_tokens))
    } else if vectors.len() == inputs {
        let reply = EmbeddingsReply { vectors: ordered(vectors), prompt_tokens };
        Ok((Said::Vectors(reply), prompt_tokens))
    } else if labels.len() == inputs {
        Ok((Said::Labels(ordered(labels)), prompt_tokens))
    } else {
        Err(unlike(field))
    }
}

/// One with a head of its own names labels beside a base that does something else.
fn unlike(field: &'static str) -> Error {
    Error::field(field, "must name adapters that answer alike: text, vectors or labels")
}

fn ordered<T>(mut placed: Vec<(usize, T)>) -> Vec<T> {
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, item)| item).collect()
}
