//! Generated checkpoints: classifiers that sign their version into every answer, and a
//! decoder of any size.

use std::io::Write as _;

use serde_json::{Map, Value, json};

/// A file of a model: its path within the folder and its bytes.
pub type File = (String, Vec<u8>);

/// How many labels a signed classifier has; its version picks one of them.
const LABELS: u32 = 16;

/// A classifier whose every answer is `<name>-v<version>-<version mod 16>`: the first part
/// comes from the configuration and the last from the weights, so that a mixture of two
/// versions' files shows. `padding_tokens` rows of vocabulary make it as large as wanted
/// (256 bytes each).
pub fn signed_classifier(name: &str, version: u32, padding_tokens: usize) -> Vec<File> {
    const HIDDEN: usize = 64;
    let vocab = 8 + padding_tokens;
    let labels: Map<String, Value> =
        (0..LABELS).map(|i| (i.to_string(), json!(format!("{name}-v{version}-{i}")))).collect();
    let config = json!({
        "architectures": ["BertForSequenceClassification"], "model_type": "bert",
        "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "num_hidden_layers": 1,
        "num_attention_heads": 4, "vocab_size": vocab, "max_position_embeddings": 64,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "id2label": labels,
    });
    let mut bias = vec![0.0f32; LABELS as usize];
    bias[(version % LABELS) as usize] = 12.0;
    let mut weights = Weights::new(u64::from(version));
    weights.noise("bert.embeddings.word_embeddings.weight", &[vocab, HIDDEN]);
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
    weights.values(
        "classifier.weight",
        &[LABELS as usize, HIDDEN],
        &vec![0.0; LABELS as usize * HIDDEN],
    );
    weights.values("classifier.bias", &[LABELS as usize], &bias);
    vec![
        ("config.json".into(), pretty(&config)),
        ("tokenizer.json".into(), pretty(&word_tokenizer())),
        ("model.safetensors".into(), weights.finish()),
    ]
}

/// The label that version `version` of [`signed_classifier`] answers.
pub fn signature(name: &str, version: u32) -> String {
    format!("{name}-v{version}-{}", version % LABELS)
}

/// A Llama decoder with random f32 weights of about `megabytes` (decimal), byte-level tokens.
pub fn decoder(megabytes: usize) -> Vec<File> {
    fine_tune(megabytes, 0, 1)
}

/// [`decoder`] with other weights in its last `tuned` layers, by `seed`. All of a size share
/// the rest to the bit.
pub fn fine_tune(megabytes: usize, tuned: usize, seed: u64) -> Vec<File> {
    const HIDDEN: usize = 512;
    const INNER: usize = 1408;
    const VOCAB: usize = 258;
    let per_layer = 4 * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER + 2 * HIDDEN);
    let layers = (megabytes * 1_000_000 / per_layer).max(1);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": 8,
        "num_key_value_heads": 8, "vocab_size": VOCAB, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "hidden_act": "silu", "bos_token_id": 256, "eos_token_id": 257, "torch_dtype": "float32",
    });
    let mut weights = Weights::new(1);
    weights.noise("model.embed_tokens.weight", &[VOCAB, HIDDEN]);
    for layer in 0..layers {
        if layer == layers.saturating_sub(tuned) {
            weights.state = Weights::new(seed.wrapping_mul(0x9e37_79b9)).state;
        }
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            weights.noise(&name(&format!("self_attn.{part}")), &[HIDDEN, HIDDEN]);
        }
        weights.noise(&name("mlp.gate_proj"), &[INNER, HIDDEN]);
        weights.noise(&name("mlp.up_proj"), &[INNER, HIDDEN]);
        weights.noise(&name("mlp.down_proj"), &[HIDDEN, INNER]);
        weights.values(&name("input_layernorm"), &[HIDDEN], &[1.0; HIDDEN]);
        weights.values(&name("post_attention_layernorm"), &[HIDDEN], &[1.0; HIDDEN]);
    }
    weights.values("model.norm.weight", &[HIDDEN], &[1.0; HIDDEN]);
    vec![
        ("config.json".into(), pretty(&config)),
        ("tokenizer.json".into(), pretty(&byte_tokenizer())),
        ("model.safetensors".into(), weights.finish()),
    ]
}

/// The files as a gzipped tar, files at its root.
pub fn tar_gz(files: &[File]) -> Vec<u8> {
    let gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gz);
    for (path, body) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, body.as_slice()).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(value).unwrap()
}

/// Splits at blanks; knows seven words.
pub(crate) fn word_tokenizer() -> Value {
    let vocab = json!({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "hello": 3, "world": 4, "one": 5, "two": 6, "three": 7});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    })
}

/// One token per byte, in the byte-level alphabet: printable bytes stand for themselves, the
/// others for the characters from U+0100 on, in order.
fn byte_tokenizer() -> Value {
    let mut next = 0x100u32;
    let mut vocab = Map::new();
    for byte in 0..=255u32 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            byte
        } else {
            next += 1;
            next - 1
        };
        vocab.insert(char::from_u32(code).unwrap().to_string(), json!(byte));
    }
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    })
}

/// A safetensors file in the making.
pub(crate) struct Weights {
    header: Map<String, Value>,
    body: Vec<u8>,
    state: u64,
}

impl Weights {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            header: Map::new(),
            body: Vec::new(),
            state: seed.wrapping_add(0x9e37_79b9_7f4a_7c15),
        }
    }

    pub(crate) fn values(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let begin = self.body.len();
        for value in values {
            self.body.write_all(&value.to_le_bytes()).unwrap();
        }
        let entry =
            json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, self.body.len()]});
        self.header.insert(name.into(), entry);
    }

    /// Small numbers that do not compress, within ±0.05.
    pub(crate) fn noise(&mut self, name: &str, shape: &[usize]) {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                ((self.state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.1
            })
            .collect();
        self.values(name, shape, &values);
    }

    pub(crate) fn linear(&mut self, name: &str, out: usize, input: usize) {
        self.noise(&format!("{name}.weight"), &[out, input]);
        self.noise(&format!("{name}.bias"), &[out]);
    }

    pub(crate) fn norm(&mut self, name: &str, width: usize) {
        self.values(&format!("{name}.weight"), &[width], &vec![1.0; width]);
        self.values(&format!("{name}.bias"), &[width], &vec![0.0; width]);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let mut header = serde_json::to_vec(&self.header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(self.body);
        file
    }
}
