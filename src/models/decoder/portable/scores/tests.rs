//! Tiles of any size, over blocks that lie anywhere, against sums as they are defined.

use candle_core::Device;
use roundhouse_engine::{BlockId, KvSpec};

use super::*;
use crate::attention::Span;
use crate::decoder::portable::places::Bounds;
use crate::kv::KvDtype;

const HEADS: Heads = Heads { heads: 4, kv_heads: 2, head_dim: 8 };

/// Numbers that repeat late.
fn number(seed: usize) -> f32 {
    let mixed = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (mixed % 2001) as f32 / 1000.0 - 1.0
}

/// One head's numbers at a position of a sequence: of queries, keys or values.
fn head(kind: usize, sequence: usize, position: usize, head: usize) -> Vec<f32> {
    let seed = ((kind * 7 + sequence) * 4096 + position) * 64 + head * 8;
    (0..HEADS.head_dim).map(|dim| number(seed + dim)).collect()
}

fn rows(kinds: &[(usize, usize)], tokens: &[(usize, usize)]) -> Tensor {
    let heads: usize = kinds.iter().map(|(_, heads)| heads).sum();
    let numbers: Vec<f32> = (tokens.iter())
        .flat_map(|&(sequence, position)| {
            kinds.iter().flat_map(move |&(kind, heads)| {
                (0..heads).flat_map(move |at| head(kind, sequence, position, at))
            })
        })
        .collect();
    Tensor::from_vec(numbers, (tokens.len(), heads, HEADS.head_dim), &Device::Cpu).unwrap()
}

/// What the token at a position sees, one head at a time.
fn defined(
    sequence: usize,
    position: usize,
    (cap, window, sinks): (Option<f32>, Option<usize>, &[f32]),
) -> Vec<f32> {
    let from = window.map_or(0, |window| (position + 1).saturating_sub(window));
    let mut out = Vec::new();
    for at in 0..HEADS.heads {
        let of = at / (HEADS.heads / HEADS.kv_heads);
        let query = head(0, sequence, position, at);
        let scores = (from..=position).map(|key| {
            let key = head(1, sequence, key, of);
            let score: f32 = query.iter().zip(key).map(|(a, b)| a * b).sum();
            cap.map_or(score, |cap| cap * (score / cap).tanh())
        });
        let weights: Vec<f32> = scores.map(f32::exp).collect();
        let sink = sinks.get(at).map_or(0.0, |sink| sink.exp());
        let sum = weights.iter().sum::<f32>() + sink;
        out.extend((0..HEADS.head_dim).map(|dim| {
            let values = (from..=position).map(|key| head(2, sequence, key, of)[dim]);
            values.zip(&weights).map(|(value, weight)| value * weight).sum::<f32>() / sum
        }));
    }
    out
}

#[test]
fn tiles_of_any_size_give_what_is_defined_wherever_blocks_lie() {
    let kv = KvSpec::whole(16, 4 * 16);
    let kv = KvSpec { chunk: 4, floor: 1, ..kv };
    // Sequences of several lengths; blocks of each in several chunks, out of order.
    let lengths = [1, 17, 90, 33, 64, 5];
    let blocks: Vec<Vec<BlockId>> = (0..lengths.len())
        .map(|sequence| (0..6).map(|at| BlockId(((sequence * 6 + at) * 11 % 64) as u32)).collect())
        .collect();
    for (scores, keys) in [(1, 1), (3000, 2000), (1 << 24, 1 << 24)] {
        let of_heads: Vec<f32> = (0..HEADS.heads).map(|at| at as f32 - 1.5).collect();
        let all = Tensor::from_slice(&of_heads, HEADS.heads, &Device::Cpu).unwrap();
        for (cap, window, has_sinks) in [
            (None, None, false),
            (Some(0.5), Some(20), false),
            (None, Some(1), true),
            (None, None, true),
        ] {
            let mut kept = Kept::new((HEADS, 2), &kv, KvDtype::F32, &Device::Cpu);
            // The first half of each in one step, then the rest but one, then the last of all.
            for step in 0..3 {
                let cut = |length: usize| [0, length / 2, length - 1, length];
                let ranges =
                    lengths.iter().map(|length| cut(*length)[step]..cut(*length)[step + 1]);
                let (mut spans, mut tokens) = (Vec::new(), Vec::new());
                for (sequence, range) in ranges.enumerate().filter(|(_, it)| !it.is_empty()) {
                    let used = &blocks[sequence][..range.end.div_ceil(16)];
                    let (first, count) = (tokens.len(), range.len());
                    tokens.extend(range.clone().map(|position| (sequence, position)));
                    spans.push(Span { first, tokens: count, position: range.start, blocks: used });
                }
                kept.begin(&spans).unwrap();
                let bounds = Bounds { heads: HEADS, scores, keys };
                let to = (&kept, &Device::Cpu);
                let places = Places::of(&spans, &[None, window], bounds, to).unwrap();
                let kinds = [(1, HEADS.kv_heads), (2, HEADS.kv_heads)];
                kept.write(1, &places, &rows(&kinds, &tokens)).unwrap();
                let sinks = has_sinks.then_some(&all);
                let of = Attention { heads: HEADS, cap, sinks, layer: 1, window: 1 };
                let queries = rows(&[(0, HEADS.heads)], &tokens);
                let got = attend(of, &queries, &places, &kept).unwrap().to_vec2::<f32>().unwrap();
                for (got, (sequence, position)) in got.iter().zip(&tokens) {
                    let sinks = if has_sinks { &of_heads[..] } else { &[] };
                    let want = defined(*sequence, *position, (cap, window, sinks));
                    for (got, want) in got.iter().zip(want) {
                        assert!((got - want).abs() < 1e-5, "{sequence} {position}: {got} {want}");
                    }
                }
                assert_eq!(got.len(), tokens.len());
            }
        }
    }
}
