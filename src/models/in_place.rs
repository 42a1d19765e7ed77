//! Tensors of f32 in the host's memory, changed where they lie.
//!
//! Sums of tensors and activations of the tensor library make a new tensor each, and from some size on run on
//! threads of its own, which spin for work beside those that compute everything else here.

use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail};
use rayon::prelude::*;

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

/// Adds `y` to `x`: of the same shape, or one row for all rows. Two views of one tensor are an error.
pub(crate) fn add(x: &Tensor, y: &Tensor) -> Result<()> {
    x.inplace_op2(y, &Plus)
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

struct Plus;

impl InplaceOp2 for Plus {
    fn name(&self) -> &'static str {
        "add in place"
    }

    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<()> {
        let offsets = (x_layout.contiguous_offsets(), y_layout.contiguous_offsets());
        let (CpuStorage::F32(x), CpuStorage::F32(y), (Some(of_x), Some(of_y))) = (x, y, offsets)
        else {
            bail!("only contiguous rows of f32 are added in place");
        };
        let (x, y) = (&mut x[of_x.0..of_x.1], &y[of_y.0..of_y.1]);
        let (_, width) = x_layout.shape().dims2()?;
        if x_layout.shape() == y_layout.shape() {
            x.par_chunks_mut(SERIAL).zip(y.par_chunks(SERIAL)).for_each(|(x, y)| plus(x, y));
        } else if y_layout.dims() == [width] {
            let rows_at_least = SERIAL.div_ceil(width.max(1));
            let rows = x.par_chunks_mut(width.max(1)).with_min_len(rows_at_least);
            rows.for_each(|x| plus(x, y));
        } else {
            bail!("{:?} is not added to {:?}", y_layout.shape(), x_layout.shape());
        }
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
            add(&x, &row).unwrap();
            assert_eq!(x.to_vec2::<f32>().unwrap(), want);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(add(&tensor((2, 3), 1.0), &tensor((3, 2), 1.0)).is_err());
        let row = tensor((1, 2), 1.0).flatten_all().unwrap();
        let x = tensor((2, 3), 1.0);
        assert!(add(&x, &row).is_err());
        // It is read while it is changed.
        assert!(add(&x, &x.clone()).is_err());
        assert!(add(&x, &x.narrow(0, 0, 1).unwrap()).is_err());
    }
}
