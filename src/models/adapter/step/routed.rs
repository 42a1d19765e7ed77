//! Rows by adapter where each expert has some of a step's tokens.

use super::{Group, Groups, Site};

/// Whose tokens are whose, in a layer whose experts some adapter of the step changes.
pub(crate) struct Owners<'a> {
    groups: &'a Groups,
    /// Of each token, the place of its adapter among the groups'; [`NOBODY`]: the base's alone.
    of: Vec<u32>,
}

const NOBODY: u32 = u32::MAX;

impl Groups {
    /// Whose a step's tokens are.
    pub(crate) fn owners(&self, tokens: usize) -> Owners<'_> {
        let mut of = match self.adapters.is_empty() {
            true => Vec::new(),
            false => vec![NOBODY; tokens],
        };
        for (place, group) in (0..).zip(&self.adapters) {
            self.rows[group.rows.clone()].iter().for_each(|row| of[*row as usize] = place);
        }
        Owners { groups: self, of }
    }
}

impl Owners<'_> {
    /// The rows of some tokens, as they were gathered, by those adapters that change something at
    /// one of `sites`.
    pub(crate) fn gathered(&self, sites: [Site; 2], tokens: impl Iterator<Item = u32>) -> Groups {
        let changes = |group: &Group| {
            let index = &group.adapter.index;
            sites.iter().any(|site| !index.at(*site).is_empty())
        };
        let changing: Vec<bool> = self.groups.adapters.iter().map(changes).collect();
        let mut gathered = Groups::default();
        if !changing.contains(&true) {
            return gathered;
        }
        let mut rows: Vec<(u32, u32)> = Vec::new();
        for (row, token) in (0..).zip(tokens) {
            let owner = self.of[token as usize];
            rows.extend((owner != NOBODY && changing[owner as usize]).then_some((owner, row)));
        }
        rows.sort_unstable();
        for of_one in rows.chunk_by(|(one, _), (other, _)| one == other) {
            let adapter = &self.groups.adapters[of_one[0].0 as usize].adapter;
            gathered.add(adapter, &of_one.iter().map(|(_, row)| *row).collect::<Vec<u32>>());
        }
        gathered.divide(rayon::current_num_threads());
        gathered
    }
}
