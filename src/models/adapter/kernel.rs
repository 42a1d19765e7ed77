//! The inner loops: a few rows through a part's two matrices.

use crate::linear::Weight;
use crate::simd::{Kernel, madd};

use super::layout::{NARROW, WIDE};

/// Numbers side by side in the widest registers.
const LANES: usize = 16;
/// Numbers added side by side for one row of inputs: enough sums in flight to hide how long each
/// addition takes, while memory is read in the order it lies.
const LONG: usize = 64;
/// Rows of the first matrix and of inputs whose sums are held in registers at once, where there
/// are several rows of inputs.
const BOTH: [usize; 2] = [4, 2];
/// Rows of results that are computed side by side.
const SIDE: usize = 4;

/// `z = scale A x`, for some rows.
pub(super) struct Shrink<'a, W> {
    /// `[rank, inputs]`.
    pub(super) a: &'a [W],
    pub(super) inputs: usize,
    pub(super) scale: f32,
    /// All rows, and which of them are computed.
    pub(super) x: &'a [f32],
    pub(super) rows: &'a [u32],
    /// `[rows, rank]`.
    pub(super) z: &'a mut [f32],
}

impl<W: Weight> Kernel for Shrink<'_, W> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { a, inputs, scale, x, rows, z } = self;
        let rank = a.len() / inputs;
        let row = |index: usize| &x[rows[index] as usize * inputs..][..inputs];
        let (pairs, single) = rows.as_chunks::<2>();
        for (index, _) in pairs.iter().enumerate() {
            let first = 2 * index;
            let x = [row(first), row(first + 1)];
            for k in (0..rank).step_by(BOTH[0]) {
                let a = &a[k * inputs..(k + BOTH[0]).min(rank) * inputs];
                let sums = products::<W, FMA, { BOTH[0] }, { BOTH[1] }>(a, x);
                for (n, sums) in sums.iter().enumerate().take(rank - k) {
                    z[first * rank + k + n] = scale * sums[0];
                    z[(first + 1) * rank + k + n] = scale * sums[1];
                }
            }
        }
        if !single.is_empty() {
            let first = rows.len() - 1;
            let (x, z) = (row(first), &mut z[first * rank..][..rank]);
            for (a, z) in a.chunks_exact(inputs).zip(z) {
                *z = scale * product::<W, FMA>(a, x);
            }
        }
    }
}

/// The product of one row of weights with one of inputs.
#[inline(always)]
fn product<W: Weight, const FMA: bool>(a: &[W], x: &[f32]) -> f32 {
    let (chunks, rest) = a.as_chunks::<LONG>();
    let (others, other_rest) = x.as_chunks::<LONG>();
    let mut sums = [0.0f32; LONG];
    for (chunk, other) in chunks.iter().zip(others) {
        for lane in 0..LONG {
            sums[lane] = madd::<FMA>(chunk[lane].widen(), other[lane], sums[lane]);
        }
    }
    let mut lanes = [0.0f32; LANES];
    for quarter in sums.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            lanes[lane] += quarter[lane];
        }
    }
    let mut sum: f32 = lanes.iter().sum();
    for (weight, x) in rest.iter().zip(other_rest) {
        sum = madd::<FMA>(weight.widen(), *x, sum);
    }
    sum
}

/// The products of up to `N` rows of weights, the last one several times where there are fewer,
/// with `M` rows of inputs.
#[inline(always)]
fn products<W: Weight, const FMA: bool, const N: usize, const M: usize>(
    a: &[W],
    x: [&[f32]; M],
) -> [[f32; M]; N] {
    let inputs = x[0].len();
    let count = a.len() / inputs;
    let row = |n: usize| &a[n.min(count - 1) * inputs..][..inputs];
    let chunks = inputs / LANES;
    let weights: [&[[W; LANES]]; N] =
        std::array::from_fn(|n| &row(n).as_chunks::<LANES>().0[..chunks]);
    let numbers: [&[[f32; LANES]]; M] =
        std::array::from_fn(|m| &x[m].as_chunks::<LANES>().0[..chunks]);
    let mut sums = [[[0.0f32; LANES]; M]; N];
    for index in 0..chunks {
        for n in 0..N {
            let mut wide = [0.0; LANES];
            for lane in 0..LANES {
                wide[lane] = weights[n][index][lane].widen();
            }
            for m in 0..M {
                for lane in 0..LANES {
                    sums[n][m][lane] =
                        madd::<FMA>(wide[lane], numbers[m][index][lane], sums[n][m][lane]);
                }
            }
        }
    }
    let mut out = [[0.0; M]; N];
    for n in 0..N {
        for m in 0..M {
            out[n][m] = sums[n][m].iter().sum();
            let rest = chunks * LANES..inputs;
            for (weight, x) in row(n)[rest.clone()].iter().zip(&x[m][rest]) {
                out[n][m] = madd::<FMA>(weight.widen(), *x, out[n][m]);
            }
        }
    }
    out
}

/// `y = (y + B z) factors`, for some rows of results: as many as rows of `z`.
pub(super) struct Expand<'a, 'y, W> {
    /// In panels.
    pub(super) b: &'a [W],
    pub(super) outputs: usize,
    pub(super) rank: usize,
    /// `[rows, rank]`.
    pub(super) z: &'a [f32],
    /// `[outputs]`, or nothing for ones.
    pub(super) factors: &'a [f32],
    /// Of each row the `outputs` results, at most [`SIDE`].
    pub(super) y: &'a mut [&'y mut [f32]],
}

impl<W: Weight> Kernel for Expand<'_, '_, W> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { b, outputs, rank, z, factors, y } = self;
        debug_assert!(y.len() <= SIDE, "no more rows than are computed side by side");
        for first in (0..outputs).step_by(WIDE) {
            let width = WIDE.min((outputs - first).next_multiple_of(NARROW));
            let panel = &b[first * rank..][..width * rank];
            let place = Place { first, width, outputs, rank };
            match (y.len(), width) {
                (1, WIDE) => columns::<W, FMA, 1, WIDE>(panel, 0, place, z, factors, y),
                (1, _) => {
                    for at in (0..width).step_by(NARROW) {
                        columns::<W, FMA, 1, NARROW>(panel, at, place, z, factors, y);
                    }
                }
                _ if width % (2 * NARROW) == 0 => {
                    for at in (0..width).step_by(2 * NARROW) {
                        columns::<W, FMA, SIDE, { 2 * NARROW }>(panel, at, place, z, factors, y);
                    }
                }
                _ => {
                    for at in (0..width).step_by(NARROW) {
                        columns::<W, FMA, SIDE, NARROW>(panel, at, place, z, factors, y);
                    }
                }
            }
        }
    }
}

/// Where a panel belongs.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    width: usize,
    outputs: usize,
    rank: usize,
}

/// `L` columns of a panel from `at` on, for up to `M` rows.
#[inline(always)]
fn columns<W: Weight, const FMA: bool, const M: usize, const L: usize>(
    panel: &[W],
    at: usize,
    place: Place,
    z: &[f32],
    factors: &[f32],
    y: &mut [&mut [f32]],
) {
    let Place { first, width, outputs, rank } = place;
    let rows = y.len();
    let z: [&[f32]; M] = std::array::from_fn(|m| &z[m.min(rows - 1) * rank..][..rank]);
    let mut sums = [[0.0f32; L]; M];
    for (k, weights) in panel.chunks_exact(width).enumerate() {
        let weights: &[W; L] = weights[at..].first_chunk().expect("columns lie in the panel");
        let mut wide = [0.0; L];
        for lane in 0..L {
            wide[lane] = weights[lane].widen();
        }
        for m in 0..M {
            let z = z[m][k];
            for lane in 0..L {
                sums[m][lane] = madd::<FMA>(wide[lane], z, sums[m][lane]);
            }
        }
    }
    let from = first + at;
    let count = L.min(outputs.saturating_sub(from));
    for (sums, y) in sums.iter().zip(y) {
        let y = &mut y[from.min(outputs)..][..count];
        if factors.is_empty() {
            for (y, sum) in y.iter_mut().zip(sums) {
                *y += sum;
            }
        } else {
            for ((y, sum), factor) in y.iter_mut().zip(sums).zip(&factors[from..]) {
                *y = (*y + sum) * factor;
            }
        }
    }
}

/// Rows of results that [`Expand`] takes at a time.
pub(super) const ROWS: usize = SIDE;

/// A row of numbers as f32.
pub(super) struct Widen<'a, W> {
    pub(super) from: &'a [W],
    pub(super) to: &'a mut [f32],
}

impl<W: Weight> Kernel for Widen<'_, W> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (from, to) in self.from.iter().zip(self.to) {
            *to = from.widen();
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::layout::in_panels;
    use super::*;
    use crate::simd;

    fn numbers(count: usize, from: usize) -> Vec<f32> {
        (from..from + count).map(|at| ((at * 7919 % 1009) as f32 - 504.0) / 512.0).collect()
    }

    /// Both kernels against their definitions, in one format.
    fn equal<W: Weight>(narrow: impl Fn(f32) -> W, [rows, inputs, rank, outputs]: [usize; 4]) {
        let weights =
            |count, from| -> Vec<W> { numbers(count, from).into_iter().map(&narrow).collect() };
        let (a, b) = (weights(rank * inputs, 3), weights(outputs * rank, 50));
        // Every second row of more than are computed.
        let x = numbers(2 * rows * inputs, 7);
        let places: Vec<u32> = (0..rows as u32).map(|row| 2 * row + 1).collect();
        let mut z = vec![0.0; rows * rank];
        let scale = 0.75;
        simd::dispatch(Shrink { a: &a, inputs, scale, x: &x, rows: &places, z: &mut z });
        for (row, z) in places.iter().zip(z.chunks_exact(rank)) {
            let x = &x[*row as usize * inputs..][..inputs];
            for (a, z) in a.chunks_exact(inputs).zip(z) {
                let want: f32 = a.iter().zip(x).map(|(a, x)| a.widen() * x).sum();
                assert!((z - scale * want).abs() < 1e-4, "{rows} {inputs} {rank}");
            }
        }

        let mut panels = vec![narrow(0.0); outputs.next_multiple_of(NARROW) * rank];
        for (at, number) in b.iter().enumerate() {
            panels[in_panels(outputs, rank, at / rank, at % rank)] = *number;
        }
        for factors in [Vec::new(), numbers(outputs, 11)] {
            let before = numbers(rows * outputs, 23);
            let mut y = before.clone();
            for (y, z) in y.chunks_mut(ROWS * outputs).zip(z.chunks(ROWS * rank)) {
                let mut y: Vec<&mut [f32]> = y.chunks_mut(outputs).collect();
                let (b, factors) = (&panels, &factors);
                simd::dispatch(Expand { b, outputs, rank, z, factors, y: &mut y });
            }
            for (at, y) in y.iter().enumerate() {
                let (row, output) = (at / outputs, at % outputs);
                let b = b[output * rank..][..rank].iter();
                let sum: f32 = b.zip(&z[row * rank..]).map(|(b, z)| b.widen() * z).sum();
                let want = (before[at] + sum) * factors.get(output).unwrap_or(&1.0);
                assert!((y - want).abs() < 1e-4, "{rows} {rank} {outputs}: {y} {want}");
            }
        }
    }

    #[test]
    fn both_products_are_those_of_the_definition_in_every_shape_and_format() {
        for shape in [
            [1, 5, 1, 3],
            [1, 64, 16, 64],
            [2, 33, 7, 65],
            [3, 100, 4, 16],
            [5, 48, 9, 130],
            [9, 200, 17, 48],
            [32, 16, 3, 200],
        ] {
            equal(|number| number, shape);
            equal(f16::from_f32, shape);
            equal(bf16::from_f32, shape);
        }
    }
}
