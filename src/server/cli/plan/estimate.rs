//! What a target's files mean in bytes, sequences and machines.

use roundhouse_models::{AdapterPlan, KvDtype, ModelPlan, WeightShare};
use roundhouse_types::{Bytes, DeviceId, Footprint, Grade, ModelKind};
use serde::Serialize;

use super::instances::{self, Device, Instance};
use super::source::Found;
use crate::app::budgets::Budgets;
use crate::cli::adapts::Adapts;
use crate::config::Config;
use crate::loader::Plan;

/// Contexts whose sequences are counted, beside the longest one served.
const CONTEXTS: [usize; 4] = [512, 2048, 8192, 32_768];

/// How far the numbers can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Trust {
    /// Read from configuration and headers, exact in weights and KV.
    Exact,
    /// A server has had this version: an archive in its cache, or a handler that it ran.
    Remembered,
    /// The artefact's settings or the operator say so; nobody has measured it.
    Declared,
    /// Only its content tells, and that is seen when it is fetched.
    Unknown,
}

/// The parts of the sum.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Parts {
    #[serde(flatten)]
    pub(super) parts: Footprint,
    pub(super) total: Bytes,
}

/// How many sequences of a length the KV pool holds side by side.
#[derive(Debug, Serialize)]
pub(super) struct Sequences {
    pub(super) context: usize,
    /// When it has grown as far as it may.
    pub(super) sequences: u64,
    /// At its floor, which is what is charged when the model is loaded.
    pub(super) at_floor: u64,
}

/// Whether a device can hold it.
#[derive(Debug, Serialize)]
pub(super) struct Fit {
    pub(super) id: DeviceId,
    pub(super) budget_bytes: Bytes,
    pub(super) fits: bool,
    /// How many like it have room side by side.
    pub(super) models: u64,
}

/// One target.
#[derive(Debug, Serialize)]
pub(super) struct Estimate {
    pub(super) target: String,
    pub(super) form: &'static str,
    pub(super) grade: Trust,
    pub(super) kind: Option<ModelKind>,
    pub(super) architecture: Option<String>,
    /// Absent where unknown; then nothing below is known either.
    #[serde(rename = "bytes")]
    pub(super) footprint: Option<Parts>,
    pub(super) weights: Vec<WeightShare>,
    /// Of an adapter: what it builds on and changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) adapter: Option<Adapts>,
    /// The longest sequence served, in tokens; absent for handlers and adapters.
    pub(super) context: Option<usize>,
    pub(super) kv_token_bytes: Option<Bytes>,
    pub(super) kv_dtype: Option<&'static str>,
    /// What the KV pool may grow to; `bytes` has its floor.
    pub(super) kv_most_bytes: Option<Bytes>,
    pub(super) sequences: Vec<Sequences>,
    /// Models of this kind that the largest device holds side by side.
    pub(super) models_in_budget: Option<u64>,
    /// Every device that it could go to.
    pub(super) devices: Vec<Fit>,
    pub(super) instances: Vec<&'static Instance>,
    pub(super) warnings: Vec<String>,
}

impl Estimate {
    pub(super) fn of(target: &str, found: Found, config: &Config, budgets: &Budgets) -> Self {
        let mut estimate = Self {
            target: target.to_owned(),
            form: found.form,
            grade: Trust::Unknown,
            kind: None,
            architecture: None,
            footprint: None,
            weights: Vec::new(),
            adapter: None,
            context: None,
            kv_token_bytes: None,
            kv_dtype: None,
            kv_most_bytes: None,
            sequences: Vec::new(),
            models_in_budget: None,
            devices: Vec::new(),
            instances: Vec::new(),
            warnings: Vec::new(),
        };
        let Some(plan) = &found.plan else { return estimate };
        let of_handlers = budgets.of_handlers();
        let (footprint, grade) = plan.estimate(found.peak, config.handlers.memory, of_handlers);
        let total = footprint.total();
        estimate.kind = Some(plan.kind());
        estimate.grade = match grade {
            Grade::Exact if found.is_remembered => Trust::Remembered,
            Grade::Exact => Trust::Exact,
            Grade::Remembered => Trust::Remembered,
            Grade::Declared => Trust::Declared,
        };
        estimate.footprint = Some(Parts { parts: footprint, total });
        estimate.place(plan, total, budgets);
        match plan {
            Plan::Model(plan) => estimate.model(plan),
            Plan::Adapter(plan) => estimate.adapter(plan),
            Plan::Handler(_) | Plan::External(_) | Plan::Contained(_) => {}
        }
        estimate.warn_of_room(total);
        estimate
    }

    /// Devices and machines that it could go to.
    fn place(&mut self, plan: &Plan, total: Bytes, budgets: &Budgets) {
        let is_handler = plan.kind() == ModelKind::Handler;
        let all: Vec<DeviceId> = budgets.devices.iter().map(|(device, _)| *device).collect();
        let open = roundhouse_residency::may_go(plan.kind(), plan.is_off_cards(), &all);
        // A handler's processes live in the host's memory.
        let may_go = |device: &DeviceId| open.contains(device) && (!is_handler || device.is_host());
        let devices = budgets.devices.iter().filter(|(device, _)| may_go(device));
        let fit = |(id, budget): &(DeviceId, Bytes)| Fit {
            id: *id,
            budget_bytes: *budget,
            fits: total <= *budget,
            models: budget.0 / total.0.max(1),
        };
        self.devices = devices.map(fit).collect();
        self.models_in_budget = self.devices.iter().map(|fit| fit.models).max();
        self.instances = instances::smallest_for(total);
        if self.kind == Some(ModelKind::Handler) {
            // What a handler does with a GPU is its own matter.
            self.instances.retain(|instance| instance.device() == Device::Cpu);
        }
    }

    fn warn_of_room(&mut self, total: Bytes) {
        if !self.devices.iter().any(|fit| fit.fits) {
            let shown = |fit: &Fit| format!("{} {}", fit.id, fit.budget_bytes);
            let budgets: Vec<String> = self.devices.iter().map(shown).collect();
            self.warnings.push(match budgets.is_empty() {
                true => "it is a handler, and no [[device]] is the cpu".into(),
                false => format!(
                    "it needs {total}, more than the whole budget of any device ({}): it can never \
                     be loaded",
                    budgets.join(", ")
                ),
            });
        }
    }

    fn adapter(&mut self, plan: &AdapterPlan) {
        // It runs where its base does.
        self.instances.clear();
        self.adapter = Some(Adapts::of(plan));
        if plan.base_name().is_none() {
            let missing = "adapter_config.json has no base_model_name_or_path: it cannot be served";
            self.warnings.push(missing.to_owned());
        }
    }

    fn model(&mut self, plan: &ModelPlan) {
        self.architecture = Some(plan.architecture.clone());
        self.context = Some(plan.context);
        self.weights.clone_from(&plan.weights);
        if let Some(kv) = plan.kv() {
            self.kv_token_bytes = Some(plan.kv_token_bytes);
            self.kv_dtype = plan.kv_dtype.map(KvDtype::name);
            self.kv_most_bytes = Some(Bytes(kv.chunk_bytes.0 * kv.chunks() as u64));
            let mut contexts: Vec<usize> =
                CONTEXTS.into_iter().filter(|context| *context < plan.context).collect();
            contexts.push(plan.context);
            // A sequence has blocks of its own.
            let holds = |context: usize| {
                let blocks = context.div_ceil(kv.block_tokens);
                let [sequences, at_floor] =
                    [kv.blocks, kv.floor_blocks()].map(|pool| (pool / blocks) as u64);
                Sequences { context, sequences, at_floor }
            };
            self.sequences = contexts.into_iter().map(holds).collect();
        }
        self.warnings.extend(plan.unread.clone());
        let fallbacks = plan.fallbacks.iter();
        self.warnings.extend(fallbacks.map(|it| format!("quantised as far as shapes allow: {it}")));
        // Vectors are f32 always, and next to nothing.
        let grows = |it: &&WeightShare| {
            it.bytes > it.file_bytes
                && it.file_dtype != it.memory_dtype
                && it.bytes.0 > plan.footprint.weights.0 / 100
        };
        for share in plan.weights.iter().filter(grows) {
            let more = share.bytes.saturating_sub(share.file_bytes);
            self.warnings.push(format!(
                "on the CPU its {} of {} weights become {} in {}: {more} more, with each copy loaded",
                share.file_bytes, share.file_dtype, share.bytes, share.memory_dtype
            ));
        }
    }
}
