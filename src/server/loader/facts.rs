//! What is known of a loaded model of ours: what it serves, how its weights lie, and how much room
//! its sequences have.

use roundhouse_engine::EngineHandle;
use roundhouse_models::{KvDtype, ModelPlan, Quantize};
use roundhouse_types::{ArtefactId, Bytes, DeviceId, ModelId};
use serde::Serialize;

use super::ModelLoader;

/// Facts of one loaded model, as they are shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Facts {
    /// The longest sequence served, in tokens.
    pub(crate) context: usize,
    /// How its weights lie in memory, the format of most bytes first.
    pub(crate) dtype: String,
    /// What they were quantised to as they were loaded, where that was asked for.
    pub(crate) quantize: Option<&'static str>,
    /// The room for keys and values; absent for encoders.
    pub(crate) kv: Option<KvFacts>,
}

/// The KV pool of a loaded model. Each count of blocks is given in tokens as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct KvFacts {
    /// Tokens in one block.
    pub(crate) block_tokens: usize,
    /// Bytes of one token's keys and values.
    pub(crate) token_bytes: Bytes,
    /// The type in which they are kept.
    pub(crate) dtype: &'static str,
    /// What it always has: one sequence of the served context.
    pub(crate) floor: Room,
    /// What it has now.
    pub(crate) now: Room,
    /// What it may grow to.
    pub(crate) most: Room,
    /// What running sequences hold of it.
    pub(crate) used: Room,
}

/// A part of a KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Room {
    pub(crate) blocks: usize,
    pub(crate) tokens: usize,
}

impl ModelLoader {
    /// What is known of a loaded model of ours, of its base where it is an adapter; `None` for any
    /// other. Never waits.
    pub(crate) fn facts(&self, model: &ModelId) -> Option<Facts> {
        self.placed.facts(model)
    }

    /// The same of one load.
    pub(crate) fn facts_of(&self, id: &ArtefactId, device: DeviceId) -> Option<Facts> {
        self.placed.facts_of(id, device)
    }
}

impl Facts {
    pub(super) fn of(plan: &ModelPlan, engine: &EngineHandle) -> Self {
        let mut formats: Vec<&str> = Vec::new();
        for share in &plan.weights {
            if !formats.contains(&share.memory_dtype) {
                formats.push(share.memory_dtype);
            }
        }
        let kv = engine.kv_room().map(|room| {
            let of = |blocks| Room { blocks, tokens: blocks * room.block_tokens };
            KvFacts {
                block_tokens: room.block_tokens,
                token_bytes: plan.kv_token_bytes,
                dtype: plan.kv_dtype.map_or("f32", KvDtype::name),
                floor: of(room.floor),
                now: of(room.now),
                most: of(room.most),
                used: of(room.used),
            }
        });
        let quantize = plan.quantize.map(Quantize::name);
        Self { context: plan.context, dtype: formats.join(", "), quantize, kv }
    }
}
