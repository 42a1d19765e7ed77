//! Models of equal content hold it once, and compute what they compute alone.

use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use roundhouse_models::{
    Cancel, Digests, DtypeSetting, Error, Folder, LoadSettings, LoadedRunner, ModelPlan, Sharing,
    TensorPool, inspect, known_parts, load, load_shared, read_local,
};
use roundhouse_types::{Bytes, DeviceId, Footprint, SharedPart};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{row, settings, step, whole};

const HIDDEN: usize = 128;
const INNER: usize = 256;
pub(crate) const LAYERS: usize = 3;
const VOCAB: usize = 256;

/// How numbers lie in a file.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Lies {
    F32,
    F16,
    Bf16,
}

/// A checkpoint whose layers from `tuned` on are this `model`'s own; the others are the base's.
pub(crate) fn checkpoint(is_decoder: bool, lies: Lies, model: u64, tuned: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (config, tensors) = if is_decoder { decoder() } else { encoder() };
    let (mut header, mut body) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let layer = name.split('.').find_map(|part| part.parse::<usize>().ok()).unwrap_or(0);
        let seed = if layer >= tuned { model } else { 0 };
        let mut state = name
            .bytes()
            .fold(seed + 1, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let begin = body.len();
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Numbers that every format holds exactly.
            let number = ((state >> 57) as f32 - 64.0) / 512.0;
            match lies {
                Lies::F32 => body.extend(number.to_le_bytes()),
                Lies::F16 => body.extend(f16::from_f32(number).to_le_bytes()),
                Lies::Bf16 => body.extend(bf16::from_f32(number).to_le_bytes()),
            }
        }
        let dtype = match lies {
            Lies::F32 => "F32",
            Lies::F16 => "F16",
            Lies::Bf16 => "BF16",
        };
        let offsets = [begin, body.len()];
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(body);
    std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

type Tensors = Vec<(String, Vec<usize>)>;

fn decoder() -> (Value, Tensors) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": VOCAB, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1,
    });
    let mut tensors = vec![("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), &[HIDDEN, HIDDEN]);
        }
        add("mlp.gate_proj", &[INNER, HIDDEN]);
        add("mlp.up_proj", &[INNER, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, INNER]);
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
    }
    tensors.push(("model.norm.weight".into(), vec![HIDDEN]));
    (config, tensors)
}

fn encoder() -> (Value, Tensors) {
    let config = json!({
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "vocab_size": VOCAB, "max_position_embeddings": 64, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "hidden_act": "gelu",
    });
    let mut tensors: Tensors = vec![
        ("embeddings.word_embeddings.weight".into(), vec![VOCAB, HIDDEN]),
        ("embeddings.position_embeddings.weight".into(), vec![64, HIDDEN]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, HIDDEN]),
        ("embeddings.LayerNorm.weight".into(), vec![HIDDEN]),
        ("embeddings.LayerNorm.bias".into(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, rows: usize, columns: Option<usize>| {
            let name = format!("encoder.layer.{layer}.{name}");
            let shape = columns.map_or(vec![rows], |columns| vec![rows, columns]);
            tensors.push((format!("{name}.weight"), shape));
            tensors.push((format!("{name}.bias"), vec![rows]));
        };
        for name in ["query", "key", "value"] {
            add(&format!("attention.self.{name}"), HIDDEN, Some(HIDDEN));
        }
        add("attention.output.dense", HIDDEN, Some(HIDDEN));
        add("attention.output.LayerNorm", HIDDEN, None);
        add("intermediate.dense", INNER, Some(HIDDEN));
        add("output.dense", HIDDEN, Some(INNER));
        add("output.LayerNorm", HIDDEN, None);
    }
    (config, tensors)
}

struct Loads {
    pool: Arc<TensorPool>,
    settings: LoadSettings,
}

impl Loads {
    fn new(dtype: DtypeSetting) -> Self {
        Self { pool: Arc::default(), settings: LoadSettings { dtype, ..settings() } }
    }

    fn plan(&self, folder: &Path) -> ModelPlan {
        inspect(&read_local(folder).unwrap(), &self.settings).unwrap()
    }

    fn load(&self, folder: &TempDir, scope: &str, known: &Digests) -> LoadedRunner {
        let sharing =
            Sharing { pool: Arc::clone(&self.pool), scope: scope.into(), known: known.clone() };
        let plan = self.plan(folder.path());
        load_shared(folder.path(), &plan, DeviceId::Cpu, &Cancel::new(), &sharing).unwrap()
    }

    fn alone(&self, folder: &TempDir) -> LoadedRunner {
        let plan = self.plan(folder.path());
        load(folder.path(), &plan, DeviceId::Cpu, &Cancel::new()).unwrap()
    }
}

fn bytes<'a>(parts: impl IntoIterator<Item = &'a SharedPart>) -> Bytes {
    parts.into_iter().map(|part| part.bytes).sum()
}

pub(crate) fn answer(loaded: &mut LoadedRunner, is_decoder: bool) -> Vec<Vec<f32>> {
    let tokens: Vec<u32> = (2..40).collect();
    let row = if is_decoder { row(0, 0, &tokens) } else { whole(&tokens) };
    step(loaded.runner.as_mut(), vec![row])
}

#[test]
fn fine_tunes_hold_their_base_once_and_answer_as_they_do_alone() {
    for is_decoder in [true, false] {
        for lies in [Lies::F32, Lies::F16, Lies::Bf16] {
            for dtype in [DtypeSetting::Auto, DtypeSetting::F32, DtypeSetting::F16] {
                let loads = Loads::new(dtype);
                let tuned = LAYERS - 1;
                let [one, two] = [1, 2].map(|model| checkpoint(is_decoder, lies, model, tuned));
                let unknown = Digests::default();
                let mut first = loads.load(&one, "", &unknown);
                let mut second = loads.load(&two, "", &unknown);
                let common: Vec<&SharedPart> =
                    first.shared.iter().filter(|part| second.shared.contains(part)).collect();
                let base = bytes(common);
                assert!(
                    base + base > first.footprint.weights,
                    "two of three layers are the base's"
                );
                assert!(base < first.footprint.weights);
                let both = bytes(&first.shared) + bytes(&second.shared);
                assert_eq!(loads.pool.bytes(), both.saturating_sub(base));
                for (shared, folder) in [(&mut first, &one), (&mut second, &two)] {
                    let mut alone = loads.alone(folder);
                    assert_eq!(alone.footprint, shared.footprint);
                    assert_eq!(answer(shared, is_decoder), answer(&mut alone, is_decoder));
                }
                assert_ne!(answer(&mut first, is_decoder), answer(&mut second, is_decoder));
                drop(first);
                assert_eq!(loads.pool.bytes(), bytes(&second.shared), "only its own is freed");
                drop(second);
                assert_eq!(loads.pool.bytes(), Bytes::ZERO);
            }
        }
    }
}

/// What a folder's files hold, found as a fetch finds it: tensor by tensor.
fn contents(loads: &Loads, folder: &TempDir) -> Digests {
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let tensor = |path: &str, start: u64, length: u64| {
        assert_eq!(path, "model.safetensors");
        let start = usize::try_from(start).unwrap();
        let end = start + usize::try_from(length).unwrap();
        Some(*blake3::hash(&bytes[start..end]).as_bytes())
    };
    Digests::of(&loads.plan(folder.path()), &Folder::new(folder.path()), &tensor).unwrap()
}

#[test]
fn what_a_fetch_found_tells_the_first_load_what_it_need_not_read() {
    for is_decoder in [true, false] {
        for lies in [Lies::F32, Lies::Bf16] {
            let loads = Loads::new(DtypeSetting::Auto);
            let [one, two] = [1, 2].map(|model| checkpoint(is_decoder, lies, model, LAYERS - 1));
            // What was read is named as what was found beforehand.
            let first = loads.load(&one, "", &Digests::default());
            assert_eq!(first.found, Bytes::ZERO, "what is not known is read");
            let known = contents(&loads, &two);
            let foreseen = known_parts(&loads.plan(two.path()), &known, "");
            let there = bytes(foreseen.iter().filter(|part| first.shared.contains(part)));
            let second = loads.load(&two, "", &known);
            assert!(there > Bytes::ZERO);
            assert_eq!(second.found, there);
            let mut shared = second.shared.clone();
            shared.sort_unstable_by_key(|part| part.content);
            assert_eq!(foreseen, shared);
        }
    }
}

#[test]
fn tensors_of_which_nothing_is_known_are_read() {
    let loads = Loads::new(DtypeSetting::F32);
    let one = checkpoint(true, Lies::F32, 1, LAYERS - 1);
    let files = Folder::new(one.path());
    let known = Digests::of(&loads.plan(one.path()), &files, &|_, _, _| None).unwrap();
    assert_eq!(known, Digests::default());
}

#[test]
fn files_that_do_not_hold_what_was_fetched_are_not_loaded() {
    let loads = Loads::new(DtypeSetting::F32);
    let [one, two] = [1, 2].map(|model| checkpoint(true, Lies::F32, model, 0));
    let known = contents(&loads, &one);
    let sharing = Sharing { pool: Arc::clone(&loads.pool), scope: String::new(), known };
    let plan = loads.plan(two.path());
    let loaded = load_shared(two.path(), &plan, DeviceId::Cpu, &Cancel::new(), &sharing);
    assert!(matches!(loaded, Err(Error::Altered { .. })), "{loaded:?}");
    assert_eq!(loads.pool.bytes(), Bytes::ZERO);
}

#[test]
fn equal_numbers_of_other_formats_and_other_scopes_are_not_shared() {
    let loads = Loads::new(DtypeSetting::F32);
    let unknown = Digests::default();
    let files = [Lies::F32, Lies::Bf16].map(|lies| checkpoint(true, lies, 1, 0));
    let loaded = [
        loads.load(&files[0], "a", &unknown),
        loads.load(&files[0], "b", &unknown),
        loads.load(&files[1], "a", &unknown),
    ];
    let each = loaded.iter().map(|loaded| bytes(&loaded.shared)).sum();
    assert_eq!(loads.pool.bytes(), each);
}

#[test]
fn loads_side_by_side_share_as_loads_in_turn() {
    let loads = Loads::new(DtypeSetting::F32);
    let folders: Vec<TempDir> =
        (1..5).map(|model| checkpoint(true, Lies::F32, model, LAYERS - 1)).collect();
    let noted: Vec<Digests> = folders.iter().map(|folder| contents(&loads, folder)).collect();
    let unknown = vec![Digests::default(); folders.len()];
    for known in [&noted, &unknown] {
        let loaded: Vec<LoadedRunner> = std::thread::scope(|scope| {
            let threads: Vec<_> = folders
                .iter()
                .zip(known)
                .map(|(folder, known)| scope.spawn(|| loads.load(folder, "", known)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut parts: Vec<&SharedPart> = loaded.iter().flat_map(|one| &one.shared).collect();
        parts.sort_unstable_by_key(|part| part.content);
        parts.dedup();
        assert_eq!(loads.pool.bytes(), bytes(parts));
        let Footprint { weights, .. } = loaded[0].footprint;
        assert!(loads.pool.bytes() < weights + weights + weights, "four take less than three");
    }
}
