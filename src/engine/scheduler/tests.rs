use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

mod fairness;
mod prefixes;

fn scheduler(blocks: usize, block_tokens: usize, step_tokens: usize, running: usize) -> Scheduler {
    let kv = KvSpec::whole(block_tokens, blocks);
    Scheduler::new(Limits { kv, step_tokens, running, reuse: true })
}

fn forgetful(blocks: usize, block_tokens: usize) -> Scheduler {
    let kv = KvSpec::whole(block_tokens, blocks);
    Scheduler::new(Limits { kv, step_tokens: 100, running: 8, reuse: false })
}

fn prompt(length: usize) -> Vec<u32> {
    (0..length).map(|token| u32::try_from(token).unwrap()).collect()
}

fn run(scheduler: &mut Scheduler) -> Step {
    run_within(scheduler, PromptLimit::NONE)
}

/// Plans a step and plays the device and the sampler for it.
fn run_within(scheduler: &mut Scheduler, limit: PromptLimit) -> Step {
    let step = scheduler.plan(limit);
    for (id, row) in step.owners.iter().zip(&step.plan.rows) {
        scheduler.computed(*id, row.tokens.len());
        if scheduler.is_computed(*id) {
            scheduler.append(*id, 7);
        }
    }
    step
}

fn shape(step: &Step) -> Vec<(u64, usize, usize, bool)> {
    let rows = step.owners.iter().zip(&step.plan.rows);
    rows.map(|(id, row)| (id.0, row.position, row.tokens.len(), row.output)).collect()
}

#[test]
fn a_long_prompt_is_read_in_chunks_beside_decodes() {
    let mut scheduler = scheduler(100, 4, 8, 8);
    scheduler.submit(SequenceId(1), prompt(3));
    assert_eq!(shape(&run(&mut scheduler)), [(1, 0, 3, true)]);
    scheduler.submit(SequenceId(2), prompt(12));
    assert_eq!(shape(&run(&mut scheduler)), [(1, 3, 1, true), (2, 0, 7, false)]);
    assert_eq!(shape(&run(&mut scheduler)), [(1, 4, 1, true), (2, 7, 5, true)]);
    assert_eq!(shape(&run(&mut scheduler)), [(1, 5, 1, true), (2, 12, 1, true)]);
}

#[test]
fn a_sequence_is_let_in_only_with_blocks_for_its_prompt_and_one_token() {
    let mut scheduler = scheduler(3, 4, 100, 8);
    scheduler.submit(SequenceId(1), prompt(4));
    scheduler.submit(SequenceId(2), prompt(4));
    // Five positions need two blocks; one is left for the second.
    assert_eq!(shape(&run(&mut scheduler)), [(1, 0, 4, true)]);
    scheduler.remove(SequenceId(1));
    assert_eq!(shape(&run(&mut scheduler)), [(2, 0, 4, true)]);
}

#[test]
fn the_youngest_gives_way_when_blocks_run_out_and_is_computed_again() {
    let mut scheduler = forgetful(4, 2);
    for id in [1, 2] {
        scheduler.submit(SequenceId(id), prompt(3));
    }
    assert_eq!(shape(&run(&mut scheduler)), [(1, 0, 3, true), (2, 0, 3, true)]);
    assert_eq!(shape(&run(&mut scheduler)), [(1, 3, 1, true), (2, 3, 1, true)]);
    let step = run(&mut scheduler);
    assert_eq!((shape(&step), step.preempted), (vec![(1, 4, 1, true)], 1));
    scheduler.remove(SequenceId(1));
    let step = run(&mut scheduler);
    assert_eq!(shape(&step), [(2, 0, 5, true)]);
    assert_eq!(step.plan.rows[0].tokens, [0, 1, 2, 7, 7]);
}

#[test]
fn nobody_overtakes_a_sequence_that_waits_for_blocks() {
    let mut scheduler = scheduler(4, 2, 100, 8);
    for (id, length) in [(1, 5), (2, 4), (3, 1)] {
        scheduler.submit(SequenceId(id), prompt(length));
    }
    // One block is left, which would do for the third.
    assert_eq!(run(&mut scheduler).owners, [SequenceId(1)]);
    scheduler.remove(SequenceId(1));
    assert_eq!(run(&mut scheduler).owners, [SequenceId(2), SequenceId(3)]);
}

#[test]
fn what_was_computed_of_a_prefix_is_not_computed_again() {
    let mut scheduler = scheduler(8, 4, 100, 8);
    scheduler.submit(SequenceId(1), prompt(10));
    assert_eq!(shape(&run(&mut scheduler)), [(1, 0, 10, true)]);
    // Beside the first, which still writes to its third block.
    scheduler.submit(SequenceId(2), prompt(9));
    assert_eq!(shape(&run(&mut scheduler)), [(1, 10, 1, true), (2, 8, 1, true)]);
    assert_eq!(scheduler.blocks(), 4);
    for id in [1, 2] {
        scheduler.remove(SequenceId(id));
    }
    assert_eq!(scheduler.blocks(), 0);
    // After it; the last token is computed although it ends a full block.
    scheduler.submit(SequenceId(3), prompt(8));
    let step = run(&mut scheduler);
    assert_eq!((shape(&step), step.reused), (vec![(3, 4, 4, true)], 4));
    // Another beginning is another prefix, whatever follows.
    let mut other = prompt(10);
    other[0] = 99;
    scheduler.submit(SequenceId(4), other);
    assert_eq!(shape(&run(&mut scheduler))[1], (4, 0, 10, true));
}

#[test]
fn generated_tokens_are_part_of_a_prefix() {
    let mut scheduler = scheduler(8, 4, 100, 8);
    scheduler.submit(SequenceId(1), prompt(3));
    for _ in 0..6 {
        run(&mut scheduler);
    }
    scheduler.remove(SequenceId(1));
    let turn: Vec<u32> = prompt(3).into_iter().chain([7; 7]).collect();
    scheduler.submit(SequenceId(2), turn);
    assert_eq!(shape(&run(&mut scheduler)), [(2, 8, 2, true)]);
}

#[test]
fn kept_prefixes_give_way_to_sequences_the_ends_of_the_oldest_first() {
    let mut scheduler = scheduler(4, 2, 100, 8);
    scheduler.submit(SequenceId(1), prompt(6));
    run(&mut scheduler);
    scheduler.remove(SequenceId(1));
    scheduler.submit(SequenceId(2), vec![50, 51, 52]);
    assert_eq!(shape(&run(&mut scheduler)), [(2, 0, 3, true)]);
    scheduler.remove(SequenceId(2));
    scheduler.submit(SequenceId(3), prompt(6));
    assert_eq!(shape(&run(&mut scheduler)), [(3, 4, 2, true)]);
}

#[test]
fn a_preempted_sequence_keeps_what_nobody_needed() {
    let mut scheduler = scheduler(5, 2, 100, 8);
    scheduler.submit(SequenceId(1), prompt(3));
    scheduler.submit(SequenceId(2), vec![50, 51, 52, 53]);
    for _ in 0..2 {
        run(&mut scheduler);
    }
    let step = run(&mut scheduler);
    assert_eq!((shape(&step), step.preempted), (vec![(1, 4, 1, true)], 1));
    scheduler.remove(SequenceId(1));
    let step = run(&mut scheduler);
    assert!(step.reused >= 2, "{step:?}");
    assert_eq!(step.plan.rows[0].tokens.len() + step.reused, 6);
}

#[test]
fn no_more_run_than_a_step_has_tokens() {
    let mut scheduler = scheduler(100, 2, 3, 50);
    for id in 0..5 {
        scheduler.submit(SequenceId(id), prompt(1));
    }
    for _ in 0..3 {
        let step = run(&mut scheduler);
        assert_eq!(step.owners, [SequenceId(0), SequenceId(1), SequenceId(2)]);
    }
}

#[derive(Debug, Clone)]
enum Act {
    Submit(usize),
    Remove(usize),
    Step,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => (1..12_usize).prop_map(Act::Submit),
        1 => (0..64_usize).prop_map(Act::Remove),
        5 => Just(Act::Step),
    ]
}

proptest! {
    /// Invariants 1 to 5, and that a plan carries what it should of each sequence.
    #[test]
    fn the_numbered_invariants_hold(
        acts in prop::collection::vec(act(), 1..80),
        blocks in 3..14_usize,
        block_tokens in 1..5_usize,
        step_tokens in 1..12_usize,
        running in 1..6_usize,
        reuse: bool,
        (alone, beside, others_wait) in (1..20_usize, 1..20_usize, any::<bool>()),
        (tenants, fixed) in (1..5_usize, 0..10_u64),
    ) {
        let kv = KvSpec::whole(block_tokens, blocks);
        let mut scheduler = Scheduler::new(Limits { kv, step_tokens, running, reuse });
        let accounts: Vec<_> = (0..tenants).map(|_| Account::idle()).collect();
        for tokens in [1, 5, 2, 7] {
            scheduler.measured(tokens, Duration::from_micros(fixed + tokens as u64));
        }
        let longest = blocks * block_tokens;
        let mut live: Vec<SequenceId> = Vec::new();
        let mut ids = 0;
        for act in acts {
            match act {
                Act::Submit(length) if length < longest => {
                    live.push(SequenceId(ids));
                    let account = &accounts[length % tenants];
                    let turn = Turn::new(account.clone(), 0);
                    scheduler.submit_with(SequenceId(ids), prompt(length), None, turn);
                    if length % 3 == 0 {
                        scheduler.score(SequenceId(ids));
                    }
                    ids += 1;
                }
                Act::Submit(_) => {}
                Act::Remove(index) if !live.is_empty() => {
                    let id = live.remove(index % live.len());
                    prop_assert!(scheduler.remove(id));
                    prop_assert!(!scheduler.remove(id));
                }
                Act::Remove(_) => {}
                Act::Step => {
                    let limit = PromptLimit { alone, beside, others_wait };
                    let step = run_within(&mut scheduler, limit);
                    prop_assert!(step.plan.tokens() - step.decoded <= alone.max(beside));
                    let vectors: usize = step.plan.rows.iter().map(Row::vectors).sum();
                    prop_assert!(vectors <= running, "the workspace has no more");
                    let owners: HashSet<_> = step.owners.iter().collect();
                    prop_assert_eq!(owners.len(), step.plan.rows.len(), "2");
                    prop_assert!(step.plan.tokens() <= step_tokens, "2");
                    prop_assert!(!step.plan.rows.is_empty() || live.is_empty(), "4");
                    for row in &step.plan.rows {
                        let end = row.position + row.tokens.len();
                        prop_assert_eq!(row.blocks.len(), end.div_ceil(block_tokens), "5");
                    }
                    // As an engine does, ends what has reached the longest length.
                    let full: Vec<_> =
                        scheduler.running.iter().filter(|s| s.tokens.len() >= longest).map(|s| s.id).collect();
                    for id in full {
                        scheduler.remove(id);
                        live.retain(|other| *other != id);
                    }
                }
            }
            prop_assert!(scheduler.waiting.iter().all(|s| s.blocks.is_empty()));
            let (mut full, mut written) = (HashSet::new(), HashSet::new());
            for sequence in &scheduler.running {
                let (before, after) = sequence.blocks.split_at(sequence.computed / block_tokens);
                full.extend(before);
                for block in after {
                    prop_assert!(written.insert(block), "1");
                }
            }
            prop_assert!(full.is_disjoint(&written), "1");
            prop_assert_eq!(full.len() + written.len(), scheduler.blocks(), "1");
            prop_assert!(scheduler.running.is_sorted_by(Sequence::precedes), "3");
            prop_assert!(scheduler.running.len() <= running);
        }
        for id in live {
            scheduler.remove(id);
        }
        prop_assert_eq!(scheduler.blocks(), 0);
    }
}

#[test]
fn prompts_are_cut_short_only_while_somebody_waits() {
    let limit = |others_wait| PromptLimit { alone: 100, beside: 20, others_wait };
    let mut scheduler = scheduler(100, 4, 200, 8);
    scheduler.submit(SequenceId(1), prompt(150));
    let step = scheduler.plan(limit(false));
    assert_eq!(shape(&step), [(1, 0, 100, false)]);
    scheduler.computed(SequenceId(1), 100);
    let step = scheduler.plan(limit(true));
    assert_eq!(shape(&step), [(1, 100, 20, false)]);
    scheduler.computed(SequenceId(1), 20);
    let step = scheduler.plan(limit(false));
    assert_eq!(shape(&step), [(1, 120, 30, true)]);
    scheduler.computed(SequenceId(1), 30);
    scheduler.append(SequenceId(1), 7);
    // Now it decodes, and waits for the prompt of another.
    scheduler.submit(SequenceId(2), vec![9; 150]);
    let step = scheduler.plan(limit(false));
    assert_eq!(shape(&step), [(1, 150, 1, true), (2, 0, 20, false)]);
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let mut scheduler = forgetful(1000, 4);
    scheduler.submit(SequenceId(1), prompt(950));
    run(&mut scheduler);
    for id in [2, 3] {
        scheduler.submit(SequenceId(id), prompt(20));
    }
    let step = run(&mut scheduler);
    assert_eq!(shape(&step), [(1, 100, 60, false), (2, 0, 20, true), (3, 0, 20, true)]);
}

#[test]
fn while_others_need_the_pool_nobody_is_let_in_beyond_its_floor() {
    let kv = KvSpec {
        block_tokens: 4,
        blocks: 16,
        chunk: 2,
        floor: 2,
        chunk_bytes: roundhouse_types::Bytes(1),
    };
    let mut scheduler = Scheduler::new(Limits { kv, step_tokens: 100, running: 8, reuse: false });
    scheduler.grow(6);
    scheduler.tighten(true);
    for id in [1, 2, 3] {
        scheduler.submit(SequenceId(id), prompt(7));
    }
    // Two blocks each, and the floor has four.
    assert_eq!(run(&mut scheduler).owners, [SequenceId(1), SequenceId(2)]);
    assert_eq!(scheduler.shrink(8).len(), 6, "all that it was granted comes back");
    scheduler.remove(SequenceId(1));
    scheduler.remove(SequenceId(2));
    assert_eq!(run(&mut scheduler).owners, [SequenceId(3)]);
    scheduler.tighten(false);
    scheduler.grow(6);
    scheduler.submit(SequenceId(4), prompt(11));
    assert_eq!(run(&mut scheduler).owners, [SequenceId(3), SequenceId(4)]);
}
