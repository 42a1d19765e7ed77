//! How busy cards are, and their memory, held against the ledger as the process' own is: what the driver says is
//! taken, by whomever, is compared with what was taken before the first model and what models are
//! charged with there.
//!
//! Freed memory stays in the pool of asynchronous allocations until the card is synchronised and
//! the pool is trimmed, which is done before each look: until then it counts as taken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{Unit, describe_gauge, gauge};
use roundhouse_models::Card;
use roundhouse_residency::{Holdings, Residency};
use roundhouse_serving::ServedModel;
use roundhouse_types::{ArtefactId, Bytes, DeviceId, Failure, Footprint};
use tracing::{info, warn};

use super::books::{Books, arrives};
use super::judge::{Judge, Verdict};
use super::limited::Limited;
use super::readings::Seen;
use super::{WitnessConfig, shown};
use crate::app::budgets::Budgets;
use crate::loader::{ModelLoader, Touched};

/// How long a card is given to say what its memory holds: the host is looked at by the same task.
const CARD_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is told that it does not say.
const TOLD_EACH: Duration = Duration::from_secs(60);

/// What the driver says is taken.
const USED_BYTES: &str = "roundhouse_card_used_bytes";
/// What the card has.
const MEMORY_BYTES: &str = "roundhouse_card_memory_bytes";
/// How long it computed.
const BUSY_RATIO: &str = "roundhouse_card_busy_ratio";
/// What the ledger expects of it.
const EXPECTED_BYTES: &str = "roundhouse_card_expected_bytes";

/// Registers the metrics' help.
pub(super) fn describe() {
    describe_gauge!(
        USED_BYTES,
        Unit::Bytes,
        "Memory of a card that is taken, by this process or others, as its driver counts it."
    );
    describe_gauge!(MEMORY_BYTES, Unit::Bytes, "Memory that a card has, taken or not.");
    describe_gauge!(
        BUSY_RATIO,
        Unit::Count,
        "Part of a card's last sample, up to a second, in which a kernel ran, of this process or others; not a number where its driver has ceased to tell."
    );
    describe_gauge!(
        EXPECTED_BYTES,
        Unit::Bytes,
        "What the ledger expects to be taken of a card between steps."
    );
}

/// All cards of the process. Owned by the witness' task.
#[derive(Debug, Default)]
pub(crate) struct Cards(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    card: Card,
    judge: Judge,
    configured: Bytes,
    look: Limited<Glance>,
    /// Whether the driver told last how busy it is; none before it was asked.
    tells_busy: Option<bool>,
}

/// What is seen of a card at once.
#[derive(Debug)]
struct Glance {
    seen: Result<Seen, roundhouse_models::Error>,
    /// The part of its time in which it computed.
    busy: Result<f64, String>,
}

impl Cards {
    /// Takes each card's baseline: contexts, libraries, and what others use. Blocks for milliseconds.
    pub(super) fn of(cards: Vec<Card>, config: WitnessConfig, budgets: &Budgets) -> Self {
        let watched = cards.into_iter().filter_map(|card| {
            let (_, configured) = *budgets.devices.iter().find(|(id, _)| *id == card.id())?;
            let seen = see(&card)
                .inspect_err(|error| warn!(device = %card.id(), %error, "the card is not watched"))
                .ok()?;
            info!(device = %card.id(), baseline = %seen.own, "memory of the card without models");
            let judge = Judge::new(seen.own, WitnessConfig { configured, ..config });
            let look = Limited::default();
            Some(Watched { card, judge, configured, look, tells_busy: None })
        });
        Self(watched.collect())
    }

    /// Looks at each, and lowers or raises its budget to what others leave.
    pub(super) async fn look(
        &mut self,
        residency: &Residency<ServedModel>,
        loader: &Arc<ModelLoader>,
    ) -> Result<(), Failure> {
        for Watched { card, judge, configured, look, tells_busy } in &mut self.0 {
            let (device, watched) = (card.id(), card.clone());
            // Handing memory back waits for the card: how busy it is is asked before.
            let glance = move || Glance { busy: watched.busy(), seen: see(&watched) };
            let glance = look.look(CARD_PATIENCE, glance).await?;
            let seen = glance.map(|glance| {
                publish_busy(device, glance.busy, tells_busy);
                glance.seen
            });
            let seen = match seen {
                Some(Ok(seen)) => seen,
                // Its lane finds out what is wrong with it.
                silent => {
                    if look.is_news(TOLD_EACH, Instant::now()) {
                        let error = silent.and_then(Result::err).map(|error| error.to_string());
                        let error = error.unwrap_or_else(|| "it takes too long".to_owned());
                        warn!(%device, error, "the card does not tell what its memory holds");
                    }
                    continue;
                }
            };
            let holdings = residency.holdings().await?;
            let touched = |id: &ArtefactId| loader.touched(id, device);
            let Some(books) = books(&holdings, device, &touched) else { continue };
            let verdict = judge.look(&seen, &books, Instant::now());
            publish(device, &seen, &verdict);
            if let Some(budget) = verdict.budget {
                let (before, free) = (books.budget, seen.available.unwrap_or_default());
                match budget < before {
                    true => {
                        warn!(%device, %before, %budget, %configured, %free, "others use memory of the card that models were to have: its budget is lowered");
                    }
                    false => {
                        info!(%device, %before, %budget, %configured, %free, "memory of the card came back: its budget is raised");
                    }
                }
                residency.set_budget(device, budget).await?;
            }
        }
        Ok(())
    }
}

fn publish(device: DeviceId, seen: &Seen, verdict: &Verdict) {
    gauge!(USED_BYTES, "device" => device.to_string()).set(shown(seen.own));
    let whole = seen.own + seen.available.unwrap_or_default();
    gauge!(MEMORY_BYTES, "device" => device.to_string()).set(shown(whole));
    gauge!(EXPECTED_BYTES, "device" => device.to_string()).set(shown(verdict.expected));
    if verdict.warn {
        let divergence = verdict.divergence;
        warn!(%device, used = %seen.own, expected = %verdict.expected, divergence, "memory in use on the card and the ledger differ");
    }
}

/// Shows how busy a card is. That it does not tell is said once: one that is divided never does.
fn publish_busy(device: DeviceId, busy: Result<f64, String>, tells: &mut Option<bool>) {
    let told = tells.replace(busy.is_ok());
    match busy {
        Ok(part) => gauge!(BUSY_RATIO, "device" => device.to_string()).set(part),
        Err(error) if told != Some(false) => {
            warn!(%device, error, "the card does not tell how busy it is");
            if told.is_some() {
                gauge!(BUSY_RATIO, "device" => device.to_string()).set(f64::NAN);
            }
        }
        Err(_) => {}
    }
}

/// What of a card is taken, by whomever, and what is left.
fn see(card: &Card) -> Result<Seen, roundhouse_models::Error> {
    card.give_back()?;
    let memory = card.memory()?;
    let own = memory.total.saturating_sub(memory.free);
    Ok(Seen { own, available: Some(memory.free) })
}

/// What the ledger says of one card. Host parts are charged there and lie in the host's memory; engines
/// of the operator's are others' processes, but what they take is the card's.
pub(super) fn books(
    holdings: &Holdings,
    device: DeviceId,
    touched: &dyn Fn(&ArtefactId) -> Option<Touched>,
) -> Option<Books> {
    let found = holdings.devices.iter().find(|found| found.id == device)?;
    let adapters = found.adapters.total().saturating_sub(found.adapters.host);
    let mut books = Books { budget: found.budget, charged: adapters, ..Books::default() };
    for resident in &found.residents {
        let bytes = Footprint { host: Bytes::ZERO, ..resident.bytes };
        books.charged += bytes.total();
        books.resident(resident, bytes, touched);
    }
    books.elsewhere = Bytes::ZERO;
    let coming = holdings.loads.iter().filter(|load| arrives(load) && load.device == Some(device));
    books.arriving = coming.map(|load| load.reserved_bytes).sum();
    Some(books)
}

#[cfg(test)]
mod tests {
    use metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn a_card_that_ceases_to_tell_how_busy_it_is_shows_no_number_of_before() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let shown = |device, busy: Result<f64, &str>, tells: &mut Option<bool>| {
            with_local_recorder(&recorder, || {
                publish_busy(device, busy.map_err(str::to_owned), tells);
            });
            let text = recorder.handle().render();
            let series = format!("{BUSY_RATIO}{{device=\"{device}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&series)).map(str::to_owned)
        };
        let (card, mut tells) = (DeviceId::Cuda(1), None);
        assert_eq!(shown(card, Ok(0.25), &mut tells).as_deref(), Some("0.25"));
        assert_eq!(shown(card, Err("gone"), &mut tells).as_deref(), Some("NaN"));
        assert_eq!(shown(card, Err("gone"), &mut tells).as_deref(), Some("NaN"));
        assert_eq!(shown(card, Ok(0.5), &mut tells).as_deref(), Some("0.5"));
        let (divided, mut tells) = (DeviceId::Cuda(2), None);
        assert_eq!(shown(divided, Err("Not Supported"), &mut tells), None, "it never told");
    }
}
