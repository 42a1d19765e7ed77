//! Which model an adapter builds on: its author's name for it, made a target.

use std::collections::BTreeMap;
use std::sync::Arc;

use roundhouse_models::AdapterPlan;
use roundhouse_store::Freshness;
use roundhouse_tenancy::{Current, Policy};
use roundhouse_types::ArtefactId;
use roundhouse_types::{
    EndpointName, ErrorKind, Failure, Footprint, Grade, ModelId, TargetModel, TargetName,
};
use tracing::{debug, info};

use super::plan::Plan;
use super::{ModelLoader, Source, blocking, local, locked};

/// The longest name that a message repeats.
const SHOWN: usize = 200;

/// What operators say about bases. Owned by the loader.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bases {
    /// By endpoint: targets by the names that adapters have for them.
    pub(crate) named: BTreeMap<EndpointName, BTreeMap<String, TargetName>>,
    /// Of an endpoint with one model: that is what its adapters build on, whatever they call it.
    pub(crate) only: BTreeMap<EndpointName, TargetName>,
    /// Of an endpoint that has no models of its own to build on: the endpoint that has them.
    pub(crate) elsewhere: BTreeMap<EndpointName, EndpointName>,
}

/// What a load of a version needs beside its files.
pub(super) struct Terms {
    pub(super) footprint: Option<(Footprint, Grade)>,
    /// Of an adapter.
    pub(super) base: Option<ModelId>,
}

impl Bases {
    /// The target that an adapter's author means, whether or not it exists: what the operator says,
    /// else the name itself, as a relative target. Never a URI or a path: an adapter is its uploader's,
    /// and names no more than its caller could.
    pub(crate) fn target(&self, adapter: &ModelId, name: &str) -> Result<TargetName, String> {
        if let Some(only) = self.only.get(&adapter.endpoint) {
            return Ok(only.clone());
        }
        let named = self.named.get(&adapter.endpoint).and_then(|named| named.get(name));
        if let Some(target) = named {
            return Ok(target.clone());
        }
        if name.contains("://") {
            return Err("a URI".into());
        }
        TargetModel::new(name).check().map_err(|why| format!("no target's name: {why}"))
    }
}

impl ModelLoader {
    /// The same loader, with what its operator says about bases.
    pub(crate) fn with_bases(self, bases: Bases) -> Self {
        self.bases.set(bases);
        self
    }

    /// What operators say about bases now.
    pub(crate) fn bases(&self) -> Bases {
        (*self.bases.get()).clone()
    }

    /// Whether models lie there for other endpoints' adapters alone.
    pub(crate) fn is_elsewhere(&self, endpoint: &EndpointName) -> bool {
        self.bases.get().elsewhere.values().any(|elsewhere| elsewhere == endpoint)
    }

    /// The same loader, with who may use what.
    pub(crate) fn under(mut self, policy: Arc<Current<Policy>>) -> Self {
        self.policy = policy;
        self
    }

    /// Loaded adapters whose bases the policy does not let them stand on any more.
    pub(crate) fn unsupported(&self) -> Vec<ModelId> {
        let policy = self.policy.get();
        let mut adapters = self.placed.adapters();
        adapters.retain(|(adapter, base)| !policy.may_build_on(adapter, base));
        adapters.into_iter().map(|(adapter, _)| adapter).collect()
    }

    /// What a load of the version needs, where its plan is known.
    ///
    /// # Errors
    /// `ModelInvalid` for an adapter whose base cannot be had, or that does not fit it.
    pub(super) async fn terms(
        &self,
        id: &ArtefactId,
        plan: Option<&Plan>,
    ) -> Result<Terms, Failure> {
        let Some(plan) = plan else { return Ok(Terms { footprint: None, base: None }) };
        if let Plan::Contained(rule) = plan {
            return self.contained_terms(id, rule).await;
        }
        let Plan::Adapter(adapter) = plan else {
            let footprint = self.handlers.footprint(id, plan);
            return Ok(Terms { footprint: Some(footprint), base: None });
        };
        let base = self.base(&id.model, adapter.base_name()).await?;
        let footprint = match self.plan_of_current(&base) {
            Some(plan) => {
                let (adapter, named) = (adapter.clone(), base.to_string());
                let fitted = blocking(move || beside(&adapter, &plan, &named));
                fitted.await.map_err(|failure| super::named(id, &failure))?
            }
            None => adapter.footprint(),
        };
        let host = footprint.host + self.recall(id).texts;
        let footprint = Footprint { host, ..footprint };
        Ok(Terms { footprint: Some((footprint, Grade::Exact)), base: Some(base) })
    }

    /// The model that an adapter builds on. An adapter is its uploader's, so its file names no more than
    /// all who may use the adapter could name themselves. What they could not is answered as what is
    /// not there, and is not looked up.
    async fn base(&self, adapter: &ModelId, name: Option<&str>) -> Result<ModelId, Failure> {
        let refuse = |why: String| Err(Failure::new(ErrorKind::ModelInvalid, why));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return refuse(format!(
                "{adapter} is an adapter and does not say of what: adapter_config.json has no \
                 base_model_name_or_path"
            ));
        };
        let shown: String = name.chars().take(SHOWN).collect();
        let endpoint = &adapter.endpoint;
        let bases = self.bases.get();
        let target = match bases.target(adapter, name) {
            Ok(target) => target,
            Err(what) => {
                return refuse(format!(
                    "{adapter} is an adapter of '{shown}', which is {what}; {}",
                    how(endpoint, &shown)
                ));
            }
        };
        let elsewhere = bases.elsewhere.get(endpoint);
        let here = ModelId { endpoint: endpoint.clone(), target: target.clone() };
        let there = elsewhere.map(|endpoint| ModelId { endpoint: endpoint.clone(), target });
        for base in std::iter::once(here).chain(there) {
            let is_allowed = self.policy.get().may_build_on(adapter, &base);
            if !is_allowed {
                info!(%adapter, %base, "not everybody who may use the adapter may use its base");
            }
            if base != *adapter && is_allowed && self.may_be_had(&base).await {
                return Ok(base);
            }
        }
        refuse(format!(
            "{adapter} is an adapter of '{shown}', and no target of {endpoint} has this name; {}",
            how(endpoint, &shown)
        ))
    }

    /// Whether a model is there to be loaded. Where the store cannot say it is taken to be: then its
    /// load will tell why not.
    async fn may_be_had(&self, model: &ModelId) -> bool {
        match self.source(&model.endpoint) {
            Err(_) => false,
            Ok(Source::Local(models)) => {
                let (models, model) = (models.clone(), model.clone());
                blocking(move || Ok(local::announced(&models, &model).is_ok()))
                    .await
                    .unwrap_or(false)
            }
            Ok(Source::Store(catalog, cache)) => {
                // A base that was seen before is not looked up for each of its adapters.
                let origin = catalog.origin(&model.target);
                if origin.is_some_and(|origin| self.was_named(&cache, model, &origin)) {
                    return true;
                }
                match catalog.resolve(&model.target, Freshness::Cached).await {
                    Ok(_) => true,
                    Err(error) => {
                        let failure = Failure::from(error);
                        debug!(%model, %failure, "an adapter's base was not found");
                        failure.kind() != ErrorKind::ModelNotFound
                    }
                }
            }
        }
    }

    /// The plan of the version that the model's source named last, where it was made.
    fn plan_of_current(&self, model: &ModelId) -> Option<Plan> {
        if let Some(plan) = self.external(model) {
            return Some(plan);
        }
        let current = locked(&self.current).get(model).cloned()?;
        self.recall(&current).plan
    }
}

/// What an adapter takes beside a base of this plan, which is called so.
///
/// # Errors
/// `ModelInvalid` where the base carries no adapters, or this one does not fit it.
pub(crate) fn beside(
    adapter: &AdapterPlan,
    base: &Plan,
    named: &str,
) -> Result<Footprint, Failure> {
    let what = match base {
        Plan::Model(base) => return Ok(adapter.on(base)?.footprint()),
        // Residency refuses adapters as bases. Whether an engine takes it, it says itself.
        Plan::Adapter(_) | Plan::External(_) => return Ok(adapter.footprint()),
        Plan::Handler(_) => "a Python handler, not a model",
        Plan::Contained(_) => "in a container, which takes no adapters",
    };
    Err(Failure::new(ErrorKind::ModelInvalid, format!("its base {named} is {what}")))
}

fn how(endpoint: &EndpointName, name: &str) -> String {
    format!(
        "upload the base there, or say in the settings of endpoint {endpoint} which target it is: \
         [endpoint.bases] \"{name}\" = \"some/target\""
    )
}
