//! Artefacts of families whose steps hold other things alive than Llama's.

use std::path::Path;

use serde_json::json;

use crate::random::{Llama, Tensors, write};

/// Norms of heads and of blocks' results, windows, scaled embeddings.
pub(crate) fn gemma3(dir: &Path, shape: Llama) {
    let Llama { hidden, intermediate, layers, heads, kv_heads, vocab, context } = shape;
    let head_dim = hidden / heads;
    let config = json!({
        "architectures": ["Gemma3ForCausalLM"], "hidden_size": hidden, "head_dim": head_dim,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": context, "sliding_window": 64, "sliding_window_pattern": 2,
        "final_logit_softcapping": 30.0
    });
    let mut tensors: Tensors = vec![
        ("model.embed_tokens.weight".into(), vec![vocab, hidden]),
        ("model.norm.weight".into(), vec![hidden]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        for name in ["input", "post_attention", "pre_feedforward", "post_feedforward"] {
            add(&format!("{name}_layernorm"), &[hidden]);
        }
        add("self_attn.q_norm", &[head_dim]);
        add("self_attn.k_norm", &[head_dim]);
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[head_dim * kv_heads, hidden]);
        add("self_attn.v_proj", &[head_dim * kv_heads, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
    }
    write(dir, &config, &tensors);
}

/// Sparse layers of four experts, two for a token.
pub(crate) fn mixtral(dir: &Path, shape: Llama) {
    let Llama { hidden, intermediate, layers, heads, kv_heads, vocab, context } = shape;
    let head_dim = hidden / heads;
    let experts = 4;
    let config = json!({
        "architectures": ["MixtralForCausalLM"], "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": context, "num_local_experts": experts,
        "num_experts_per_tok": 2, "tie_word_embeddings": true
    });
    let mut tensors: Tensors = vec![
        ("model.embed_tokens.weight".into(), vec![vocab, hidden]),
        ("model.norm.weight".into(), vec![hidden]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        for name in ["input", "post_attention"] {
            add(&format!("{name}_layernorm"), &[hidden]);
        }
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[head_dim * kv_heads, hidden]);
        add("self_attn.v_proj", &[head_dim * kv_heads, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        add("block_sparse_moe.gate", &[experts, hidden]);
        for expert in 0..experts {
            add(&format!("block_sparse_moe.experts.{expert}.w1"), &[intermediate, hidden]);
            add(&format!("block_sparse_moe.experts.{expert}.w2"), &[hidden, intermediate]);
            add(&format!("block_sparse_moe.experts.{expert}.w3"), &[intermediate, hidden]);
        }
    }
    write(dir, &config, &tensors);
}

/// Sinks, biases, and experts of one tensor a layer, by columns.
pub(crate) fn gpt_oss(dir: &Path, shape: Llama) {
    let Llama { hidden, intermediate, layers, heads, kv_heads, vocab, context } = shape;
    let (head_dim, experts) = (hidden / heads, 4);
    let config = json!({
        "architectures": ["GptOssForCausalLM"], "hidden_size": hidden, "head_dim": head_dim,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": context, "num_local_experts": experts,
        "num_experts_per_tok": 2, "sliding_window": 64, "tie_word_embeddings": true
    });
    let mut tensors: Tensors = vec![
        ("model.embed_tokens.weight".into(), vec![vocab, hidden]),
        ("model.norm.weight".into(), vec![hidden]),
    ];
    let keys = head_dim * kv_heads;
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        };
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        for (name, outputs) in [("q", hidden), ("k", keys), ("v", keys), ("o", hidden)] {
            add(&format!("self_attn.{name}_proj.weight"), &[outputs, hidden]);
            add(&format!("self_attn.{name}_proj.bias"), &[outputs]);
        }
        add("self_attn.sinks", &[heads]);
        add("mlp.router.weight", &[experts, hidden]);
        add("mlp.router.bias", &[experts]);
        add("mlp.experts.gate_up_proj", &[experts, hidden, 2 * intermediate]);
        add("mlp.experts.gate_up_proj_bias", &[experts, 2 * intermediate]);
        add("mlp.experts.down_proj", &[experts, intermediate, hidden]);
        add("mlp.experts.down_proj_bias", &[experts, hidden]);
    }
    write(dir, &config, &tensors);
}

/// Norms without weights: what fills them in stays.
pub(crate) fn olmo(dir: &Path, shape: Llama) {
    let own = json!({"architectures": ["OlmoForCausalLM"], "clip_qkv": 8.0});
    alike(dir, shape, own, &[]);
}

/// Blocks side by side behind one norm without a bias, neighbours rotated.
pub(crate) fn cohere(dir: &Path, shape: Llama) {
    let own = json!({"architectures": ["CohereForCausalLM"]});
    alike(dir, shape, own, &["norm", "input_layernorm"]);
}

/// What has Llama's projections: a configuration with keys of its own, and some norms.
fn alike(dir: &Path, shape: Llama, mut config: serde_json::Value, norms: &[&str]) {
    let Llama { hidden, intermediate, layers, heads, kv_heads, vocab, context } = shape;
    let keys = hidden / heads * kv_heads;
    for (key, value) in [
        ("hidden_size", hidden),
        ("intermediate_size", intermediate),
        ("num_hidden_layers", layers),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv_heads),
        ("vocab_size", vocab),
        ("max_position_embeddings", context),
    ] {
        config[key] = value.into();
    }
    config["tie_word_embeddings"] = true.into();
    let mut tensors: Tensors = vec![("model.embed_tokens.weight".into(), vec![vocab, hidden])];
    if norms.contains(&"norm") {
        tensors.push(("model.norm.weight".into(), vec![hidden]));
    }
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        norms.iter().filter(|norm| **norm != "norm").for_each(|norm| add(norm, &[hidden]));
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[keys, hidden]);
        add("self_attn.v_proj", &[keys, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
    }
    write(dir, &config, &tensors);
}

/// Sparse layers with an expert of all tokens, wider than the others.
pub(crate) fn qwen2_moe(dir: &Path, shape: Llama) {
    let Llama { hidden, intermediate, layers, heads, vocab, context, .. } = shape;
    let (experts, inner) = (4, intermediate / 4);
    let config = json!({
        "architectures": ["Qwen2MoeForCausalLM"], "hidden_size": hidden, "qkv_bias": false,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_experts": experts,
        "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": vocab,
        "max_position_embeddings": context, "num_experts_per_tok": 2,
        "moe_intermediate_size": inner, "shared_expert_intermediate_size": intermediate,
        "tie_word_embeddings": true
    });
    let mut tensors: Tensors = vec![
        ("model.embed_tokens.weight".into(), vec![vocab, hidden]),
        ("model.norm.weight".into(), vec![hidden]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        for name in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{name}_proj"), &[hidden, hidden]);
        }
        add("mlp.gate", &[experts, hidden]);
        add("mlp.shared_expert_gate", &[1, hidden]);
        let each = (0..experts).map(|expert| (format!("experts.{expert}"), inner));
        for (name, inner) in each.chain([("shared_expert".into(), intermediate)]) {
            add(&format!("mlp.{name}.gate_proj"), &[inner, hidden]);
            add(&format!("mlp.{name}.up_proj"), &[inner, hidden]);
            add(&format!("mlp.{name}.down_proj"), &[hidden, inner]);
        }
    }
    write(dir, &config, &tensors);
}

/// Learned positions, biases, no gate.
pub(crate) fn gpt2(dir: &Path, shape: Llama) {
    let Llama { hidden, intermediate, layers, heads, vocab, context, .. } = shape;
    let config = json!({
        "architectures": ["GPT2LMHeadModel"], "n_embd": hidden, "n_inner": intermediate,
        "n_layer": layers, "n_head": heads, "vocab_size": vocab, "n_positions": context
    });
    let mut tensors: Tensors = vec![
        ("wte.weight".into(), vec![vocab, hidden]),
        ("wpe.weight".into(), vec![context, hidden]),
        ("ln_f.weight".into(), vec![hidden]),
        ("ln_f.bias".into(), vec![hidden]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, inputs: Option<usize>, outputs: usize| {
            let name = format!("h.{layer}.{name}");
            let weight = inputs.map_or(vec![outputs], |inputs| vec![inputs, outputs]);
            tensors.push((format!("{name}.weight"), weight));
            tensors.push((format!("{name}.bias"), vec![outputs]));
        };
        add("ln_1", None, hidden);
        add("ln_2", None, hidden);
        add("attn.c_attn", Some(hidden), 3 * hidden);
        add("attn.c_proj", Some(hidden), hidden);
        add("mlp.c_fc", Some(hidden), intermediate);
        add("mlp.c_proj", Some(intermediate), hidden);
    }
    write(dir, &config, &tensors);
}

/// Blocks side by side, interleaved projections.
pub(crate) fn gpt_neox(dir: &Path, shape: Llama) {
    let Llama { hidden, intermediate, layers, heads, vocab, context, .. } = shape;
    let config = json!({
        "architectures": ["GPTNeoXForCausalLM"], "hidden_size": hidden, "hidden_act": "gelu",
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocab, "max_position_embeddings": context
    });
    let mut tensors: Tensors = vec![
        ("gpt_neox.embed_in.weight".into(), vec![vocab, hidden]),
        ("embed_out.weight".into(), vec![vocab, hidden]),
        ("gpt_neox.final_layer_norm.weight".into(), vec![hidden]),
        ("gpt_neox.final_layer_norm.bias".into(), vec![hidden]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, inputs: Option<usize>, outputs: usize| {
            let name = format!("gpt_neox.layers.{layer}.{name}");
            let weight = inputs.map_or(vec![outputs], |inputs| vec![outputs, inputs]);
            tensors.push((format!("{name}.weight"), weight));
            tensors.push((format!("{name}.bias"), vec![outputs]));
        };
        add("input_layernorm", None, hidden);
        add("post_attention_layernorm", None, hidden);
        add("attention.query_key_value", Some(hidden), 3 * hidden);
        add("attention.dense", Some(hidden), hidden);
        add("mlp.dense_h_to_4h", Some(hidden), intermediate);
        add("mlp.dense_4h_to_h", Some(intermediate), hidden);
    }
    write(dir, &config, &tensors);
}

/// Norms first, rotations, windows, a gate in several passes, logits for each token.
pub(crate) fn modernbert(dir: &Path, shape: Llama) {
    let Llama { hidden, intermediate, layers, heads, vocab, .. } = shape;
    let config = json!({
        "architectures": ["ModernBertForMaskedLM"], "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocab, "max_position_embeddings": 256,
        "local_attention": 64, "global_attn_every_n_layers": 2
    });
    let mut tensors: Tensors = vec![
        ("model.embeddings.tok_embeddings.weight".into(), vec![vocab, hidden]),
        ("model.embeddings.norm.weight".into(), vec![hidden]),
        ("model.final_norm.weight".into(), vec![hidden]),
        ("head.dense.weight".into(), vec![hidden, hidden]),
        ("head.norm.weight".into(), vec![hidden]),
        ("decoder.bias".into(), vec![vocab]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        if layer > 0 {
            add("attn_norm", &[hidden]);
        }
        add("mlp_norm", &[hidden]);
        add("attn.Wqkv", &[3 * hidden, hidden]);
        add("attn.Wo", &[hidden, hidden]);
        add("mlp.Wi", &[2 * intermediate, hidden]);
        add("mlp.Wo", &[hidden, intermediate]);
    }
    write(dir, &config, &tensors);
}

/// What each layer makes of distances, labels for each token.
pub(crate) fn deberta(dir: &Path, shape: Llama) {
    let Llama { hidden, intermediate, layers, heads, vocab, .. } = shape;
    let config = json!({
        "architectures": ["DebertaV2ForTokenClassification"], "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "vocab_size": vocab, "max_position_embeddings": 256,
        "relative_attention": true, "share_att_key": true, "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 64, "norm_rel_ebd": "layer_norm", "position_biased_input": false
    });
    let mut tensors: Tensors = vec![
        ("deberta.embeddings.word_embeddings.weight".into(), vec![vocab, hidden]),
        ("deberta.embeddings.LayerNorm.weight".into(), vec![hidden]),
        ("deberta.embeddings.LayerNorm.bias".into(), vec![hidden]),
        ("deberta.encoder.rel_embeddings.weight".into(), vec![128, hidden]),
        ("deberta.encoder.LayerNorm.weight".into(), vec![hidden]),
        ("deberta.encoder.LayerNorm.bias".into(), vec![hidden]),
        ("classifier.weight".into(), vec![2, hidden]),
        ("classifier.bias".into(), vec![2]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, outputs: usize, inputs: Option<usize>| {
            let name = format!("deberta.encoder.layer.{layer}.{name}");
            let weight = inputs.map_or(vec![outputs], |inputs| vec![outputs, inputs]);
            tensors.push((format!("{name}.weight"), weight));
            tensors.push((format!("{name}.bias"), vec![outputs]));
        };
        for name in ["query", "key", "value"] {
            add(&format!("attention.self.{name}_proj"), hidden, Some(hidden));
        }
        add("attention.output.dense", hidden, Some(hidden));
        add("attention.output.LayerNorm", hidden, None);
        add("intermediate.dense", intermediate, Some(hidden));
        add("output.dense", hidden, Some(intermediate));
        add("output.LayerNorm", hidden, None);
    }
    write(dir, &config, &tensors);
}
