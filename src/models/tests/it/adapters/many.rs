//! Rows by the dozen, which threads share.

use super::*;
use crate::{low_rank, random};

const SHAPE: random::Llama = random::Llama {
    hidden: 576,
    intermediate: 1536,
    layers: 1,
    heads: 9,
    kv_heads: 3,
    vocab: 8400,
    context: 64,
};

/// Enough products for all threads, and more outputs than one task has.
#[test]
fn dozens_of_rows_of_one_adapter_are_each_what_it_is_alone() {
    let (base, own) = (tempfile::tempdir().unwrap(), [(16, 0.03), (5, 0.07)]);
    random::llama(base.path(), SHAPE);
    let settings = LoadSettings { context: 64, kv_sequences: 41, ..settings() };
    let plan = inspect(&read_local(base.path()).unwrap(), &settings).unwrap();
    let mut loaded =
        roundhouse_models::load(base.path(), &plan, DeviceId::Cpu, &Cancel::new()).unwrap();
    let mut modules: Vec<_> = low_rank::projections(SHAPE.layers, [576, 192, 1536]).collect();
    modules.push(("lm_head".into(), 576, SHAPE.vocab));
    for (id, (rank, largest)) in (1..).zip(own) {
        let dir = tempfile::tempdir().unwrap();
        low_rank::write(dir.path(), rank, largest, &modules);
        let plan = AdapterPlan::read(&read_local(dir.path()).unwrap()).unwrap();
        let files = Folder::new(dir.path());
        let adapter = load_adapter(&files, &plan, &loaded.base, &Cancel::new()).unwrap();
        loaded.runner.attach(AdapterId(id), adapter.weights).unwrap();
    }
    // One in twelve is of the second, or of the base.
    let adapter = |index: usize| match index % 12 {
        5 => Some(2),
        9 => None,
        _ => Some(1),
    };
    let of = |index: usize, adapter: Option<u64>| {
        let blocks = (0..4).map(|at| BlockId((index * 4 + at) as u32)).collect();
        let tokens = [(index * 211 % SHAPE.vocab) as u32];
        named(Row { blocks, ..whole(&tokens) }, adapter)
    };
    let together = step(&mut *loaded.runner, (0..41).map(|at| of(at, adapter(at))).collect());
    for (index, together) in together.iter().enumerate() {
        let mut alone = |adapter| step(&mut *loaded.runner, vec![of(index, adapter)]).remove(0);
        let (own, base) = (alone(adapter(index)), alone(None));
        assert!(apart(together, &own) < LOGITS, "row {index}: {}", apart(together, &own));
        let moved = apart(together, &base);
        assert_eq!(moved > MOVED / 5.0, adapter(index).is_some(), "row {index} moved by {moved}");
    }
}
