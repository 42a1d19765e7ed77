//! Numbers as files have them to numbers as memory has them, a piece at a time.

use std::sync::LazyLock;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::Error;
use crate::blocks;
use crate::format::{BlockFormat, Format, Stored};

/// Little-endian numbers of `dtype` as f32, exactly.
pub(crate) fn widen(dtype: Stored, raw: &[u8], out: &mut Vec<f32>) {
    match dtype {
        Stored::Blocks(format) => return blocks::widen(Format::Blocks(format), raw, out),
        Stored::F32 => out.resize(raw.len() / 4, 0.0),
        Stored::Bf16 | Stored::F16 => out.resize(raw.len() / 2, 0.0),
        Stored::Unread(_) => {}
    }
    widen_to(dtype, raw, out);
}

/// The same to where they stay, of what does not lie in blocks.
pub(crate) fn widen_to(dtype: Stored, raw: &[u8], out: &mut [f32]) {
    match dtype {
        Stored::F32 => {
            for (out, bytes) in out.iter_mut().zip(raw.as_chunks::<4>().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        Stored::Bf16 => {
            for (out, bytes) in out.iter_mut().zip(raw.as_chunks::<2>().0) {
                *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        Stored::F16 => {
            let bits: Vec<u16> =
                raw.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
            bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
        }
        Stored::Blocks(_) | Stored::Unread(_) => {}
    }
}

/// Values per quantising task.
const TASK: usize = 1 << 15;

/// The threads that quantise. Steps compute on the process's common ones, and would wait for
/// them. They are started by the first load that needs them, and as nice as it is.
static CONVERTING: LazyLock<Option<ThreadPool>> = LazyLock::new(|| {
    let pool = ThreadPoolBuilder::new().thread_name(|_| "converting".to_owned()).build();
    pool.inspect_err(|error| tracing::warn!(%error, "loads convert on the threads of steps")).ok()
});

/// Quantises whole blocks, and refuses what is not finite: one such value would spoil its block.
pub(crate) fn quantize(
    numbers: &[f32],
    name: &str,
    format: BlockFormat,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    if numbers.iter().any(|number| !number.is_finite()) {
        return Err(Error::NotFinite { name: name.into() });
    }
    let Some(quantizer) = quantizer(format) else {
        return Err(Error::WrongType { name: name.into(), found: "another".into() });
    };
    let convert = || {
        let chunks = numbers.par_chunks(TASK).map(|numbers| {
            let tensor = Tensor::from_slice(numbers, numbers.len(), &Device::Cpu)?;
            Ok(QTensor::quantize(&tensor, quantizer)?.data()?.into_owned())
        });
        chunks.collect::<Result<Vec<Vec<u8>>, candle_core::Error>>()
    };
    let done = match &*CONVERTING {
        Some(pool) => pool.install(convert),
        None => convert(),
    };
    for bytes in done? {
        out.extend_from_slice(&bytes);
    }
    Ok(())
}

/// What the tensor library calls a format, of those that floats are quantised to.
fn quantizer(format: BlockFormat) -> Option<GgmlDType> {
    match format {
        BlockFormat::Q4_0 => Some(GgmlDType::Q4_0),
        BlockFormat::Q4_1 => Some(GgmlDType::Q4_1),
        BlockFormat::Q5_0 => Some(GgmlDType::Q5_0),
        BlockFormat::Q5_1 => Some(GgmlDType::Q5_1),
        BlockFormat::Q8_0 => Some(GgmlDType::Q8_0),
        BlockFormat::Q4K => Some(GgmlDType::Q4K),
        BlockFormat::Q5K => Some(GgmlDType::Q5K),
        BlockFormat::Q6K => Some(GgmlDType::Q6K),
        BlockFormat::Mxfp4 => None,
    }
}

/// The largest exponent of MXFP4's scales with which all its numbers are finite in f32.
const EXPONENT_MAX: u8 = 252;

/// Whether all of MXFP4's numbers with such scales are finite.
pub(crate) fn are_in_range(mut exponents: impl Iterator<Item = u8>) -> bool {
    exponents.all(|exponent| exponent <= EXPONENT_MAX)
}

/// Puts MXFP4's numbers, sixteen bytes of pairs for each of `exponents`, together to blocks as GGUF
/// files have them: the exponent first, and of each pair's numbers, which lie beside each other in
/// `pairs`, one in the first half. `None` where an exponent is beyond what f32 has.
pub(crate) fn weave(exponents: &[u8], pairs: &[u8], out: &mut Vec<u8>) -> Option<()> {
    if !are_in_range(exponents.iter().copied()) {
        return None;
    }
    for (exponent, pairs) in exponents.iter().zip(pairs.as_chunks::<16>().0) {
        // The `j`th of the 32 numbers, in four bits.
        let number = |j: usize| pairs[j / 2] >> (4 * (j % 2)) & 15;
        out.push(*exponent);
        out.extend((0..16).map(|j| number(j) | number(j + 16) << 4));
    }
    Some(())
}

/// Brings rows that lie in pairs into halves, head by head: of each head of `head` rows, the
/// even ones come first.
pub(crate) fn unpair<T: Copy>(head: Option<usize>, row: usize, values: &mut [T]) {
    let Some(head) = head else { return };
    let mut pairs = Vec::new();
    for rows in values.chunks_exact_mut(head * row) {
        pairs.clear();
        pairs.extend_from_slice(rows);
        for (index, to) in rows.chunks_exact_mut(row).enumerate() {
            let half = head / 2;
            let from = if index < half { 2 * index } else { 2 * (index - half) + 1 };
            to.copy_from_slice(&pairs[from * row..][..row]);
        }
    }
}

/// Rounds to f16 or bf16, to where it stays as bits. Refuses what is or would become infinite
/// in f16: kernels that widen it rely on finite numbers.
pub(crate) fn narrow(
    numbers: &[f32],
    name: &str,
    format: Format,
    out: &mut [u16],
) -> Result<(), Error> {
    if format == Format::Bf16 {
        out.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(numbers);
        return Ok(());
    }
    out.reinterpret_cast_mut::<f16>().convert_from_f32_slice(numbers);
    are_finite(out).then_some(()).ok_or_else(|| Error::BeyondRange { name: name.into() })
}

/// Whether all these numbers in f16 are finite.
pub(crate) fn are_finite(halves: &[u16]) -> bool {
    const EXPONENT: u16 = 0x7c00;
    // A search that may end at each number does not vectorise.
    let is_finite = |fine: bool, bits: &u16| fine & (bits & EXPONENT != EXPONENT);
    halves.chunks(1 << 12).all(|chunk| chunk.iter().fold(true, is_finite))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_widens_to_the_same_numbers() {
        let numbers = [0.0f32, -1.5, 0.15625, 1024.0];
        let mut f32s = Vec::new();
        let raw: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        widen(Stored::F32, &raw, &mut f32s);
        let mut f16s = Vec::new();
        let raw: Vec<u8> = numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        widen(Stored::F16, &raw, &mut f16s);
        let mut bf16s = Vec::new();
        let raw: Vec<u8> =
            numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        widen(Stored::Bf16, &raw, &mut bf16s);
        assert_eq!([f32s, f16s, bf16s], [numbers.to_vec(), numbers.to_vec(), numbers.to_vec()]);
    }

    #[test]
    fn rows_in_pairs_come_to_lie_in_halves_head_by_head() {
        let mut rows = [0, 0, 10, 10, 1, 1, 11, 11, 5, 5, 15, 15, 6, 6, 16, 16];
        unpair(Some(4), 2, &mut rows);
        assert_eq!(rows, [0, 0, 1, 1, 10, 10, 11, 11, 5, 5, 6, 6, 15, 15, 16, 16]);
        unpair(None, 2, &mut rows);
        assert_eq!(rows[..4], [0, 0, 1, 1]);
    }

    #[test]
    fn quantising_refuses_what_is_not_finite() {
        let mut numbers = vec![0.5; 64];
        let mut out = Vec::new();
        quantize(&numbers, "w", BlockFormat::Q8_0, &mut out).unwrap();
        assert_eq!(out.len(), 2 * BlockFormat::Q8_0.bytes());
        numbers[40] = f32::NAN;
        let refused = quantize(&numbers, "w", BlockFormat::Q8_0, &mut out);
        assert!(matches!(refused, Err(Error::NotFinite { .. })));
    }

    #[test]
    fn narrowing_refuses_what_f16_cannot_hold() {
        let mut out = [0; 2];
        assert!(narrow(&[1.0, -65_504.0], "w", Format::F16, &mut out).is_ok());
        let wide = [0.5, 70_000.0];
        let refused = narrow(&wide, "w", Format::F16, &mut out);
        assert!(matches!(refused, Err(Error::BeyondRange { .. })));
        assert!(narrow(&wide, "w", Format::Bf16, &mut out).is_ok());
        assert_eq!(out.map(|bits| bf16::from_bits(bits).to_f32()), [0.5, 70_144.0]);
    }
}
