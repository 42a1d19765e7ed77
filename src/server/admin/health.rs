//! Whether the process lives and whether it may be sent requests.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

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
    /// Whether the server has one model and that is not loaded yet.
    awaits_model: AtomicBool,
    /// Why it cannot be loaded.
    model_failure: OnceLock<String>,
}

impl Vitals {
    pub(crate) fn new(lanes: BTreeMap<DeviceId, Arc<Lane>>) -> Self {
        let (ready, awaits_model) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { lanes, ready, awaits_model, model_failure: OnceLock::new() }
    }

    /// Requests are welcome when the server's one model is loaded.
    pub(crate) fn await_model(&self) {
        self.awaits_model.store(true, Ordering::Release);
    }

    /// The server's one model is loaded.
    pub(crate) fn model_is_there(&self) {
        self.awaits_model.store(false, Ordering::Release);
    }

    /// The server's one model cannot be loaded; said in place of waiting for it.
    pub(crate) fn model_failed(&self, why: String) {
        // The first reason is the one that counts.
        let _ = self.model_failure.set(why);
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
        if self.awaits_model.load(Ordering::Acquire) {
            let failure = self.model_failure.get().cloned();
            return Some(failure.unwrap_or_else(|| "the model is being loaded".into()));
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
