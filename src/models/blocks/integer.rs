//! Projections by integer dot products: weights as they lie in memory, inputs rounded to eight
//! bits per 32 of a row.
//!
//! A block's product is a whole number times the two scales, `d_w d_x sum(w x)`, so nothing is
//! widened; that inputs are rounded so is what ggml computes for 32-blocks, and finer than what
//! it does for blocks of 256. A row is rounded by itself and its products are added block by
//! block in their order, so what it gives depends neither on its company nor on the threads.
//! Sixteen outputs are computed together, a lane each, for some hundred rows while their weights
//! are in registers.

use rayon::prelude::*;

use super::Part;
use crate::format::BlockFormat;
use crate::simd::{self, Kernel};

mod plain;
#[cfg(target_arch = "x86_64")]
mod vnni;

/// Numbers of a row that are rounded together, and whose products are a whole number.
const TOGETHER: usize = 32;
/// Outputs computed together: as many f32 as the widest register has.
const OUTPUTS: usize = 16;
/// Rows of inputs that are rounded and multiplied at a time: their sums for sixteen outputs take
/// a third of a core's first cache.
pub(crate) const ROWS: usize = 256;
/// Products per task: enough to be worth a thread's waking.
const TASK: usize = 1 << 16;
/// Numbers of inputs that one thread rounds before another wakes for it.
const SERIAL: usize = 1 << 14;
/// What weights below zero are above it by as unsigned bytes. One for all formats, so that inputs
/// carry what it adds to a product.
const CENTRE: i32 = 128;

/// Bytes that inputs take when they are rounded, of a step of so many rows and columns.
pub(crate) fn bytes(rows: usize, columns: usize) -> u128 {
    (rows.min(ROWS) * columns.div_ceil(TOGETHER)) as u128 * size_of::<Piece>() as u128
}

/// Bytes of the sums that a thread has.
pub(crate) fn sums(rows: usize) -> u128 {
    rows.min(ROWS) as u128 * size_of::<Lanes>() as u128
}

/// 32 inputs, rounded, with what products need of them beside.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Piece {
    /// Four signed bytes in each, in the order of memory.
    words: [i32; TOGETHER / 4],
    /// What a step of the bytes is worth.
    scale: f32,
    /// The scale times the sum of the bytes.
    total: f32,
    /// Minus [`CENTRE`] times the sum of the bytes.
    start: i32,
    /// The same of each half.
    starts: [i32; 2],
}

/// Sums of sixteen outputs of a row.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Lanes([f32; OUTPUTS]);

/// `x W^T` for the part's blocks of one format, into `y` `[rows, width]` from output `first` on.
pub(super) fn multiply(
    format: BlockFormat,
    part: &Part<'_>,
    pieces: &Pieces,
    y: &mut [f32],
    (first, width): (usize, usize),
) {
    let rows = pieces.rows;
    assert!(y.len() == rows * width && first + part.rows <= width, "all outputs have a place");
    let products = part.stride / format.bytes() * format.values() * rows;
    let per_task = (TASK / products.max(1)).clamp(1, 1 << 16).next_multiple_of(OUTPUTS);
    let out = Outputs { start: y.as_mut_ptr(), width };
    part.data.par_chunks((per_task * part.stride).max(1)).enumerate().for_each_init(
        || vec![Lanes([0.0; OUTPUTS]); rows],
        |sums, (task, data)| {
            for (tile, data) in data.chunks(OUTPUTS * part.stride).enumerate() {
                sums.fill(Lanes([0.0; OUTPUTS]));
                sixteen(format, data, part.stride, &pieces.pieces, sums);
                let outputs = data.len() / part.stride;
                let at = first + task * per_task + tile * OUTPUTS;
                for (row, sums) in sums.iter().enumerate() {
                    #[expect(unsafe_code, reason = "tasks write columns of one matrix")]
                    // SAFETY: `row` and the outputs from `at` on lie in `y` (asserted above), and
                    // no other task has any of these outputs.
                    unsafe {
                        out.put(row, at, &sums.0[..outputs]);
                    }
                }
            }
        },
    );
}

/// Where tasks put their outputs.
struct Outputs {
    start: *mut f32,
    width: usize,
}

#[expect(unsafe_code, reason = "tasks write columns of one matrix")]
// SAFETY: it is only written through, at places that no two tasks share.
unsafe impl Sync for Outputs {}

impl Outputs {
    /// Puts some outputs of a row.
    ///
    /// # Safety
    ///
    /// They lie in the matrix, which outlives this and in which nobody else reads or writes them.
    #[expect(unsafe_code, reason = "tasks write columns of one matrix")]
    unsafe fn put(&self, row: usize, at: usize, numbers: &[f32]) {
        // SAFETY: the caller's.
        let to = unsafe { self.start.add(row * self.width + at) };
        // SAFETY: the caller's; `numbers` are the task's own.
        unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr(), to, numbers.len()) };
    }
}

/// Adds up to sixteen outputs of all rows to `sums`.
fn sixteen(
    format: BlockFormat,
    weights: &[u8],
    stride: usize,
    pieces: &[Piece],
    sums: &mut [Lanes],
) {
    #[cfg(target_arch = "x86_64")]
    if vnni::is_here() {
        #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
        // SAFETY: the features were just detected.
        return unsafe { vnni::sixteen(format, weights, stride, pieces, sums) };
    }
    simd::dispatch(plain::Sixteen { format, weights, stride, pieces, sums });
}

/// Rounded rows.
pub(super) struct Pieces {
    rows: usize,
    /// `[blocks, rows]`.
    pieces: Vec<Piece>,
}

impl Pieces {
    /// Rounds rows of `columns` numbers, a multiple of [`TOGETHER`].
    pub(super) fn of(x: &[f32], columns: usize) -> Self {
        let (rows, blocks) = (x.len() / columns, columns / TOGETHER);
        let nothing = Piece { words: [0; 8], scale: 0.0, total: 0.0, start: 0, starts: [0; 2] };
        let mut pieces = vec![nothing; rows * blocks];
        let at_least = (SERIAL / (rows * TOGETHER)).max(1);
        pieces.par_chunks_exact_mut(rows).with_min_len(at_least).enumerate().for_each(
            |(block, pieces)| simd::dispatch(Round { x: &x[block * TOGETHER..], columns, pieces }),
        );
        Self { rows, pieces }
    }
}

/// Rounds one block of all rows.
struct Round<'a> {
    /// From the block's first number of the first row on.
    x: &'a [f32],
    columns: usize,
    /// One for each row.
    pieces: &'a mut [Piece],
}

impl Kernel for Round<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (x, piece) in self.x.chunks(self.columns).zip(self.pieces) {
            *piece = round(x.first_chunk().expect("a row has whole blocks"));
        }
    }
}

/// Rounds to 127 steps on either side of zero, of which the largest number is the last. Where a
/// number is not finite, nothing that is made of the block is.
#[inline(always)]
fn round(x: &[f32; TOGETHER]) -> Piece {
    /// Adding it rounds to an integer, which then lies in the low bits.
    const INTEGER: f32 = 12_582_912.0;
    const TINY: f32 = 1e-36;
    // Without its sign a number's bits are ordered as it is, and beyond all numbers lies what is none.
    let size = |x: &f32| x.to_bits() & 0x7fff_ffff;
    let largest = f32::from_bits(x.iter().fold(0, |largest, x| largest.max(size(x))));
    // Blocks of next to nothing are nothing: their steps would not be numbers.
    let steps = if largest > TINY { 127.0 / largest } else { 0.0 };
    let mut whole = [0i32; TOGETHER];
    for (whole, x) in whole.iter_mut().zip(x) {
        *whole = (x * steps + INTEGER).to_bits().wrapping_sub(INTEGER.to_bits()).cast_signed();
    }
    // Of what is not finite any byte will do.
    let bytes = whole.map(|number| number as i8);
    let mut halves = [0i32; 2];
    for (half, numbers) in halves.iter_mut().zip(bytes.as_chunks::<{ TOGETHER / 2 }>().0) {
        *half = numbers.iter().map(|number| i32::from(*number)).sum();
    }
    let scale = largest / 127.0;
    let sum = halves[0] + halves[1];
    Piece {
        words: bytemuck::cast(bytes),
        scale,
        total: scale * sum as f32,
        start: -CENTRE * sum,
        starts: halves.map(|half| -CENTRE * half),
    }
}

#[cfg(test)]
mod tests;
