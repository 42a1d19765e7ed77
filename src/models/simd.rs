//! One kernel source, compiled for each instruction set and chosen at run time.
//!
//! A kernel is written as plain loops over f32 arrays; inlined into a function that
//! has wider registers switched on, the compiler vectorises them for those. Kernels that must
//! hold many sums in registers are written over [`Lanes`] instead.

mod lanes;

#[cfg(test)]
pub(crate) use lanes::on_every_kind;
#[cfg(target_arch = "x86_64")]
pub(crate) use lanes::x86::Avx512;
pub(crate) use lanes::{LANES, LaneKernel, Lanes, dispatch_lanes};

/// Plain-loop code that runs under the widest instruction set of this machine.
///
/// Implementations and what they call must be `#[inline(always)]`, or they are compiled
/// for the baseline.
pub(crate) trait Kernel {
    /// Runs it. `FMA` says whether a fused multiply-add is one instruction.
    fn run<const FMA: bool>(self);
}

/// Runs a kernel with what this machine has.
pub(crate) fn dispatch<K: Kernel>(kernel: K) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("fma")
        {
            #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
            // SAFETY: every feature that `avx512` enables was just detected.
            return unsafe { avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            #[expect(unsafe_code, reason = "instruction sets are chosen at run time")]
            // SAFETY: every feature that `avx2` enables was just detected.
            return unsafe { avx2(kernel) };
        }
        kernel.run::<false>();
    }
    #[cfg(not(target_arch = "x86_64"))]
    kernel.run::<{ cfg!(target_arch = "aarch64") }>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
fn avx512<K: Kernel>(kernel: K) {
    kernel.run::<true>();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Kernel>(kernel: K) {
    kernel.run::<true>();
}

/// `a * b + c`, fused where that is one instruction and never a library call.
#[inline(always)]
pub(crate) fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// What exponents are held within.
const EXP_LEAST: f32 = -87.0;
const EXP_MOST: f32 = 88.0;
/// Adding it rounds to an integer, which then lies in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, the first exact in few bits.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// The Taylor series of e^r; |r| <= ln 2 / 2, so the next term is below 1.2e-8 of the sum.
const EXP_SERIES: [f32; 8] =
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// The exponential, within two units in the last place between -87 and 88, and held at
/// its values there beyond. Branch-free, so that loops over it vectorise.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(EXP_LEAST, EXP_MOST);
    let shifted = madd::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let r = madd::<FMA>(whole, -LN2_LOW, madd::<FMA>(whole, -LN2_HIGH, x));
    let mut sum = EXP_SERIES[0];
    for factor in &EXP_SERIES[1..] {
        sum = madd::<FMA>(sum, r, *factor);
    }
    sum * power(shifted)
}

/// Two to the power of the whole number in the low bits.
#[inline(always)]
fn power(shifted: f32) -> f32 {
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for step in 0..=175_000 {
            let x = (-87.0 + step as f32 * 0.001).min(88.0);
            let exact = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                worst = worst.max((f64::from(got) - exact).abs() / exact);
            }
        }
        assert!(worst < 2.4e-7, "{worst}");
        assert!(exp::<true>(f32::NEG_INFINITY) < 2e-38);
    }
}
