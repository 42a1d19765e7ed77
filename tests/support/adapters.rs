//! Generated adapters that write their own name into every answer, and a base for them.

use serde_json::{Map, Value, json};

use crate::models::{File, Weights, pretty, word_tokenizer};

const HIDDEN: usize = 64;
/// What an adapter adds to its label's logit: more than any base says.
const CERTAIN: f32 = 60.0;

/// A classifier with so many labels, `label-0` and so on, whose own answer is the first.
pub fn labelled_base(labels: usize) -> Vec<File> {
    const VOCAB: usize = 8;
    let names: Map<String, Value> =
        (0..labels).map(|at| (at.to_string(), json!(label(at)))).collect();
    let config = json!({
        "architectures": ["BertForSequenceClassification"], "model_type": "bert",
        "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 64,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "id2label": names,
    });
    let mut bias = vec![0.0f32; labels];
    bias[0] = 12.0;
    let mut weights = Weights::new(1);
    weights.noise("bert.embeddings.word_embeddings.weight", &[VOCAB, HIDDEN]);
    weights.noise("bert.embeddings.position_embeddings.weight", &[64, HIDDEN]);
    weights.noise("bert.embeddings.token_type_embeddings.weight", &[2, HIDDEN]);
    weights.norm("bert.embeddings.LayerNorm", HIDDEN);
    let layer = "bert.encoder.layer.0";
    for part in ["attention.self.query", "attention.self.key", "attention.self.value"] {
        weights.linear(&format!("{layer}.{part}"), HIDDEN, HIDDEN);
    }
    for part in ["attention.output", "output"] {
        weights.linear(&format!("{layer}.{part}.dense"), HIDDEN, HIDDEN);
        weights.norm(&format!("{layer}.{part}.LayerNorm"), HIDDEN);
    }
    weights.linear(&format!("{layer}.intermediate.dense"), HIDDEN, HIDDEN);
    weights.linear("bert.pooler.dense", HIDDEN, HIDDEN);
    weights.values("classifier.weight", &[labels, HIDDEN], &vec![0.0; labels * HIDDEN]);
    weights.values("classifier.bias", &[labels], &bias);
    vec![
        ("config.json".into(), pretty(&config)),
        ("tokenizer.json".into(), pretty(&word_tokenizer())),
        ("model.safetensors".into(), weights.finish()),
    ]
}

/// An adapter of [`labelled_base`] with as many labels, called `base`, whose every answer is one
/// of its labels.
pub fn signed_adapter(base: &str, labels: usize, own: usize) -> Vec<File> {
    signed_of_rank(base, labels, own, 1)
}

/// The same with matrices of a rank, which say nothing and take memory.
pub fn signed_of_rank(base: &str, labels: usize, own: usize, rank: usize) -> Vec<File> {
    let mut bias = vec![0.0f32; labels];
    bias[own] = CERTAIN;
    let mut weights = Weights::new(own as u64);
    let module = "base_model.model.classifier";
    weights.noise(&format!("{module}.lora_A.weight"), &[rank, HIDDEN]);
    let none = vec![0.0; labels * rank];
    weights.values(&format!("{module}.lora_B.weight"), &[labels, rank], &none);
    weights.values(&format!("{module}.lora_B.bias"), &[labels], &bias);
    let mut settings = config(base, &["classifier"]);
    settings["r"] = json!(rank);
    settings["lora_alpha"] = json!(rank);
    vec![
        ("adapter_config.json".into(), pretty(&settings)),
        ("adapter_model.safetensors".into(), weights.finish()),
    ]
}

/// A configuration of rank 1 as PEFT writes it, less what says nothing.
pub fn config(base: &str, targets: &[&str]) -> Value {
    json!({
        "base_model_name_or_path": base, "bias": "none", "inference_mode": true, "lora_alpha": 1,
        "lora_bias": true, "lora_dropout": 0.0, "modules_to_save": null, "peft_type": "LORA",
        "r": 1, "target_modules": targets, "task_type": null,
    })
}

/// What answers are called.
pub fn label(at: usize) -> String {
    format!("label-{at}")
}

/// An adapter of [`labelled_base`] with a head of its own, of so many labels, whose every answer is
/// the one numbered `own`. `names`: what they are called in a `config.json` beside it.
pub fn headed_adapter(base: &str, labels: usize, own: usize, names: Option<&str>) -> Vec<File> {
    let mut bias = vec![0.0f32; labels];
    bias[own] = CERTAIN;
    let mut weights = Weights::new(own as u64);
    let query = "base_model.model.bert.encoder.layer.0.attention.self.query";
    weights.noise(&format!("{query}.lora_A.weight"), &[1, HIDDEN]);
    weights.values(&format!("{query}.lora_B.weight"), &[HIDDEN, 1], &[0.0; HIDDEN]);
    let head = "base_model.model.classifier";
    weights.values(&format!("{head}.weight"), &[labels, HIDDEN], &vec![0.0; labels * HIDDEN]);
    weights.values(&format!("{head}.bias"), &[labels], &bias);
    let mut settings = config(base, &["query"]);
    settings["lora_bias"] = json!(false);
    settings["task_type"] = json!("SEQ_CLS");
    settings["modules_to_save"] = json!(["classifier", "score"]);
    let mut files = vec![
        ("adapter_config.json".into(), pretty(&settings)),
        ("adapter_model.safetensors".into(), weights.finish()),
    ];
    if let Some(name) = names {
        let names: Map<String, Value> =
            (0..labels).map(|at| (at.to_string(), json!(format!("{name}-{at}")))).collect();
        files.push(("config.json".into(), pretty(&json!({"id2label": names}))));
    }
    files
}

/// An adapter of [`decoder`](crate::models::decoder) that names two labels of a text, `name`-0 and
/// `name`-1: of `turned` ones what each answers is what the other does without.
pub fn labelling_adapter(base: &str, name: &str, turned: bool) -> Vec<File> {
    const HIDDEN: usize = 512;
    let mut weights = Weights::new(7);
    let query = "base_model.model.model.layers.0.self_attn.q_proj";
    weights.noise(&format!("{query}.lora_A.weight"), &[1, HIDDEN]);
    weights.noise(&format!("{query}.lora_B.weight"), &[HIDDEN, 1]);
    let sign = if turned { -1.0 } else { 1.0 };
    let row = |sign: f32| (0..HIDDEN).map(move |at| sign * ((at * 37 % 101) as f32 / 101.0 - 0.5));
    let rows: Vec<f32> = row(sign).chain(row(-sign)).collect();
    weights.values("base_model.model.score.weight", &[2, HIDDEN], &rows);
    let mut settings = config(base, &["q_proj"]);
    settings["lora_bias"] = json!(false);
    settings["task_type"] = json!("SEQ_CLS");
    settings["modules_to_save"] = json!(["classifier", "score"]);
    let labels = json!({"0": format!("{name}-0"), "1": format!("{name}-1")});
    vec![
        ("adapter_config.json".into(), pretty(&settings)),
        ("adapter_model.safetensors".into(), weights.finish()),
        ("config.json".into(), pretty(&json!({"id2label": labels}))),
    ]
}
