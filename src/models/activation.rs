//! The non-linearities of the feed-forward blocks.

use candle_core::{Result, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::Error;
use crate::config::CONFIG;
use crate::in_place;
use crate::simd::{self, Kernel, exp, madd};

/// How much steeper than the sigmoid of SiLU that is of which GELU is nearly made.
const STEEPER: f32 = 1.702;
/// Rows of fewer numbers than this are not worth another thread.
const SERIAL: usize = 1 << 14;

/// A non-linearity by what it computes; configurations have several names for some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// Gaussian error linear unit.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
    /// `x sigmoid(1.702 x)`.
    QuickGelu,
    /// The positive part.
    Relu,
}

impl Activation {
    /// Finds the function that a configuration's `hidden_act` names.
    pub(crate) fn named(name: &str) -> std::result::Result<Self, Error> {
        match name {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Self::GeluTanh),
            "quick_gelu" => Ok(Self::QuickGelu),
            "relu" => Ok(Self::Relu),
            _ => Err(Error::config(CONFIG, format!("hidden_act '{name}' is not computed"))),
        }
    }

    /// Applies it to every number of a tensor in the host's memory, where they lie.
    pub(crate) fn apply(self, x: Tensor) -> Result<Tensor> {
        in_place::each(&x, |x| simd::dispatch(Apply { activation: self, x }))?;
        Ok(x)
    }

    /// Makes a new tensor of it by the tensor library, wherever it lies.
    pub(crate) fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            // Of so many times itself SiLU is as many times it.
            Self::QuickGelu => (x * f64::from(STEEPER))?.silu()? * f64::from(1.0 / STEEPER),
            Self::Relu => x.relu(),
        }
    }

    /// Takes `[rows, 2 n]` to `[rows, n]`: the first half, activated, times the second.
    pub(crate) fn gate(self, packed: &Tensor) -> Result<Tensor> {
        let (rows, width) = packed.dims2()?;
        let out = with_floats(packed, |numbers| {
            let mut out = vec![0.0; numbers.len() / 2];
            let rows_at_least = (SERIAL / width.max(1)).max(1);
            out.par_chunks_mut((width / 2).max(1))
                .zip(numbers.par_chunks(width.max(1)))
                .with_min_len(rows_at_least)
                .for_each(|(out, row)| {
                    let (gate, up) = row.split_at(width / 2);
                    simd::dispatch(Gate { activation: self, gate, up, out });
                });
            out
        })?;
        Tensor::from_vec(out, (rows, width / 2), packed.device())
    }
}

/// A non-linearity of every number, in place.
struct Apply<'a> {
    activation: Activation,
    x: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        // Loops, for closures are not compiled for the machine's registers.
        let Self { activation, x } = self;
        match activation {
            Activation::Silu => {
                for x in x {
                    *x = silu::<FMA>(*x);
                }
            }
            Activation::Gelu => {
                for x in x {
                    *x = gelu::<FMA>(*x);
                }
            }
            Activation::GeluTanh => {
                for x in x {
                    *x = gelu_tanh::<FMA>(*x);
                }
            }
            Activation::QuickGelu => {
                for x in x {
                    *x = quick_gelu::<FMA>(*x);
                }
            }
            Activation::Relu => {
                for x in x {
                    *x = relu(*x);
                }
            }
        }
    }
}

/// `activation(gate) * up`, in one pass.
struct Gate<'a> {
    activation: Activation,
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { activation, gate, up, out } = self;
        let numbers = out.iter_mut().zip(gate).zip(up);
        match activation {
            Activation::Silu => {
                for ((out, gate), up) in numbers {
                    *out = silu::<FMA>(*gate) * up;
                }
            }
            Activation::Gelu => {
                for ((out, gate), up) in numbers {
                    *out = gelu::<FMA>(*gate) * up;
                }
            }
            Activation::GeluTanh => {
                for ((out, gate), up) in numbers {
                    *out = gelu_tanh::<FMA>(*gate) * up;
                }
            }
            Activation::QuickGelu => {
                for ((out, gate), up) in numbers {
                    *out = quick_gelu::<FMA>(*gate) * up;
                }
            }
            Activation::Relu => {
                for ((out, gate), up) in numbers {
                    *out = relu(*gate) * up;
                }
            }
        }
    }
}

#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-x))
}

#[inline(always)]
fn quick_gelu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-STEEPER * x))
}

/// By the tail of the normal distribution beyond `a = |x| / sqrt(2)`: `e^(-a^2) P(t) / 2` with
/// `t = 1 / (1 + 0.47 a)`. `P` was fitted to `e^(a^2) erfc(a)` for `a` up to 10 by least squares of the
/// relative error, which is below 1.1e-8 there.
#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> f32 {
    const P: [f32; 10] = [
        -0.054_517_962,
        0.306_245_98,
        -0.649_757_5,
        0.573_792_64,
        -0.207_509_28,
        0.288_132_34,
        0.209_698_63,
        0.269_064_46,
        0.264_838_55,
        1.217_222_9e-5,
    ];
    let a = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / madd::<FMA>(a, 0.47, 1.0);
    let mut p = P[0];
    for factor in &P[1..] {
        p = madd::<FMA>(p, t, *factor);
    }
    let tail = 0.5 * p * exp::<FMA>(-a * a);
    // Beyond 16 nothing of the tail is left, which infinity would make something of.
    relu(x) - x.abs().min(16.0) * tail
}

/// `x / (1 + e^(-2 u))` for `x / 2 (1 + tanh u)`.
#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> f32 {
    /// Twice the root of 2 / pi.
    const SLOPE: f32 = 1.595_769;
    const CUBIC: f32 = 0.044_715;
    x / (1.0 + exp::<FMA>(-SLOPE * (x + CUBIC * x * x * x)))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    // What is no number stays what it is.
    if x < 0.0 { 0.0 } else { x }
}

/// Bends each number of a row to stay within plus and minus `cap`.
pub(crate) fn cap(row: &mut [f32], cap: f32) {
    simd::dispatch(Cap { row, cap });
}

struct Cap<'a> {
    row: &'a mut [f32],
    cap: f32,
}

impl Kernel for Cap<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        bend::<FMA>(self.row, self.cap);
    }
}

/// `cap * tanh(x / cap)` of every number, in place.
#[inline(always)]
pub(crate) fn bend<const FMA: bool>(numbers: &mut [f32], cap: f32) {
    for x in numbers {
        *x = cap - 2.0 * cap / (exp::<FMA>(*x * (2.0 / cap)) + 1.0);
    }
}

/// Lends a contiguous tensor's numbers, in place.
pub(crate) fn with_floats<R>(x: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
    with_numbers(x, read)
}

/// The same of any number format; a tensor of another one is an error.
pub(crate) fn with_numbers<T: WithDType, R>(x: &Tensor, read: impl FnOnce(&[T]) -> R) -> Result<R> {
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cpu(numbers), Some((start, end))) = (&*storage, layout.contiguous_offsets())
    else {
        bail!("a contiguous tensor in host memory is needed");
    };
    Ok(read(&numbers.as_slice::<T>()?[start..end]))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn bent_numbers_are_the_tangent_s() {
        let mut numbers: Vec<f32> = (-3000..=3000).map(|i| i as f32 * 0.1).collect();
        let want: Vec<f64> = numbers.iter().map(|x| 30.0 * (f64::from(*x) / 30.0).tanh()).collect();
        cap(&mut numbers, 30.0);
        for (a, b) in numbers.iter().zip(want) {
            assert!((f64::from(*a) - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn gated_kernels_equal_their_definitions() {
        use Activation::{Gelu, GeluTanh, QuickGelu, Relu, Silu};
        for activation in [Silu, Gelu, GeluTanh, QuickGelu, Relu] {
            gate_equals_its_definition(activation);
        }
    }

    #[test]
    fn numbers_are_bent_where_they_lie_as_the_tensor_library_bends_them() {
        let numbers: Vec<f32> = (-60_000..60_000).map(|at| at as f32 * 0.000_2).collect();
        let x = Tensor::from_vec(numbers, (120, 1000), &Device::Cpu).unwrap();
        use Activation::{Gelu, GeluTanh, QuickGelu, Relu, Silu};
        for kind in [Silu, Gelu, GeluTanh, QuickGelu, Relu] {
            let want = kind.forward(&x).unwrap().to_vec2::<f32>().unwrap().concat();
            let got = kind.apply(x.copy().unwrap()).unwrap().to_vec2::<f32>().unwrap().concat();
            for (at, (a, b)) in got.iter().zip(&want).enumerate() {
                let close = (a - b).abs() <= 1e-6 + 1e-6 * b.abs();
                assert!(close, "{kind:?} of {}: {a} {b}", (at as f32 - 60_000.0) * 0.000_2);
            }
        }
        let odd = vec![f32::NAN, f32::NEG_INFINITY, f32::INFINITY, -1e30];
        let odd = Tensor::from_vec(odd, (1, 4), &Device::Cpu).unwrap();
        let bent = Activation::Gelu.apply(odd).unwrap().to_vec2::<f32>().unwrap().concat();
        assert!(bent[0].is_nan() && bent[2] == f32::INFINITY, "{bent:?}");
        assert!(bent[1].abs() <= 1e-6 && bent[3].abs() <= 1e-6, "{bent:?}");
    }

    fn gate_equals_its_definition(activation: Activation) {
        let numbers: Vec<f32> = (0..60).map(|i| (i as f32 - 30.0) * 0.7).collect();
        let packed = Tensor::from_vec(numbers, (3, 20), &Device::Cpu).unwrap();
        let got = activation.gate(&packed).unwrap();
        let gate = packed.narrow(1, 0, 10).unwrap().contiguous().unwrap();
        let up = packed.narrow(1, 10, 10).unwrap().contiguous().unwrap();
        let want = (activation.forward(&gate).unwrap() * up).unwrap();
        let pairs = got.to_vec2::<f32>().unwrap().concat();
        for (a, b) in pairs.iter().zip(want.to_vec2::<f32>().unwrap().concat()) {
            assert!((a - b).abs() <= 1e-6 * b.abs().max(1.0), "{a} {b}");
        }
    }
}
