//! Tensors of f32 in the host's memory, changed where they lie.
//!
//! Sums of tensors and activations of the tensor library make a new tensor each, and from some size on run on
//! threads of its own, which spin for work beside those that compute everything else here.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::with_floats;

/// Numbers that are worth another thread's waking.
const SERIAL: usize = 1 << 14;

/// Lends a contiguous tensor's numbers, and the width of its rows. Whoever else has the tensor sees them
/// changed.
pub(crate) fn change(x: &Tensor, work: impl Fn(&mut [f32], usize)) -> Result<()> {
    x.inplace_op1(&InPlace(work))
}

/// Changes pieces of a tensor side by side.
pub(crate) fn each(x: &Tensor, work: impl Fn(&mut [f32]) + Sync) -> Result<()> {
    change(x, |numbers, _| numbers.par_chunks_mut(SERIAL).for_each(&work))
}

/// Adds `y` to `x`.
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    if x.shape() != y.shape() {
        bail!("tensors of {:?} and {:?} have no sum", x.shape(), y.shape());
    }
    with_floats(y, |y| {
        change(x, |x, _| {
            x.par_chunks_mut(SERIAL).zip(y.par_chunks(SERIAL)).for_each(|(x, y)| plus(x, y));
        })
    })?
}

/// Adds a row to each row of `x`.
pub(crate) fn add_row(x: &Tensor, row: &Tensor) -> Result<()> {
    if row.dims1()? != x.dim(1)? {
        bail!("a row of {:?} is no row of {:?}", row.shape(), x.shape());
    }
    with_floats(row, |row| {
        change(x, |x, width| {
            let rows_at_least = SERIAL.div_ceil(width.max(1));
            let rows = x.par_chunks_mut(width.max(1)).with_min_len(rows_at_least);
            rows.for_each(|x| plus(x, row));
        })
    })?
}

fn plus(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

struct InPlace<F>(F);

impl<F: Fn(&mut [f32], usize)> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "change in place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(numbers), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            bail!("only contiguous rows of f32 are changed in place");
        };
        let (_, width) = layout.shape().dims2()?;
        self.0(&mut numbers[start..end], width);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(shape: (usize, usize), by: f32) -> Tensor {
        let numbers = (0..shape.0 * shape.1).map(|at| (at % 97) as f32 * by).collect();
        Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn sums_are_the_tensor_library_s_whatever_their_size() {
        for shape in [(0, 8), (1, 1), (3, 7), (5, 16_384), (301, 129)] {
            let (x, y) = (tensor(shape, 0.25), tensor(shape, -1.5));
            let want: Vec<Vec<f32>> = (&x + &y).unwrap().to_vec2().unwrap();
            let sum = x.copy().unwrap();
            add(&sum, &y).unwrap();
            assert_eq!(sum.to_vec2::<f32>().unwrap(), want);
            let row = tensor((1, shape.1), 3.0).flatten_all().unwrap();
            let want: Vec<Vec<f32>> = x.broadcast_add(&row).unwrap().to_vec2().unwrap();
            add_row(&x, &row).unwrap();
            assert_eq!(x.to_vec2::<f32>().unwrap(), want);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(add(&tensor((2, 3), 1.0), &tensor((3, 2), 1.0)).is_err());
        let row = tensor((1, 2), 1.0).flatten_all().unwrap();
        assert!(add_row(&tensor((2, 3), 1.0), &row).is_err());
    }
}
