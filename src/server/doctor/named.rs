//! Whether targets that the settings name are in their stores.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use roundhouse_gateway::Serves;
use roundhouse_store::{Catalog, Freshness};
use roundhouse_types::{ErrorKind, TargetName};
use tokio::time::{Instant, timeout_at};

use super::Finding;
use super::stores::{PATIENCE, quick};
use crate::config::{Config, Endpoint, Mount};
use crate::error::count;

/// Names of an endpoint that are looked for, of however many.
const LOOKED_FOR: usize = 256;
/// At a time: enough to hide round trips.
const AT_A_TIME: usize = 8;

/// Looks for what stands behind aliases, components and variants, and for what is loaded, kept or a base.
/// A store that does not answer is told by others.
pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let until = Instant::now() + PATIENCE;
    let endpoints = config.endpoints.iter().filter(|it| !it.mounts.is_empty());
    let looks = endpoints.map(|endpoint| async move {
        match names(config, endpoint) {
            names if names.is_empty() => Vec::new(),
            names => at(endpoint, names, until).await,
        }
    });
    // Side by side: one whose store does not answer takes none of the others' time.
    join_all(looks).await.into_iter().flatten().collect()
}

/// Each target that the settings name at an endpoint, and as what.
fn names(config: &Config, endpoint: &Endpoint) -> BTreeMap<TargetName, String> {
    let mut names = BTreeMap::new();
    let mut add = |target: &TargetName, what: String| {
        names.entry(target.clone()).or_insert(what);
    };
    let aliases = config.aliases.all().filter(|(_, at, ..)| **at == endpoint.name);
    for (_, _, name, alias) in aliases {
        alias.targets().for_each(|model| add(&model.target, format!("alias '{name}'")));
    }
    for (name, target) in &endpoint.naming.components {
        add(target, format!("component '{name}'"));
    }
    for variant in &endpoint.naming.variants {
        if let Serves::One(target) = &variant.serves {
            add(target, format!("variant '{}'", variant.name));
        }
    }
    endpoint.preload.iter().for_each(|target| add(target, "preload".to_owned()));
    endpoint.keep.iter().for_each(|target| add(target, "keep".to_owned()));
    for (name, target) in &endpoint.bases {
        add(target, format!("the base '{name}'"));
    }
    names
}

async fn at(
    endpoint: &Endpoint,
    names: BTreeMap<TargetName, String>,
    until: Instant,
) -> Vec<Finding> {
    let check = format!("names of endpoint {}", endpoint.name);
    let mounts = endpoint.mounts.iter().map(Mount::to_store).collect();
    let connecting = Catalog::connect(endpoint.name.clone(), mounts, quick());
    let Ok(Ok(catalog)) = timeout_at(until, connecting).await else { return Vec::new() };
    let all = names.len();
    let looked = |(target, what): (TargetName, String)| {
        let catalog = &catalog;
        async move {
            let looked = timeout_at(until, catalog.resolve(&target, Freshness::Cached)).await;
            let is_there = is_there(looked.ok()?.err().map(|it| it.kind()))?;
            Some((!is_there).then_some((target, what)))
        }
    };
    let looks = stream::iter(names.into_iter().take(LOOKED_FOR)).map(looked);
    let looked: Vec<_> = looks.buffered(AT_A_TIME).collect().await;
    let known: Vec<_> = looked.into_iter().flatten().collect();
    let (told, missing) = (known.len(), known.into_iter().flatten());
    let missing: Vec<_> = missing.collect();
    let there = told - missing.len();
    let mut findings = Vec::new();
    if missing.is_empty() && there > 0 {
        let there = match there == all {
            true => count(all, "target"),
            false => format!("{there} of {}", count(all, "target")),
        };
        findings.push(Finding::ok(check.clone(), format!("{there} there")));
    }
    findings.extend(missing.into_iter().map(|(target, what)| {
        Finding::odd(
            check.clone(),
            format!("{what} stands for '{target}', which is not in the store"),
            "upload it or name another: until then its requests are answered that it is not there; \
             `roundhouse survey` lists what is",
        )
    }));
    findings
}

/// Whether a target is in its store, by what failed as it was looked for; `None` where that says nothing
/// of it.
fn is_there(failed: Option<ErrorKind>) -> Option<bool> {
    match failed {
        // What is wrong with it is told by those that look into it.
        None | Some(ErrorKind::ModelInvalid) => Some(true),
        Some(ErrorKind::ModelNotFound) => Some(false),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use crate::cli::ServeFlags;

    #[tokio::test]
    async fn names_that_lead_to_nothing_are_told_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["there", "broken"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
            std::fs::write(folder.path().join(name).join("config.json"), "{}").unwrap();
        }
        let found = async |names: &str| {
            let text = format!(
                "version = 1\n[[endpoint]]\nname = \"e\"\n{names}\n[[endpoint.mount]]\n\
                 uri = \"file://{}/\"\n",
                folder.path().display()
            );
            let flags = ServeFlags::default();
            let config = Config::parse(Some(&text), &|_| None, &flags).unwrap();
            look(&config).await
        };
        assert_eq!(found("").await, [], "nothing is named");
        let good = found("preload = [\"there\"]\nkeep = [\"broken\", \"there\"]").await;
        assert_eq!((good[0].state, good[0].message.as_str()), (State::Ok, "2 targets there"));
        let named = "preload = [\"there\", \"v1\"]\n\
                     [[endpoint.component]]\nname = \"part\"\ntarget = \"v2\"";
        let told: Vec<_> =
            found(named).await.into_iter().map(|it| (it.state, it.message)).collect();
        let odd = |text: &str| (State::Odd, format!("{text}, which is not in the store"));
        let want = [odd("preload stands for 'v1'"), odd("component 'part' stands for 'v2'")];
        assert_eq!(told, want);
    }

    #[test]
    fn only_what_a_store_has_shown_is_there() {
        assert_eq!(is_there(None), Some(true));
        assert_eq!(is_there(Some(ErrorKind::ModelInvalid)), Some(true));
        assert_eq!(is_there(Some(ErrorKind::ModelNotFound)), Some(false));
        for unknown in [ErrorKind::StoreDenied, ErrorKind::StoreUnavailable, ErrorKind::Internal] {
            assert_eq!(is_there(Some(unknown)), None, "{unknown:?}");
        }
    }

    #[tokio::test]
    async fn of_many_names_it_is_told_how_many_were_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut names = Vec::new();
        for number in 0..=LOOKED_FOR {
            let name = format!("m{number:04}");
            std::fs::create_dir(folder.path().join(&name)).unwrap();
            std::fs::write(folder.path().join(&name).join("config.json"), "{}").unwrap();
            names.push(format!("\"{name}\""));
        }
        let text = format!(
            "version = 1\n[[endpoint]]\nname = \"e\"\npreload = [{}]\n[[endpoint.mount]]\n\
             uri = \"file://{}/\"\n",
            names.join(", "),
            folder.path().display()
        );
        let flags = ServeFlags::default();
        let config = Config::parse(Some(&text), &|_| None, &flags).unwrap();
        let told: Vec<_> = look(&config).await.into_iter().map(|it| it.message).collect();
        assert_eq!(told, ["256 of 257 targets there"]);
    }

    #[tokio::test]
    async fn each_route_of_an_alias_is_looked_for_at_its_endpoint() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("v1")).unwrap();
        std::fs::write(folder.path().join("v1/config.json"), "{}").unwrap();
        let text = "version = 1\n[[alias]]\nname = \"chat\"\n\
                    routes = [{ target = \"v1\" }, { target = \"v2\" }]\n";
        let store = vec![format!("file://{}/", folder.path().display())];
        let flags = ServeFlags { store, ..ServeFlags::default() };
        let config = Config::parse(Some(text), &|_| None, &flags).unwrap();
        let told: Vec<_> = look(&config).await.into_iter().map(|it| it.message).collect();
        assert_eq!(told, ["alias 'chat' stands for 'v2', which is not in the store"]);
    }
}
