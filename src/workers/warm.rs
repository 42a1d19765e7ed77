//! Interpreters that have imported beforehand: an idle one is forked for the next model of its
//! environment, so that a load costs the model's part and not Python's.
//!
//! Files: this one (which are kept, for whom, and who leaves), `parent` (one of them), `fork` (what
//! comes of it).
//!
//! Invariants:
//! 1. An interpreter serves models of one environment, one tenant (unless environments are shared)
//!    and one set of variables, one model at a time.
//! 2. No model's code runs in it: it imports packages and forks.
//! 3. Idle ones take at most the least of the operator's limit and the room that nobody else of
//!    the device has a claim to; the one that was used longest ago leaves first.
//!
//! [`Warm`] owns the idle ones; one in use is its group's, and its memory is its model's.

mod fork;
mod parent;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use roundhouse_types::Bytes;
use tracing::{debug, info, warn};

use crate::environment::Environment;
use crate::metrics::{self, Cooled};
use crate::{Base, Error, Handler};
pub(crate) use fork::Fork;
pub(crate) use parent::{Order, Parent};

/// Idle interpreters, whatever they take; each has a user of its own.
const MOST: usize = 32;
/// Idle interpreters of one kind: what one model in use gives back while another starts.
const MOST_OF_A_KIND: usize = 2;
/// Kinds whose imports are remembered.
const KINDS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// Packages that one kind imports.
const IMPORTS: usize = 128;
const NAME_MAX: usize = 100;
/// A model that leaves gives its interpreter back; only after this a new one is started.
const REFILL_AFTER: Duration = Duration::from_millis(500);
/// An interpreter is ended at this age: then the next one has another layout of memory, another
/// hash seed, and packages of the interpreter's own as they are by then.
const AGE_MAX: Duration = Duration::from_secs(3600);
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// What one is taken to need that was never started.
const ASSUMED: Bytes = Bytes::mib(16);

/// Packages that handlers usually import, and that take long to. Others are not imported
/// beforehand, whatever a model has imported: their names are their uploaders' to choose.
const USUAL: [&str; 36] = [
    "PIL",
    "accelerate",
    "boto3",
    "botocore",
    "catboost",
    "cv2",
    "datasets",
    "diffusers",
    "gensim",
    "imblearn",
    "joblib",
    "keras",
    "lightgbm",
    "mlflow",
    "nltk",
    "numpy",
    "onnx",
    "onnxruntime",
    "pandas",
    "peft",
    "prophet",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scipy",
    "sentence_transformers",
    "skimage",
    "sklearn",
    "spacy",
    "statsmodels",
    "tensorflow",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
    "xgboost",
];

/// What the operator decides about interpreters that are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warming {
    /// The most that idle ones may take.
    pub memory: Bytes,
    /// An idle one that nobody has asked for is ended after this.
    pub idle_after: Duration,
    /// What all of them import; absent: what earlier models of the same kind imported.
    pub imports: Option<Vec<String>>,
}

impl Default for Warming {
    fn default() -> Self {
        // Two with scikit-learn, or a dozen bare ones.
        Self { memory: Bytes::mib(256), idle_after: Duration::from_secs(600), imports: None }
    }
}

/// What idle interpreters take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmState {
    /// How many are idle.
    pub interpreters: usize,
    /// What they take.
    pub bytes: Bytes,
    /// What they may take now.
    pub limit: Bytes,
}

/// Which models may have one interpreter after another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The environment's folder.
    pub(crate) environment: Option<PathBuf>,
    /// Empty where environments are shared.
    pub(crate) tenant: String,
    /// Libraries read them when they are imported.
    pub(crate) variables: BTreeMap<String, String>,
}

/// Keeps, hands out and takes back. Shared by all groups.
pub(crate) struct Warm {
    base: Arc<Base>,
    settings: Warming,
    state: Mutex<State>,
}

struct State {
    kinds: LruCache<Key, Kind>,
    /// The one used last is last.
    idle: Vec<Parent>,
    room: Bytes,
}

/// What is known of interpreters of one key.
#[derive(Default)]
struct Kind {
    imports: Vec<String>,
    /// One is being started, or about to be.
    starting: bool,
    /// With these imports it could not be forked.
    unfit: Option<Vec<String>>,
    /// What the last one took.
    bytes: Option<Bytes>,
}

impl Warm {
    /// Begins to keep. Within a runtime.
    pub(crate) fn start(base: Arc<Base>, settings: Warming) -> Arc<Self> {
        let state = State { kinds: LruCache::new(KINDS), idle: Vec::new(), room: Bytes(u64::MAX) };
        let warm = Arc::new(Self { base, settings, state: Mutex::new(state) });
        let swept = Arc::downgrade(&warm);
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(SWEEP_EVERY);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(warm) = swept.upgrade() else { return };
                let _ = tokio::task::spawn_blocking(move || warm.sweep()).await;
            }
        });
        warm
    }

    /// What decides which interpreters a handler may have.
    pub(crate) fn key(&self, handler: &Handler, environment: Option<&Environment>) -> Key {
        let shared = self.base.config.packages.shared;
        Key {
            environment: environment.map(|it| it.root.clone()),
            tenant: if shared { String::new() } else { handler.tenant.clone() },
            variables: handler.settings.variables.clone(),
        }
    }

    /// An idle interpreter, where there is one that is fit.
    pub(crate) fn take(&self, key: &Key) -> Option<Parent> {
        let (taken, unfit) = {
            let mut state = self.state();
            let mut unfit = Vec::new();
            let taken = loop {
                let Some(at) = state.idle.iter().rposition(|parent| parent.key == *key) else {
                    break None;
                };
                let parent = state.idle.remove(at);
                if parent.is_fit() {
                    break Some(parent);
                }
                unfit.push(parent);
            };
            state.tell();
            (taken, unfit)
        };
        for parent in unfit {
            cool(parent, Cooled::Unfit);
        }
        taken
    }

    /// A model of this kind has started and has imported these packages: one more is started,
    /// unless one is idle by then.
    pub(crate) fn started(
        self: &Arc<Self>,
        key: &Key,
        imported: Vec<String>,
        environment: Option<Arc<Environment>>,
    ) {
        {
            let mut state = self.state();
            let kind = state.kinds.get_or_insert_mut(key.clone(), Kind::default);
            match &self.settings.imports {
                Some(imports) => kind.imports.clone_from(imports),
                None => kind.learn(imported),
            }
            if std::mem::replace(&mut kind.starting, true) {
                return;
            }
        }
        let (warm, key) = (Arc::clone(self), key.clone());
        tokio::spawn(async move {
            tokio::time::sleep(REFILL_AFTER).await;
            warm.refill(&key, environment.as_ref()).await;
            if let Some(kind) = warm.state().kinds.peek_mut(&key) {
                kind.starting = false;
            }
        });
    }

    /// Starts one, if it is wanted and fits.
    async fn refill(&self, key: &Key, environment: Option<&Arc<Environment>>) {
        let imports = {
            let mut state = self.state();
            let limit = self.limit(&state);
            let is_idle = state.idle.iter().any(|parent| parent.key == *key);
            let Some(kind) = state.kinds.peek_mut(key) else { return };
            let is_unfit = kind.unfit.as_ref() == Some(&kind.imports);
            if is_idle || is_unfit || kind.bytes.unwrap_or(ASSUMED) > limit {
                return;
            }
            kind.imports.clone()
        };
        let began = Instant::now();
        let count = imports.len();
        match Parent::start(&self.base, key.clone(), imports.clone(), environment).await {
            Ok(parent) => {
                self.keep(parent).await;
                debug!(imports = count, took = ?began.elapsed(), "an interpreter is warm");
            }
            Err(error) => {
                let why = roundhouse_types::Failure::from(error);
                info!(%why, imports = count, "no interpreter is kept for handlers of this kind");
                if let Some(kind) = self.state().kinds.peek_mut(key) {
                    kind.unfit = Some(imports);
                }
            }
        }
    }

    /// Takes one back whose model has left. Its forks must be gone.
    pub(crate) async fn give_back(&self, parent: Parent) {
        let cleared = tokio::task::spawn_blocking(move || {
            let mut parent = parent;
            let cleared = parent.clear();
            (parent, cleared)
        });
        let Ok((parent, cleared)) = cleared.await else { return };
        if let Err(error) = cleared {
            // As after its death, of which somebody else has told.
            debug!(%error, "an interpreter was not taken back");
            cool(parent, Cooled::Unfit);
        } else {
            self.keep(parent).await;
        }
    }

    /// Keeps an idle one, as far as it may be kept.
    async fn keep(&self, parent: Parent) {
        let mut parent = parent;
        // One that its last model has stopped would hold up that model's unload.
        if !parent.is_fit() {
            return cool(parent, Cooled::Unfit);
        }
        if let Err(error) = parent.fork_ahead().await {
            debug!(%error, "an interpreter does not fork");
            return cool(parent, Cooled::Unfit);
        }
        let weighed = tokio::task::spawn_blocking(move || {
            let mut parent = parent;
            parent.weigh();
            parent
        });
        let Ok(mut parent) = weighed.await else { return };
        parent.idle_since = Instant::now();
        let left = {
            let mut state = self.state();
            let mut left = Vec::new();
            let kind = state.kinds.get_or_insert_mut(parent.key.clone(), Kind::default);
            kind.bytes = Some(parent.bytes);
            let lacks = kind.imports.iter().any(|import| !parent.imports.contains(import));
            if !parent.is_fit() {
                left.push((parent, Cooled::Unfit));
            } else if lacks || parent.born.elapsed() > AGE_MAX {
                left.push((parent, Cooled::Old));
            } else {
                state.idle.push(parent);
            }
            left.extend(self.excess(&mut state));
            state.tell();
            left
        };
        for (parent, why) in left {
            cool(parent, why);
        }
    }

    /// Who must leave so that the others fit, those used longest ago first.
    fn excess(&self, state: &mut State) -> Vec<(Parent, Cooled)> {
        let limit = self.limit(state);
        let mut left = Vec::new();
        loop {
            let total: Bytes = state.idle.iter().map(|parent| parent.bytes).sum();
            let twice = |parent: &Parent| {
                state.idle.iter().filter(|other| other.key == parent.key).count() > MOST_OF_A_KIND
            };
            let at = match state.idle.iter().position(twice) {
                Some(at) => at,
                None if total > limit || state.idle.len() > MOST => 0,
                None => return left,
            };
            left.push((state.idle.remove(at), Cooled::Room));
        }
    }

    /// What nobody else of the device has a claim to.
    pub(crate) fn set_room(&self, room: Bytes) {
        let left = {
            let mut state = self.state();
            state.room = room;
            let left = self.excess(&mut state);
            state.tell();
            left
        };
        for (parent, why) in left {
            cool(parent, why);
        }
    }

    /// What is idle now.
    pub(crate) fn idle(&self) -> WarmState {
        let state = self.state();
        WarmState {
            interpreters: state.idle.len(),
            bytes: state.idle.iter().map(|parent| parent.bytes).sum(),
            limit: self.limit(&state),
        }
    }

    /// Looks at all that are idle. Blocking, for some milliseconds.
    fn sweep(&self) {
        let mut left = Vec::new();
        {
            let mut state = self.state();
            for mut parent in std::mem::take(&mut state.idle) {
                if !parent.is_fit() {
                    left.push((parent, Cooled::Unfit));
                } else if parent.idle_since.elapsed() > self.settings.idle_after {
                    left.push((parent, Cooled::Idle));
                } else if parent.born.elapsed() > AGE_MAX {
                    left.push((parent, Cooled::Old));
                } else {
                    parent.weigh();
                    state.idle.push(parent);
                }
            }
            left.extend(self.excess(&mut state));
            state.tell();
        }
        for (parent, why) in left {
            cool(parent, why);
        }
    }

    fn limit(&self, state: &State) -> Bytes {
        self.settings.memory.min(state.room)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&self) {
        metrics::warm(self.idle.len(), self.idle.iter().map(|parent| parent.bytes).sum());
    }
}

impl Kind {
    /// Adds what is usual of what a model has imported.
    fn learn(&mut self, imported: Vec<String>) {
        for name in imported {
            let top = name.split('.').next().unwrap_or_default();
            let plain = name.len() <= NAME_MAX
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.');
            let is_new = !self.imports.contains(&name);
            if plain && is_new && USUAL.contains(&top) && self.imports.len() < IMPORTS {
                self.imports.push(name);
            }
        }
    }
}

/// Ends one that is not kept, beside whatever goes on.
fn cool(parent: Parent, why: Cooled) {
    metrics::cooled(why);
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn(parent.end())),
        Err(_) => drop(parent),
    }
}

/// Says why an interpreter could not be forked; its model is started without it.
pub(crate) fn failed(model: &str, error: Error) {
    metrics::launched(metrics::Launched::Again);
    let why = roundhouse_types::Failure::from(error);
    warn!(model, %why, "a fork of a warm interpreter did not load the handler; started anew");
}

#[cfg(test)]
mod tests;
