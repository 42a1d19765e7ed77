//! Encoders of every family with every head: numbers equal to those of transformers.

use roundhouse_engine::{AdapterId, ModelRunner, Row, RunnerError, StepPlan, Want};
use roundhouse_models::{
    AdapterPlan, Cancel, DeviceMemory, DtypeSetting, Error, Folder, LoadSettings, ModelPlan,
    Quantize, inspect, load, load_adapter, read_local,
};
use roundhouse_types::{DeviceId, ModelKind};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::support::{apart, cases, dir, expected, settings, step, whole};

mod heads;

/// The largest difference found is 6e-6, of logits around 3.
const EQUAL: f32 = 5e-5;

#[derive(Deserialize)]
struct Family {
    heads: Vec<Head>,
}

#[derive(Deserialize)]
struct Head {
    head: String,
    architecture: String,
    changes: Map<String, Value>,
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Input {
    ids: Vec<u32>,
    second: Option<usize>,
    #[serde(default)]
    pooled: Option<Vec<f32>>,
    #[serde(default)]
    each: Option<Vec<Vec<f32>>>,
    #[serde(default)]
    places: Vec<usize>,
    #[serde(default)]
    at: Vec<Vec<f32>>,
}

impl Input {
    /// Each want that there is an answer to.
    fn wants(&self) -> Vec<(Row, Vec<f32>)> {
        let row = |want| Row { second: self.second, want, ..whole(&self.ids) };
        let mut wants = Vec::new();
        if let Some(pooled) = &self.pooled {
            wants.push((row(Want::Pooled), pooled.clone()));
        }
        if let Some(each) = &self.each {
            wants.push((row(Want::Each), each.concat()));
            let last = each.len() - 1;
            let ends = [each[last].clone(), each[0].clone()].concat();
            wants.push((row(Want::At(vec![last, 0])), ends));
        }
        if !self.at.is_empty() {
            wants.push((row(Want::At(self.places.clone())), self.at.concat()));
        }
        wants
    }
}

/// The case's files with a configuration that says something else.
fn planned(case: &str, changes: &Map<String, Value>) -> Result<ModelPlan, Error> {
    planned_with(case, changes, &settings())
}

fn planned_with(
    case: &str,
    changes: &Map<String, Value>,
    settings: &LoadSettings,
) -> Result<ModelPlan, Error> {
    let mut files = read_local(&dir(case)).unwrap();
    let config = files.contents.get_mut("config.json").unwrap();
    let mut json: Map<String, Value> = serde_json::from_slice(config).unwrap();
    json.extend(changes.clone());
    *config = serde_json::to_vec(&json).unwrap();
    inspect(&files, settings)
}

fn changed(architecture: &str, changes: &Map<String, Value>) -> Map<String, Value> {
    let mut changes = changes.clone();
    changes.insert("architectures".into(), vec![architecture].into());
    changes
}

fn opened(case: &str, plan: &ModelPlan) -> Box<dyn ModelRunner> {
    opened_in(&DeviceId::Cpu.into(), case, plan)
}

fn opened_in(memory: &DeviceMemory, case: &str, plan: &ModelPlan) -> Box<dyn ModelRunner> {
    load(&dir(case), plan, memory.clone(), &Cancel::new()).unwrap().runner
}

/// Decoders that make vectors, in such a memory: alone and in one ragged step.
pub(crate) fn parity_of_vectors(memory: &DeviceMemory) {
    let mut found = 0;
    for case in cases("encoder-") {
        let family: Family = expected(&case);
        for head in &family.heads {
            let plan = planned(&case, &changed(&head.architecture, &head.changes)).unwrap();
            if plan.host_only().is_some() {
                continue;
            }
            found += 1;
            let mut runner = opened_in(memory, &case, &plan);
            let worst = compared(&mut *runner, head);
            println!("{case} {}: largest difference {worst:e}", head.architecture);
            assert!(worst <= EQUAL, "{case} {}: {worst}", head.architecture);
        }
    }
    assert!(found >= 3, "{found} of them");
}

/// The largest difference from the reference of a head's inputs, alone and in one step.
fn compared(runner: &mut dyn ModelRunner, head: &Head) -> f32 {
    let wants: Vec<(Row, Vec<f32>)> = head.inputs.iter().flat_map(Input::wants).collect();
    let rows: Vec<Row> = wants.iter().map(|(row, _)| row.clone()).collect();
    let together = step(runner, rows);
    let mut worst = 0.0f32;
    for ((row, want), together) in wants.iter().zip(&together) {
        let alone = step(runner, vec![row.clone()]);
        worst = worst.max(apart(&alone[0], want)).max(apart(together, want));
    }
    worst
}

#[test]
fn parity_of_every_family_and_head_alone_and_in_one_ragged_step() {
    for case in cases("encoder-") {
        let family: Family = expected(&case);
        for head in &family.heads {
            let plan = planned(&case, &changed(&head.architecture, &head.changes)).unwrap();
            let kind = match head.head.as_str() {
                "vectors" => ModelKind::Embedding,
                "classes" => ModelKind::Classification,
                "token-classes" => ModelKind::TokenClassification,
                "words" => ModelKind::FillMask,
                "places" => ModelKind::QuestionAnswering,
                other => panic!("{other}"),
            };
            assert_eq!(plan.kind, kind);
            let mut runner = opened(&case, &plan);
            let worst = compared(&mut *runner, head);
            println!("{case} {}: largest difference {worst:e}", head.architecture);
            assert!(worst <= EQUAL, "{case} {}: {worst}", head.architecture);
        }
    }
}

#[derive(Deserialize)]
struct Adapted {
    base: String,
    #[serde(flatten)]
    head: Head,
}

#[test]
fn parity_of_adapters_beside_the_base_in_one_step() {
    let folder = dir("").with_file_name("encoder-adapters");
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let case: Adapted =
            serde_json::from_slice(&std::fs::read(path.join("expected.json")).unwrap()).unwrap();
        let changes = changed(&case.head.architecture, &case.head.changes);
        let plan = planned(&case.base, &changes).unwrap();
        let mut loaded = load(&dir(&case.base), &plan, DeviceId::Cpu, &Cancel::new()).unwrap();
        let read = AdapterPlan::read(&read_local(&path).unwrap()).unwrap();
        let fitted = read.on(&plan).unwrap();
        let adapter =
            load_adapter(&Folder::new(&path), &read, &loaded.base, &Cancel::new()).unwrap();
        assert_eq!(fitted.footprint(), adapter.footprint, "{path:?}");
        let plain = {
            let wants = case.head.inputs.iter().flat_map(Input::wants);
            step(&mut *loaded.runner, wants.map(|(row, _)| row).collect())
        };
        loaded.runner.attach(AdapterId(1), adapter.weights).unwrap();
        let (mut rows, mut wanted, mut moved) = (Vec::new(), Vec::new(), 0.0f32);
        for ((row, want), plain) in case.head.inputs.iter().flat_map(Input::wants).zip(plain) {
            rows.extend([Row { adapter: Some(AdapterId(1)), ..row.clone() }, row]);
            moved = moved.max(apart(&want, &plain));
            wanted.extend([want, plain]);
        }
        let got = step(&mut *loaded.runner, rows);
        let worst = got.iter().zip(&wanted).map(|(got, want)| apart(got, want)).fold(0.0, f32::max);
        println!("{path:?}: largest difference {worst:e}, moved {moved}");
        assert!(worst <= EQUAL, "{path:?}: {worst}");
        assert!(moved > 0.05, "{path:?} moves nothing");
    }
}

#[test]
fn what_is_loaded_is_what_was_planned_in_every_format() {
    let halves = LoadSettings { dtype: DtypeSetting::F16, ..settings() };
    let quantised = LoadSettings { quantize: Some(Quantize::Q8_0), ..settings() };
    for case in cases("encoder-") {
        let family: Family = expected(&case);
        for head in &family.heads {
            let changes = changed(&head.architecture, &head.changes);
            for settings in [settings(), halves, quantised] {
                let plan = planned_with(&case, &changes, &settings).unwrap();
                let loaded = load(&dir(&case), &plan, DeviceId::Cpu, &Cancel::new()).unwrap();
                assert_eq!(loaded.footprint, plan.footprint, "{case} {}", head.architecture);
                assert_eq!(loaded.runner.spec().output_width, plan.output_width);
                let (mut runner, mut both) = (loaded.runner, [Vec::new(), Vec::new()]);
                for (row, want) in head.inputs.iter().flat_map(Input::wants) {
                    let got = step(&mut *runner, vec![row]).remove(0);
                    // A text's few labels may all be near zero.
                    let alike = if want.len() < FEW { 1.0 } else { cosine(&got, &want) };
                    assert!(alike > 0.98, "{case} {} {settings:?}: {alike}", head.architecture);
                    both[0].extend(got);
                    both[1].extend(want);
                }
                let alike = cosine(&both[0], &both[1]);
                assert!(alike > 0.98, "{case} {} {settings:?}: {alike}", head.architecture);
            }
        }
    }
}

/// Numbers that have a direction of their own.
const FEW: usize = 8;

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn second_texts_count_where_the_family_tells_them_apart() {
    for (case, differs) in [("encoder-bert", true), ("encoder-roberta", false)] {
        let mut runner = opened(case, &planned(case, &Map::new()).unwrap());
        let one = whole(&[7, 8, 9, 10]);
        let two = Row { second: Some(2), ..one.clone() };
        let got = step(&mut *runner, vec![one, two]);
        assert_eq!(apart(&got[0], &got[1]) > 0.01, differs, "{case}");
    }
}

#[test]
fn wants_without_an_answer_are_refused() {
    let classes = changed("RobertaForSequenceClassification", &Map::new());
    let mut runner = opened("encoder-roberta", &planned("encoder-roberta", &classes).unwrap());
    let each = Row { want: Want::Each, ..whole(&[7, 8]) };
    let refused = runner.forward(&StepPlan { rows: vec![each] }).unwrap_err();
    assert!(matches!(&refused, RunnerError::Input(reason) if reason.contains("each token")));
    let words = changed("RobertaForMaskedLM", &Map::new());
    let mut runner = opened("encoder-roberta", &planned("encoder-roberta", &words).unwrap());
    let beyond = Row { want: Want::At(vec![0, 2]), ..whole(&[7, 8]) };
    let refused = runner.forward(&StepPlan { rows: vec![beyond] }).unwrap_err();
    assert!(matches!(&refused, RunnerError::Input(reason) if reason.contains("place 2")));
    // No places, no numbers.
    let none = Row { want: Want::At(Vec::new()), ..whole(&[7, 8]) };
    assert_eq!(step(&mut *runner, vec![none]), [Vec::<f32>::new()]);
}

#[test]
fn configurations_that_cannot_be_meant_are_refused() {
    let all = [
        ("encoder-roberta", r#"{"pad_token_id": 4294967295}"#, "leaves none"),
        ("encoder-roberta", r#"{"pad_token_id": -1}"#, "pad_token_id is -1"),
        ("encoder-roberta", r#"{"max_position_embeddings": 2}"#, "leaves none"),
        ("encoder-roberta", r#"{"max_position_embeddings": 4096}"#, "position_embeddings"),
        ("encoder-roberta", r#"{"num_hidden_layers": 4294967295}"#, "num_hidden_layers"),
        ("encoder-roberta", r#"{"num_attention_heads": 0}"#, "num_attention_heads is 0"),
        ("encoder-roberta", r#"{"hidden_size": 4294967296}"#, "hidden_size is 4294967296"),
        ("encoder-roberta", r#"{"layer_norm_eps": -1}"#, "layer_norm_eps"),
        ("encoder-distilbert", r#"{"dim": 0}"#, "hidden_size is 0"),
        ("encoder-distilbert", r#"{"n_layers": 3}"#, "transformer.layer.2"),
        ("encoder-mpnet", r#"{"relative_attention_num_buckets": 64}"#, "32 are computed"),
        ("encoder-electra", r#"{"embedding_size": 0}"#, "embedding_size is 0"),
        ("encoder-electra", r#"{"embedding_size": 24}"#, "word_embeddings"),
        ("encoder-albert", r#"{"inner_group_num": 2}"#, "inner_group_num"),
        ("encoder-albert", r#"{"num_hidden_groups": 3}"#, "not divided among 3 groups"),
        ("encoder-albert", r#"{"num_hidden_groups": 0}"#, "num_hidden_groups is 0"),
        ("encoder-bert", r#"{"architectures": ["NomicBertModel"]}"#, "by code of its authors"),
        ("encoder-modernbert", r#"{"local_attention": 0}"#, "local_attention is 0"),
        ("encoder-modernbert", r#"{"global_attn_every_n_layers": 0}"#, "every_n_layers is 0"),
        ("encoder-modernbert", r#"{"num_attention_heads": 32}"#, "cannot be rotated"),
        ("encoder-modernbert", r#"{"global_rope_theta": -1}"#, "global_rope_theta"),
        ("encoder-modernbert", r#"{"layer_types": ["full_attention"]}"#, "1 layers of 4"),
        ("encoder-modernbert", r#"{"hidden_activation": "tanh"}"#, "'tanh'"),
        ("encoder-deberta", r#"{"position_buckets": 1099511627776}"#, "are no model's"),
        ("encoder-deberta", r#"{"position_buckets": 2}"#, "do not divide"),
        ("encoder-deberta", r#"{"position_buckets": 16}"#, "rel_embeddings"),
        ("encoder-deberta", r#"{"share_att_key": false}"#, "share_att_key"),
        ("encoder-deberta", r#"{"conv_kernel_size": 3}"#, "conv_kernel_size"),
        ("encoder-deberta", r#"{"norm_rel_ebd": "batch"}"#, "'batch'"),
    ];
    let mut other = Vec::new();
    for (case, changes, says) in all {
        let told = match planned(case, &serde_json::from_str(changes).unwrap()) {
            Ok(_) => "it is no fault".to_owned(),
            Err(refused) => refused.to_string(),
        };
        if !told.contains(says) {
            other.push(format!("{case} {changes}: {told}"));
        }
    }
    assert!(other.is_empty(), "{other:#?}");
    let heads = [
        ("encoder-modernbert", "ModernBertForSequenceClassification", "classifier_pooling", "max"),
        ("encoder-deberta", "DebertaV2ForSequenceClassification", "pooler_hidden_act", "step"),
    ];
    for (case, architecture, key, value) in heads {
        let mut changes = changed(architecture, &Map::new());
        changes.insert(key.into(), value.into());
        let told = planned(case, &changes).unwrap_err().to_string();
        assert!(told.contains(&format!("'{value}'")), "{told}");
    }
    let mut places = changed("BertForQuestionAnswering", &Map::new());
    places.insert("id2label".into(), serde_json::json!({"0": "a", "1": "b", "2": "c"}));
    assert!(planned("encoder-bert", &places).unwrap_err().to_string().contains("3 labels"));
}

#[test]
fn modules_tell_how_a_decoder_s_vectors_are_pooled() {
    let none = Map::new();
    let last = planned("encoder-qwen3-last", &none).unwrap();
    assert!(last.normalize && last.kv().is_none() && last.eos_tokens.is_empty());
    assert_eq!((last.output_width, last.kind), (32, ModelKind::Embedding));
    // The head of the language model is not loaded.
    let with_head = planned("encoder-qwen3-last", &changed("Qwen3Model", &none)).unwrap();
    assert_eq!(last.footprint.weights, with_head.footprint.weights);
    assert!(!planned("encoder-mistral-mean", &none).unwrap().normalize);
}

#[test]
fn decoders_are_embedders_as_their_authors_publish_them() {
    let none = Map::new();
    for (case, width) in [("encoder-qwen3-published", 32), ("encoder-gemma3-both-ways", 32)] {
        let plan = planned(case, &none).unwrap();
        assert_eq!((plan.kind, plan.output_width), (ModelKind::Embedding, width), "{case}");
        assert!(plan.normalize && plan.prompts.default.is_none(), "{case}");
        let prompts: Vec<&str> = plan.prompts.texts.keys().map(String::as_str).collect();
        assert_eq!(prompts, ["document", "query"], "{case}");
    }
    let both = "encoder-gemma3-both-ways";
    let told = planned(both, &changed("Gemma3ForCausalLM", &none));
    // The modules make it an embedder; without them it would generate.
    assert_eq!(told.unwrap().kind, ModelKind::Embedding);
    let mut files = read_local(&dir(both)).unwrap();
    files.sizes.remove("modules.json");
    let config = files.contents.get_mut("config.json").unwrap();
    *config =
        String::from_utf8_lossy(config).replace("Gemma3TextModel", "Gemma3ForCausalLM").into();
    let told = inspect(&files, &settings()).unwrap_err().to_string();
    assert!(told.contains("of a model that generates is not computed"), "{told}");
    // What is projected are texts.
    let mut runner = opened(both, &planned(both, &none).unwrap());
    let each = Row { want: Want::Each, ..whole(&[7, 8]) };
    let refused = runner.forward(&StepPlan { rows: vec![each] }).unwrap_err();
    assert!(matches!(&refused, RunnerError::Input(reason) if reason.contains("each token")));
}

#[test]
fn decoders_name_labels_as_their_configuration_does() {
    let mut named = Map::new();
    let names = serde_json::json!({"0": "bad", "1": "so-so", "2": "good"});
    named.insert("id2label".into(), names);
    named.insert("problem_type".into(), "regression".into());
    let plan = planned("encoder-llama-classes", &named).unwrap();
    let labels = plan.labels.as_ref().unwrap();
    assert_eq!(labels.names, ["bad", "so-so", "good"]);
    assert_eq!((plan.kind, plan.output_width), (ModelKind::Classification, 3));
    assert_eq!(labels.function, roundhouse_models::ScoreFunction::Identity);
    assert!(plan.kv().is_none() && plan.eos_tokens.is_empty());
    let one = planned("encoder-qwen3-reward", &Map::new()).unwrap().labels.unwrap();
    assert_eq!(one.function, roundhouse_models::ScoreFunction::Sigmoid);
    named.insert("id2label".into(), serde_json::json!({"0": "bad", "1": "good"}));
    let told = planned("encoder-llama-classes", &named).unwrap_err().to_string();
    assert!(told.contains("score.weight"), "{told}");
}

#[test]
fn layers_that_share_weights_are_charged_once() {
    let weights = |changes: &str| {
        let changes = serde_json::from_str(changes).unwrap();
        planned("encoder-albert", &changes).unwrap().footprint.weights
    };
    assert_eq!(weights("{}"), weights(r#"{"num_hidden_layers": 12}"#));
}
