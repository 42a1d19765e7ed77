//! The words every other crate uses: ids, units, footprints, failures.
//!
//! Reading order: `ids` (who is meant), `units` and `duration` (how much), `footprint` (what a model
//! costs), `elastic` (how the part of it that grows is agreed on), `content` (what of it others may
//! hold as well), `places` (what tenants share), `failure` (what went wrong and what a caller may
//! do), `spent` (what a request took), `words` (numbers with
//! their nouns).
//!
//! Plain data and counters only: no I/O, no clock, no channel.

mod content;
mod duration;
mod elastic;
mod failure;
mod footprint;
mod ids;
mod places;
mod spent;
mod units;
mod words;

pub use content::{ContentId, SharedPart};
pub use duration::{parse_duration, show_duration};
pub use elastic::{KvOrder, KvReport};
pub use failure::{Detail, ErrorKind, Failure, RetryHint};
pub use footprint::{Footprint, Grade, Part};
pub use ids::{
    ArtefactId, DeviceId, EndpointName, InvalidName, ModelId, TargetModel, TargetName, TenantName,
    Version,
};
pub use places::Places;
pub use spent::Spent;
pub use units::{Bytes, ParseBytesError};
pub use words::{count, count_that};

use serde::{Deserialize, Serialize};

/// What a model does, found from its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// A causal language model.
    Generative,
    /// A text encoder that answers with one vector per input.
    Embedding,
    /// A sequence classifier that answers with labels and scores.
    Classification,
    /// A classifier of each token.
    #[serde(rename = "token-classification")]
    TokenClassification,
    /// A masked language model: it tells which tokens may stand at a place.
    #[serde(rename = "fill-mask")]
    FillMask,
    /// It tells where in a text the answer to a question begins and ends.
    #[serde(rename = "question-answering")]
    QuestionAnswering,
    /// Code of the artefact's own, run in worker processes; it takes and answers any bytes.
    Handler,
    /// An engine that the operator has started for it by command; it answers in its own words.
    External,
    /// Weights that change what another model, its base, computes. It does what its base does.
    Adapter,
}

impl ModelKind {
    /// The kind's name on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generative => "generative",
            Self::Embedding => "embedding",
            Self::Classification => "classification",
            Self::TokenClassification => "token-classification",
            Self::FillMask => "fill-mask",
            Self::QuestionAnswering => "question-answering",
            Self::Handler => "handler",
            Self::External => "external",
            Self::Adapter => "adapter",
        }
    }
}

/// Where a model was found when a request asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// Loaded already.
    Device,
    /// A copy lay in the host's memory; it had to be brought to the device.
    Host,
    /// Its files were whole on disk; it had to be loaded.
    Disk,
    /// It had to be fetched and loaded.
    Store,
}

impl Tier {
    /// The tier's name on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Host => "host",
            Self::Disk => "disk",
            Self::Store => "store",
        }
    }
}
