//! Whether a caller may ask what it names, and which target that stands for.
//!
//! The one place where both are decided: every face calls a model through `call::invoke`, which comes
//! here before anything is looked up. So what a caller may not see and what does not exist take
//! the same way, to the byte and to the microsecond.

use roundhouse_tenancy::{Caller, Verdict};
use roundhouse_types::{ErrorKind, Failure, ModelId};

use crate::aim::Aim;
use crate::call::Context;
use crate::error::Error;

/// What a caller may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Permitted {
    /// The target: never an alias.
    pub(crate) model: ModelId,
    /// What it must be an adapter of.
    pub(crate) base: Option<ModelId>,
    /// Whether it may be asked only while it is loaded.
    pub(crate) only_loaded: bool,
}

/// What the names of a request stand for, where the caller may ask it.
///
/// # Errors
/// `ModelNotFound` where the caller may not ask the model or the base that it names.
pub(crate) fn permit(context: &Context, aim: &Aim) -> Result<Permitted, Error> {
    if aim.of_platform {
        let (model, base) = (aim.model.clone(), aim.base.clone());
        return Ok(Permitted { model, base, only_loaded: false });
    }
    let policy = &context.offered.policy;
    let base = match &aim.base {
        None => None,
        Some(base) => {
            let several =
                policy.alias(&context.caller, base).is_some_and(|it| it.targets().nth(1).is_some());
            let (base, _) = routed(context, base)?;
            // Of a name that stands for several there is nothing to hold an adapter against.
            (!several).then_some(base)
        }
    };
    let (model, verdict) = routed(context, &aim.model)?;
    Ok(Permitted { model, base, only_loaded: verdict == Verdict::OnlyLoaded })
}

/// The target that a name stands for. An alias that stands for nothing which the caller may ask is
/// none for it: then the name is a target's, or nobody's.
fn routed(context: &Context, asked: &ModelId) -> Result<(ModelId, Verdict), Error> {
    let (policy, caller) = (&context.offered.policy, &context.caller);
    let stands_for = policy.alias(caller, asked).and_then(|alias| {
        alias.choose(&context.draws_by(), |target| policy.may_invoke(caller, target))
    });
    let model = stands_for.unwrap_or(asked);
    match policy.verdict(caller, model) {
        Verdict::Hidden => Err(Error::Failed(not_found(asked))),
        verdict => Ok((model.clone(), verdict)),
    }
}

/// What is said of a model that is not there, or not for this caller.
pub(crate) fn not_found(asked: &ModelId) -> Failure {
    Failure::new(ErrorKind::ModelNotFound, format!("model '{asked}' not found"))
}

/// A failure as a caller is told it, `target` being what the name stands for. Where nobody is asked
/// who they are, all of it; tenants learn nothing of stores, buckets, keys and folders, which are the
/// operator's; nothing of queues, devices and who else is on them, but for their own targets; and an
/// absent model's failure is the one that a hidden model has.
pub(crate) fn told(
    caller: &Caller,
    asked: &ModelId,
    target: &ModelId,
    failure: Failure,
) -> Failure {
    let Some(tenant) = &caller.tenant else { return failure };
    let is_own = target.target.as_str().split('/').next() == Some(tenant.as_str());
    let kind = failure.kind();
    let instead = match kind {
        ErrorKind::ModelNotFound => return not_found(asked),
        ErrorKind::StoreDenied => format!("the store denies access to model '{asked}'"),
        ErrorKind::StoreUnavailable => format!("the store of model '{asked}' is unavailable"),
        ErrorKind::Internal => format!("model '{asked}' failed by a fault of the server"),
        ErrorKind::TooLarge if !is_own => format!("there is no room for model '{asked}'"),
        ErrorKind::Overloaded if !is_own => format!("model '{asked}' is busy"),
        ErrorKind::NotReady if !is_own => format!("model '{asked}' is not ready"),
        ErrorKind::NotReady | ErrorKind::TooLarge if failure.message().contains("://") => {
            format!("model '{asked}' is not ready")
        }
        // What an alias stands for is not the caller's to know.
        _ if asked != target && failure.message().contains(target.target.as_str()) => failure
            .message()
            .replace(&target.to_string(), &asked.to_string())
            .replace(target.target.as_str(), asked.target.as_str()),
        _ => return failure,
    };
    tracing::debug!(%failure, model = %asked, "a failure is told in fewer words");
    Failure::new(kind, instead).with_retry(failure.retry())
}
