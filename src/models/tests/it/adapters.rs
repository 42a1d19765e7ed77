//! Adapters against PEFT's merged weights, alone and mixed in one step: `cargo test -p
//! roundhouse-models --test it adapters -- --nocapture` prints the table.
//!
//! Logits may differ by 1e-4; greedy tokens are identical but for near-ties, which are counted.

use std::path::PathBuf;

use roundhouse_engine::{AdapterId, BlockId, ModelRunner, Row, RunnerError, StepPlan};
use roundhouse_models::{
    AdapterPlan, Cancel, Folder, KvDtype, LoadSettings, LoadedAdapter, LoadedRunner, Quantize,
    inspect, load_adapter, matmul_calls, read_local,
};
use roundhouse_types::DeviceId;
use serde::Deserialize;

use crate::support::{apart, argmax, open, plan, references, renamed, row, settings, step, whole};

mod experts;
mod heads;
mod many;
mod quantized;
mod refusals;

const LOGITS: f32 = 1e-4;
const NEAR_TIE: f32 = 1e-3;
/// Less than this, and a forgotten adapter would not show.
const MOVED: f32 = 0.05;

#[derive(Deserialize)]
struct Case {
    base: String,
    #[serde(default)]
    prompts: Vec<Prompt>,
    #[serde(default)]
    inputs: Vec<Input>,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    last_logits: Vec<f32>,
    greedy: Greedy,
    moved: f32,
}

#[derive(Deserialize)]
struct Greedy {
    ids: Vec<u32>,
    margins: Vec<f32>,
}

#[derive(Deserialize)]
struct Input {
    ids: Vec<u32>,
    logits: Vec<f32>,
    moved: f32,
}

fn folder(case: &str) -> PathBuf {
    references().with_file_name("adapters").join(case)
}

fn cases(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder("")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
    names.sort();
    assert!(!names.is_empty(), "no adapter is called {prefix}*");
    names
}

fn expected(case: &str) -> Case {
    serde_json::from_slice(&std::fs::read(folder(case).join("expected.json")).unwrap()).unwrap()
}

fn adapter_plan(case: &str) -> AdapterPlan {
    AdapterPlan::read(&read_local(&folder(case)).unwrap()).unwrap()
}

fn load(case: &str, base: &LoadedRunner) -> LoadedAdapter {
    let files = Folder::new(folder(case));
    load_adapter(&files, &adapter_plan(case), &base.base, &Cancel::new()).unwrap()
}

/// A base with adapters attached, the first under id 1.
fn with(base: &str, adapters: &[String], settings: &LoadSettings) -> LoadedRunner {
    let mut loaded = open(base, settings);
    for (id, case) in (1..).zip(adapters) {
        let adapter = load(case, &loaded);
        loaded.runner.attach(AdapterId(id), adapter.weights).unwrap();
    }
    loaded
}

/// Keys and values in one type whatever the weights are, so that they alone make a difference.
fn served() -> LoadSettings {
    let kv_dtype = Some(KvDtype::F32);
    LoadSettings { context: 128, kv_sequences: 20, kv_dtype, ..settings() }
}

fn named(row: Row, adapter: Option<u64>) -> Row {
    Row { adapter: adapter.map(AdapterId), ..row }
}

/// What is computed of one prompt, and how far it is from the reference.
struct Sequence<'a> {
    adapter: Option<u64>,
    prompt: &'a Prompt,
    tokens: Vec<u32>,
    done: usize,
    left: bool,
}

#[derive(Default)]
struct Compared {
    logits: f32,
    tokens: usize,
    near_ties: usize,
}

impl<'a> Sequence<'a> {
    fn new(adapter: Option<u64>, prompt: &'a Prompt) -> Self {
        Self { adapter, prompt, tokens: prompt.ids.clone(), done: 0, left: false }
    }

    fn runs(&self) -> bool {
        !self.left && self.tokens.len() < self.prompt.ids.len() + self.prompt.greedy.ids.len()
    }

    fn take(&mut self, case: &str, logits: &[f32], compared: &mut Compared) {
        let at = self.tokens.len() - self.prompt.ids.len();
        if at == 0 {
            compared.logits = compared.logits.max(apart(logits, &self.prompt.last_logits));
        }
        let (token, greedy) = (argmax(logits), &self.prompt.greedy);
        if token == greedy.ids[at] {
            compared.tokens += 1;
        } else {
            let margin = greedy.margins[at];
            assert!(margin < NEAR_TIE, "{case}: token {at} differs, the lead was {margin}");
            compared.near_ties += 1;
            self.left = true;
        }
        self.tokens.push(token);
    }
}

/// Runs sequences to their ends, all in each step, at most `chunk` tokens of each.
fn run(
    case: &str,
    runner: &mut dyn ModelRunner,
    sequences: &mut [Sequence<'_>],
    chunk: usize,
) -> Compared {
    let mut compared = Compared::default();
    while sequences.iter().any(Sequence::runs) {
        let (mut rows, mut owners) = (Vec::new(), Vec::new());
        for (index, sequence) in sequences.iter_mut().enumerate() {
            if !sequence.runs() {
                continue;
            }
            let until = sequence.tokens.len().min(sequence.done.saturating_add(chunk));
            let tokens = &sequence.tokens[sequence.done..until];
            let mut row = named(row(index, sequence.done, tokens), sequence.adapter);
            row.output = until == sequence.tokens.len();
            sequence.done = until;
            owners.extend(row.output.then_some(index));
            rows.push(row);
        }
        for (index, logits) in owners.into_iter().zip(step(runner, rows)) {
            sequences[index].take(case, &logits, &mut compared);
        }
    }
    compared
}

#[test]
fn parity_of_every_adapter_with_merged_weights_alone_and_in_chunks() {
    println!("| case | base | logits | tokens | near-ties |\n|---|---|---|---|---|");
    let (mut tokens, mut near_ties) = (0, 0);
    for case in cases("") {
        let want = expected(&case);
        if want.prompts.is_empty() {
            continue;
        }
        let mut loaded = with(&want.base, std::slice::from_ref(&case), &served());
        assert!(want.prompts.iter().any(|prompt| prompt.moved > MOVED), "{case} moves nothing");
        for (way, chunk) in [("alone", usize::MAX), ("chunked", 4)] {
            let mut worst = Compared::default();
            for prompt in &want.prompts {
                let mut sequences = [Sequence::new(Some(1), prompt)];
                let compared = run(&case, &mut *loaded.runner, &mut sequences, chunk);
                worst.logits = worst.logits.max(compared.logits);
                worst.tokens += compared.tokens;
                worst.near_ties += compared.near_ties;
            }
            let Compared { logits, tokens: same, near_ties: ties } = worst;
            println!("| {case}, {way} | {} | {logits:.1e} | {same} | {ties} |", want.base);
            assert!(logits <= LOGITS, "{case}, {way}: {logits}");
            tokens += same;
            near_ties += ties;
        }
    }
    assert!(near_ties * 200 <= tokens, "{near_ties} near-ties in {tokens} tokens");
}

#[test]
fn parity_of_eight_adapters_and_the_base_in_one_step() {
    let eight = cases("eight-");
    let wants: Vec<Case> = eight.iter().map(|case| expected(case)).collect();
    let mut loaded = with("llama-mha", &eight, &served());
    for chunk in [usize::MAX, 3] {
        // Adapter and base rows in turns, so that no adapter's rows lie together.
        let mut sequences = Vec::new();
        for prompt in 0..2 {
            for (id, want) in (1..).zip(&wants) {
                sequences.push(Sequence::new(Some(id), &want.prompts[prompt]));
            }
        }
        let mut compared = run("eight", &mut *loaded.runner, &mut sequences, chunk);
        println!("eight in one step: {:.1e}, {} tokens", compared.logits, compared.tokens);
        assert!(compared.logits <= LOGITS, "{}", compared.logits);
        let longest = wants.iter().map(|want| Sequence::new(Some(1), &want.prompts[2]));
        let mut sequences: Vec<_> = longest.collect();
        for (id, sequence) in (1..).zip(&mut sequences) {
            sequence.adapter = Some(id);
        }
        let long = run("eight", &mut *loaded.runner, &mut sequences, chunk);
        compared.logits = compared.logits.max(long.logits);
        assert!(compared.logits <= LOGITS, "{}", compared.logits);
    }
}

#[test]
fn rows_of_the_base_are_the_base_s_whatever_shares_their_step() {
    let eight = cases("eight-");
    let mut loaded = with("llama-mha", &eight, &served());
    let mut alone = open("llama-mha", &served()).runner;
    let tokens = [5, 9, 77, 31, 6];
    let want = step(&mut *alone, vec![row(0, 0, &tokens)]);
    let ids = [Some(1), None, Some(2), None, Some(1), Some(8), None];
    let rows = ids.iter().enumerate().map(|(index, id)| named(row(index, 0, &tokens), *id));
    let got = step(&mut *loaded.runner, rows.collect());
    for (id, got) in ids.iter().zip(&got) {
        match id {
            None => assert!(apart(got, &want[0]) < 1e-5),
            Some(_) => assert!(apart(got, &want[0]) > MOVED),
        }
    }
    assert!(apart(&got[0], &got[4]) < 1e-5, "two rows of one adapter");
}

#[test]
fn parity_of_an_encoder_s_adapters_alone_and_in_one_step_with_the_base() {
    let all = cases("bert-");
    let wants: Vec<Case> = all.iter().map(|case| expected(case)).collect();
    let mut loaded = with("bert-single-label", &all, &settings());
    let mut base = open("bert-single-label", &settings()).runner;
    let (mut rows, mut want) = (Vec::new(), Vec::new());
    for index in 0..3 {
        for (id, case) in (1..).zip(&wants) {
            let input = &case.inputs[index];
            let row = named(whole(&input.ids), Some(id));
            let alone = step(&mut *loaded.runner, vec![row.clone()]);
            let difference = apart(&alone[0], &input.logits);
            println!("{} {index}: {difference:.1e}, moved {}", all[id as usize - 1], input.moved);
            assert!(difference <= LOGITS, "{} {difference}", all[id as usize - 1]);
            rows.push(row);
            want.push(input.logits.clone());
        }
        let ids = &wants[0].inputs[index].ids;
        want.extend(step(&mut *base, vec![whole(ids)]));
        rows.push(whole(ids));
    }
    for (got, want) in step(&mut *loaded.runner, rows).iter().zip(&want) {
        assert!(apart(got, want) <= LOGITS, "{}", apart(got, want));
    }
    for case in &wants {
        assert!(case.inputs.iter().any(|input| input.moved > MOVED), "an adapter moves nothing");
    }
}

#[test]
fn footprints_are_what_loads_allocate() {
    for case in cases("") {
        let base = open(&expected(&case).base, &settings());
        let read = adapter_plan(&case);
        let fitted = read.on(&plan(&expected(&case).base, &settings())).unwrap();
        let loaded = load(&case, &base).footprint;
        assert_eq!(fitted.footprint(), loaded, "{case}");
        assert_eq!(read.footprint().weights, loaded.weights, "{case}");
        assert!(loaded.weights.0 > 0 && loaded.host.0 > 0, "{case}");
        assert_eq!(read.base_name(), Some(expected(&case).base.as_str()));
    }
}

/// As modules were called before what reads text and what writes it were apart.
#[test]
fn older_names_of_a_text_part_s_modules_are_known() {
    let names =
        [("base_model.model.model.language_model.", "base_model.model.language_model.model.")];
    let folder = renamed(&folder("gemma3-images"), &names);
    let older = AdapterPlan::read(&read_local(folder.path()).unwrap()).unwrap();
    let base = plan("gemma3-images", &served());
    let [older, newer] = [older, adapter_plan("gemma3-images")].map(|plan| plan.on(&base).unwrap());
    assert_eq!(older.footprint(), newer.footprint());
}

#[test]
fn halves_stay_halves() {
    let base = open("llama-gqa-tied", &settings());
    for case in ["llama-bf16", "llama-f16"] {
        let file = std::fs::metadata(folder(case).join("adapter_model.safetensors")).unwrap().len();
        // Rounded up to lines and panels, which for matrices this small is most of it.
        let loaded = load(case, &base).footprint.weights.0;
        assert!(loaded < 2 * file, "{case}: {loaded} bytes of a file of {file}");
    }
}

#[test]
fn a_step_needs_as_many_matmuls_with_adapters_as_without() {
    let eight = cases("eight-");
    let mut loaded = with("llama-mha", &eight, &served());
    let mut calls = |ids: &[Option<u64>]| {
        let before = matmul_calls();
        let rows = ids.iter().enumerate().map(|(index, id)| named(row(index, 0, &[4, 5]), *id));
        step(&mut *loaded.runner, rows.collect());
        matmul_calls() - before
    };
    let base = calls(&[None]);
    assert_eq!([calls(&[Some(1)]), calls(&[Some(1), None, Some(2), Some(3)])], [base; 2]);
}

#[test]
fn what_is_not_attached_is_refused_and_what_was_comes_back() {
    let mut loaded = with("llama-mha", &cases("eight-0"), &served());
    let mut refused = |id: u64| {
        let plan = StepPlan { rows: vec![named(row(0, 0, &[3, 4]), Some(id))] };
        matches!(loaded.runner.forward(&plan), Err(RunnerError::Input(_)))
    };
    assert!(!refused(1) && refused(2));
    let weights = loaded.runner.detach(AdapterId(1)).unwrap();
    assert!(loaded.runner.detach(AdapterId(1)).is_none());
    let plan = StepPlan { rows: vec![named(row(0, 0, &[3, 4]), Some(1))] };
    assert!(matches!(loaded.runner.forward(&plan), Err(RunnerError::Input(_))));
    // Another load of the same base is another base.
    let mut other = open("llama-mha", &served()).runner;
    let Err(RunnerError::Input(reason)) = other.attach(AdapterId(1), weights) else {
        panic!("an adapter of another base was taken");
    };
    assert_eq!(reason, "the adapter was loaded for another model");
    let Err(RunnerError::Input(reason)) = other.attach(AdapterId(1), Box::new(())) else {
        panic!("nothing was taken for an adapter");
    };
    assert_eq!(reason, "these are no weights of an adapter");
}

#[test]
fn what_needs_the_base_s_weights_is_not_loaded_when_they_are_gone() {
    let LoadedRunner { runner, base, .. } = open("llama-mha", &settings());
    let load = || {
        let files = Folder::new(folder("llama-dora"));
        load_adapter(&files, &adapter_plan("llama-dora"), &base, &Cancel::new())
    };
    assert!(load().is_ok());
    drop(runner);
    let refused = load().unwrap_err().to_string();
    assert!(refused.ends_with("its base was unloaded while it was loaded"), "{refused}");
}

#[test]
fn a_cancelled_load_ends() {
    let base = open("llama-mha", &settings());
    let cancel = Cancel::new();
    cancel.cancel();
    let files = Folder::new(folder("llama-all"));
    let refused = load_adapter(&files, &adapter_plan("llama-all"), &base.base, &cancel);
    assert!(matches!(refused, Err(roundhouse_models::Error::Cancelled)));
}
