//! Numbers equal to those of transformers, committed under `references`.
//!
//! Tolerances: 2e-5 for embeddings and class logits. Decoders are in `decoders`.

use crate::decoders::LOGITS;
use crate::support::{
    BertCase, Input, LlamaCase, apart, expected, open, plan, row, settings, step, whole,
};
use roundhouse_engine::Row;
use roundhouse_models::{DtypeSetting, KvDtype, LoadSettings, ScoreFunction};

const EMBEDDINGS: f32 = 2e-5;

#[test]
fn embeddings_equal_the_reference_alone_and_in_company() {
    for case in ["bert-mean-normalised", "bert-cls", "bert-plain"] {
        let want: BertCase = expected(case);
        let unit = plan(case, &settings()).normalize;
        let mut runner = open(case, &settings()).runner;
        let rows = want.inputs.iter().map(|input| whole(&input.ids)).collect();
        let together = step(&mut *runner, rows);
        let mut worst = 0.0f32;
        for (input, together) in want.inputs.iter().zip(together) {
            let alone = step(&mut *runner, vec![whole(&input.ids)]);
            for vector in [&alone[0], &together] {
                worst = worst.max(apart(&finished(vector, unit), &input.embedding));
            }
        }
        println!("{case}: largest difference {worst:e}");
        assert!(worst <= EMBEDDINGS, "{case}: {worst}");
    }
}

/// What is left to whoever serves a runner's vectors: the length, where the plan says so.
fn finished(vector: &[f32], unit: bool) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| if unit { x / length } else { *x }).collect()
}

/// A request may ask for vectors that are not scaled, so the runner must not have done it.
#[test]
fn vectors_keep_their_pooled_length_where_the_artefact_wants_length_one() {
    let case = "bert-mean-normalised";
    let want: BertCase = expected(case);
    assert!(plan(case, &settings()).normalize);
    let mut runner = open(case, &settings()).runner;
    let got = step(&mut *runner, vec![whole(&want.inputs[0].ids)]);
    let length = got[0].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((length - 1.0).abs() > 0.1, "{length}");
}

#[test]
fn class_logits_and_labels_equal_the_reference() {
    for case in ["bert-single-label", "bert-multi-label", "bert-one-label"] {
        let want: BertCase = expected(case);
        let plan = plan(case, &settings());
        let labels = plan.labels.as_ref().unwrap();
        assert_eq!(labels.names, want.labels, "{case}");
        let function = match want.activation.as_deref() {
            Some("softmax") => ScoreFunction::Softmax,
            Some("sigmoid") => ScoreFunction::Sigmoid,
            other => panic!("{case}: activation {other:?}"),
        };
        assert_eq!(labels.function, function, "{case}");
        assert_eq!(labels.multi_label, case == "bert-multi-label");

        let row = |input: &Input| {
            let second = input.type_ids.iter().position(|kind| *kind == 1);
            Row { second, ..whole(&input.ids) }
        };
        assert!(want.inputs.iter().any(|input| row(input).second.is_some()), "no pair");
        let mut runner = open(case, &settings()).runner;
        let got = step(&mut *runner, want.inputs.iter().map(row).collect());
        let mut worst = 0.0f32;
        for (input, got) in want.inputs.iter().zip(&got) {
            worst = worst.max(apart(got, &input.logits));
        }
        println!("{case}: largest difference {worst:e}");
        assert!(worst <= EMBEDDINGS, "{case}: {worst}");
    }
}

/// Weights that are f16 in the file lose nothing by staying f16; those of f32 files round.
#[test]
fn weights_held_as_f16_compute_the_same_model() {
    // What is kept is rounded by neither: the weights alone are compared.
    let kv_dtype = Some(KvDtype::F32);
    let halves = LoadSettings { dtype: DtypeSetting::F16, kv_dtype, ..settings() };
    for (case, tolerance) in [("llama-f16", LOGITS), ("llama-mha", 0.05)] {
        let want: LlamaCase = expected(case);
        let mut runner = open(case, &halves).runner;
        for prompt in &want.prompts {
            let got = step(&mut *runner, vec![row(0, 0, &prompt.ids)]);
            let difference = apart(&got[0], &prompt.last_logits);
            assert!(difference <= tolerance, "{case}: {difference}");
        }
    }
}

/// As the reference with `torch.bfloat16` has it, but that sums, norms and attention stay f32: only what
/// enters a product with weights is rounded.
#[test]
fn bf16_rounds_weights_and_what_they_are_multiplied_with() {
    let kv_dtype = Some(KvDtype::F32);
    let [exact, halves] = [DtypeSetting::Auto, DtypeSetting::Bf16].map(|dtype| LoadSettings {
        dtype,
        kv_dtype,
        ..settings()
    });
    for (case, stays) in [("llama-bf16", true), ("llama-mha", false), ("gguf-q8_0", false)] {
        let planned = plan(case, &halves);
        let exactly = plan(case, &exact).footprint;
        assert_eq!(planned.footprint.weights == exactly.weights, stays);
        let [mut exact, mut halves] = [&exact, &halves].map(|it| open(case, it));
        assert_eq!(halves.footprint.weights, planned.footprint.weights, "{case}");
        let ids: Vec<u32> = (0..40).map(|at| at * 7 % 90 + 5).collect();
        let [want, got] = [&mut exact, &mut halves]
            .map(|it| step(&mut *it.runner, vec![row(0, 0, &ids)]).remove(0));
        let most = want.iter().fold(0.0f32, |most, it| most.max(it.abs()));
        let difference = apart(&got, &want);
        println!("{case}: {difference:e} of {most}");
        assert!(difference > 1e-6 * most && difference <= 0.03 * most, "{case}: {difference}");
        // A row's rounding is its own affair, whoever is beside it.
        let beside = step(&mut *halves.runner, vec![row(1, 0, &ids), row(0, 0, &ids[..9])]);
        assert!(apart(&beside[0], &got) <= difference, "{case}");
    }
}
