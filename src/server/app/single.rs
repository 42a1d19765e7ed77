//! A server of one model: a folder, loaded when the server starts, asked without being named.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use roundhouse_gateway::{EndpointFace, Naming, PageWanted, Serves, Target, TargetPage};
use roundhouse_models::ADAPTER_CONFIG;
use roundhouse_residency::{LoadOptions, Residency};
use roundhouse_serving::ServedModel;
use roundhouse_types::{EndpointName, ErrorKind, Failure, ModelId, TargetName};
use tracing::{error, info, warn};

use super::faces::facts;
use crate::admin::Vitals;
use crate::loader::{Announced, LocalModels, ModelLoader, model_folder};

/// The endpoint that the model is the one target of.
pub(super) const ENDPOINT: &str = "default";
/// What it is called where it must be called something.
const TARGET: &str = "model";
/// Adapters that lie beside the model are looked for here.
const ADAPTERS: &str = "adapters";
/// So many of them at most.
const ADAPTERS_MAX: usize = 1000;

/// The one model. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Single {
    pub(super) model: ModelId,
    pub(super) local: Arc<LocalModels>,
    /// Adapters that lie beside it, by name, in that order.
    pub(super) adapters: Vec<(TargetName, PathBuf)>,
}

impl Single {
    /// Announces the model of a folder, and the adapters that lie beside it. Blocking.
    ///
    /// # Errors
    /// `ModelNotFound` where there is no such folder.
    pub(super) fn open(folder: &Path) -> Result<Self, Failure> {
        let folder = folder.canonicalize().map_err(|why| {
            let message = format!("the model's folder {}: {why}", folder.display());
            Failure::new(ErrorKind::ModelNotFound, message)
        })?;
        let endpoint: EndpointName = ENDPOINT.parse().expect("a plain word is a name");
        let target: TargetName = TARGET.parse().expect("a plain word is a name");
        let local = Arc::new(LocalModels::default());
        let adapters = adapters(&model_folder(&folder).join(ADAPTERS));
        let announce = |name: &TargetName, folder: &Path| {
            let url = folder.display().to_string();
            local.announce(name.clone(), Announced { url, folder: folder.to_owned() })
        };
        announce(&target, &folder);
        let mut others = Vec::with_capacity(adapters.len());
        for (name, folder) in adapters {
            if announce(&name, &folder) {
                others.push((name, folder));
            } else {
                warn!(%name, "an adapter cannot be called as the model is");
            }
        }
        Ok(Self { model: ModelId { endpoint, target }, local, adapters: others })
    }

    /// The endpoint, for requests that name no target.
    pub(super) fn face(&self, handlers: bool, loader: &Arc<ModelLoader>) -> EndpointFace {
        let endpoint = self.model.endpoint.clone();
        let id = move |target: &TargetName| ModelId {
            endpoint: endpoint.clone(),
            target: target.clone(),
        };
        let (adapted, known, id_of_known) = (loader.clone(), loader.clone(), id.clone());
        let (listed, found) = (self.local.clone(), self.local.clone());
        EndpointFace {
            name: self.model.endpoint.clone(),
            naming: Naming::of(Serves::One(self.model.target.clone())),
            // The settings name no endpoint that says where to.
            capture: None,
            containers: None,
            handlers,
            engines: false,
            base: Arc::new(move |target| adapted.adapted(&id(target)).map(|base| base.target)),
            facts: Arc::new(move |target| known.facts(&id_of_known(target)).map(facts)),
            list: Arc::new(move |wanted| {
                let page = page(&listed, &wanted);
                async move { Ok(page) }.boxed()
            }),
            find: Arc::new(move |name| {
                let found = found.get(name.as_str()).map(|_| target(&name));
                let missing = format!("no target is called {name}");
                let found = found.ok_or_else(|| Failure::new(ErrorKind::ModelNotFound, missing));
                async move { found }.boxed()
            }),
        }
    }

    /// Loads the model and keeps it; until then the server is not ready.
    pub(super) async fn load(self, residency: Residency<ServedModel>, vitals: Arc<Vitals>) {
        let model = &self.model;
        let loaded = match residency.keep(model).await {
            // Nobody else is there to make room.
            Ok(()) => residency.load(model, LoadOptions { evict: false, force: false }).await,
            Err(failure) => Err(failure),
        };
        match loaded {
            Ok(report) => {
                info!(%model, version = %report.version, "the model is loaded");
                vitals.model_is_there();
            }
            Err(failure) => {
                error!(%model, %failure, "the model cannot be served");
                vitals.model_failed(failure.to_string());
            }
        }
    }
}

/// The folders of adapters below one, by their names.
fn adapters(below: &Path) -> Vec<(TargetName, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(below) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in
        entries.filter_map(Result::ok).filter(|it| it.path().join(ADAPTER_CONFIG).is_file())
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.parse::<TargetName>() {
            Ok(name) if found.len() < ADAPTERS_MAX => found.push((name, entry.path())),
            Ok(name) => warn!(%name, most = ADAPTERS_MAX, "too many adapters lie beside the model"),
            Err(why) => warn!(name, %why, "an adapter's folder has no name that requests can use"),
        }
    }
    found.sort();
    found
}

fn page(models: &LocalModels, wanted: &PageWanted) -> TargetPage {
    let names = models.all().into_iter().map(|(name, _)| name);
    let names =
        names.filter(|name| wanted.after.as_deref().is_none_or(|after| name.as_str() > after));
    let is_covered = |name: &TargetName| match &wanted.only {
        None => true,
        Some(patterns) => patterns.iter().any(|pattern| pattern.covers(name)),
    };
    let mut targets: Vec<Target> = names.filter(is_covered).map(|name| target(&name)).collect();
    let more = targets.len() > wanted.limit;
    targets.truncate(wanted.limit);
    TargetPage { targets, more }
}

fn target(name: &TargetName) -> Target {
    Target { name: name.clone(), modified: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_announced_with_the_adapters_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a1", "b\nc", "none", "model"] {
            std::fs::create_dir_all(folder.path().join("adapters").join(name)).unwrap();
        }
        for name in ["a1", "b\nc", "model"] {
            let config = folder.path().join("adapters").join(name).join(ADAPTER_CONFIG);
            std::fs::write(config, "{}").unwrap();
        }
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let single = Single::open(folder.path()).unwrap();
        let names: Vec<&str> = single.adapters.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a1"]);
        let wanted = PageWanted { after: None, limit: 1, only: None };
        let first = page(&single.local, &wanted);
        assert_eq!((first.targets[0].name.as_str(), first.more), ("a1", true));
        let rest = page(&single.local, &PageWanted { after: Some("a1".into()), ..wanted });
        assert_eq!((rest.targets[0].name.as_str(), rest.more), ("model", false));
        let missing = Single::open(&folder.path().join("nowhere")).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::ModelNotFound);
    }
}
