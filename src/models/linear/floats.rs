//! Projections by float weights: which kernel for which type and how many rows.

use candle_core::{DType, Result, Tensor};
use half::{bf16, f16};

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
use super::few::Weight;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::tiles;
use super::{FEW_ROWS, many};
use crate::activation::{with_floats, with_numbers};

/// Rows from which on tiles are used: one takes as long as memory needs in either way, and tiles more
/// of the CPU.
const TILES: usize = 2;
/// Of as many rows, tiles take no longer for f16, which they go through twice, than registers do.
const F16_TILES: usize = 12;

/// `x W^T` for `x` `[rows, inputs]` and `W` `[outputs, inputs]` in f32, f16 or bf16. Where weights are
/// bf16 and the step [rounds](super::rounding), so is `x`.
pub(super) fn project(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, (outputs, inputs)) = (x.dim(0)?, weight.dims2()?);
    let shape = [rows, inputs, outputs];
    if weight.dtype() == DType::F32 && rows > FEW_ROWS && !many::is_wide() {
        return x.matmul(&weight.t()?);
    }
    let numbers = with_floats(x, |x| match weight.dtype() {
        DType::BF16 if super::rounds() => {
            with_numbers(weight, |weight: &[bf16]| rounded(x, weight, shape))
        }
        DType::BF16 => with_numbers(weight, |weight: &[bf16]| by_halves(x, weight, shape, TILES)),
        DType::F16 => with_numbers(weight, |weight: &[f16]| by_halves(x, weight, shape, F16_TILES)),
        _ => with_floats(weight, |weight| many::multiply(x, weight, shape)),
    })??;
    Tensor::from_vec(numbers, (rows, outputs), x.device())
}

/// Of `x` rounded to bf16: all rows, so that a row's results do not depend on how many there are.
fn rounded(x: &[f32], weight: &[bf16], shape: [usize; 3]) -> Vec<f32> {
    if !has_tiles(shape, TILES)
        && let Some(y) = many::multiply_rounded(x, weight, shape)
    {
        return y;
    }
    let x: Vec<f32> = x.iter().map(|number| bf16::from_f32(*number).to_f32()).collect();
    by_halves(&x, weight, shape, TILES)
}

/// In tiles where there are any and at least so many rows.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn by_halves<W: tiles::Halves>(
    x: &[f32],
    weight: &[W],
    shape: [usize; 3],
    least: usize,
) -> Vec<f32> {
    match has_tiles(shape, least) {
        true => tiles::multiply(x, weight, shape),
        false => many::multiply(x, weight, shape),
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn has_tiles([rows, ..]: [usize; 3], least: usize) -> bool {
    rows >= least && tiles::are_here()
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
const fn has_tiles(_: [usize; 3], _: usize) -> bool {
    false
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn by_halves<W: Weight>(x: &[f32], weight: &[W], shape: [usize; 3], _: usize) -> Vec<f32> {
    many::multiply(x, weight, shape)
}

/// The bytes that activations of so many inputs take at most, packed beside themselves.
pub(super) const fn packed_bytes(inputs: usize) -> usize {
    /// Those of 32 rows, or as many as the second cache keeps beside weights.
    const PACKED: usize = 3 << 19;
    let rows = inputs.next_multiple_of(32) * 32 * 6;
    if rows > PACKED { rows } else { PACKED }
}
