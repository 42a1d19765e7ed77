//! The non-linearities of the feed-forward blocks.

use candle_core::{Result, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::Error;
use crate::config::CONFIG;
use crate::simd::{self, Kernel, exp};

/// Rows of fewer numbers than this are not worth another thread.
const SERIAL: usize = 1 << 14;

/// A non-linearity by what it computes; configurations have several names for some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// Gaussian error linear unit, exact.
    Gelu,
    /// Its approximation by a hyperbolic tangent.
    GeluTanh,
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
            "relu" => Ok(Self::Relu),
            _ => Err(Error::config(CONFIG, format!("hidden_act '{name}' is not computed"))),
        }
    }

    /// Applies it to every number.
    pub(crate) fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::Relu => x.relu(),
        }
    }

    /// Whether [`Self::gate`] is one pass; otherwise it needs two more tensors of its result's size.
    pub(crate) fn gates_in_one_pass(self) -> bool {
        matches!(self, Self::Silu | Self::GeluTanh)
    }

    /// Takes `[rows, 2 n]` to `[rows, n]`: the first half, activated, times the second.
    pub(crate) fn gate(self, packed: &Tensor) -> Result<Tensor> {
        let (rows, width) = packed.dims2()?;
        if !self.gates_in_one_pass() {
            let half = width / 2;
            let gate = packed.narrow(1, 0, half)?.contiguous()?;
            return self.forward(&gate)?.mul(&packed.narrow(1, half, half)?);
        }
        let out = with_floats(packed, |numbers| {
            let mut out = vec![0.0; numbers.len() / 2];
            let rows_at_least = (SERIAL / width.max(1)).max(1);
            out.par_chunks_mut((width / 2).max(1))
                .zip(numbers.par_chunks(width.max(1)))
                .with_min_len(rows_at_least)
                .for_each(|(out, row)| {
                    let (gate, up) = row.split_at(width / 2);
                    match self {
                        Self::GeluTanh => simd::dispatch(GeluTanhGate { gate, up, out }),
                        _ => simd::dispatch(SiluGate { gate, up, out }),
                    }
                });
            out
        })?;
        Tensor::from_vec(out, (rows, width / 2), packed.device())
    }
}

/// `silu(gate) * up`, in one pass.
struct SiluGate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SiluGate<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gate / (1.0 + exp::<FMA>(-gate)) * up;
        }
    }
}

/// `gelu(gate) * up` in one pass, GELU by its tanh form: `x / (1 + e^(-2 u))` for
/// `x / 2 (1 + tanh u)`.
struct GeluTanhGate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for GeluTanhGate<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        /// Twice the root of 2 / pi.
        const SLOPE: f32 = 1.595_769;
        const CUBIC: f32 = 0.044_715;
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            let twice = SLOPE * (gate + CUBIC * gate * gate * gate);
            *out = gate / (1.0 + exp::<FMA>(-twice)) * up;
        }
    }
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
        for activation in [Activation::Silu, Activation::GeluTanh] {
            gate_equals_its_definition(activation);
        }
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
