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

/// Counts resident bytes until residency ends. Of ten thousand residents part by part, so that neither
/// the table's owner nor those who answer requests beside this wait for all of them.
pub(super) async fn watch(accounts: Arc<Accounts>, residency: Residency<ServedModel>) {
    let mut last = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = Instant::now();
        let passed = now - std::mem::replace(&mut last, now);
        let looked = look(&accounts, &residency, passed).await;
        if let Err(failure) = looked {
            return debug!(%failure, "residents are counted no more");
        }
    }
}

/// Counts what is resident now for so long.
async fn look(
    accounts: &Accounts,
    residency: &Residency<ServedModel>,
    passed: Duration,
) -> Result<(), Failure> {
    let count = |endpoint: &EndpointName, target: &TargetName, residence, share| {
        let model = ModelId { endpoint: endpoint.clone(), target: target.clone() };
        accounts.resident(&model, residence, byte_seconds(share, passed));
    };
    let mut after = None;
    loop {
        let part = residency.residents(after).await?;
        for (_, it) in &part.rows {
            count(&it.endpoint, &it.target, Residence::Device, it.share_bytes);
        }
        after = part.rest;
        if after.is_none() {
            break;
        }
    }
    let mut after = None;
    loop {
        let part = residency.copies(after).await?;
        for it in &part.rows {
            count(&it.endpoint, &it.target, Residence::Host, it.share_bytes);
        }
        after = part.rest;
        if after.is_none() {
            return Ok(());
        }
    }
}

fn byte_seconds(bytes: Bytes, time: Duration) -> u64 {
    let product = u128::from(bytes.0) * time.as_millis() / 1000;
    u64::try_from(product).unwrap_or(u64::MAX)
}
