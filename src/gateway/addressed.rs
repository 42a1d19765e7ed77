//! Whom a request at an endpoint asks, decided in one place for all of SageMaker's operations.
//!
//! An inference component that is named goes before all else. Otherwise a production variant answers:
//! the one that is named, else one drawn by weight among those that the caller may use. A variant
//! either has a target of its own, or leaves it to the request to name one.

use std::sync::Arc;

use http::HeaderMap;
use roundhouse_tenancy::draw;
use roundhouse_types::{ModelId, TargetModel, TargetName};

use crate::aim::{self, Aim};
use crate::behind;
use crate::call::Context;
use crate::error::Error;
use crate::permitted::{self, permit};
use crate::sagemaker::headers::Sent;
use crate::sessions::{Bound, unknown};
use crate::state::EndpointFace;
use crate::state::naming::{ALL_TRAFFIC, Serves, Variant};
use crate::target;

/// Whom a request asks, and as what of its endpoint that answers.
#[derive(Debug, Clone)]
pub(crate) struct Addressed {
    /// Whom.
    pub(crate) aim: Aim,
    /// The production variant that answers.
    pub(crate) variant: Arc<str>,
}

/// What a request's headers name.
struct Names {
    adapter: Option<TargetModel>,
    target: Option<TargetModel>,
}

/// Whom a request asks. `elsewhere` names a target where no header does, and is asked only where one
/// is needed.
///
/// # Errors
/// `InvalidRequest` for a variant or component that is not there (or not for this caller), a target
/// that is named where there is one only, and an illegal name; what `elsewhere` says where nothing
/// is named; `ModelNotFound` and `EndpointNotFound` where the caller may use no variant.
pub(crate) fn addressed(
    context: &Context,
    endpoint: &EndpointFace,
    headers: &HeaderMap,
    sent: &Sent<'_>,
    elsewhere: impl FnOnce() -> Result<TargetModel, Error>,
) -> Result<Addressed, Error> {
    without_containers(endpoint)?;
    let adapter = aim::header(headers)?;
    let mut names = Names { adapter, target: target::header(headers)? };
    if let Some(name) = sent.component {
        let is_default = |name: &&str| *name == ALL_TRAFFIC;
        if names.target.is_some() || sent.variant.filter(|it| !is_default(it)).is_some() {
            return Err(Error::request(
                "an inference component is named: the headers of target model and target variant \
                 have no place beside it",
            ));
        }
        return component(context, endpoint, name, names.adapter);
    }
    let variants = named_variants(endpoint, sent.variant)?;
    if endpoint.naming.is_multi_model() {
        if names.target.is_none() && names.adapter.is_none() {
            names.target = Some(elsewhere()?);
        }
        return among(context, endpoint, &variants, &names)?
            .ok_or_else(|| hidden(context, endpoint, sent, &names));
    }
    let told = names.target.take();
    let found = among(context, endpoint, &variants, &names)?;
    let found = found.ok_or_else(|| hidden(context, endpoint, sent, &names))?;
    match told {
        Some(_) => Err(Error::NotMultiModel(endpoint.name.clone())),
        None => Ok(found),
    }
}

/// The same of a request in a session: where it names nobody, whom the session is bound to; else by the
/// session's variant, as long as there is one of its name.
///
/// # Errors
/// `InvalidRequest` where the session is another endpoint's or variant's, and those of [`addressed`].
pub(crate) fn addressed_in(
    context: &Context,
    bound: Option<&Bound>,
    endpoint: &EndpointFace,
    headers: &HeaderMap,
    sent: &Sent<'_>,
    elsewhere: impl FnOnce() -> Result<TargetModel, Error>,
) -> Result<Addressed, Error> {
    let Some(bound) = bound else {
        return addressed(context, endpoint, headers, sent, elsewhere);
    };
    let is_elsewhere = sent.variant.is_some_and(|name| *name != *bound.variant);
    if bound.model.endpoint != endpoint.name || is_elsewhere {
        return Err(unknown().into());
    }
    let is_named = target::header(headers)?.is_some() || aim::header(headers)?.is_some();
    if !is_named && sent.component.is_none() {
        return Ok(Addressed { aim: Aim::at(bound.model.clone()), variant: bound.variant.clone() });
    }
    let variant = endpoint.naming.variants.iter().find(|it| it.name == bound.variant);
    let variant = variant.map(|it| &*it.name).filter(|_| sent.component.is_none());
    addressed(context, endpoint, headers, &Sent { variant, ..*sent }, elsewhere)
}

/// The endpoint's inference component of this name, or an adapter of it. One whose target the caller
/// may not use is none.
///
/// # Errors
/// `InvalidRequest` where there is none, or the adapter's name is illegal.
pub(crate) fn component(
    context: &Context,
    endpoint: &EndpointFace,
    name: &str,
    adapter: Option<TargetModel>,
) -> Result<Addressed, Error> {
    let missing = || {
        let message = format!("inference component {name} not found at endpoint {}", endpoint.name);
        Error::request(message)
    };
    let target = endpoint.naming.components.get(name).ok_or_else(missing)?;
    let own = Aim::at(model(endpoint, target.clone()));
    permit(context, &own).map_err(|_| missing())?;
    let aim = match adapter {
        None => own,
        Some(adapter) => Aim::by_header(target::model(endpoint, &adapter)?, Some(own.model)),
    };
    context.notes.component(name);
    Ok(Addressed { aim, variant: ALL_TRAFFIC.into() })
}

/// The same, where there is one that the caller may use.
pub(crate) fn usable_component(
    context: &Context,
    endpoint: &EndpointFace,
    name: &str,
) -> Option<Addressed> {
    let is_there = endpoint.naming.components.contains_key(name);
    is_there.then(|| component(context, endpoint, name, None).ok()).flatten()
}

/// Whether an endpoint has something that the caller may ask: what answers where the endpoint alone is
/// named, or a component.
pub(crate) fn is_there(context: &Context, endpoint: &EndpointFace) -> bool {
    let mut components = endpoint.naming.components.values();
    answers(context, endpoint) || components.any(|it| may_ask(context, endpoint, it))
}

/// Whether something answers the caller where a request names the endpoint alone: a container, or a
/// variant's target. Where requests name their targets too, those are judged.
pub(crate) fn answers(context: &Context, endpoint: &EndpointFace) -> bool {
    if let Some(containers) = &endpoint.containers {
        return behind::has_any(context, endpoint, containers);
    }
    endpoint.naming.variants.iter().any(|it| match &it.serves {
        Serves::One(target) => may_ask(context, endpoint, target),
        Serves::Named | Serves::Below(_) => true,
    })
}

fn may_ask(context: &Context, endpoint: &EndpointFace, target: &TargetName) -> bool {
    permit(context, &Aim::at(model(endpoint, target.clone()))).is_ok()
}

/// An endpoint with containers has no targets.
///
/// # Errors
/// `InvalidRequest` where it has containers.
pub(crate) fn without_containers(endpoint: &EndpointFace) -> Result<(), Error> {
    if endpoint.containers.is_none() {
        return Ok(());
    }
    let message = format!(
        "endpoint {} has containers in place of models: it takes InvokeEndpoint, response streams, \
         /invocations and OpenAI's routes",
        endpoint.name
    );
    Err(Error::request(message))
}

/// All variants, or the one that is named.
fn named_variants<'a>(
    endpoint: &'a EndpointFace,
    name: Option<&str>,
) -> Result<Vec<&'a Variant>, Error> {
    let all = endpoint.naming.variants.iter();
    let found: Vec<&Variant> = all.filter(|it| name.is_none_or(|name| *it.name == *name)).collect();
    match (found.is_empty(), name) {
        (true, Some(name)) => Err(no_variant(endpoint, name)),
        _ => Ok(found),
    }
}

pub(crate) fn no_variant(endpoint: &EndpointFace, name: &str) -> Error {
    Error::request(format!("variant {name} not found at endpoint {}", endpoint.name))
}

/// The variant that a request goes to, among those that its caller may use; `None` where that is none
/// of them.
fn among(
    context: &Context,
    endpoint: &EndpointFace,
    variants: &[&Variant],
    names: &Names,
) -> Result<Option<Addressed>, Error> {
    let mut usable = Vec::with_capacity(variants.len());
    for variant in variants {
        let aim = under(endpoint, &variant.serves, names)?;
        // A target that a request names itself is judged where it is invoked, as ever.
        let is_named = matches!(variant.serves, Serves::Named);
        if is_named || permit(context, &own(endpoint, &variant.serves, &aim)).is_ok() {
            usable.push((&*variant.name, variant.weight, (*variant, aim)));
        }
    }
    let drawn = draw(&context.draws_by(), usable.into_iter());
    Ok(drawn.map(|(variant, aim)| Addressed { aim, variant: variant.name.clone() }))
}

/// What a variant must be allowed for: its own target, else all that the request asks.
fn own(endpoint: &EndpointFace, serves: &Serves, aim: &Aim) -> Aim {
    match serves {
        Serves::One(target) => Aim::at(model(endpoint, target.clone())),
        Serves::Named | Serves::Below(_) => aim.clone(),
    }
}

/// Whom a variant asks for a request.
fn under(endpoint: &EndpointFace, serves: &Serves, names: &Names) -> Result<Aim, Error> {
    let place = |name: &TargetModel| match serves {
        Serves::Named => target::model(endpoint, name),
        Serves::Below(folder) => {
            let below = target::model(endpoint, name)?;
            let joined = format!("{folder}/{}", below.target);
            target::model(endpoint, &TargetModel::new(joined))
        }
        // An adapter of the one target: named as it lies in the store.
        Serves::One(_) => target::model(endpoint, name),
    };
    let named = match serves {
        Serves::One(target) => Some(model(endpoint, target.clone())),
        Serves::Named | Serves::Below(_) => names.target.as_ref().map(place).transpose()?,
    };
    match (&names.adapter, named) {
        (Some(adapter), base) => Ok(Aim::by_header(place(adapter)?, base)),
        (None, Some(named)) => Ok(Aim::at(named)),
        (None, None) => Err(Error::internal("a request that names nothing was let pass")),
    }
}

/// What is said where a caller may use none of the variants: what is said of what is not there.
fn hidden(context: &Context, endpoint: &EndpointFace, sent: &Sent<'_>, names: &Names) -> Error {
    if let Some(name) = sent.variant.filter(|name| *name != ALL_TRAFFIC) {
        return no_variant(endpoint, name);
    }
    let asked = names.target.as_ref().or(names.adapter.as_ref());
    match asked.filter(|_| endpoint.naming.is_multi_model()) {
        Some(asked) => match target::model(endpoint, asked) {
            Ok(asked) => permitted::not_found(&asked).into(),
            Err(error) => error,
        },
        // By its name it was not found: the request left the endpoint open.
        None if !is_there(context, endpoint) => target::no_default(),
        None => target::no_endpoint(endpoint.name.as_str()),
    }
}

fn model(endpoint: &EndpointFace, target: TargetName) -> ModelId {
    ModelId { endpoint: endpoint.name.clone(), target }
}
