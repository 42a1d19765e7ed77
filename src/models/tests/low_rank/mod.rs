//! Adapters of any shape with weights that look random.

use std::path::Path;

use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

/// A module of a base: its name, inputs and outputs.
pub(crate) type Module = (String, usize, usize);

/// The projections of a decoder's layers.
pub(crate) fn projections(
    layers: usize,
    [hidden, keys, inner]: [usize; 3],
) -> impl Iterator<Item = Module> {
    let of_layer = move |layer: usize| {
        [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", hidden, keys),
            ("self_attn.v_proj", hidden, keys),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", hidden, inner),
            ("mlp.up_proj", hidden, inner),
            ("mlp.down_proj", inner, hidden),
        ]
        .map(|(name, inputs, outputs)| (format!("model.layers.{layer}.{name}"), inputs, outputs))
    };
    (0..layers).flat_map(of_layer)
}

/// Writes an adapter of numbers up to `largest`, in bf16.
pub(crate) fn write(dir: &Path, rank: usize, largest: f32, modules: &[Module]) {
    let mut tensors = Vec::new();
    for (name, inputs, outputs) in modules {
        let name = format!("base_model.model.{name}");
        tensors.push((format!("{name}.lora_A.weight"), vec![rank, *inputs]));
        tensors.push((format!("{name}.lora_B.weight"), vec![*outputs, rank]));
    }
    let number = |at: usize| bf16::from_f32(largest * ((at * 7919 % 1009) as f32 / 504.0 - 1.0));
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, shape)| {
            (0..shape.iter().product()).flat_map(|at| number(at).to_le_bytes()).collect()
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, shape), data)| {
        (name, TensorView::new(Dtype::BF16, shape.clone(), data).expect("shape and data agree"))
    });
    let bytes = safetensors::serialize(views, None).expect("the tensors are sound");
    let put = |file: &str, bytes: &[u8]| std::fs::write(dir.join(file), bytes);
    put("adapter_model.safetensors", &bytes).expect("the folder takes files");
    let mut names: Vec<&str> = modules.iter().filter_map(|it| it.0.rsplit('.').next()).collect();
    names.sort_unstable();
    names.dedup();
    let config = json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": names
    });
    put("adapter_config.json", config.to_string().as_bytes()).expect("the folder takes files");
}
