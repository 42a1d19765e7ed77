//! Artefacts of any shape with weights that look random, for measurements.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// A Llama decoder's shape.
#[derive(Clone, Copy)]
pub(crate) struct Llama {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) vocab: usize,
    pub(crate) context: usize,
}

/// A BERT encoder's shape.
#[derive(Clone, Copy)]
pub(crate) struct Bert {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) vocab: usize,
    pub(crate) context: usize,
}

/// Names and shapes.
pub(crate) type Tensors = Vec<(String, Vec<usize>)>;

/// Writes a decoder with tied embeddings.
pub(crate) fn llama(dir: &Path, shape: Llama) {
    let Llama { hidden, intermediate, layers, heads, kv_heads, vocab, context } = shape;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": context, "tie_word_embeddings": true, "rms_norm_eps": 1e-5
    });
    let kv_width = hidden / heads * kv_heads;
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
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[kv_width, hidden]);
        add("self_attn.v_proj", &[kv_width, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
    }
    write(dir, &config, &tensors);
}

/// Writes an encoder.
pub(crate) fn bert(dir: &Path, shape: Bert) {
    let Bert { hidden, intermediate, layers, heads, vocab, context } = shape;
    let config = json!({
        "architectures": ["BertModel"], "hidden_size": hidden, "vocab_size": vocab,
        "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "max_position_embeddings": context, "hidden_act": "gelu"
    });
    let mut tensors: Tensors = vec![
        ("embeddings.word_embeddings.weight".into(), vec![vocab, hidden]),
        ("embeddings.position_embeddings.weight".into(), vec![context, hidden]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, hidden]),
        ("embeddings.LayerNorm.weight".into(), vec![hidden]),
        ("embeddings.LayerNorm.bias".into(), vec![hidden]),
    ];
    for layer in 0..layers {
        let mut add = |name: &str, outputs: usize, inputs: Option<usize>| {
            let name = format!("encoder.layer.{layer}.{name}");
            let weight = inputs.map_or(vec![outputs], |inputs| vec![outputs, inputs]);
            tensors.push((format!("{name}.weight"), weight));
            tensors.push((format!("{name}.bias"), vec![outputs]));
        };
        for name in ["query", "key", "value"] {
            add(&format!("attention.self.{name}"), hidden, Some(hidden));
        }
        add("attention.output.dense", hidden, Some(hidden));
        add("attention.output.LayerNorm", hidden, None);
        add("intermediate.dense", intermediate, Some(hidden));
        add("output.dense", hidden, Some(intermediate));
        add("output.LayerNorm", hidden, None);
    }
    write(dir, &config, &tensors);
}

/// Matrices of small numbers about zero; vectors of ones, so that norms pass signals on.
pub(crate) fn write(dir: &Path, config: &Value, tensors: &Tensors) {
    std::fs::write(dir.join("config.json"), config.to_string()).expect("the folder takes files");
    let number = |shape: &[usize], i: usize| match shape.len() {
        1 => 1.0f32,
        _ => 0.05 * ((i * 7919 % 1009) as f32 / 504.0 - 1.0),
    };
    let bytes = |(_, shape): &(String, Vec<usize>)| -> Vec<u8> {
        let count = shape.iter().product();
        (0..count).flat_map(|i| number(shape, i).to_le_bytes()).collect()
    };
    let data: Vec<Vec<u8>> = tensors.iter().map(bytes).collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).expect("shapes fit"))
    });
    let bytes = safetensors::serialize(views, None).expect("tensors serialise");
    std::fs::write(dir.join("model.safetensors"), bytes).expect("the folder takes files");
}

/// Rounds the weights that were written to another type.
pub(crate) fn narrow(dir: &Path, dtype: DType) {
    let path = dir.join("model.safetensors");
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).expect("it was written");
    let narrow = |(name, tensor): (String, Tensor)| {
        (name, tensor.to_dtype(dtype).expect("floats can be rounded"))
    };
    let tensors: HashMap<String, Tensor> = tensors.into_iter().map(narrow).collect();
    candle_core::safetensors::save(&tensors, &path).expect("the folder takes files");
}
