//! Projections by weights of any float type: single rows, batches, and prompts where there is
//! nothing faster.
//!
//! Weights are read as they lie: sums of some outputs for some rows are held in registers while their
//! inputs pass by, sixteen at a time, so that each load serves several products; the
//! weights of the next outputs are brought in meanwhile. With eight rows side by side a weight is
//! widened once for all of them. Rows that would push each other out of the first cache are packed.
//! Where the CPU has no registers that wide, rows go by eights through the kernel for few.

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
    let is_empty = rows * inputs * outputs == 0;
    #[cfg(target_arch = "x86_64")]
    if is_wide() && !is_empty {
        return wide::multiply(x, weight, inputs);
    }
    let mut y = vec![0.0; rows * outputs];
    if is_empty {
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
    use std::mem::MaybeUninit;

    use rayon::prelude::*;

    use super::Weight;
    use crate::simd::{Avx512, LANES};

    /// Rows that go through the weights of a task together, and bytes of them: with those weights they
    /// stay in the second cache.
    const ROWS: usize = 192;
    const TOGETHER: usize = 3 << 18;
    /// Weights per task, and fewer where there are not enough of those for all threads.
    const TASK: usize = 1 << 16;
    /// Tasks per thread: enough to make up for a slower one.
    const TASKS: usize = 4;
    /// What is worth another thread's waking: weights, which memory has to bring, or products.
    const LEAST_WEIGHTS: usize = 1 << 15;
    const LEAST_PRODUCTS: usize = 1 << 18;
    /// Outputs computed side by side, at most, and rows.
    const GROUP: usize = 8;
    const SIDE: usize = 8;
    /// Inputs summed before the next outputs: as many as the second cache keeps of the rows that go
    /// together. Fewer, of which the first cache kept those side by side, are slower by a tenth: sums
    /// are added up and put away more often.
    const DEEP: usize = 2048;
    /// Rows whose starts lie a multiple of a page apart share lines of the first cache. Where weights
    /// in f32 are as far apart, that takes up to half of the pace.
    const PAGE: usize = 4096;
    /// Bytes of weights that meet some rows side by side before the next ones: these find them in
    /// the second cache.
    const BLOCK: usize = 1 << 17;

    /// Results of all rows, to which tasks write different outputs side by side.
    struct Results<'a> {
        start: *mut f32,
        rows: usize,
        outputs: usize,
        lent: PhantomData<&'a mut [MaybeUninit<f32>]>,
    }

    #[expect(unsafe_code, reason = "tasks write different outputs of all rows")]
    // SAFETY: it is written to through `start` alone, by tasks that have different outputs.
    unsafe impl Sync for Results<'_> {}

    /// `x W^T`, of at least one row, input and output. [`super::is_wide`] holds.
    pub(super) fn multiply<W: Weight>(x: &[f32], weight: &[W], inputs: usize) -> Vec<f32> {
        let (rows, outputs) = (x.len() / inputs, weight.len() / inputs);
        let mut y = Vec::with_capacity(rows * outputs);
        let room = &mut y.spare_capacity_mut()[..rows * outputs];
        let start = room.as_mut_ptr().cast();
        let results = Results { start, rows, outputs, lent: PhantomData };
        let weights = outputs * inputs;
        let worth = (weights / LEAST_WEIGHTS).max(rows * weights / LEAST_PRODUCTS).max(1);
        let tasks = worth.min((TASKS * rayon::current_num_threads()).max(weights / TASK));
        let together = together(inputs);
        let [_, group] = shape(rows.min(together));
        let per_task = outputs.div_ceil(tasks).next_multiple_of(group);
        let is_packed = rows > SIDE
            && size_of::<W>() == size_of::<f32>()
            && (size_of::<f32>() * inputs).is_multiple_of(PAGE);
        let packed = if is_packed { packed(x, inputs) } else { Vec::new() };
        let x = if is_packed { &packed } else { x };
        weight.par_chunks(per_task * inputs).enumerate().for_each(|(task, weight)| {
            for (first, x) in (0..).step_by(together).zip(x.chunks(together * inputs)) {
                let to = (&results, [first, task * per_task]);
                Part::new((x, is_packed), weight, inputs, to).run();
            }
        });
        #[expect(unsafe_code, reason = "results are written once, not zeroed before")]
        // SAFETY: the tasks wrote each output of each row.
        unsafe {
            y.set_len(rows * outputs);
        }
        y
    }

    /// The same, not shared out.
    #[cfg(test)]
    pub(super) fn in_one_task<W: Weight>(x: &[f32], weight: &[W], inputs: usize) -> Vec<f32> {
        let (rows, outputs) = (x.len() / inputs, weight.len() / inputs);
        let mut y = vec![f32::NAN; rows * outputs];
        let results = Results { start: y.as_mut_ptr(), rows, outputs, lent: PhantomData };
        Part::new((x, false), weight, inputs, (&results, [0, 0])).run();
        y
    }

    /// Rows as they are read: of those side by side, sixteen inputs of each lie together.
    fn packed(x: &[f32], inputs: usize) -> Vec<f32> {
        let mut packed = Vec::with_capacity(x.len());
        let room = &mut packed.spare_capacity_mut()[..x.len()];
        let together = together(inputs) * inputs;
        room.par_chunks_mut(together).zip(x.par_chunks(together)).for_each(|(room, x)| {
            let [side, _] = shape(x.len() / inputs);
            let beside = side * inputs;
            room.par_chunks_mut(beside).zip(x.par_chunks(beside)).for_each(|(room, x)| {
                let rows = x.len() / inputs;
                for (row, x) in x.chunks(inputs).enumerate() {
                    let lines = room.chunks_mut(LANES).skip(row).step_by(rows);
                    for (line, x) in lines.zip(x.chunks(LANES)) {
                        line.write_copy_of_slice(x);
                    }
                }
            });
        });
        #[expect(unsafe_code, reason = "numbers are written once, not zeroed before")]
        // SAFETY: pages are whole lines, and each line of each row was written to one of its own.
        unsafe {
            packed.set_len(x.len());
        }
        packed
    }

    /// How many rows of so many inputs go through weights together.
    const fn together(inputs: usize) -> usize {
        let deep = if inputs < DEEP { inputs } else { DEEP };
        let rows = (TOGETHER / (size_of::<f32>() * deep)).next_multiple_of(SIDE);
        if rows < ROWS { rows } else { ROWS }
    }

    /// How many of so many rows, in equal parts, and how many outputs are computed side by side: as many
    /// sums as there are registers for.
    const fn shape(rows: usize) -> [usize; 2] {
        let side = rows.div_ceil(rows.div_ceil(SIDE));
        [side, [8, 8, 7, 6, 4, 4, 3, 3][side - 1]]
    }

    /// Some rows by some weights, and where their results go: `stride` numbers lie between those of
    /// two rows.
    struct Part<'a, W> {
        x: &'a [f32],
        /// Whether the rows are as [`packed`] leaves them.
        is_packed: bool,
        weight: &'a [W],
        inputs: usize,
        to: *mut f32,
        stride: usize,
    }

    impl<'a, W: Weight> Part<'a, W> {
        /// With results from that row and output on, which are of nobody else.
        fn new(
            (x, is_packed): (&'a [f32], bool),
            weight: &'a [W],
            inputs: usize,
            (y, [row, output]): (&Results<'_>, [usize; 2]),
        ) -> Self {
            assert!(row + x.len() / inputs <= y.rows, "rows are inside");
            assert!(output + weight.len() / inputs <= y.outputs, "outputs are inside");
            let to = y.start.wrapping_add(row * y.outputs + output);
            Self { x, is_packed, weight, inputs, to, stride: y.outputs }
        }

        /// Multiplies them, in equal parts of up to eight rows. [`super::is_wide`] holds.
        fn run(&self) {
            match shape(self.x.len() / self.inputs) {
                [1, _] => self.by::<1, 8>(),
                [2, _] => self.by::<2, 8>(),
                [3, _] => self.by::<3, 7>(),
                [4, _] => self.by::<4, 6>(),
                [5, _] => self.by::<5, 4>(),
                [6, _] => self.by::<6, 4>(),
                [7, _] => self.by::<7, 3>(),
                _ => self.by::<8, 3>(),
            }
        }

        /// By so many rows and outputs side by side.
        fn by<const R: usize, const G: usize>(&self) {
            let Self { x, weight, inputs, .. } = *self;
            let block = (BLOCK / (size_of::<W>() * inputs.min(DEEP))).max(1).next_multiple_of(G);
            for from in (0..inputs).step_by(DEEP) {
                for (output, weight) in (0..).step_by(block).zip(weight.chunks(block * inputs)) {
                    for (row, x) in (0..).step_by(R).zip(x.chunks(R * inputs)) {
                        self.side::<R, G>(x, weight, from, [row, output]);
                    }
                }
            }
        }

        /// Rows side by side, by a block's weights, from that input on.
        fn side<const R: usize, const G: usize>(
            &self,
            x: &[f32],
            weight: &[W],
            from: usize,
            [row, output]: [usize; 2],
        ) {
            let Self { is_packed, inputs, to, stride, .. } = *self;
            let count = DEEP.min(inputs - from);
            for (group, weights) in weight.chunks(G * inputs).enumerate() {
                let to = to.wrapping_add(row * stride + output + group * G);
                // The first rows bring in the weights of the next group.
                let next = if row == 0 { weights.len() } else { 0 };
                let piece = Piece { x, weights, inputs, from, count, next };
                #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
                // SAFETY: the features were detected, and these results are the part's.
                unsafe {
                    match is_packed {
                        true => piece.add::<R, G, true>(to, stride),
                        false => piece.add::<R, G, false>(to, stride),
                    }
                }
            }
        }
    }

    /// Some inputs of some rows and outputs.
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

    impl<W: Weight> Piece<'_, W> {
        /// Adds its sums to results of `stride` between rows; of the first inputs it writes them, and
        /// does not read what was there: pages that nobody has written would be made twice.
        ///
        /// # Safety
        /// [`super::is_wide`] holds, there are at most `R` rows and `G` outputs, and their results may
        /// be written.
        #[expect(unsafe_code, reason = "tasks write different outputs of all rows")]
        #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
        unsafe fn add<const R: usize, const G: usize, const PACKED: bool>(
            self,
            to: *mut f32,
            stride: usize,
        ) {
            let Self { x, weights, inputs, from, count, next } = self;
            let (rows, outputs) = (x.len() / inputs, weights.len() / inputs);
            assert!(from + count <= inputs, "inputs are inside");
            // Numbers from one row to the next, and from one input to the next.
            let (apart, step) = if PACKED { (LANES, rows) } else { (inputs, 1) };
            // Loops, for closures are not compiled for the features.
            let (mut lines, mut columns) = ([&x[..0]; R], [&weights[..0]; G]);
            for n in 0..R {
                lines[n] = &x[n.min(rows - 1) * apart + from * step..];
            }
            for m in 0..G {
                columns[m] = &weights[m.min(outputs - 1) * inputs + from..][..count];
            }
            let mut sums = [[_mm512_setzero_ps(); G]; R];
            for at in (0..count / LANES * LANES).step_by(LANES) {
                let mut wide = [_mm512_setzero_ps(); G];
                for m in 0..G {
                    let lanes = columns[m].as_ptr().wrapping_add(at);
                    if next > 0 {
                        _mm_prefetch::<_MM_HINT_T1>(lanes.wrapping_add(next).cast());
                    }
                    // SAFETY: sixteen weights from `at` on lie in the column.
                    wide[m] = W::lanes::<Avx512>(unsafe { &*lanes.cast() }).0;
                }
                for n in 0..R {
                    // SAFETY: as above, of the row; packed ones have no rest.
                    let numbers =
                        unsafe { _mm512_loadu_ps(lines[n].as_ptr().wrapping_add(at * step)) };
                    for m in 0..G {
                        sums[n][m] = _mm512_fmadd_ps(wide[m], numbers, sums[n][m]);
                    }
                }
            }
            let rest = count % LANES;
            if rest > 0 {
                let (whole, mask) = (count - rest, (1u16 << rest) - 1);
                for m in 0..G {
                    let mut lanes = [W::zeroed(); LANES];
                    lanes[..rest].copy_from_slice(&columns[m][whole..]);
                    let weight = W::lanes::<Avx512>(&lanes).0;
                    for n in 0..R {
                        let numbers = lines[n][whole..].as_ptr();
                        // SAFETY: only numbers under the mask are read, which are in the row.
                        let numbers = unsafe { _mm512_maskz_loadu_ps(mask, numbers) };
                        sums[n][m] = _mm512_fmadd_ps(weight, numbers, sums[n][m]);
                    }
                }
            }
            let mask = ((1u32 << outputs) - 1) as u16;
            for (n, sums) in sums.iter().enumerate().take(rows) {
                let mut all = [_mm512_setzero_ps(); GROUP];
                all[..G].copy_from_slice(sums);
                // SAFETY: the caller answers for the numbers under the mask.
                unsafe {
                    let to = to.add(n * stride);
                    let mut sum = added(all);
                    if from > 0 {
                        sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), sum);
                    }
                    _mm512_mask_storeu_ps(to, mask, sum);
                }
            }
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
            [9, 1024, 11],
            [205, 3072, 9],
            [0, 64, 64],
            [3, 0, 5],
            [3, 64, 0],
        ] {
            equal(|number| number, shape);
            equal(f16::from_f32, shape);
            equal(bf16::from_f32, shape);
        }
    }

    #[test]
    fn every_shape_of_registers_computes_whole_and_partial_groups_in_one_and_more_parts() {
        for rows in (1..=9).chain([12, 14, 21, 193]) {
            for inputs in [15, 16, 1024, 1041] {
                for outputs in [1, 5, 23, 25] {
                    equal(bf16::from_f32, [rows, inputs, outputs]);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_task_of_several_blocks_computes_each_of_them() {
        fn equal<W: Weight>(narrow: fn(f32) -> W) {
            let [rows, inputs, outputs] = [11, 800, 300];
            let x: Vec<f32> = (0..rows * inputs).map(number).collect();
            let weight: Vec<W> = (0..outputs * inputs).map(|at| narrow(number(at + 5))).collect();
            let whole = wide::in_one_task(&x, &weight, inputs);
            for output in 0..outputs {
                let own = &weight[output * inputs..][..inputs];
                let alone = multiply(&x, own, [rows, inputs, 1]);
                for (row, alone) in alone.iter().enumerate() {
                    let apart = (whole[row * outputs + output] - alone).abs();
                    assert!(apart < 1e-2, "row {row}, output {output}: {apart}");
                }
            }
        }
        if is_wide() {
            equal(|number| number);
            equal(f16::from_f32);
            equal(bf16::from_f32);
        }
    }
}
