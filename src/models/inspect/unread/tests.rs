//! Tensors that nobody reads are told where they matter.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::{Files, LoadSettings, inspect, read_local};

/// The references that other tests compute with.
fn references() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/references")
}

fn files(case: &str) -> Files {
    read_local(&references().join(case)).unwrap()
}

/// A case with keys of its `config.json` replaced.
fn with_config(case: &str, change: Value) -> Files {
    let mut files = files(case);
    let config = files.contents.get_mut("config.json").unwrap();
    let mut json: Map<String, Value> = serde_json::from_slice(config).unwrap();
    json.extend(change.as_object().unwrap().clone());
    *config = serde_json::to_vec(&json).unwrap();
    files
}

/// A case whose safetensors have more tensors: of one float each, behind the others.
fn with_tensors(case: &str, names: &[&str]) -> Files {
    let mut files = files(case);
    let header = files.headers.get_mut("model.safetensors").unwrap();
    let mut json: Map<String, Value> = serde_json::from_slice(&header[8..]).unwrap();
    let ends = json.values().filter_map(|it| it.pointer("/data_offsets/1")?.as_u64());
    let end = ends.max().unwrap();
    for (index, name) in names.iter().enumerate() {
        let start = end + 4 * index as u64;
        let it = json!({"dtype": "F32", "shape": [1], "data_offsets": [start, start + 4]});
        assert!(json.insert((*name).into(), it).is_none(), "{name}");
    }
    let text = serde_json::to_vec(&json).unwrap();
    *header = (text.len() as u64).to_le_bytes().into_iter().chain(text).collect();
    let size = header.len() as u64 + end + 4 * names.len() as u64;
    files.sizes.insert("model.safetensors".into(), size);
    files
}

fn told(files: &Files) -> Option<String> {
    inspect(files, &LoadSettings::default()).unwrap().unread
}

#[test]
fn whole_checkpoints_have_none() {
    let cases = std::fs::read_dir(references()).unwrap().map(Result::unwrap);
    let cases = cases.filter(|it| it.file_type().unwrap().is_dir());
    let names = cases.map(|it| it.file_name().into_string().unwrap());
    let told: BTreeMap<String, String> =
        names.filter_map(|name| told(&files(&name)).map(|told| (name, told))).collect();
    assert_eq!(told, BTreeMap::new());
}

#[test]
fn layers_that_the_configuration_leaves_out_are_named_and_counted() {
    let told = told(&with_config("llama-mha", json!({"num_hidden_layers": 1}))).unwrap();
    let names = "model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight, \
                 model.layers.1.mlp.gate_proj.weight and 15 more";
    assert!(told.ends_with(names), "{told}");
}

#[test]
fn weights_of_a_like_family_are_named() {
    let architecture = json!({"architectures": ["GlmForCausalLM"], "model_type": "glm"});
    let told = told(&with_config("glm4", architecture)).unwrap();
    assert!(told.contains("model.layers.0.post_mlp_layernorm.weight"), "{told}");
}

#[test]
fn what_is_known_to_be_harmless_is_not_told() {
    let llama = ["model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"];
    assert_eq!(told(&with_tensors("llama-gqa-tied", &llama)), None);
    let masks = ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"];
    assert_eq!(told(&with_tensors("gpt2", &masks)), None);
    let heads = ["cls.seq_relationship.bias", "bert.embeddings.position_ids"];
    assert_eq!(told(&with_tensors("encoder-bert", &heads)), None);
    assert_eq!(told(&with_tensors("bert-plain", &["classifier.weight"])), None);
    assert_eq!(told(&with_tensors("encoder-llama-mean", &["lm_head.weight"])), None);
}

#[test]
fn biases_and_heads_that_would_matter_are_told() {
    for (case, name) in [
        ("llama-mha", "model.layers.0.self_attn.q_proj.bias"),
        ("llama-mha", "score.weight"),
        ("bert-plain", "encoder.layer.0.adapter.weight"),
        ("bert-one-label", "qa_outputs.weight"),
        ("llava-images", "language_model.model.layers.0.self_attn.q_norm.weight"),
    ] {
        let told = told(&with_tensors(case, &[name])).unwrap();
        assert!(told.ends_with(&format!(": {name}")), "{told}");
    }
}
