//! In which type keys and values are kept. Whatever it is, attention computes in f32.

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};

use crate::simd::{LANES, Lanes};
use crate::weigh::WeightShare;

/// The type in which keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// Four bytes a number, exactly what was computed.
    F32,
    /// Two bytes a number. What is beyond its range is kept as its largest number.
    F16,
    /// The same with the range of f32 and an eighth of f16's precision.
    Bf16,
}

impl KvDtype {
    /// What a setting of that name asks for; `auto`: what the weights suggest. Names are ours and
    /// those of other engines.
    ///
    /// # Errors
    /// For any other name, with those that there are.
    pub fn named(name: &str) -> Result<Option<Self>, &'static str> {
        match name {
            "auto" => Ok(None),
            "f32" | "fp32" | "float32" => Ok(Some(Self::F32)),
            "f16" | "fp16" | "float16" => Ok(Some(Self::F16)),
            "bf16" | "bfloat16" => Ok(Some(Self::Bf16)),
            _ => Err("auto, f32, f16 and bf16 are known"),
        }
    }

    /// As settings and reports spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// What is kept of a model whose weights lie so, most bytes first: who has exact weights gets exact
    /// answers. All others lost more than f16 takes; bf16's, too, whose own precision is an eighth of
    /// it, and whose keys and values lie in f16's range.
    pub(crate) fn suggested(weights: &[WeightShare]) -> Self {
        match weights.first() {
            Some(share) if share.memory_dtype == "f32" => Self::F32,
            _ => Self::F16,
        }
    }

    /// Bytes of a number.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A number as it is kept.
pub(crate) trait Kept: Pod + Send + Sync {
    /// So many zeros, in memory that is fresh until it is written to.
    fn zeros(count: usize) -> Box<[Self]>;

    /// Keeps as many numbers as there is room for, rounded to the nearest.
    fn keep(numbers: &[f32], to: &mut [Self]);

    /// A register of them, widened.
    fn load<V: Lanes>(numbers: &[Self; LANES]) -> V;

    /// The first of fewer than sixteen, the others zero.
    #[inline(always)]
    fn read<V: Lanes>(numbers: &[Self]) -> V {
        match numbers.first_chunk() {
            Some(numbers) => Self::load(numbers),
            None => {
                let mut all = [Self::zeroed(); LANES];
                all[..numbers.len()].copy_from_slice(numbers);
                Self::load(&all)
            }
        }
    }
}

impl Kept for f32 {
    fn zeros(count: usize) -> Box<[Self]> {
        vec![0.0; count].into_boxed_slice()
    }

    fn keep(numbers: &[f32], to: &mut [Self]) {
        to.copy_from_slice(numbers);
    }

    #[inline(always)]
    fn load<V: Lanes>(numbers: &[Self; LANES]) -> V {
        V::load(numbers)
    }
}

impl Kept for f16 {
    fn zeros(count: usize) -> Box<[Self]> {
        vec![0u16; count].reinterpret_into::<Self>().into_boxed_slice()
    }

    fn keep(numbers: &[f32], to: &mut [Self]) {
        /// Without its sign, the first number beyond the largest.
        const INFINITE: u16 = 0x7c00;
        to.convert_from_f32_slice(numbers);
        for kept in to {
            let bits = kept.to_bits();
            *kept = Self::from_bits(bits - u16::from(bits & !0x8000 == INFINITE));
        }
    }

    #[inline(always)]
    fn load<V: Lanes>(numbers: &[Self; LANES]) -> V {
        V::load_f16(numbers)
    }
}

impl Kept for bf16 {
    fn zeros(count: usize) -> Box<[Self]> {
        vec![0u16; count].reinterpret_into::<Self>().into_boxed_slice()
    }

    fn keep(numbers: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(numbers);
    }

    #[inline(always)]
    fn load<V: Lanes>(numbers: &[Self; LANES]) -> V {
        V::load_bf16(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_as_the_nearest_and_f16s_never_as_infinite() {
        let numbers = [0.1, -3.0, 65_504.0, 65_519.0, 65_520.0, -1e9, 1e-9, f32::NAN];
        let mut kept = [f16::ZERO; 8];
        f16::keep(&numbers, &mut kept);
        let back = kept.map(f16::to_f32);
        assert_eq!(back[..7], [0.099_975_586, -3.0, 65_504.0, 65_504.0, 65_504.0, -65_504.0, 0.0]);
        assert!(back[7].is_nan());
        let mut kept = [bf16::ZERO; 2];
        bf16::keep(&[0.1, -1e9], &mut kept);
        assert_eq!(kept.map(bf16::to_f32), [0.100_097_656, -998_244_352.0]);
    }

    #[test]
    fn names_are_ours_and_other_engines() {
        assert_eq!(KvDtype::named("auto"), Ok(None));
        assert_eq!(KvDtype::named("bfloat16"), Ok(Some(KvDtype::Bf16)));
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            assert_eq!(KvDtype::named(dtype.name()), Ok(Some(dtype)));
        }
        assert!(KvDtype::named("fp8").is_err());
    }
}
