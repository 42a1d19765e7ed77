//! Against what the pipelines of transformers make of the same numbers.

use std::path::Path;
use std::sync::Arc;

use roundhouse_types::ModelId;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;
use crate::{Aggregation, EmbeddingPrompts, Entity, Fill, LabelScore, Reply, SpanAnswer};

const REFERENCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/references/tasks");
/// What the references' tokenizers are cut to.
const CONTEXT_TOKENS: usize = 40;
/// The references have five digits of each logit.
const TOLERANCE: f32 = 5e-4;

/// One forward pass of a reference.
#[derive(Debug, Clone, Deserialize)]
struct Row {
    ids: Vec<u32>,
    types: Option<Vec<u32>>,
    logits: Vec<f32>,
}

#[derive(Deserialize)]
struct Labelled<C> {
    labels: Vec<String>,
    cases: Vec<C>,
}

#[derive(Deserialize)]
struct EntityCase {
    text: String,
    aggregation: String,
    ignored: Vec<String>,
    stride: Option<usize>,
    rows: Vec<Row>,
    answer: Vec<Value>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    #[serde(default)]
    pair: Option<String>,
    #[serde(default)]
    labels: Vec<String>,
    parameters: Value,
    rows: Vec<Row>,
    answer: Value,
}

#[derive(Deserialize)]
struct AnswerCase {
    question: String,
    context: String,
    parameters: Value,
    rows: Vec<Row>,
    answer: Value,
}

/// A tokenizer with its cases of one task.
fn cases<C: DeserializeOwned>(task: &str) -> Vec<(TextCodec, C)> {
    let read = |name: &str| {
        let folder = Path::new(REFERENCES).join(name);
        let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let mut all: Value = serde_json::from_str(&text).unwrap();
        let codec = TextCodec::open(&folder).unwrap().truncated_to(CONTEXT_TOKENS).unwrap();
        (codec, serde_json::from_value(all[task].take()).unwrap())
    };
    ["wordpiece", "bytes"].map(read).into()
}

fn model() -> ModelId {
    ModelId { endpoint: "e".parse().unwrap(), target: "m".parse().unwrap() }
}

fn limits(width: usize) -> Limits {
    Limits { rows: 64, width }
}

fn labels(names: &[String]) -> Labels {
    let names = names.iter().map(|name| Arc::from(name.as_str())).collect();
    Labels { names, scores: ScoreFunction::Softmax }
}

/// Prepares a task, holds its rows against the reference's, and answers with the reference's
/// numbers.
fn answered(task: EncoderTask, codec: &TextCodec, rows: &[Row], width: usize) -> Reply {
    let prepared = task.prepare(codec, limits(width)).unwrap();
    assert_eq!(prepared.specs.len(), rows.len());
    let (specs, finisher) = prepared.split();
    let mut numbers = Vec::new();
    for (spec, row) in specs.iter().zip(rows) {
        assert_eq!(spec.tokens, row.ids);
        let second = row.types.as_ref().and_then(|types| types.iter().position(|it| *it == 1));
        assert_eq!(spec.second, second);
        numbers.push(match &spec.want {
            Want::At(places) => {
                let at = |place: &usize| row.logits[place * width..(place + 1) * width].to_vec();
                places.iter().flat_map(at).collect()
            }
            Want::Pooled | Want::Each => row.logits.clone(),
        });
    }
    finisher.answer(&model(), codec, numbers).unwrap()
}

fn near(score: f32, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (f64::from(score) - expected).abs() < f64::from(TOLERANCE),
        "{score} is not {expected}"
    );
}

fn same_entities(found: &[Entity], expected: &[Value]) {
    let shown: Vec<_> = found.iter().map(|it| (&it.label, &it.word, it.start, it.end)).collect();
    assert_eq!(found.len(), expected.len(), "{shown:?} {expected:?}");
    for (entity, expected) in found.iter().zip(expected) {
        let label = if entity.index.is_some() { "entity" } else { "entity_group" };
        assert_eq!(expected[label], *entity.label, "{entity:?}");
        assert_eq!(expected["word"], entity.word, "{entity:?}");
        assert_eq!(expected["start"], entity.start, "{entity:?}");
        assert_eq!(expected["end"], entity.end, "{entity:?}");
        assert_eq!(expected.get("index").and_then(Value::as_u64), entity.index.map(|at| at as u64));
        near(entity.score, &expected["score"]);
    }
}

#[test]
fn entities_are_those_of_the_references() {
    for (codec, told) in cases::<Labelled<EntityCase>>("entities") {
        for case in told.cases {
            let aggregation = match case.aggregation.as_str() {
                "simple" => Aggregation::Simple,
                "first" => Aggregation::First,
                "average" => Aggregation::Average,
                "max" => Aggregation::Max,
                _ => Aggregation::None,
            };
            let options = EntityOptions { aggregation, ignored: case.ignored, stride: case.stride };
            let (texts, labels) = (vec![case.text], labels(&told.labels));
            let task = EncoderTask::Entities { texts, labels, options };
            let reply = answered(task, &codec, &case.rows, told.labels.len());
            let Reply::Entities(found) = reply else { panic!() };
            same_entities(&found[0], &case.answer);
        }
    }
}

fn same_fills(found: &[Fill], expected: &Value) {
    assert_eq!(found.len(), expected.as_array().unwrap().len());
    for (fill, expected) in found.iter().zip(expected.as_array().unwrap()) {
        assert_eq!(expected["token"], fill.token);
        assert_eq!(expected["token_str"], fill.token_str);
        assert_eq!(expected["sequence"], fill.sequence);
        near(fill.score, &expected["score"]);
    }
}

#[test]
fn fills_are_those_of_the_references() {
    for (codec, told) in cases::<Vec<Case>>("fills") {
        for case in told {
            let targets: Option<Vec<String>> =
                serde_json::from_value(case.parameters["targets"].clone()).unwrap();
            let top_k = case.parameters["top_k"].as_u64().map_or(5, |top_k| top_k as usize);
            let width = case.rows[0].logits.len() / case.rows[0].ids.len();
            let task = EncoderTask::Fill { texts: vec![case.text], targets, top_k };
            let Reply::Fills(found) = answered(task, &codec, &case.rows, width) else { panic!() };
            match found[0].as_slice() {
                [only] => same_fills(only, &case.answer),
                masks => {
                    for (at, mask) in masks.iter().enumerate() {
                        same_fills(mask, &case.answer[at]);
                    }
                }
            }
        }
    }
}

fn same_answers(found: &[SpanAnswer], expected: &Value) {
    let expected = match expected {
        Value::Array(several) => several.clone(),
        one => vec![one.clone()],
    };
    assert_eq!(found.len(), expected.len(), "{found:?} {expected:?}");
    for (answer, expected) in found.iter().zip(&expected) {
        assert_eq!(expected["answer"], answer.answer, "{found:?}");
        assert_eq!(expected["start"], answer.start);
        assert_eq!(expected["end"], answer.end);
        near(answer.score, &expected["score"]);
    }
}

#[test]
fn answers_are_those_of_the_references() {
    for (codec, told) in cases::<Vec<AnswerCase>>("answers") {
        for case in told {
            let count = |name: &str| case.parameters[name].as_u64().map(|it| it as usize);
            let yes = |name: &str| case.parameters[name].as_bool();
            let options = AnswerOptions {
                top_k: count("top_k").unwrap_or(1),
                max_answer_len: count("max_answer_len").unwrap_or(15),
                max_seq_len: count("max_seq_len"),
                doc_stride: count("doc_stride"),
                handle_impossible: yes("handle_impossible_answer").unwrap_or(false),
                align_to_words: yes("align_to_words").unwrap_or(true),
            };
            let questions = vec![(case.question, case.context)];
            let task = EncoderTask::Answer { questions, options };
            let Reply::Answers(found) = answered(task, &codec, &case.rows, 2) else { panic!() };
            same_answers(&found[0], &case.answer);
        }
    }
}

fn same_labels(found: &[LabelScore], names: &Value, scores: &[Value]) {
    let found_names: Vec<&str> = found.iter().map(|label| &*label.label).collect();
    assert_eq!(serde_json::json!(found_names), *names);
    for (label, score) in found.iter().zip(scores) {
        near(label.score, score);
    }
}

#[test]
fn labels_by_entailment_are_those_of_the_references() {
    for (codec, told) in cases::<Labelled<Case>>("zero_shot") {
        for case in told.cases {
            let template = case.parameters["hypothesis_template"].as_str();
            let asked = ZeroShot {
                labels: case.labels,
                template: template.unwrap_or("This example is {}.").into(),
                multi_label: case.parameters["multi_label"].as_bool().unwrap_or(false),
            };
            let (texts, labels) = (vec![case.text], labels(&told.labels));
            let task = EncoderTask::ZeroShot { texts, labels, asked };
            let Reply::Classification(found) = answered(task, &codec, &case.rows, 3) else {
                panic!()
            };
            let scores = case.answer["scores"].as_array().unwrap();
            same_labels(&found[0], &case.answer["labels"], scores);
        }
    }
}

#[test]
fn labels_of_texts_and_pairs_are_those_of_the_references() {
    for (codec, told) in cases::<Labelled<Case>>("labels") {
        for case in told.cases {
            let function = match case.parameters["function_to_apply"].as_str() {
                Some("sigmoid") => ScoreFunction::Sigmoid,
                Some("none") => ScoreFunction::Identity,
                _ => ScoreFunction::Softmax,
            };
            let top_k = case.parameters["top_k"].as_u64().map_or(usize::MAX, |it| it as usize);
            let labels = labels(&told.labels);
            let scoring = Scoring { labels, function, in_order: false, top_k };
            let task = EncoderTask::Classify { pairs: vec![(case.text, case.pair)], scoring };
            let Reply::Classification(found) = answered(task, &codec, &case.rows, 3) else {
                panic!()
            };
            let answer = case.answer.as_array().unwrap();
            let names: Value = answer.iter().map(|label| label["label"].clone()).collect();
            let scores: Vec<Value> = answer.iter().map(|label| label["score"].clone()).collect();
            same_labels(&found[0], &names, &scores);
        }
    }
}

fn wordpiece() -> TextCodec {
    let codec = TextCodec::open(&Path::new(REFERENCES).join("wordpiece")).unwrap();
    codec.truncated_to(CONTEXT_TOKENS).unwrap()
}

fn refusal(task: EncoderTask, limits: Limits) -> String {
    let Err(error) = task.prepare(&wordpiece(), limits) else { panic!("it was taken") };
    assert_eq!(error.kind(), roundhouse_types::ErrorKind::InvalidInput);
    error.to_string()
}

#[test]
fn a_request_cannot_become_boundless() {
    let long = "the engine ".repeat(2000);
    let ask = |rows: usize, options: AnswerOptions| {
        let questions = vec![("who?".to_owned(), long.clone())];
        refusal(EncoderTask::Answer { questions, options }, Limits { rows, width: 2 })
    };
    let said = ask(16, AnswerOptions::default());
    assert!(said.contains("where 16 of 16 are left"), "{said}");
    let wide = AnswerOptions { doc_stride: Some(39), ..AnswerOptions::default() };
    assert!(ask(16, wide).starts_with("doc_stride: "));
    let texts = || vec!["the [MASK] engine".to_owned(); 8];
    let fill = |top_k, width| {
        let task = EncoderTask::Fill { texts: texts(), targets: None, top_k };
        refusal(task, Limits { rows: 64, width })
    };
    assert!(fill(5, NUMBERS_MAX).starts_with("inputs: 8 tokens"));
    assert!(fill(NUMBERS_MAX / 8, NUMBERS_MAX / 8).starts_with("top_k: "));
    let two = vec![("who?".to_owned(), "the engine".to_owned()); 2];
    let task = EncoderTask::Answer { questions: two, options: AnswerOptions::default() };
    assert!(refusal(task, Limits { rows: 1, width: 2 }).contains("where 0 of 1 are left"));
    let ranking = Ranking {
        query: "a".repeat(READ_MAX / 16),
        documents: vec!["b".to_owned(); 17],
        raw: false,
        field: "documents",
        alike: false,
    };
    let said = refusal(EncoderTask::CrossEncode(ranking), Limits { rows: 64, width: 1 });
    assert!(said.starts_with("documents: "), "{said}");
    let vectors = EncoderTask::TokenVectors { texts: texts() };
    assert!(refusal(vectors, Limits { rows: 64, width: NUMBERS_MAX }).contains("are more than"));
}

#[test]
fn what_cannot_be_answered_is_named() {
    let fill = EncoderTask::Fill { texts: vec!["no mask".into()], targets: None, top_k: 1 };
    assert!(refusal(fill, limits(9)).contains("has no [MASK]"));
    let embed = EncoderTask::Embed {
        inputs: vec![Prompt::Text("a".into())],
        normalize: true,
        dimensions: Some(10),
    };
    assert!(refusal(embed, limits(9)).starts_with("dimensions: 10 are more than the 9"));
    let asked = |label: &str, template: &str| ZeroShot {
        labels: vec![label.into()],
        template: template.into(),
        multi_label: false,
    };
    let zero_shot = |asked| EncoderTask::ZeroShot {
        texts: vec!["a".into()],
        labels: labels(&["no".into(), "entailment".into()]),
        asked,
    };
    let long = "the engine ".repeat(40);
    assert!(refusal(zero_shot(asked(&long, "{}")), limits(2)).starts_with("candidate_labels: "));
    let said = refusal(zero_shot(asked("a", "no place")), limits(2));
    assert!(said.starts_with("hypothesis_template: "));
}

#[test]
fn shortened_vectors_have_length_one_again() {
    let embed = |dimensions| {
        let inputs = vec![Prompt::Text("a".into())];
        let task = EncoderTask::Embed { inputs, normalize: false, dimensions };
        let (_, finisher) = task.prepare(&wordpiece(), limits(3)).unwrap().split();
        let numbers = vec![vec![3.0, 4.0, 12.0]];
        let Reply::Embeddings(reply) = finisher.answer(&model(), &wordpiece(), numbers).unwrap()
        else {
            panic!()
        };
        reply.vectors[0].clone()
    };
    assert_eq!(embed(None), [3.0, 4.0, 12.0]);
    assert_eq!(embed(Some(3)), [3.0, 4.0, 12.0]);
    assert_eq!(embed(Some(2)), [0.6, 0.8]);
}

#[test]
fn queries_documents_and_texts_get_their_prompts() {
    let texts = [("query", "Q: "), ("document", "D: "), ("sts", "S: ")];
    let texts = texts.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned()));
    let prompts = EmbeddingPrompts { texts: texts.collect(), default: Some("sts".into()) };
    let ranking = |alike| Ranking {
        query: "a".into(),
        documents: vec!["b".into()],
        raw: false,
        field: "documents",
        alike,
    };
    let both = |alike| {
        let Ranking { query, documents, .. } =
            asked::with_prompts(ranking(alike), &prompts).unwrap();
        (query, documents[0].clone())
    };
    assert_eq!(both(false), ("Q: a".into(), "D: b".into()));
    assert_eq!(both(true), ("S: a".into(), "S: b".into()));
}

#[test]
fn a_long_prompt_is_not_written_before_many_texts() {
    let prompt = "p".repeat(READ_MAX / 8);
    let texts = [("default".to_owned(), prompt)].into_iter().collect();
    let prompts = EmbeddingPrompts { texts, default: Some("default".into()) };
    let ranking = |count| Ranking {
        query: "a".into(),
        documents: vec!["b".into(); count],
        raw: false,
        field: "documents",
        alike: true,
    };
    assert!(asked::with_prompts(ranking(8), &prompts).is_ok());
    let said = asked::with_prompts(ranking(9), &prompts).unwrap_err().to_string();
    assert!(said.starts_with("documents: ") && said.contains("before 9 texts"), "{said}");
}

#[test]
fn documents_are_scored_with_the_query_in_one_row_or_by_their_vectors() {
    let ranking = |raw| Ranking {
        query: "the engine".into(),
        documents: vec!["coal".into(), "the stall".into()],
        raw,
        field: "documents",
        alike: false,
    };
    let scores = |task: EncoderTask, numbers: Vec<Vec<f32>>| {
        let prepared = task.prepare(&wordpiece(), limits(1)).unwrap();
        assert_eq!(prepared.specs.len(), numbers.len());
        let (_, finisher) = prepared.split();
        let Reply::Scores(reply) = finisher.answer(&model(), &wordpiece(), numbers).unwrap() else {
            panic!()
        };
        reply.scores
    };
    let logits = || vec![vec![0.0], vec![2.0]];
    assert_eq!(scores(EncoderTask::CrossEncode(ranking(true)), logits()), [0.0, 2.0]);
    assert_eq!(scores(EncoderTask::CrossEncode(ranking(false)), logits())[0], 0.5);
    let vectors = vec![vec![1.0, 0.0], vec![0.0, 2.0], vec![3.0, 0.0]];
    assert_eq!(scores(EncoderTask::Compare(ranking(false)), vectors), [0.0, 1.0]);
}

#[test]
fn numbers_that_do_not_fit_what_was_asked_are_the_models_fault() {
    let task = || EncoderTask::Entities {
        texts: vec!["coal".into()],
        labels: labels(&["O".into(), "X".into()]),
        options: EntityOptions::default(),
    };
    for numbers in [vec![vec![0.0; 3]], vec![vec![f32::NAN; 4]]] {
        let (_, finisher) = task().prepare(&wordpiece(), limits(2)).unwrap().split();
        let Err(error) = finisher.answer(&model(), &wordpiece(), numbers) else { panic!() };
        assert_eq!(error.kind(), roundhouse_types::ErrorKind::ModelFailed);
    }
}
