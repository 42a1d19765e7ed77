//! The kernel against the textbook, in f64.

use roundhouse_engine::KvSpec;

use super::*;
use crate::rope::{RopeConfig, RopeScaling};

/// Numbers that look random and are the same everywhere.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 * 4.0 - 2.0
    };
    (0..count).map(next).collect()
}

fn rope(dims: usize) -> Rope {
    let config = RopeConfig { theta: 10_000.0, dims, scaling: RopeScaling::None, factor: 1.0 };
    Rope::new(&config, 64)
}

/// Softmax attention of one query head over keys `[keys, head_dim]`, in f64.
fn textbook(scores: Scores, query: &[f32], keys: &[&[f32]], values: &[&[f32]]) -> Vec<f64> {
    let dot = |key: &&[f32]| -> f64 {
        let sum: f64 = query.iter().zip(*key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let score = sum * f64::from(scores.scale);
        scores.cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
    };
    let weights: Vec<f64> = keys.iter().map(|key| dot(key).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..query.len())
        .map(|d| weights.iter().zip(values).map(|(w, v)| w * f64::from(v[d])).sum::<f64>() / total)
        .collect()
}

/// The largest difference between packed results and the textbook's. `causal`: what becomes of
/// scores where tokens see no later ones.
fn worst(
    heads: Heads,
    spans: &[Span<'_>],
    qkv: &[f32],
    out: &[f32],
    causal: Option<Scores>,
) -> f64 {
    let (width, dim) = (heads.packed_width(), heads.head_dim);
    let mut worst = 0.0f64;
    for span in spans {
        for token in 0..span.tokens {
            for head in 0..heads.heads {
                let kv = head / heads.group();
                let seen = match causal {
                    Some(Scores { window: Some(window), .. }) => {
                        (token + 1).saturating_sub(window)..token + 1
                    }
                    Some(_) => 0..token + 1,
                    None => 0..span.tokens,
                };
                let row = |t: usize| &qkv[(span.first + t) * width..][..width];
                let part = |t: usize, start: usize| &row(t)[start..start + dim];
                let key_start = heads.query_width() + kv * dim;
                let keys: Vec<&[f32]> = seen.clone().map(|t| part(t, key_start)).collect();
                let values: Vec<&[f32]> =
                    seen.map(|t| part(t, key_start + heads.kv_width())).collect();
                let scores = causal.unwrap_or(Scores::plain(heads));
                let exact = textbook(scores, part(token, head * dim), &keys, &values);
                let start = (span.first + token) * heads.query_width() + head * dim;
                for (a, b) in out[start..start + dim].iter().zip(exact) {
                    worst = worst.max((f64::from(*a) - b).abs());
                }
            }
        }
    }
    worst
}

const SHAPES: [Heads; 4] = [
    Heads { heads: 4, kv_heads: 4, head_dim: 16 },
    Heads { heads: 6, kv_heads: 2, head_dim: 20 },
    Heads { heads: 5, kv_heads: 1, head_dim: 6 },
    Heads { heads: 8, kv_heads: 2, head_dim: 64 },
];

#[test]
fn packed_sequences_attend_to_themselves_alone_in_both_directions() {
    for heads in SHAPES {
        let mut spans = Vec::new();
        let mut first = 0;
        for tokens in [1, 2, 15, 16, 17, 50] {
            spans.push(Span { first, tokens, position: 0, blocks: &[] });
            first += tokens;
        }
        let qkv = numbers(first * heads.packed_width(), 7);
        let out = bidirectional(heads, &spans, &qkv);
        let worst = worst(heads, &spans, &qkv, &out, None);
        assert!(worst < 2e-6, "{heads:?}: {worst}");
    }
}

#[test]
fn chunks_through_scattered_blocks_equal_whole_sequences() {
    for heads in SHAPES {
        chunks_equal_whole(heads, Scores::plain(heads));
    }
}

#[test]
fn windows_and_caps_are_those_of_the_textbook_whatever_the_chunks() {
    for heads in SHAPES {
        for window in [1, 5, 16, 17, 40] {
            let scores = Scores { scale: 0.4, cap: Some(3.0), window: Some(window) };
            chunks_equal_whole(heads, scores);
        }
    }
}

fn chunks_equal_whole(heads: Heads, scores: Scores) {
    let width = heads.packed_width();
    let rope = rope(heads.head_dim);
    let causal = Causal { heads, scores, rope: Some(&rope), layer: 1 };
    let blocks = [[9, 2, 30, 5].map(BlockId), [0, 17, 3, 8].map(BlockId)];
    let lengths = [50, 33];
    let whole: Vec<Vec<f32>> = (0..2).map(|s| numbers(lengths[s] * width, 11 + s as u32)).collect();
    let mut pool = KvPool::new(heads, 2, &KvSpec::whole(BLOCK_TOKENS, 32));
    pool.touch(&blocks[0]);
    pool.touch(&blocks[1]);

    let mut outs = [Vec::new(), Vec::new()];
    for chunk in [[1, 7], [20, 1], [28, 24], [1, 1]] {
        let done = [outs[0].len(), outs[1].len()].map(|n| n / heads.query_width());
        let mut qkv = Vec::new();
        for s in 0..2 {
            qkv.extend_from_slice(&whole[s][done[s] * width..(done[s] + chunk[s]) * width]);
        }
        let spans = [
            Span { first: 0, tokens: chunk[0], position: done[0], blocks: &blocks[0] },
            Span { first: chunk[0], tokens: chunk[1], position: done[1], blocks: &blocks[1] },
        ];
        let out = causal.attend(&mut pool, &spans, &mut qkv);
        let (first, second) = out.split_at(chunk[0] * heads.query_width());
        outs[0].extend_from_slice(first);
        outs[1].extend_from_slice(second);
    }

    for s in 0..2 {
        let mut rotated = whole[s].clone();
        let positions: Vec<usize> = (0..lengths[s]).collect();
        let turned = heads.query_width() + heads.kv_width();
        rope.rotate(&mut rotated, (width, turned, heads.head_dim), &positions);
        let span = Span { first: 0, tokens: lengths[s], position: 0, blocks: &[] };
        let worst = worst(heads, &[span], &rotated, &outs[s], Some(scores));
        assert!(worst < 2e-6, "{heads:?} {scores:?}: {worst}");
    }
}

#[test]
fn what_an_earlier_sequence_left_in_a_block_is_never_read() {
    let heads = Heads { heads: 2, kv_heads: 1, head_dim: 16 };
    let rope = rope(16);
    let blocks = [BlockId(0)];
    let mut pool = KvPool::new(heads, 1, &KvSpec::whole(BLOCK_TOKENS, 1));
    pool.touch(&blocks);
    for slot in 0..BLOCK_TOKENS {
        pool.write(0, (BlockId(0), slot), &[f32::NAN; 16], &[f32::NAN; 16]);
    }
    let mut qkv = numbers(3 * heads.packed_width(), 3);
    let spans = [Span { first: 0, tokens: 3, position: 0, blocks: &blocks }];
    let causal = Causal { heads, scores: Scores::plain(heads), rope: Some(&rope), layer: 0 };
    let out = causal.attend(&mut pool, &spans, &mut qkv);
    assert!(out.iter().all(|x| x.is_finite()));
}
