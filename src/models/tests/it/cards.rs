//! What cards compute, on the host: the decoder by operations of tensors, held to the same references
//! in the same ways. `card` does the same where there is one.

use roundhouse_engine::{AdapterId, BlockId, Row, RunnerError, StepPlan};
use roundhouse_models::{
    Cancel, DeviceMemory, DtypeSetting, Error, KvDtype, LoadSettings, Quantize, inspect, load,
    load_shared, matmul_calls, promote, read_local,
};
use roundhouse_types::{Bytes, DeviceId, ErrorKind};

use crate::decoders::{LOGITS, NEAR_TIE, table};
use crate::encoders::parity_of_vectors;
use crate::sharing::{Lies, answer, checkpoint};
use crate::support::{
    LlamaCase, apart, decoders, dir, expected, open_in, plan, row, scattered, served, settings,
    step,
};

fn rehearsal() -> DeviceMemory {
    DeviceMemory::rehearsal(DeviceId::Simulated(0))
}

/// Projections of halves round what they read and what they make. Models as small and wild as these are
/// moved by that by some hundredths, in bf16 by eight times as much; the second is below what lead
/// their tokens may turn.
pub(crate) fn bounds(case: &str) -> (f32, f32) {
    let files = plan(case, &settings());
    match files.weights[0].memory_dtype {
        "f32" => (LOGITS, NEAR_TIE),
        "f16" => (2.5e-2, 2.5e-2),
        "bf16" => (2e-1, 2e-1),
        other => panic!("{case} has weights of {other}"),
    }
}

/// All families in every way, in such a memory.
pub(crate) fn parity(memory: &DeviceMemory) {
    let exact = (DtypeSetting::Auto, KvDtype::F32);
    let (text, tokens, near_ties) = table((memory, &decoders()), exact, &bounds);
    println!("By operations of tensors on {}. {text}", memory.id());
    assert!(near_ties * 100 <= tokens, "{near_ties} near-ties in {tokens} tokens");
    for (dtype, apart) in [(KvDtype::F16, 2.5e-2), (KvDtype::Bf16, 2e-1)] {
        let bounds = |case: &str| (bounds(case).0.max(apart), bounds(case).1.max(apart));
        let kept = (DtypeSetting::Auto, dtype);
        let (_, tokens, near_ties) = table((memory, &decoders()), kept, &bounds);
        assert!(near_ties * 100 <= tokens, "{near_ties} near-ties in {tokens} tokens");
    }
}

#[test]
fn parity_of_every_family_by_operations_of_tensors() {
    parity(&rehearsal());
}

#[test]
fn vectors_of_whole_texts_by_operations_of_tensors() {
    parity_of_vectors(&rehearsal());
}

/// Tokens of several hundred keys, in blocks that lie all over many chunks, beside short ones.
#[test]
fn they_answer_as_the_hosts_own_kernels_do_over_long_contexts() {
    let case = "mistral-window";
    let settings = served(&expected::<LlamaCase>(case));
    let mut own = open_in(&DeviceId::Cpu.into(), case, &settings).runner;
    let mut theirs = open_in(&rehearsal(), case, &settings).runner;
    let tokens: Vec<u32> = (0..120).map(|i| (i * 37 + 11) % 96).collect();
    let rows = |from: usize, to: usize, others: std::ops::Range<usize>| -> Vec<Row> {
        let long = row(0, from, &tokens[from..to]);
        others.map(|it| row(it, 0, &tokens[it..2 * it + 1])).chain([long]).collect()
    };
    for rows in [rows(0, 50, 1..1), rows(50, 119, 1..6), rows(119, 120, 6..9)] {
        let (want, got) = (step(&mut *own, rows.clone()), step(&mut *theirs, rows));
        for (want, got) in want.iter().zip(&got) {
            assert!(apart(want, got) <= LOGITS);
        }
    }
}

#[test]
fn the_number_of_matmuls_does_not_depend_on_the_sequences() {
    let settings = served(&expected::<LlamaCase>("llama-mha"));
    let mut runner = open_in(&rehearsal(), "llama-mha", &settings).runner;
    let mut count = |rows: Vec<Row>| {
        let before = matmul_calls();
        step(&mut *runner, rows);
        matmul_calls() - before
    };
    let one = count(vec![row(0, 0, &[1, 2, 3])]);
    assert!(one > 0);
    assert_eq!(count((0..7).map(|it| row(it, 0, &[5; 9])).collect()), one);
}

#[test]
fn what_is_given_back_is_gone_and_can_be_written_again() {
    let want: LlamaCase = expected("llama-mha");
    let mut runner = open_in(&rehearsal(), "llama-mha", &served(&want)).runner;
    let kv = runner.spec().kv.unwrap();
    let empty = runner.touched();
    let prompt = &want.prompts[0];
    let blocks: Vec<BlockId> = (0..).map(BlockId).take(kv.chunk).collect();
    let row = || Row { blocks: blocks.clone(), ..row(0, 0, &prompt.ids) };
    for _ in 0..2 {
        let logits = step(&mut *runner, vec![row()]);
        assert!(apart(&logits[0], &prompt.last_logits) <= LOGITS);
        assert_eq!(runner.touched(), empty + kv.chunk_bytes);
        assert!(runner.give_back(0).is_some() && runner.give_back(0).is_none());
        assert_eq!(runner.touched(), empty);
    }
}

#[test]
fn what_an_earlier_owner_left_in_a_block_spoils_nothing() {
    // An embedding that is no number, and others that are.
    let folder = checkpoint(true, Lies::F32, 1, 0);
    let path = folder.path().join("model.safetensors");
    let sound = load_in(&rehearsal(), folder.path());
    let mut sound = sound.runner;
    let row = |token: u32, tokens: usize| Row {
        blocks: vec![BlockId(0), BlockId(1)],
        tokens: vec![token; tokens],
        output: true,
        ..Row::default()
    };
    let want = step(&mut *sound, vec![row(3, 5)]);
    spoil(&path, "model.embed_tokens.weight", 7);
    let mut runner = load_in(&rehearsal(), folder.path()).runner;
    let spoilt = step(&mut *runner, vec![row(7, 30)]);
    assert!(spoilt[0].iter().all(|logit| logit.is_nan()));
    // The head is the embeddings: the logit of that one is no number by itself.
    let mut got = step(&mut *runner, vec![row(3, 5)]);
    got[0][7] = want[0][7];
    assert_eq!(got, want);
}

/// Makes a row of a matrix of f32 no numbers.
fn spoil(path: &std::path::Path, name: &str, row: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let head: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let tensor = &head[name];
    let width = tensor["shape"][1].as_u64().unwrap() as usize;
    let start = 8 + header + tensor["data_offsets"][0].as_u64().unwrap() as usize;
    for number in bytes[start + row * width * 4..][..width * 4].as_chunks_mut::<4>().0 {
        *number = f32::NAN.to_le_bytes();
    }
    std::fs::write(path, bytes).unwrap();
}

fn load_in(memory: &DeviceMemory, folder: &std::path::Path) -> roundhouse_models::LoadedRunner {
    let plan = inspect(&read_local(folder).unwrap(), &settings()).unwrap();
    load(folder, &plan, memory.clone(), &Cancel::new()).unwrap()
}

#[test]
fn a_copy_that_comes_back_answers_to_the_bit_and_shares_what_is_there() {
    let (memory, cancel) = (rehearsal(), Cancel::new());
    let folder = checkpoint(true, Lies::Bf16, 1, 0);
    let plan = inspect(&read_local(folder.path()).unwrap(), &settings()).unwrap();
    let sharing = roundhouse_models::Sharing {
        pool: Default::default(),
        scope: String::new(),
        known: Default::default(),
    };
    let mut first = load_shared(folder.path(), &plan, memory.clone(), &cancel, &sharing).unwrap();
    let want = answer(&mut first, true);
    let copy = first.weights.as_ref().unwrap().to_host(&memory, None, &cancel).unwrap();
    assert_eq!(copy.bytes(), first.footprint.weights);
    let mut again = promote(&plan, &copy, &memory, None, &cancel).unwrap();
    assert_eq!(answer(&mut again, true), want);
    let mut twin = load_shared(folder.path(), &plan, memory.clone(), &cancel, &sharing).unwrap();
    assert_eq!(answer(&mut twin, true), want);
    assert_eq!(twin.shared, first.shared);
    assert!(sharing.pool.bytes() < first.footprint.weights + Bytes(1));
}

#[test]
fn faulty_plans_are_refused_and_adapters_by_name() {
    let mut runner = open_in(&rehearsal(), "llama-mha", &settings()).runner;
    let faulty = [row(0, 0, &[]), row(0, 0, &[128]), Row { blocks: vec![], ..row(0, 0, &[1]) }];
    for row in faulty {
        let refused = runner.forward(&StepPlan { rows: vec![row] });
        assert!(matches!(refused, Err(RunnerError::Input(_))));
    }
    let named = Row { adapter: Some(AdapterId(4)), ..row(0, 0, &[1]) };
    let refused = runner.forward(&StepPlan { rows: vec![named] }).unwrap_err();
    assert!(refused.to_string().contains("adapters, 4 included"), "{refused}");
    let refused = runner.attach(AdapterId(4), Box::new(())).unwrap_err();
    assert!(refused.to_string().contains("on the cpu only"), "{refused}");
    assert!(step(&mut *runner, vec![]).is_empty());
    let silent = Row { output: false, ..row(1, 0, &[1, 2]) };
    assert_eq!(step(&mut *runner, vec![silent, row(2, 0, &[4])]).len(), 1);
    assert_ne!(scattered(1), scattered(2));
}

#[test]
fn what_cards_do_not_compute_is_refused_by_name_before_anything_is_read() {
    let quantised = LoadSettings { quantize: Some(Quantize::Q8_0), ..settings() };
    let cases = [
        ("bert-plain", settings(), "encoders are computed on the cpu only, not on simulated:0"),
        ("gguf-q8_0", settings(), "quantised weights are computed on the cpu only"),
        ("llama-mha", quantised, "quantised weights are"),
        ("mxfp4-gpt-oss", settings(), "quantised weights are"),
    ];
    for (case, settings, words) in cases {
        let plan = plan(case, &settings);
        assert!(plan.host_only().is_some_and(|what| words.starts_with(what)));
        let nowhere = dir("no-such-folder");
        let refused = load(&nowhere, &plan, rehearsal(), &Cancel::new()).unwrap_err();
        assert!(matches!(refused, Error::HostOnly { .. }));
        assert_eq!(refused.kind(), ErrorKind::ModelInvalid);
        assert!(refused.to_string().starts_with(words), "{refused}");
        let is_told = refused.to_string().contains("dtype = \"bf16\"");
        assert_eq!(is_told, words.starts_with("quantised"), "{refused}");
    }
    let widened = LoadSettings { dtype: DtypeSetting::Bf16, ..settings() };
    for case in ["gguf-q8_0", "mxfp4-gpt-oss"] {
        assert_eq!(plan(case, &widened).host_only(), None, "{case}: as it says");
    }
    assert_eq!(plan("llama-bf16", &settings()).host_only(), None);
    assert_eq!(plan("encoder-qwen3-last", &settings()).host_only(), None);
}

#[test]
fn a_plan_for_cards_has_room_for_their_steps() {
    for case in decoders() {
        let own = plan(&case, &settings()).footprint;
        let both = plan(&case, &LoadSettings { cards: true, ..settings() }).footprint;
        assert!(both.workspace >= own.workspace, "{case}");
        assert_eq!((both.weights, both.kv, both.host), (own.weights, own.kv, own.host));
    }
}
