//! LoRA adapters in PEFT's layout: small weights beside a base's, for rows that name them.
//!
//! Reading order: `config` (what `adapter_config.json` asks for, with `matching`: which modules it
//! means), `names` (the tensors by module), `modules` (what a base has that an adapter can
//! change; `experts`: those of sparse layers) and `heads` (what it may bring of its own), `fit` (each tensor's place, or why it has none) in the memory that `layout`
//! describes, `plan`; `load` with `dora` (what is computed from the base's weights, once); `kept` (copies in the host's memory); `step`
//! (a step's rows by adapter) over `kernel`.
//!
//! For a module's weights `W`, the adapter's `A` and `B` and its scale `s`, a row becomes
//! `W x + s B (A x)` (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021). The
//! base's matrices are never changed, so they may lie in any format, and any adapters share a step.

mod config;
mod dora;
mod experts;
mod fit;
mod heads;
mod kept;
mod kernel;
mod layout;
mod load;
mod matching;
mod modules;
mod names;
mod plan;
mod step;
mod told;

pub(crate) use experts::ExpertSites;
pub(crate) use heads::{First, OwnHead};
pub use kept::{AdapterWeights, promote_adapter};
pub(crate) use load::BaseWeights;
pub use load::{AdapterBase, LoadedAdapter, load_adapter};
pub(crate) use modules::{Modules, Site};
pub use plan::AdapterPlan;
pub(crate) use step::{Adapters, Groups, Headed, Mix};

/// The file that says that a folder is an adapter, and which.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// Its weights.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
