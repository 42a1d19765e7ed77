//! Containers in the list of what requests can name.

use serde::{Deserialize, Serialize};

/// How a container stands, beside its state.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ContainerRow {
    address: Option<String>,
    pid: Option<u32>,
    restarts: u64,
    in_flight: u64,
    max_in_flight: u64,
    failed_at: Option<String>,
}

impl ContainerRow {
    /// Where it answers.
    pub(super) fn place(&self) -> String {
        self.address.clone().unwrap_or_else(|| "-".into())
    }

    /// What there is to say of it, with why it failed last.
    pub(super) fn note(&self, failure: &str) -> String {
        let mut notes = vec![format!("{} of {} under way", self.in_flight, self.max_in_flight)];
        notes.extend(self.pid.map(|pid| format!("process {pid}, {} restarts", self.restarts)));
        if !failure.is_empty() {
            let at = self.failed_at.as_deref().unwrap_or("?");
            notes.push(format!("failed at {at}: {failure}"));
        }
        notes.join("; ")
    }
}
