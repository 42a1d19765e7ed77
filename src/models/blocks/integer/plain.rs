//! The same products by plain loops, an output at a time, to the same bits where a multiplication
//! and an addition are one instruction: for machines without byte products of four.

use super::{Lanes, OUTPUTS, Piece, TOGETHER};
use crate::blocks::widen::{TWICE, half, half_power, scale_and_minimum};
use crate::format::BlockFormat;
use crate::simd::{Kernel, madd};

/// Some outputs of all rows, at most sixteen.
pub(super) struct Sixteen<'a> {
    pub(super) format: BlockFormat,
    pub(super) weights: &'a [u8],
    /// Bytes of a row of weights.
    pub(super) stride: usize,
    pub(super) pieces: &'a [Piece],
    pub(super) sums: &'a mut [Lanes],
}

/// 32 weights of one output: whole numbers, and what they are worth.
struct Weights {
    numbers: [i8; TOGETHER],
    worth: Worth,
}

/// What whole numbers of weights mean.
#[derive(Clone, Copy)]
enum Worth {
    /// Times that.
    Times(f32),
    /// Each half times its own.
    Halves([f32; 2]),
    /// Times the first, less the second.
    Above(f32, f32),
}

impl Kernel for Sixteen<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { format, weights, stride, pieces, sums } = self;
        let groups = format.values() / TOGETHER;
        for (output, row) in weights.chunks_exact(stride).enumerate().take(OUTPUTS) {
            let mut pieces = pieces.chunks_exact(sums.len());
            for block in row.chunks_exact(format.bytes()) {
                for (group, pieces) in (0..groups).zip(&mut pieces) {
                    add::<FMA>(&unpack(format, block, group), pieces, sums, output);
                }
            }
        }
    }
}

/// Adds the products of 32 weights with all rows' inputs.
#[inline(always)]
fn add<const FMA: bool>(weights: &Weights, pieces: &[Piece], sums: &mut [Lanes], output: usize) {
    for (piece, sum) in pieces.iter().zip(sums) {
        let inputs: &[i8; TOGETHER] = bytemuck::cast_ref(&piece.words);
        let mut products = [0i32; 2];
        let (numbers, _) = weights.numbers.as_chunks::<{ TOGETHER / 2 }>();
        let (inputs, _) = inputs.as_chunks::<{ TOGETHER / 2 }>();
        for ((product, numbers), inputs) in products.iter_mut().zip(numbers).zip(inputs) {
            let both = numbers.iter().zip(inputs);
            *product = both.map(|(number, input)| i32::from(*number) * i32::from(*input)).sum();
        }
        let sum = &mut sum.0[output];
        let both = (products[0] + products[1]) as f32;
        match weights.worth {
            Worth::Times(scale) => *sum = madd::<FMA>(both, scale * piece.scale, *sum),
            Worth::Halves(scales) => {
                for (product, scale) in products.iter().zip(scales) {
                    *sum = madd::<FMA>(*product as f32, scale * piece.scale, *sum);
                }
            }
            Worth::Above(scale, least) => {
                *sum = madd::<FMA>(both, scale * piece.scale, *sum);
                *sum = madd::<FMA>(-least, piece.total, *sum);
            }
        }
    }
}

/// One of a block's groups of 32 weights.
#[inline(always)]
fn unpack(format: BlockFormat, block: &[u8], group: usize) -> Weights {
    let scale = half(block);
    match format {
        BlockFormat::Q4_0 => {
            Weights { numbers: nibbles(&block[2..], 8), worth: Worth::Times(scale) }
        }
        BlockFormat::Q4_1 => {
            let worth = Worth::Above(scale, -half(&block[2..]));
            Weights { numbers: nibbles(&block[4..], 0), worth }
        }
        BlockFormat::Q5_0 => {
            let numbers = quintets(&block[6..], &block[2..], 16);
            Weights { numbers, worth: Worth::Times(scale) }
        }
        BlockFormat::Q5_1 => {
            let worth = Worth::Above(scale, -half(&block[2..]));
            Weights { numbers: quintets(&block[8..], &block[4..], 0), worth }
        }
        BlockFormat::Q8_0 => {
            let bytes: &[u8; TOGETHER] = block[2..].first_chunk().expect("a block has 32 bytes");
            Weights { numbers: bytes.map(u8::cast_signed), worth: Worth::Times(scale) }
        }
        BlockFormat::Mxfp4 => {
            let numbers = nibbles(&block[1..], 0).map(|at| TWICE[usize::from(at.cast_unsigned())]);
            Weights { numbers, worth: Worth::Times(half_power(block[0])) }
        }
        BlockFormat::Q4K | BlockFormat::Q5K => {
            let packed: &[u8; 12] = block[4..].first_chunk().expect("twelve bytes of scales");
            let (times, least) = scale_and_minimum(group, packed);
            let worth = Worth::Above(scale * times, half(&block[2..]) * least);
            let (values, fifth) = match format {
                BlockFormat::Q4K => (&block[16..], None),
                _ => (&block[48..], Some(&block[16..48])),
            };
            let shift = 4 * (group % 2);
            let numbers = std::array::from_fn(|at| {
                let number = values[group / 2 * 32 + at] >> shift & 15;
                let fifth = fifth.map_or(0, |bits| (bits[at] >> group & 1) << 4);
                (number | fifth).cast_signed()
            });
            Weights { numbers, worth }
        }
        BlockFormat::Q6K => {
            let (part, quarter) = (group / 4, group % 4);
            let low = &block[64 * part + quarter % 2 * 32..][..TOGETHER];
            let high = &block[128 + 32 * part..][..TOGETHER];
            let numbers = std::array::from_fn(|at| {
                let low = low[at] >> (quarter / 2 * 4) & 15;
                let high = high[at] >> (2 * quarter) & 3;
                (low | high << 4).cast_signed() - 32
            });
            let scale = half(&block[208..]);
            let worth = |at: usize| scale * f32::from(block[192 + 2 * group + at].cast_signed());
            Weights { numbers, worth: Worth::Halves([worth(0), worth(1)]) }
        }
    }
}

/// Four bits each, low ones first, less something.
#[inline(always)]
fn nibbles(packed: &[u8], less: i8) -> [i8; TOGETHER] {
    std::array::from_fn(|at| (packed[at % 16] >> (at / 16 * 4) & 15).cast_signed() - less)
}

/// The same with a fifth bit each, from 32 bits.
#[inline(always)]
fn quintets(packed: &[u8], fifth: &[u8], less: i8) -> [i8; TOGETHER] {
    let fifth = u32::from_le_bytes([fifth[0], fifth[1], fifth[2], fifth[3]]);
    let nibbles = nibbles(packed, 0);
    std::array::from_fn(|at| (nibbles[at] | ((fifth >> at & 1) << 4) as i8) - less)
}
