//! Rotary position embedding, with the frequencies' scaling.

use rayon::prelude::*;

/// How frequencies are stretched beyond the lengths trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
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
}

/// Sines and cosines for every position of the served context.
#[derive(Debug)]
pub(crate) struct Rope {
    head_dim: usize,
    /// `[positions, head_dim / 2]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The angle per position of each pair of dimensions. In f32 throughout, as the
/// reference computes it: what matters is the same angle, not a better one.
fn frequencies(head_dim: usize, theta: f32, scaling: RopeScaling) -> Vec<f32> {
    let plain = |pair: usize| 1.0 / theta.powf((2 * pair) as f32 / head_dim as f32);
    let scale = |frequency: f32| match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear(factor) => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
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
    };
    (0..head_dim / 2).map(plain).map(scale).collect()
}

impl Rope {
    /// Bytes of both tables.
    pub(crate) fn bytes(&self) -> u64 {
        ((self.cos.len() + self.sin.len()) * size_of::<f32>()) as u64
    }

    #[cfg(test)]
    pub(crate) fn new(head_dim: usize, theta: f32, scaling: RopeScaling, context: usize) -> Self {
        Self::divided(head_dim, theta, scaling, &[], context)
    }

    /// The tables, with each frequency divided by its factor where there are any.
    pub(crate) fn divided(
        head_dim: usize,
        theta: f32,
        scaling: RopeScaling,
        factors: &[f32],
        context: usize,
    ) -> Self {
        let mut frequencies = frequencies(head_dim, theta, scaling);
        for (frequency, factor) in frequencies.iter_mut().zip(factors) {
            *frequency /= factor;
        }
        // Allocated in their final size: what doubles as it grows would hold more than is charged.
        let numbers = context * frequencies.len();
        let (mut sin, mut cos) = (Vec::with_capacity(numbers), Vec::with_capacity(numbers));
        for position in 0..context {
            for frequency in &frequencies {
                let (s, c) = (position as f32 * frequency).sin_cos();
                sin.push(s);
                cos.push(c);
            }
        }
        Self { head_dim, cos, sin }
    }

    /// Rotates the first `width` numbers of each row, heads of `head_dim`, to the row's position.
    pub(crate) fn rotate(
        &self,
        rows: &mut [f32],
        row_width: usize,
        width: usize,
        positions: &[usize],
    ) {
        rows.par_chunks_mut(row_width).zip(positions).with_min_len(16).for_each(
            |(row, &position)| {
                let half = self.head_dim / 2;
                let cos = &self.cos[position * half..(position + 1) * half];
                let sin = &self.sin[position * half..(position + 1) * half];
                for head in row[..width].chunks_exact_mut(self.head_dim) {
                    let (first, second) = head.split_at_mut(half);
                    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                    }
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_divides_long_waves_keeps_short_ones_and_ramps_between() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 64.0,
        };
        let plain = frequencies(16, 10_000.0, RopeScaling::None);
        let scaled = frequencies(16, 10_000.0, scaling);
        // Waves: 6.3, 19.9, 62.8, 198.7 ...; short below 16, long above 64.
        assert_eq!(scaled[0], plain[0]);
        assert!(scaled[2] < plain[2] && scaled[2] > plain[2] / 8.0);
        assert_eq!(scaled[3], plain[3] / 8.0);
    }

    #[test]
    fn a_rotation_keeps_lengths_and_depends_on_distance_alone() {
        let rope = Rope::new(4, 100.0, RopeScaling::None, 32);
        let at = |numbers: [f32; 4], position: usize| {
            let mut row = numbers;
            rope.rotate(&mut row, 4, 4, &[position]);
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
