//! Tasks of outputs, and the blocks in which rows meet their weights; what is summed in registers
//! is [`Sums`]' to say.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use rayon::prelude::*;

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
pub(super) const GROUP: usize = 8;
pub(super) const SIDE: usize = 8;
/// Inputs summed before the next outputs: as many as the second cache keeps of the rows that go
/// together. Fewer, of which the first cache kept those side by side, are slower by a tenth: sums
/// are added up and put away more often.
const DEEP: usize = 2048;
/// Bytes of weights that meet some rows side by side before the next ones: these find them in
/// the second cache.
const BLOCK: usize = 1 << 17;

/// A way to compute sums in registers, from rows as it wants them.
pub(super) trait Sums {
    /// A number of a row.
    type Number: Copy + Sync;
    /// A weight.
    type Weight: Copy + Sync;

    /// The numbers that a row of so many inputs takes.
    fn width(inputs: usize) -> usize {
        inputs
    }

    /// Adds the piece's sums to results of `stride` between rows; of the first inputs it writes them,
    /// and does not read what was there: pages that nobody has written would be made twice.
    ///
    /// # Safety
    /// The machine has what the way needs, there are at most `R` rows and `G` outputs, and their
    /// results may be written.
    #[expect(unsafe_code, reason = "tasks write different outputs of all rows")]
    unsafe fn add<const R: usize, const G: usize>(
        piece: Piece<'_, Self::Number, Self::Weight>,
        to: *mut f32,
        stride: usize,
    );
}

/// Some inputs of some rows and outputs.
#[derive(Clone, Copy)]
pub(super) struct Piece<'a, X, W> {
    /// Rows side by side, as [`Sums::width`] has them.
    pub(super) x: &'a [X],
    pub(super) weights: &'a [W],
    pub(super) inputs: usize,
    pub(super) from: usize,
    pub(super) count: usize,
    /// How far behind each weight the one lies that is brought in beside it, or nothing.
    pub(super) next: usize,
}

/// Rows laid out in lines, which begin where lines of the caches do: a register that is loaded from two
/// of those takes twice as long.
pub(super) struct InCache<T> {
    pub(super) lines: Vec<T>,
    pub(super) from: usize,
}

impl<T> InCache<T> {
    pub(super) fn get(&self) -> &[T] {
        &self.lines[self.from..]
    }
}

/// How many numbers of a buffer lie before a line of the caches begins.
pub(super) fn before_a_line<T>(buffer: &[T]) -> usize {
    buffer.as_ptr().align_offset(64)
}

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

/// `x W^T`, of at least one row, input and output. The machine has what the sums need.
pub(super) fn multiply<S: Sums>(x: &[S::Number], weight: &[S::Weight], inputs: usize) -> Vec<f32> {
    let width = S::width(inputs);
    let (rows, outputs) = (x.len() / width, weight.len() / inputs);
    let mut y = Vec::with_capacity(rows * outputs);
    let room = &mut y.spare_capacity_mut()[..rows * outputs];
    let start = room.as_mut_ptr().cast();
    let results = Results { start, rows, outputs, lent: PhantomData };
    let weights = outputs * inputs;
    let worth = (weights / LEAST_WEIGHTS).max(rows * weights / LEAST_PRODUCTS).max(1);
    let tasks = worth.min((TASKS * rayon::current_num_threads()).max(weights / TASK));
    let together = together::<S>(inputs);
    let [_, group] = shape(rows.min(together));
    let per_task = outputs.div_ceil(tasks).next_multiple_of(group);
    weight.par_chunks(per_task * inputs).enumerate().for_each(|(task, weight)| {
        for (first, x) in (0..).step_by(together).zip(x.chunks(together * width)) {
            let to = (&results, [first, task * per_task]);
            Part::<S>::new(x, weight, inputs, to).run();
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
pub(super) fn in_one_task<S: Sums>(
    x: &[S::Number],
    weight: &[S::Weight],
    inputs: usize,
) -> Vec<f32> {
    let (rows, outputs) = (x.len() / S::width(inputs), weight.len() / inputs);
    let mut y = vec![f32::NAN; rows * outputs];
    let results = Results { start: y.as_mut_ptr(), rows, outputs, lent: PhantomData };
    Part::<S>::new(x, weight, inputs, (&results, [0, 0])).run();
    y
}

/// Rows side by side in their order, for those who lay them out: of `rows` rows of so many inputs,
/// how many.
pub(super) fn sides<S: Sums>(rows: usize, inputs: usize) -> impl Iterator<Item = usize> {
    let together = together::<S>(inputs);
    let parts = (0..rows).step_by(together).map(move |first| together.min(rows - first));
    parts.flat_map(|rows| {
        let [side, _] = shape(rows);
        (0..rows).step_by(side).map(move |first| side.min(rows - first))
    })
}

/// How many rows of so many inputs go through weights together.
fn together<S: Sums>(inputs: usize) -> usize {
    let rows = TOGETHER / (size_of::<S::Number>() * inputs.min(DEEP));
    rows.next_multiple_of(SIDE).min(ROWS)
}

/// How many of so many rows, in equal parts, and how many outputs are computed side by side: as many
/// sums as there are registers for.
const fn shape(rows: usize) -> [usize; 2] {
    let side = rows.div_ceil(rows.div_ceil(SIDE));
    [side, [8, 8, 7, 6, 4, 4, 3, 3][side - 1]]
}

/// Some rows by some weights, and where their results go: `stride` numbers lie between those of
/// two rows.
struct Part<'a, S: Sums> {
    x: &'a [S::Number],
    weight: &'a [S::Weight],
    inputs: usize,
    to: *mut f32,
    stride: usize,
}

impl<'a, S: Sums> Part<'a, S> {
    /// With results from that row and output on, which are of nobody else.
    fn new(
        x: &'a [S::Number],
        weight: &'a [S::Weight],
        inputs: usize,
        (y, [row, output]): (&Results<'_>, [usize; 2]),
    ) -> Self {
        assert!(row + x.len() / S::width(inputs) <= y.rows, "rows are inside");
        assert!(output + weight.len() / inputs <= y.outputs, "outputs are inside");
        let to = y.start.wrapping_add(row * y.outputs + output);
        Self { x, weight, inputs, to, stride: y.outputs }
    }

    /// Multiplies them, in equal parts of up to eight rows. The machine has what the sums need.
    fn run(&self) {
        match shape(self.x.len() / S::width(self.inputs)) {
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
        let bytes = size_of::<S::Weight>() * inputs.min(DEEP);
        let block = (BLOCK / bytes).max(1).next_multiple_of(G);
        let side = R * S::width(inputs);
        for from in (0..inputs).step_by(DEEP) {
            for (output, weight) in (0..).step_by(block).zip(weight.chunks(block * inputs)) {
                for (row, x) in (0..).step_by(R).zip(x.chunks(side)) {
                    self.side::<R, G>(x, weight, from, [row, output]);
                }
            }
        }
    }

    /// Rows side by side, by a block's weights, from that input on.
    fn side<const R: usize, const G: usize>(
        &self,
        x: &[S::Number],
        weight: &[S::Weight],
        from: usize,
        [row, output]: [usize; 2],
    ) {
        let Self { inputs, to, stride, .. } = *self;
        let count = DEEP.min(inputs - from);
        for (group, weights) in weight.chunks(G * inputs).enumerate() {
            let to = to.wrapping_add(row * stride + output + group * G);
            // The first rows bring in the weights of the next group.
            let next = if row == 0 { weights.len() } else { 0 };
            let piece = Piece { x, weights, inputs, from, count, next };
            #[expect(unsafe_code, reason = "tasks write different outputs of all rows")]
            // SAFETY: the caller of `multiply` answers for the machine, and these results are the
            // part's.
            unsafe {
                S::add::<R, G>(piece, to, stride);
            }
        }
    }
}
