//! Adapters that name labels on bases that generate text.

use roundhouse_models::{Labels, ScoreFunction};
use roundhouse_types::{Bytes, ModelKind};

use super::*;

#[derive(Deserialize)]
struct Headed {
    base: String,
    labels: usize,
    inputs: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    ids: Vec<u32>,
    logits: Vec<f32>,
}

fn folder(case: &str) -> PathBuf {
    references().with_file_name("decoder-heads").join(case)
}

/// Every case, with its expectations.
fn cases() -> Vec<(String, Headed)> {
    let names = std::fs::read_dir(folder("")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<(String, Headed)> = names
        .map(|name| {
            let text = std::fs::read(folder(&name).join("expected.json")).unwrap();
            (name, serde_json::from_slice(&text).unwrap())
        })
        .collect();
    cases.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert!(cases.len() >= 4, "{} cases", cases.len());
    cases
}

fn read(case: &str, base: &str) -> AdapterPlan {
    let read = AdapterPlan::read(&read_local(&folder(case)).unwrap()).unwrap();
    read.on(&plan(base, &served())).unwrap()
}

#[test]
fn parity_of_labels_on_bases_that_generate_beside_their_sequences() {
    for (name, case) in cases() {
        let mut loaded = open(&case.base, &served());
        let fitted = read(&name, &case.base);
        let function =
            if case.labels == 1 { ScoreFunction::Sigmoid } else { ScoreFunction::Softmax };
        let names = (0..case.labels).map(|id| format!("LABEL_{id}")).collect();
        let labels = Labels { names, multi_label: false, function };
        assert_eq!(fitted.answers, Some((ModelKind::Classification, labels)), "{name}");
        let files = Folder::new(folder(&name));
        let adapter = load_adapter(&files, &fitted, &loaded.base, &Cancel::new()).unwrap();
        assert_eq!(adapter.footprint, fitted.footprint(), "{name}");
        let before: Vec<Vec<f32>> = (case.inputs.iter())
            .map(|text| step(&mut *loaded.runner, vec![row(0, 0, &text.ids)]).remove(0))
            .collect();
        let head = loaded.runner.attach(AdapterId(1), adapter.weights).unwrap();
        assert_eq!(head.map(|head| head.width), Some(case.labels), "{name}");
        for chunk in [usize::MAX, 4] {
            let worst = together(&mut *loaded.runner, &case, &before, chunk);
            println!("{name}, {chunk} at a time: largest difference {worst:e}");
            assert!(worst <= LOGITS, "{name}: {worst}");
        }
    }
}

/// Reads every text with the adapter and with the base in the same steps, at most `chunk` tokens
/// of each; the largest difference from what is wanted.
fn together(runner: &mut dyn ModelRunner, case: &Headed, before: &[Vec<f32>], chunk: usize) -> f32 {
    let mut worst = 0.0f32;
    let longest = case.inputs.iter().map(|text| text.ids.len()).max().unwrap();
    for from in (0..longest).step_by(chunk.min(longest)) {
        let (mut rows, mut wants) = (Vec::new(), Vec::new());
        for (index, (text, plain)) in case.inputs.iter().zip(before).enumerate() {
            let until = text.ids.len().min(from.saturating_add(chunk));
            let Some(tokens) = text.ids.get(from..until).filter(|it| !it.is_empty()) else {
                continue;
            };
            let output = until == text.ids.len();
            for (place, adapter, want) in [(0, Some(1), &text.logits), (1, None, plain)] {
                let row = row(2 * index + place, from, tokens);
                rows.push(named(Row { output, ..row }, adapter));
                wants.extend(output.then_some(want));
            }
        }
        let got = step(runner, rows);
        assert_eq!(got.len(), wants.len());
        worst = got.iter().zip(wants).map(|(got, want)| apart(got, want)).fold(worst, f32::max);
    }
    worst
}

#[test]
fn an_adapter_for_labels_without_a_head_is_refused_where_its_base_has_none() {
    let labels = || refusals::Changed::of_folder(&folder("llama-labels"));
    let refused = labels().without("score").unfit("llama-mha");
    assert!(refused.contains("its head needs 'score'"), "{refused}");
    // What is for the base's head, which its rows never come to.
    let both = labels().set("modules_to_save", serde_json::json!(["score", "lm_head"]));
    let refused = both.with("base_model.model.lm_head.weight", &[128, 48]).unfit("llama-mha");
    assert!(refused.contains("'lm_head' is for its base's head"), "{refused}");
}

#[test]
fn the_token_that_only_fills_is_the_base_s_and_labels_are_charged() {
    let files = read_local(&folder("llama-labels")).unwrap();
    let on = |config: Option<&str>| {
        let mut files = files.clone();
        files.contents.extend(config.map(|text| ("config.json".into(), text.into())));
        AdapterPlan::read(&files).unwrap().on(&plan("llama-mha", &served())).unwrap()
    };
    let names: Vec<String> = (0..5).map(|id| format!(r#""{id}": "{}""#, "x".repeat(900))).collect();
    let told = format!(r#"{{"id2label": {{{}}}}}"#, names.join(","));
    let (plain, told) = (on(None).footprint(), on(Some(&told)).footprint());
    assert!(told.host > plain.host + Bytes(2 * 4000), "{told:?}");
    // A config.json of the base's own says nothing of labels.
    let config = std::fs::read_to_string(references().join("llama-mha/config.json")).unwrap();
    assert_eq!(on(Some(&config)).answers, on(None).answers);
    let mut base = read_local(&references().join("llama-mha")).unwrap();
    let text = String::from_utf8(base.contents["config.json"].to_vec()).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["pad_token_id"] = 7.into();
    base.contents.insert("config.json".into(), json.to_string().into_bytes());
    let base = inspect(&base, &served()).unwrap();
    let dir = references().join("llama-mha");
    let memory = DeviceId::Cpu;
    let mut loaded = roundhouse_models::load(&dir, &base, memory, &Cancel::new()).unwrap();
    let adapter = read("llama-labels", "llama-mha");
    let folder = Folder::new(folder("llama-labels"));
    let adapter = load_adapter(&folder, &adapter, &loaded.base, &Cancel::new()).unwrap();
    let head = loaded.runner.attach(AdapterId(1), adapter.weights).unwrap().unwrap();
    assert_eq!((head.width, head.padding), (5, Some(7)));
}
