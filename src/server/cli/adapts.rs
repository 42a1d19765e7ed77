//! What an adapter changes, as `plan` and `survey` say it.

use std::fmt;

use roundhouse_models::AdapterPlan;
use roundhouse_types::ModelKind;
use serde::Serialize;

/// What an adapter builds on and changes.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Adapts {
    /// Its base, by the name that its author had for it.
    base: Option<String>,
    /// The smallest and the largest rank of its modules; absent where it brings modules whole only.
    ranks: Option<(usize, usize)>,
    /// The kinds of modules that it changes.
    targets: Vec<String>,
    /// What it does with a head of its own, by its `task_type`; absent where that names no labels.
    head: Option<ModelKind>,
}

impl Adapts {
    pub(super) fn of(plan: &AdapterPlan) -> Self {
        Self {
            base: plan.base_name().map(str::to_owned),
            ranks: plan.ranks(),
            targets: plan.targets(),
            head: plan.names(),
        }
    }
}

impl fmt::Display for Adapts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.base.as_deref().unwrap_or("an unnamed base"))?;
        match self.ranks {
            Some((least, most)) if least == most => write!(f, ", rank {most}")?,
            Some((least, most)) => write!(f, ", ranks {least} to {most}")?,
            None => {}
        }
        write!(f, ", {}", self.targets.join(" "))?;
        self.head.map_or(Ok(()), |head| write!(f, ", for {}", head.as_str()))
    }
}
