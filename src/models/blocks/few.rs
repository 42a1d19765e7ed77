//! Projections of few rows by float parts, where reading the weights is all the work.
//!
//! A row of weights is widened some blocks at a time and multiplied with every row of inputs
//! while it is in the first cache. Outputs are spread over threads.

use rayon::prelude::*;

use super::Part;
use super::widen::{Blocks, ForFormat, VALUES_MAX, with};
use crate::format::Format;
use crate::linear::FEW_ROWS as ROWS;
use crate::simd::{self, Kernel, madd};

/// Numbers added side by side: enough sums in flight to hide how long each addition takes.
const LANES: usize = 64;
/// Weights per task: enough to be worth a thread's waking.
const TASK: usize = 1 << 16;

/// `x W^T` for `x` `[rows, columns]` and a part of floats, into its place in `y` `[rows, width]`.
pub(super) fn multiply(
    x: &[f32],
    rows: usize,
    columns: usize,
    part: &Part<'_>,
    y: &mut [f32],
    (first, width): (usize, usize),
) {
    assert!(rows <= ROWS, "few rows are at most {ROWS}");
    // [outputs, rows]: a task's results lie together.
    let mut turned = vec![0.0; part.rows * rows];
    let per_task = (TASK / columns.max(1)).max(1);
    turned
        .par_chunks_mut(per_task * rows)
        .zip(part.data.par_chunks(per_task * part.stride))
        .for_each(|(out, weight)| {
            let (format, stride) = (part.format, part.stride);
            simd::dispatch(Project { format, stride, weight, x, columns, rows, out });
        });
    for (row, y) in y.chunks_exact_mut(width).enumerate() {
        for (output, y) in y[first..first + part.rows].iter_mut().enumerate() {
            *y = turned[output * rows + row];
        }
    }
}

/// Some outputs of all rows.
struct Project<'a> {
    format: Format,
    /// Bytes of a row of weights.
    stride: usize,
    weight: &'a [u8],
    x: &'a [f32],
    columns: usize,
    rows: usize,
    /// `[outputs, rows]`.
    out: &'a mut [f32],
}

/// The same with the instruction set chosen.
struct Chosen<'a, const FMA: bool>(Project<'a>);

impl Kernel for Project<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        with(self.format, Chosen::<FMA>(self));
    }
}

impl<const FMA: bool> ForFormat for Chosen<'_, FMA> {
    #[inline(always)]
    fn run<B: Blocks>(self) {
        let Project { stride, weight, x, columns, rows, out, .. } = self.0;
        for (weight, out) in weight.chunks_exact(stride).zip(out.chunks_exact_mut(rows)) {
            match rows {
                1 => output::<B, FMA, 1>(weight, x, columns, out),
                _ => output::<B, FMA, ROWS>(weight, x, columns, out),
            }
        }
    }
}

/// One output of up to `N` rows.
#[inline(always)]
fn output<B: Blocks, const FMA: bool, const N: usize>(
    weight: &[u8],
    x: &[f32],
    columns: usize,
    out: &mut [f32],
) {
    let together = VALUES_MAX / B::VALUES * B::BYTES;
    let mut wide = [0.0f32; VALUES_MAX];
    let mut sums = [[0.0f32; LANES]; N];
    for (index, bytes) in weight.chunks(together).enumerate() {
        let mut count = 0;
        for block in bytes.chunks_exact(B::BYTES) {
            B::widen(block, &mut wide[count..count + B::VALUES]);
            count += B::VALUES;
        }
        let start = index * VALUES_MAX;
        for (row, sum) in sums.iter_mut().enumerate().take(out.len()) {
            let x = &x[row * columns + start..][..count];
            add::<FMA>(&wide[..count], x, sum);
        }
    }
    for (sum, out) in sums.iter().zip(out) {
        *out = total(sum);
    }
}

/// Adds the products lane by lane.
#[inline(always)]
fn add<const FMA: bool>(wide: &[f32], x: &[f32], sum: &mut [f32; LANES]) {
    let (chunks, rest) = wide.as_chunks::<LANES>();
    let (others, other_rest) = x.as_chunks::<LANES>();
    let mut lanes = *sum;
    for (chunk, other) in chunks.iter().zip(others) {
        for lane in 0..LANES {
            lanes[lane] = madd::<FMA>(chunk[lane], other[lane], lanes[lane]);
        }
    }
    for ((lane, weight), x) in lanes.iter_mut().zip(rest).zip(other_rest) {
        *lane = madd::<FMA>(*weight, *x, *lane);
    }
    *sum = lanes;
}

/// The sum of all lanes, in halves: sixteen of them are a register.
#[inline(always)]
fn total(lanes: &[f32; LANES]) -> f32 {
    let mut sums = [0.0f32; 16];
    for quarter in lanes.as_chunks::<16>().0 {
        for lane in 0..16 {
            sums[lane] += quarter[lane];
        }
    }
    sums.iter().sum()
}
