//! Rotary position embedding, with the frequencies' scaling.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

/// How frequencies are stretched beyond the lengths trained on.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RopeScaling {
    /// As trained.
    None,
    /// All frequencies divided by this.
    Linear(f32),
    /// Llama 3.1's: long waves divided, short ones kept, a ramp between.
    Llama3 {
        /// What long waves are divided by.
        factor: f32,
        /// Waves longer than the original context over this are long.
        low_freq_factor: f32,
        /// Waves shorter than the original context over this are short.
        high_freq_factor: f32,
        /// The context trained on.
        original_context: f32,
    },
    /// Slow turns divided, fast ones kept, a ramp between, by the index of the pair.
    Yarn {
        /// What slow turns are divided by.
        factor: f32,
        /// Pairs up to this one are kept.
        low: f32,
        /// Pairs from this one on are divided.
        high: f32,
    },
    /// Each pair divided by a number of its own, by others where long contexts are served.
    Long {
        /// For contexts up to the one trained on.
        short: Vec<f32>,
        /// For longer ones.
        long: Vec<f32>,
        /// The context trained on.
        original_context: usize,
    },
}

/// A rotation of queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RopeConfig {
    /// The base of the frequencies.
    pub(crate) theta: f32,
    /// How many numbers of each head are rotated, the first ones; even.
    pub(crate) dims: usize,
    pub(crate) scaling: RopeScaling,
    /// What sines and cosines are multiplied by.
    pub(crate) factor: f32,
    /// Whether neighbours turn together, not each number with the one half of them further on.
    pub(crate) neighbours: bool,
}

/// Sines and cosines for every position of the served context.
#[derive(Debug)]
pub(crate) struct Rope {
    dims: usize,
    neighbours: bool,
    /// `[positions, dims / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The angle per position of each pair of dimensions, where `context` positions are served.
/// In f32 throughout, as the reference computes it: what matters is the same angle, not a
/// better one.
fn frequencies(config: &RopeConfig, context: usize) -> Vec<f32> {
    let power = |pair: usize| config.theta.powf((2 * pair) as f32 / config.dims as f32);
    let scale = |pair: usize| {
        let frequency = 1.0 / power(pair);
        match &config.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear(factor) => frequency / factor,
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let wave = 2.0 * std::f32::consts::PI / frequency;
                if wave > original_context / low_freq_factor {
                    frequency / factor
                } else if wave < original_context / high_freq_factor {
                    frequency
                } else {
                    let ramp = (original_context / wave - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - ramp) * frequency / factor + ramp * frequency
                }
            }
            RopeScaling::Yarn { factor, low, high } => {
                let kept = 1.0 - ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                1.0 / (factor * power(pair)) * (1.0 - kept) + frequency * kept
            }
            RopeScaling::Long { short, long, original_context } => {
                let divisors = if context > *original_context { long } else { short };
                1.0 / (divisors[pair] * power(pair))
            }
        }
    };
    (0..config.dims / 2).map(scale).collect()
}

impl Rope {
    /// Bytes of both tables.
    pub(crate) fn bytes(&self) -> u64 {
        ((self.cos.len() + self.sin.len()) * size_of::<f32>()) as u64
    }

    /// Cosines and sines as tensors of a device, `[context, dims / 2]` each.
    pub(crate) fn tensors(self, context: usize, device: &Device) -> Result<[Tensor; 2]> {
        let tensor = |numbers| Tensor::from_vec(numbers, (context, self.dims / 2), device);
        Ok([tensor(self.cos)?, tensor(self.sin)?])
    }

    #[cfg(test)]
    pub(crate) fn new(config: &RopeConfig, context: usize) -> Self {
        Self::divided(config, &[], context)
    }

    /// The tables, with each frequency divided by its factor where there are any.
    pub(crate) fn divided(config: &RopeConfig, factors: &[f32], context: usize) -> Self {
        let mut frequencies = frequencies(config, context);
        for (frequency, factor) in frequencies.iter_mut().zip(factors) {
            *frequency /= factor;
        }
        // Allocated in their final size: what doubles as it grows would hold more than is charged.
        let numbers = context * frequencies.len();
        let (mut sin, mut cos) = (Vec::with_capacity(numbers), Vec::with_capacity(numbers));
        for position in 0..context {
            for frequency in &frequencies {
                let (s, c) = (position as f32 * frequency).sin_cos();
                sin.push(s * config.factor);
                cos.push(c * config.factor);
            }
        }
        Self { dims: config.dims, neighbours: config.neighbours, cos, sin }
    }

    /// Rotates the first `width` numbers of each row, heads of `head_dim`, to the row's position.
    pub(crate) fn rotate(
        &self,
        rows: &mut [f32],
        (row_width, width, head_dim): (usize, usize, usize),
        positions: &[usize],
    ) {
        rows.par_chunks_mut(row_width).zip(positions).with_min_len(16).for_each(
            |(row, &position)| {
                let half = self.dims / 2;
                let cos = &self.cos[position * half..(position + 1) * half];
                let sin = &self.sin[position * half..(position + 1) * half];
                for head in row[..width].chunks_exact_mut(head_dim) {
                    if self.neighbours {
                        turn_neighbours(&mut head[..self.dims], cos, sin);
                        continue;
                    }
                    let (first, second) = head[..self.dims].split_at_mut(half);
                    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            },
        );
    }
}

/// Turns each two numbers that lie side by side.
fn turn_neighbours(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, cos), sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b) = (pair[0], pair[1]);
        (pair[0], pair[1]) = (a * cos - b * sin, b * cos + a * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dims: usize, theta: f32, scaling: RopeScaling) -> RopeConfig {
        RopeConfig { theta, dims, scaling, factor: 1.0, neighbours: false }
    }

    #[test]
    fn neighbours_turn_as_numbers_half_of_them_apart_do() {
        let apart = config(6, 100.0, RopeScaling::None);
        let beside = RopeConfig { neighbours: true, ..apart.clone() };
        let turned = |config: &RopeConfig, mut row: [f32; 8]| {
            Rope::new(config, 16).rotate(&mut row, (8, 8, 8), &[5]);
            row
        };
        let [a, b, c, d, e, f, g, h] = turned(&apart, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let got = turned(&beside, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0, 7.0, 8.0]);
        assert_eq!(got, [a, d, b, e, c, f, g, h]);
    }

    #[test]
    fn the_served_context_chooses_between_short_and_long_factors() {
        let scaling =
            RopeScaling::Long { short: vec![1.0, 2.0], long: vec![4.0, 8.0], original_context: 32 };
        let config = config(4, 100.0, scaling);
        assert_eq!(frequencies(&config, 32), [1.0, 0.05]);
        assert_eq!(frequencies(&config, 33), [0.25, 0.0125]);
    }

    #[test]
    fn llama3_scaling_divides_long_waves_keeps_short_ones_and_ramps_between() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 64.0,
        };
        let plain = frequencies(&config(16, 10_000.0, RopeScaling::None), 64);
        let scaled = frequencies(&config(16, 10_000.0, scaling), 64);
        // Waves: 6.3, 19.9, 62.8, 198.7 ...; short below 16, long above 64.
        assert_eq!(scaled[0], plain[0]);
        assert!(scaled[2] < plain[2] && scaled[2] > plain[2] / 8.0);
        assert_eq!(scaled[3], plain[3] / 8.0);
    }

    #[test]
    fn a_rotation_keeps_lengths_and_depends_on_distance_alone() {
        let rope = Rope::new(&config(4, 100.0, RopeScaling::None), 32);
        let at = |numbers: [f32; 4], position: usize| {
            let mut row = numbers;
            rope.rotate(&mut row, (4, 4, 4), &[position]);
            row
        };
        let dot = |a: [f32; 4], b: [f32; 4]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
        let (q, k) = ([1.0, 2.0, -0.5, 0.25], [0.5, -1.0, 1.5, 2.0]);
        assert_eq!(at(q, 0), q);
        let near = dot(at(q, 9), at(k, 4));
        let far = dot(at(q, 30), at(k, 25));
        assert!((near - far).abs() < 1e-5, "{near} {far}");
        assert!((near - dot(q, k)).abs() > 1e-2);
    }
}
