//! What the store holds of a target beside the version that answers for it: a newer upload that is
//! not whole, or not known to be.

use std::sync::Arc;
use std::time::SystemTime;

use roundhouse_types::{TargetName, Version};

use super::{Catalog, Inner, Lack};
use crate::Artefact;

/// An upload that is passed over for the version before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// What its files would be the version of.
    pub version: Version,
    /// What it lacks.
    pub why: String,
    /// When it was first passed over.
    pub since: SystemTime,
    /// Whether nothing was written for so long that it is taken for damaged, not for under way.
    pub stale: bool,
    /// Whether nothing is seen to be missing: its files are too young to be believed.
    pub is_whole: bool,
}

impl Catalog {
    /// The newer upload that a target's version answers in place of, as the store was last looked at.
    pub async fn passed_over(&self, target: &TargetName) -> Option<Arc<PassedOver>> {
        self.inner.passed.get(target).await
    }
}

impl Inner {
    /// A known version answers, for what was found lacks something.
    pub(super) async fn pass_over(&self, target: &TargetName, found: &Artefact, lack: &Lack) {
        let version = found.id.version.clone();
        let before = self.passed.get(target).await.filter(|before| before.version == version);
        let since = before.map_or_else(SystemTime::now, |before| before.since);
        let Lack { why, stale, is_whole, .. } = lack;
        let passed =
            PassedOver { version, why: why.clone(), since, stale: *stale, is_whole: *is_whole };
        self.passed.insert(target.clone(), Arc::new(passed)).await;
    }
}
