//! Heads that adapters bring of their own: of other numbers of labels than their base's, or where it
//! has none.

use roundhouse_models::{AdapterPlan, Labels, LoadedAdapter, LoadedRunner, ScoreFunction};

use super::*;

#[derive(Deserialize)]
struct Headed {
    base: String,
    labels: usize,
    #[serde(flatten)]
    head: Head,
}

fn folder(name: &str) -> std::path::PathBuf {
    dir("").with_file_name("encoder-heads").join(name)
}

fn case(name: &str) -> Headed {
    serde_json::from_slice(&std::fs::read(folder(name).join("expected.json")).unwrap()).unwrap()
}

/// The base that a case is for, loaded, and its plan.
fn base(case: &Headed) -> (ModelPlan, LoadedRunner) {
    let plan = planned(&case.base, &changed(&case.head.architecture, &Map::new())).unwrap();
    let loaded = load(&dir(&case.base), &plan, DeviceId::Cpu, &Cancel::new()).unwrap();
    assert_eq!(plan.footprint, loaded.footprint, "{}", case.base);
    (plan, loaded)
}

fn adapter(name: &str, plan: &ModelPlan, base: &LoadedRunner) -> (AdapterPlan, LoadedAdapter) {
    let files = read_local(&folder(name)).unwrap();
    let fitted = AdapterPlan::read(&files).unwrap().on(plan).unwrap();
    let folder = Folder::new(folder(name));
    let loaded = load_adapter(&folder, &fitted, &base.base, &Cancel::new()).unwrap();
    assert_eq!(fitted.footprint(), loaded.footprint, "{name}");
    (fitted, loaded)
}

fn numbered(count: usize) -> Labels {
    let function = if count == 1 { ScoreFunction::Sigmoid } else { ScoreFunction::Softmax };
    let names = (0..count).map(|id| format!("LABEL_{id}")).collect();
    Labels { names, multi_label: false, function }
}

fn farthest(got: &[Vec<f32>], wanted: &[Vec<f32>]) -> f32 {
    assert_eq!(got.len(), wanted.len());
    got.iter().zip(wanted).map(|(got, want)| apart(got, want)).fold(0.0, f32::max)
}

#[test]
fn parity_of_adapters_with_heads_of_their_own_beside_the_base_in_one_step() {
    let names = std::fs::read_dir(folder("")).unwrap();
    let mut names: Vec<String> =
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 8, "{names:?}");
    for name in names {
        let case = case(&name);
        let (plan, mut loaded) = base(&case);
        let (fitted, adapter) = adapter(&name, &plan, &loaded);
        let kind = match case.head.head.as_str() {
            "classes" => ModelKind::Classification,
            _ => ModelKind::TokenClassification,
        };
        assert_eq!(fitted.answers, Some((kind, numbered(case.labels))), "{name}");
        let plain: Vec<Row> = case.head.inputs.iter().map(|input| whole(&input.ids)).collect();
        let before = step(&mut *loaded.runner, plain.clone());
        let width = loaded.runner.attach(AdapterId(1), adapter.weights).unwrap();
        assert_eq!(width.map(|head| head.width), Some(case.labels), "{name}");
        let (mut rows, mut wanted) = (Vec::new(), Vec::new());
        let mut base = plain.into_iter().zip(before).cycle();
        for (row, want) in case.head.inputs.iter().flat_map(Input::wants) {
            rows.push(Row { adapter: Some(AdapterId(1)), ..row });
            wanted.push(want);
            let (row, want) = base.next().unwrap();
            rows.push(row);
            wanted.push(want);
        }
        let together = step(&mut *loaded.runner, rows.clone());
        let alone: Vec<Vec<f32>> =
            rows.into_iter().flat_map(|row| step(&mut *loaded.runner, vec![row])).collect();
        let worst = farthest(&together, &wanted).max(farthest(&alone, &wanted));
        println!("{name}: largest difference {worst:e}");
        assert!(worst <= EQUAL, "{name}: {worst}");
        assert!(loaded.runner.detach(AdapterId(1)).is_some());
    }
}

#[test]
fn adapters_of_other_numbers_of_labels_share_a_step_with_their_base_and_one_that_has_its_number() {
    let cases = ["bert-five", "bert-one"].map(case);
    let (plan, mut loaded) = base(&cases[0]);
    let (mut rows, mut wanted) = (Vec::new(), Vec::new());
    for (id, name) in [(5, "bert-five"), (1, "bert-one")] {
        let (_, adapter) = adapter(name, &plan, &loaded);
        loaded.runner.attach(AdapterId(id), adapter.weights).unwrap();
    }
    for (five, one) in cases[0].head.inputs.iter().zip(&cases[1].head.inputs) {
        for (input, id) in [(five, Some(5)), (one, Some(1)), (five, None)] {
            let row = Row { second: input.second, ..whole(&input.ids) };
            let row = Row { adapter: id.map(AdapterId), ..row };
            wanted.push(match id {
                Some(_) => input.pooled.clone().unwrap(),
                None => step(&mut *loaded.runner, vec![row.clone()]).remove(0),
            });
            rows.push(row);
        }
    }
    let lengths: Vec<usize> = wanted.iter().take(3).map(Vec::len).collect();
    assert_eq!(lengths, [5, 1, 2]);
    let worst = farthest(&step(&mut *loaded.runner, rows), &wanted);
    assert!(worst <= EQUAL, "{worst}");
    // A head of a text's labels has none for each token.
    let each = Row { adapter: Some(AdapterId(5)), want: Want::Each, ..whole(&[7, 8]) };
    let refused = loaded.runner.forward(&StepPlan { rows: vec![each] }).unwrap_err();
    assert!(matches!(&refused, RunnerError::Input(reason) if reason.contains("each token")));
}

#[test]
fn an_adapter_for_each_token_is_that_where_its_base_names_labels_of_texts() {
    let mut case = case("distilbert-tokens-bare");
    case.head.architecture = "DistilBertForSequenceClassification".into();
    let (plan, mut loaded) = base(&case);
    let (fitted, adapter) = adapter("distilbert-tokens-bare", &plan, &loaded);
    assert_eq!(fitted.answers, Some((ModelKind::TokenClassification, numbered(7))));
    loaded.runner.attach(AdapterId(1), adapter.weights).unwrap();
    let wants = case.head.inputs.iter().flat_map(Input::wants);
    let (rows, wanted): (Vec<Row>, Vec<Vec<f32>>) =
        wants.map(|(row, want)| (Row { adapter: Some(AdapterId(1)), ..row }, want)).unzip();
    let worst = farthest(&step(&mut *loaded.runner, rows), &wanted);
    assert!(worst <= EQUAL, "{worst}");
}

#[test]
fn labels_of_an_adapter_are_those_of_its_own_folder() {
    let (plan, _) = base(&case("bert-five"));
    let with = |name: &str, config: &str| {
        let mut files = read_local(&folder(name)).unwrap();
        files.contents.insert("config.json".into(), config.into());
        AdapterPlan::read(&files).unwrap().on(&plan)
    };
    let names = r#"{"0": "a", "1": "b", "2": "c", "3": "d", "4": "e"}"#;
    let told = format!(r#"{{"id2label": {names}, "problem_type": "multi_label_classification"}}"#);
    let (kind, labels) = with("bert-five", &told).unwrap().answers.unwrap();
    assert_eq!((kind, labels.names.join("")), (ModelKind::Classification, "abcde".into()));
    assert!(labels.multi_label && labels.function == ScoreFunction::Sigmoid);
    // Charged for: they stay in memory with it.
    let plain = with("bert-five", "{}").unwrap();
    assert_eq!(plain.answers.as_ref().unwrap().1, numbered(5));
    let long =
        format!(r#"{{"id2label": {}}}"#, names.replace("\"e\"", &format!("\"{:x<999}\"", "")));
    let grown = with("bert-five", &long).unwrap().footprint().host;
    assert!(grown > plain.footprint().host + roundhouse_types::Bytes(1900));
    let other = with("bert-one", &told).unwrap_err().to_string();
    assert!(other.contains("has 5 labels in id2label, and its head 1"), "{other}");
    // Of the base's number, with no file of its own: the base's names.
    let roberta =
        planned("encoder-roberta", &changed("RobertaForSequenceClassification", &Map::new()));
    let path = dir("").with_file_name("encoder-adapters").join("roberta-classes");
    let mut files = read_local(&path).unwrap();
    let roberta = roberta.unwrap();
    assert_eq!(AdapterPlan::read(&files).unwrap().on(&roberta).unwrap().answers, None);
    let own = r#"{"id2label": {"0": "bad", "1": "good"}}"#;
    files.contents.insert("config.json".into(), own.into());
    let (_, labels) = AdapterPlan::read(&files).unwrap().on(&roberta).unwrap().answers.unwrap();
    assert_eq!(labels.names, ["bad", "good"]);
}

#[test]
fn a_head_that_cannot_be_put_together_is_refused_with_what_to_do() {
    let refused = |name: &str, base: &str, architecture: &str, set: &[(&str, Value)]| {
        let plan = planned(base, &changed(architecture, &Map::new())).unwrap();
        let mut files = read_local(&folder(name)).unwrap();
        let config = files.contents.get_mut("adapter_config.json").unwrap();
        let mut json: Map<String, Value> = serde_json::from_slice(config).unwrap();
        json.extend(set.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        *config = serde_json::to_vec(&json).unwrap();
        AdapterPlan::read(&files).unwrap().on(&plan).unwrap_err().to_string()
    };
    // Without a task nobody knows what a head is for.
    let told = refused(
        "qwen3-bare",
        "encoder-qwen3-last",
        "Qwen3Model",
        &[("task_type", Value::Null), ("modules_to_save", serde_json::json!(["score"]))],
    );
    assert!(told.contains("its base has none") && told.contains("task_type"), "{told}");
    let of_tokens = [("task_type", Value::from("TOKEN_CLS"))];
    let told = refused("qwen3-bare", "qwen3-head-norms", "Qwen3ForCausalLM", &of_tokens);
    assert!(told.contains("each token") && told.contains("generates text"), "{told}");
    let (base, architecture) = ("encoder-llama-classes", "LlamaForSequenceClassification");
    let told = refused("llama-five", base, architecture, &of_tokens);
    assert!(told.contains("labels of each token"), "{told}");
    // A pre_classifier that neither has.
    let told = refused(
        "distilbert-tokens-bare",
        "encoder-distilbert",
        "DistilBertForMaskedLM",
        &[("task_type", "SEQ_CLS".into())],
    );
    assert!(told.contains("needs 'pre_classifier'") && told.contains("modules_to_save"), "{told}");
}

#[test]
fn a_pooler_that_only_adapters_use_is_loaded_where_they_may_come() {
    let weights = |case: &str, architecture: &str| {
        planned(case, &changed(architecture, &Map::new())).unwrap().footprint.weights.0
    };
    let pooler = (32 * 32 + 32) * 4;
    let (words, tokens) = ("BertForMaskedLM", "BertForTokenClassification");
    let head = (32 * 32 + 32 + 32 + 32 + 96) * 4;
    let of_tokens = (2 * 32 + 2) * 4;
    let bare = weights("encoder-bert", tokens) - of_tokens;
    assert_eq!(weights("encoder-bert", "BertModel"), bare + pooler);
    assert_eq!(weights("encoder-bert", words), bare + head + pooler);
    // Vectors of sentence-transformers are nobody's base for labels.
    let projected = planned("encoder-bert-dense", &Map::new()).unwrap().footprint.weights.0;
    assert_eq!(projected, bare + (32 * 24 + 24 + 24 * 16) * 4);
}
