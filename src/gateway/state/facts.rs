//! What is shown of a loaded model.

use std::sync::Arc;

use roundhouse_types::TargetName;
use serde::Serialize;

/// Tells at once what is known of a target that is loaded; `None` for all others.
pub type FactsFn = Arc<dyn Fn(&TargetName) -> Option<ModelFacts> + Send + Sync>;

/// What is known of a loaded model, of its base where it is an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    /// The longest sequence served, prompt and answer together, in tokens.
    pub context: usize,
    /// How its weights lie in memory.
    pub dtype: String,
    /// What they were quantised to as they were loaded.
    pub quantize: Option<&'static str>,
    /// The room of its KV pool; absent for encoders.
    pub kv: Option<KvTokens>,
}

/// A KV pool, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KvTokens {
    /// The type in which keys and values are kept.
    pub dtype: &'static str,
    /// A block's.
    #[serde(rename = "block_tokens")]
    pub block: usize,
    /// What it always has.
    #[serde(rename = "floor_tokens")]
    pub floor: usize,
    /// What it has now.
    #[serde(rename = "tokens")]
    pub now: usize,
    /// What it may grow to.
    #[serde(rename = "most_tokens")]
    pub most: usize,
    /// What running sequences hold.
    #[serde(rename = "used_tokens")]
    pub used: usize,
}
