use std::num::NonZeroU32;

use super::*;
use crate::account::{Accounts, Claim, DECODED};

/// A scheduler, and a device whose tokens take a microsecond each.
struct Bench {
    scheduler: Scheduler,
    accounts: Accounts,
    /// The tenant of each sequence, its prompt's and answer's length, and what is left of the latter.
    sequences: Vec<(&'static str, usize, usize)>,
    /// By the order in which they were let in.
    admitted: Vec<&'static str>,
    /// How often one gave way.
    preempted: usize,
}

impl Bench {
    fn new(running: usize) -> Self {
        let scheduler = scheduler(1_000, 4, 64, running);
        Self {
            scheduler,
            accounts: Accounts::default(),
            sequences: vec![],
            admitted: vec![],
            preempted: 0,
        }
    }

    fn submit(
        &mut self,
        tenant: &'static str,
        (share, priority): (u32, u8),
        (length, answer): (usize, usize),
    ) {
        let share = NonZeroU32::new(share).unwrap();
        let claim =
            Claim { tenant: Some(tenant.parse().unwrap()), share, priority, ..Claim::default() };
        let turn = Turn::new(self.accounts.open(&claim), priority);
        let id = self.sequences.len() as u64;
        // No two prompts begin alike.
        let prompt = std::iter::once(1_000 + u32::try_from(id).unwrap()).chain(prompt(length - 1));
        self.scheduler.submit_with(SequenceId(id), prompt.collect(), None, turn);
        self.sequences.push((tenant, length, answer));
    }

    /// One step; says what each tenant got, in prompt tokens. Sequences that are done leave.
    fn step(&mut self) -> Vec<(&'static str, u64)> {
        let step = self.scheduler.plan(PromptLimit::NONE);
        self.preempted += step.preempted;
        self.admitted.extend(step.admitted.iter().map(|id| self.sequences[id.0 as usize].0));
        let counts: Vec<u64> = step
            .plan
            .rows
            .iter()
            .map(|row| {
                if row.tokens.len() == 1 && row.output { DECODED } else { row.tokens.len() as u64 }
            })
            .collect();
        let whole: u64 = counts.iter().sum();
        let elapsed = Duration::from_micros(whole);
        self.scheduler.charge(&step.owners, counts.iter().copied(), elapsed);
        for (id, row) in step.owners.iter().zip(&step.plan.rows) {
            self.scheduler.computed(*id, row.tokens.len());
            if !row.output {
                continue;
            }
            let left = &mut self.sequences[id.0 as usize].2;
            *left -= 1;
            match *left {
                0 => drop(self.scheduler.remove(*id)),
                _ => self.scheduler.append(*id, 7),
            }
        }
        step.owners.iter().map(|id| self.sequences[id.0 as usize].0).zip(counts).collect()
    }

    /// Sequences of a tenant that are not done.
    fn open(&self, tenant: &str) -> usize {
        self.sequences.iter().filter(|(of, _, left)| *of == tenant && *left > 0).count()
    }
}

const ORDINARY: (u32, u8) = (1000, 0);

#[test]
fn a_flood_waits_behind_itself() {
    let mut bench = Bench::new(4);
    for _ in 0..40 {
        bench.submit("flood", ORDINARY, (12, 6));
    }
    for _ in 0..8 {
        bench.step();
    }
    bench.submit("calm", ORDINARY, (12, 6));
    let before = bench.admitted.len();
    while bench.open("calm") > 0 {
        bench.step();
    }
    let place = bench.admitted[before..].iter().position(|tenant| *tenant == "calm").unwrap();
    assert!(place < 4, "at most those go before who were let in in the same step: {place}");
}

/// A tenant's name, its share and priority, and what its prompts and answers are long.
type Asking = (&'static str, (u32, u8), (usize, usize));

/// What tenants that always have work get, as fractions of the whole.
fn fractions(tenants: &[Asking]) -> Vec<f64> {
    let mut bench = Bench::new(6);
    let mut served = vec![0; tenants.len()];
    for _ in 0..4_000 {
        for (tenant, claim, shape) in tenants {
            while bench.open(tenant) < 20 {
                bench.submit(tenant, *claim, *shape);
            }
        }
        for (tenant, count) in bench.step() {
            served[tenants.iter().position(|it| it.0 == tenant).unwrap()] += count;
        }
    }
    let whole: u64 = served.iter().sum();
    served.iter().map(|part| *part as f64 / whole as f64).collect()
}

#[test]
fn tenants_are_served_by_their_shares_whatever_their_requests_cost() {
    let near = |got: &[f64], wanted: &[f64]| {
        got.iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 0.05 * wanted)
    };
    let got = fractions(&[("long", ORDINARY, (40, 30)), ("short", ORDINARY, (4, 3))]);
    assert!(near(&got, &[0.5, 0.5]), "{got:?}");
    let got = fractions(&[("three", (3000, 0), (10, 10)), ("one", (1000, 0), (20, 5))]);
    assert!(near(&got, &[0.75, 0.25]), "{got:?}");
}

#[test]
fn a_higher_priority_goes_first_and_a_lower_one_is_not_starved() {
    let mut bench = Bench::new(1);
    bench.submit("low", (1000, 1), (4, 2));
    for _ in 0..200 {
        while bench.open("high") < 5 {
            bench.submit("high", (1000, 4), (4, 2));
        }
        bench.step();
    }
    let place = bench.admitted.iter().position(|tenant| *tenant == "low").unwrap();
    // Three classes up, then by turns.
    assert_eq!(place, 48, "{:?}", bench.admitted);
}

#[test]
fn of_two_that_run_the_lower_priority_gives_way() {
    let mut scheduler = forgetful(4, 2);
    let turn = |priority| Turn::new(Account::idle(), priority);
    scheduler.submit_with(SequenceId(1), prompt(3), None, turn(0));
    scheduler.submit_with(SequenceId(2), prompt(3), None, turn(1));
    for _ in 0..2 {
        run(&mut scheduler);
    }
    let step = run(&mut scheduler);
    assert_eq!((shape(&step), step.preempted), (vec![(2, 4, 1, true)], 1));
}

/// What a step of the bench's device would take if reading the weights took as long as `fixed` tokens.
fn learn(bench: &mut Bench, fixed: u64) {
    for tokens in [1, 8, 2, 16, 4] {
        bench.scheduler.measured(tokens, Duration::from_micros(fixed + tokens as u64));
    }
}

fn of(step: &[(&'static str, u64)], tenant: &str) -> usize {
    step.iter().filter(|(of, _)| *of == tenant).count()
}

#[test]
fn beside_a_calm_tenant_a_flood_s_sequences_take_turns() {
    let mut bench = Bench::new(12);
    learn(&mut bench, 2);
    for _ in 0..10 {
        bench.submit("flood", ORDINARY, (4, 41));
    }
    while bench.scheduler.running() < 10 {
        bench.step();
    }
    assert_eq!(of(&bench.step(), "flood"), 10, "alone it has the whole step");
    bench.submit("calm", ORDINARY, (4, 12));
    bench.step();
    let left = |bench: &Bench| bench.sequences[..10].iter().map(|it| it.2).collect::<Vec<_>>();
    let before = left(&bench);
    for _ in 0..10 {
        let step = bench.step();
        // One token of its own and what every step takes: twice that is six, without the latter four.
        assert_eq!((of(&step, "calm"), of(&step, "flood")), (1, 3));
    }
    let done: Vec<_> =
        before.iter().zip(left(&bench)).map(|(before, left)| before - left).collect();
    assert_eq!(done, [3; 10], "each as often as the others");
    while bench.open("calm") > 0 {
        bench.step();
    }
    assert_eq!(of(&bench.step(), "flood"), 10);
}

#[test]
fn a_flood_s_prompt_is_read_in_smaller_pieces_beside_a_calm_tenant() {
    let mut bench = Bench::new(12);
    learn(&mut bench, 6);
    bench.submit("calm", ORDINARY, (4, 20));
    bench.step();
    bench.submit("flood", ORDINARY, (400, 2));
    let step = bench.step();
    assert_eq!(step, [("calm", DECODED), ("flood", 7)]);
    while bench.open("calm") > 0 {
        bench.step();
    }
    assert_eq!(bench.step(), [("flood", 64)]);
}

#[test]
fn whoever_has_less_than_its_part_of_the_places_gets_one_at_once() {
    let mut bench = Bench::new(4);
    for _ in 0..12 {
        bench.submit("flood", ORDINARY, (4, 50));
    }
    bench.step();
    assert_eq!(bench.scheduler.running(), 4);
    for _ in 0..3 {
        bench.submit("calm", ORDINARY, (4, 5));
    }
    let step = bench.step();
    assert_eq!((of(&step, "calm"), of(&step, "flood")), (1, 3));
    for _ in 0..2 {
        let step = bench.step();
        assert_eq!((of(&step, "calm"), of(&step, "flood")), (2, 2), "two of four are its part");
    }
    while bench.open("calm") > 0 {
        bench.step();
    }
    while bench.open("flood") > 0 {
        bench.step();
    }
    assert_eq!(bench.scheduler.blocks(), 0);
}

#[test]
fn a_sequence_that_gave_way_often_keeps_its_place() {
    let mut bench = Bench::new(2);
    for _ in 0..2 {
        bench.submit("flood", ORDINARY, (4, 500));
    }
    bench.step();
    // Either of the two, four times.
    for round in 0..8 {
        bench.submit("calm", ORDINARY, (4, 1));
        assert_eq!(of(&bench.step(), "calm"), 1, "{round}");
        bench.step();
    }
    bench.submit("calm", ORDINARY, (4, 1));
    assert_eq!(of(&bench.step(), "calm"), 0);
}

#[test]
fn blocks_are_made_free_for_whom_they_are_due_and_growth_takes_from_the_flood() {
    let mut bench = Bench::new(8);
    bench.scheduler = scheduler(12, 4, 64, 8);
    for _ in 0..4 {
        // Three blocks each: all there are.
        bench.submit("flood", ORDINARY, (9, 30));
    }
    bench.step();
    assert_eq!(bench.scheduler.blocks(), 12);
    bench.submit("calm", ORDINARY, (7, 12));
    bench.step();
    let step = bench.step();
    assert_eq!(of(&step, "calm"), 1, "{step:?}");
    // It is the youngest of all and grows to five blocks, of six that are its part.
    while bench.open("calm") > 0 {
        assert_eq!(of(&bench.step(), "calm"), 1);
    }
}

#[test]
fn a_long_sequence_ends_however_many_short_ones_of_another_come_and_go() {
    let mut bench = Bench::new(32);
    bench.scheduler = scheduler(100, 16, 256, 32);
    // More than its part of the pool, by itself.
    bench.submit("long", ORDINARY, (960, 20));
    let mut steps = 0;
    while bench.open("long") > 0 {
        while bench.open("short") < 20 {
            bench.submit("short", ORDINARY, (60, 64));
        }
        bench.step();
        steps += 1;
        assert!(steps < 2_000, "it gave way {} times", bench.preempted);
    }
    assert!(bench.preempted > 0, "it was in the way at first");
}

#[test]
fn nobody_gives_way_for_one_whose_turn_it_is_not() {
    let mut bench = Bench::new(8);
    for _ in 0..7 {
        bench.submit("cheap", ORDINARY, (4, 200));
    }
    bench.step();
    bench.submit("dear", ORDINARY, (3_000, 2));
    bench.step();
    bench.submit("dear", ORDINARY, (4, 2));
    for _ in 0..30 {
        bench.step();
    }
    assert_eq!(bench.preempted, 0, "cheap had less, and would have been let in again");
    while bench.open("dear") > 0 {
        bench.step();
    }
}

#[test]
fn a_flood_s_prompts_are_let_in_as_far_as_they_can_be_read_and_beside_its_decodes() {
    let mut bench = Bench::new(40);
    learn(&mut bench, 2);
    bench.submit("calm", ORDINARY, (4, 60));
    for _ in 0..4 {
        bench.submit("flood", ORDINARY, (4, 80));
    }
    for _ in 0..3 {
        bench.step();
    }
    for _ in 0..30 {
        bench.submit("flood", ORDINARY, (90, 2));
    }
    let before = bench.open("flood");
    for _ in 0..50 {
        bench.step();
        assert!(bench.scheduler.running() <= 5 + READERS, "{}", bench.scheduler.running());
    }
    assert!(bench.open("calm") > 0);
    let read = bench.admitted.iter().filter(|tenant| **tenant == "flood").count() - 4;
    assert!(read > 0 && before - bench.open("flood") < 30);
    // Tokens for its prompts are kept from its decodes: the oldest gets on.
    let computed = bench.scheduler.running.iter().map(|s| s.computed).max().unwrap();
    assert!(computed > 40, "{computed}");
}
