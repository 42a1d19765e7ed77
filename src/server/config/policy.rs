//! What tenants may use (`[[tenant]]`), and names that stand for targets (`[[alias]]`).

use roundhouse_tenancy::{Alias, Aliases, Grants, Pattern, Route, Standing};
use roundhouse_types::{EndpointName, ModelId, TargetName, TenantName};

use super::keys::{self, ALIAS_KEYS, ROUTE_KEYS};
use super::raw::Sources;
use super::{Config, Endpoint, Fault, Tenant};

/// Patterns of one list. Every request is held against them one by one.
const PATTERNS_MAX: usize = 256;
/// Targets that one alias stands for.
const ROUTES_MAX: usize = 64;
/// The endpoint that is meant where an alias names none and there are several, as in requests.
const DEFAULT_ENDPOINT: &str = "default";

impl Config {
    /// Says which grants bind nobody because callers are not asked who they are, and what to add.
    /// Floors, ceilings, shares and quotas hold all the same: by the first segment of a target.
    pub(crate) fn idle_grants(&self) -> Option<String> {
        let has_written = |tenant: &&Tenant| !tenant.written_grants.is_empty();
        let mut tenants = self.tenants.iter().filter(has_written);
        let first = tenants.next().filter(|_| !self.asks_callers())?;
        let (keys, name) = (first.written_grants.join(", "), &first.name);
        let more = match tenants.count() {
            0 => String::new(),
            more => format!(" (and those of {more} more)"),
        };
        Some(format!(
            "callers are not asked who they are, so {keys} of tenant {name}{more} holds for nobody: \
             set auth.keys (--keys), auth.oidc_issuer, auth.aws_sts, auth.proxy_networks or tls.client_ca"
        ))
    }
}

/// What a tenant may use, and how it stands.
pub(super) fn grants(
    entry: &toml::Table,
    at: &str,
    (name, share): (Option<&TenantName>, f64),
    faults: &mut Vec<Fault>,
) -> Grants {
    let priority = match entry.get("priority").map(toml::Value::as_integer) {
        None => Standing::PRIORITY,
        Some(number) => {
            let small = number.and_then(|number| u8::try_from(number).ok());
            small.filter(|number| *number <= Standing::PRIORITY_MAX).unwrap_or_else(|| {
                faults
                    .push(Fault::new(format!("{at}.priority"), "expected a whole number, 0 to 9"));
                Standing::PRIORITY
            })
        }
    };
    let standing = Standing { share, priority };
    let own = name.map(Grants::own).unwrap_or_default();
    let invoke = patterns(entry, "invoke", at, faults).unwrap_or(own.invoke);
    let load = patterns(entry, "load", at, faults).unwrap_or_else(|| invoke.clone());
    let see = patterns(entry, "see", at, faults).unwrap_or_else(|| invoke.clone());
    Grants { invoke, load, see, standing }
}

fn patterns(
    entry: &toml::Table,
    key: &str,
    at: &str,
    faults: &mut Vec<Fault>,
) -> Option<Vec<Pattern>> {
    let value = entry.get(key)?;
    let key = format!("{at}.{key}");
    let texts = value.as_array().map(|list| list.iter().map(toml::Value::as_str));
    let Some(Some(texts)) = texts.map(Iterator::collect::<Option<Vec<&str>>>) else {
        let expected = "expected a list of patterns in quotes, like [\"acme/**\"]";
        faults.push(Fault::new(key, expected));
        return Some(Vec::new());
    };
    if texts.len() > PATTERNS_MAX {
        let message = format!("has {} patterns, {PATTERNS_MAX} are the most", texts.len());
        faults.push(Fault::new(&key, message));
    }
    let mut patterns = Vec::with_capacity(texts.len());
    for text in texts {
        match text.parse() {
            Ok(pattern) => patterns.push(pattern),
            Err(why) => faults.push(Fault::new(&key, format!("'{text}' is no pattern: {why}"))),
        }
    }
    Some(patterns)
}

/// Patterns for endpoints that there are not: they would cover nothing, for ever.
pub(super) fn check_endpoints(
    tenants: &[Tenant],
    endpoints: &[Endpoint],
    sources: &mut Sources<'_>,
) {
    for tenant in tenants {
        let Grants { invoke, load, see, .. } = &tenant.grants;
        for (key, patterns) in [("invoke", invoke), ("load", load), ("see", see)] {
            let unknown = patterns.iter().filter(|pattern| {
                pattern.endpoint().is_some_and(|name| endpoints.iter().all(|it| it.name != *name))
            });
            // Those that follow from `invoke` are told there.
            for pattern in unknown.filter(|it| key == "invoke" || !invoke.contains(it)) {
                let message = format!("'{pattern}': no endpoint has this name");
                sources.fault(format!("tenant.{}.{key}", tenant.name), message);
            }
        }
    }
}

/// The names that the file gives to targets.
pub(super) fn aliases(
    tenants: &[Tenant],
    endpoints: &[Endpoint],
    sources: &mut Sources<'_>,
) -> Aliases {
    let mut aliases = Aliases::default();
    let Some(value) = sources.file.get("alias").cloned() else { return aliases };
    let entries: Option<Vec<&toml::Table>> =
        value.as_array().and_then(|list| list.iter().map(toml::Value::as_table).collect());
    let Some(entries) = entries else {
        sources.fault("alias", "is a list: write [[alias]] and its keys below");
        return aliases;
    };
    let mut read = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let mut reader = Reader { entry, at: format!("alias[{index}]"), faults: Vec::new() };
        let named = reader.named(tenants, endpoints);
        sources.faults(reader.faults);
        let Some(Named { tenant, endpoint, name, alias }) = named else { continue };
        if !aliases.add(tenant.as_ref(), endpoint.clone(), name.clone(), alias.clone()) {
            let message = format!("'{name}' is the name of another alias");
            sources.fault(format!("alias[{index}].name"), message);
        }
        read.push((index, tenant, alias));
    }
    for (index, tenant, alias) in read {
        for target in alias.targets().filter(|it| aliases.find(tenant.as_ref(), it).is_some()) {
            let message = format!("'{}' is itself an alias: name the target", target.target);
            sources.fault(format!("alias[{index}]"), message);
        }
    }
    aliases
}

struct Named {
    tenant: Option<TenantName>,
    endpoint: EndpointName,
    name: TargetName,
    alias: Alias,
}

/// Reads the keys of one `[[alias]]`.
struct Reader<'a> {
    entry: &'a toml::Table,
    at: String,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn named(&mut self, tenants: &[Tenant], endpoints: &[Endpoint]) -> Option<Named> {
        self.faults = keys::unknown_in(self.entry, ALIAS_KEYS, &self.at);
        let name = self.target(self.entry, "name", &self.at.clone());
        let tenant = self.tenant(tenants);
        let endpoint = self.endpoint(endpoints);
        let routes = self.routes();
        let (endpoint, name) = (endpoint?, name?);
        let routes: Vec<Route> = routes?
            .into_iter()
            .map(|(target, weight)| Route {
                target: ModelId { endpoint: endpoint.clone(), target },
                weight,
            })
            .collect();
        Some(Named { tenant: tenant?, endpoint, name, alias: Alias::new(routes) })
    }

    /// The tenant whose name it is; `Some(None)` for everybody's.
    fn tenant(&mut self, tenants: &[Tenant]) -> Option<Option<TenantName>> {
        let Some(value) = self.entry.get("tenant") else { return Some(None) };
        let name = value.as_str();
        if !tenants.iter().any(|tenant| Some(tenant.name.as_str()) == name) {
            self.fault("tenant", "is the name of no [[tenant]]");
            return None;
        }
        Some(Some(name?.parse().ok()?))
    }

    fn endpoint(&mut self, endpoints: &[Endpoint]) -> Option<EndpointName> {
        let asked = match self.entry.get("endpoint") {
            Some(value) => value.as_str().unwrap_or_default(),
            None => match endpoints {
                // The settings lack one, which is told.
                [] => return None,
                [only] => return Some(only.name.clone()),
                _ => DEFAULT_ENDPOINT,
            },
        };
        let found = endpoints.iter().find(|endpoint| endpoint.name.as_str() == asked);
        if found.is_none() {
            let missing = self.entry.get("endpoint").is_none();
            self.fault(
                "endpoint",
                match missing {
                    true => "is missing: there are several endpoints and none is called default",
                    false => "is the name of no [[endpoint]]",
                },
            );
        }
        found.map(|endpoint| endpoint.name.clone())
    }

    fn routes(&mut self) -> Option<Vec<(TargetName, f64)>> {
        let at = self.at.clone();
        let value = match (self.entry.get("target"), self.entry.get("routes")) {
            (Some(_), None) => {
                return Some(vec![(self.target(self.entry, "target", &at)?, 1.0)]);
            }
            (None, Some(value)) => value,
            (None, None) => {
                self.fault(
                    "target",
                    "is missing: what the name stands for, or routes with weights",
                );
                return None;
            }
            (Some(_), Some(_)) => {
                self.fault("routes", "stands beside target: write one of them");
                return None;
            }
        };
        let entries: Option<Vec<&toml::Table>> =
            value.as_array().and_then(|list| list.iter().map(toml::Value::as_table).collect());
        let Some(entries) = entries.filter(|it| (1..=ROUTES_MAX).contains(&it.len())) else {
            let example = "[{ target = \"acme/v7\", weight = 1 }]";
            self.fault("routes", format!("expected a list of 1 to {ROUTES_MAX}, like {example}"));
            return None;
        };
        let mut routes: Vec<(TargetName, f64)> = Vec::with_capacity(entries.len());
        for (index, route) in entries.into_iter().enumerate() {
            let at = format!("{at}.routes[{index}]");
            self.faults.extend(keys::unknown_in(route, ROUTE_KEYS, &at));
            let weight = self.weight(route, &at);
            let target = self.target(route, "target", &at)?;
            if routes.iter().any(|(other, _)| *other == target) {
                let message = format!("'{target}' is the target of another route");
                self.faults.push(Fault::new(format!("{at}.target"), message));
            }
            routes.push((target, weight));
        }
        Some(routes)
    }

    fn weight(&mut self, route: &toml::Table, at: &str) -> f64 {
        let Some(value) = route.get("weight") else { return 1.0 };
        let number = value.as_float().or_else(|| value.as_integer().map(super::tenants::whole));
        number.filter(|number| (0.001..=1000.0).contains(number)).unwrap_or_else(|| {
            let expected = "expected a number, 0.001 to 1000; leave out a route that gets nothing";
            self.faults.push(Fault::new(format!("{at}.weight"), expected));
            1.0
        })
    }

    fn target(&mut self, entry: &toml::Table, key: &str, at: &str) -> Option<TargetName> {
        let why = match entry.get(key).map(|value| value.as_str().map(str::parse::<TargetName>)) {
            Some(Some(Ok(target))) => match never_named(&target) {
                None => return Some(target),
                Some(why) => why.to_owned(),
            },
            Some(Some(Err(why))) => format!("is not a target: {why}"),
            Some(None) => "expected a target's name in quotes".into(),
            None => "is missing".into(),
        };
        self.faults.push(Fault::new(format!("{at}.{key}"), why));
        None
    }

    fn fault(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push(Fault::new(format!("{}.{key}", self.at), message));
    }
}

/// Why no store would hold a target of this name: it is something else.
fn never_named(target: &TargetName) -> Option<&'static str> {
    let first = target.as_str().split('/').next().unwrap_or_default();
    if target.as_str().split('/').any(|segment| ["*", "**"].contains(&segment)) {
        Some("is a pattern: an alias stands for targets, name them")
    } else if first.contains(':') {
        Some("names an endpoint: say that in the alias's own key endpoint")
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
