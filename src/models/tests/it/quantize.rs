//! Weights that are quantised while they are read.

use std::path::Path;

use roundhouse_models::{Cancel, LoadSettings, ModelPlan, Quantize, inspect, load, read_local};
use roundhouse_types::{Bytes, DeviceId};
use serde_json::{Value, json};

use crate::support::{
    LlamaCase, apart, decoders, dir, expected, open, plan, row, served, settings, step,
};

fn with(quantize: Quantize) -> LoadSettings {
    LoadSettings { quantize: Some(quantize), ..settings() }
}

fn formats(plan: &ModelPlan) -> Vec<(&'static str, &'static str)> {
    let mut formats: Vec<_> =
        plan.weights.iter().map(|share| (share.file_dtype, share.memory_dtype)).collect();
    formats.sort_unstable();
    formats
}

#[test]
fn eight_bits_keep_the_logits_near_and_take_a_quarter() {
    for case in decoders() {
        let want: LlamaCase = expected(&case);
        let settings = LoadSettings { quantize: Some(Quantize::Q8_0), ..served(&want) };
        let loaded = open(&case, &settings);
        assert_eq!(loaded.footprint.weights, plan(&case, &settings).footprint.weights, "{case}");
        let mut runner = loaded.runner;
        let mut worst = 0.0f32;
        let mut largest = 0.0f32;
        for (index, prompt) in want.prompts.iter().enumerate() {
            let got = step(&mut *runner, vec![row(index, 0, &prompt.ids)]);
            worst = worst.max(apart(&got[0], &prompt.last_logits));
            largest = prompt.last_logits.iter().fold(largest, |most, logit| most.max(logit.abs()));
        }
        // Eight bits are an error of at most 1/254 of the largest of 32 per weight, and per input.
        println!("{case}: {worst} of {largest}");
        assert!(worst > 0.0 && worst < 0.2 * largest, "{case}: {worst} of {largest}");
    }
}

/// What a GGUF file holds quantised, quantised by ourselves from its floats.
#[test]
fn four_bits_take_what_the_footprint_says_and_shapes_that_forbid_them_fall_back() {
    let folder = tempfile::tempdir().unwrap();
    write_llama(folder.path(), 256, 96, 64);
    let settings = with(Quantize::Q4K);
    let plan = inspect(&read_local(folder.path()).unwrap(), &settings).unwrap();
    // Rows of 256, rows of 96 (down) and vectors.
    assert_eq!(formats(&plan), [("f32", "f32"), ("f32", "q4_k"), ("f32", "q8_0")]);
    let loaded = load(folder.path(), &plan, DeviceId::Cpu, &Cancel::new()).unwrap();
    assert_eq!(loaded.footprint.weights, plan.footprint.weights);
    let said = ["model.layers.mlp.down_proj.weight (2 of them) has rows of 96 and gets q8_0"];
    assert_eq!(plan.fallbacks, said);
    let down = plan.weights.iter().find(|share| share.memory_dtype == "q8_0").unwrap();
    assert_eq!(down.bytes, Bytes(2 * (256 * 96 / 32 * 34 + 64)));
    let mut runner = loaded.runner;
    let got = step(&mut *runner, vec![row(0, 0, &[1, 2, 3])]);
    let wide = inspect(&read_local(folder.path()).unwrap(), &crate::support::settings()).unwrap();
    let mut wide = load(folder.path(), &wide, DeviceId::Cpu, &Cancel::new()).unwrap().runner;
    let want = step(&mut *wide, vec![row(0, 0, &[1, 2, 3])]);
    let largest = want[0].iter().fold(0.0f32, |most, logit| most.max(logit.abs()));
    let difference = apart(&got[0], &want[0]);
    assert!(difference > 0.0 && difference < 0.25 * largest, "{difference} of {largest}");
}

#[test]
fn rows_that_no_block_divides_stay_halves() {
    let case = "llama-rope-llama3"; // hidden 40
    let plan = plan(case, &with(Quantize::Q8_0));
    assert!(formats(&plan).contains(&("f32", "f16")), "{:?}", formats(&plan));
    let want: LlamaCase = expected(case);
    let mut runner = open(case, &with(Quantize::Q8_0)).runner;
    let got = step(&mut *runner, vec![row(0, 0, &want.prompts[4].ids)]);
    assert!(apart(&got[0], &want.prompts[4].last_logits) < 0.2);
}

#[test]
fn a_models_own_settings_go_before_the_operators() {
    let folder = tempfile::tempdir().unwrap();
    write_llama(folder.path(), 64, 64, 64);
    let memory = |settings: &LoadSettings| {
        let plan = inspect(&read_local(folder.path()).unwrap(), settings).unwrap();
        let loaded = load(folder.path(), &plan, DeviceId::Cpu, &Cancel::new()).unwrap();
        assert_eq!(loaded.footprint.weights, plan.footprint.weights);
        plan.weights[0].memory_dtype
    };
    assert_eq!(memory(&settings()), "f32");
    assert_eq!(memory(&with(Quantize::Q8_0)), "q8_0");
    std::fs::write(folder.path().join("roundhouse.toml"), "[model]\nquantize = \"none\"").unwrap();
    assert_eq!(memory(&with(Quantize::Q8_0)), "f32");
    std::fs::write(folder.path().join("roundhouse.toml"), "[model]\nquantize = \"q8_0\"").unwrap();
    assert_eq!(memory(&settings()), "q8_0");
}

#[test]
fn what_a_gguf_file_has_quantised_stays_and_only_its_floats_are_quantised() {
    let plan = plan("gguf-q4_0", &with(Quantize::Q8_0));
    let expected = [("f32", "f32"), ("q4_0", "q4_0"), ("q8_0", "q8_0")];
    assert_eq!(formats(&plan), expected);
    let plan = crate::support::plan("gguf-f16", &with(Quantize::Q8_0));
    assert_eq!(formats(&plan), [("f16", "q8_0"), ("f32", "f32")]);
    let want: LlamaCase = self::expected("gguf-f16");
    let mut runner = open("gguf-f16", &with(Quantize::Q8_0)).runner;
    let got = step(&mut *runner, vec![row(0, 0, &want.prompts[3].ids)]);
    assert!(apart(&got[0], &want.prompts[3].last_logits) < 0.5);
}

#[test]
fn encoders_are_quantised_too() {
    let settings = with(Quantize::Q8_0);
    let plan = plan("bert-mean-normalised", &settings);
    assert!(plan.weights.iter().any(|share| share.memory_dtype == "q8_0"), "{:?}", plan.weights);
    let want: crate::support::BertCase = expected("bert-mean-normalised");
    let loaded = open("bert-mean-normalised", &settings);
    assert_eq!(loaded.footprint.weights, plan.footprint.weights);
    let mut runner = loaded.runner;
    for input in &want.inputs {
        let got = step(&mut *runner, vec![crate::support::whole(&input.ids)]);
        let length = got[0].iter().map(|x| x * x).sum::<f32>().sqrt();
        let got: Vec<f32> = got[0].iter().map(|x| x / length).collect();
        let cosine: f32 = got.iter().zip(&input.embedding).map(|(a, b)| a * b).sum();
        let size = input.embedding.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!(cosine / size > 0.999, "{cosine}");
    }
}

#[test]
fn checkpoints_that_others_quantised_are_refused_by_their_method() {
    let refused = |quantization: Value| {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(dir("llama-mha")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["quantization_config"] = quantization;
        std::fs::write(&path, config.to_string()).unwrap();
        inspect(&read_local(folder.path()).unwrap(), &settings()).unwrap_err().to_string()
    };
    for method in ["awq", "gptq", "bitsandbytes", "fp8", "compressed-tensors"] {
        let error = refused(json!({"quant_method": method, "bits": 4}));
        assert!(error.contains(&format!("'{method}'")), "{error}");
        assert!(error.contains("model.quantize"), "what would help: {error}");
    }
    assert!(refused(json!({"bits": 4})).contains("quantization_config"));
}

/// A decoder with tied embeddings whose weights look random.
fn write_llama(dir: &Path, hidden: usize, intermediate: usize, vocab: usize) {
    let shape = crate::random::Llama {
        hidden,
        intermediate,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        vocab,
        context: 64,
    };
    crate::random::llama(dir, shape);
}
