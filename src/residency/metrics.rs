//! Every metric of this crate. Their names, labels and meanings: [`describe_metrics`].

use metrics::{counter, gauge, histogram};
use roundhouse_types::{DeviceId, ErrorKind, ModelId};

use crate::decision::{Action, Decided};
use crate::manager::{Finished, Outcome};
use crate::regret::Regret;
use crate::table::{Grant, Levels, Table};

/// Reports to the process's recorder. Owned by the residency owner.
pub(crate) struct Meters {
    /// What the gauges show, so that they are written only when they change.
    shown: Option<Levels>,
}

impl Meters {
    pub(crate) fn new() -> Self {
        Self { shown: None }
    }

    pub(crate) fn granted(&self, grant: &Grant) {
        let endpoint = endpoint(&grant.key.artefact.model);
        let tier = grant.tier.as_str();
        counter!("roundhouse_residency_grants_total", "endpoint" => endpoint.clone(), "tier" => tier)
            .increment(1);
        histogram!("roundhouse_residency_wait_seconds", "endpoint" => endpoint, "tier" => tier)
            .record(grant.load_wait + grant.queue_wait);
    }

    pub(crate) fn decided(&self, decided: &Decided) {
        let endpoint = endpoint(&decided.model);
        match &decided.action {
            Action::Refused { .. } => {
                let kind = decided.kind.map_or("none", ErrorKind::as_str);
                counter!("roundhouse_residency_refusals_total", "endpoint" => endpoint, "kind" => kind)
                    .increment(1);
            }
            Action::Failed { stage, .. } => {
                counter!("roundhouse_residency_failures_total", "endpoint" => endpoint, "stage" => stage.as_str())
                    .increment(1);
            }
            Action::Ready { .. } => {
                counter!("roundhouse_residency_loads_total", "endpoint" => endpoint).increment(1);
            }
            Action::Demoted { .. } => {
                counter!("roundhouse_residency_demotions_total", "endpoint" => endpoint)
                    .increment(1);
            }
            Action::Discarded { why, .. } => {
                counter!("roundhouse_residency_discards_total", "endpoint" => endpoint, "reason" => why.as_str())
                    .increment(1);
            }
            Action::Replicating { .. } => {
                counter!("roundhouse_residency_replications_total", "endpoint" => endpoint)
                    .increment(1);
            }
            Action::Revived => {
                counter!("roundhouse_residency_revivals_total", "endpoint" => endpoint)
                    .increment(1);
            }
            Action::Draining { why, idle_ms, .. } => {
                let reason = why.as_str();
                counter!("roundhouse_residency_evictions_total", "endpoint" => endpoint.clone(), "reason" => reason)
                    .increment(1);
                #[expect(clippy::cast_precision_loss, reason = "exact below 2^53 milliseconds")]
                let idle = *idle_ms as f64 / 1e3;
                histogram!("roundhouse_residency_eviction_idle_seconds", "endpoint" => endpoint, "reason" => reason)
                    .record(idle);
            }
            _ => {}
        }
    }

    pub(crate) fn finished<M>(&self, finished: &Finished<M>) {
        let took = finished.took;
        match &finished.outcome {
            Outcome::Resolved { model, .. } => {
                histogram!("roundhouse_residency_resolve_seconds", "endpoint" => endpoint(model))
                    .record(took);
            }
            Outcome::Fetched { artefact, .. } => {
                histogram!("roundhouse_residency_fetch_seconds", "endpoint" => endpoint(&artefact.model))
                    .record(took);
            }
            Outcome::Loaded { key, .. } => {
                histogram!("roundhouse_residency_load_seconds", "endpoint" => endpoint(&key.artefact.model), "device" => device(key.device))
                    .record(took);
            }
            Outcome::Discarded { artefact } => {
                histogram!("roundhouse_residency_discard_seconds", "endpoint" => endpoint(&artefact.model))
                    .record(took);
            }
            Outcome::Unloaded { key, .. } => {
                histogram!("roundhouse_residency_unload_seconds", "endpoint" => endpoint(&key.artefact.model), "device" => device(key.device))
                    .record(took);
            }
        }
    }

    /// Shows the table's levels where they changed.
    pub(crate) fn levels(&mut self, table: &Table) {
        let levels = table.levels();
        if self.shown.as_ref() == Some(&levels) {
            return;
        }
        for level in &levels.devices {
            let id = device(level.id);
            gauge!("roundhouse_residency_budget_bytes", "device" => id.clone())
                .set(float(level.budget.0));
            gauge!("roundhouse_residency_charged_bytes", "device" => id.clone())
                .set(float(level.charged.0));
            gauge!("roundhouse_residency_reserved_bytes", "device" => id.clone())
                .set(float(level.reserved.0));
            gauge!("roundhouse_residency_residents", "device" => id)
                .set(float(level.residents as u64));
        }
        let host = &levels.host;
        gauge!("roundhouse_residency_host_budget_bytes").set(float(host.budget.0));
        gauge!("roundhouse_residency_host_charged_bytes").set(float(host.charged.0));
        gauge!("roundhouse_residency_host_reserved_bytes").set(float(host.reserved.0));
        gauge!("roundhouse_residency_copies").set(float(host.copies as u64));
        counter!("roundhouse_residency_kv_granted_bytes_total").absolute(levels.pools.granted.0);
        counter!("roundhouse_residency_kv_returned_bytes_total").absolute(levels.pools.returned.0);
        gauge!("roundhouse_residency_waiters").set(float(levels.waiters as u64));
        gauge!("roundhouse_residency_updates_waiting").set(float(levels.offers as u64));
        gauge!("roundhouse_residency_updates_failed").set(float(levels.unfit as u64));
        self.shown = Some(levels);
    }
}

/// Shows the regret that was calculated last.
pub(crate) fn regret(regret: &Regret) {
    let show = |bound: &'static str, ratio: Option<f64>, loads: u64| {
        gauge!("roundhouse_residency_regret_ratio", "bound" => bound)
            .set(ratio.unwrap_or(f64::NAN));
        gauge!("roundhouse_residency_regret_optimal_loads", "bound" => bound).set(float(loads));
    };
    show("lower", regret.ratio.lower, regret.optimal_loads.lower);
    show("upper", regret.ratio.upper, regret.optimal_loads.upper);
    gauge!("roundhouse_residency_regret_loads").set(float(regret.loads));
    gauge!("roundhouse_residency_regret_unasked_loads").set(float(regret.unasked_loads));
    gauge!("roundhouse_residency_regret_requests").set(float(regret.requests));
}

fn endpoint(model: &ModelId) -> String {
    model.endpoint.to_string()
}

fn device(device: DeviceId) -> String {
    device.to_string()
}

#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}
