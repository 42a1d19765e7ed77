//! The one seam through which every projection of every model goes.
//!
//! Weight formats and per-row adapters live here: a model says which projection it wants,
//! never how it is computed.

use std::cell::Cell;

use candle_core::{DType, Result, Tensor};

use crate::activation::with_floats;
use crate::adapter::{Groups, Site};
use crate::blocks;
use crate::in_place;
use crate::reader::Parameter;

mod few;
mod floats;
mod many;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;

pub(crate) use few::{Weight, multiply};

/// Up to so many rows, weights are read once at memory speed instead of packed for a large
/// multiplication. Eight rows cost about five cycles per 64 bytes of weights from the first
/// cache; memory takes longer to deliver them.
pub(crate) const FEW_ROWS: usize = 8;

thread_local! {
    static MATMULS: Cell<u64> = const { Cell::new(0) };
    static ROUNDS: Cell<bool> = const { Cell::new(false) };
}

/// Computes on this thread with what is multiplied by bf16 weights rounded to bf16, if `rounds`; else
/// with it as it is.
pub(crate) fn rounding<T>(rounds: bool, work: impl FnOnce() -> T) -> T {
    /// Puts back what was before, at a panic too.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            ROUNDS.set(self.0);
        }
    }
    let _before = Before(ROUNDS.replace(rounds));
    work()
}

/// Whether this thread's step rounds.
pub(crate) fn rounds() -> bool {
    ROUNDS.get()
}

/// How often this thread has multiplied by a weight matrix.
///
/// A step must need as many whatever the number of its sequences: that is what batching is. Of experts,
/// each that some token uses is multiplied with once.
pub fn matmul_calls() -> u64 {
    MATMULS.get()
}

/// Another one.
pub(crate) fn count_matmul() {
    count_matmuls(1);
}

/// As many, that another thread did for this one.
pub(crate) fn count_matmuls(count: u64) {
    MATMULS.set(MATMULS.get() + count);
}

/// A projection `x W^T + b`. `T` is a tensor once loaded; before, what is known of one.
#[derive(Debug, Clone)]
pub(crate) struct Linear<T = Tensor> {
    /// `[outputs, inputs]`, as checkpoints have it.
    pub(crate) weight: T,
    /// `[outputs]`.
    pub(crate) bias: Option<T>,
}

impl<T> Linear<T> {
    /// Gathers a projection of tensors stacked by rows. `parts`: the modules' names with their
    /// outputs; each has a `.weight`, and a `.bias` if `bias`.
    pub(crate) fn gather<E>(
        take: &mut dyn FnMut(Parameter) -> std::result::Result<T, E>,
        parts: &[(String, usize)],
        inputs: usize,
        bias: bool,
    ) -> std::result::Result<Self, E> {
        Self::gather_lying(take, parts, (inputs, false), bias)
    }

    /// The same of tensors that may lie transposed in the files.
    pub(crate) fn gather_lying<E>(
        take: &mut dyn FnMut(Parameter) -> std::result::Result<T, E>,
        parts: &[(String, usize)],
        (inputs, transposed): (usize, bool),
        bias: bool,
    ) -> std::result::Result<Self, E> {
        let named = |suffix: &str| {
            parts.iter().map(|(name, rows)| (format!("{name}.{suffix}"), *rows)).collect()
        };
        let of =
            |parts, columns, transposed| Parameter { parts, columns, transposed, exact: false };
        let weight = take(of(named("weight"), Some(inputs), transposed))?;
        let bias = match bias {
            true => Some(take(of(named("bias"), None, false))?),
            false => None,
        };
        Ok(Self { weight, bias })
    }
}

impl Linear {
    /// Projects `[rows, inputs]` f32 to `[rows, outputs]` f32, all rows in one go, and adds what
    /// the rows' adapters have for this projection.
    pub(crate) fn forward(&self, x: &Tensor, (groups, site): (&Groups, Site)) -> Result<Tensor> {
        let y = self.multiply(x)?;
        groups.project(site, x, &y)?;
        self.shift(&y)?;
        Ok(y)
    }

    /// The same of a projection that no adapter changes, of any rows.
    pub(crate) fn alone(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.multiply(x)?;
        self.shift(&y)?;
        Ok(y)
    }

    fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        count_matmul();
        match self.weight.dtype() {
            DType::U8 => blocks::project(x, &self.weight),
            _ => floats::project(x, &self.weight),
        }
    }

    fn shift(&self, y: &Tensor) -> Result<()> {
        match &self.bias {
            Some(bias) => in_place::add(y, bias),
            None => Ok(()),
        }
    }
}

/// The rows of an embedding table with those indices, in f32. Of one that lies in another
/// format, they alone are widened.
pub(crate) fn rows(table: &Tensor, indices: &[u32]) -> Result<Tensor> {
    match table.dtype() {
        DType::U8 => blocks::rows(table, indices),
        _ => table.index_select(&Tensor::new(indices, table.device())?, 0)?.to_dtype(DType::F32),
    }
}

/// What a thread takes an f16 group of outputs apart in, for rows of so many inputs: two bf16s for
/// each weight of 32 outputs.
pub(crate) const fn apart_bytes(inputs: usize) -> usize {
    2 * 32 * inputs * size_of::<half::bf16>()
}

/// The bytes that activations of so many inputs take at most beside themselves, where weights
/// are halves.
pub(crate) const fn packed_bytes(inputs: usize) -> usize {
    floats::packed_bytes(inputs)
}

/// The bytes that so many rows of activations take, rounded to bf16, beside themselves.
pub(crate) const fn rounded_bytes(rows: usize, inputs: usize) -> u128 {
    // As f32 where the processor does not multiply bf16s.
    rows as u128 * inputs.next_multiple_of(32) as u128 * size_of::<f32>() as u128
}

/// Puts some outputs of all rows, the first of them `first`, where they belong in
/// `y` `[rows, outputs]`.
pub(crate) fn place(product: &Tensor, first: usize, outputs: usize, y: &mut [f32]) -> Result<()> {
    let count = product.dim(1)?;
    with_floats(product, |product| {
        for (from, to) in product.chunks_exact(count).zip(y.chunks_exact_mut(outputs)) {
            to[first..first + count].copy_from_slice(from);
        }
    })
}
