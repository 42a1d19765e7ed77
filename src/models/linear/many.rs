//! Projections by weights of any float type: single rows, batches, and prompts where there is
//! nothing faster.
//!
//! Nothing is packed: sums of eight outputs for three rows are held in registers while their
//! inputs pass by, sixteen at a time, so that each load serves several products; the
//! weights of the next outputs are brought in meanwhile. Where the CPU
//! has no registers that wide, rows go by eights through the kernel for few.

use super::FEW_ROWS;
use super::few::{self, Weight};

/// Whether this machine has the registers that make it faster than packing weights.
pub(super) fn is_wide() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `x W^T`, `[rows, outputs]`.
pub(super) fn multiply<W: Weight>(
    x: &[f32],
    weight: &[W],
    [rows, inputs, outputs]: [usize; 3],
) -> Vec<f32> {
    assert!(x.len() == rows * inputs && weight.len() == outputs * inputs, "shapes are checked");
    let mut y = vec![0.0; rows * outputs];
    if y.is_empty() || inputs == 0 {
        return y;
    }
    #[cfg(target_arch = "x86_64")]
    if is_wide() {
        wide::multiply(x, weight, inputs, &mut y);
        return y;
    }
    for (x, y) in x.chunks(FEW_ROWS * inputs).zip(y.chunks_mut(FEW_ROWS * outputs)) {
        y.copy_from_slice(&few::multiply(x, weight, x.len() / inputs, inputs));
    }
    y
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m512, _MM_HINT_T1, _mm_prefetch, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps,
        _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
        _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };
    use std::marker::PhantomData;

    use rayon::prelude::*;

    use super::Weight;

    /// Rows that go through the weights of a task together: with those weights they stay in the
    /// second cache.
    const ROWS: usize = 192;
    /// Weights per task, and fewer where there are not enough of those for all threads.
    const TASK: usize = 1 << 16;
    /// Tasks per thread: enough to make up for a slower one.
    const TASKS: usize = 4;
    /// Outputs computed side by side.
    const GROUP: usize = 8;
    /// Rows computed side by side.
    const SIDE: usize = 3;
    /// Numbers in a register.
    const LANES: usize = 16;
    /// Inputs summed before the next outputs: the weights of a group stay in the first cache.
    const DEEP: usize = 1024;

    /// Results of all rows, to which tasks write different outputs side by side.
    struct Results<'a> {
        start: *mut f32,
        rows: usize,
        outputs: usize,
        lent: PhantomData<&'a mut [f32]>,
    }

    #[expect(unsafe_code, reason = "tasks write different outputs of all rows")]
    // SAFETY: it is written to through `start` alone, by tasks that have different outputs.
    unsafe impl Sync for Results<'_> {}

    impl<'a> Results<'a> {
        fn new(y: &'a mut [f32], outputs: usize) -> Self {
            let rows = y.len() / outputs;
            Self { start: y.as_mut_ptr(), rows, outputs, lent: PhantomData }
        }
    }

    /// `x W^T`, to `y`, which is zero. [`super::is_wide`] holds.
    pub(super) fn multiply<W: Weight>(x: &[f32], weight: &[W], inputs: usize, y: &mut [f32]) {
        let (rows, outputs) = (x.len() / inputs, weight.len() / inputs);
        let tasks = (TASKS * rayon::current_num_threads()).max(outputs * inputs / TASK);
        let per_task = outputs.div_ceil(tasks).next_multiple_of(GROUP);
        let results = Results::new(y, outputs);
        weight.par_chunks(per_task * inputs).enumerate().for_each(|(task, weight)| {
            for first in (0..rows).step_by(ROWS) {
                let some = first..(first + ROWS).min(rows);
                let x = &x[some.start * inputs..some.end * inputs];
                run(x, weight, inputs, (&results, [first, task * per_task]));
            }
        });
    }

    /// Some rows by some weights, to results from that row and output on, which are zero and of
    /// nobody else. [`super::is_wide`] holds.
    fn run<W: Weight>(
        x: &[f32],
        weight: &[W],
        inputs: usize,
        (y, [first_row, first_output]): (&Results<'_>, [usize; 2]),
    ) {
        assert!(first_row + x.len() / inputs <= y.rows, "rows are inside");
        assert!(first_output + weight.len() / inputs <= y.outputs, "outputs are inside");
        for from in (0..inputs).step_by(DEEP) {
            let count = DEEP.min(inputs - from);
            for (group, weights) in weight.chunks(GROUP * inputs).enumerate() {
                for (side, x) in x.chunks(SIDE * inputs).enumerate() {
                    let outputs = weights.len() / inputs;
                    let at = (first_row + side * SIDE) * y.outputs + first_output + group * GROUP;
                    // The first rows bring in the weights of the next group.
                    let next = if side == 0 { weights.len() } else { 0 };
                    let piece = Piece { x, weights, inputs, from, count, next };
                    #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
                    // SAFETY: the features were detected, and these results lie in `y`, where the
                    // task has its outputs for itself.
                    unsafe {
                        tile(piece, y.start.add(at), y.outputs, outputs);
                    }
                }
            }
        }
    }

    /// Some inputs of up to three rows and eight outputs.
    #[derive(Clone, Copy)]
    struct Piece<'a, W> {
        x: &'a [f32],
        weights: &'a [W],
        inputs: usize,
        from: usize,
        count: usize,
        /// How far behind each weight the one lies that is brought in beside it, or nothing.
        next: usize,
    }

    /// Adds a piece's sums to results of `stride` between rows, of which `outputs` are written.
    ///
    /// # Safety
    /// [`super::is_wide`] holds, and the results may be read and written.
    #[expect(unsafe_code, reason = "tasks write different outputs of all rows")]
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
    unsafe fn tile<W: Weight>(piece: Piece<'_, W>, to: *mut f32, stride: usize, outputs: usize) {
        let Piece { x, weights, inputs, from, count, next } = piece;
        let rows = x.len() / inputs;
        let row = |n: usize| &x[n.min(rows - 1) * inputs + from..][..count];
        let rows_of_x: [&[f32]; SIDE] = std::array::from_fn(row);
        let column = |n: usize| &weights[n.min(outputs - 1) * inputs + from..][..count];
        let columns: [&[W]; GROUP] = std::array::from_fn(column);
        let mut sums = [[_mm512_setzero_ps(); GROUP]; SIDE];
        for at in (0..count / LANES * LANES).step_by(LANES) {
            let mut numbers = [_mm512_setzero_ps(); SIDE];
            for n in 0..SIDE {
                // SAFETY: sixteen numbers from `at` on lie in the row.
                numbers[n] = unsafe { _mm512_loadu_ps(rows_of_x[n].as_ptr().wrapping_add(at)) };
            }
            for m in 0..GROUP {
                let lanes = columns[m].as_ptr().wrapping_add(at);
                // SAFETY: as above.
                let lanes = unsafe { lanes.cast::<[W; LANES]>().read_unaligned() };
                if next > 0 {
                    let ahead = columns[m].as_ptr().wrapping_add(at + next);
                    _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                }
                let weight = widened(&lanes);
                for n in 0..SIDE {
                    sums[n][m] = _mm512_fmadd_ps(weight, numbers[n], sums[n][m]);
                }
            }
        }
        let rest = count % LANES;
        if rest > 0 {
            let (whole, mask) = (count - rest, (1u16 << rest) - 1);
            for m in 0..GROUP {
                let mut lanes = [W::zeroed(); LANES];
                lanes[..rest].copy_from_slice(&columns[m][whole..]);
                let weight = widened(&lanes);
                for n in 0..SIDE {
                    let numbers = rows_of_x[n][whole..].as_ptr();
                    // SAFETY: only numbers under the mask are read, which are in the row.
                    let numbers = unsafe { _mm512_maskz_loadu_ps(mask, numbers) };
                    sums[n][m] = _mm512_fmadd_ps(weight, numbers, sums[n][m]);
                }
            }
        }
        let mask = ((1u32 << outputs) - 1) as u16;
        for (n, sums) in sums.into_iter().enumerate().take(rows) {
            // SAFETY: the caller answers for the numbers under the mask.
            unsafe {
                let to = to.add(n * stride);
                let sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), added(sums));
                _mm512_mask_storeu_ps(to, mask, sum);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
    fn widened<W: Weight>(lanes: &[W; LANES]) -> __m512 {
        let mut wide = [0.0; LANES];
        for (wide, lane) in wide.iter_mut().zip(lanes) {
            *wide = lane.widen();
        }
        #[expect(unsafe_code, reason = "it loads")]
        // SAFETY: it is sixteen numbers.
        unsafe {
            _mm512_loadu_ps(wide.as_ptr())
        }
    }

    /// The sum of each register's numbers, in its place among the first eight.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn added(sums: [__m512; GROUP]) -> __m512 {
        let twos: [__m512; 4] = std::array::from_fn(|n| {
            let (a, b) = (sums[2 * n], sums[2 * n + 1]);
            _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))
        });
        // In each quarter the sums of four registers' quarters.
        let fours: [__m512; 2] = std::array::from_fn(|n| {
            let [a, b] = [twos[2 * n], twos[2 * n + 1]].map(|it| _mm512_castps_pd(it));
            let [low, high] = [_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b)];
            _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
        });
        let [a, b] = fours;
        let even = _mm512_shuffle_f32x4::<0x88>(a, b);
        let halves = _mm512_add_ps(even, _mm512_shuffle_f32x4::<0xdd>(a, b));
        let even = _mm512_shuffle_f32x4::<0x88>(halves, halves);
        _mm512_add_ps(even, _mm512_shuffle_f32x4::<0xdd>(halves, halves))
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    fn number(at: usize) -> f32 {
        ((at * 7919 % 10_007) as f32 - 5003.0) / 4096.0
    }

    fn equal<W: Weight>(narrow: fn(f32) -> W, shape: [usize; 3]) {
        let [rows, inputs, outputs] = shape;
        let x: Vec<f32> = (0..rows * inputs).map(number).collect();
        let weight: Vec<W> = (0..outputs * inputs).map(|at| narrow(number(at + 5))).collect();
        let y = multiply(&x, &weight, shape);
        assert_eq!(y.len(), rows * outputs);
        for (at, got) in y.iter().enumerate() {
            let (row, output) = (at / outputs, at % outputs);
            let terms = x[row * inputs..][..inputs].iter().zip(&weight[output * inputs..]);
            let terms = terms.map(|(x, w)| f64::from(*x) * f64::from(w.widen()));
            let (sum, size) =
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let apart = (f64::from(*got) - sum).abs();
            assert!(apart <= 1e-6 * size, "{shape:?}, {at}: {got} {sum}");
        }
    }

    #[test]
    fn products_are_those_of_plain_loops_in_every_shape_and_type() {
        for shape in [
            [1, 1, 1],
            [2, 16, 8],
            [3, 15, 7],
            [4, 17, 9],
            [9, 100, 64],
            [31, 576, 33],
            [200, 40, 21],
            [10, 2100, 20],
            [0, 64, 64],
            [3, 0, 5],
            [3, 64, 0],
        ] {
            equal(|number| number, shape);
            equal(f16::from_f32, shape);
            equal(bf16::from_f32, shape);
        }
    }
}
