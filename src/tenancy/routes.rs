//! Names that stand for targets, and which of several a request goes to.

use std::collections::BTreeMap;

use roundhouse_types::{EndpointName, ModelId, TargetName, TenantName};

/// One target that an alias stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The target. Never an alias: a chain of names would be a chain of surprises.
    pub target: ModelId,
    /// Its part of the requests, beside the weights of the others. Above zero.
    pub weight: f64,
}

/// What a name stands for: one target, or several that share its requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Alias {
    routes: Vec<Route>,
}

impl Alias {
    /// Stands for these targets; one at least.
    pub fn new(routes: Vec<Route>) -> Self {
        debug_assert!(!routes.is_empty(), "an alias stands for something");
        debug_assert!(routes.iter().all(|route| route.weight > 0.0), "weights are above zero");
        Self { routes }
    }

    /// The targets, in the order of the settings.
    pub fn targets(&self) -> impl Iterator<Item = &ModelId> {
        self.routes.iter().map(|route| &route.target)
    }

    /// The target that requests with this key go to, among those that `allowed` lets pass; `None`
    /// where it lets none pass. Equal keys go to equal targets, and a change of weights moves no
    /// more requests than it has to (weighted rendezvous hashing: Schindelhauer and Schomaker,
    /// "Weighted Distributed Hash Tables", 2005).
    pub fn choose(&self, key: &[u8], allowed: impl Fn(&ModelId) -> bool) -> Option<&ModelId> {
        let allowed = self.routes.iter().filter(|route| allowed(&route.target));
        draw(key, allowed.map(|it| (it.target.target.as_str(), it.weight, &it.target)))
    }
}

/// The one of several that a key goes to, each with its name and its weight, which is above zero;
/// `None` where there is none. As [`Alias::choose`]: equal keys go to equal names.
pub fn draw<'a, T>(key: &[u8], among: impl Iterator<Item = (&'a str, f64, T)>) -> Option<T> {
    let scored = among.map(|(name, weight, it)| (score(key, name, weight), it));
    scored.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, it)| it)
}

/// The larger, the likelier: `-weight / ln(u)`, with `u` drawn from 0 to 1 by key and name.
fn score(key: &[u8], name: &str, weight: f64) -> f64 {
    let mut drawn = 0xcbf2_9ce4_8422_2325_u64;
    let parts = [key, b"\0", name.as_bytes()];
    for byte in parts.into_iter().flatten() {
        // FNV-1a, and behind it the finaliser of MurmurHash3, since its upper bits mix badly.
        drawn = (drawn ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    drawn = (drawn ^ (drawn >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    drawn = (drawn ^ (drawn >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    drawn ^= drawn >> 33;
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    let part = ((drawn >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -weight / part.ln()
}

/// All aliases: those for everybody, and those of single tenants, which go before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Aliases {
    common: Names,
    own: BTreeMap<TenantName, Names>,
}

type Names = BTreeMap<EndpointName, BTreeMap<TargetName, Alias>>;

impl Aliases {
    /// Adds a name at an endpoint, for one tenant or for all; `false` where it is taken.
    pub fn add(
        &mut self,
        tenant: Option<&TenantName>,
        endpoint: EndpointName,
        name: TargetName,
        alias: Alias,
    ) -> bool {
        let names = match tenant {
            None => &mut self.common,
            Some(tenant) => self.own.entry(tenant.clone()).or_default(),
        };
        let names = names.entry(endpoint).or_default();
        if names.contains_key(&name) {
            return false;
        }
        names.insert(name, alias);
        true
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let own = self.own.values();
        own.chain([&self.common]).flat_map(|names| names.values()).map(BTreeMap::len).sum()
    }

    /// All of them: whose each is (everybody's where absent), where, its name, what it stands for.
    pub fn all(
        &self,
    ) -> impl Iterator<Item = (Option<&TenantName>, &EndpointName, &TargetName, &Alias)> {
        let own = self.own.iter().map(|(tenant, names)| (Some(tenant), names));
        own.chain([(None, &self.common)]).flat_map(|(tenant, names)| {
            let at = names.iter();
            at.flat_map(move |(endpoint, names)| {
                names.iter().map(move |(name, alias)| (tenant, endpoint, name, alias))
            })
        })
    }

    /// What a name stands for when this tenant says it.
    pub fn find(&self, tenant: Option<&TenantName>, asked: &ModelId) -> Option<&Alias> {
        let own = tenant.and_then(|tenant| self.own.get(tenant));
        own.and_then(|names| names.get(&asked.endpoint)?.get(&asked.target))
            .or_else(|| self.common.get(&asked.endpoint)?.get(&asked.target))
    }

    /// The names at an endpoint for this tenant, in their order.
    pub fn of<'a>(
        &'a self,
        tenant: Option<&'a TenantName>,
        endpoint: &'a EndpointName,
    ) -> impl Iterator<Item = (&'a TargetName, &'a Alias)> {
        let mut names: BTreeMap<&TargetName, &Alias> = BTreeMap::new();
        names.extend(self.common.get(endpoint).into_iter().flatten());
        let own = tenant.and_then(|tenant| self.own.get(tenant)?.get(endpoint));
        names.extend(own.into_iter().flatten());
        names.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(target: &str) -> ModelId {
        ModelId { endpoint: "e".parse().unwrap(), target: target.parse().unwrap() }
    }

    fn alias(routes: &[(&str, f64)]) -> Alias {
        let route =
            |(target, weight): &(&str, f64)| Route { target: model(target), weight: *weight };
        Alias::new(routes.iter().map(route).collect())
    }

    fn counted(alias: &Alias, target: &str) -> usize {
        let goes = |key: &u32| alias.choose(&key.to_le_bytes(), |_| true) == Some(&model(target));
        (0..10_000_u32).filter(goes).count()
    }

    #[test]
    fn requests_are_drawn_by_weight_and_equal_keys_go_the_same_way() {
        let alias = alias(&[("v6", 3.0), ("v7", 1.0)]);
        let new = counted(&alias, "v7");
        assert!((2_300..2_700).contains(&new), "{new}");
        let again = alias.choose(b"a user", |_| true);
        assert_eq!(again, alias.choose(b"a user", |_| true));
    }

    #[test]
    fn more_weight_takes_keys_from_others_and_gives_none_away() {
        let (before, after) =
            (alias(&[("v6", 95.0), ("v7", 5.0)]), alias(&[("v6", 90.0), ("v7", 10.0)]));
        for key in 0..10_000_u32 {
            if before.choose(&key.to_le_bytes(), |_| true) == Some(&model("v7")) {
                assert_eq!(after.choose(&key.to_le_bytes(), |_| true), Some(&model("v7")));
            }
        }
        assert!(counted(&after, "v7") > counted(&before, "v7"));
    }

    #[test]
    fn what_a_caller_may_not_use_is_not_drawn() {
        let alias = alias(&[("mine", 0.01), ("yours", 100.0)]);
        for key in 0..100_u32 {
            let drawn = alias.choose(&key.to_le_bytes(), |it| it.target.as_str() == "mine");
            assert_eq!(drawn, Some(&model("mine")));
        }
        assert_eq!(alias.choose(b"", |_| false), None);
    }

    #[test]
    fn a_tenants_own_alias_goes_before_the_common_one() {
        let (mut aliases, acme) = (Aliases::default(), "acme".parse().unwrap());
        let at = |name: &str| ("e".parse().unwrap(), name.parse().unwrap());
        let add = |aliases: &mut Aliases, tenant, name, target| {
            let (endpoint, name) = at(name);
            aliases.add(tenant, endpoint, name, alias(&[(target, 1.0)]))
        };
        assert!(add(&mut aliases, None, "chat", "shared/chat"));
        assert!(add(&mut aliases, Some(&acme), "chat", "acme/chat"));
        assert!(add(&mut aliases, Some(&acme), "own", "acme/own"));
        assert!(!add(&mut aliases, None, "chat", "again"));
        let target = |tenant: Option<&TenantName>, name: &str| {
            Some(aliases.find(tenant, &model(name))?.targets().next().unwrap().target.to_string())
        };
        assert_eq!(target(Some(&acme), "chat").unwrap(), "acme/chat");
        assert_eq!(target(None, "chat").unwrap(), "shared/chat");
        assert_eq!(target(None, "own"), None);
        let names = |tenant: Option<&TenantName>| {
            let endpoint = "e".parse().unwrap();
            aliases.of(tenant, &endpoint).map(|(name, _)| name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(Some(&acme)), ["chat", "own"]);
        assert_eq!(names(None), ["chat"]);
    }
}
