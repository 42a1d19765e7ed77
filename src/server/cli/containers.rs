//! Containers in the list of what requests can name.

use serde::{Deserialize, Serialize};

use crate::error::count;

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
        notes.extend(
            self.pid.map(|pid| format!("process {pid}, {}", count(self.restarts, "restart"))),
        );
        if !failure.is_empty() {
            let at = self.failed_at.as_deref().unwrap_or("?");
            notes.push(format!("failed at {at}: {failure}"));
        }
        notes.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_told_by_what_it_does_and_why_it_failed() {
        let row = |more: serde_json::Value| -> ContainerRow {
            let mut row = json!({"endpoint": "pipe", "name": "first", "restarts": 2, "in_flight": 1,
                "max_in_flight": 8});
            row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value(row).unwrap()
        };
        let own = row(json!({"pid": 7, "address": "http://127.0.0.1:9",
            "failed_at": "1970-01-01T00:00:01.000Z"}));
        assert_eq!(own.place(), "http://127.0.0.1:9");
        assert_eq!(
            own.note("no connection"),
            "1 of 8 under way; process 7, 2 restarts; failed at 1970-01-01T00:00:01.000Z: no connection"
        );
        let other = row(json!({"pid": null, "address": null}));
        assert_eq!(
            (other.place(), other.note("")),
            ("-".to_owned(), "1 of 8 under way".to_owned())
        );
    }
}
