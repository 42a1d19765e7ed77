//! Tenants' accounts: opened with what is in the ledger, and told what is resident.

use std::sync::Arc;
use std::time::{Duration, Instant};

use roundhouse_residency::Residency;
use roundhouse_serving::ServedModel;
use roundhouse_tenancy::{Accounts, Residence};
use roundhouse_types::{Bytes, EndpointName, ErrorKind, Failure, ModelId, TargetName};
use tracing::debug;

use crate::config::Config;
use crate::error::Error;

/// How often residents are looked at. What comes and leaves between two looks is not counted, what
/// stays is counted to the look.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Opens them.
pub(super) async fn open(config: &Config) -> Result<Arc<Accounts>, Error> {
    let rules = config.quota_rules();
    let Some(ledger) = config.usage.clone() else {
        return Ok(Arc::new(Accounts::new(rules)));
    };
    let opened = tokio::task::spawn_blocking(move || Accounts::open(rules, ledger)).await;
    let opened = opened.map_err(|error| Failure::new(ErrorKind::Internal, error.to_string()))?;
    Ok(Arc::new(opened.map_err(Failure::from)?))
}

/// Writes the ledger's last lines.
pub(super) async fn close(accounts: Arc<Accounts>) {
    if let Err(error) = tokio::task::spawn_blocking(move || accounts.close()).await {
        debug!(%error, "the usage ledger's end");
    }
}

/// Counts resident bytes until residency ends.
pub(super) async fn watch(accounts: Arc<Accounts>, residency: Residency<ServedModel>) {
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Ok(snapshot) = residency.gathered().await else {
            return;
        };
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut last, now);
        let count = |endpoint: &EndpointName, target: &TargetName, residence, share| {
            let model = ModelId { endpoint: endpoint.clone(), target: target.clone() };
            accounts.resident(&model, residence, byte_seconds(share, passed));
        };
        for resident in snapshot.devices.iter().flat_map(|device| &device.residents) {
            count(&resident.endpoint, &resident.target, Residence::Device, resident.share_bytes);
        }
        for copy in snapshot.host.iter().flat_map(|host| &host.copies) {
            count(&copy.endpoint, &copy.target, Residence::Host, copy.share_bytes);
        }
    }
}

fn byte_seconds(bytes: Bytes, time: Duration) -> u64 {
    let product = u128::from(bytes.0) * time.as_millis() / 1000;
    u64::try_from(product).unwrap_or(u64::MAX)
}
