//! Targets that are loaded into containers which hold many of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use roundhouse_containers::multi_model::{
    ContainedModel, ContainerOrigin, ContainerSpec, Load, LoadError, ModelContainer, Open, RoomFn,
};
use roundhouse_residency::{Among, Loaded, PlaceWanted, Reporter, Residency};
use roundhouse_serving::ServedModel;
use roundhouse_types::{
    ArtefactId, Bytes, ContentId, DeviceId, EndpointName, Failure, Footprint, Grade, SharedPart,
};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use tracing::warn;

use super::bases::Terms;
use super::called::{canonical, digest};
use super::external::{news, ordinal, taken, unnamed};
use super::load::Files;
use super::stages::Stage;
use super::{ModelLoader, Source, blocking, local, locked, named};
use crate::admin::{Kind, Shown};
use crate::config::{ContainerRule, EngineKind, EngineRule, ModelMemory};

/// How long a model that is to leave is waited for: for its requests.
const LEAVES_WITHIN: Duration = Duration::from_secs(60);
/// Models that are asked to leave for one. What one takes is declared, so it can be several.
const ROOM_TRIES: usize = 8;
/// Bytes of a digest that no two versions share.
const NAME_BYTES: usize = 16;

/// Containers that are open. Owned by `Engines`.
pub(super) struct Containers {
    /// What our models are called by, and nobody else's: another server has another cache.
    prefix: Mutex<Arc<str>>,
    open: Mutex<Vec<Opened>>,
}

struct Opened {
    spec: Arc<ContainerSpec>,
    /// Of one that we start: there is one for each device.
    device: Option<DeviceId>,
    /// Whose rule opened it; others with the same settings share it.
    endpoint: EndpointName,
    targets: String,
    container: ModelContainer,
}

impl Containers {
    /// None yet; `cache` is the folder that is ours alone.
    pub(super) fn new(cache: &Path) -> Self {
        Self { prefix: Mutex::new(prefix(cache)), open: Mutex::default() }
    }

    /// Has those that are opened from now on name our models after this folder, which is ours alone.
    pub(super) fn name_after(&self, cache: &Path) {
        *locked(&self.prefix) = prefix(cache);
    }

    /// Closes those that no rule names any more and that hold no model, and opens those that run
    /// already: what an earlier run has left in them goes. Within a runtime, where there are any.
    pub(super) fn keep(&self, rules: &BTreeMap<EndpointName, Vec<EngineRule>>, exe: &Path) {
        let all =
            rules.iter().flat_map(|(endpoint, rules)| rules.iter().map(move |it| (endpoint, it)));
        let contained = all.filter_map(|(endpoint, rule)| match &rule.kind {
            EngineKind::Contained(own) => Some((endpoint, rule, own)),
            EngineKind::Started(_) => None,
        });
        let contained: Vec<_> = contained.collect();
        locked(&self.open).retain(|opened| {
            opened.container.is_shared()
                || contained.iter().any(|(_, _, own)| own.spec == opened.spec)
        });
        for (endpoint, rule, own) in contained {
            if matches!(own.spec.origin, ContainerOrigin::Url(_))
                && let Err(failure) = self.container((endpoint, rule), own, DeviceId::Cpu, exe)
            {
                warn!(%endpoint, targets = %rule.target, %failure, "a container is not opened");
            }
        }
    }

    /// Those that are open, for operators: the endpoint and targets of who opened it, its device, and
    /// the models in it.
    pub(super) fn seen(&self) -> Vec<Shown> {
        let open = locked(&self.open);
        let one = |opened: &Opened| Shown {
            endpoint: opened.endpoint.clone(),
            name: opened.targets.clone(),
            kind: Kind::Models,
            device: opened.device,
            models: Some(opened.container.models().len()),
            seen: opened.container.seen(),
        };
        open.iter().map(one).collect()
    }

    /// The container of a rule; opened where it is not.
    fn container(
        &self,
        (endpoint, rule): (&EndpointName, &EngineRule),
        own: &ContainerRule,
        device: DeviceId,
        exe: &Path,
    ) -> Result<ModelContainer, Failure> {
        let is_started = matches!(own.spec.origin, ContainerOrigin::Command(_));
        let of = is_started.then_some(device);
        let mut open = locked(&self.open);
        if let Some(opened) = open.iter().find(|it| it.spec == own.spec && it.device == of) {
            return Ok(opened.container.clone());
        }
        let container = ModelContainer::open(Open {
            spec: Arc::clone(&own.spec),
            name: format!("{endpoint}:{}", rule.target).into(),
            prefix: Arc::clone(&locked(&self.prefix)),
            exe: exe.to_owned(),
            inherited: rule.inherited.clone(),
            device: ordinal(device),
        })?;
        let (spec, device) = (Arc::clone(&own.spec), of);
        let (endpoint, targets) = (endpoint.clone(), rule.target.to_string());
        open.push(Opened { spec, device, endpoint, targets, container: container.clone() });
        Ok(container)
    }
}

impl ModelLoader {
    /// What a load into a container needs; unknown where its files count and are not there yet.
    pub(super) async fn contained_terms(
        &self,
        id: &ArtefactId,
        rule: &Arc<ContainerRule>,
    ) -> Result<Terms, Failure> {
        let files = match rule.memory {
            ModelMemory::Each(_) => Some(Bytes::ZERO),
            ModelMemory::OfFiles { .. } => self.files_bytes(id).await?,
        };
        let footprint = files.map(|files| (charged(rule, files), Grade::Declared));
        Ok(Terms { footprint, base: None })
    }

    /// What a version's files take on disk; `None` where that is known when they are.
    async fn files_bytes(&self, id: &ArtefactId) -> Result<Option<Bytes>, Failure> {
        match self.source(&id.model.endpoint)? {
            Source::Store(_, cache) => {
                let listed = || {
                    let artefact = self.recall(id).artefact?;
                    artefact.archive.is_none().then_some(artefact.bytes)
                };
                Ok(cache.get(id).map(|cached| cached.bytes()).or_else(listed))
            }
            Source::Local(models) => {
                let folder = local::announced(&models, &id.model)?.folder;
                let sizes = blocking(move || {
                    Ok(roundhouse_models::list_local(&local::model_folder(&folder))?)
                });
                Ok(Some(sizes.await?.into_values().map(Bytes).sum()))
            }
        }
    }

    /// Loads a model into its container. Where that is full, others in it leave.
    pub(super) async fn load_contained(
        &self,
        id: &ArtefactId,
        files: Files,
        (device, reporter): (DeviceId, Reporter),
        own: &Arc<ContainerRule>,
    ) -> Result<Loaded<ServedModel>, Failure> {
        let rule = self.engines.rule(&id.model).ok_or_else(|| unnamed(id))?;
        let began = Instant::now();
        let container = self.engines.containers.container(
            (&id.model.endpoint, &rule),
            own,
            device,
            self.engines.exe(),
        );
        let container = container.map_err(|failure| named(id, &failure))?;
        let terms = self.contained_terms(id, own).await?;
        let Files { dir, held } = files;
        self.refuse_pickles(id, &id.model, &dir).await?;
        let folder = blocking(move || canonical(&dir)).await.map_err(|why| named(id, &why))?;
        let teller = Arc::new(Mutex::new(reporter));
        let load = Load {
            name: format!("{}-{}", digest(id, NAME_BYTES), ordinal(device)),
            model: id.model.clone(),
            folder,
            news: news(&teller, device, held),
            room: self.room(&container, id),
        };
        let loaded = self.load_with_room(&container, id, &load).await;
        let model = ServedModel::Contained(loaded.map_err(|failure| named(id, &failure))?);
        let mut stages = self.take_stages(id);
        stages.set(Stage::Read, began.elapsed());
        let footprint = terms.footprint.map_or_else(Footprint::default, |(footprint, _)| footprint);
        stages.report(id, footprint.total(), &self.recent);
        let (shared, idle_ttl) = (process(own), rule.idle_ttl);
        Ok(Loaded { model, footprint, shared, once: Duration::ZERO, idle_ttl })
    }

    async fn load_with_room(
        &self,
        container: &ModelContainer,
        id: &ArtefactId,
        load: &Load,
    ) -> Result<ContainedModel, Failure> {
        let mut tries = 0;
        loop {
            let full = match container.load(load).await {
                Ok(model) => return Ok(model),
                Err(LoadError::Failed(failure)) => return Err(failure),
                Err(LoadError::Full(full)) => full,
            };
            tries += 1;
            let Some(residency) = self.engines.residency().filter(|_| tries <= ROOM_TRIES) else {
                return Err(full);
            };
            if !make_room(residency, container, id, false).await? {
                return Err(full);
            }
        }
    }

    /// How a request makes room for itself: a model that nobody uses leaves.
    fn room(&self, container: &ModelContainer, id: &ArtefactId) -> RoomFn {
        let (container, id) = (container.downgrade(), id.clone());
        let residency = self.engines.residency().cloned();
        Arc::new(move || {
            let (residency, id) = (residency.clone(), id.clone());
            let container = container.upgrade();
            Box::pin(async move {
                let (Some(residency), Some(container)) = (residency, container) else {
                    return false;
                };
                make_room(&residency, &container, &id, true).await.unwrap_or(false)
            })
        })
    }
}

/// Has a model leave a container for another, as residency's policy says; whether one did.
async fn make_room(
    residency: &Residency<ServedModel>,
    container: &ModelContainer,
    id: &ArtefactId,
    only_idle: bool,
) -> Result<bool, Failure> {
    let among = Among::Models(container.models());
    let place = PlaceWanted { artefact: id.clone(), among, only_idle };
    match timeout(LEAVES_WITHIN, residency.give_place(place)).await {
        Ok(outcome) => outcome,
        Err(_) => Ok(false),
    }
}

/// What a model with files of this size is charged with, the container's own part in it.
pub(super) fn charged(rule: &ContainerRule, files: Bytes) -> Footprint {
    taken(rule.memory.of(files) + rule.process)
}

/// What a container takes itself: all models in it hold that together.
pub(super) fn process(rule: &ContainerRule) -> Vec<SharedPart> {
    if rule.process == Bytes::ZERO {
        return Vec::new();
    }
    // Containers of equal settings are one; what is said of them to take is part of the content.
    let digest = Sha256::digest(format!("container {:?} {}", rule.spec, rule.process.0));
    let content = ContentId::from_digest(digest.into());
    vec![SharedPart { content, bytes: rule.process }]
}

/// What models of the server whose cache this is are called by.
fn prefix(cache: &Path) -> Arc<str> {
    let cache = cache.canonicalize().unwrap_or_else(|_| cache.to_owned());
    let digest = Sha256::digest(cache.as_os_str().as_encoded_bytes());
    let digest: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("roundhouse-{digest}-").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_with_caches_of_their_own_have_names_of_their_own() {
        let named = |cache: &str| prefix(Path::new(cache));
        assert_eq!(named("/a"), named("/a"));
        assert_ne!(named("/a"), named("/b"));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        assert!(named("/é").bytes().all(plain));
        // The first store came with a folder of its own.
        let containers = Containers::new(Path::new("/a"));
        containers.name_after(Path::new("/b"));
        assert_eq!(*locked(&containers.prefix), named("/b"));
    }
}
