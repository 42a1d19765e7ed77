//! What can go wrong between a folder of files and a loaded runner.

use std::io;

use roundhouse_types::{ErrorKind, Failure, RetryHint};
use thiserror::Error;

/// Why a model cannot be inspected or loaded.
#[derive(Debug, Error)]
pub enum Error {
    /// The files are not those of a kind we know.
    #[error("not a model of a known kind: expected {expected}; found {found}")]
    UnknownKind {
        /// What would have been recognised.
        expected: &'static str,
        /// The files seen, a bounded list.
        found: String,
    },
    /// A kind we recognise and do not serve.
    #[error("{what} not served yet{advice}")]
    NotServed {
        /// What was recognised.
        what: String,
        /// What would help, with its own punctuation, or empty.
        advice: &'static str,
    },
    /// A configuration file that cannot be understood or asks for what we do not compute.
    #[error("{file}: {reason}")]
    Config {
        /// The file, relative to the artefact.
        file: String,
        /// What is wrong with which key.
        reason: String,
    },
    /// A weight file whose header is wrong.
    #[error("{file} is not a sound {} file: {reason}", kind_of(file))]
    Header {
        /// The file, relative to the artefact.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// What Git has in place of a large file.
    #[error(
        "{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in the repository that it \
         is from, and upload what that brings"
    )]
    Pointer {
        /// The file, relative to the artefact.
        file: String,
    },
    /// A weight file with fewer or more bytes than its header describes.
    #[error("{file} has {found} bytes and its header describes {expected}: truncated or damaged")]
    Truncated {
        /// The file, relative to the artefact.
        file: String,
        /// Bytes that the header describes, itself included.
        expected: u64,
        /// Bytes in the file.
        found: u64,
    },
    /// A tensor that the configuration asks for and no file holds.
    #[error("tensor '{name}' of shape {expected:?} is in none of the weight files")]
    MissingTensor {
        /// Its name.
        name: String,
        /// The shape asked for.
        expected: Vec<usize>,
    },
    /// A tensor of another shape than the configuration says.
    #[error("tensor '{name}' has shape {found:?} where the configuration asks for {expected:?}")]
    WrongShape {
        /// Its name.
        name: String,
        /// The shape asked for.
        expected: Vec<usize>,
        /// The shape found.
        found: Vec<usize>,
    },
    /// A tensor in a number format we do not read.
    #[error("tensor '{name}' has type {found}; F32, F16 and BF16 are read")]
    WrongType {
        /// Its name.
        name: String,
        /// The type found.
        found: String,
    },
    /// A tensor with values that the chosen weight format cannot hold.
    #[error("tensor '{name}' has values beyond the range of f16; load it as f32")]
    BeyondRange {
        /// Its name.
        name: String,
    },
    /// A tensor with values that are not finite, in a format whose kernels rely on it.
    #[error("tensor '{name}' has values that are not finite")]
    NotFinite {
        /// Its name.
        name: String,
    },
    /// The plan's bytes cannot be counted in 64 bits.
    #[error("the model's {part} would need more bytes than can be counted")]
    Overflow {
        /// Which part of the footprint.
        part: &'static str,
    },
    /// A file could not be read.
    #[error("{file} cannot be read")]
    Io {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was read is not what the files are known to hold.
    #[error("tensor '{name}' has other bytes on disk than were fetched")]
    Altered {
        /// Its name, or those of what is stacked, joined by `+`.
        name: String,
    },
    /// The load was cancelled.
    #[error("the load was cancelled")]
    Cancelled,
    /// A device that this build cannot use.
    #[error("this build has no support for device {device}")]
    NoDevice {
        /// The device asked for.
        device: roundhouse_types::DeviceId,
    },
    /// A kind of model that devices of this kind do not compute.
    #[error("{what} computed on the cpu only, not on {device}{advice}")]
    HostOnly {
        /// What it is, with its verb.
        what: &'static str,
        /// The device asked for.
        device: roundhouse_types::DeviceId,
        /// What would help, with its own punctuation, or empty.
        advice: &'static str,
    },
    /// A card that cannot be used.
    #[error("{device} cannot be used: {reason}")]
    Card {
        /// The card.
        device: roundhouse_types::DeviceId,
        /// What is wrong.
        reason: String,
    },
    /// The device ran out of memory while the model was loaded.
    #[error("{device} has no room left for the model")]
    NoRoom {
        /// The device.
        device: roundhouse_types::DeviceId,
    },
    /// Tensors could not be built on the device.
    #[error("tensors could not be built")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// What the client is told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownKind { .. }
            | Self::NotServed { .. }
            | Self::Config { .. }
            | Self::Header { .. }
            | Self::Pointer { .. }
            | Self::Truncated { .. }
            | Self::MissingTensor { .. }
            | Self::WrongShape { .. }
            | Self::WrongType { .. }
            | Self::BeyondRange { .. }
            | Self::NotFinite { .. }
            | Self::HostOnly { .. }
            | Self::Overflow { .. } => ErrorKind::ModelInvalid,
            Self::NoRoom { .. } => ErrorKind::Overloaded,
            Self::Altered { .. } => ErrorKind::StoreUnavailable,
            Self::Cancelled => ErrorKind::NotReady,
            Self::Io { .. } | Self::NoDevice { .. } | Self::Card { .. } | Self::Tensor(_) => {
                ErrorKind::Internal
            }
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> RetryHint {
        match self {
            Self::Io { .. } | Self::Altered { .. } | Self::Cancelled | Self::NoRoom { .. } => {
                RetryHint::Later
            }
            _ => RetryHint::Never,
        }
    }

    pub(crate) fn config(file: &str, reason: impl Into<String>) -> Self {
        Self::Config { file: file.into(), reason: reason.into() }
    }

    pub(crate) fn header(file: &str, reason: impl Into<String>) -> Self {
        Self::Header { file: file.into(), reason: reason.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from_error(error.kind(), &error).with_retry(error.retry())
    }
}

/// What a weight file is, by its name.
fn kind_of(file: &str) -> &'static str {
    if file.ends_with(".gguf") { "GGUF" } else { "safetensors" }
}
