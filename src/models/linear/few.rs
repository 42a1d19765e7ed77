//! Projections of few rows: decoding, where reading the weights is all the work.
//!
//! Each weight is read once, in the order it lies, and multiplied with every row while it
//! is in a register; nothing is packed. Outputs are spread over threads.

use bytemuck::Pod;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::simd::{self, Kernel, LANES, Lanes, madd};

/// Rows whose sums are held in registers at once, where there are so many.
const SIDE: usize = 8;
/// As many as that for fewer rows, the last one several times. For two to four sums side by side
/// the compiler shuffles registers in place of multiplying, which takes longer than five do.
const FEWER: usize = 5;
/// Weights per task: enough to be worth a thread's waking.
const TASK: usize = 1 << 16;

/// A weight as it lies in memory.
pub(crate) trait Weight: Pod + Send + Sync {
    /// As f32, exactly. Finite numbers only.
    fn widen(self) -> f32;

    /// From as many bytes of a file, in its order.
    fn from_file(bytes: &[u8]) -> Self;

    /// Whether it is finite.
    fn is_number(self) -> bool;

    /// Sixteen side by side as f32, exactly.
    fn lanes<V: Lanes>(from: &[Self; LANES]) -> V;
}

impl Weight for f32 {
    #[inline(always)]
    fn lanes<V: Lanes>(from: &[Self; LANES]) -> V {
        V::load(from)
    }

    fn from_file(bytes: &[u8]) -> Self {
        bytes.first_chunk().map_or(0.0, |bytes| Self::from_le_bytes(*bytes))
    }

    fn is_number(self) -> bool {
        self.is_finite()
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn lanes<V: Lanes>(from: &[Self; LANES]) -> V {
        V::load_bf16(from)
    }

    fn from_file(bytes: &[u8]) -> Self {
        bytes.first_chunk().map_or(Self::ZERO, |bytes| Self::from_le_bytes(*bytes))
    }

    fn is_number(self) -> bool {
        self.is_finite()
    }

    /// It is the upper half of an f32.
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Weight for f16 {
    #[inline(always)]
    fn lanes<V: Lanes>(from: &[Self; LANES]) -> V {
        V::load_f16(from)
    }

    fn from_file(bytes: &[u8]) -> Self {
        bytes.first_chunk().map_or(Self::ZERO, |bytes| Self::from_le_bytes(*bytes))
    }

    fn is_number(self) -> bool {
        self.is_finite()
    }

    /// Moves exponent and fraction to f32's places and corrects the exponent's bias, which is
    /// exact for subnormal numbers too; unlike the library's, it vectorises without a branch.
    #[inline(always)]
    fn widen(self) -> f32 {
        let bits = u32::from(self.to_bits());
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
        f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
    }
}

/// `x W^T` for `x` `[rows, inputs]` and `W` `[outputs, inputs]`: `[rows, outputs]`.
pub(crate) fn multiply<W: Weight>(x: &[f32], weight: &[W], rows: usize, inputs: usize) -> Vec<f32> {
    let outputs = weight.len() / inputs;
    // [outputs, rows]: a task's results lie together.
    let mut turned = vec![0.0; outputs * rows];
    let per_task = (TASK / inputs).max(1);
    turned
        .par_chunks_mut(per_task * rows)
        .zip(weight.par_chunks(per_task * inputs))
        .for_each(|(out, weight)| simd::dispatch(Project { x, weight, rows, inputs, out }));
    if rows == 1 {
        return turned;
    }
    let mut y = vec![0.0; outputs * rows];
    for (row, y) in y.chunks_exact_mut(outputs).enumerate() {
        for (output, y) in y.iter_mut().enumerate() {
            *y = turned[output * rows + row];
        }
    }
    y
}

/// Some outputs of all rows.
struct Project<'a, W> {
    x: &'a [f32],
    weight: &'a [W],
    rows: usize,
    inputs: usize,
    /// `[outputs, rows]`.
    out: &'a mut [f32],
}

impl<W: Weight> Kernel for Project<'_, W> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { x, weight, rows, inputs, out } = self;
        for (weight, out) in weight.chunks_exact(inputs).zip(out.chunks_exact_mut(rows)) {
            let mut row = 0;
            while row < rows {
                let (x, out) = (&x[row * inputs..], &mut out[row..]);
                row += match rows - row {
                    1 => dots::<W, FMA, 1>(weight, x, out),
                    2..=FEWER => dots::<W, FMA, FEWER>(weight, x, out),
                    _ => dots::<W, FMA, SIDE>(weight, x, out),
                };
            }
        }
    }
}

/// One row of weights times the first `N` rows of `x`, or all where there are fewer. Says how
/// many.
#[inline(always)]
fn dots<W: Weight, const FMA: bool, const N: usize>(
    weight: &[W],
    x: &[f32],
    out: &mut [f32],
) -> usize {
    let inputs = weight.len();
    let rows = out.len().min(N);
    let row = |n: usize| &x[n.min(rows - 1) * inputs..][..inputs];
    let (chunks, rest) = weight.as_chunks::<LANES>();
    let x: [&[[f32; LANES]]; N] =
        std::array::from_fn(|n| &row(n).as_chunks::<LANES>().0[..chunks.len()]);
    let mut sums = [[0.0f32; LANES]; N];
    for (index, chunk) in chunks.iter().enumerate() {
        let mut wide = [0.0; LANES];
        for lane in 0..LANES {
            wide[lane] = chunk[lane].widen();
        }
        for n in 0..N {
            sums[n] = madd_lanes::<FMA>(&wide, &x[n][index], sums[n]);
        }
    }
    for (n, out) in out[..rows].iter_mut().enumerate() {
        *out = sums[n].iter().sum();
        for (weight, x) in rest.iter().zip(&row(n)[inputs - rest.len()..]) {
            *out = madd::<FMA>(weight.widen(), *x, *out);
        }
    }
    rows
}

/// `a * b + c`, lane by lane.
#[inline(always)]
fn madd_lanes<const FMA: bool>(
    a: &[f32; LANES],
    b: &[f32; LANES],
    c: [f32; LANES],
) -> [f32; LANES] {
    let mut sum = [0.0; LANES];
    for lane in 0..LANES {
        sum[lane] = madd::<FMA>(a[lane], b[lane], c[lane]);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_half_widens_exactly() {
        for bits in 0..=u16::MAX {
            let number = bf16::from_bits(bits);
            if number.is_finite() {
                assert_eq!(Weight::widen(number).to_bits(), number.to_f32().to_bits(), "{bits:x}");
            }
            let number = f16::from_bits(bits);
            if number.is_finite() {
                assert_eq!(Weight::widen(number).to_bits(), number.to_f32().to_bits(), "{bits:x}");
            }
        }
    }

    #[test]
    fn products_are_those_of_plain_loops_in_every_shape_and_type() {
        for (rows, inputs, outputs) in [
            (1, 5, 3),
            (1, 64, 70),
            (2, 40, 9),
            (3, 33, 10),
            (7, 100, 2000),
            (8, 16, 5),
            (9, 31, 7),
        ] {
            let number = |i: usize| ((i * 7919 % 1009) as f32 - 504.0) / 512.0;
            let make = |count: usize, from: usize| (from..from + count).map(number).collect();
            let x: Vec<f32> = make(rows * inputs, 3);
            let weight: Vec<f32> = make(outputs * inputs, 11);
            equal(&x, &weight, rows, inputs);
            equal(
                &x,
                &weight.iter().map(|it| f16::from_f32(*it)).collect::<Vec<_>>(),
                rows,
                inputs,
            );
            equal(
                &x,
                &weight.iter().map(|it| bf16::from_f32(*it)).collect::<Vec<_>>(),
                rows,
                inputs,
            );
        }
    }

    fn equal<W: Weight>(x: &[f32], weight: &[W], rows: usize, inputs: usize) {
        let outputs = weight.len() / inputs;
        for (at, got) in multiply(x, weight, rows, inputs).iter().enumerate() {
            let x = x[at / outputs * inputs..][..inputs].iter();
            let weight = &weight[at % outputs * inputs..];
            let products = x.zip(weight).map(|(x, w)| f64::from(*x) * f64::from(w.widen()));
            let want: f64 = products.sum();
            assert!((f64::from(*got) - want).abs() < 1e-4, "{rows} {inputs}, {at}: {got} {want}");
        }
    }
}
