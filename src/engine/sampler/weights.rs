//! Passes over a whole vocabulary, in loops that are compiled to wide instructions.

/// Numbers side by side.
const LANES: usize = 16;
/// Lines of as many that are summed in single precision.
const LINES: usize = 16;

/// Below it an exponential is nothing beside one.
const LEAST: f32 = -87.0;
/// Adding it rounds to a whole number, which then lies in the low bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, the first exact in few bits.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// The Taylor series of e^r; |r| <= ln 2 / 2, so the next term is below 1.2e-8 of the sum.
const SERIES: [f32; 8] =
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// The exponential of what is not above zero, within 3e-7 of it; nothing below -87.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let held = if x > LEAST { x } else { LEAST };
    let shifted = held * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let r = held - whole * LN2[0] - whole * LN2[1];
    let mut sum = SERIES[0];
    for factor in &SERIES[1..] {
        sum = sum * r + factor;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x > LEAST { sum * power } else { 0.0 }
}

/// Whether all are finite.
pub(crate) fn are_numbers(logits: &[f32]) -> bool {
    // Without an early end, which would be a look at one after the other.
    logits.iter().fold(true, |all, logit| all & logit.is_finite())
}

/// The largest; nothing smaller than any number where there is none.
pub(super) fn largest(scores: &[f32]) -> f32 {
    let (lines, rest) = scores.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for line in lines {
        for (most, score) in most.iter_mut().zip(line) {
            *most = if *score > *most { *score } else { *most };
        }
    }
    most.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The exponential of each score's distance from the largest one, over the temperature: nothing for
/// what is masked.
pub(super) fn weigh(scores: &[f32], best: f32, temperature: f32) -> Vec<f32> {
    scores.iter().map(|score| exp((score - best) / temperature)).collect()
}

/// The sum of each `LANES * LINES` numbers.
pub(super) fn sums(weights: &[f32]) -> impl Iterator<Item = f64> {
    weights.chunks(PART).map(|part| {
        let (lines, rest) = part.as_chunks::<LANES>();
        let mut sums = [0.0_f32; LANES];
        for line in lines {
            for (sum, weight) in sums.iter_mut().zip(line) {
                *sum += weight;
            }
        }
        sums.iter().chain(rest).map(|sum| f64::from(*sum)).sum()
    })
}

/// How many numbers one of [`sums`] is of.
pub(super) const PART: usize = LANES * LINES;

/// The logarithm of the sum of exponentials.
pub(super) fn log_sum_exp(logits: &[f32]) -> f64 {
    let best = largest(logits);
    let total: f64 = logits
        .chunks(PART)
        .map(|part| {
            let mut weights = [0.0; PART];
            for (weight, logit) in weights.iter_mut().zip(part) {
                *weight = exp(logit - best);
            }
            sums(&weights).sum::<f64>()
        })
        .sum();
    f64::from(best) + total.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_library_and_nothing_far_below() {
        for step in 0..=86_900 {
            let x = -(step as f32) * 0.001;
            let exact = f64::from(x).exp();
            let apart = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(apart < 3e-7, "{x}: {apart}");
        }
        for x in [-87.5, -1e30, f32::NEG_INFINITY] {
            assert_eq!(exp(x), 0.0, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_of_a_vocabulary_are_those_in_double_precision() {
        for count in [1, 15, 16, 255, 256, 257, 5_003, 49_152] {
            let logits: Vec<f32> =
                (0..count).map(|at: usize| (at * 7919 % 10_007) as f32 / 400.0 - 9.0).collect();
            let exact: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            assert!((log_sum_exp(&logits) - exact.ln()).abs() < 1e-6, "{count}");
            let best = largest(&logits);
            assert_eq!(best, logits.iter().copied().fold(f32::MIN, f32::max), "{count}");
            let weights = weigh(&logits, best, 0.5);
            let exact: f64 = logits.iter().map(|it| (f64::from(it - best) * 2.0).exp()).sum();
            assert!((sums(&weights).sum::<f64>() / exact - 1.0).abs() < 1e-6, "{count}");
        }
    }
}
