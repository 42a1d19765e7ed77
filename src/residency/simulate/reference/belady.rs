//! The offline optimum where all sizes are equal.

use std::collections::BTreeSet;

use super::{Sequence, Tally};

/// Whether a model must take room to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It takes a slot, and another leaves for it, as in a server.
    MustTakeRoom,
    /// It may be answered from one transient slot beside the budget, and nobody leaves.
    MayPassThrough,
}

/// The fewest loads possible in that many slots: the model whose next use is farthest leaves.
///
/// Sizes are not looked at. In zero slots nothing is answered.
pub fn belady(sequence: &Sequence, slots: usize, admission: Admission) -> Tally {
    let mut tally = Tally::default();
    if slots == 0 {
        tally.refused = sequence.asks.len() as u64;
        return tally;
    }
    let next_uses = sequence.next_uses();
    let first_uses = sequence.first_uses();
    // What is there, by its next use; `usize::MAX` where there is none.
    let mut there: BTreeSet<(usize, u32)> = BTreeSet::new();
    let mut next_of: Vec<Option<usize>> = vec![None; sequence.models()];
    for resident in &sequence.residents {
        let next = first_uses[resident.model as usize].unwrap_or(usize::MAX);
        next_of[resident.model as usize] = Some(next);
        there.insert((next, resident.model));
    }
    while there.len() > slots {
        pop_farthest(&mut there, &mut next_of);
    }
    for (ask, next) in sequence.asks.iter().zip(next_uses) {
        tally.requests += 1;
        let next = next.unwrap_or(usize::MAX);
        if let Some(known) = next_of[ask.model as usize] {
            there.remove(&(known, ask.model));
        } else {
            tally.load(ask.bytes);
            let farthest = there.last().map_or(0, |(next, _)| *next);
            let is_full = there.len() >= slots;
            if is_full && admission == Admission::MayPassThrough && farthest <= next {
                continue;
            }
            if is_full {
                pop_farthest(&mut there, &mut next_of);
            }
        }
        there.insert((next, ask.model));
        next_of[ask.model as usize] = Some(next);
    }
    tally
}

fn pop_farthest(there: &mut BTreeSet<(usize, u32)>, next_of: &mut [Option<usize>]) {
    if let Some((_, model)) = there.pop_last() {
        next_of[model as usize] = None;
    }
}
