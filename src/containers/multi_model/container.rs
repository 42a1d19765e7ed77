//! A container that is open: the way to it, and which models of ours are in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::HeaderValue;
use roundhouse_types::{ErrorKind, Failure, ModelId};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::spec::{ContainerOrigin, ContainerSpec, StartedContainer};
use super::watch;
use crate::driven::{News, NewsFn, UnknownPlaceholder};
use crate::{Backend, BackendConfig, BaseUrl, Command, Error, HealthConfig, Seen, Supervised};

/// Whoever asks has deadlines of its own, and drops a request at them.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Requests under way at one container; serving's own bounds are lower.
const IN_FLIGHT: usize = 4096;
/// One that computes may be slow to say that it is well.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// A container that is to be opened.
pub struct Open {
    /// What the operator says of it.
    pub spec: Arc<ContainerSpec>,
    /// What it is called, for errors, logs and metrics. There are few.
    pub name: Arc<str>,
    /// What our names for models in it begin with, and nobody else's do: letters, digits and dashes.
    pub prefix: Arc<str>,
    /// Our own executable; see [`Command::exe`].
    pub exe: PathBuf,
    /// Variables of ours that one with a command is given beside its own.
    pub inherited: Vec<(String, String)>,
    /// What stands for `{device}`.
    pub device: usize,
}

/// A container of many models. Cheap to clone. When the last clone and the last model are gone, one that
/// was started by command is ended.
#[derive(Clone)]
pub struct ModelContainer(pub(super) Arc<Inner>);

/// A container that somebody else holds.
#[derive(Clone)]
pub struct WeakContainer(Weak<Inner>);

pub(super) struct Inner {
    pub(super) spec: Arc<ContainerSpec>,
    pub(super) name: Arc<str>,
    pub(super) prefix: Arc<str>,
    way: Way,
    /// Set once what an earlier run of ours left in it is gone.
    pub(super) cleaned: OnceCell<()>,
    models: Mutex<Models>,
}

enum Way {
    At(Backend),
    Started(Supervised),
}

/// Our models in it, by its name for them. Changed by loads, unloads and by what `watch` finds.
#[derive(Default)]
struct Models {
    entries: BTreeMap<String, Entry>,
    /// Of the last entry.
    generation: u64,
}

pub(super) struct Entry {
    pub(super) generation: u64,
    pub(super) phase: Phase,
    /// Whose it is, unless it was left over.
    pub(super) model: Option<ModelId>,
}

pub(super) enum Phase {
    /// It is being asked for.
    Loading,
    /// It answers; whoever loaded it is told of its end.
    Live(NewsFn),
    /// It is being taken out.
    Leaving,
}

impl ModelContainer {
    /// Opens it. One with a command is started in the background. Within a runtime.
    ///
    /// # Errors
    /// `ModelInvalid` where a placeholder does not exist.
    pub fn open(open: Open) -> Result<Self, Failure> {
        let Open { spec, name, prefix, exe, inherited, device } = open;
        let path = spec.health.parse().unwrap_or_else(|_| HealthConfig::default().path);
        let health = HealthConfig { path, timeout: CHECK_TIMEOUT, ..HealthConfig::default() };
        let config = |url| BackendConfig {
            head_timeout: LONGEST,
            idle_timeout: LONGEST,
            max_in_flight: IN_FLIGHT,
            health: Some(health),
            ..BackendConfig::new(Arc::clone(&name), url)
        };
        let way = match &spec.origin {
            ContainerOrigin::Url(url) => Way::At(Backend::new(config(url.clone()))),
            ContainerOrigin::Command(started) => {
                // The address is the start's to find.
                let command = command(started, (exe, inherited), device, config(BaseUrl::local(0)));
                let command = command
                    .map_err(|unknown| Failure::from_error(ErrorKind::ModelInvalid, &unknown))?;
                Way::Started(Supervised::start(command))
            }
        };
        let (cleaned, models) = (OnceCell::new(), Mutex::default());
        let inner = Arc::new(Inner { spec, name, prefix, way, cleaned, models });
        tokio::spawn(watch::run(Arc::downgrade(&inner)));
        Ok(Self(inner))
    }

    /// The models that are in it.
    pub fn models(&self) -> Vec<ModelId> {
        let models = self.0.models();
        let live = models.entries.values().filter(|it| matches!(it.phase, Phase::Live(_)));
        live.filter_map(|entry| entry.model.clone()).collect()
    }

    /// How it stands now, for those who operate it.
    pub fn seen(&self) -> Seen {
        match &self.0.way {
            Way::At(backend) => backend.seen(),
            Way::Started(supervised) => supervised.seen(),
        }
    }

    /// Whether anything but this handle holds it: a model in it, or another handle.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// What it is called.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// The same, without holding it.
    pub fn downgrade(&self) -> WeakContainer {
        WeakContainer(Arc::downgrade(&self.0))
    }
}

impl WeakContainer {
    /// The container, where it is still held.
    pub fn upgrade(&self) -> Option<ModelContainer> {
        self.0.upgrade().map(ModelContainer)
    }
}

impl Inner {
    fn models(&self) -> MutexGuard<'_, Models> {
        // Entries are replaced at once.
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way to it; one that starts is waited for.
    pub(super) async fn backend(&self) -> Result<Backend, Error> {
        match (&self.way, &self.spec.origin) {
            (Way::Started(it), ContainerOrigin::Command(command)) => {
                it.backend(Instant::now() + command.start_timeout).await
            }
            (Way::Started(it), ContainerOrigin::Url(_)) => it.backend(Instant::now()).await,
            (Way::At(backend), _) => Ok(backend.clone()),
        }
    }

    /// The way to it as it is now.
    pub(super) async fn backend_now(&self) -> Result<Backend, Error> {
        match &self.way {
            Way::Started(it) => it.backend(Instant::now()).await,
            Way::At(backend) => Ok(backend.clone()),
        }
    }

    /// Makes an entry, where there is none of that name.
    pub(super) fn enter(&self, name: &str, phase: Phase, model: Option<ModelId>) -> Option<u64> {
        let mut models = self.models();
        if models.entries.contains_key(name) {
            return None;
        }
        models.generation += 1;
        let generation = models.generation;
        models.entries.insert(name.to_owned(), Entry { generation, phase, model });
        Some(generation)
    }

    /// Puts an entry into another phase; says whether it is still that one.
    pub(super) fn turn(&self, name: &str, generation: u64, phase: Phase) -> bool {
        let mut models = self.models();
        let entry = models.entries.get_mut(name).filter(|it| it.generation == generation);
        entry.map(|entry| entry.phase = phase).is_some()
    }

    /// Takes an entry out, where it is still that one.
    pub(super) fn take(&self, name: &str, generation: u64) -> Option<Entry> {
        let mut models = self.models();
        let is_it = models.entries.get(name).is_some_and(|it| it.generation == generation);
        is_it.then(|| models.entries.remove(name)).flatten()
    }

    /// The entries of all names, and whether they are live.
    pub(super) fn entries(&self) -> BTreeMap<String, (u64, bool)> {
        let models = self.models();
        let entry = |(name, it): (&String, &Entry)| {
            (name.clone(), (it.generation, matches!(it.phase, Phase::Live(_))))
        };
        models.entries.iter().map(entry).collect()
    }

    /// A model is not in it any more: whoever loaded it is told, the first time.
    pub(super) fn died(&self, name: &str, generation: u64, failure: &Failure) {
        let entry = {
            let mut models = self.models();
            let is_live = models.entries.get(name).is_some_and(|it| {
                it.generation == generation && matches!(it.phase, Phase::Live(_))
            });
            is_live.then(|| models.entries.remove(name)).flatten()
        };
        if let Some(Entry { phase: Phase::Live(news), .. }) = entry {
            news(News::Died(failure.clone()));
        }
    }

    /// The container is gone, and all models with it.
    pub(super) fn all_died(&self, failure: &Failure) {
        for (name, (generation, _)) in self.entries() {
            self.died(&name, generation, failure);
        }
    }
}

/// A target's name as a header; one that is none is left to the container's own name for it.
pub(super) fn target_header(model: &ModelId, name: &str) -> HeaderValue {
    let target = HeaderValue::from_str(model.target.as_str());
    target.or_else(|_| HeaderValue::from_str(name)).unwrap_or(HeaderValue::from_static("-"))
}

fn command(
    started: &StartedContainer,
    (exe, mut env): (PathBuf, Vec<(String, String)>),
    device: usize,
    backend: BackendConfig,
) -> Result<Command, UnknownPlaceholder> {
    let filled = |text: &String| StartedContainer::fill(text, device);
    let mut words = started.command.iter().map(filled).collect::<Result<Vec<_>, _>>()?;
    let args = words.split_off(words.len().min(1));
    for (name, value) in &started.environment {
        env.retain(|(other, _)| other != name);
        env.push((name.clone(), filled(value)?));
    }
    Ok(Command {
        exe,
        program: words.pop().unwrap_or_default().into(),
        args,
        env,
        dir: None,
        port: None,
        start_timeout: started.start_timeout,
        grace: started.stop_timeout,
        own_processes: started.own_processes,
        backend,
    })
}
