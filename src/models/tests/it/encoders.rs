//! Encoders of every family with every head: numbers equal to those of transformers.

use roundhouse_engine::{ModelRunner, Row, Want};
use roundhouse_models::{Cancel, Error, LoadSettings, ModelPlan, inspect, load, read_local};
use roundhouse_types::{DeviceId, ModelKind};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::support::{apart, cases, dir, expected, settings, step, whole};

/// The largest difference found is some 4e-6, of logits around 3.
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
    load(&dir(case), plan, DeviceId::Cpu, &Cancel::new()).unwrap().runner
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
            let wants: Vec<(Row, Vec<f32>)> = head.inputs.iter().flat_map(Input::wants).collect();
            let rows: Vec<Row> = wants.iter().map(|(row, _)| row.clone()).collect();
            let together = step(&mut *runner, rows);
            let mut worst = 0.0f32;
            for ((row, want), together) in wants.iter().zip(&together) {
                let alone = step(&mut *runner, vec![row.clone()]);
                worst = worst.max(apart(&alone[0], want)).max(apart(together, want));
            }
            println!("{case} {}: largest difference {worst:e}", head.architecture);
            assert!(worst <= EQUAL, "{case} {}: {worst}", head.architecture);
        }
    }
}
