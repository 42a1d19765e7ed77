//! What a model costs on a device, by part.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::Bytes;

/// The parts of the sum in which a device's memory is accounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Parameters, in the form they lie in memory.
    Weights,
    /// Key and value blocks.
    Kv,
    /// The largest step's activations.
    Workspace,
    /// Tokenizer, template, labels.
    Host,
}

/// The bytes a resident needs on its device, by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Footprint {
    /// Parameters, in the form they lie in memory (bf16 is widened to f32 on CPU).
    pub weights: Bytes,
    /// Key and value blocks for the served context.
    pub kv: Bytes,
    /// The largest step's activations.
    pub workspace: Bytes,
    /// Tokenizer, template, labels.
    pub host: Bytes,
}

impl AddAssign for Footprint {
    fn add_assign(&mut self, other: Self) {
        self.weights += other.weights;
        self.kv += other.kv;
        self.workspace += other.workspace;
        self.host += other.host;
    }
}

impl Footprint {
    /// The sum of the parts.
    pub fn total(&self) -> Bytes {
        self.weights + self.kv + self.workspace + self.host
    }

    /// One part's bytes.
    pub fn part(&self, part: Part) -> Bytes {
        match part {
            Part::Weights => self.weights,
            Part::Kv => self.kv,
            Part::Workspace => self.workspace,
            Part::Host => self.host,
        }
    }
}

/// How far a footprint can be trusted before the load, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// Read from the configuration and the weight files' headers.
    Exact,
    /// This version was loaded before.
    Remembered,
    /// The artefact's settings or the operator say so; nobody has measured it yet.
    Declared,
}
