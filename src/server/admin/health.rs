//! Whether the process lives and whether it may be sent requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use roundhouse_engine::{Lane, LaneHealth};
use roundhouse_types::DeviceId;
use serde_json::{Value, json};

/// What health is judged by. Every answer reads atomics and waits for nothing.
pub(crate) struct Vitals {
    lanes: BTreeMap<DeviceId, Arc<Lane>>,
    /// From the moment every port is bound until shutdown begins.
    ready: AtomicBool,
}

impl Vitals {
    pub(crate) fn new(lanes: BTreeMap<DeviceId, Arc<Lane>>) -> Self {
        Self { lanes, ready: AtomicBool::new(false) }
    }

    /// Requests are welcome, or no longer.
    pub(crate) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Why the process should be replaced, if so: a lane that failed or is wedged.
    pub(crate) fn fault(&self) -> Option<String> {
        self.lanes.iter().find_map(|(device, lane)| match lane.health() {
            LaneHealth::Alive => None,
            sick => Some(format!("lane {device}: {sick:?}")),
        })
    }

    /// A lane's failure, after which the process ends. A wedged one may yet come back.
    pub(crate) fn device_failure(&self) -> Option<String> {
        self.lanes.iter().find_map(|(device, lane)| match lane.health() {
            LaneHealth::Failed { .. } => Some(format!("{device} failed")),
            LaneHealth::Alive | LaneHealth::Wedged { .. } => None,
        })
    }

    /// Why no requests should be sent, if so.
    pub(crate) fn unready(&self) -> Option<String> {
        if !self.ready.load(Ordering::Acquire) {
            return Some("starting or shutting down".into());
        }
        self.fault()
    }
}

fn verdict(fault: Option<String>) -> (StatusCode, String) {
    match fault {
        None => (StatusCode::OK, "ok".into()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

pub(super) async fn live(State(vitals): State<Arc<Vitals>>) -> (StatusCode, String) {
    verdict(vitals.fault())
}

pub(super) async fn ready(State(vitals): State<Arc<Vitals>>) -> (StatusCode, String) {
    verdict(vitals.unready())
}

pub(super) async fn both(State(vitals): State<Arc<Vitals>>) -> (StatusCode, Json<Value>) {
    let (fault, unready) = (vitals.fault(), vitals.unready());
    let status = verdict(unready.clone()).0;
    let shown = json!({
        "live": fault.is_none(), "ready": unready.is_none(), "reason": unready,
    });
    (status, Json(shown))
}
