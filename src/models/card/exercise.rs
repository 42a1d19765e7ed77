//! Every kind of operation that decoders use, once: the driver compiles and loads the kernels, and the
//! libraries take what they keep, before anybody asks how much of the card is free.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::{layer_norm, rms_norm, softmax_last_dim};
use candle_nn::rotary_emb::rope_thd;

/// Rows and columns.
const WIDTH: usize = 64;

pub(super) fn run(device: &Device) -> Result<()> {
    let rows = Tensor::new(&[1u32, 0], device)?;
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let x = Tensor::full(0.5f32, (WIDTH, WIDTH), device)?.to_dtype(dtype)?;
        let product = x.matmul(&x.t()?)?;
        let some = product.index_select(&rows, 0)?;
        let places = rows.reshape((2, 1))?.broadcast_as((2, WIDTH))?.contiguous()?;
        let kept = x.zeros_like()?;
        kept.scatter_set(&places, &some, 0)?;
        kept.slice_set(&some, 0, 2)?;
        Tensor::cat(&[&kept, &x.t()?.contiguous()?], 1)?.to_dtype(DType::F32)?;
    }
    let x = Tensor::full(0.5f32, (WIDTH, WIDTH), device)?;
    let weight = Tensor::full(1f32, WIDTH, device)?;
    let normed = layer_norm(&rms_norm(&x, &weight, 1e-5)?, &weight, &weight, 1e-5)?;
    let angles = Tensor::full(0.5f32, (2, WIDTH / 2), device)?;
    rope_thd(&normed.reshape((1, 2, WIDTH / 2, WIDTH))?, &angles, &angles)?;
    let places = Tensor::arange(0, WIDTH as u32, device)?;
    let seen = (places.broadcast_ge(&rows.reshape((2, 1))?)?
        * places.broadcast_lt(&rows.reshape((2, 1))?)?)?;
    let all = |number: f32| Tensor::new(number, device)?.broadcast_as((2, WIDTH));
    let hidden = seen.where_cond(&all(0.0)?, &all(-1.0)?)?;
    let scores = normed.narrow(0, 0, 2)?.broadcast_add(&hidden)?.clamp(-1f32, 1f32)?;
    let mixed = (softmax_last_dim(&scores)?.tanh()? * 2.0)?;
    let activated = ((mixed.silu()? + mixed.gelu()?)? + (mixed.gelu_erf()? * mixed.relu()?)?)?;
    x.index_add(&rows, &activated, 0)?.to_vec2::<f32>()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_types_are_those_that_operations_take() {
        run(&Device::Cpu).unwrap();
    }
}
