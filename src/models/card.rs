//! CUDA cards: whether there are any, what their memory holds, and what their errors mean.
//!
//! Without feature `cuda` the same questions are answered: there is none, and why. A card is opened once
//! in a process and used by one lane. Its stream is one for uploads and for steps: what a load
//! copies stands in line between two steps, and nothing waits for an event.

use candle_core::Device;
use roundhouse_engine::RunnerError;
use roundhouse_types::{Bytes, DeviceId};

use crate::Error;
use crate::inspect::{Family, ModelPlan};

#[cfg(not(feature = "cuda"))]
#[path = "card/absent.rs"]
mod driver;
#[cfg(feature = "cuda")]
mod driver;
// Held by ordinary tests, too: a library of C's calls are the same without a card.
#[cfg(any(test, feature = "cuda"))]
mod busy;
mod exercise;

/// Why there is no card in a build without CUDA.
pub const NO_CUDA: &str = "this build has no CUDA support";

/// What a card's memory holds, as its driver tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CardMemory {
    /// What nobody has taken: neither this process nor another.
    pub free: Bytes,
    /// What the card has.
    pub total: Bytes,
}

/// One CUDA card, opened. Clones are the same card.
#[derive(Debug, Clone)]
pub struct Card {
    ordinal: u16,
    device: Device,
}

/// How many cards the driver shows.
///
/// # Errors
/// When there is no driver or it does not answer, or this build has no CUDA, in words.
pub fn cards() -> Result<u16, String> {
    driver::count()
}

impl Card {
    /// Opens a card: makes its context, loads the libraries and runs each kind of kernel once, which takes
    /// some hundred mebibytes of its memory for as long as the process lives, and seconds where the
    /// driver compiles kernels for the first time.
    ///
    /// # Errors
    /// When there is no such card, a library is missing, or this build has no CUDA.
    pub fn open(ordinal: u16) -> Result<Self, Error> {
        let device = driver::open(ordinal).map_err(|reason| no_card(ordinal, reason))?;
        exercise::run(&device).map_err(|error| no_card(ordinal, error.to_string()))?;
        Ok(Self { ordinal, device })
    }

    /// Which it is.
    pub fn id(&self) -> DeviceId {
        DeviceId::Cuda(self.ordinal)
    }

    /// What the driver calls it.
    pub fn name(&self) -> String {
        driver::name(&self.device).unwrap_or_else(|reason| format!("unnamed ({reason})"))
    }

    /// What its memory holds now.
    ///
    /// # Errors
    /// When the driver does not tell.
    pub fn memory(&self) -> Result<CardMemory, Error> {
        driver::memory(&self.device).map_err(|reason| no_card(self.ordinal, reason))
    }

    /// The part of the last moments, a sixth of a second to a second, in which it computed, for this
    /// process or another, from 0 to 1.
    ///
    /// # Errors
    /// When the driver's management library (NVML) is not there or does not tell, in words.
    pub fn busy(&self) -> Result<f64, String> {
        driver::busy(&self.device)
    }

    /// Gives the driver what was freed: waits until the card has done all that it was given, and
    /// has the pool of asynchronous allocations keep nothing that is not in use. Before that, freed
    /// bytes still count as taken.
    ///
    /// # Errors
    /// When the driver does not do so.
    pub fn give_back(&self) -> Result<(), Error> {
        driver::give_back(&self.device).map_err(|reason| no_card(self.ordinal, reason))
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }
}

fn no_card(ordinal: u16, reason: String) -> Error {
    Error::Card { device: DeviceId::Cuda(ordinal), reason }
}

impl ModelPlan {
    /// What it is, with its verb, where nothing but the host's processor computes it: cards do neither
    /// encoders nor quantised weights.
    pub fn host_only(&self) -> Option<&'static str> {
        match &self.family {
            Family::Encoder { .. } => Some("encoders are"),
            Family::Decoder { .. } if self.formats.have_blocks() => Some("quantised weights are"),
            Family::Decoder { config, .. } if config.sees_behind => {
                Some("models whose tokens see those behind them are")
            }
            Family::Decoder { .. } => None,
        }
    }

    /// What would have cards compute it, with its own punctuation, where settings alone keep it off them.
    pub(crate) fn off_host(&self) -> Option<&'static str> {
        let is_quantised =
            matches!(self.family, Family::Decoder { .. }) && self.formats.have_blocks();
        is_quantised.then_some("; dtype = \"bf16\", without quantize, has them widened at load")
    }
}

/// What a step's error means: a card without room is still to be trusted.
pub(crate) fn step_failure(error: &candle_core::Error) -> RunnerError {
    match driver::is_out_of_memory(error) {
        true => RunnerError::Room("the card's memory is used up".to_owned()),
        false => RunnerError::Device(error.to_string()),
    }
}

/// What an error of a load means: one for lack of room may not come again.
pub(crate) fn load_failure(device: DeviceId, error: Error) -> Error {
    match error {
        Error::Tensor(error) if driver::is_out_of_memory(&error) => Error::NoRoom { device },
        other => other,
    }
}
