//! Whether a caller may ask what it names, and which target that stands for.
//!
//! The one place where both are decided: every face calls a model through `call::invoke`, which comes
//! here before anything is looked up. So what a caller may not see and what does not exist take
//! the same way, to the byte and to the microsecond.

use roundhouse_tenancy::{Caller, Verdict};
use roundhouse_types::{Detail, ErrorKind, Failure, ModelId, TargetName};

use crate::aim::Aim;
use crate::call::Context;
use crate::container::adapters;
use crate::error::Error;

/// What a failure's words have where they say where the operator keeps things.
const PLACES: [&str; 3] = ["://", " /", "'/"];

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

/// Whether the caller may know that a model is there.
pub(crate) fn may_know(context: &Context, model: &ModelId) -> bool {
    let (policy, caller) = (&context.offered.policy, &context.caller);
    policy.sees(caller).is_none_or(|seen| seen.iter().any(|it| it.matches(model)))
        || policy.verdict(caller, model) != Verdict::Hidden
}

/// A failure of what a request asked, `target` being what its name stands for, as its caller is told
/// it. The platform of the container contract has put the models there itself, and is told all.
pub(crate) fn refused(context: &Context, aim: &Aim, target: &ModelId, failure: Failure) -> Error {
    if let Some(&Detail::OtherBase { is_adapter }) = failure.detail() {
        return other_base(context, aim, target, is_adapter);
    }
    // Beside the one model of a platform there are adapters that it registered, and no store.
    let is_alone = context.gateway.container.as_ref().is_some_and(|face| !face.loads);
    if failure.kind() == ErrorKind::ModelNotFound
        && aim.base.is_some()
        && (aim.of_platform || is_alone)
    {
        return adapters::none_such(aim.model.target.as_str());
    }
    if aim.of_platform {
        return failure.into();
    }
    told(&context.caller, &aim.model, target, failure).into()
}

/// What is said of a model that is no adapter of what was named beside it: by the names that the
/// request has for both, and by its base's where the caller may know that.
fn other_base(context: &Context, aim: &Aim, target: &ModelId, is_adapter: bool) -> Error {
    let name = &aim.model.target;
    let beside = aim.base.as_ref().map_or("", |base| base.target.as_str());
    let is = match base_of(context, aim, target).filter(|_| is_adapter) {
        Some(base) => format!("is an adapter of '{base}', not of '{beside}'"),
        None if is_adapter => format!("is not an adapter of '{beside}'"),
        None => format!("is no adapter, and was named as one of '{beside}'"),
    };
    let instead = match is_adapter {
        true => "name it beside its own base, or alone",
        false => "name it alone",
    };
    match aim.field {
        Some(field) => Error::field(field, &format!("names '{name}', which {is}: {instead}")),
        None => Error::input(format!("'{name}' {is}: {instead}")),
    }
}

/// What an adapter that is loaded builds on, where the caller may know it.
fn base_of(context: &Context, aim: &Aim, adapter: &ModelId) -> Option<TargetName> {
    if aim.of_platform {
        let face = context.gateway.container.as_ref()?;
        return Some(face.adapters.get(adapter.target.as_str())?.base?.target);
    }
    let endpoint = context.endpoint(adapter.endpoint.as_str())?;
    let target = (endpoint.base)(&adapter.target)?;
    let base = ModelId { endpoint: adapter.endpoint.clone(), target };
    may_know(context, &base).then_some(base.target)
}

/// A failure as a caller is told it, `target` being what the name stands for: nothing of stores, buckets,
/// keys and folders, which are the operator's, whose log and `explain` have them. Where callers are asked
/// who they are, tenants learn nothing of queues, devices and who else is on them, but for their own
/// targets, and an absent model's failure is the one that a hidden model has.
pub(crate) fn told(
    caller: &Caller,
    asked: &ModelId,
    target: &ModelId,
    failure: Failure,
) -> Failure {
    let tells_place = PLACES.iter().any(|place| failure.message().contains(place));
    let first = target.target.as_str().split('/').next();
    let (is_tenant, is_own) = match &caller.tenant {
        Some(tenant) => (true, first == Some(tenant.as_str())),
        None if !tells_place => return failure,
        None => (false, true),
    };
    let kind = failure.kind();
    let instead = match kind {
        ErrorKind::ModelNotFound if is_tenant => return not_found(asked),
        ErrorKind::ModelNotFound => return not_found(asked).with_retry(failure.retry()),
        ErrorKind::StoreDenied => format!("the store denies access to model '{asked}'"),
        ErrorKind::StoreUnavailable => format!("the store of model '{asked}' is unavailable"),
        ErrorKind::Internal => format!("model '{asked}' failed by a fault of the server"),
        ErrorKind::TooLarge if !is_own => format!("there is no room for model '{asked}'"),
        ErrorKind::Overloaded if !is_own => format!("model '{asked}' is busy"),
        ErrorKind::NotReady if !is_own => format!("model '{asked}' is not ready"),
        ErrorKind::NotReady | ErrorKind::TooLarge if tells_place => {
            format!("model '{asked}' is not ready")
        }
        // What an alias stands for is not the caller's to know.
        _ if is_tenant && asked != target && failure.message().contains(target.target.as_str()) => {
            failure.message().replace(target.target.as_str(), asked.target.as_str())
        }
        _ => return failure,
    };
    match kind {
        // Nobody else says why.
        ErrorKind::Internal => tracing::error!(%failure, model = %asked, "a fault of ours"),
        _ => tracing::debug!(%failure, model = %asked, "a failure is told in fewer words"),
    }
    let why = if is_tenant { "" } else { ": the server's log says why" };
    let told = Failure::new(kind, instead + why).with_retry(failure.retry());
    // What a model said itself is its answer.
    let told = match failure.status() {
        Some(status) => told.with_status(status),
        None => told,
    };
    match failure.detail() {
        Some(detail) => told.with_detail(detail.clone()),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::{Debug, Write};
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::{Event, Level, Metadata, Subscriber, span};

    use super::*;

    /// What is logged, with its levels.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<(Level, String)>>>);

    impl Subscriber for Log {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut words = Words(String::new());
            event.record(&mut words);
            self.0.lock().unwrap().push((*event.metadata().level(), words.0));
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    struct Words(String);

    impl Visit for Words {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            write!(self.0, "{field}={value:?} ").unwrap();
        }
    }

    #[test]
    fn what_clients_are_not_told_of_our_faults_is_in_the_log_as_an_error() {
        let model = ModelId { endpoint: "ep".parse().unwrap(), target: "a".parse().unwrap() };
        for (kind, level) in
            [(ErrorKind::Internal, Level::ERROR), (ErrorKind::StoreDenied, Level::DEBUG)]
        {
            let log = Log::default();
            let failure = Failure::new(kind, "cannot read /srv/models/a: no space");
            let told = tracing::subscriber::with_default(log.clone(), || {
                told(&Caller::anonymous(), &model, &model, failure)
            });
            assert!(!told.message().contains("/srv"), "{told}");
            let logged = log.0.lock().unwrap();
            assert_eq!(logged.len(), 1, "{logged:?}");
            let (found, words) = &logged[0];
            assert_eq!(*found, level);
            assert!(words.contains("cannot read /srv/models/a: no space"), "{words}");
        }
    }
}
