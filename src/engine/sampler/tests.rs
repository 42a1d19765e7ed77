use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::constraint::{Allowed, Unmet};
use crate::testing::CountingConstraint;

/// Expected values below are computed from the formulas in Python's double precision.
const LOGITS: [f32; 5] = [2.0, 1.0, 0.0, -1.0, 0.5];

fn spec(sampling: Sampling) -> GenerateSpec {
    GenerateSpec {
        prompt: vec![0, 3],
        max_tokens: 100,
        min_tokens: 0,
        stop_tokens: Vec::new(),
        sampling,
        top_logprobs: 0,
        prompt_logprobs: None,
        prompt_ranks: false,
        logit_bias: Vec::new(),
    }
}

fn random(temperature: f32) -> Sampling {
    Sampling { temperature, seed: 17, ..Sampling::GREEDY }
}

/// How often each id is drawn over many positions.
fn frequencies(sampling: Sampling, logits: &[f32]) -> BTreeMap<u32, f64> {
    const DRAWS: usize = 20_000;
    let mut counts = BTreeMap::new();
    for position in 0..DRAWS {
        *counts.entry(draw(logits, &sampling, position).unwrap()).or_insert(0.0) += 1.0;
    }
    counts.values_mut().for_each(|count| *count /= DRAWS as f64);
    counts
}

#[test]
fn the_likeliest_is_chosen_at_temperature_zero_and_ties_go_to_the_lower_id() {
    let mut sampler = Sampler::new(&spec(Sampling::GREEDY), None);
    assert_eq!(sampler.sample(&LOGITS, 2).unwrap().id, 0);
    assert_eq!(sampler.sample(&[-1.0, 3.0, 3.0, 0.0, 3.0], 3).unwrap().id, 1);
}

#[test]
fn log_probabilities_are_the_models_own() {
    let sampling = Sampling { repetition_penalty: 2.5, top_k: 1, ..random(0.3) };
    let mut sampler = Sampler::new(&GenerateSpec { top_logprobs: 3, ..spec(sampling) }, None);
    let choice = sampler.sample(&LOGITS, 2).unwrap();
    // Token 0 falls to 0.8 by the penalty, so that 1 is chosen; the report knows no penalty.
    assert_eq!(choice.id, 1);
    assert!((choice.logprob - -1.574_437_9).abs() < 1e-5, "{}", choice.logprob);
    let expected = [(0, -0.574_437_9), (1, -1.574_437_9), (4, -2.074_437_9)];
    for ((id, logprob), (wanted, value)) in choice.top.iter().zip(expected) {
        assert_eq!(*id, wanted);
        assert!((logprob - value).abs() < 1e-5, "{id}: {logprob}");
    }
    assert_eq!(choice.top.len(), 3);
}

#[test]
fn penalties_follow_their_formulas() {
    let sampling = Sampling {
        repetition_penalty: 1.3,
        presence_penalty: 0.4,
        frequency_penalty: 0.25,
        ..Sampling::GREEDY
    };
    let mut sampler = Sampler::new(&spec(sampling), None);
    for id in [1, 1, 4] {
        sampler.remember(id);
    }
    let mut scores = LOGITS;
    sampler.penalise(&mut scores);
    // 0 and 3 are in the prompt, 1 was generated twice, 4 once, 2 never.
    let expected = [1.538_461_5, -0.130_769_2, 0.0, -1.3, -0.265_384_6];
    for (score, wanted) in scores.iter().zip(expected) {
        assert!((score - wanted).abs() < 1e-6, "{scores:?}");
    }
}

#[test]
fn draws_follow_the_filtered_distribution() {
    let filtered =
        |temperature, top_k, top_p, min_p| Sampling { top_k, top_p, min_p, ..random(temperature) };
    let cases: [(Sampling, &[(u32, f64)]); 6] = [
        (
            filtered(0.7, 0, 1.0, 0.0),
            &[(0, 0.700_198), (1, 0.167_803), (4, 0.082_147), (2, 0.040_214), (3, 0.009_637)],
        ),
        (filtered(1.5, 3, 1.0, 0.0), &[(0, 0.531_548), (1, 0.272_906), (4, 0.195_546)]),
        (filtered(1.0, 0, 0.8, 0.0), &[(0, 0.628_532), (1, 0.231_224), (4, 0.140_244)]),
        (filtered(1.0, 0, 1.0, 0.3), &[(0, 0.731_059), (1, 0.268_941)]),
        // Token 4 is within the nucleus of the model's distribution, not of what top_k left.
        (filtered(1.0, 3, 0.85, 0.0), &[(0, 0.731_059), (1, 0.268_941)]),
        (filtered(1.2, 4, 0.9, 0.2), &[(0, 0.581_023), (1, 0.252_511), (4, 0.166_466)]),
    ];
    for (sampling, expected) in cases {
        let seen = frequencies(sampling, &LOGITS);
        let ids: Vec<_> = expected.iter().map(|(id, _)| *id).collect();
        assert!(seen.keys().all(|id| ids.contains(id)), "{sampling:?}: {seen:?}");
        for (id, probability) in expected {
            // Four standard deviations; the seed is fixed, so this cannot flicker.
            let tolerance = 4.0 * (probability * (1.0 - probability) / 20_000.0).sqrt();
            let share = seen.get(id).copied().unwrap_or(0.0);
            assert!((share - probability).abs() <= tolerance, "{sampling:?} {id}: {share}");
        }
    }
}

#[test]
fn a_choice_depends_on_seed_and_position_alone() {
    let draws = |seed: u64| -> Vec<u32> {
        let sampling = Sampling { seed, ..random(1.0) };
        (0..64).map(|position| draw(&LOGITS, &sampling, position).unwrap()).collect()
    };
    assert_eq!(draws(1), draws(1));
    assert_ne!(draws(1), draws(2));
    let backwards: Vec<u32> = (0..64)
        .rev()
        .map(|position| draw(&LOGITS, &Sampling { seed: 1, ..random(1.0) }, position).unwrap())
        .collect();
    assert_eq!(draws(1), backwards.into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn the_nucleus_of_a_large_vocabulary_is_that_of_a_full_sort() {
    let logits: Vec<f32> =
        (0..5_000_u32).map(|id| (id.wrapping_mul(2_654_435_761) % 997) as f32 / 400.0).collect();
    let weight = |c: &Candidate| f64::from(c.score).exp();
    for top_p in [0.01, 0.3, 0.9, 0.999] {
        let mut quick = candidates(&logits);
        keep_nucleus(&mut quick, top_p, weight);
        let mut sorted = candidates(&logits);
        sorted.sort_by(likelier);
        let total: f64 = sorted.iter().map(weight).sum();
        let mut reached = 0.0;
        let smallest = sorted.iter().take_while(|c| {
            let wanted = reached < top_p * total;
            reached += weight(c);
            wanted
        });
        let expected: Vec<u32> = smallest.map(|c| c.id).collect();
        assert_eq!(quick.iter().map(|c| c.id).collect::<Vec<_>>(), expected, "{top_p}");
    }
}

#[test]
fn stop_tokens_wait_for_min_tokens() {
    let request =
        GenerateSpec { min_tokens: 2, stop_tokens: vec![0, 77], ..spec(Sampling::GREEDY) };
    let mut sampler = Sampler::new(&request, None);
    let chosen: Vec<_> =
        (2..5).map(|position| sampler.sample(&LOGITS, position).unwrap()).collect();
    assert_eq!(chosen.iter().map(|c| c.id).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(chosen.iter().map(|c| c.stop).collect::<Vec<_>>(), [false, false, true]);
}

#[test]
fn a_mask_over_everything_is_an_error() {
    let request = GenerateSpec { min_tokens: 1, stop_tokens: vec![0, 1], ..spec(random(1.0)) };
    let outcome = Sampler::new(&request, None).sample(&[1.0, 2.0], 7);
    assert_eq!(outcome, Err(Error::NothingToChoose { position: 7 }));
}

#[test]
fn logits_that_are_not_numbers_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let outcome = Sampler::new(&spec(random(1.0)), None).sample(&[1.0, bad, 0.0], 5);
        assert_eq!(outcome, Err(Error::NotFinite { position: 5 }));
    }
}

#[test]
fn extreme_parameters_choose_a_token() {
    let extremes = [
        random(f32::MIN_POSITIVE),
        random(f32::MAX),
        Sampling { top_p: f32::MIN_POSITIVE, min_p: 1.0, top_k: 1, ..random(1.0) },
        Sampling {
            repetition_penalty: f32::MAX,
            presence_penalty: f32::MAX,
            frequency_penalty: f32::MAX,
            ..random(1.0)
        },
        Sampling {
            repetition_penalty: f32::MIN_POSITIVE,
            frequency_penalty: f32::MIN,
            ..random(1.0)
        },
    ];
    for sampling in extremes {
        let mut sampler = Sampler::new(&spec(sampling), None);
        for position in 2..20 {
            let choice = sampler.sample(&[f32::MAX, -3.0, f32::MIN, 0.0, 1.0], position).unwrap();
            assert!(choice.id < 5 && !choice.logprob.is_nan());
        }
    }
}

#[test]
fn a_bias_is_added_before_penalties_and_reported_nowhere() {
    let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
    // Token 3 is of the prompt: (-1 + 6) / 2 = 2.5 is the highest; were the penalty first, it
    // would be -1 * 2 + 6 = 4. Token 4 gets 0.5 + 2.25 = 2.75 and wins over 2.5, not over 4.
    let logit_bias = vec![(3, 6.0), (4, 2.25), (0, -100.0)];
    let request = GenerateSpec { logit_bias, top_logprobs: 1, ..spec(sampling) };
    let choice = Sampler::new(&request, None).sample(&LOGITS, 2).unwrap();
    assert_eq!(choice.id, 4);
    assert!((choice.logprob - -2.074_437_9).abs() < 1e-5, "{}", choice.logprob);
    assert_eq!(choice.top[0].0, 0);
}

#[test]
fn a_bias_shifts_the_odds_by_its_exponential() {
    let request = GenerateSpec { logit_bias: vec![(1, 1.5), (2, -50.0)], ..spec(random(1.0)) };
    let mut counts = BTreeMap::new();
    for position in 0..20_000 {
        let mut sampler = Sampler::new(&request, None);
        *counts.entry(sampler.sample(&LOGITS, position).unwrap().id).or_insert(0.0) += 1.0;
    }
    let weights: [f64; 5] = [2.0, 2.5, -50.0, -1.0, 0.5].map(f64::exp);
    for (id, weight) in (0..).zip(weights) {
        let share = counts.get(&id).copied().unwrap_or(0.0) / 20_000.0;
        assert!((share - weight / weights.iter().sum::<f64>()).abs() < 0.015, "{id}: {share}");
    }
}

/// What a constrained sampler chooses, greedily, and how it ended.
fn constrained(request: &GenerateSpec, length: usize) -> Vec<(u32, bool, bool)> {
    let constraint = CountingConstraint::new(0, 5, length);
    let mut sampler = Sampler::new(request, Some(Box::new(constraint)));
    let mut chosen = Vec::new();
    for position in 2..40 {
        let choice = sampler.sample(&LOGITS, position).unwrap();
        chosen.push((choice.id, choice.stop, choice.complete));
        if choice.stop || choice.complete {
            break;
        }
    }
    chosen
}

#[test]
fn a_constraint_decides_before_the_logits_do() {
    // Of 1 and 2, of 2 and 3, of 3 and 4, of 0 and 1.
    let free = |id| (id, false, false);
    assert_eq!(
        constrained(&spec(Sampling::GREEDY), 4),
        [free(1), free(2), free(4), (0, false, true)]
    );
    // The likeliest is a stop token, and may come only where the constraint may end.
    let request = GenerateSpec { stop_tokens: vec![0], min_tokens: 1, ..spec(Sampling::GREEDY) };
    assert_eq!(constrained(&request, 40), [free(1), free(2), free(4), (0, true, false)]);
    let request = GenerateSpec { min_tokens: 4, ..request };
    assert_eq!(constrained(&request, 40)[3..], [free(1), free(2), free(4), (0, true, false)]);
}

#[derive(Debug)]
struct Ends;

impl Constraint for Ends {
    fn allowed(&mut self) -> Result<Allowed<'_>, Unmet> {
        Ok(Allowed { tokens: &[], may_end: true })
    }
    fn accept(&mut self, token: u32) -> Result<Progress, Unmet> {
        Err(Unmet(format!("{token} after the end")))
    }
}

#[test]
fn a_constraint_that_leaves_nothing_but_the_end_ends_before_min_tokens() {
    let request = GenerateSpec { stop_tokens: vec![3], min_tokens: 9, ..spec(random(1.0)) };
    let choice = Sampler::new(&request, Some(Box::new(Ends))).sample(&LOGITS, 2).unwrap();
    assert_eq!((choice.id, choice.stop), (3, true));
    let endless = GenerateSpec { stop_tokens: Vec::new(), ..request };
    let outcome = Sampler::new(&endless, Some(Box::new(Ends))).sample(&LOGITS, 2);
    assert_eq!(outcome, Err(Error::NothingToChoose { position: 2 }));
}

proptest! {
    /// Few values, so that many tokens are equally likely; zeros of both signs.
    #[test]
    fn a_rank_is_the_place_among_all_candidates(
        logits in prop::collection::vec(prop::sample::select(&[-1.5, -0.0, 0.0, 2.0, 3.5][..]), 1..40),
    ) {
        let mut all = candidates(&logits);
        all.sort_unstable_by(likelier);
        for (place, candidate) in (1..).zip(all) {
            prop_assert_eq!(rank(&logits, candidate.id), place);
        }
    }

    #[test]
    fn a_mask_keeps_what_its_bits_say(width in 1..140_usize, bits in prop::collection::vec(any::<u32>(), 0..6)) {
        let mut scores = vec![1.0; width];
        keep(&mut scores, &bits);
        for (id, score) in scores.iter().enumerate() {
            let set = bits.get(id / 32).is_some_and(|word| word & (1 << (id % 32)) != 0);
            prop_assert_eq!(*score == 1.0, set);
        }
    }
}
