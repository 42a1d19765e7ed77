//! Experts in four bits (MXFP4) as gpt-oss is published, against transformers on the numbers that it
//! makes of them.
//!
//! Widened, tolerances are those of checkpoints in f32. As they lie, activations are rounded to eight
//! bits, as with GGUF: logits may move by as much as is said there.

use roundhouse_models::{DtypeSetting, KvDtype, LoadSettings};
use roundhouse_types::{Bytes, DeviceId};

use crate::decoders::{LOGITS, NEAR_TIE, table};
use crate::support::{LlamaCase, apart, expected, open, plan, row, served, step};

const CASE: &str = "mxfp4-gpt-oss";
/// How far logits are moved by activations rounded to eight bits.
const ROUNDED: f32 = 0.5;

/// `parity` in its name: one command prints this table and that of the families.
#[test]
fn parity_of_four_bit_experts_whose_numbers_are_widened() {
    let on = (&DeviceId::Cpu.into(), &[CASE.to_owned()][..]);
    for dtype in [DtypeSetting::F32, DtypeSetting::F16] {
        let bounds = |_: &str| (LOGITS, NEAR_TIE);
        let (table, tokens, near_ties) = table(on, (dtype, KvDtype::F32), &bounds);
        println!("{dtype:?}. {table}");
        assert!(near_ties * 100 <= tokens, "{near_ties} near-ties in {tokens} tokens");
    }
}

#[test]
fn four_bit_experts_as_they_lie_keep_the_logits_near() {
    let want: LlamaCase = expected(CASE);
    let mut runner = open(CASE, &served(&want)).runner;
    for prompt in &want.prompts {
        let alone = step(&mut *runner, vec![row(0, 0, &prompt.ids)]);
        let difference = apart(&alone[0], &prompt.last_logits);
        println!("{} tokens: {difference}", prompt.ids.len());
        assert!(difference > 0.0 && difference < ROUNDED, "{difference}");
        // In any company, and in any chunks.
        let company = (0..8).map(|index| row(index, 0, &prompt.ids)).collect();
        for got in step(&mut *runner, company) {
            assert_eq!(got, alone[0]);
        }
    }
}

#[test]
fn four_bits_take_what_the_plan_says_and_widened_ones_what_they_are_widened_to() {
    let want: LlamaCase = expected(CASE);
    // Three layers of five experts: 2 * 96 rows of 64, and 64 rows of 96.
    let numbers = 3 * 5 * (2 * 96 * 64 + 64 * 96);
    for (dtype, name, bytes) in [
        (DtypeSetting::Auto, "mxfp4", numbers / 32 * 17 + 3 * 5 * 2 * 64),
        (DtypeSetting::Bf16, "bf16", numbers * 2),
        (DtypeSetting::F32, "f32", numbers * 4),
    ] {
        let settings = LoadSettings { dtype, ..served(&want) };
        let plan = plan(CASE, &settings);
        let of_experts = plan.weights.iter().find(|share| share.file_dtype == "mxfp4").unwrap();
        assert_eq!((of_experts.memory_dtype, of_experts.bytes), (name, Bytes(bytes)));
        assert_eq!(of_experts.file_bytes, Bytes(numbers / 32 * 17));
        assert_eq!(open(CASE, &settings).footprint, plan.footprint);
    }
}
