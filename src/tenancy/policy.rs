//! What a caller may use, and how it stands beside others.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use roundhouse_types::{EndpointName, ModelId, TargetName, TenantName};

use crate::caller::{ANONYMOUS, Caller};
use crate::pattern::Pattern;
use crate::routes::{Alias, Aliases};

/// How a tenant stands where several want the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Standing {
    /// Its weight: twice the share is served twice as much while both want more. Above zero.
    pub share: f64,
    /// 0 to 9: who goes first among those that wait. 9 goes before all others.
    pub priority: u8,
}

impl Standing {
    /// The priority of who is given none: some may go before, others behind.
    pub const PRIORITY: u8 = 5;
    /// The highest priority.
    pub const PRIORITY_MAX: u8 = 9;
}

impl Default for Standing {
    fn default() -> Self {
        Self { share: 1.0, priority: Self::PRIORITY }
    }
}

/// What one tenant may do. A list that is empty allows nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grants {
    /// Targets that it may ask.
    pub invoke: Vec<Pattern>,
    /// Those of them that may be loaded for it; others it reaches only while they are loaded.
    pub load: Vec<Pattern>,
    /// Targets that lists show it.
    pub see: Vec<Pattern>,
    /// How it stands beside others.
    pub standing: Standing,
}

impl Grants {
    /// What a tenant has that the settings say nothing of: all below its own name.
    pub fn own(tenant: &TenantName) -> Self {
        let own = vec![Pattern::below(tenant.as_str())];
        let standing = Standing::default();
        Self { invoke: own.clone(), load: own.clone(), see: own, standing }
    }
}

/// Whether a caller may do something with a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may ask it, and have it loaded.
    Allowed,
    /// It may ask it while it is loaded.
    OnlyLoaded,
    /// For this caller there is no such model.
    Hidden,
}

/// What a caller may use.
enum Access<'a> {
    All,
    Granted(Cow<'a, Grants>),
    Nothing,
}

/// Who may use what. Immutable: a change of the settings makes another one
/// (see [`Current`](crate::Current)).
///
/// 1. Where nobody is asked who they are, every caller may use everything.
/// 2. Else a tenant that is not listed may use nothing; where none is listed, each has its own
///    ([`Grants::own`]). Who is let in without a credential has what is granted to the tenant
///    `anonymous`.
/// 3. What [`Policy::verdict`] hides is decided by the name alone, so that what exists and what does
///    not take the same way.
#[derive(Debug, Default)]
pub struct Policy {
    tenants: HashMap<TenantName, Grants>,
    aliases: Aliases,
    /// Whether callers are asked who they are.
    enforced: bool,
    /// Targets that the operator names as bases of adapters: whoever may use the adapter may use
    /// these through it.
    bases: BTreeMap<EndpointName, BTreeSet<TargetName>>,
}

impl Policy {
    /// A policy with these tenants. `enforced` says whether callers are asked who they are:
    /// where not, tenants' grants bind nobody.
    pub fn new(tenants: impl IntoIterator<Item = (TenantName, Grants)>, enforced: bool) -> Self {
        Self { tenants: tenants.into_iter().collect(), enforced, ..Self::default() }
    }

    /// The same policy with names that stand for targets.
    #[must_use]
    pub fn with_aliases(self, aliases: Aliases) -> Self {
        Self { aliases, ..self }
    }

    /// The same policy with the targets that the operator has named as bases of adapters.
    #[must_use]
    pub fn with_bases(self, bases: BTreeMap<EndpointName, BTreeSet<TargetName>>) -> Self {
        Self { bases, ..self }
    }

    /// How a tenant stands beside others; as everybody where nothing is said of it.
    pub fn standing(&self, tenant: &TenantName) -> Standing {
        self.tenants.get(tenant).map(|grants| grants.standing).unwrap_or_default()
    }

    fn access(&self, caller: &Caller) -> Access<'_> {
        let listed = |name: &str| {
            let grants = self.tenants.get(name).map(Cow::Borrowed);
            grants.map_or(Access::Nothing, Access::Granted)
        };
        match &caller.tenant {
            _ if !self.enforced => Access::All,
            None => listed(ANONYMOUS),
            Some(tenant) if self.tenants.is_empty() && tenant.as_str() != ANONYMOUS => {
                Access::Granted(Cow::Owned(Grants::own(tenant)))
            }
            Some(tenant) => listed(tenant.as_str()),
        }
    }

    /// Whether a caller may ask a model, decided by its name alone.
    pub fn verdict(&self, caller: &Caller, model: &ModelId) -> Verdict {
        let grants = match self.access(caller) {
            Access::All => return Verdict::Allowed,
            Access::Nothing => return Verdict::Hidden,
            Access::Granted(grants) => grants,
        };
        if !any(&grants.invoke, model) {
            Verdict::Hidden
        } else if any(&grants.load, model) {
            Verdict::Allowed
        } else {
            Verdict::OnlyLoaded
        }
    }

    /// Whether a caller may ask a model at all.
    pub fn may_invoke(&self, caller: &Caller, model: &ModelId) -> bool {
        self.verdict(caller, model) != Verdict::Hidden
    }

    /// What lists show a caller; `None` is everything.
    pub fn sees(&self, caller: &Caller) -> Option<Vec<Pattern>> {
        match self.access(caller) {
            Access::All => None,
            Access::Nothing => Some(Vec::new()),
            Access::Granted(grants) => Some(grants.into_owned().see),
        }
    }

    /// Whether an endpoint has anything for a caller. One that has not is as good as missing.
    pub fn reaches(&self, caller: &Caller, endpoint: &EndpointName) -> bool {
        let grants = match self.access(caller) {
            Access::All => return true,
            Access::Nothing => return false,
            Access::Granted(grants) => grants,
        };
        grants.invoke.iter().chain(&grants.see).any(|pattern| pattern.is_at(endpoint))
    }

    /// Whether a caller's grants name this endpoint, rather than targets at any, or an alias there stands
    /// for what it may ask.
    pub fn names(&self, caller: &Caller, endpoint: &EndpointName) -> bool {
        let grants = match self.access(caller) {
            Access::All => return true,
            Access::Nothing => return false,
            Access::Granted(grants) => grants,
        };
        let mut patterns = grants.invoke.iter().chain(&grants.see);
        let is_usable = |alias: &Alias| alias.targets().any(|it| any(&grants.invoke, it));
        patterns.any(|pattern| pattern.endpoint() == Some(endpoint))
            || self.aliases.of(caller.tenant.as_ref(), endpoint).any(|(_, it)| is_usable(it))
    }

    /// The alias of this name, for this caller: its own, else one for all. Whether the caller may
    /// use what it stands for is another question.
    pub fn alias(&self, caller: &Caller, asked: &ModelId) -> Option<&Alias> {
        self.aliases.find(caller.tenant.as_ref(), asked)
    }

    /// The aliases of an endpoint that a list shows a caller, in the order of their names: those
    /// that stand for a target which it may see.
    pub fn aliases_seen<'a>(
        &'a self,
        caller: &'a Caller,
        endpoint: &'a EndpointName,
    ) -> impl Iterator<Item = (&'a TargetName, &'a Alias)> {
        let seen = self.sees(caller);
        self.aliases.of(caller.tenant.as_ref(), endpoint).filter(move |(_, alias)| {
            seen.as_ref().is_none_or(|seen| alias.targets().any(|target| any(seen, target)))
        })
    }

    /// Whether an adapter may stand on a base that its own files name. What is loaded serves
    /// whoever may ask for it, so everybody who may use the adapter must be allowed to use the base,
    /// and everybody who may have the adapter loaded to have the base loaded; else a tenant could
    /// reach another's model, or load what is not to be loaded for it, by uploading a file that
    /// names it. What the operator has named as a base is for all.
    pub fn may_build_on(&self, adapter: &ModelId, base: &ModelId) -> bool {
        if !self.enforced
            || self.bases.get(&base.endpoint).is_some_and(|it| it.contains(&base.target))
        {
            return true;
        }
        if self.tenants.is_empty() {
            let first =
                |model: &ModelId| model.target.as_str().split('/').next().map(str::to_owned);
            return first(adapter) == first(base);
        }
        self.tenants.values().all(|it| {
            let loads = !any(&it.load, adapter) || any(&it.load, base);
            !any(&it.invoke, adapter) || any(&it.invoke, base) && loads
        })
    }
}

fn any(patterns: &[Pattern], model: &ModelId) -> bool {
    patterns.iter().any(|pattern| pattern.matches(model))
}

#[cfg(test)]
mod tests;
