//! The inner loops: a few rows through a part's two matrices.

use crate::linear::Weight;
use crate::simd::{Kernel, madd};

use super::layout::{NARROW, WIDE};

/// Numbers side by side in the widest registers.
const LANES: usize = 16;
/// Rows of the first matrix whose sums are held in registers at once, for one row of inputs.
const DEEP: usize = 8;
/// The same, and rows of inputs, where there are several.
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
        let mut first = 0;
        while first < rows.len() {
            let is_pair = first + 1 < rows.len();
            let deep = if is_pair { BOTH[0] } else { DEEP };
            for k in (0..rank).step_by(deep) {
                let a = &a[k * inputs..(k + deep).min(rank) * inputs];
                if is_pair {
                    let x = [row(first), row(first + 1)];
                    let sums = products::<W, FMA, { BOTH[0] }, { BOTH[1] }>(a, x);
                    for (n, sums) in sums.iter().enumerate().take(rank - k) {
                        z[first * rank + k + n] = scale * sums[0];
                        z[(first + 1) * rank + k + n] = scale * sums[1];
                    }
                } else {
                    let sums = products::<W, FMA, DEEP, 1>(a, [row(first)]);
                    for (n, sums) in sums.iter().enumerate().take(rank - k) {
                        z[first * rank + k + n] = scale * sums[0];
                    }
                }
            }
            first += if is_pair { 2 } else { 1 };
        }
    }
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
            for at in chunks * LANES..inputs {
                out[n][m] = madd::<FMA>(row(n)[at].widen(), x[m][at], out[n][m]);
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
