//! On a card, where there is one: the same references in the same ways, and what its memory holds.
//! Without one these say so aloud, and prove nothing.

use std::io::Write as _;

use roundhouse_engine::Row;
use roundhouse_models::{Card, DeviceMemory, DtypeSetting, LoadSettings, cards};
use roundhouse_types::{Bytes, DeviceId};

use crate::cards::parity;
use crate::encoders::parity_of_vectors;
use crate::support::{LlamaCase, apart, expected, open_in, row, served, step};

/// The first card; without one the test has nothing to say.
fn card(test: &str) -> Option<Card> {
    match cards() {
        Ok(_) => Some(Card::open(0).unwrap()),
        Err(reason) => {
            // What is printed by macros is shown of tests that fail only.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: no CUDA card: {reason}");
            None
        }
    }
}

#[test]
fn parity_of_every_family_on_a_card() {
    let Some(card) = card("parity_of_every_family_on_a_card") else { return };
    parity(&DeviceMemory::of_card(&card));
    parity_of_vectors(&DeviceMemory::of_card(&card));
}

#[test]
fn a_card_answers_as_the_host_does_by_the_same_operations() {
    let Some(card) = card("a_card_answers_as_the_host_does_by_the_same_operations") else {
        return;
    };
    let case = "qwen3-head-norms";
    let settings =
        LoadSettings { dtype: DtypeSetting::F32, ..served(&expected::<LlamaCase>(case)) };
    let mut own = open_in(&DeviceMemory::rehearsal(DeviceId::Cuda(0)), case, &settings).runner;
    let mut its = open_in(&DeviceMemory::of_card(&card), case, &settings).runner;
    let rows: Vec<Row> = (0..6).map(|it| row(it, 0, &[3, 5, 7, 11, 13][..=it % 5])).collect();
    for (own, its) in step(&mut *own, rows.clone()).iter().zip(step(&mut *its, rows)) {
        assert!(apart(own, &its) < 2e-3);
    }
}

#[test]
fn a_cards_memory_is_given_back_when_its_models_leave() {
    let Some(card) = card("a_cards_memory_is_given_back_when_its_models_leave") else { return };
    let case = "llama-bf16";
    let settings = served(&expected::<LlamaCase>(case));
    let memory = DeviceMemory::of_card(&card);
    let used = || {
        card.give_back().unwrap();
        let now = card.memory().unwrap();
        now.total.saturating_sub(now.free)
    };
    let turn = || {
        let mut runner = open_in(&memory, case, &settings).runner;
        step(&mut *runner, vec![row(0, 0, &[1, 2, 3])]);
    };
    turn();
    let before = used();
    (0..20).for_each(|_| turn());
    assert!(used() <= before + Bytes::mib(2), "{} after {before}", used());
}

#[test]
fn without_a_card_none_can_be_opened_and_the_reason_is_told() {
    let Err(reason) = cards() else { return };
    let refused = Card::open(0).unwrap_err().to_string();
    assert_eq!(refused, format!("cuda:0 cannot be used: {reason}"));
}
