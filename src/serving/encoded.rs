//! From an encoder's numbers to vectors and labels.

use std::sync::Arc;

use crate::{LabelScore, Labels, ScoreFunction};

/// Brings a vector to length 1. One without length stays as it is.
pub(crate) fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        for x in vector {
            #[expect(clippy::cast_possible_truncation, reason = "at most 1")]
            let scaled = (f64::from(*x) / length) as f32;
            *x = scaled;
        }
    }
}

/// Names and scores for one input's logits, likeliest first, `top_k` at most; `None` where the
/// logits do not match the labels or are no numbers.
pub(crate) fn label_scores(
    logits: &[f32],
    labels: &Labels,
    top_k: usize,
) -> Option<Vec<LabelScore>> {
    if logits.len() != labels.names.len() || logits.iter().any(|logit| !logit.is_finite()) {
        return None;
    }
    let scores = match labels.scores {
        ScoreFunction::Softmax => softmax(logits),
        ScoreFunction::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
        ScoreFunction::Identity => logits.to_vec(),
    };
    let named = labels.names.iter().zip(scores);
    let mut named: Vec<LabelScore> =
        named.map(|(label, score)| LabelScore { label: Arc::clone(label), score }).collect();
    // Stable: labels of one score keep the artefact's order.
    named.sort_by(|a, b| b.score.total_cmp(&a.score));
    named.truncate(top_k);
    Some(named)
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scores: ScoreFunction) -> Labels {
        Labels { names: ["a", "b", "c"].map(Arc::from).to_vec(), scores }
    }

    fn scored(logits: &[f32], scores: ScoreFunction, top_k: usize) -> Vec<(String, f32)> {
        let scored = label_scores(logits, &labels(scores), top_k).unwrap();
        scored.into_iter().map(|label| (label.label.to_string(), label.score)).collect()
    }

    #[test]
    fn labels_come_likeliest_first() {
        let softmax = scored(&[0.0, 1000.0, 1000.0], ScoreFunction::Softmax, 2);
        assert_eq!(softmax, [("b".into(), 0.5), ("c".into(), 0.5)]);
        let sigmoid = scored(&[0.0, -200.0, 200.0], ScoreFunction::Sigmoid, 9);
        assert_eq!(sigmoid, [("c".into(), 1.0), ("a".into(), 0.5), ("b".into(), 0.0)]);
        let identity = scored(&[1.0, 3.5, -2.0], ScoreFunction::Identity, 1);
        assert_eq!(identity, [("b".into(), 3.5)]);
    }

    #[test]
    fn logits_that_are_none_or_too_few_are_refused() {
        let labels = labels(ScoreFunction::Softmax);
        assert!(label_scores(&[1.0, 2.0], &labels, 1).is_none());
        assert!(label_scores(&[1.0, f32::NAN, 2.0], &labels, 1).is_none());
    }

    #[test]
    fn a_normalised_vector_has_length_one_and_zero_stays_zero() {
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = [0.0, 0.0];
        normalize(&mut zero);
        assert_eq!(zero, [0.0, 0.0]);
    }
}
