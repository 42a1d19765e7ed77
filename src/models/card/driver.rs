//! NVIDIA's driver, through the bindings that candle uses.

use std::sync::OnceLock;

use candle_core::cuda_backend::CudaError;
use candle_core::cuda_backend::cudarc::cublas::result::CublasError;
use candle_core::cuda_backend::cudarc::cublas::sys::cublasStatus_t;
use candle_core::cuda_backend::cudarc::driver::sys::CUresult;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result};
use candle_core::{CudaDevice, Device, Error};
use roundhouse_types::Bytes;

use super::CardMemory;
use super::busy::{LIBRARY, Management};

pub(super) fn count() -> Result<u16, String> {
    result::init().map_err(told)?;
    let count = result::device::get_count().map_err(told)?;
    match u16::try_from(count) {
        Ok(0) | Err(_) => Err("the driver shows no card".to_owned()),
        Ok(count) => Ok(count),
    }
}

/// On a stream of its own: a thread's default stream would be another one for each thread.
pub(super) fn open(ordinal: u16) -> Result<Device, String> {
    let there = count()?;
    if ordinal >= there {
        return Err(format!("the driver shows {there}, the first of them cuda:0"));
    }
    let device = CudaDevice::new_with_stream(ordinal.into()).map_err(|error| error.to_string())?;
    Ok(Device::Cuda(device))
}

pub(super) fn name(device: &Device) -> Result<String, String> {
    context(device)?.name().map_err(told)
}

pub(super) fn memory(device: &Device) -> Result<CardMemory, String> {
    let (free, total) = context(device)?.mem_get_info().map_err(told)?;
    Ok(CardMemory { free: Bytes(free as u64), total: Bytes(total as u64) })
}

pub(super) fn busy(device: &Device) -> Result<f64, String> {
    static OPENED: OnceLock<Result<Management, String>> = OnceLock::new();
    let management = OPENED.get_or_init(|| Management::open(LIBRARY)).as_ref()?;
    let uuid = context(device)?.uuid().map_err(told)?;
    management.busy(uuid.bytes.map(|byte| byte.to_ne_bytes()[0]))
}

pub(super) fn give_back(device: &Device) -> Result<(), String> {
    let context = context(device)?;
    context.synchronize().map_err(told)?;
    if !context.has_async_alloc() {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "the bindings' pools have no safe calls")]
    // SAFETY: the device was given by the driver when the context was made, which lives on here; its
    // pool lives as long as the driver. Trimming frees what no allocation uses, and nothing else.
    let trimmed = unsafe {
        result::device::get_mem_pool(context.cu_device())
            .and_then(|pool| result::mem_pool::trim_to(pool, 0))
    };
    trimmed.map_err(told)
}

pub(super) fn is_out_of_memory(error: &Error) -> bool {
    match error {
        Error::Cuda(source) => match source.downcast_ref() {
            Some(CudaError::Cuda(DriverError(code))) => *code == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
            Some(CudaError::Cublas(CublasError(status))) => {
                *status == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED
            }
            _ => false,
        },
        Error::Context { inner, .. }
        | Error::WithPath { inner, .. }
        | Error::WithBacktrace { inner, .. } => is_out_of_memory(inner),
        _ => false,
    }
}

fn context(device: &Device) -> Result<std::sync::Arc<CudaContext>, String> {
    match device {
        Device::Cuda(device) => Ok(device.cuda_stream().context().clone()),
        _ => Err("it is no CUDA device".to_owned()),
    }
}

fn told(error: DriverError) -> String {
    let name = error.error_name().ok().and_then(|name| name.to_str().ok());
    match name {
        Some(name) => format!("the driver answers {name}"),
        None => format!("the driver answers {error:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_allocations_leave_a_card_to_be_trusted() {
        let of = |code| Error::from(CudaError::Cuda(DriverError(code)));
        assert!(is_out_of_memory(&of(CUresult::CUDA_ERROR_OUT_OF_MEMORY)));
        assert!(is_out_of_memory(&of(CUresult::CUDA_ERROR_OUT_OF_MEMORY).context("a step")));
        assert!(!is_out_of_memory(&of(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)));
        assert!(!is_out_of_memory(&Error::Msg("out of memory".into())));
    }
}
