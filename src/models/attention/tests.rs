//! The kernel against the textbook, in f64.

use half::{bf16, f16};
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
    let (theta, scaling) = (10_000.0, RopeScaling::None);
    let config = RopeConfig { theta, dims, scaling, factor: 1.0, neighbours: false };
    Rope::new(&config, 64)
}

/// Softmax attention of one query head over keys `[keys, head_dim]`, in f64.
/// `sink`: the score of a key of nothing.
fn textbook(
    (scores, sink): (Scores<'_>, Option<f32>),
    query: &[f32],
    keys: &[&[f32]],
    values: &[&[f32]],
) -> Vec<f64> {
    let dot = |key: &&[f32]| -> f64 {
        let sum: f64 = query.iter().zip(*key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let score = sum * f64::from(scores.scale);
        scores.cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
    };
    let weights: Vec<f64> = keys.iter().map(|key| dot(key).exp()).collect();
    let sink = sink.map_or(0.0, |sink| f64::from(sink).exp());
    let total: f64 = weights.iter().sum::<f64>() + sink;
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
    causal: Option<Scores<'_>>,
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
                let scores = (scores, scores.sinks.get(head).copied());
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
        let out = whole_rows((heads, Scores::plain(heads)), Sight::All, &spans, &qkv);
        let worst = worst(heads, &spans, &qkv, &out, None);
        assert!(worst < 2e-6, "{heads:?}: {worst}");
    }
}

#[test]
fn chunks_through_scattered_blocks_equal_whole_sequences() {
    for heads in SHAPES {
        chunks_equal_whole::<f32>(heads, Scores::plain(heads), |number| number);
    }
}

#[test]
fn attention_over_halves_is_the_textbooks_over_rounded_keys_and_values() {
    for heads in SHAPES {
        let plain = Scores::plain(heads);
        for scores in [plain, Scores { window: Some(40), ..plain }] {
            chunks_equal_whole::<f16>(heads, scores, |it| f16::from_f32(it).to_f32());
            chunks_equal_whole::<bf16>(heads, scores, |it| bf16::from_f32(it).to_f32());
        }
    }
}

#[test]
fn windows_and_caps_are_those_of_the_textbook_whatever_the_chunks() {
    for heads in SHAPES {
        for window in [1, 5, 16, 17, 40] {
            let scores = Scores { scale: 0.4, cap: Some(3.0), window: Some(window), sinks: &[] };
            chunks_equal_whole::<f32>(heads, scores, |number| number);
        }
    }
}

#[test]
fn sinks_are_in_the_softmax_of_their_heads_and_give_nothing() {
    // Some next to nothing, some above all scores.
    let sinks: Vec<f32> = numbers(8, 3).iter().map(|number| 9.0 * number).collect();
    for heads in SHAPES {
        let plain = Scores { sinks: &sinks[..heads.heads], ..Scores::plain(heads) };
        for scores in [plain, Scores { window: Some(17), ..plain }] {
            chunks_equal_whole::<f32>(heads, scores, |number| number);
        }
        let qkv = numbers(40 * heads.packed_width(), 5);
        let span = [Span { first: 0, tokens: 40, position: 0, blocks: &[] }];
        let out = whole_rows((heads, plain), Sight::Before(None), &span, &qkv);
        let worst = worst(heads, &span, &qkv, &out, Some(plain));
        assert!(worst < 2e-6, "{heads:?}: {worst}");
    }
}

/// `rounded`: what becomes of a key's or value's number that is kept.
fn chunks_equal_whole<K: Kept>(heads: Heads, scores: Scores<'_>, rounded: fn(f32) -> f32) {
    let width = heads.packed_width();
    let rope = rope(heads.head_dim);
    let causal = Causal { heads, scores, rope: Some(&rope), layer: 1 };
    let blocks = [[9, 2, 30, 5].map(BlockId), [0, 17, 3, 8].map(BlockId)];
    let lengths = [50, 33];
    let whole: Vec<Vec<f32>> = (0..2).map(|s| numbers(lengths[s] * width, 11 + s as u32)).collect();
    let mut pool = Pool::<K>::new(heads, 2, &KvSpec::whole(BLOCK_TOKENS, 32));
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
        for row in rotated.chunks_exact_mut(width) {
            row[heads.query_width()..].iter_mut().for_each(|number| *number = rounded(*number));
        }
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
    let mut pool = Pool::<f32>::new(heads, 1, &KvSpec::whole(BLOCK_TOKENS, 1));
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

/// What one sequence of those tokens gives, some at a time.
fn in_chunks<K: Kept>(
    heads: Heads,
    scores: Scores<'_>,
    whole: &[f32],
    chunks: &[usize],
    threads: usize,
) -> Vec<f32> {
    let width = heads.packed_width();
    let tokens = whole.len() / width;
    // Scattered: seven and the number of blocks have no common factor.
    let count = tokens.div_ceil(BLOCK_TOKENS).next_multiple_of(7) + 1;
    let blocks: Vec<BlockId> = (0..count).map(|at| BlockId((at * 7 % count) as u32)).collect();
    let mut pool =
        Pool::<K>::new(heads, 1, &KvSpec::whole(BLOCK_TOKENS, count.next_power_of_two()));
    pool.touch(&blocks);
    let causal = Causal { heads, scores, rope: None, layer: 0 };
    let threads = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut out = Vec::new();
    let mut position = 0;
    for chunk in chunks.iter().cycle() {
        let chunk = (*chunk).min(tokens - position);
        if chunk == 0 {
            return out;
        }
        let mut qkv = whole[position * width..(position + chunk) * width].to_vec();
        let span = Span { first: 0, tokens: chunk, position, blocks: &blocks };
        out.extend(threads.install(|| causal.attend(&mut pool, &[span], &mut qkv)));
        position += chunk;
    }
    out
}

#[test]
fn thousands_of_keys_give_the_same_bits_whatever_the_chunks_and_the_threads() {
    let heads = Heads { heads: 3, kv_heads: 1, head_dim: 16 };
    // Sinks that are next to nothing, among the scores, and above them all; each is to count once.
    let sinks = [-20.0, 1.0, 20.0];
    for (window, sinks) in
        [(None, &[][..]), (Some(1500), &[]), (None, &sinks[..]), (Some(1500), &sinks)]
    {
        let scores = Scores { window, sinks, ..Scores::plain(heads) };
        let tokens = 2 * SEGMENT * BLOCK_TOKENS + 100;
        let whole = numbers(tokens * heads.packed_width(), 5);
        let all = in_chunks::<f32>(heads, scores, &whole, &[tokens], 3);
        let in_halves = in_chunks::<f16>(heads, scores, &whole, &[tokens], 3);
        for (chunks, threads) in [(vec![1000, 7, 1], 2), (vec![tokens - 1, 1], 1), (vec![333], 4)] {
            let got = in_chunks::<f32>(heads, scores, &whole, &chunks, threads);
            assert!(got == all, "{window:?} {sinks:?} {chunks:?}");
            let halves = in_chunks::<f16>(heads, scores, &whole, &chunks, threads);
            assert!(halves == in_halves, "{window:?} {sinks:?} {chunks:?} in f16");
        }
        let span = Span { first: 0, tokens, position: 0, blocks: &[] };
        let worst = worst(heads, &[span], &whole, &all, Some(scores));
        assert!(worst < 2e-6, "{window:?} {sinks:?}: {worst}");
    }
}

/// Prints how fast one layer's attention is: means something in a release build only, and with
/// `RAYON_NUM_THREADS` as many threads as there are cores.
#[test]
#[ignore = "prints figures"]
#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
fn figures() {
    let heads = Heads { heads: 9, kv_heads: 3, head_dim: 64 };
    let width = heads.packed_width();
    let mut pools =
        (Filled::<f32>::new(heads), Filled::<f16>::new(heads), Filled::<bf16>::new(heads));
    for tokens in [1, 8, 32, 512] {
        for position in [512, 1024, 2048, 4096, 8192] {
            let qkv = numbers(tokens * width, 9);
            // One after the other, so that what else runs meanwhile slows all of them.
            let mut best = [f64::MAX; 3];
            for _ in 0..15 {
                best[0] = best[0].min(pools.0.time(heads, &qkv, position));
                best[1] = best[1].min(pools.1.time(heads, &qkv, position));
                best[2] = best[2].min(pools.2.time(heads, &qkv, position));
            }
            let keys = (position + tokens / 2) as f64;
            let operations = 4.0 * keys * (tokens * heads.query_width()) as f64;
            for ((name, bytes), best) in
                [("f32", 8.0), ("f16", 4.0), ("bf16", 4.0)].iter().zip(best)
            {
                println!(
                    "{tokens:4} tokens after {position}, {name:4}: {:7.3} ms, {:6.1} GFLOP/s, {:5.1} GB/s once",
                    best * 1e3,
                    operations / best * 1e-9,
                    bytes * keys * heads.kv_width() as f64 / best * 1e-9
                );
            }
        }
    }
}

/// A pool with keys and values in every block of one sequence.
struct Filled<K> {
    pool: Pool<K>,
    blocks: Vec<BlockId>,
}

impl<K: Kept> Filled<K> {
    fn new(heads: Heads) -> Self {
        let blocks: Vec<BlockId> = (0..600).map(BlockId).collect();
        let mut pool = Pool::new(heads, 1, &KvSpec::whole(BLOCK_TOKENS, 1024));
        pool.touch(&blocks);
        for id in &blocks {
            for slot in 0..BLOCK_TOKENS {
                let row = numbers(2 * heads.kv_width(), id.0 * 16 + slot as u32);
                pool.write(0, (*id, slot), &row[..heads.kv_width()], &row[heads.kv_width()..]);
            }
        }
        Self { pool, blocks }
    }

    /// The seconds that attention of new tokens takes after so many.
    fn time(&mut self, heads: Heads, qkv: &[f32], position: usize) -> f64 {
        let causal = Causal { heads, scores: Scores::plain(heads), rope: None, layer: 0 };
        let mut qkv = qkv.to_vec();
        let tokens = qkv.len() / heads.packed_width();
        let span = Span { first: 0, tokens, position, blocks: &self.blocks };
        let began = std::time::Instant::now();
        causal.attend(&mut self.pool, &[span], &mut qkv);
        began.elapsed().as_secs_f64()
    }
}
