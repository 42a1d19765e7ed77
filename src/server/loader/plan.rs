//! What a load of a version means, found out from its files before it is loaded.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use roundhouse_containers::driven::EngineSpec;
use roundhouse_models::{ADAPTER_CONFIG, AdapterPlan, Files, LoadSettings, ModelPlan};
use roundhouse_serving::{TextCodec, Vocabulary};
use roundhouse_store::{Artefact, Catalog};
use roundhouse_tenancy::Current;
use roundhouse_types::{
    ArtefactId, Bytes, EndpointName, ErrorKind, Failure, Footprint, Grade, ModelKind,
};
use roundhouse_workers::{Layout, SETTINGS_FILE, SETTINGS_MAX, Settings, Workers};

use super::view::read_remote;
use super::{contained, external};
use crate::config::ContainerRule;

/// What a load of a version means.
#[derive(Clone)]
pub(crate) enum Plan {
    /// A model of our own.
    Model(Arc<ModelPlan>),
    /// Python processes that run the artefact's script.
    Handler(Arc<HandlerPlan>),
    /// An engine of the operator's.
    External(Arc<EngineSpec>),
    /// A place in a container of the operator's.
    Contained(Arc<ContainerRule>),
    /// Weights beside another model's.
    Adapter(AdapterPlan),
}

/// Where a handler's parts lie and what it asks for.
pub(crate) struct HandlerPlan {
    pub(crate) layout: Layout,
    pub(crate) settings: Settings,
}

/// Where handlers may run, and what runs them.
#[derive(Clone, Default)]
pub(crate) struct Handlers {
    /// What runs them; absent where no endpoint serves them.
    pub(crate) workers: Option<Arc<Workers>>,
    /// Endpoints that serve them; replaced when the settings change.
    pub(crate) endpoints: Arc<Current<Vec<EndpointName>>>,
    /// The device's budget: none of them can take more.
    pub(crate) budget: Bytes,
    /// The script that code on this machine is entered by, where it has it.
    pub(crate) program: Option<Arc<str>>,
}

impl Plan {
    pub(crate) fn kind(&self) -> ModelKind {
        match self {
            Self::Model(plan) => plan.kind,
            Self::Handler(_) => ModelKind::Handler,
            Self::External(_) | Self::Contained(_) => ModelKind::External,
            Self::Adapter(_) => ModelKind::Adapter,
        }
    }

    /// Whether cards do not compute it.
    pub(crate) fn is_off_cards(&self) -> bool {
        match self {
            Self::Model(plan) => plan.host_only().is_some(),
            Self::Handler(_) => true,
            Self::External(_) | Self::Contained(_) | Self::Adapter(_) => false,
        }
    }

    /// What it takes itself while it is remembered.
    pub(super) fn remembered_bytes(&self) -> Bytes {
        match self {
            Self::Model(plan) => plan.remembered_bytes(),
            Self::Adapter(plan) => plan.remembered_bytes(),
            // Paths and settings, which are bounded where they are read.
            Self::Handler(_) | Self::External(_) | Self::Contained(_) => Bytes::ZERO,
        }
    }

    /// What a load is promised, and how far that can be trusted: for handlers what the version
    /// was seen to use (`peak`), else what it declares, else what the operator assumes.
    pub(crate) fn estimate(
        &self,
        peak: Option<Bytes>,
        assumed: Bytes,
        budget: Bytes,
    ) -> (Footprint, Grade) {
        let plan = match self {
            Self::Model(plan) => return (plan.footprint, Grade::Exact),
            Self::Adapter(plan) => return (plan.footprint(), Grade::Exact),
            Self::External(spec) => return (external::promised(spec), Grade::Declared),
            Self::Contained(rule) => {
                // With what its files add, where those count, in the loader's terms.
                return (contained::charged(rule, Bytes::ZERO), Grade::Declared);
            }
            Self::Handler(plan) => plan,
        };
        let (memory, grade) = match (peak, plan.settings.memory) {
            (Some(peak), declared) => (peak.min(declared.unwrap_or(peak)), Grade::Remembered),
            // A declaration may be more than there is: then it can never fit, and that is said.
            (None, Some(declared)) => (declared, Grade::Declared),
            (None, None) => (assumed.min(budget), Grade::Declared),
        };
        (processes(memory), grade)
    }
}

/// Makes a plan of a handler's files and the text of its settings.
pub(crate) type PlanHandler<'a> =
    &'a (dyn Fn(Layout, Option<&str>) -> Result<Plan, Failure> + Send + Sync);

/// Finds out what lies in a folder. Blocking.
pub(crate) fn plan_folder(
    dir: &Path,
    settings: &LoadSettings,
    handler: PlanHandler<'_>,
) -> Result<Plan, Failure> {
    let sizes = roundhouse_models::list_local(dir)?;
    let Some(layout) = Layout::of(&sizes) else {
        return plan_files(&roundhouse_models::read_local(dir)?, settings);
    };
    handler(layout, settings_text(dir, &sizes)?.as_deref())
}

/// The artefact's settings, where it has some.
fn settings_text(dir: &Path, sizes: &BTreeMap<String, u64>) -> Result<Option<String>, Failure> {
    let Some(file) = settings_file(sizes) else { return Ok(None) };
    let text = std::fs::read_to_string(dir.join(file)).map_err(|error| {
        Failure::new(ErrorKind::ModelInvalid, format!("{SETTINGS_FILE}: {error}"))
    })?;
    Ok(Some(text))
}

/// Finds out what files of a model of ours are. Headers may be a hundred megabytes of JSON:
/// belongs on a blocking thread.
pub(crate) fn plan_files(files: &Files, settings: &LoadSettings) -> Result<Plan, Failure> {
    if files.sizes.contains_key(ADAPTER_CONFIG) {
        return Ok(Plan::Adapter(AdapterPlan::read(files)?));
    }
    let plan = roundhouse_models::inspect(files, settings)?;
    match &plan.gguf {
        Some(tokenizer) => Vocabulary::check(&tokenizer.model, tokenizer.pre.as_deref())?,
        None => TextCodec::check(files.sizes.keys().map(String::as_str))?,
    }
    Ok(Plan::Model(Arc::new(plan)))
}

/// Finds out what lies in a folder of the store, reading as little as tells it.
pub(crate) async fn plan_stored(
    catalog: &Catalog,
    artefact: &Artefact,
    settings: LoadSettings,
    handler: PlanHandler<'_>,
) -> Result<Plan, Failure> {
    let sizes: BTreeMap<String, u64> =
        artefact.files.iter().map(|file| (file.path.clone(), file.size)).collect();
    let Some(layout) = Layout::of(&sizes) else {
        let files = read_remote(catalog, artefact).await?;
        return super::blocking(move || plan_files(&files, &settings)).await;
    };
    let text = match settings_file(&sizes) {
        Some(file) => {
            let bytes = catalog.read(artefact, file, None).await?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        None => None,
    };
    handler(layout, text.as_deref())
}

impl Handlers {
    /// What runs an endpoint's handlers.
    ///
    /// # Errors
    /// `ModelInvalid` where the endpoint does not serve them.
    pub(super) fn workers(&self, endpoint: &EndpointName) -> Result<&Arc<Workers>, Failure> {
        let enabled = self.workers.as_ref().filter(|_| self.endpoints.get().contains(endpoint));
        enabled.ok_or_else(|| {
            let message = "it is a Python handler, and handlers are off here; --handlers, \
                           handlers.enabled or the endpoint's own `handlers = true` serves them";
            Failure::new(ErrorKind::ModelInvalid, message)
        })
    }

    /// What a load of the version is promised.
    pub(super) fn footprint(&self, id: &ArtefactId, plan: &Plan) -> (Footprint, Grade) {
        let workers = self.workers.as_deref();
        let peak = workers.and_then(|workers| workers.remembered(id.version.as_str()));
        let assumed = workers.map_or(Bytes::ZERO, |it| it.config().assumed_memory);
        plan.estimate(peak, assumed, self.budget)
    }

    /// Finds out what lies in a folder. Blocking.
    pub(super) fn plan_local(
        &self,
        id: &ArtefactId,
        dir: &Path,
        settings: &LoadSettings,
    ) -> Result<Plan, Failure> {
        let handler = |layout, text: Option<&str>| self.handler(id, layout, text);
        match self.program.as_deref().filter(|script| dir.join("code").join(script).is_file()) {
            Some(script) => {
                let sizes = roundhouse_models::list_local(dir)?;
                let layout = Layout::entered_by(script, &sizes);
                handler(layout, settings_text(dir, &sizes)?.as_deref())
            }
            None => plan_folder(dir, settings, &handler),
        }
    }

    /// Finds out what lies in a folder of the store, reading as little as tells it.
    pub(super) async fn plan_remote(
        &self,
        catalog: &Catalog,
        artefact: &Artefact,
        settings: LoadSettings,
    ) -> Result<Plan, Failure> {
        let handler = |layout, text: Option<&str>| self.handler(&artefact.id, layout, text);
        plan_stored(catalog, artefact, settings, &handler).await
    }

    fn handler(
        &self,
        id: &ArtefactId,
        layout: Layout,
        text: Option<&str>,
    ) -> Result<Plan, Failure> {
        let workers = self.workers(&id.model.endpoint)?;
        let settings = Settings::read(text, workers.config())?;
        Ok(Plan::Handler(Arc::new(HandlerPlan { layout, settings })))
    }
}

/// The artefact's settings, where they are of a size that settings have.
pub(crate) fn settings_file(sizes: &BTreeMap<String, u64>) -> Option<&'static str> {
    sizes.get(SETTINGS_FILE).filter(|size| **size <= SETTINGS_MAX).map(|_| SETTINGS_FILE)
}

/// Memory of a handler's processes, as a footprint.
pub(super) fn processes(memory: Bytes) -> Footprint {
    Footprint { host: memory, ..Footprint::default() }
}
