//! Decoders of every family against transformers: `cargo test -p roundhouse-models --test it
//! parity -- --nocapture` prints the tables, those of GGUF too.
//!
//! Logits may differ by 2e-3. Greedy tokens are identical, but where the reference's own two
//! best logits are less than 1e-3 apart, which kernel computes them decides; such near-ties are
//! counted, and a sequence is followed no further. With keys and values in sixteen bits logits may
//! differ by more, as is said there, and so may tokens whose lead is below that.

use roundhouse_engine::{Row, Want};
use roundhouse_models::{DeviceMemory, DtypeSetting, KvDtype, LoadSettings};
use roundhouse_types::DeviceId;

use crate::support::{LlamaCase, apart, decoders, expected, open_in, row, served, step};
use crate::ways::{WAYS, compare};

pub(crate) const LOGITS: f32 = 2e-3;
pub(crate) const NEAR_TIE: f32 = 1e-3;

/// The largest difference over all positions of one prompt, token by token, and asked for at once.
fn every_position(
    (case, want): (&str, &LlamaCase),
    settings: &LoadSettings,
    memory: &DeviceMemory,
) -> f32 {
    let mut runner = open_in(memory, case, settings).runner;
    let ids = &want.prompts[want.every_position.prompt].ids;
    let mut worst = 0.0f32;
    for (position, logits) in want.every_position.logits.iter().enumerate() {
        let got = step(&mut *runner, vec![row(3, position, &ids[position..=position])]);
        worst = worst.max(apart(&got[0], logits));
    }
    // Beside another's row, which has its own vector after them.
    let each = Row { want: Want::Each, ..row(5, 0, ids) };
    let got = step(&mut *runner, vec![each, row(6, 0, &ids[..2])]);
    let width = got[1].len();
    assert_eq!(got[0].len(), ids.len() * width);
    for (got, logits) in got[0].chunks_exact(width).zip(&want.every_position.logits) {
        worst = worst.max(apart(got, logits));
    }
    worst.max(apart(&got[1], &want.every_position.logits[1]))
}

/// A table of all families with weights and with keys and values in one type, each way's greedy tokens, its
/// near-ties if there are any, and the logits of all; tokens and near-ties. `bounds` are how far logits
/// of a case may be from the reference's, and below what lead its tokens may differ.
pub(crate) fn table(
    (memory, cases): (&DeviceMemory, &[String]),
    (dtype, kv_dtype): (DtypeSetting, KvDtype),
    bounds: &dyn Fn(&str) -> (f32, f32),
) -> (String, usize, usize) {
    let mut table = format!("Keys and values in {}:\n\n| case | logits |", kv_dtype.name());
    WAYS.iter().for_each(|way| table += &format!(" {} |", way.name));
    table += "\n|---|---|---|---|---|---|---|---|\n";
    let (mut tokens, mut near_ties) = (0, 0);
    for case in cases {
        let (logits_apart, near_tie) = bounds(case);
        let want: LlamaCase = expected(case);
        let settings = LoadSettings { dtype, kv_dtype: Some(kv_dtype), ..served(&want) };
        let of_reference: usize = want.prompts.iter().map(|prompt| prompt.greedy.ids.len()).sum();
        let mut logits = every_position((case, &want), &settings, memory);
        let mut cells = String::new();
        for way in WAYS {
            let compared = compare((case, &want), (&settings, memory), way, near_tie);
            let difference = compared.logits;
            assert!(difference <= logits_apart, "{case}, {}: {difference}", way.name);
            let is_whole = compared.tokens == of_reference || compared.near_ties > 0;
            assert!(is_whole, "{case}, {}: {} tokens", way.name, compared.tokens);
            logits = logits.max(difference);
            tokens += compared.tokens;
            near_ties += compared.near_ties;
            cells += &compared.cell(of_reference);
        }
        assert!(logits <= logits_apart, "{case}: {logits}");
        table += &format!("| {case} | {logits:.1e} |{cells}\n");
    }
    table += &format!("\n{tokens} tokens equal the reference's, {near_ties} near-ties\n");
    (table, tokens, near_ties)
}

#[test]
fn parity_of_every_family_in_every_way() {
    let on = (&DeviceId::Cpu.into(), &decoders()[..]);
    let exact = (DtypeSetting::Auto, KvDtype::F32);
    let (table, tokens, near_ties) = table(on, exact, &|_| (LOGITS, NEAR_TIE));
    println!("{table}");
    assert!(near_ties * 1000 <= tokens, "{near_ties} near-ties in {tokens} tokens");
}

/// Rounded keys and values move the logits of models as small and wild as these by up to some hundredths;
/// bf16's, which is eight times as coarse, by eight times as much. A lead below that may turn.
#[test]
fn parity_of_every_family_with_keys_and_values_in_halves() {
    for (dtype, apart, one_in) in [(KvDtype::F16, 2.5e-2, 1000), (KvDtype::Bf16, 2e-1, 100)] {
        let on = (&DeviceId::Cpu.into(), &decoders()[..]);
        let kept = (DtypeSetting::Auto, dtype);
        let (table, tokens, near_ties) = table(on, kept, &|_| (apart, apart));
        println!("{table}");
        assert!(near_ties * one_in <= tokens, "{near_ties} near-ties in {tokens} tokens");
    }
}
