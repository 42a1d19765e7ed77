//! Adapters that run and wait, in the words in which vLLM tells routers of them: a router that keeps
//! requests of an adapter together reads them off this port.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use roundhouse_residency::Snapshot;
use roundhouse_types::{Bytes, EndpointName, TargetName};

use super::Admin;

/// Names of one kind at most: the line is one series whatever there is.
const NAMES_MAX: usize = 256;
/// What an adapter is taken to need where none is loaded: rank 16 on a small model.
const TYPICAL: Bytes = Bytes::mib(8);

/// All metrics, with the adapters' line.
pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> String {
    let mut text = admin.metrics.render();
    if let Ok(snapshot) = admin.residency.gathered().await {
        let named = admin.catalogs.get().len() > 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        text.push_str(&line(&snapshot, named, now.as_secs_f64()));
    }
    text
}

/// The line. Its value is the time: of several lines readers take the latest. `max_lora` is how
/// many adapters like those that are loaded fit, as there are bytes and no slots.
fn line(snapshot: &Snapshot, named: bool, now: f64) -> String {
    let name = |endpoint: &EndpointName, target: &TargetName| match named {
        true => format!("{endpoint}:{target}"),
        false => target.to_string(),
    };
    let residents = || snapshot.devices.iter().flat_map(|device| &device.residents);
    let adapters = || residents().filter(|resident| resident.base.is_some());
    let running = adapters().filter(|it| it.leases > 0).map(|it| name(&it.endpoint, &it.target));
    let waiting = snapshot.loads.iter().filter(|it| it.base.is_some() && it.waiters > 0);
    let waiting = waiting.map(|it| name(&it.endpoint, &it.target));
    let (count, taken) = adapters().fold((0, 0), |(count, taken): (u64, u64), adapter| {
        (count + 1, taken.saturating_add(adapter.bytes.total().0))
    });
    let each = taken.checked_div(count).unwrap_or(TYPICAL.0).max(1);
    let free = snapshot.devices.iter().map(|device| {
        device.budget_bytes.saturating_sub(device.charged_bytes + device.reserved_bytes).0
    });
    let fit = count + free.sum::<u64>() / each;
    let mut text = String::from("# TYPE vllm:lora_requests_info gauge\n");
    let (running, waiting) = (list(running), list(waiting));
    // Writing to a text cannot fail.
    let _ = writeln!(
        text,
        "vllm:lora_requests_info{{max_lora=\"{fit}\",running_lora_adapters=\"{running}\",\
         waiting_lora_adapters=\"{waiting}\"}} {now}"
    );
    text
}

/// Names between commas, each once, in order. One with a comma of its own would be read as two.
fn list(names: impl Iterator<Item = String>) -> String {
    let names: BTreeSet<String> = names.filter(|name| !name.contains(',')).collect();
    let quoted = names.iter().take(NAMES_MAX).map(|name| name.replace('"', "\\\""));
    quoted.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_one_series_and_one_list() {
        let names = ["b", "a", "b", "c,d", "e\"f"].map(str::to_owned);
        assert_eq!(list(names.into_iter()), "a,b,e\\\"f");
        let many = (0..NAMES_MAX * 4).map(|at| at.to_string());
        assert_eq!(list(many).split(',').count(), NAMES_MAX);
        let (devices, loads, failed, unfit) = (vec![], vec![], vec![], vec![]);
        let nothing = Snapshot { devices, host: None, waiters: 0, loads, failed, unfit };
        let told = line(&nothing, false, 7.5);
        let wanted = "vllm:lora_requests_info{max_lora=\"0\",running_lora_adapters=\"\",\
                      waiting_lora_adapters=\"\"} 7.5\n";
        assert!(told.ends_with(wanted), "{told}");
    }
}
