//! Blocks to f32, by format. Each block's numbers are exactly those of ggml.

use crate::format::{BlockFormat, Format};
use crate::simd::Kernel;

/// The largest block.
pub(super) const VALUES_MAX: usize = 256;

/// Something that widens blocks of one format.
pub(super) trait Blocks {
    /// Values per block, or as many at a time for formats without blocks.
    const VALUES: usize;
    /// Their bytes.
    const BYTES: usize;

    /// Widens one block of `BYTES` to `VALUES` numbers.
    fn widen(block: &[u8], out: &mut [f32]);
}

/// Runs what is generic over formats for one of them.
pub(super) trait ForFormat {
    fn run<B: Blocks>(self);
}

#[inline(always)]
pub(super) fn with<F: ForFormat>(format: Format, work: F) {
    match format {
        Format::F32 => work.run::<F32>(),
        Format::F16 => work.run::<F16>(),
        Format::Bf16 => work.run::<Bf16>(),
        Format::Blocks(BlockFormat::Q4_0) => work.run::<Q4_0>(),
        Format::Blocks(BlockFormat::Q4_1) => work.run::<Q4_1>(),
        Format::Blocks(BlockFormat::Q5_0) => work.run::<Q5_0>(),
        Format::Blocks(BlockFormat::Q5_1) => work.run::<Q5_1>(),
        Format::Blocks(BlockFormat::Q8_0) => work.run::<Q8_0>(),
        Format::Blocks(BlockFormat::Q4K) => work.run::<Q4K>(),
        Format::Blocks(BlockFormat::Q5K) => work.run::<Q5K>(),
        Format::Blocks(BlockFormat::Q6K) => work.run::<Q6K>(),
        Format::Blocks(BlockFormat::Mxfp4) => work.run::<Mxfp4>(),
    }
}

/// Whole blocks of a format to as many numbers.
pub(super) struct Rows<'a> {
    pub(super) format: Format,
    pub(super) bytes: &'a [u8],
    pub(super) out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        struct All<'a>(&'a [u8], &'a mut [f32]);
        impl ForFormat for All<'_> {
            #[inline(always)]
            fn run<B: Blocks>(self) {
                let blocks = self.0.chunks_exact(B::BYTES);
                for (block, out) in blocks.zip(self.1.chunks_exact_mut(B::VALUES)) {
                    B::widen(block, out);
                }
            }
        }
        with(self.format, All(self.bytes, self.out));
    }
}

/// A half as f32, exactly where it is finite; others become large numbers.
#[inline(always)]
pub(super) fn half(bytes: &[u8]) -> f32 {
    let bits = u32::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// A block's bytes and its numbers, of lengths that the compiler then knows.
#[inline(always)]
fn sized<'a, const BYTES: usize, const VALUES: usize>(
    block: &'a [u8],
    out: &'a mut [f32],
) -> (&'a [u8; BYTES], &'a mut [f32; VALUES]) {
    let block = block.first_chunk().expect("a block is as long as its format says");
    (block, out.first_chunk_mut().expect("there is room for a block's values"))
}

/// Small whole numbers, scaled and shifted. Each step is a loop over arrays of known length,
/// which the compiler vectorises; fused into one loop with the unpacking, it does not.
#[inline(always)]
fn scaled<const N: usize>(values: [u8; N], out: &mut [f32], scale: f32, shift: f32) {
    let out: &mut [f32; N] = out.first_chunk_mut().expect("there is room for the values");
    let mut whole = [0i32; N];
    for j in 0..N {
        whole[j] = i32::from(values[j]);
    }
    for j in 0..N {
        out[j] = scale * whole[j] as f32 + shift;
    }
}

/// Floats in a row that also holds blocks.
struct F32;
struct F16;
struct Bf16;

impl Blocks for F32 {
    const VALUES: usize = 1;
    const BYTES: usize = 4;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<4, 1>(block, out);
        *out = [f32::from_le_bytes(*block)];
    }
}

impl Blocks for F16 {
    const VALUES: usize = 1;
    const BYTES: usize = 2;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<2, 1>(block, out);
        *out = [half(block)];
    }
}

impl Blocks for Bf16 {
    const VALUES: usize = 1;
    const BYTES: usize = 2;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<2, 1>(block, out);
        *out = [f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16)];
    }
}

struct Q4_0;
struct Q4_1;
struct Q5_0;
struct Q5_1;
struct Q8_0;

/// Sixteen bytes of low and high nibbles to the first and second half of 32 numbers.
#[inline(always)]
fn nibbles(packed: &[u8], out: &mut [f32; 32], scale: f32, shift: f32) {
    let packed: &[u8; 16] = packed.first_chunk().expect("sixteen bytes hold 32 values");
    let (low, high) = out.split_at_mut(16);
    scaled(packed.map(|byte| byte & 15), low, scale, shift);
    scaled(packed.map(|byte| byte >> 4), high, scale, shift);
}

/// The same with a fifth bit each, from 32 bits.
#[inline(always)]
fn quintets(packed: &[u8], fifth: &[u8], out: &mut [f32; 32], scale: f32, shift: f32) {
    let packed: &[u8; 16] = packed.first_chunk().expect("sixteen bytes hold 32 values");
    let fifth = u32::from_le_bytes([fifth[0], fifth[1], fifth[2], fifth[3]]);
    let (low, high) = out.split_at_mut(16);
    for j in 0..16 {
        let below = u32::from(packed[j] & 15) | (fifth >> j & 1) << 4;
        let above = u32::from(packed[j] >> 4) | (fifth >> (j + 16) & 1) << 4;
        low[j] = scale * below as f32 + shift;
        high[j] = scale * above as f32 + shift;
    }
}

impl Blocks for Q4_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<18, 32>(block, out);
        let scale = half(block);
        nibbles(&block[2..], out, scale, -8.0 * scale);
    }
}

impl Blocks for Q4_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 20;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<20, 32>(block, out);
        nibbles(&block[4..], out, half(block), half(&block[2..]));
    }
}

impl Blocks for Q5_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 22;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<22, 32>(block, out);
        let scale = half(block);
        quintets(&block[6..], &block[2..], out, scale, -16.0 * scale);
    }
}

impl Blocks for Q5_1 {
    const VALUES: usize = 32;
    const BYTES: usize = 24;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<24, 32>(block, out);
        quintets(&block[8..], &block[4..], out, half(block), half(&block[2..]));
    }
}

impl Blocks for Q8_0 {
    const VALUES: usize = 32;
    const BYTES: usize = 34;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<34, 32>(block, out);
        let scale = half(block);
        for (byte, out) in block[2..].iter().zip(out) {
            *out = scale * f32::from(byte.cast_signed());
        }
    }
}

/// Twice the numbers that four bits stand for in MXFP4: a sign, two bits of exponent and one of
/// mantissa.
pub(super) const TWICE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the power of two that a block of MXFP4 is scaled by, from its exponent.
#[inline(always)]
pub(super) fn half_power(exponent: u8) -> f32 {
    let exponent = u32::from(exponent);
    // The two least are below what has an exponent of its own.
    f32::from_bits(if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 })
}

struct Mxfp4;

impl Blocks for Mxfp4 {
    const VALUES: usize = 32;
    const BYTES: usize = 17;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<17, 32>(block, out);
        let scale = half_power(block[0]);
        for j in 0..16 {
            let byte = usize::from(block[1 + j]);
            out[j] = scale * f32::from(TWICE[byte & 15]);
            out[j + 16] = scale * f32::from(TWICE[byte >> 4]);
        }
    }
}

struct Q4K;
struct Q5K;
struct Q6K;

/// Scale and minimum of one of the eight groups of 32 values, six bits each in twelve bytes.
#[inline(always)]
pub(super) fn scale_and_minimum(group: usize, packed: &[u8; 12]) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
            packed[group + 4] >> 4 | packed[group] >> 6 << 4,
        )
    };
    (f32::from(scale), f32::from(minimum))
}

impl Blocks for Q4K {
    const VALUES: usize = 256;
    const BYTES: usize = 144;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<144, 256>(block, out);
        let (scale, minimum) = (half(block), half(&block[2..]));
        let packed: &[u8; 12] = block[4..].first_chunk().expect("twelve bytes of scales");
        let (values, _) = block[16..].as_chunks::<32>();
        let (pairs, _) = out.as_chunks_mut::<64>();
        for pair in 0..4 {
            let (low_scale, low_minimum) = scale_and_minimum(2 * pair, packed);
            let (high_scale, high_minimum) = scale_and_minimum(2 * pair + 1, packed);
            let (low_scale, low_shift) = (scale * low_scale, -minimum * low_minimum);
            let (high_scale, high_shift) = (scale * high_scale, -minimum * high_minimum);
            let (low, high) = pairs[pair].split_at_mut(32);
            scaled(values[pair].map(|byte| byte & 15), low, low_scale, low_shift);
            scaled(values[pair].map(|byte| byte >> 4), high, high_scale, high_shift);
        }
    }
}

impl Blocks for Q5K {
    const VALUES: usize = 256;
    const BYTES: usize = 176;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<176, 256>(block, out);
        let (scale, minimum) = (half(block), half(&block[2..]));
        let packed: &[u8; 12] = block[4..].first_chunk().expect("twelve bytes of scales");
        let fifth: &[u8; 32] = block[16..].first_chunk().expect("a fifth bit of each value");
        let (values, _) = block[48..].as_chunks::<32>();
        let (pairs, _) = out.as_chunks_mut::<64>();
        for pair in 0..4 {
            let (low_scale, low_minimum) = scale_and_minimum(2 * pair, packed);
            let (high_scale, high_minimum) = scale_and_minimum(2 * pair + 1, packed);
            let (low_scale, low_shift) = (scale * low_scale, -minimum * low_minimum);
            let (high_scale, high_shift) = (scale * high_scale, -minimum * high_minimum);
            let (low, high) = pairs[pair].split_at_mut(32);
            for j in 0..32 {
                let (byte, bits) = (values[pair][j], fifth[j] >> (2 * pair));
                low[j] = low_scale * f32::from(byte & 15 | (bits & 1) << 4) + low_shift;
                high[j] = high_scale * f32::from(byte >> 4 | (bits >> 1 & 1) << 4) + high_shift;
            }
        }
    }
}

impl Blocks for Q6K {
    const VALUES: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    fn widen(block: &[u8], out: &mut [f32]) {
        let (block, out) = sized::<210, 256>(block, out);
        let scale = half(&block[208..]);
        let (low_bits, _) = block[..128].as_chunks::<64>();
        let (high_bits, _) = block[128..192].as_chunks::<32>();
        let (scales, _) = block[192..208].as_chunks::<8>();
        let (halves, _) = out.as_chunks_mut::<128>();
        for half in 0..2 {
            let (low, high) = (&low_bits[half], &high_bits[half]);
            let (quarters, _) = halves[half].as_chunks_mut::<32>();
            for (quarter, out) in quarters.iter_mut().enumerate() {
                // The first two quarters are low nibbles, the last two high ones.
                let from = quarter % 2 * 32;
                let nibble = quarter / 2 * 4;
                let low: &[u8; 32] = low[from..].first_chunk().expect("two quarters");
                let mut values = [0u8; 32];
                for j in 0..32 {
                    values[j] = low[j] >> nibble & 15 | (high[j] >> (2 * quarter) & 3) << 4;
                }
                let (sixteens, _) = values.as_chunks::<16>();
                for (part, values) in sixteens.iter().enumerate() {
                    let step = scale * f32::from(scales[half][quarter * 2 + part].cast_signed());
                    scaled(*values, &mut out[part * 16..], step, -32.0 * step);
                }
            }
        }
    }
}
