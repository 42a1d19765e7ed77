//! GGUF files in every format that is read, against transformers on the widened weights and
//! against llama.cpp itself.
//!
//! Tolerances: with the file's weights widened, those of checkpoints in f32.
//! As they lie, activations are rounded to eight bits, by us as by llama.cpp, which moves logits by up
//! to 0.35 here (they spread over some ten): ours may move by no more than a quarter more than
//! llama.cpp's do. The two are held to 0.5 of each other, and their greedy tokens are the same until
//! the lead over the runner-up is below twice that.

use std::path::Path;

use roundhouse_models::{
    Cancel, DtypeSetting, KvDtype, LoadSettings, Sharing, TensorPool, gguf_bytes, inspect, load,
    load_shared, read_file, read_local,
};
use roundhouse_types::{Bytes, DeviceId};
use serde::Deserialize;

use crate::support::{
    LlamaCase, apart, argmax, cases, dir, expected, open, plan, row, settings, step,
};
use crate::ways::{WAYS, compare};

const LOGITS: f32 = 2e-3;
const LLAMA_CPP: f32 = 0.5;
const NEAR_TIE: f32 = 1e-3;

#[derive(Deserialize)]
struct Theirs {
    /// Absent where llama.cpp was not asked.
    llama_cpp: Option<LlamaCpp>,
}

#[derive(Deserialize)]
struct LlamaCpp {
    last_logits: Vec<Vec<f32>>,
    greedy: Vec<Vec<u32>>,
}

/// The greedy tokens after a prompt.
fn greedy(runner: &mut dyn roundhouse_engine::ModelRunner, ids: &[u32], count: usize) -> Vec<u32> {
    let mut got = Vec::new();
    let mut next = ids.to_vec();
    let mut position = 0;
    while got.len() < count {
        let logits = step(runner, vec![row(0, position, &next)]);
        position += next.len();
        next = vec![argmax(&logits[0])];
        got.push(next[0]);
    }
    got
}

/// What a case's widened weights give in every way, and the largest difference of their logits.
fn widened(case: &str, want: &LlamaCase) -> (f32, String) {
    let widened = LoadSettings { dtype: DtypeSetting::F32, ..settings() };
    let mut runner = open(case, &widened).runner;
    let mut worst = 0.0f32;
    let ids = &want.prompts[want.every_position.prompt].ids;
    for (position, logits) in want.every_position.logits.iter().enumerate() {
        let got = step(&mut *runner, vec![row(3, position, &ids[position..=position])]);
        worst = worst.max(apart(&got[0], logits));
    }
    let of_reference: usize = want.prompts.iter().map(|prompt| prompt.greedy.ids.len()).sum();
    let mut cells = String::new();
    for way in WAYS {
        let compared = compare((case, want), (&widened, &DeviceId::Cpu.into()), way, NEAR_TIE);
        let is_whole = compared.tokens == of_reference || compared.near_ties > 0;
        assert!(is_whole, "{case}, {}: {} tokens", way.name, compared.tokens);
        worst = worst.max(compared.logits);
        cells += &compared.cell(of_reference);
    }
    assert!(worst <= LOGITS, "{case}: {worst}");
    (worst, cells)
}

/// The largest difference from llama.cpp's logits, as the weights lie, and how many tokens of how many
/// are its before the two part.
fn against_llama_cpp(case: &str, ours: &LlamaCase) -> Option<(f32, usize, usize)> {
    let theirs = expected::<Theirs>(case).llama_cpp?;
    // As theirs were for these numbers.
    let settings = LoadSettings { kv_dtype: Some(KvDtype::F32), ..settings() };
    let mut runner = open(case, &settings).runner;
    let (mut worst, mut same, mut all) = (0.0f32, 0, 0);
    let mut from_widened = [0.0f32; 2];
    for (index, prompt) in ours.prompts.iter().enumerate() {
        let got = step(&mut *runner, vec![row(index, 0, &prompt.ids)]);
        let their = &theirs.last_logits[index];
        worst = worst.max(apart(&got[0], their));
        for (most, logits) in from_widened.iter_mut().zip([&got[0], their]) {
            *most = most.max(apart(logits, &prompt.last_logits));
        }
        let wanted = &theirs.greedy[index];
        let got = greedy(&mut *runner, &prompt.ids, wanted.len());
        let parting = got.iter().zip(wanted).position(|(ours, theirs)| ours != theirs);
        all += wanted.len();
        same += parting.unwrap_or(wanted.len());
        if let Some(at) = parting {
            let lead = prompt.greedy.margins[at];
            assert!(lead < 2.0 * LLAMA_CPP, "{case}, prompt {index}: parts at a lead of {lead}");
        }
    }
    assert!(worst <= LLAMA_CPP, "{case}: {worst}");
    let [own, their] = from_widened;
    assert!(own <= LOGITS + 1.25 * their, "{case}: {own} and {their}");
    Some((worst, same, all))
}

/// `parity` in its name: one command prints this table and that of the families.
#[test]
fn parity_of_every_gguf_format_in_every_way_and_against_llama_cpp() {
    let mut table = String::from("GGUF, weights widened, and as they lie against llama.cpp:\n\n");
    table += "| case | logits |";
    WAYS.iter().for_each(|way| table += &format!(" {} |", way.name));
    table += " from llama.cpp | tokens that are its before parting |\n";
    table += "|---|---|---|---|---|---|---|---|---|---|\n";
    let mut compared = 0;
    for case in cases("gguf") {
        let want: LlamaCase = expected(&case);
        let (logits, cells) = widened(&case, &want);
        let theirs = against_llama_cpp(&case, &want);
        compared += usize::from(theirs.is_some());
        let theirs = match theirs {
            Some((apart, same, all)) => format!("{apart:.1e} | {same}/{all}"),
            None => "- | -".into(),
        };
        table += &format!("| {case} | {logits:.1e} |{cells} {theirs} |\n");
    }
    println!("{table}");
    assert!(compared >= 20, "{compared} cases have llama.cpp's numbers");
}

#[test]
fn company_does_not_change_what_a_sequence_computes() {
    for case in ["gguf-q4_k_m", "gguf-q8_0"] {
        let want: LlamaCase = expected(case);
        let mut runner = open(case, &settings()).runner;
        for prompt in &want.prompts {
            let alone = step(&mut *runner, vec![row(0, 0, &prompt.ids)]);
            // One token each, and forty.
            let all = (0..8).map(|index| row(index, 0, &prompt.ids)).collect();
            for got in step(&mut *runner, all) {
                assert_eq!(got, alone[0], "{case}");
            }
        }
    }
}

#[test]
fn chunks_of_a_prompt_compute_what_the_whole_does() {
    for case in ["gguf-q4_k_m", "gguf-q8_0"] {
        let want: LlamaCase = expected(case);
        let mut runner = open(case, &settings()).runner;
        for prompt in &want.prompts {
            let whole = step(&mut *runner, vec![row(0, 0, &prompt.ids)]);
            let mut last = Vec::new();
            for (chunk, ids) in prompt.ids.chunks(3).enumerate() {
                last = step(&mut *runner, vec![row(1, 3 * chunk, ids)]);
            }
            assert_eq!(last, whole, "{case}");
        }
    }
}

#[test]
fn loaded_bytes_are_the_planned_ones_and_those_of_the_file() {
    for case in cases("gguf") {
        let (plan, loaded) = (plan(&case, &settings()), open(&case, &settings()));
        assert_eq!(loaded.footprint.weights, plan.footprint.weights, "{case}");
        let planned: Bytes = plan.weights.iter().map(|share| share.bytes).sum();
        assert_eq!(planned, plan.footprint.weights, "{case}");
        for share in &plan.weights {
            // A record of 64 bytes beside each quantised projection.
            let beside = share.bytes.0 - share.file_bytes.0;
            assert!(beside.is_multiple_of(64) && beside <= 64 * 16, "{case}: {beside}");
        }
    }
}

#[test]
fn an_operator_who_wants_floats_gets_floats() {
    let case = "gguf-q4_k_m";
    let want: LlamaCase = expected(case);
    for (dtype, width) in [(DtypeSetting::F32, 4), (DtypeSetting::F16, 2)] {
        let settings = LoadSettings { dtype, ..settings() };
        let loaded = open(case, &settings);
        assert_eq!(loaded.footprint.weights, plan(case, &settings).footprint.weights);
        let blocks = open(case, &crate::support::settings()).footprint.weights;
        assert!(loaded.footprint.weights.0 > blocks.0 * width * 8 / 7, "wider than blocks");
        let mut runner = loaded.runner;
        let prompt = &want.prompts[3];
        let got = step(&mut *runner, vec![row(0, 0, &prompt.ids)]);
        // f16 rounds the widened weights once more.
        let tolerance = if dtype == DtypeSetting::F32 { LOGITS } else { 5e-2 };
        assert!(apart(&got[0], &prompt.last_logits) <= tolerance);
    }
}

fn copy(case: &str, to: &Path, name: &str) {
    std::fs::copy(dir(case).join("model.gguf"), to.join(name)).unwrap();
}

fn refusal(folder: &Path) -> String {
    let inspected = read_local(folder).and_then(|files| inspect(&files, &settings()));
    inspected.expect_err("it must be refused").to_string()
}

#[test]
fn a_file_by_itself_and_one_of_several_that_is_chosen_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    copy("gguf-q8_0", path, "chat-q8.gguf");
    let alone = inspect(&read_file(&path.join("chat-q8.gguf")).unwrap(), &settings()).unwrap();
    assert_eq!(alone.gguf.as_ref().unwrap().file, "chat-q8.gguf");
    assert_eq!(alone.architecture, "llama");
    assert_eq!(alone.eos_tokens, [257, 258], "the one that is named and <|eot_id|>");
    copy("gguf-q4_0", path, "chat-q4.gguf");
    let several = refusal(path);
    assert!(several.contains("chat-q4.gguf, chat-q8.gguf"), "{several}");
    std::fs::write(path.join("roundhouse.toml"), "[model]\nfile = \"chat-q4.gguf\"").unwrap();
    let chosen = inspect(&read_local(path).unwrap(), &settings()).unwrap();
    assert_eq!(chosen.gguf.unwrap().file, "chat-q4.gguf");
    std::fs::write(path.join("roundhouse.toml"), "[model]\nfile = \"other.gguf\"").unwrap();
    assert!(refusal(path).contains("'other.gguf' is not there"));
}

#[test]
fn what_is_not_served_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat-00001-of-00002.gguf");
    copy("gguf-q8_0", folder.path(), "chat-00001-of-00002.gguf");
    assert!(refusal(folder.path()).contains("in several parts"));
    std::fs::remove_file(&path).unwrap();
    let whole = std::fs::read(dir("gguf-q8_0").join("model.gguf")).unwrap();
    let changed = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let at = whole.windows(from.len()).position(|window| window == from).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to);
        std::fs::write(folder.path().join("chat.gguf"), bytes).unwrap();
        refusal(folder.path())
    };
    let architecture = changed(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0falco");
    assert!(architecture.contains("architecture 'falco' is not served"), "{architecture}");
    let strange = changed(b"blk.0.attn_q.weight", b"blk.0.ffn_e1.weight");
    assert!(strange.contains("'blk.0.ffn_e1.weight'"), "{strange}");
    let elsewhere = changed(b"blk.1.attn_q.weight", b"blk.7.attn_q.weight");
    assert!(elsewhere.contains("'blk.1.attn_q.weight'"), "{elsewhere}");
    for length in [0, 100, whole.len() / 2, whole.len() - 200] {
        std::fs::write(folder.path().join("chat.gguf"), &whole[..length]).unwrap();
        assert!(refusal(folder.path()).contains("not a sound GGUF file"), "{length}");
    }
}

#[test]
fn two_files_with_equal_tensors_hold_them_once() {
    let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    copy("gguf-q6_k", first.path(), "base.gguf");
    let mut bytes = std::fs::read(dir("gguf-q6_k").join("model.gguf")).unwrap();
    // A fine-tune: the first tensor's first block differs.
    let header = gguf_bytes("base.gguf", bytes.len() as u64, &bytes).unwrap();
    bytes[header.next_multiple_of(32) as usize] ^= 1;
    std::fs::write(second.path().join("tuned.gguf"), bytes).unwrap();
    let sharing = Sharing {
        pool: std::sync::Arc::new(TensorPool::new()),
        scope: String::new(),
        known: roundhouse_models::Digests::default(),
    };
    let open = |dir: &Path| {
        let plan = inspect(&read_local(dir).unwrap(), &settings()).unwrap();
        load_shared(dir, &plan, DeviceId::Cpu, &Cancel::new(), &sharing).unwrap()
    };
    let (base, tuned) = (open(first.path()), open(second.path()));
    let mine: Vec<_> = tuned.shared.iter().filter(|part| !base.shared.contains(part)).collect();
    assert!(base.shared.len() == 2 && mine.len() == 1, "{} and {}", base.shared.len(), mine.len());
    let held: Bytes = base.shared.iter().chain(mine).map(|part| part.bytes).sum();
    assert_eq!(sharing.pool.bytes(), held);
    let plain = load(
        second.path(),
        &inspect(&read_local(second.path()).unwrap(), &settings()).unwrap(),
        DeviceId::Cpu,
        &Cancel::new(),
    );
    let prompt = [5, 9, 200];
    let [mut shared, mut alone] = [tuned.runner, plain.unwrap().runner];
    let [shared, alone] =
        [&mut shared, &mut alone].map(|runner| step(&mut **runner, vec![row(0, 0, &prompt)]));
    assert_eq!(shared, alone);
}
