//! The inner loops: a few rows through a part's two matrices.

use crate::linear::Weight;
use crate::simd::{Kernel, LANES, LaneKernel, Lanes};

use super::layout::{NARROW, WIDE};

const _: () = assert!(NARROW == LANES, "panels are of whole registers");

/// Rows that are computed side by side, at most.
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

impl<W: Weight> LaneKernel for Shrink<'_, W> {
    #[inline(always)]
    fn run<V: Lanes>(self) {
        let Self { a, inputs, scale, x, rows, z } = self;
        let rank = a.len() / inputs;
        let side = if V::MANY { SIDE } else { 2 };
        for (rows, z) in rows.chunks(side).zip(z.chunks_mut(side * rank)) {
            let some = Shrink { a, inputs, scale, x, rows, z };
            // As many sums as there are registers for.
            match (rows.len(), V::MANY) {
                (1, true) if rank > 4 => some.side::<V, 8, 1>(),
                (1, _) => some.side::<V, 4, 1>(),
                (2, true) if rank > 4 => some.side::<V, 8, 2>(),
                (2, true) => some.side::<V, 4, 2>(),
                (2, false) => some.side::<V, 2, 2>(),
                (3, _) => some.side::<V, 4, 3>(),
                _ => some.side::<V, 4, 4>(),
            }
        }
    }
}

impl<W: Weight> Shrink<'_, W> {
    /// `M` rows of inputs by `N` rows of weights at a time, the last of these several times where there are
    /// fewer.
    #[inline(always)]
    fn side<V: Lanes, const N: usize, const M: usize>(self) {
        let Self { a, inputs, scale, x, rows, z } = self;
        let rank = a.len() / inputs;
        let (whole, rest) = (inputs / LANES, inputs % LANES);
        // Loops, for closures are not compiled for the machine's registers.
        let mut numbers = [(&[] as &[[f32; LANES]], &x[..0]); M];
        for m in 0..M {
            numbers[m] = x[rows[m] as usize * inputs..][..inputs].as_chunks();
        }
        for k in (0..rank).step_by(N) {
            let count = N.min(rank - k);
            let mut weights = [(&[] as &[[W; LANES]], &a[..0]); N];
            for n in 0..N {
                weights[n] = a[(k + n.min(count - 1)) * inputs..][..inputs].as_chunks();
            }
            let mut sums = [[V::splat(0.0); M]; N];
            for at in 0..whole {
                let mut some = [V::splat(0.0); M];
                for m in 0..M {
                    some[m] = V::load(&numbers[m].0[at]);
                }
                for n in 0..N {
                    let wide = W::lanes::<V>(&weights[n].0[at]);
                    for m in 0..M {
                        sums[n][m] = wide.madd(some[m], sums[n][m]);
                    }
                }
            }
            for n in 0..count {
                for m in 0..M {
                    let mut sum = sums[n][m].total();
                    for at in 0..rest {
                        sum += weights[n].1[at].widen() * numbers[m].1[at];
                    }
                    z[m * rank + k + n] = scale * sum;
                }
            }
        }
    }
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

impl<W: Weight> LaneKernel for Expand<'_, '_, W> {
    #[inline(always)]
    fn run<V: Lanes>(mut self) {
        debug_assert!(self.y.len() <= SIDE, "no more rows than are computed side by side");
        for first in (0..self.outputs).step_by(WIDE) {
            match (self.y.len(), V::MANY) {
                (1, _) => self.panel::<V, 1, 4>(first),
                (2, true) => self.panel::<V, 2, 4>(first),
                (3, true) => self.panel::<V, 3, 4>(first),
                (_, true) => self.panel::<V, 4, 4>(first),
                (2, false) => self.panel::<V, 2, 2>(first),
                _ => self.panel::<V, 4, 1>(first),
            }
        }
    }
}

impl<W: Weight> Expand<'_, '_, W> {
    /// The panel of the outputs from `first` on, for up to `M` rows, `L` registers of columns at a time
    /// where it is wide enough.
    #[inline(always)]
    fn panel<V: Lanes, const M: usize, const L: usize>(&mut self, first: usize) {
        let width = WIDE.min((self.outputs - first).next_multiple_of(NARROW));
        let step = L * LANES;
        let whole = width / step * step;
        for at in (0..whole).step_by(step) {
            self.columns::<V, M, L>(first, width, at);
        }
        for at in (whole..width).step_by(LANES) {
            self.columns::<V, M, 1>(first, width, at);
        }
    }

    /// `L` registers of columns of a panel, from `at` on.
    #[inline(always)]
    fn columns<V: Lanes, const M: usize, const L: usize>(
        &mut self,
        first: usize,
        width: usize,
        at: usize,
    ) {
        let Self { b, outputs, rank, z, factors, ref mut y } = *self;
        let rows = y.len().min(M);
        let mut z_of = [&z[..0]; M];
        for m in 0..M {
            z_of[m] = &z[m.min(rows - 1) * rank..][..rank];
        }
        let mut sums = [[V::splat(0.0); L]; M];
        let panel = &b[first * rank..][..width * rank];
        for (k, weights) in panel.chunks_exact(width).enumerate() {
            let (weights, _) = weights[at..].as_chunks();
            let mut wide = [V::splat(0.0); L];
            for l in 0..L {
                wide[l] = W::lanes::<V>(&weights[l]);
            }
            for m in 0..M {
                let z = V::splat(z_of[m][k]);
                for l in 0..L {
                    sums[m][l] = wide[l].madd(z, sums[m][l]);
                }
            }
        }
        for m in 0..rows {
            for (l, sum) in sums[m].iter().enumerate() {
                let from = first + at + l * LANES;
                let to = &mut y[m][from..outputs.min(from + LANES)];
                let sum = V::read(to).add(*sum);
                match factors.is_empty() {
                    true => sum.write(to),
                    false => sum.mul(V::read(&factors[from..from + to.len()])).write(to),
                }
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
    use crate::simd::on_every_kind;

    fn numbers(count: usize, from: usize) -> Vec<f32> {
        (from..from + count).map(|at| ((at * 7919 % 1009) as f32 - 504.0) / 512.0).collect()
    }

    /// Both kernels against their definitions, in one format.
    struct Check<W> {
        narrow: fn(f32) -> W,
        shape: [usize; 4],
    }

    impl<W: Weight> LaneKernel for Check<W> {
        #[inline(always)]
        fn run<V: Lanes>(self) {
            let Self { narrow, shape: [rows, inputs, rank, outputs] } = self;
            let weights =
                |count, from| -> Vec<W> { numbers(count, from).into_iter().map(narrow).collect() };
            let (a, b) = (weights(rank * inputs, 3), weights(outputs * rank, 50));
            // Every second row of more than are computed.
            let x = numbers(2 * rows * inputs, 7);
            let places: Vec<u32> = (0..rows as u32).map(|row| 2 * row + 1).collect();
            let mut z = vec![0.0; rows * rank];
            let scale = 0.75;
            Shrink { a: &a, inputs, scale, x: &x, rows: &places, z: &mut z }.run::<V>();
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
                    Expand { b, outputs, rank, z, factors, y: &mut y }.run::<V>();
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
    }

    #[test]
    fn both_products_are_those_of_the_definition_in_every_shape_format_and_register() {
        for shape in [
            [1, 5, 1, 3],
            [1, 64, 16, 64],
            [2, 33, 7, 65],
            [3, 100, 4, 16],
            [4, 100, 16, 300],
            [6, 33, 3, 65],
            [7, 40, 5, 130],
            [5, 48, 9, 130],
            [9, 200, 17, 48],
            [32, 16, 3, 200],
        ] {
            on_every_kind(|| Check { narrow: |number| number, shape });
            on_every_kind(|| Check { narrow: f16::from_f32, shape });
            on_every_kind(|| Check { narrow: bf16::from_f32, shape });
        }
    }
}
