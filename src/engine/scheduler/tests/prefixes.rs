use super::*;
use crate::account::{Account, Claim};

fn turn(tenant: &str, own_prefixes: bool) -> Turn {
    let tenant = Some(tenant.parse().unwrap());
    Turn::of(Account::idle(), &Claim { tenant, own_prefixes, ..Claim::default() })
}

/// What is computed of the same prompt for each of these, one after the other.
fn computed(turns: Vec<Turn>) -> Vec<usize> {
    let mut scheduler = scheduler(32, 4, 100, 8);
    let mut computed = Vec::new();
    for (id, turn) in turns.into_iter().enumerate() {
        let id = SequenceId(id as u64);
        scheduler.submit_with(id, prompt(10), None, turn);
        computed.push(run(&mut scheduler).plan.rows[0].tokens.len());
        scheduler.remove(id);
    }
    computed
}

#[test]
fn a_tenant_uses_what_was_computed_for_itself_and_not_what_was_for_others() {
    let turns = vec![turn("a", true), turn("b", true), turn("a", true), turn("b", true)];
    assert_eq!(computed(turns), [10, 10, 2, 2]);
}

#[test]
fn prefixes_are_everybodys_where_that_is_wanted() {
    let turns = vec![turn("a", false), turn("b", false), turn("c", true)];
    assert_eq!(computed(turns), [10, 2, 10]);
}
