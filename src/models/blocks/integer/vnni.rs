//! Sixteen outputs by AVX-512's byte products (`vpdpbusd`): four unsigned bytes of weights times
//! four signed ones of inputs, added to a lane.
//!
//! Sixteen bytes of sixteen rows of weights are turned so that a register has four bytes of each
//! row; inputs are broadcast to all lanes.

use std::arch::x86_64::*;

use super::{Lanes, OUTPUTS, Piece, TOGETHER};
use crate::blocks::widen::TWICE;
use crate::format::BlockFormat;

/// Whether this machine has what [`sixteen`] needs.
pub(super) fn is_here() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// Adds up to sixteen outputs of all rows to `sums`: `weights` are their rows of `stride` bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn sixteen(
    format: BlockFormat,
    weights: &[u8],
    stride: usize,
    pieces: &[Piece],
    sums: &mut [Lanes],
) {
    let rows = Rows::of(weights, stride, format.bytes());
    let per_block = format.values() / TOGETHER * sums.len();
    let ahead = Ahead { next: weights.as_ptr().wrapping_add(weights.len()), at: 0 };
    let mut ahead = (sums.len() <= FEW).then_some(ahead);
    for (block, pieces) in pieces.chunks_exact(per_block).enumerate().take(rows.blocks) {
        if let Some(ahead) = &mut ahead {
            ahead.bring(OUTPUTS * format.bytes());
        }
        match format {
            BlockFormat::Q4_0 => add(&q4_0(&rows, block), pieces, sums),
            BlockFormat::Q4_1 => add(&q4_1(&rows, block), pieces, sums),
            BlockFormat::Q5_0 => add(&q5_0(&rows, block), pieces, sums),
            BlockFormat::Q5_1 => add(&q5_1(&rows, block), pieces, sums),
            BlockFormat::Q8_0 => add(&q8_0(&rows, block), pieces, sums),
            BlockFormat::Mxfp4 => add(&mxfp4(&rows, block), pieces, sums),
            BlockFormat::Q4K => q4_k(&rows, block, pieces, sums),
            BlockFormat::Q5K => q5_k(&rows, block, pieces, sums),
            BlockFormat::Q6K => q6_k(&rows, block, pieces, sums),
        }
    }
}

/// Rows of inputs for which memory, not products, decides how long weights take.
const FEW: usize = 16;
/// Bytes of a line of the caches.
const LINE: usize = 64;

/// Brings the weights of the next sixteen outputs in while these are computed: sixteen rows are
/// read side by side, which the CPU does not foresee.
struct Ahead {
    next: *const u8,
    /// Bytes that were asked for.
    at: usize,
}

impl Ahead {
    /// Asks for so many bytes more. What lies behind the weights is asked for, too, which does
    /// nothing.
    #[inline]
    #[target_feature(enable = "sse")]
    fn bring(&mut self, bytes: usize) {
        let to = self.at + bytes;
        for at in (self.at.next_multiple_of(LINE)..to).step_by(LINE) {
            _mm_prefetch::<_MM_HINT_T1>(self.next.wrapping_add(at).cast());
        }
        self.at = to;
    }
}

/// Sixteen rows of weights; where there are fewer, the last one several times.
struct Rows {
    starts: [*const u8; OUTPUTS],
    /// Blocks of a row.
    blocks: usize,
    block_bytes: usize,
}

impl Rows {
    fn of(weights: &[u8], stride: usize, block_bytes: usize) -> Self {
        let last = (weights.len() / stride).clamp(1, OUTPUTS) - 1;
        let start = |row: usize| weights[row.min(last) * stride..][..stride].as_ptr();
        Self { starts: std::array::from_fn(start), blocks: stride / block_bytes, block_bytes }
    }

    /// Where a block's bytes from `at` on lie in a row, `count` of them.
    #[inline]
    fn place(&self, row: usize, block: usize, at: usize, count: usize) -> *const u8 {
        debug_assert!(block < self.blocks && at + count <= self.block_bytes, "inside a block");
        self.starts[row].wrapping_add(block * self.block_bytes + at)
    }

    /// Four bytes of each row's block, from `at` on.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn word(&self, block: usize, at: usize) -> __m512i {
        #[expect(unsafe_code, reason = "unaligned reads")]
        let read = |row: usize| {
            let place = self.place(row, block, at, 4).cast::<i32>();
            // SAFETY: callers ask for bytes inside a block (asserted in tests), and blocks lie
            // inside the rows, which are slices.
            unsafe { place.read_unaligned() }
        };
        // In registers: words that are stored one by one cannot be loaded together at once.
        let four =
            |row: usize| _mm_setr_epi32(read(row), read(row + 1), read(row + 2), read(row + 3));
        let words = _mm512_castsi128_si512(four(0));
        let words = _mm512_inserti32x4::<1>(words, four(4));
        let words = _mm512_inserti32x4::<2>(words, four(8));
        _mm512_inserti32x4::<3>(words, four(12))
    }

    /// Sixteen bytes of each row's block, from `at` on, as four registers with four bytes of each
    /// row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn words(&self, block: usize, at: usize) -> [__m512i; 4] {
        let read = |row: usize| {
            let place = self.place(row, block, at, 16).cast::<__m128i>();
            #[expect(unsafe_code, reason = "unaligned reads")]
            // SAFETY: as in `word`.
            unsafe {
                _mm_loadu_si128(place)
            }
        };
        // Every fourth row is in one register, so that four of them, turned, are in order.
        let every_fourth = |row: usize| {
            let rows = _mm512_castsi128_si512(read(row));
            let rows = _mm512_inserti32x4::<1>(rows, read(row + 4));
            let rows = _mm512_inserti32x4::<2>(rows, read(row + 8));
            _mm512_inserti32x4::<3>(rows, read(row + 12))
        };
        let [a, b, c, d] = [every_fourth(0), every_fourth(1), every_fourth(2), every_fourth(3)];
        let low = [_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d)];
        let high = [_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d)];
        [
            _mm512_unpacklo_epi64(low[0], low[1]),
            _mm512_unpackhi_epi64(low[0], low[1]),
            _mm512_unpacklo_epi64(high[0], high[1]),
            _mm512_unpackhi_epi64(high[0], high[1]),
        ]
    }

    /// The same of 32 bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn more_words(&self, block: usize, at: usize) -> [__m512i; 8] {
        let [a, b, c, d] = self.words(block, at);
        let [e, f, g, h] = self.words(block, at + 16);
        [a, b, c, d, e, f, g, h]
    }
}

/// The halves in the low half of each word.
#[inline]
#[target_feature(enable = "avx512f")]
fn low_halves(words: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words))
}

/// The halves in the high half of each word.
#[inline]
#[target_feature(enable = "avx512f")]
fn high_halves(words: __m512i) -> __m512 {
    low_halves(_mm512_srli_epi32::<16>(words))
}

/// 32 weights of sixteen outputs, as bytes of zero and more.
struct Weights {
    words: [__m512i; 8],
    /// What they and their inputs make a product with.
    worth: Worth,
}

/// What bytes of weights mean.
enum Worth {
    /// Bytes less [`super::CENTRE`], times that.
    Centred(__m512),
    /// Each half as the former.
    Halves([__m512; 2]),
    /// Bytes times the first, less the second.
    Above(__m512, __m512),
}

/// Adds the products of 32 weights with all rows' inputs.
#[expect(clippy::needless_range_loop, reason = "by index, weights stay in registers")]
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add(weights: &Weights, pieces: &[Piece], sums: &mut [Lanes]) {
    let words = weights.words;
    match weights.worth {
        Worth::Centred(scale) => {
            for (piece, sum) in pieces.iter().zip(sums) {
                let mut product = _mm512_set1_epi32(piece.start);
                for j in 0..8 {
                    let x = _mm512_set1_epi32(piece.words[j]);
                    product = _mm512_dpbusd_epi32(product, words[j], x);
                }
                scaled(product, scale, piece, sum);
            }
        }
        Worth::Halves(scales) => {
            for (piece, sum) in pieces.iter().zip(sums) {
                for (half, scale) in scales.into_iter().enumerate() {
                    let mut product = _mm512_set1_epi32(piece.starts[half]);
                    for j in 4 * half..4 * half + 4 {
                        let x = _mm512_set1_epi32(piece.words[j]);
                        product = _mm512_dpbusd_epi32(product, words[j], x);
                    }
                    scaled(product, scale, piece, sum);
                }
            }
        }
        Worth::Above(scale, least) => {
            for (piece, sum) in pieces.iter().zip(sums) {
                let mut product = _mm512_setzero_si512();
                for j in 0..8 {
                    let x = _mm512_set1_epi32(piece.words[j]);
                    product = _mm512_dpbusd_epi32(product, words[j], x);
                }
                scaled(product, scale, piece, sum);
                store(sum, _mm512_fnmadd_ps(least, _mm512_set1_ps(piece.total), lanes(sum)));
            }
        }
    }
}

/// Adds whole numbers times both scales.
#[inline]
#[target_feature(enable = "avx512f")]
fn scaled(product: __m512i, scale: __m512, piece: &Piece, sum: &mut Lanes) {
    let scale = _mm512_mul_ps(scale, _mm512_set1_ps(piece.scale));
    store(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, lanes(sum)));
}

#[inline]
#[target_feature(enable = "avx512f")]
fn lanes(sum: &Lanes) -> __m512 {
    #[expect(unsafe_code, reason = "vector reads")]
    // SAFETY: lanes are sixteen f32, aligned to a register.
    unsafe {
        _mm512_load_ps(sum.0.as_ptr())
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(sum: &mut Lanes, numbers: __m512) {
    #[expect(unsafe_code, reason = "vector writes")]
    // SAFETY: lanes are sixteen f32, aligned to a register.
    unsafe {
        _mm512_store_ps(sum.0.as_mut_ptr(), numbers);
    }
}

/// Bytes of four bits each, low ones first, and what is added to them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nibbles(packed: [__m512i; 4], plus: i8) -> [__m512i; 8] {
    let (mask, plus) = (_mm512_set1_epi8(15), _mm512_set1_epi8(plus));
    std::array::from_fn(|j| {
        let bytes = match j {
            0..4 => packed[j],
            _ => _mm512_srli_epi16::<4>(packed[j - 4]),
        };
        _mm512_add_epi8(_mm512_and_si512(bytes, mask), plus)
    })
}

/// The same with a fifth bit each, from a word of 32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn quintets(packed: [__m512i; 4], fifth: __m512i, plus: i8) -> [__m512i; 8] {
    let nibbles = nibbles(packed, plus);
    let sixteen = _mm512_set1_epi8(16);
    std::array::from_fn(|j| {
        // Each byte of a word gets the byte in which its bit lies.
        let from = (j / 2) as i32 * 0x0101_0101;
        let [a, b, c, d] = [from, from + 0x0404_0404, from + 0x0808_0808, from + 0x0c0c_0c0c];
        let places = _mm512_broadcast_i32x4(_mm_setr_epi32(a, b, c, d));
        let bits = _mm512_set1_epi32(0x0804_0201 << (4 * (j % 2)));
        let is_set = _mm512_test_epi8_mask(_mm512_shuffle_epi8(fifth, places), bits);
        _mm512_mask_add_epi8(nibbles[j], is_set, nibbles[j], sixteen)
    })
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q4_0(rows: &Rows, block: usize) -> Weights {
    let scale = low_halves(rows.word(block, 0));
    Weights { words: nibbles(rows.words(block, 2), 120), worth: Worth::Centred(scale) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q4_1(rows: &Rows, block: usize) -> Weights {
    let head = rows.word(block, 0);
    let worth = Worth::Above(low_halves(head), negated(high_halves(head)));
    Weights { words: nibbles(rows.words(block, 4), 0), worth }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q5_0(rows: &Rows, block: usize) -> Weights {
    let scale = low_halves(rows.word(block, 0));
    let words = quintets(rows.words(block, 6), rows.word(block, 2), 112);
    Weights { words, worth: Worth::Centred(scale) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q5_1(rows: &Rows, block: usize) -> Weights {
    let head = rows.word(block, 0);
    let worth = Worth::Above(low_halves(head), negated(high_halves(head)));
    Weights { words: quintets(rows.words(block, 8), rows.word(block, 4), 0), worth }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn q8_0(rows: &Rows, block: usize) -> Weights {
    let scale = low_halves(rows.word(block, 0));
    // With the sign's bit turned a byte is 128 more, without a sign.
    let turned = _mm512_set1_epi8(i8::MIN);
    let words = rows.more_words(block, 2).map(|word| _mm512_xor_si512(word, turned));
    Weights { words, worth: Worth::Centred(scale) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn mxfp4(rows: &Rows, block: usize) -> Weights {
    // What each four bits stand for, above the centre.
    let [a, b, c, d]: [i32; 4] = bytemuck::cast(TWICE.map(|number| number.cast_unsigned() ^ 0x80));
    let table = _mm512_broadcast_i32x4(_mm_setr_epi32(a, b, c, d));
    let words = nibbles(rows.words(block, 1), 0).map(|four| _mm512_shuffle_epi8(table, four));
    let exponents = _mm512_and_si512(rows.word(block, 0), _mm512_set1_epi32(255));
    let powers = _mm512_slli_epi32::<23>(_mm512_sub_epi32(exponents, _mm512_set1_epi32(1)));
    // The two least are below what has an exponent of its own.
    let is_least = _mm512_cmplt_epu32_mask(exponents, _mm512_set1_epi32(2));
    let least = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), exponents);
    let powers = _mm512_mask_mov_epi32(powers, is_least, least);
    Weights { words, worth: Worth::Centred(_mm512_castsi512_ps(powers)) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn negated(numbers: __m512) -> __m512 {
    _mm512_sub_ps(_mm512_setzero_ps(), numbers)
}

/// Byte `at` of each word, without a sign.
#[inline]
#[target_feature(enable = "avx512f")]
fn byte(words: __m512i, at: usize) -> __m512 {
    let byte = _mm512_srlv_epi32(words, _mm512_set1_epi32(8 * at as i32));
    _mm512_cvtepi32_ps(_mm512_and_si512(byte, _mm512_set1_epi32(255)))
}

/// Scales and minimums of the eight groups of a block of 256.
struct Groups {
    scale: __m512,
    least: __m512,
    /// Six bits in each byte, four groups in each word.
    scales: [__m512i; 2],
    minimums: [__m512i; 2],
}

impl Groups {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn of(rows: &Rows, block: usize) -> Self {
        let [head, scales, minimums, both] = rows.words(block, 0);
        let [six, four, two] =
            [0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030].map(|bits| _mm512_set1_epi32(bits));
        let upper = |word| _mm512_and_si512(_mm512_srli_epi32::<2>(word), two);
        let lower = |word| _mm512_and_si512(word, four);
        Self {
            scale: low_halves(head),
            least: high_halves(head),
            scales: [_mm512_and_si512(scales, six), _mm512_or_si512(lower(both), upper(scales))],
            minimums: [
                _mm512_and_si512(minimums, six),
                _mm512_or_si512(lower(_mm512_srli_epi32::<4>(both)), upper(minimums)),
            ],
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn worth(&self, group: usize) -> Worth {
        let scale = byte(self.scales[group / 4], group % 4);
        let least = byte(self.minimums[group / 4], group % 4);
        Worth::Above(_mm512_mul_ps(self.scale, scale), _mm512_mul_ps(self.least, least))
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn q4_k(rows: &Rows, block: usize, pieces: &[Piece], sums: &mut [Lanes]) {
    let groups = Groups::of(rows, block);
    let mask = _mm512_set1_epi8(15);
    for (pair, pieces) in pieces.chunks_exact(2 * sums.len()).enumerate() {
        let packed = rows.more_words(block, 16 + 32 * pair);
        let (low, high) = pieces.split_at(sums.len());
        let words = packed.map(|word| _mm512_and_si512(word, mask));
        add(&Weights { words, worth: groups.worth(2 * pair) }, low, sums);
        let words = packed.map(|word| _mm512_and_si512(_mm512_srli_epi16::<4>(word), mask));
        add(&Weights { words, worth: groups.worth(2 * pair + 1) }, high, sums);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn q5_k(rows: &Rows, block: usize, pieces: &[Piece], sums: &mut [Lanes]) {
    let groups = Groups::of(rows, block);
    let fifth = rows.more_words(block, 16);
    let (mask, sixteen) = (_mm512_set1_epi8(15), _mm512_set1_epi8(16));
    let with_fifth = |nibbles: __m512i, j: usize, group: usize| {
        let is_set =
            _mm512_test_epi8_mask(fifth[j], _mm512_set1_epi8((1u8 << group).cast_signed()));
        let nibbles = _mm512_and_si512(nibbles, mask);
        _mm512_mask_add_epi8(nibbles, is_set, nibbles, sixteen)
    };
    for (pair, pieces) in pieces.chunks_exact(2 * sums.len()).enumerate() {
        let packed = rows.more_words(block, 48 + 32 * pair);
        let (low, high) = pieces.split_at(sums.len());
        let words = std::array::from_fn(|j| with_fifth(packed[j], j, 2 * pair));
        add(&Weights { words, worth: groups.worth(2 * pair) }, low, sums);
        let words =
            std::array::from_fn(|j| with_fifth(_mm512_srli_epi16::<4>(packed[j]), j, 2 * pair + 1));
        add(&Weights { words, worth: groups.worth(2 * pair + 1) }, high, sums);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn q6_k(rows: &Rows, block: usize, pieces: &[Piece], sums: &mut [Lanes]) {
    // The block's last two bytes, after two of its scales.
    let scale = high_halves(rows.word(block, 206));
    let scales = rows.words(block, 192);
    let (four, two) = (_mm512_set1_epi8(0x0f), _mm512_set1_epi8(0x30));
    let plus = _mm512_set1_epi8(96);
    for (half, pieces) in pieces.chunks_exact(4 * sums.len()).enumerate() {
        let low = [0, 32].map(|at| rows.more_words(block, 64 * half + at));
        let high = rows.more_words(block, 128 + 32 * half);
        for (quarter, pieces) in pieces.chunks_exact(sums.len()).enumerate() {
            // The first two quarters are low nibbles, the last two high ones.
            let low_shift = _mm512_set1_epi32(4 * (quarter as i32 / 2));
            let words = std::array::from_fn(|j| {
                let low = _mm512_srlv_epi32(low[quarter % 2][j], low_shift);
                // The upper two bits, in the place where they belong.
                let up = match quarter {
                    0 => _mm512_slli_epi32::<4>(high[j]),
                    1 => _mm512_slli_epi32::<2>(high[j]),
                    2 => high[j],
                    _ => _mm512_srli_epi32::<2>(high[j]),
                };
                let both = _mm512_and_si512(low, four);
                _mm512_add_epi8(_mm512_or_si512(both, _mm512_and_si512(up, two)), plus)
            });
            let halves = [0, 1].map(|part| {
                let at = 8 * half + 2 * quarter + part;
                let up = _mm512_set1_epi32(24 - 8 * (at as i32 % 4));
                let signed = _mm512_srai_epi32::<24>(_mm512_sllv_epi32(scales[at / 4], up));
                _mm512_mul_ps(scale, _mm512_cvtepi32_ps(signed))
            });
            add(&Weights { words, worth: Worth::Halves(halves) }, pieces, sums);
        }
    }
}
