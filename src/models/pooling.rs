//! Many token vectors into one sentence vector.

use crate::config::sentence::{Pooling, Sentence};

/// Shorter vectors are divided by this instead of their length, as the reference does.
const LENGTH_MIN: f32 = 1e-12;

/// Pools `[tokens, width]` into `width` numbers, scaled to length 1 if asked for.
pub(crate) fn pool(sentence: Sentence, rows: &[f32], width: usize) -> Vec<f32> {
    let count = (rows.len() / width) as f32;
    let mut vector = match sentence.pooling {
        Pooling::Cls => rows[..width].to_vec(),
        Pooling::Mean => sum(rows, width, count),
        Pooling::MeanSqrtLength => sum(rows, width, count.sqrt()),
        Pooling::Max => {
            let mut largest = rows[..width].to_vec();
            for row in rows.chunks_exact(width) {
                for (largest, x) in largest.iter_mut().zip(row) {
                    *largest = largest.max(*x);
                }
            }
            largest
        }
    };
    if sentence.normalize {
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(LENGTH_MIN);
        for x in &mut vector {
            *x /= length;
        }
    }
    vector
}

fn sum(rows: &[f32], width: usize, divisor: f32) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        for (sum, x) in sum.iter_mut().zip(row) {
            *sum += x;
        }
    }
    for x in &mut sum {
        *x /= divisor;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_pools_by_its_definition() {
        let rows = [1.0, -2.0, 3.0, 4.0, 2.0, 1.0, -6.0, 0.0];
        let pooled = |pooling| pool(Sentence { pooling, normalize: false }, &rows, 2);
        assert_eq!(pooled(Pooling::Cls), [1.0, -2.0]);
        assert_eq!(pooled(Pooling::Max), [3.0, 4.0]);
        assert_eq!(pooled(Pooling::Mean), [0.0, 0.75]);
        assert_eq!(pooled(Pooling::MeanSqrtLength), [0.0, 1.5]);
    }

    #[test]
    fn a_normalised_vector_has_length_one_and_a_zero_vector_stays_zero() {
        let sentence = Sentence { pooling: Pooling::Cls, normalize: true };
        assert_eq!(pool(sentence, &[3.0, 4.0], 2), [0.6, 0.8]);
        assert_eq!(pool(sentence, &[0.0, 0.0], 2), [0.0, 0.0]);
    }
}
