//! From an encoder's numbers to vectors and labels.

use std::sync::Arc;

use crate::{Error, LabelScore, Labels, ScoreFunction, ZeroShot};

pub(crate) mod entities;
pub(crate) mod fills;
pub(crate) mod spans;

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

/// The scores of one input's labels; `None` where the logits do not match the labels or are no
/// numbers.
fn scores(logits: &[f32], labels: &Labels, function: ScoreFunction) -> Option<Vec<f32>> {
    if logits.len() != labels.names.len() || logits.iter().any(|logit| !logit.is_finite()) {
        return None;
    }
    Some(match function {
        ScoreFunction::Softmax => softmax(logits),
        ScoreFunction::Sigmoid => logits.iter().map(|logit| sigmoid(*logit)).collect(),
        ScoreFunction::Identity => logits.to_vec(),
    })
}

/// Names and scores for one input's logits, likeliest first unless they are to stay in order,
/// `top_k` at most; `None` where the logits do not match the labels or are no numbers.
pub(crate) fn label_scores(
    logits: &[f32],
    labels: &Labels,
    function: ScoreFunction,
    in_order: bool,
    top_k: usize,
) -> Option<Vec<LabelScore>> {
    let scores = scores(logits, labels, function)?;
    let named = labels.names.iter().zip(scores);
    let mut named: Vec<LabelScore> =
        named.map(|(label, score)| LabelScore { label: Arc::clone(label), score }).collect();
    if !in_order {
        // Stable: labels of one score keep the artefact's order.
        named.sort_by(|a, b| b.score.total_cmp(&a.score));
    }
    named.truncate(top_k);
    Some(named)
}

/// Which of a classifier's labels say that a sentence follows from a text, and that it does not: by
/// name, else the last and the first, as transformers takes them.
fn entailment(labels: &Labels) -> (usize, usize) {
    let says = |name: &Arc<str>| name.to_lowercase().starts_with("entail");
    let last = labels.names.len().saturating_sub(1);
    let entails = labels.names.iter().position(says).unwrap_or(last);
    (entails, if entails == 0 { last } else { 0 })
}

/// Scores of labels that nobody trained, from the logits of one text with each label's sentence,
/// likeliest first; `None` where the logits do not match the classifier's labels.
pub(crate) fn zero_shot_scores(
    logits: &[Vec<f32>],
    labels: &Labels,
    asked: &ZeroShot,
) -> Option<Vec<LabelScore>> {
    let fits = |row: &Vec<f32>| row.len() == labels.names.len() && row.len() > 1;
    if !logits.iter().all(fits) {
        return None;
    }
    let (entails, contradicts) = entailment(labels);
    let scores: Vec<f32> = if asked.multi_label || asked.labels.len() == 1 {
        logits.iter().map(|row| softmax(&[row[contradicts], row[entails]])[1]).collect()
    } else {
        softmax(&logits.iter().map(|row| row[entails]).collect::<Vec<f32>>())
    };
    let named = asked.labels.iter().zip(scores);
    let mut named: Vec<LabelScore> =
        named.map(|(label, score)| LabelScore { label: label.as_str().into(), score }).collect();
    named.sort_by(|a, b| b.score.total_cmp(&a.score));
    Some(named)
}

/// The sentence about a label.
///
/// # Errors
/// `InvalidInput` where the template has no one place for it.
pub(crate) fn hypothesis(template: &str, label: &str) -> Result<String, Error> {
    match template.split_once("{}") {
        Some((before, after)) if !after.contains("{}") => Ok(format!("{before}{label}{after}")),
        _ => Err(Error::field("hypothesis_template", "it must have one {} for the label")),
    }
}

/// How near vectors are to a first one, by the cosine of their angle; 0 where one has no length.
pub(crate) fn cosines(vectors: &[Vec<f32>]) -> Vec<f32> {
    let Some((first, others)) = vectors.split_first() else { return Vec::new() };
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let length = |vector: &[f32]| dot(vector, vector).sqrt();
    let cosine = |other: &Vec<f32>| {
        let lengths = length(first) * length(other);
        let cosine = if lengths > 0.0 { dot(first, other) / lengths } else { 0.0 };
        #[expect(clippy::cast_possible_truncation, reason = "between -1 and 1")]
        let cosine = cosine as f32;
        cosine
    };
    others.iter().map(cosine).collect()
}

pub(crate) fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

pub(crate) fn softmax(logits: &[f32]) -> Vec<f32> {
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
        let scored = label_scores(logits, &labels(scores), scores, false, top_k).unwrap();
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
        let scored = |logits: &[f32]| label_scores(logits, &labels, labels.scores, false, 1);
        assert!(scored(&[1.0, 2.0]).is_none());
        assert!(scored(&[1.0, f32::NAN, 2.0]).is_none());
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

    #[test]
    fn labels_stay_in_order_where_that_is_asked() {
        let labels = labels(ScoreFunction::Softmax);
        let scored = label_scores(&[0.0, 2.0, 1.0], &labels, ScoreFunction::Identity, true, 9);
        let scores: Vec<f32> = scored.unwrap().iter().map(|label| label.score).collect();
        assert_eq!(scores, [0.0, 2.0, 1.0]);
    }

    #[test]
    fn entailment_is_found_by_name_or_stands_last() {
        let named = |names: &[&str]| {
            let names = names.iter().map(|name| Arc::from(*name)).collect();
            entailment(&Labels { names, scores: ScoreFunction::Softmax })
        };
        assert_eq!(named(&["contradiction", "neutral", "ENTAILMENT"]), (2, 0));
        assert_eq!(named(&["entailment", "neutral", "contradiction"]), (0, 2));
        assert_eq!(named(&["LABEL_0", "LABEL_1"]), (1, 0));
    }

    #[test]
    fn a_hypothesis_has_one_place_for_its_label() {
        assert_eq!(hypothesis("This is {}.", "sport").unwrap(), "This is sport.");
        assert!(hypothesis("This is sport.", "sport").is_err());
        assert!(hypothesis("{} and {}", "sport").is_err());
    }

    #[test]
    fn cosines_are_of_angles_and_zero_has_none() {
        let vectors =
            [vec![2.0, 0.0], vec![0.5, 0.0], vec![0.0, 3.0], vec![-1.0, 0.0], vec![0.0; 2]];
        assert_eq!(cosines(&vectors), [1.0, 0.0, -1.0, 0.0]);
        assert!(cosines(&[]).is_empty());
    }
}
