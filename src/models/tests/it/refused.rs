//! What is refused, and with which words.

use roundhouse_models::{Error, Files, header_bytes, read_local};
use roundhouse_types::ErrorKind;

use crate::inspection::{files, refusal, with_config};
use crate::support::dir;

fn named(names: &[&str]) -> Files {
    let sizes = names.iter().map(|name| (name.to_string(), 1)).collect();
    Files { sizes, ..Files::default() }
}

#[test]
fn other_kinds_are_refused_by_what_they_are() {
    let cases: [(&[&str], &str); 7] = [
        (&["adapter_config.json", "adapter_model.safetensors"], "a LoRA adapter"),
        (&["model_index.json", "unet/config.json"], "an image pipeline"),
        (&["code/inference.py", "config.json"], "a Python handler"),
        (&["weights-q4.gguf"], "weights-q4.gguf"),
        (&["config.json", "pytorch_model.bin"], "convert it to safetensors"),
        (&["saved_model.pb", "variables/x"], "found saved_model.pb, variables/x"),
        (&[], "found no files"),
    ];
    for (names, words) in cases {
        let text = refusal(&named(names));
        assert!(text.contains(words), "{text}");
    }
    let many: Vec<String> =
        (0..500).map(|index| format!("{index:03}{}", "x".repeat(900))).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let text = refusal(&named(&many));
    assert!(text.contains("and 488 more") && text.len() < 2000, "{text}");
}

/// Of references with a change of their configurations, what is said.
const REFUSED: &[(&str, &str, &str)] = &[
    ("llama-mha", r#"{"architectures": ["BloomForCausalLM"]}"#, "BloomForCausalLM"),
    ("llama-mha", r#"{"architectures": ["DeepseekV3ForCausalLM"]}"#, "a mixture of experts"),
    ("llama-mha", r#"{"architectures": ["DbrxForCausalLM"]}"#, "GptOssForCausalLM"),
    ("gemma3-images", r#"{"architectures": ["Gemma3Model"]}"#, "Gemma3TextModel"),
    (
        "gemma3-images",
        r#"{"architectures": ["Gemma3ForSequenceClassification"]}"#,
        "Gemma3TextForSequenceClassification",
    ),
    ("mixtral", r#"{"num_experts_per_tok": 6}"#, "6 of 5 experts"),
    ("qwen3-moe-unnormed", r#"{"decoder_sparse_step": 0}"#, "decoder_sparse_step is 0"),
    (
        "llama-mha",
        r#"{"architectures": ["Idefics3ForConditionalGeneration"]}"#,
        "inputs other than one text",
    ),
    (
        "llama-mha",
        r#"{"architectures": [], "model_type": "bloom"}"#,
        "0 architectures (model_type bloom)",
    ),
    (
        "llama-mha",
        r#"{"architectures": ["LlamaForCausalLM", "LlamaModel"]}"#,
        "2 architectures (model_type llama)",
    ),
    ("llama-mha", r#"{"quantization_config": {"bits": 4}}"#, "quantization_config"),
    ("llama-mha", r#"{"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}"#, "'ntk'"),
    ("llama-mha", r#"{"rope_scaling": {"rope_type": "yarn"}}"#, "has no factor"),
    ("llama-mha", r#"{"rope_scaling": {"rope_type": "longrope"}}"#, "no short_factor"),
    ("phi3-longrope-long", r#"{"partial_rotary_factor": 0.5}"#, "6 numbers, not 4"),
    ("phi3-longrope-long", r#"{"partial_rotary_factor": 1.5}"#, "partial_rotary_factor is 1.5"),
    ("phi3-longrope-long", r#"{"partial_rotary_factor": 0.05}"#, "rotated in pairs"),
    ("mistral-window", r#"{"sliding_window": 0}"#, "sliding_window is 0"),
    ("qwen2-windows-yarn", r#"{"layer_types": ["full_attention"]}"#, "names 1 layers of 3"),
    (
        "qwen3-head-norms",
        r#"{"layer_types": ["full_attention", "full_attention", "chunked_attention"]}"#,
        "'chunked_attention'",
    ),
    (
        "qwen3-head-norms",
        r#"{"layer_types": ["full_attention", "full_attention", "sliding_attention"]}"#,
        "sliding_window is absent",
    ),
    ("qwen3-head-norms", r#"{"num_hidden_layers": 4000000000}"#, "num_hidden_layers is 4"),
    ("smollm3-nope", r#"{"no_rope_layers": [1]}"#, "names 1 layers of 4"),
    ("smollm3-nope", r#"{"no_rope_layers": null, "no_rope_layer_interval": 0}"#, "is 0"),
    ("gemma2-caps-windows", r#"{"final_logit_softcapping": -1}"#, "softcapping is -1"),
    ("gemma3-two-ropes", r#"{"attn_logit_softcapping": 50.0}"#, "attn_logit_softcapping"),
    ("gemma3-two-ropes", r#"{"use_bidirectional_attention": true}"#, "bidirectional"),
    ("gpt2", r#"{"scale_attn_by_inverse_layer_idx": true}"#, "inverse_layer_idx"),
    ("gpt2", r#"{"add_cross_attention": true}"#, "add_cross_attention"),
    ("stablelm-partial", r#"{"qk_layernorm": true}"#, "qk_layernorm"),
    ("gpt-neox-parallel", r#"{"num_key_value_heads": 2}"#, "query_key_value"),
    ("opt", r#"{"word_embed_proj_dim": 16}"#, "word_embed_proj_dim"),
    ("opt", r#"{"do_layer_norm_before": false}"#, "do_layer_norm_before"),
    ("opt", r#"{"_remove_final_layer_norm": true}"#, "_remove_final_layer_norm"),
    ("phi", r#"{"qk_layernorm": true}"#, "qk_layernorm"),
    ("olmo-limits", r#"{"clip_qkv": -1}"#, "clip_qkv is -1"),
    ("granite-multipliers", r#"{"residual_multiplier": 0}"#, "residual_multiplier is 0"),
    ("cohere", r#"{"use_qk_norm": true}"#, "use_qk_norm"),
    ("cohere2-windows", r#"{"layer_types": null, "sliding_window_pattern": 0}"#, "pattern is 0"),
    ("falcon-one-key", r#"{"alibi": true}"#, "alibi"),
    ("falcon-grouped", r#"{"parallel_attn": false}"#, "num_ln_in_parallel_attn"),
    ("gptj-partial", r#"{"rotary_dim": null}"#, "rotary_dim"),
    ("gptj-partial", r#"{"rotary_dim": 7}"#, "rotary_dim is 7"),
    ("gptj-partial", r#"{"rotary_dim": 18}"#, "a head's 16"),
    ("gptj-partial", r#"{"rotary_dim": 0}"#, "rotary_dim is 0"),
    ("gpt-oss", r#"{"swiglu_limit": -7}"#, "swiglu_limit is -7"),
    ("gpt-oss", r#"{"num_local_experts": 6}"#, "mlp.experts.gate_up_proj' has shape"),
    ("gpt-oss", r#"{"num_experts_per_tok": 6}"#, "6 of 5 experts"),
    ("mxfp4-gpt-oss", r#"{"intermediate_size": 80}"#, "no multiple of mxfp4's 32"),
    ("mxfp4-gpt-oss", r#"{"intermediate_size": 64}"#, "mlp.experts.gate_up_proj_blocks' has shape"),
    (
        "mxfp4-gpt-oss",
        r#"{"quantization_config": null}"#,
        "'model.layers.0.mlp.experts.gate_up_proj'",
    ),
    ("gpt-oss", r#"{"quantization_config": {"quant_method": "mxfp4"}}"#, "gate_up_proj_blocks'"),
    ("gpt-oss", r#"{"quantization_config": {"quant_method": "awq"}}"#, "by 'awq'"),
    ("llama-mha", r#"{"quantization_config": {"quant_method": "mxfp4"}}"#, "by 'mxfp4'"),
    ("granite-moe", r#"{"num_local_experts": 4}"#, "input_linear.weight' has shape"),
    ("gptj-partial", r#"{"tie_word_embeddings": true}"#, "whose head has a bias"),
    ("phi", r#"{"tie_word_embeddings": true}"#, "whose head has a bias"),
    (
        "qwen2-moe-shared",
        r#"{"shared_expert_intermediate_size": 0}"#,
        "shared_expert_intermediate_size is 0",
    ),
    ("llava-images", r#"{"text_config": null}"#, "no text_config"),
    ("llava-images", r#"{"text_config": {"model_type": "phi3"}}"#, "'phi3'"),
    ("llama-mha", r#"{"rope_scaling": {"rope_type": "llama3", "factor": 4}}"#, "low_freq_factor"),
    ("llama-mha", r#"{"rope_scaling": {"type": "linear", "factor": -1}}"#, "factor is -1"),
    ("llama-mha", r#"{"partial_rotary_factor": 0.5}"#, "partial_rotary_factor"),
    ("llama-mha", r#"{"hidden_act": "xielu"}"#, "'xielu'"),
    ("llama-mha", r#"{"num_attention_heads": 0}"#, "num_attention_heads is 0"),
    ("llama-mha", r#"{"num_key_value_heads": 3}"#, "key-value heads"),
    ("llama-mha", r#"{"head_dim": 7}"#, "head_dim 7"),
    ("llama-mha", r#"{"hidden_size": -4}"#, "config.json"),
    ("llama-mha", r#"{"rms_norm_eps": 0}"#, "rms_norm_eps"),
    ("llama-mha", r#"{"num_hidden_layers": 4000000000}"#, "model.layers.3."),
    ("llama-mha", r#"{"vocab_size": 4294967295}"#, "model.embed_tokens.weight"),
    ("bert-cls", r#"{"position_embedding_type": "relative_key"}"#, "relative_key"),
    ("bert-cls", r#"{"hidden_act": "tanh"}"#, "'tanh'"),
    ("bert-cls", r#"{"num_attention_heads": 5}"#, "multiple of 5"),
    ("bert-single-label", r#"{"id2label": {"0": "a", "2": "b"}}"#, "id2label"),
    ("bert-single-label", r#"{"id2label": {"0": "a", "1": "b"}}"#, "classifier.weight"),
    (
        "qwen2-moe-shared",
        r#"{"shared_expert_intermediate_size": 9223372036854775808}"#,
        "shared_expert_intermediate_size is 9223372036854775808",
    ),
    ("gpt-oss", r#"{"intermediate_size": 9223372036854775808}"#, "9223372036854775808"),
];

#[test]
fn what_is_not_computed_is_refused_by_its_key() {
    for (case, change, words) in REFUSED {
        let text = refusal(&with_config(case, change));
        assert!(text.contains(words), "{change}: {text}");
    }
}

#[test]
fn modules_that_are_not_computed_are_refused() {
    let module = |kind: &str, path: &str| format!(r#"{{"type": "a.b.{kind}", "path": "{path}"}}"#);
    let transformer = module("Transformer", "");
    let pooling = module("Pooling", "1_Pooling");
    let cases = [
        (
            format!("[{transformer},{pooling},{}]", module("Dense", "2_Dense")),
            "2_Dense/config.json",
        ),
        (format!("[{transformer}]"), "no Pooling"),
        (format!("[{},{pooling}]", module("Transformer", "0_Transformer")), "0_Transformer"),
        (format!("[{transformer},{}]", module("Pooling", "9_Pooling")), "9_Pooling/config.json"),
        ("{}".into(), "modules.json"),
    ];
    for (modules, words) in cases {
        let mut files = files("bert-cls");
        files.contents.insert("modules.json".into(), modules.into_bytes());
        let text = refusal(&files);
        assert!(text.contains(words), "{text}");
    }
    for mode in [
        r#"{"pooling_mode": "weightedmean"}"#,
        r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}"#,
        r#"{"pooling_mode_cls_token": false}"#,
    ] {
        let mut files = files("bert-cls");
        files.contents.insert("1_Pooling/config.json".into(), mode.into());
        assert!(refusal(&files).contains("1_Pooling/config.json: "), "{mode}");
    }
}

#[test]
fn what_git_has_in_place_of_weights_is_refused_before_anything_else() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n";
    for (case, name) in [
        ("llama-mha", "model.safetensors"),
        ("llama-sharded", "model-00001-of-00003.safetensors"),
        ("gguf-f32", "model.gguf"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(dir(case)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        assert!(folder.path().join(name).exists(), "{case} has no {name}");
        std::fs::write(folder.path().join(name), pointer).unwrap();
        let error = read_local(folder.path()).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(&format!("{name} is a Git LFS pointer")), "{text}");
        assert!(text.contains("git lfs pull"), "{text}");
        assert_eq!(error.kind(), ErrorKind::ModelInvalid);
    }
    // Of an archive eight bytes are looked at, and nothing is said of what else is wrong.
    let mut archived = with_config("llama-mha", r#"{"architectures": ["BloomForCausalLM"]}"#);
    let first = pointer.as_bytes()[..8].to_vec();
    assert!(matches!(header_bytes("a", &first), Err(Error::Pointer { .. })));
    archived.headers.insert("model.safetensors".into(), first);
    assert!(refusal(&archived).contains("Git LFS pointer"));
}
