//! Sums of bf16 products: rows are rounded to bf16, and pairs of products are summed in f32 by one
//! instruction, `VDPBF16PS`, which takes numbers below the smallest normal ones for zero.

use std::arch::x86_64::{
    __m512bh, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_maskz_loadu_epi16, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_storeu_si512,
};
use std::mem::transmute;

use half::bf16;
use rayon::prelude::*;

use super::added::put;
use super::wide::{InCache, Piece, Sums, before_a_line, multiply, sides};

/// Numbers that one register holds.
const LINE: usize = 32;

/// Whether this machine has the instruction.
pub(super) fn is_here() -> bool {
    super::is_wide()
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

/// `round(x) W^T`, of at least one row, input and output. [`is_here`] holds.
pub(super) fn project(x: &[f32], weight: &[bf16], inputs: usize) -> Vec<f32> {
    multiply::<Rounded>(in_lines(x, inputs).get(), weight, inputs)
}

/// Of rows as [`in_lines`] leaves them.
pub(super) struct Rounded;

/// Rounded rows as they are read: of those side by side, 32 inputs of each lie together; the last of
/// them are followed by zeros.
fn in_lines(x: &[f32], inputs: usize) -> InCache<u16> {
    let width = Rounded::width(inputs);
    let all = x.len() / inputs * width;
    let mut lines = vec![0; all + LINE];
    let from = before_a_line(&lines);
    lines.truncate(from + all);
    let (mut room, mut rest) = (&mut lines[from..], x);
    let mut parts = Vec::new();
    for rows in sides::<Rounded>(x.len() / inputs, inputs) {
        let (part, others) = room.split_at_mut(rows * width);
        let (x, others_x) = rest.split_at(rows * inputs);
        parts.push((rows, part, x));
        (room, rest) = (others, others_x);
    }
    parts.into_par_iter().for_each(|(rows, room, x)| {
        for (row, x) in x.chunks(inputs).enumerate() {
            let lines = room.as_chunks_mut().0.iter_mut().skip(row).step_by(rows);
            #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
            // SAFETY: `is_here` holds.
            unsafe {
                round(x, lines);
            }
        }
    });
    InCache { lines, from }
}

/// Rounds a row into its lines.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn round<'a>(x: &[f32], lines: impl Iterator<Item = &'a mut [u16; LINE]>) {
    let (whole, rest) = x.as_chunks::<LINE>();
    let mut padded = [0.0; LINE];
    padded[..rest.len()].copy_from_slice(rest);
    for (x, line) in whole.iter().chain((!rest.is_empty()).then_some(&padded)).zip(lines) {
        let (low, high) = x.split_at(LINE / 2);
        #[expect(unsafe_code, reason = "registers are loaded and stored")]
        // SAFETY: each half has sixteen numbers, the line 32.
        unsafe {
            let [low, high] = [low, high].map(|half| half.as_ptr());
            let rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(high), _mm512_loadu_ps(low));
            let rounded = transmute::<__m512bh, __m512i>(rounded);
            _mm512_storeu_si512(line.as_mut_ptr().cast(), rounded);
        }
    }
}

impl Sums for Rounded {
    type Number = u16;
    type Weight = bf16;

    fn width(inputs: usize) -> usize {
        inputs.next_multiple_of(LINE)
    }

    #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
    #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,fma")]
    unsafe fn add<const R: usize, const G: usize>(
        Piece { x, weights, inputs, from, count, next }: Piece<'_, u16, bf16>,
        to: *mut f32,
        stride: usize,
    ) {
        let (rows, outputs) = (x.len() / Self::width(inputs), weights.len() / inputs);
        assert!(from + count <= inputs && from.is_multiple_of(LINE), "inputs are inside");
        // Loops, for closures are not compiled for the features.
        let (mut lines, mut columns) = ([&x[..0]; R], [&weights[..0]; G]);
        for n in 0..R {
            lines[n] = &x[n.min(rows - 1) * LINE + from * rows..];
        }
        for m in 0..G {
            columns[m] = &weights[m.min(outputs - 1) * inputs + from..][..count];
        }
        let mut sums = [[_mm512_setzero_ps(); G]; R];
        for at in (0..count).step_by(LINE) {
            let mut pairs = [_mm512_setzero_si512(); G];
            for m in 0..G {
                let from = columns[m].as_ptr().wrapping_add(at);
                if next > 0 {
                    _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(next).cast());
                }
                // SAFETY: 32 weights from `at` on lie in the column, or those under the mask.
                pairs[m] = unsafe {
                    match count - at {
                        LINE.. => _mm512_loadu_si512(from.cast()),
                        rest => _mm512_maskz_loadu_epi16((1 << rest) - 1, from.cast()),
                    }
                };
            }
            for n in 0..R {
                // SAFETY: the row has a whole line from there on.
                unsafe {
                    let numbers = lines[n].as_ptr().wrapping_add(at * rows);
                    let numbers =
                        transmute::<__m512i, __m512bh>(_mm512_loadu_si512(numbers.cast()));
                    for m in 0..G {
                        let pair = transmute::<__m512i, __m512bh>(pairs[m]);
                        sums[n][m] = _mm512_dpbf16_ps(sums[n][m], numbers, pair);
                    }
                }
            }
        }
        // SAFETY: the caller answers for the results.
        unsafe { put(sums, [rows, outputs], from > 0, to, stride) }
    }
}
