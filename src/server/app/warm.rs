//! How much of the host's device idle interpreters of handlers may take: what nobody has a claim to.
//!
//! They are in nobody's account, so loads claim room as if they were not there, and what a claim
//! takes they lose within a moment: they make no model leave.

use std::sync::Arc;
use std::time::Duration;

use roundhouse_residency::{Residency, Snapshot};
use roundhouse_serving::ServedModel;
use roundhouse_types::Bytes;
use roundhouse_workers::Workers;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;

/// What grows without a decision is seen after this.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Decisions come in rows.
const AFTER_DECISION: Duration = Duration::from_millis(20);

/// Tells until residency has ended. Runs as a task of its own.
pub(super) async fn give_room(residency: Residency<ServedModel>, workers: Arc<Workers>) {
    let mut decisions = residency.events();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            decided = decisions.recv() => match decided {
                // Those that came meanwhile are in the same snapshot.
                Ok(_) | Err(RecvError::Lagged(_)) => {
                    tokio::time::sleep(AFTER_DECISION).await;
                    decisions = decisions.resubscribe();
                }
                Err(RecvError::Closed) => return,
            },
        }
        let Ok(snapshot) = residency.outline().await else { return };
        workers.set_warm_room(free(&snapshot));
    }
}

/// What of the host's own device is neither charged nor promised.
fn free(snapshot: &Snapshot) -> Bytes {
    let host = snapshot.devices.iter().find(|device| device.id.is_host());
    host.map_or(Bytes::ZERO, |device| {
        device.budget_bytes.saturating_sub(device.charged_bytes + device.reserved_bytes)
    })
}
