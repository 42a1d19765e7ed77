//! Batching means one matmul per projection and step, whatever the number of sequences.

use crate::support::{decoders, dir, expected, open, row, served, settings, step, whole};
use roundhouse_engine::{ModelRunner, Row};
use roundhouse_models::matmul_calls;
use serde_json::Value;

/// The cases with sparse layers.
const EXPERTS: [&str; 8] = [
    "mixtral",
    "qwen3-moe-dense-layer",
    "qwen3-moe-unnormed",
    "olmoe-limits",
    "qwen2-moe-shared",
    "gpt-oss",
    "granite-moe",
    "granite-moe-shared",
];

fn calls(runner: &mut dyn ModelRunner, rows: Vec<Row>) -> u64 {
    let before = matmul_calls();
    let outputs = rows.len();
    assert_eq!(step(runner, rows).len(), outputs);
    matmul_calls() - before
}

/// Sixteen lengths, from one token to a few blocks.
fn ragged() -> impl Iterator<Item = (usize, Vec<u32>)> {
    (0..16).map(|index| (index, (0..1 + index as u32 * 2).map(|at| at + 3).collect()))
}

#[test]
fn a_decoder_step_needs_as_many_matmuls_for_sixteen_sequences_as_for_one() {
    // Of experts those are multiplied with that some token uses.
    for case in decoders().into_iter().filter(|case| !EXPERTS.contains(&case.as_str())) {
        decoder_steps_need_as_many(&case);
    }
}

fn decoder_steps_need_as_many(case: &str) {
    let mut runner = open(case, &served(&expected(case))).runner;
    let one = calls(&mut *runner, vec![row(0, 0, &[5, 6, 7])]);
    let prefill = ragged().map(|(index, tokens)| row(index, 0, &tokens)).collect();
    let prefill = calls(&mut *runner, prefill);
    let decode = ragged().map(|(index, tokens)| row(index, tokens.len(), &[9])).collect();
    let decode = calls(&mut *runner, decode);
    let lengths: Vec<usize> = ragged().map(|(_, tokens)| tokens.len()).collect();
    let mixed = ragged()
        .map(|(index, tokens)| match index % 2 {
            0 => row(index, lengths[index] + 1, &[9]),
            _ => row(index, 0, &tokens),
        })
        .collect();
    let mixed = calls(&mut *runner, mixed);
    // Four projections a layer, and the head.
    let config: Value =
        serde_json::from_slice(&std::fs::read(dir(case).join("config.json")).unwrap()).unwrap();
    let config = config.get("text_config").unwrap_or(&config);
    let layers = config.get("num_hidden_layers").or(config.get("n_layer")).unwrap();
    let want = 4 * layers.as_u64().unwrap() + 1;
    assert_eq!([one, prefill, decode, mixed], [want; 4], "{case}");
}

#[test]
fn a_step_multiplies_with_each_expert_that_is_used_once_whatever_the_sequences() {
    let each: &[u64] = &[5; 3];
    let layers: [&[u64]; 8] = [each, &[6, 0, 6], &[0, 4, 0], each, &[5, 0, 5], each, each, each];
    for (case, layers) in EXPERTS.into_iter().zip(layers) {
        let mut runner = open(case, &served(&expected(case))).runner;
        // Queries, keys and values, what the attention gives, and a dense block; of a sparse one the
        // router, two for each expert, and two for that of all tokens, whose share one has a third for.
        let shared = match case {
            "qwen2-moe-shared" => 3,
            "granite-moe-shared" => 2,
            _ => 0,
        };
        let fewest = |used: u64| {
            let block = |experts: &u64| if *experts == 0 { 2 } else { 1 + 2 * used + shared };
            1 + layers.iter().map(|experts| 2 + block(experts)).sum::<u64>()
        };
        let each = |it: &u64| if *it == 0 { 4 } else { 3 + 2 * it + shared };
        let all = 1 + layers.iter().map(each).sum::<u64>();
        let used = if case == "qwen3-moe-dense-layer" { 3 } else { 2 };
        let one = calls(&mut *runner, vec![row(0, 0, &[5])]);
        assert_eq!(one, fewest(used), "{case}");
        let prefill = ragged().map(|(index, tokens)| row(index, 0, &tokens)).collect();
        assert_eq!(calls(&mut *runner, prefill), all, "{case}: 256 tokens use all of them");
    }
}

#[test]
fn an_encoder_step_needs_as_many_matmuls_for_sixteen_sequences_as_for_one() {
    // Two layers of four projections; a classifier's pooler and classes.
    for (case, want) in [("bert-plain", 8), ("bert-single-label", 10)] {
        let mut runner = open(case, &settings()).runner;
        let one = calls(&mut *runner, vec![whole(&[2, 9, 3])]);
        let many = ragged().map(|(_, tokens)| whole(&tokens)).collect();
        let many = calls(&mut *runner, many);
        assert_eq!([one, many], [want; 2], "{case}");
    }
}
