//! A build without CUDA.

use candle_core::Device;

use super::{CardMemory, NO_CUDA};

pub(super) fn count() -> Result<u16, String> {
    Err(NO_CUDA.to_owned())
}

pub(super) fn open(_: u16) -> Result<Device, String> {
    Err(NO_CUDA.to_owned())
}

pub(super) fn name(_: &Device) -> Result<String, String> {
    Err(NO_CUDA.to_owned())
}

pub(super) fn memory(_: &Device) -> Result<CardMemory, String> {
    Err(NO_CUDA.to_owned())
}

pub(super) fn busy(_: &Device) -> Result<f64, String> {
    Err(NO_CUDA.to_owned())
}

pub(super) fn give_back(_: &Device) -> Result<(), String> {
    Err(NO_CUDA.to_owned())
}

pub(super) fn is_out_of_memory(_: &candle_core::Error) -> bool {
    false
}
