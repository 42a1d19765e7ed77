//! Projections by bf16 and f16 weights in the tile registers of AMX.
//!
//! `y^T = W x^T`: weights are the first operand, which is read where it lies. Activations are the
//! second, packed as it wants them, each as a sum of three bf16s, which is the f32: products are
//! those in f32, and so are sums but for their order. Each weight is read from
//! memory once, and the next ones meanwhile. An f16 is the sum of two bf16s, exactly: a group of
//! outputs is taken apart at a time, and goes through the tiles twice.
//!
//! Tiles: <https://www.intel.com/content/www/us/en/developer/articles/technical/intel-sdm.html>,
//! volume 1, chapter 18; the permission to use them: `Documentation/arch/x86/xstate.rst` of Linux.

use std::arch::x86_64::{
    _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_loadu_ps,
    _mm512_mask_storeu_ps, _mm512_setzero_si512,
};
use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};
use rayon::prelude::*;

use super::few::Weight;
use super::packed_bytes;
use crate::simd::{self, Kernel};

mod packed;
mod registers;

pub(super) use registers::are_here;

use packed::{DEEP, Line, Packed, SIDE, STEP_LINES, turned};
use registers::{Steps, Sums, Tiles};

/// Outputs computed side by side: two tiles.
const GROUP: usize = 2 * SIDE;
/// Bytes of a packed activation.
const BYTES: usize = 6;
/// Tasks per thread: enough to make up for a slower one.
const TASKS: usize = 4;

/// Weights that are sums of bf16s.
pub(super) trait Halves: Weight {
    /// As the bf16s that are summed, each as many as the weights; in `room` if they are not these.
    fn apart<'a>(weights: &'a [Self], room: &'a mut Vec<bf16>) -> Vec<&'a [bf16]>;
}

impl Halves for bf16 {
    fn apart<'a>(weights: &'a [Self], _room: &'a mut Vec<bf16>) -> Vec<&'a [bf16]> {
        vec![weights]
    }
}

impl Halves for f16 {
    fn apart<'a>(weights: &'a [Self], room: &'a mut Vec<bf16>) -> Vec<&'a [bf16]> {
        room.clear();
        room.resize(2 * weights.len(), bf16::ZERO);
        let (large, small) = room.split_at_mut(weights.len());
        simd::dispatch(Apart { weights, large, small });
        vec![large, small]
    }
}

/// Takes f16s apart: their upper eight bits, and what is left of eleven.
struct Apart<'a> {
    weights: &'a [f16],
    large: &'a mut [bf16],
    small: &'a mut [bf16],
}

impl Kernel for Apart<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let upper = |number: f32| (number.to_bits() >> 16) as u16;
        for ((weight, large), small) in self.weights.iter().zip(self.large).zip(self.small) {
            let number = weight.widen();
            *large = bf16::from_bits(upper(number));
            *small = bf16::from_bits(upper(number - large.widen()));
        }
    }
}

/// `x W^T`, `[rows, outputs]`. The machine must have tiles.
pub(super) fn multiply<W: Halves>(
    x: &[f32],
    weight: &[W],
    [rows, inputs, outputs]: [usize; 3],
) -> Vec<f32> {
    assert!(are_here(), "asked for where there are tiles");
    assert!(x.len() == rows * inputs && weight.len() == outputs * inputs, "shapes are checked");
    let mut y = vec![0.0; rows * outputs];
    if y.is_empty() || inputs == 0 {
        return y;
    }
    let deep = inputs.next_multiple_of(DEEP);
    let most = packed_bytes(inputs) / (BYTES * deep) / GROUP * GROUP;
    let height = rows.div_ceil(rows.div_ceil(most)).next_multiple_of(GROUP);
    let groups = outputs.div_ceil(GROUP);
    let per_task = groups.div_ceil(TASKS * rayon::current_num_threads());
    for (x, y) in x.chunks(height * inputs).zip(y.chunks_mut(height * outputs)) {
        let packed = Packed::of(x, inputs);
        let y = Results::new(y, outputs);
        (0..groups.div_ceil(per_task)).into_par_iter().for_each(|task| {
            let mine = task * per_task..((task + 1) * per_task).min(groups);
            run(mine, weight, &packed, &y);
        });
    }
    y
}

/// Results of some rows, to which tasks write different outputs side by side.
struct Results<'a> {
    start: *mut f32,
    outputs: usize,
    rows: usize,
    lent: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "tasks write different outputs of all rows")]
// SAFETY: it is written to through `start` alone, by tasks that have different outputs.
unsafe impl Sync for Results<'_> {}

impl<'a> Results<'a> {
    fn new(y: &'a mut [f32], outputs: usize) -> Self {
        let rows = y.len() / outputs;
        Self { start: y.as_mut_ptr(), outputs, rows, lent: PhantomData }
    }
}

/// One group of outputs.
#[derive(Clone, Copy)]
struct Group {
    /// The first output, and which of the 32 from it on are written.
    first: usize,
    mine: [usize; 2],
}

impl Group {
    /// The last group ends with the outputs, and leaves those to the one before that it has.
    fn of(index: usize, outputs: usize) -> Self {
        let begin = index * GROUP;
        let first = begin.min(outputs.saturating_sub(GROUP));
        Self { first, mine: [begin - first, GROUP.min(outputs - first)] }
    }
}

/// The inputs of 32 outputs beyond the last whole step, with zeros behind.
fn rest(weights: &[bf16], inputs: usize) -> [Line; GROUP] {
    let mut rest = [Line([0; DEEP]); GROUP];
    let whole = inputs / DEEP * DEEP;
    if whole < inputs {
        for (line, row) in rest.iter_mut().zip(weights.chunks_exact(inputs)) {
            for (to, from) in line.0.iter_mut().zip(&row[whole..]) {
                *to = from.to_bits();
            }
        }
    }
    rest
}

/// Some groups of outputs for all packed rows.
fn run<W: Halves>(groups: Range<usize>, weight: &[W], packed: &Packed, y: &Results<'_>) {
    let inputs = packed.inputs;
    let outputs = weight.len() / inputs;
    let (mut room, mut whole) = (Vec::new(), Vec::new());
    for index in groups {
        let group = Group::of(index, outputs);
        let weights = match outputs < GROUP {
            true => {
                // Fewer outputs than a group are followed by zeros.
                whole.clear();
                whole.extend_from_slice(weight);
                whole.resize(GROUP * inputs, W::zeroed());
                &whole
            }
            false => &weight[group.first * inputs..][..GROUP * inputs],
        };
        let next = weight.as_ptr().wrapping_add((group.first + GROUP) * inputs).cast();
        multiply_group(&W::apart(weights, &mut room), next, packed, (group, y));
    }
}

/// One group of outputs, by weights that are sums of `parts`.
fn multiply_group(
    parts: &[&[bf16]],
    next: *const u8,
    packed: &Packed,
    (group, y): (Group, &Results<'_>),
) {
    let inputs = packed.inputs;
    let steps = inputs / DEEP;
    let rests: Vec<_> = parts.iter().map(|part| rest(part, inputs)).collect();
    let mut sums: Sums = [Line([0; DEEP]); 4 * SIDE];
    let tiles = Tiles::configured();
    for (index, (rows, lines)) in packed.blocks().enumerate() {
        let wide = rows.len() > SIDE;
        // The first block brings in what the next group will read.
        let ahead = if index == 0 { GROUP * DEEP * size_of::<bf16>() / 64 } else { 0 };
        let mut fresh = true;
        for (part, rest) in parts.iter().zip(&rests) {
            debug_assert_eq!(part.len(), GROUP * inputs, "parts are of all weights");
            let stride = inputs * size_of::<bf16>();
            let main = Steps { weights: part.as_ptr().cast(), stride, count: steps, next, ahead };
            let mut from = lines.as_ptr();
            if steps > 0 {
                tiles.multiply(wide, fresh, main, from, &mut sums);
                from = from.wrapping_add(steps * if wide { 2 } else { 1 } * STEP_LINES);
                fresh = false;
            }
            if steps * DEEP < inputs {
                let (stride, weights) = (size_of::<Line>(), rest.as_ptr().cast());
                let last = Steps { weights, stride, count: 1, ahead: 0, ..main };
                tiles.multiply(wide, fresh, last, from, &mut sums);
                fresh = false;
            }
        }
        assert!(rows.end <= y.rows && group.first + group.mine[1] <= y.outputs, "inside");
        #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
        // SAFETY: the features were detected with the tiles; rows and outputs lie in `y`, and
        // these outputs are this task's.
        unsafe {
            write(&sums, wide, (rows, group), y);
        }
    }
}

/// Puts the sums of 32 outputs where they belong.
///
/// # Safety
/// The CPU has the features, rows and outputs lie in `y`, and nobody else writes those outputs.
#[expect(unsafe_code, reason = "tasks write different outputs of all rows")]
#[target_feature(enable = "avx512f")]
unsafe fn write(sums: &Sums, wide: bool, (rows, group): (Range<usize>, Group), y: &Results<'_>) {
    for half in 0..2 {
        let lanes = |lane: &usize| (group.mine[0]..group.mine[1]).contains(&(half * SIDE + lane));
        let mask = (0..SIDE).filter(lanes).fold(0, |mask, lane| mask | 1 << lane);
        let at = y.start.wrapping_add(group.first + half * SIDE);
        // SAFETY: sums are 64 lines of 16 numbers, of which `line` is below 64.
        let load = |line: usize| unsafe { _mm512_loadu_ps(sums.as_ptr().add(line).cast()) };
        for block in 0..if wide { 2 } else { 1 } {
            let tile = (2 * half + block) * SIDE;
            let mut outputs = [_mm512_setzero_si512(); SIDE];
            for (line, output) in outputs.iter_mut().enumerate() {
                let sum = load(tile + line);
                // Without a second block of rows its tile has the sums of the smaller parts.
                let sum = if wide { sum } else { _mm512_add_ps(sum, load(tile + SIDE + line)) };
                *output = _mm512_castps_si512(sum);
            }
            for (row, numbers) in (rows.start + block * SIDE..rows.end).zip(turned(outputs)) {
                let to = at.wrapping_add(row * y.outputs);
                // SAFETY: the caller answers for the numbers under the mask.
                unsafe { _mm512_mask_storeu_ps(to, mask, _mm512_castsi512_ps(numbers)) };
            }
        }
    }
}

#[cfg(test)]
mod tests;
