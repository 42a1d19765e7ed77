//! Sixteen f32 side by side, as values that stay in registers.
//!
//! Kernels that hold many sums at once are written over [`Lanes`]: loops over arrays of sums are
//! vectorised across the sums, with more shuffling than arithmetic.

use half::{bf16, f16};

/// How many there are.
pub(crate) const LANES: usize = 16;

/// A kernel over [`Lanes`].
///
/// Implementations and what they call must be `#[inline(always)]`, or they are compiled for the
/// baseline.
pub(crate) trait LaneKernel {
    /// Runs it.
    fn run<V: Lanes>(self);
}

/// Runs a kernel with what this machine has.
pub(crate) fn dispatch_lanes<K: LaneKernel>(kernel: K) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
            // SAFETY: the feature was just detected.
            return unsafe { x86::avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
            // SAFETY: the features were just detected.
            return unsafe { x86::avx2(kernel) };
        }
    }
    kernel.run::<Plain>();
}

/// Runs kernels with every kind of register that this machine has.
#[cfg(test)]
pub(crate) fn on_every_kind<K: LaneKernel>(mut kernel: impl FnMut() -> K) {
    dispatch_lanes(kernel());
    kernel().run::<Plain>();
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
    {
        #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
        // SAFETY: the features were just detected.
        unsafe {
            x86::avx2(kernel());
        }
    }
}

/// Sixteen f32.
pub(crate) trait Lanes: Copy {
    /// Whether there are registers for some twenty of them, rather than for seven.
    const MANY: bool;

    /// All the same.
    fn splat(x: f32) -> Self;
    /// As they lie.
    fn load(x: &[f32; LANES]) -> Self;
    /// As they lie in bf16, widened exactly.
    fn load_bf16(x: &[bf16; LANES]) -> Self;
    /// As they lie in f16, widened exactly.
    fn load_f16(x: &[f16; LANES]) -> Self;
    /// To where they shall lie.
    fn store(self, x: &mut [f32; LANES]);
    /// `self * b + c`, fused where that is one instruction.
    fn madd(self, b: Self, c: Self) -> Self;
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    fn mul(self, b: Self) -> Self;
    fn div(self, b: Self) -> Self;
    /// The larger of each two; the second where one is not a number.
    fn max(self, b: Self) -> Self;
    /// The smaller of each two; the second where one is not a number.
    fn min(self, b: Self) -> Self;
    /// Those from `from` to before `to`, the others of `other`.
    fn within(self, from: usize, to: usize, other: Self) -> Self;
    /// Two to the power of the whole number in the low bits.
    fn power(self) -> Self;

    /// As many as there are, and zeros, of at most [`LANES`].
    #[inline(always)]
    fn read(x: &[f32]) -> Self {
        match x.first_chunk() {
            Some(x) => Self::load(x),
            None => {
                let mut all = [0.0; LANES];
                all[..x.len()].copy_from_slice(x);
                Self::load(&all)
            }
        }
    }

    /// Writes as many as there is room for.
    #[inline(always)]
    fn write(self, x: &mut [f32]) {
        match x.first_chunk_mut() {
            Some(x) => self.store(x),
            None => {
                let mut all = [0.0; LANES];
                self.store(&mut all);
                x.copy_from_slice(&all[..x.len()]);
            }
        }
    }

    /// The largest.
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut all = [0.0; LANES];
        self.store(&mut all);
        all.iter().fold(f32::NEG_INFINITY, |largest, x| if *x > largest { *x } else { largest })
    }

    /// The sum of all, by halves.
    #[inline(always)]
    fn total(self) -> f32 {
        let mut all = [0.0; LANES];
        self.store(&mut all);
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                all[lane] += all[lane + half];
            }
        }
        all[0]
    }

    /// The exponential, as [`super::exp`] has it.
    #[inline(always)]
    fn exp(self) -> Self {
        let x = Self::splat(super::EXP_LEAST).max(self);
        let x = Self::splat(super::EXP_MOST).min(x);
        let round = Self::splat(super::ROUND);
        let shifted = x.madd(Self::splat(std::f32::consts::LOG2_E), round);
        let whole = shifted.sub(round);
        let r = whole.madd(Self::splat(-super::LN2_HIGH), x);
        let r = whole.madd(Self::splat(-super::LN2_LOW), r);
        let mut sum = Self::splat(super::EXP_SERIES[0]);
        for factor in &super::EXP_SERIES[1..] {
            sum = sum.madd(r, Self::splat(*factor));
        }
        sum.mul(shifted.power())
    }
}

/// In an array, for any machine.
#[derive(Clone, Copy)]
struct Plain([f32; LANES]);

impl Plain {
    #[inline(always)]
    fn each(self, b: Self, of: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|lane| of(self.0[lane], b.0[lane])))
    }
}

impl Lanes for Plain {
    const MANY: bool = false;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    fn load(x: &[f32; LANES]) -> Self {
        Self(*x)
    }

    #[inline(always)]
    fn load_bf16(x: &[bf16; LANES]) -> Self {
        Self(x.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16)))
    }

    /// Exponent and fraction in f32's places, the exponent's bias put right by multiplication, which
    /// is exact for subnormal numbers too; but for what is no number.
    #[inline(always)]
    fn load_f16(x: &[f16; LANES]) -> Self {
        Self(x.map(|x| {
            let bits = u32::from(x.to_bits());
            let moved = (bits & 0x7fff) << 13;
            let magnitude = match bits & 0x7c00 {
                0x7c00 => moved | 0x7f80_0000,
                _ => (f32::from_bits(moved) * f32::from_bits(0x7780_0000)).to_bits(),
            };
            f32::from_bits(magnitude | (bits & 0x8000) << 16)
        }))
    }

    #[inline(always)]
    fn store(self, x: &mut [f32; LANES]) {
        *x = self.0;
    }

    #[inline(always)]
    fn madd(self, b: Self, c: Self) -> Self {
        const FUSED: bool = cfg!(target_arch = "aarch64");
        Self(std::array::from_fn(|lane| super::madd::<FUSED>(self.0[lane], b.0[lane], c.0[lane])))
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.each(b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.each(b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.each(b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.each(b, |a, b| a / b)
    }

    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.each(b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.each(b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn within(self, from: usize, to: usize, other: Self) -> Self {
        let lane = |lane| if from <= lane && lane < to { self.0[lane] } else { other.0[lane] };
        Self(std::array::from_fn(lane))
    }

    #[inline(always)]
    fn power(self) -> Self {
        Self(self.0.map(super::power))
    }
}

/// Registers of x86. Their values are made by [`dispatch_lanes`] alone, where their instructions
/// are there.
#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::{LANES, LaneKernel, Lanes};

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512<K: LaneKernel>(kernel: K) {
        kernel.run::<Avx512>();
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn avx2<K: LaneKernel>(kernel: K) {
        kernel.run::<Avx2>();
    }

    /// Implements what is one instruction.
    macro_rules! operations {
        ($($name:ident: $instruction:ident),*) => {
            $(
                #[inline(always)]
                fn $name(self, b: Self) -> Self {
                    // SAFETY: there are values of this type only where its instructions are.
                    Self(unsafe { $instruction(self.0, b.0) })
                }
            )*
        };
    }

    /// The same for two registers.
    macro_rules! paired_operations {
        ($($name:ident: $instruction:ident),*) => {
            $(
                #[inline(always)]
                fn $name(self, b: Self) -> Self {
                    let ([low, high], [b_low, b_high]) = (self.0, b.0);
                    // SAFETY: there are values of this type only where its instructions are.
                    Self(unsafe { [$instruction(low, b_low), $instruction(high, b_high)] })
                }
            )*
        };
    }

    /// In one register. There are values of this type only where AVX-512 is.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(pub(crate) __m512);

    #[expect(unsafe_code, reason = "vector instructions")]
    // SAFETY of all: there are values of this type only where AVX-512 is; references to sixteen
    // numbers are read and written whole.
    impl Lanes for Avx512 {
        const MANY: bool = true;

        operations!(add: _mm512_add_ps, sub: _mm512_sub_ps, mul: _mm512_mul_ps,
            div: _mm512_div_ps, max: _mm512_max_ps, min: _mm512_min_ps);

        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_set1_ps(x) })
        }

        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_loadu_ps(x.as_ptr()) })
        }

        #[inline(always)]
        fn load_bf16(x: &[bf16; LANES]) -> Self {
            // SAFETY: see above.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
            }
        }

        #[inline(always)]
        fn load_f16(x: &[f16; LANES]) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) })
        }

        #[inline(always)]
        fn store(self, x: &mut [f32; LANES]) {
            // SAFETY: see above.
            unsafe { _mm512_storeu_ps(x.as_mut_ptr(), self.0) }
        }

        #[inline(always)]
        fn madd(self, b: Self, c: Self) -> Self {
            // SAFETY: see above.
            Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
        }

        #[inline(always)]
        fn within(self, from: usize, to: usize, other: Self) -> Self {
            let below = |lane: usize| (1u32 << lane) - 1;
            let mask = (below(to) & !below(from)) as u16;
            // SAFETY: see above.
            Self(unsafe { _mm512_mask_mov_ps(other.0, mask, self.0) })
        }

        #[inline(always)]
        fn power(self) -> Self {
            // SAFETY: see above.
            unsafe {
                let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(self.0));
                let bits = _mm512_add_epi32(exponent, _mm512_set1_epi32(127 << 23));
                Self(_mm512_castsi512_ps(bits))
            }
        }

        #[inline(always)]
        fn largest(self) -> f32 {
            // SAFETY: see above.
            unsafe { _mm512_reduce_max_ps(self.0) }
        }

        #[inline(always)]
        fn total(self) -> f32 {
            // SAFETY: see above.
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
    }

    #[derive(Clone, Copy)]
    struct Avx2([__m256; 2]);

    #[expect(unsafe_code, reason = "vector instructions")]
    // SAFETY of all: there are values of this type only where AVX2, FMA and F16C are; references to
    // sixteen numbers are read and written whole.
    impl Lanes for Avx2 {
        const MANY: bool = false;

        paired_operations!(add: _mm256_add_ps, sub: _mm256_sub_ps, mul: _mm256_mul_ps,
            div: _mm256_div_ps, max: _mm256_max_ps, min: _mm256_min_ps);

        #[inline(always)]
        fn splat(x: f32) -> Self {
            // SAFETY: see above.
            Self([unsafe { _mm256_set1_ps(x) }; 2])
        }

        #[inline(always)]
        fn load(x: &[f32; LANES]) -> Self {
            let at = x.as_ptr();
            // SAFETY: see above.
            Self(unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] })
        }

        #[inline(always)]
        fn load_bf16(x: &[bf16; LANES]) -> Self {
            let at: *const __m128i = x.as_ptr().cast();
            // SAFETY: see above.
            let wide = |half: usize| unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.add(half)));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            Self([wide(0), wide(1)])
        }

        #[inline(always)]
        fn load_f16(x: &[f16; LANES]) -> Self {
            let at: *const __m128i = x.as_ptr().cast();
            // SAFETY: see above.
            Self(unsafe {
                let (low, high) = (_mm_loadu_si128(at), _mm_loadu_si128(at.add(1)));
                [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
            })
        }

        #[inline(always)]
        fn store(self, x: &mut [f32; LANES]) {
            let at = x.as_mut_ptr();
            // SAFETY: see above.
            unsafe {
                _mm256_storeu_ps(at, self.0[0]);
                _mm256_storeu_ps(at.add(8), self.0[1]);
            }
        }

        #[inline(always)]
        fn madd(self, b: Self, c: Self) -> Self {
            let ([low, high], [b_low, b_high], [c_low, c_high]) = (self.0, b.0, c.0);
            // SAFETY: see above.
            Self(unsafe {
                [_mm256_fmadd_ps(low, b_low, c_low), _mm256_fmadd_ps(high, b_high, c_high)]
            })
        }

        #[inline(always)]
        fn within(self, from: usize, to: usize, other: Self) -> Self {
            let lane = |lane: usize| if from <= lane && lane < to { -1.0 } else { 0.0 };
            let Self([low, high]) = Self::load(&std::array::from_fn(lane));
            // SAFETY: see above.
            Self(unsafe {
                [
                    _mm256_blendv_ps(other.0[0], self.0[0], low),
                    _mm256_blendv_ps(other.0[1], self.0[1], high),
                ]
            })
        }

        #[inline(always)]
        fn power(self) -> Self {
            let mut halves = self.0;
            for half in &mut halves {
                // SAFETY: see above.
                *half = unsafe {
                    let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(*half));
                    let bits = _mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23));
                    _mm256_castsi256_ps(bits)
                };
            }
            Self(halves)
        }
    }
}

#[cfg(test)]
mod tests;
