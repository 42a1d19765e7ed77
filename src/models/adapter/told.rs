//! What an adapter changes, in words.

use std::collections::BTreeSet;

use roundhouse_types::ModelKind;

use super::config::Task;
use super::names::Piece;
use super::plan::AdapterPlan;

impl AdapterPlan {
    /// The smallest and the largest rank of its modules; `None` where none has matrices of a rank.
    pub fn ranks(&self) -> Option<(usize, usize)> {
        let mut ranked = self.tensors.iter().filter(|(_, pieces)| {
            pieces.contains_key(&Piece::A) || pieces.contains_key(&Piece::EmbeddingA)
        });
        let first = self.config.rank(ranked.next()?.0);
        Some(ranked.fold((first, first), |(least, most), (name, _)| {
            let rank = self.config.rank(name);
            (least.min(rank), most.max(rank))
        }))
    }

    /// What its own head does, by its configuration; `None` where it says nothing of one.
    pub fn names(&self) -> Option<ModelKind> {
        self.config.task.map(Task::kind)
    }

    /// The kinds of modules that it changes, by the last part of their names.
    pub fn targets(&self) -> Vec<String> {
        let last = |name: &String| name.rsplit('.').next().unwrap_or(name).to_owned();
        let kinds: BTreeSet<String> = self.tensors.keys().map(last).collect();
        kinds.into_iter().collect()
    }
}
