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
}

impl Bench {
    fn new(running: usize) -> Self {
        let scheduler = scheduler(1_000, 4, 64, running);
        Self { scheduler, accounts: Accounts::default(), sequences: vec![], admitted: vec![] }
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
