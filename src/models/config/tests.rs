use std::path::Path;

use serde_json::json;

use super::*;
use crate::inspect::{LoadSettings, inspect};
use crate::read_local;

fn files(case: &str) -> Files {
    let references = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/references");
    read_local(&references.join(case)).unwrap()
}

fn write(files: &mut Files, path: &str, json: &Value) {
    let bytes = serde_json::to_vec(json).unwrap();
    files.sizes.insert(path.into(), bytes.len() as u64);
    files.contents.insert(path.into(), bytes);
}

/// What inspection makes of a case whose configuration is another one.
fn told(case: &str, json: &Value) -> String {
    let mut files = files(case);
    write(&mut files, CONFIG, json);
    match inspect(&files, &LoadSettings::default()) {
        Ok(plan) => format!("{plan:?}"),
        Err(error) => error.to_string(),
    }
}

const CASES: [&str; 36] = [
    "bert-mean-normalised",
    "bert-one-label",
    "cohere2-windows",
    "encoder-deberta",
    "encoder-distilbert",
    "encoder-electra",
    "encoder-modernbert",
    "encoder-mpnet",
    "encoder-roberta",
    "falcon-grouped",
    "gemma1",
    "gemma2-caps-windows",
    "gemma3-images",
    "gemma3-two-ropes",
    "glm",
    "gpt-bigcode",
    "gpt-neox-parallel",
    "gpt-oss",
    "gpt2",
    "gptj-partial",
    "granite-moe-shared",
    "granite-multipliers",
    "llama-gqa-tied",
    "mistral-window",
    "mixtral",
    "olmo-limits",
    "olmo3-windows-yarn",
    "olmoe-limits",
    "opt",
    "phi",
    "phi3-longrope-long",
    "qwen2-moe-shared",
    "qwen2-windows-yarn",
    "qwen3-moe-unnormed",
    "smollm3-nope",
    "starcoder2-window",
];

#[test]
fn a_null_means_what_an_absent_key_means() {
    // Switches that files need not have.
    let more = [
        "use_bidirectional_attention",
        "use_sliding_window",
        "norm_topk_prob",
        "scale_attn_by_inverse_layer_idx",
        "add_cross_attention",
        "hidden_act",
        "original_max_position_embeddings",
        "use_qkv_bias",
        "qk_layernorm",
        "use_parallel_residual",
        "partial_rotary_factor",
    ];
    for case in CASES.into_iter().chain(["stablelm-partial"]) {
        let config: Value = parse(&files(case), CONFIG).unwrap();
        let keys = config.as_object().unwrap().keys().map(String::as_str).chain(more);
        for key in keys.filter(|key| !NULLS.contains(key)) {
            let (mut absent, mut null) = (config.clone(), config.clone());
            absent.as_object_mut().unwrap().remove(key);
            null[key] = Value::Null;
            assert_eq!(told(case, &null), told(case, &absent), "{case}: {key}");
        }
    }
}

#[test]
fn nulls_are_dropped_at_any_depth_but_for_those_that_say_something() {
    let mut files = Files::default();
    let nested = json!({"full_attention": {"rope_theta": 1e4, "factor": null}, "other": null});
    write(
        &mut files,
        CONFIG,
        &json!({"head_dim": null, "sliding_window": null, "rope_parameters": nested}),
    );
    let kept = json!({
        "sliding_window": null, "rope_parameters": {"full_attention": {"rope_theta": 1e4}}
    });
    assert_eq!(keys(&files).unwrap(), kept);
}

#[test]
fn without_architectures_the_type_of_model_says_what_it_is() {
    for (case, architecture) in [
        ("llama-mha", "LlamaForCausalLM"),
        ("gemma3-two-ropes", "Gemma3ForCausalLM"),
        ("gemma3-images", "Gemma3ForConditionalGeneration"),
        ("gpt2", "GPT2LMHeadModel"),
        ("opt", "OPTForCausalLM"),
        ("qwen3-moe-unnormed", "Qwen3MoeForCausalLM"),
        ("encoder-xlm-roberta", "XLMRobertaModel"),
        ("bert-mean-normalised", "BertModel"),
        ("encoder-deberta", "DebertaV2Model"),
    ] {
        for architectures in [Value::Null, json!([])] {
            let mut files = files(case);
            let mut config: Value = parse(&files, CONFIG).unwrap();
            config["architectures"] = architectures;
            write(&mut files, CONFIG, &config);
            let plan = inspect(&files, &LoadSettings::default()).unwrap();
            assert_eq!(plan.architecture, architecture, "{case}");
        }
    }
}

#[test]
fn what_says_none_in_a_generation_config_is_none() {
    let mut files = files("llama-mha");
    let mut config: Value = parse(&files, CONFIG).unwrap();
    config["eos_token_id"] = json!(-1);
    write(&mut files, CONFIG, &config);
    for off in [json!(-1), json!(0), Value::Null] {
        let generation = json!({"top_k": off, "top_p": null, "eos_token_id": [9, null, -1, 7]});
        write(&mut files, GENERATION, &generation);
        let plan = inspect(&files, &LoadSettings::default()).unwrap();
        assert_eq!(plan.eos_tokens, [7, 9]);
        assert_eq!(plan.generation_defaults, GenerationDefaults::default());
    }
}

#[test]
fn a_text_part_s_end_is_the_end_where_the_whole_names_none() {
    let mut files = files("llava-images");
    let mut config: Value = parse(&files, CONFIG).unwrap();
    config["text_config"]["eos_token_id"] = json!([7, 9]);
    for (whole, want) in [(Value::Null, vec![7, 9]), (json!(3), vec![3])] {
        config["eos_token_id"] = whole;
        write(&mut files, CONFIG, &config);
        let mut generation: Value = parse(&files, GENERATION).unwrap_or_default();
        generation["eos_token_id"] = Value::Null;
        write(&mut files, GENERATION, &generation);
        assert_eq!(inspect(&files, &LoadSettings::default()).unwrap().eos_tokens, want);
    }
}

#[test]
fn faults_of_a_generation_config_are_told_with_their_keys() {
    let mut files = files("llama-mha");
    for (key, value) in [
        ("top_k", json!(1.5)),
        ("temperature", json!("hot")),
        ("do_sample", json!(1)),
        ("eos_token_id", json!("</s>")),
        ("eos_token_id", json!([2, 0.5])),
        ("eos_token_id", json!([[2]])),
        ("eos_token_id", json!(1_u64 << 32)),
    ] {
        write(&mut files, GENERATION, &json!({ key: value }));
        let error = inspect(&files, &LoadSettings::default()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{GENERATION}: {key}")), "{error}");
    }
}

#[test]
fn projections_behind_the_pooling_count_among_the_widest() {
    let (read, _) = families::find("LlamaForCausalLM").unwrap();
    let mut config = read(&keys(&files("llama-mha")).unwrap()).unwrap();
    let [least, most, outputs] = config.extents();
    let dense = |inputs, outputs| sentence::Dense {
        folder: "2_Dense".into(),
        inputs,
        outputs,
        bias: false,
        tanh: false,
    };
    config.texts.dense = vec![dense(most + 1, outputs + 1), dense(least - 1, 1)];
    assert_eq!(config.extents(), [least - 1, most + 1, outputs + 1]);
}

/// What transformers' `GptOssConfig` takes absent keys for.
#[test]
fn what_a_gpt_oss_does_not_say_is_what_transformers_takes_it_for() {
    let (read, _) = families::find("GptOssForCausalLM").unwrap();
    let told = |json: &Value| format!("{:?}", read(json).unwrap());
    let required = json!({
        "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 4,
        "num_attention_heads": 64, "vocab_size": 201_088
    });
    let absent = told(&required);
    let defaults = json!({
        "num_local_experts": 128, "num_experts_per_tok": 4, "num_key_value_heads": 8, "head_dim": 64,
        "sliding_window": 128, "rope_theta": 150_000.0, "tie_word_embeddings": false,
        "hidden_act": "silu", "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "attention_bias": true, "swiglu_limit": 7.0,
        "layer_types": [
            "sliding_attention", "full_attention", "sliding_attention", "full_attention"
        ],
        "rope_scaling": {
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": false, "original_max_position_embeddings": 4096
        }
    });
    let others = json!({
        "num_local_experts": 32, "num_experts_per_tok": 2, "num_key_value_heads": 4, "head_dim": 32,
        "sliding_window": 64, "rope_theta": 10_000.0, "tie_word_embeddings": true,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "attention_bias": false, "swiglu_limit": 6.0, "layer_types": vec!["full_attention"; 4],
        "rope_scaling": {"rope_type": "yarn", "factor": 16.0, "truncate": false}
    });
    for (key, value) in defaults.as_object().unwrap() {
        let mut written = required.clone();
        written[key] = value.clone();
        assert_eq!(told(&written), absent, "{key}");
        // The key is one that counts, but for the activation, which is always the same.
        if key != "hidden_act" {
            written[key] = others[key].clone();
            assert_ne!(told(&written), absent, "{key}");
        }
    }
}
