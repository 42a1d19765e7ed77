//! Sums of f32 products, sixteen inputs at a time.

use std::arch::x86_64::{
    _MM_HINT_T1, _mm_prefetch, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_maskz_loadu_ps,
    _mm512_setzero_ps,
};
use std::marker::PhantomData;
use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::added::put;
use super::wide::{InCache, Piece, Sums, before_a_line, sides};
use crate::linear::Weight;
use crate::simd::{Avx512, LANES};

/// Rows whose starts lie a multiple of a page apart share lines of the first cache. Where weights
/// in f32 are as far apart, that takes up to half of the pace.
const PAGE: usize = 4096;

/// Of rows as they lie, or as [`in_lines`] leaves them. Needs [`super::is_wide`].
pub(super) struct Floats<W, const LINES: bool>(PhantomData<W>);

pub(super) type Lying<W> = Floats<W, false>;
pub(super) type InLines<W> = Floats<W, true>;

/// Whether rows of so many inputs are worth laying out for such weights.
pub(super) fn are_apart<W>(inputs: usize) -> bool {
    size_of::<W>() == size_of::<f32>() && (size_of::<f32>() * inputs).is_multiple_of(PAGE)
}

/// Rows of whole lines as they are read: of those side by side, sixteen inputs of each lie together.
pub(super) fn in_lines<W: Weight>(x: &[f32], inputs: usize) -> InCache<f32> {
    let mut lines = Vec::with_capacity(x.len() + LANES);
    let room = lines.spare_capacity_mut();
    let from = before_a_line(room);
    room[..from].fill(MaybeUninit::new(0.0));
    let mut room = &mut room[from..from + x.len()];
    let mut rest = x;
    let mut parts = Vec::new();
    for rows in sides::<InLines<W>>(x.len() / inputs, inputs) {
        let (part, others) = room.split_at_mut(rows * inputs);
        let (x, others_x) = rest.split_at(rows * inputs);
        parts.push((rows, part, x));
        (room, rest) = (others, others_x);
    }
    parts.into_par_iter().for_each(|(rows, room, x)| {
        for (row, x) in x.chunks(inputs).enumerate() {
            let lines = room.chunks_mut(LANES).skip(row).step_by(rows);
            for (line, x) in lines.zip(x.chunks(LANES)) {
                line.write_copy_of_slice(x);
            }
        }
    });
    #[expect(unsafe_code, reason = "numbers are written once, not zeroed before")]
    // SAFETY: pages are whole lines, and each line of each row was written to one of its own.
    unsafe {
        lines.set_len(from + x.len());
    }
    InCache { lines, from }
}

impl<W: Weight, const LINES: bool> Sums for Floats<W, LINES> {
    type Number = f32;
    type Weight = W;

    #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
    unsafe fn add<const R: usize, const G: usize>(
        Piece { x, weights, inputs, from, count, next }: Piece<'_, f32, W>,
        to: *mut f32,
        stride: usize,
    ) {
        let (rows, outputs) = (x.len() / inputs, weights.len() / inputs);
        assert!(from + count <= inputs, "inputs are inside");
        // Numbers from one row to the next, and from one input to the next.
        let (apart, step) = if LINES { (LANES, rows) } else { (inputs, 1) };
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
                // SAFETY: as above, of the row; those in lines have no rest.
                let numbers = unsafe { _mm512_loadu_ps(lines[n].as_ptr().wrapping_add(at * step)) };
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
        // SAFETY: the caller answers for the results.
        unsafe { put(sums, [rows, outputs], from > 0, to, stride) }
    }
}
