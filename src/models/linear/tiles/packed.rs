//! Activations, as tiles want them.

use std::arch::x86_64::{
    __m512i, _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cvtepu16_epi32,
    _mm512_cvtne2ps_pbh, _mm512_extracti64x4_epi64, _mm512_maskz_loadu_ps, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_storeu_si512, _mm512_sub_ps,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::ops::Range;

use rayon::prelude::*;

/// Rows of a tile, and f32s in each.
pub(super) const SIDE: usize = 16;
/// Inputs that one tile of weights has of each of its outputs.
pub(super) const DEEP: usize = 32;
/// Rows of a block: two tiles.
const ROWS: usize = 2 * SIDE;
/// The bf16s whose sum an f32 is, exactly but for numbers near zero beyond what any sum keeps.
const PARTS: usize = 3;
/// Lines that a step packs of the activations of 16 rows: a tile of each part.
pub(super) const STEP_LINES: usize = PARTS * SIDE;

/// A row of a tile, as caches have it.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u16; DEEP]);

/// Activations of some rows, as tiles: of each 32 rows (16 or fewer at the end), for each 32
/// inputs, a tile of the largest part for each 16 rows, then those of the smaller parts.
pub(super) struct Packed {
    lines: Vec<Line>,
    rows: usize,
    pub(super) inputs: usize,
}

impl Packed {
    pub(super) fn of(x: &[f32], inputs: usize) -> Self {
        let rows = x.len() / inputs;
        let steps = inputs.div_ceil(DEEP);
        let count = rows.div_ceil(SIDE) * steps * STEP_LINES;
        let mut lines = Vec::<Line>::with_capacity(count);
        let room = &mut lines.spare_capacity_mut()[..count];
        room.par_chunks_mut(2 * steps * STEP_LINES).zip(x.par_chunks(ROWS * inputs)).for_each(
            |(room, x)| {
                let blocks = room.len() / (steps * STEP_LINES);
                for (block, x) in x.chunks(SIDE * inputs).enumerate() {
                    for step in 0..steps {
                        let first = (PARTS * step * blocks + block) * SIDE;
                        #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
                        // SAFETY: the features were detected with the tiles; each tile has its
                        // lines in the chunk.
                        unsafe {
                            let to = room.as_mut_ptr().cast::<Line>().add(first);
                            pack(x, inputs, step, (to, blocks * SIDE));
                        }
                    }
                }
            },
        );
        #[expect(unsafe_code, reason = "lines are written once, not zeroed before")]
        // SAFETY: each step of each block wrote both of its tiles, which are all lines.
        unsafe {
            lines.set_len(count);
        }
        Self { lines, rows, inputs }
    }

    /// Blocks of up to 32 rows: the rows, and where their tiles begin.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (Range<usize>, &[Line])> {
        let steps = self.inputs.div_ceil(DEEP);
        self.lines
            .chunks(2 * steps * STEP_LINES)
            .enumerate()
            .map(|(index, lines)| (index * ROWS..((index + 1) * ROWS).min(self.rows), lines))
    }
}

/// Packs one step of up to 16 rows into a tile for each part, so many lines apart. Tiles have of
/// each two inputs a line, of each row two numbers.
///
/// # Safety
/// The CPU has the features, and the lines of the tiles may be written.
#[expect(unsafe_code, reason = "tiles are written before they are anything")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn pack(x: &[f32], inputs: usize, step: usize, (to, apart): (*mut Line, usize)) {
    let first = step * DEEP;
    let count = DEEP.min(inputs - first);
    let mask = u32::MAX >> (DEEP - count);
    let mut parts = [[_mm512_setzero_si512(); SIDE]; PARTS];
    for (index, row) in x.chunks_exact(inputs).enumerate() {
        let from = row[first..first + count].as_ptr();
        // SAFETY: only numbers under the mask are read, which are in the row.
        let (mut low, mut high) = unsafe {
            let low = _mm512_maskz_loadu_ps(mask as u16, from);
            (low, _mm512_maskz_loadu_ps((mask >> SIDE) as u16, from.wrapping_add(SIDE)))
        };
        let wide = |part| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(part)));
        for part in &mut parts {
            // SAFETY: both are 64 bytes of numbers.
            let upper: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) };
            part[index] = upper;
            low = _mm512_sub_ps(low, wide(_mm512_castsi512_si256(upper)));
            high = _mm512_sub_ps(high, wide(_mm512_extracti64x4_epi64::<1>(upper)));
        }
    }
    for (part, numbers) in parts.into_iter().enumerate() {
        for (line, numbers) in turned(numbers).into_iter().enumerate() {
            // SAFETY: a tile is 16 lines of 64 bytes, which the caller gave us.
            unsafe { _mm512_storeu_si512(to.add(part * apart + line).cast(), numbers) };
        }
    }
}

/// Rows to columns, of 16 times 16 numbers of 32 bits.
#[target_feature(enable = "avx512f")]
pub(super) fn turned(rows: [__m512i; SIDE]) -> [__m512i; SIDE] {
    // In each quarter of a register: of four rows, four columns.
    let mut fours = [_mm512_setzero_si512(); SIDE];
    for (rows, fours) in rows.chunks_exact(4).zip(fours.chunks_exact_mut(4)) {
        let low = [0, 2].map(|row| _mm512_unpacklo_epi32(rows[row], rows[row + 1]));
        let high = [0, 2].map(|row| _mm512_unpackhi_epi32(rows[row], rows[row + 1]));
        fours[0] = _mm512_unpacklo_epi64(low[0], low[1]);
        fours[1] = _mm512_unpackhi_epi64(low[0], low[1]);
        fours[2] = _mm512_unpacklo_epi64(high[0], high[1]);
        fours[3] = _mm512_unpackhi_epi64(high[0], high[1]);
    }
    let mut columns = [_mm512_setzero_si512(); SIDE];
    for column in 0..4 {
        let [a, b, c, d] = [0, 4, 8, 12].map(|row| fours[row + column]);
        const EVEN: i32 = 0x88;
        const ODD: i32 = 0xdd;
        let (even, others) =
            (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<EVEN>(c, d));
        columns[column] = _mm512_shuffle_i32x4::<EVEN>(even, others);
        columns[column + 8] = _mm512_shuffle_i32x4::<ODD>(even, others);
        let (odd, others) = (_mm512_shuffle_i32x4::<ODD>(a, b), _mm512_shuffle_i32x4::<ODD>(c, d));
        columns[column + 4] = _mm512_shuffle_i32x4::<EVEN>(odd, others);
        columns[column + 12] = _mm512_shuffle_i32x4::<ODD>(odd, others);
    }
    columns
}
