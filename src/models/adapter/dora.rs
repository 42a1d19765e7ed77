//! What is computed from the base's own weights when an adapter is loaded.

use candle_core::Result as CandleResult;

use super::layout::{Numbers, Part, WithNumbers, in_panels, panel_values};
use super::load::BasePart;
use crate::Error;
use crate::activation::with_floats;
use crate::linear::{self, Weight};
use crate::simd::{self, Kernel, madd};

/// Rows of the base's weights widened at a time.
const ROWS: usize = 64;
/// How far a copy of the base's weights may be from them, as a part of the sum of their squares:
/// more than any quantised format rounds away, less than any training changes that shows.
const APART: f64 = 0.01;

/// Turns the magnitudes at `line` into what results are multiplied by: each over the length of
/// its row of `W + scale B A` (Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024).
pub(super) fn factors(
    numbers: &mut Numbers,
    part: &Part,
    line: u32,
    base: &BasePart,
) -> Result<(), Error> {
    let (outputs, rank) = (part.outputs as usize, part.rank as usize);
    let mut lengths = Vec::with_capacity(outputs);
    let b = numbers.with((part.b, part.lies[1]), panel_values(part), AsFloats);
    let mut a: Option<Vec<f32>> = None;
    for first in (0..outputs).step_by(ROWS) {
        let count = ROWS.min(outputs - first);
        let indices: Vec<u32> =
            (first..first + count).map(|row| (base.first + row) as u32).collect();
        let weights = linear::rows(&base.parameter, &indices)?;
        let inputs = weights.dim(1)?;
        let a =
            a.get_or_insert_with(|| numbers.with((part.a, part.lies[0]), rank * inputs, AsFloats));
        with_floats(&weights, |weights| {
            for (row, weights) in (first..).zip(weights.chunks_exact(inputs)) {
                let b: Vec<f32> =
                    (0..rank).map(|k| part.scale * b[in_panels(outputs, rank, row, k)]).collect();
                let mut sum = weights.to_vec();
                let mut squares = 0.0;
                simd::dispatch(Merged { a, b: &b, row: &mut sum, squares: &mut squares });
                lengths.push(squares.sqrt());
            }
        })?;
    }
    let magnitudes: &mut [f32] = numbers.fill(line, outputs);
    for (magnitude, length) in magnitudes.iter_mut().zip(lengths) {
        // A row of zeros has no direction: its results are zero whatever they are multiplied by.
        *magnitude = if length > 0.0 { *magnitude / length } else { 1.0 };
    }
    Ok(())
}

/// Numbers of any format as f32.
struct AsFloats;

impl WithNumbers for AsFloats {
    type Output = Vec<f32>;

    fn run<W: Weight>(self, numbers: &[W]) -> Vec<f32> {
        numbers.iter().map(|number| number.widen()).collect()
    }
}

/// One row of weights with what an adapter adds, and its sum of squares.
struct Merged<'a> {
    a: &'a [f32],
    b: &'a [f32],
    row: &'a mut [f32],
    squares: &'a mut f32,
}

impl Kernel for Merged<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (b, a) in self.b.iter().zip(self.a.chunks_exact(self.row.len())) {
            for (sum, a) in self.row.iter_mut().zip(a) {
                *sum = madd::<FMA>(*b, *a, *sum);
            }
        }
        let mut lanes = [0.0f32; 64];
        for chunk in self.row.chunks(64) {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = madd::<FMA>(*x, *x, *lane);
            }
        }
        *self.squares = lanes.iter().sum();
    }
}

/// A tensor that arrives in pieces against the base's weights.
pub(super) struct Compared<'a> {
    base: &'a BasePart,
    columns: usize,
    /// Sums of squares: of the base's weights, and of the differences.
    sums: CandleResult<[f64; 2]>,
}

impl<'a> Compared<'a> {
    pub(super) fn new(base: &'a BasePart, columns: usize) -> Self {
        Self { base, columns, sums: Ok([0.0; 2]) }
    }

    /// Takes numbers in, the first of which lies at `start`.
    pub(super) fn take<W: Weight>(&mut self, start: usize, piece: &[W]) {
        let Ok(sums) = &mut self.sums else { return };
        let mut at = start;
        let mut rest = piece;
        while !rest.is_empty() {
            let (row, column) = (at / self.columns, at % self.columns);
            let count = (self.columns - column).min(rest.len());
            let (mine, others) = rest.split_at(count);
            let compared = linear::rows(&self.base.parameter, &[(self.base.first + row) as u32])
                .and_then(|weights| {
                    with_floats(&weights, |weights| {
                        for (weight, mine) in weights[column..].iter().zip(mine) {
                            sums[0] += f64::from(*weight).powi(2);
                            sums[1] += f64::from(weight - mine.widen()).powi(2);
                        }
                    })
                });
            if let Err(error) = compared {
                self.sums = Err(error);
                return;
            }
            (at, rest) = (at + count, others);
        }
    }

    pub(super) fn are_same(self) -> Result<bool, Error> {
        let [all, apart] = self.sums?;
        Ok(apart <= APART * all)
    }
}
