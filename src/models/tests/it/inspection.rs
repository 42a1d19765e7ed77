//! What is found out before a load, and what is refused with which words.

use std::collections::BTreeMap;

use crate::support::{
    LlamaCase, apart, cases, dir, expected, open, plan, renamed, row, served, settings, step,
};
use roundhouse_models::{
    Cancel, DtypeSetting, Error, Files, LoadSettings, Want, inspect, load, read_local, wanted,
};
use roundhouse_types::{Bytes, DeviceId, ErrorKind, ModelKind};
use serde_json::json;

/// The files of a case, to be changed.
pub(crate) fn files(case: &str) -> Files {
    read_local(&dir(case)).unwrap()
}

/// The text of the error, which must blame the model.
pub(crate) fn refusal(files: &Files) -> String {
    let error = inspect(files, &settings()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ModelInvalid, "{error}");
    error.to_string()
}

/// A case with keys of its `config.json` replaced.
pub(crate) fn with_config(case: &str, change: &str) -> Files {
    let mut files = files(case);
    let config = files.contents.get_mut("config.json").unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(config).unwrap();
    let change: serde_json::Value = serde_json::from_str(change).unwrap();
    for (key, value) in change.as_object().unwrap() {
        json[key] = value.clone();
    }
    *config = serde_json::to_vec(&json).unwrap();
    files
}

#[test]
fn the_footprint_of_a_plan_is_what_a_load_allocates() {
    for case in cases("") {
        for dtype in [DtypeSetting::Auto, DtypeSetting::F16] {
            let settings = LoadSettings { dtype, ..settings() };
            let plan = plan(&case, &settings);
            let loaded = open(&case, &settings);
            assert_eq!(loaded.footprint, plan.footprint, "{case}");
            assert!(plan.footprint.weights > Bytes::ZERO && plan.footprint.host > Bytes::ZERO);
        }
    }
}

#[test]
fn footprints_are_counted_by_hand_once() {
    // vocab 256, hidden 64, intermediate 112, two layers, 4 heads and 2 of keys of 16, tied.
    let layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 112 + 2 * 64;
    let plan = plan("llama-gqa-tied", &LoadSettings { kv_sequences: 3, ..settings() });
    assert_eq!(plan.footprint.weights, Bytes(4 * (256 * 64 + 2 * layer + 64)));
    assert_eq!(plan.kv_token_bytes, Bytes(2 * 2 * 2 * 16 * 4));
    let context = 2 * 2 * 2 * 16 * 4 * 128;
    assert_eq!(plan.footprint.kv, Bytes(context), "one sequence of the whole context");
    let kv = plan.kv().unwrap();
    assert_eq!(kv.chunk_bytes.0 * kv.chunks() as u64, 3 * context, "and three at most");
}

#[test]
fn kinds_contexts_and_tokens_are_read_from_the_files() {
    let llama = plan("llama-mha", &settings());
    assert_eq!((llama.kind, llama.context), (ModelKind::Generative, 128));
    assert_eq!(llama.eos_tokens, [2]);
    let short = plan("llama-mha", &LoadSettings { context: 50, kv_sequences: 1, ..settings() });
    assert_eq!(short.context, 50);
    assert_eq!(short.footprint.kv, Bytes(short.kv_token_bytes.0 * 64), "whole blocks");

    let mean = plan("bert-mean-normalised", &settings());
    assert_eq!((mean.kind, mean.normalize), (ModelKind::Embedding, true));
    assert_eq!((mean.context, mean.kv_token_bytes), (48, Bytes::ZERO));
    assert!(!plan("bert-plain", &settings()).normalize);
    assert_eq!(plan("bert-one-label", &settings()).kind, ModelKind::Classification);
}

#[test]
fn end_tokens_of_both_files_count_and_lists_are_read() {
    let mut files = with_config("llama-mha", r#"{"eos_token_id": [7, 2]}"#);
    let generation = br#"{"eos_token_id": [9, 7], "temperature": 0.6, "top_k": 50}"#;
    files.sizes.insert("generation_config.json".into(), generation.len() as u64);
    files.contents.insert("generation_config.json".into(), generation.to_vec());
    let plan = inspect(&files, &settings()).unwrap();
    assert_eq!(plan.eos_tokens, [2, 7, 9]);
    assert_eq!(plan.generation_defaults.temperature, Some(0.6));
    assert_eq!(plan.generation_defaults.top_k, Some(50));
    assert_eq!(plan.generation_defaults.do_sample, None);
}

/// The largest difference to the reference's logits where the configuration is another one.
fn difference_under(case: &str, files: &Files) -> f32 {
    let want: LlamaCase = expected(case);
    let plan = inspect(files, &served(&want)).unwrap();
    let mut runner = load(&dir(case), &plan, DeviceId::Cpu, &Cancel::new()).unwrap().runner;
    let prompt = &want.prompts[4];
    let got = step(&mut *runner, vec![row(0, 0, &prompt.ids)]);
    apart(&got[0], &prompt.last_logits)
}

/// The newer spelling of the same model computes the same model.
#[test]
fn rope_parameters_mean_what_rope_theta_and_scaling_meant() {
    let case = "llama-rope-llama3";
    let newer = std::fs::read(dir(case).join("config-v5.json")).unwrap();
    let mut files = files(case);
    files.contents.insert("config.json".into(), newer);
    assert!(difference_under(case, &files) < 2e-3);

    let by_type = r#"{"rope_theta": null, "rope_local_base_freq": null, "rope_scaling": null,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}}}"#;
    let case = "gemma3-two-ropes";
    assert!(difference_under(case, &with_config(case, by_type)) < 2e-3);
}

/// Else a reference would say nothing about what it is there for.
#[test]
fn every_particular_of_a_family_shows_in_its_reference() {
    let cases = [
        ("llama-rope-linear", r#"{"rope_scaling": null}"#),
        ("llama-rope-yarn", r#"{"rope_scaling": null}"#),
        ("mistral-window", r#"{"sliding_window": 9}"#),
        ("qwen2-windows-yarn", r#"{"sliding_window": 7}"#),
        ("qwen2-windows-yarn", r#"{"rope_scaling": null}"#),
        ("qwen3-head-norms", r#"{"rms_norm_eps": 1.0}"#),
        ("phi3-window-partial", r#"{"sliding_window": null}"#),
        ("phi3-window-partial", r#"{"partial_rotary_factor": 1.0}"#),
        ("phi3-longrope-long", r#"{"original_max_position_embeddings": 128}"#),
        ("phi3-longrope-short", r#"{"original_max_position_embeddings": 32}"#),
        ("smollm3-nope", r#"{"no_rope_layers": [1, 1, 1, 1]}"#),
        ("gemma2-caps-windows", r#"{"sliding_window": 9}"#),
        ("gemma2-caps-windows", r#"{"attn_logit_softcapping": null}"#),
        ("gemma2-caps-windows", r#"{"final_logit_softcapping": null}"#),
        ("gemma2-caps-windows", r#"{"query_pre_attn_scalar": 16}"#),
        ("gemma3-two-ropes", r#"{"rope_local_base_freq": 100000.0}"#),
        ("gemma3-two-ropes", r#"{"rope_scaling": null}"#),
        ("gemma3-two-ropes", r#"{"sliding_window": 9}"#),
        ("gpt2", r#"{"scale_attn_weights": false}"#),
        ("gpt2", r#"{"activation_function": "relu"}"#),
        ("stablelm-partial", r#"{"partial_rotary_factor": 0.5}"#),
        ("gpt-neox-parallel", r#"{"use_parallel_residual": false}"#),
        ("gpt-neox-sequential", r#"{"rotary_pct": 0.25}"#),
        ("phi", r#"{"partial_rotary_factor": 1.0}"#),
        ("opt", r#"{"activation_function": "gelu"}"#),
        ("olmo-limits", r#"{"clip_qkv": null}"#),
        ("olmoe-limits", r#"{"clip_qkv": null}"#),
        ("olmoe-limits", r#"{"norm_topk_prob": true}"#),
        ("olmo3-windows-yarn", r#"{"rope_scaling": null}"#),
        ("olmo3-windows-yarn", r#"{"sliding_window": 9}"#),
        ("granite-multipliers", r#"{"embedding_multiplier": null}"#),
        ("granite-multipliers", r#"{"attention_multiplier": null}"#),
        ("granite-multipliers", r#"{"residual_multiplier": null}"#),
        ("granite-multipliers", r#"{"logits_scaling": null}"#),
        ("starcoder2-window", r#"{"sliding_window": 9}"#),
        ("cohere", r#"{"logit_scale": 0.5}"#),
        ("cohere2-windows", r#"{"sliding_window": 9}"#),
        ("cohere2-windows", r#"{"layer_types": null, "sliding_window_pattern": 2}"#),
        ("glm", r#"{"partial_rotary_factor": 1.0}"#),
        ("gptj-partial", r#"{"rotary_dim": 4}"#),
        ("gpt-oss", r#"{"sliding_window": 9}"#),
        ("gpt-oss", r#"{"rope_scaling": null}"#),
        ("gpt-oss", r#"{"swiglu_limit": 3.0}"#),
        ("gpt-oss", r#"{"num_experts_per_tok": 1}"#),
        ("granite-moe", r#"{"num_experts_per_tok": 3}"#),
        ("granite-moe-shared", r#"{"shared_intermediate_size": 0}"#),
    ];
    for (case, change) in cases {
        let difference = difference_under(case, &with_config(case, change));
        assert!(difference > 1e-2, "{case} without its {change}: {difference}");
    }
}

/// Families differ in whether they read the keys of windows, and which of them switch one on.
#[test]
fn windows_that_transformers_does_not_compute_are_none() {
    let types = |name: &str, layers: usize| json!(vec![name; layers]);
    for (case, change) in [
        ("llama-mha", json!({"sliding_window": 2})),
        ("llama-mha", json!({"sliding_window": 2, "use_sliding_window": true})),
        ("llama-mha", json!({"layer_types": types("sliding_attention", 9), "sliding_window": 2})),
        ("stablelm-partial", json!({"sliding_window": 2})),
        ("gpt-neox-parallel", json!({"sliding_window": 2})),
        ("gemma1", json!({"sliding_window": 2})),
        ("qwen3-head-norms", json!({"sliding_window": 2})),
        ("qwen3-head-norms", json!({"sliding_window": 2, "use_sliding_window": false})),
        (
            "qwen3-head-norms",
            json!({
                "sliding_window": 2, "use_sliding_window": true,
                "layer_types": types("full_attention", 3),
            }),
        ),
        ("qwen3-moe-unnormed", json!({"sliding_window": 2, "use_sliding_window": false})),
        ("smollm3-nope", json!({"sliding_window": 2, "use_sliding_window": false})),
    ] {
        let difference = difference_under(case, &with_config(case, &change.to_string()));
        assert!(difference < 2e-3, "{case} with {change}: {difference}");
    }
}

/// Of a checkpoint that reads images, too, what reads text is all that is there.
#[test]
fn towers_for_images_are_neither_read_nor_charged() {
    for case in ["gemma3-images", "mistral3-images", "llava-images"] {
        let files = files(case);
        let read = plan(case, &settings()).weights;
        let read: u64 = read.iter().map(|share| share.file_bytes.0).sum();
        let weights = std::fs::read(dir(case).join("model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
        let text = tensors.tensors().into_iter().filter(|(name, _)| name.starts_with("language_"));
        let text: usize = text.map(|(_, tensor)| tensor.data().len()).sum();
        assert_eq!(read, text as u64, "{case}");
        assert!(files.sizes["model.safetensors"] > read + 4096, "{case}");
    }
}

/// As transformers names the modules, where that is how a checkpoint was saved.
#[test]
fn a_text_part_and_its_head_are_found_under_the_names_of_modules() {
    for case in ["gemma3-images", "mistral3-images", "llava-images"] {
        let names = [
            ("\"language_model.model.", "\"model.language_model."),
            ("\"language_model.lm_head.weight\"", "\"lm_head.weight\"               "),
        ];
        let folder = renamed(&dir(case), &names);
        let want: LlamaCase = expected(case);
        let plan = inspect(&read_local(folder.path()).unwrap(), &served(&want)).unwrap();
        let loaded = load(folder.path(), &plan, DeviceId::Cpu, &Cancel::new());
        let mut runner = loaded.unwrap().runner;
        let prompt = &want.prompts[4];
        let got = step(&mut *runner, vec![row(0, 0, &prompt.ids)]);
        let difference = apart(&got[0], &prompt.last_logits);
        assert!(difference < 2e-3, "{case}: {difference}");
    }
}

/// What configurations leave out where a model is as large as the first of its kind.
#[test]
fn a_text_part_that_says_little_is_of_the_usual_size() {
    for (case, absent, words) in [
        ("gemma3-images", "vocab_size", "[262208, 32]"),
        ("llava-images", "hidden_size", "[96, 4096]"),
        ("mistral3-images", "vocab_size", "[32000, 32]"),
    ] {
        let mut files = files(case);
        let config = files.contents.get_mut("config.json").unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(config).unwrap();
        json["text_config"].as_object_mut().unwrap().remove(absent);
        *config = serde_json::to_vec(&json).unwrap();
        let text = refusal(&files);
        assert!(text.contains(words), "{case}: {text}");
    }
}

#[test]
fn only_what_inspection_needs_is_wanted() {
    let sizes = |names: &[&str]| -> BTreeMap<String, u64> {
        names.iter().map(|name| (name.to_string(), 9)).collect()
    };
    let of = |names: &[&str]| wanted(&sizes(names));
    let whole = |name: &str| (name.to_string(), Want::Whole);
    let header = |name: &str| (name.to_string(), Want::SafetensorsHeader);
    assert_eq!(
        of(&["config.json", "tokenizer.json", "model.safetensors", "consolidated.safetensors"]),
        [whole("config.json"), header("model.safetensors")]
    );
    assert_eq!(
        of(&["a-1-of-2.safetensors", "model.safetensors.index.json", "sub/config.json"]),
        [header("a-1-of-2.safetensors"), whole("model.safetensors.index.json")]
    );
    assert_eq!(
        of(&["1_Pooling/config.json", "1_Pooling/x.bin", "modules.json"]),
        [whole("1_Pooling/config.json"), whole("modules.json")]
    );
}

#[test]
fn prompts_are_read_with_their_default_and_refused_where_they_cannot_be_heeded() {
    const FILE: &str = "config_sentence_transformers.json";
    let with = |prompts: &str, pooling: &str| {
        let mut files = files("bert-cls");
        files.sizes.insert(FILE.into(), prompts.len() as u64);
        files.contents.insert(FILE.into(), prompts.into());
        files.contents.insert("1_Pooling/config.json".into(), pooling.into());
        files
    };
    let pooled = r#"{"pooling_mode_cls_token": true}"#;
    let apart = r#"{"pooling_mode_cls_token": true, "include_prompt": false}"#;
    let prompts = r#"{"prompts": {"query": "Q: ", "empty": ""}, "default_prompt_name": "query"}"#;
    let plan = inspect(&with(prompts, pooled), &settings()).unwrap();
    assert_eq!(plan.prompts.texts["query"], "Q: ");
    assert_eq!(plan.prompts.default.as_deref(), Some("query"));
    let none = r#"{"prompts": {"query": ""}, "default_prompt_name": null}"#;
    for files in [with(none, apart), files("bert-cls")] {
        assert_eq!(inspect(&files, &settings()).unwrap().prompts.default, None);
    }
    assert!(refusal(&with(prompts, apart)).contains("include_prompt"));
    let on_demand = r#"{"prompts": {"query": "Q: ", "empty": ""}, "default_prompt_name": null}"#;
    let left = inspect(&with(on_demand, apart), &settings()).unwrap().prompts.texts;
    assert_eq!(left.keys().collect::<Vec<_>>(), ["empty"], "only what can be computed is offered");
    let missing = r#"{"prompts": {}, "default_prompt_name": "query"}"#;
    assert!(refusal(&with(missing, pooled)).contains("'query' is none"));
    let long = format!(r#"{{"prompts": {{"a": "{}"}}}}"#, "x".repeat(1 << 17));
    assert!(refusal(&with(&long, pooled)).contains("are the most"));
    let one = format!(r#"{{"prompts": {{"a": "{}"}}}}"#, "x".repeat((8 << 10) + 1));
    assert!(refusal(&with(&one, pooled)).contains("prompt 'a' has 8193 bytes"));
    assert!(refusal(&with(r#"{"prompts": 5}"#, pooled)).contains(FILE));
}

#[test]
fn a_cancelled_load_ends_and_other_devices_are_refused() {
    let plan = plan("llama-mha", &settings());
    let cancel = Cancel::new();
    cancel.clone().cancel();
    let error = load(&dir("llama-mha"), &plan, DeviceId::Cpu, &cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    let error = load(&dir("llama-mha"), &plan, DeviceId::Cuda(0), &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("cuda:0"), "{error}");
}

/// Of halves nothing is widened but norms and biases.
#[test]
fn halves_take_two_bytes_a_weight_and_vectors_four() {
    // vocab 160, hidden 64, intermediate 96, two layers, 8 heads and 2 of keys of 8, tied.
    let layer = 64 * (64 + 16 + 16) + 64 * 64 + 3 * 64 * 96;
    let bytes = 2 * (160 * 64 + 2 * layer) + 4 * (5 * 64);
    let plan = plan("llama-bf16", &settings());
    assert_eq!(plan.footprint.weights, Bytes(bytes));
    assert_eq!(open("llama-bf16", &settings()).footprint.weights, Bytes(bytes));
    let formats = plan.weights.iter().map(|share| (share.file_dtype, share.memory_dtype));
    assert_eq!(formats.collect::<Vec<_>>(), [("bf16", "bf16"), ("bf16", "f32")]);
}
