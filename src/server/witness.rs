//! The witness: holds the memory that is really used against the ledger.
//!
//! Residency adds up what models are charged with; nothing in that sum was seen. The witness
//! looks at this process and at what its control group and the machine have left, after each
//! load and unload and every few seconds, and
//!
//! - publishes both numbers, and warns when they differ (`judge`);
//! - lowers the budgets of copies in the host's memory, then of devices, when others use what the ledger counts on, and raises them
//!   again when they stop (`shares`).
//!
//! What is compared: the process's anonymous memory with its baseline, taken before the first
//! model, plus what models in this process are charged with, less what is charged but not
//! touched: KV blocks that were never written, and workspaces between steps. Handlers are
//! processes of their own, measured and charged by `workers`. Reading order: this file (the
//! task), `readings` (what the system says), `books` (what the ledger says), `judge`,
//! `shares`, `cards` (the same for memories that are not the host's), `leftovers` (what is handed back before it is compared), `limited`
//! (looks that may hang).

mod books;
mod cards;
mod judge;
mod leftovers;
mod limited;
mod readings;
mod shares;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metrics::{Unit, describe_gauge, gauge};
use roundhouse_models::Card;
use roundhouse_residency::{Action, Decision, Residency};
use roundhouse_serving::ServedModel;
use roundhouse_types::{Bytes, ErrorKind, Failure};
use serde::Serialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use self::books::Books;
pub(crate) use self::cards::Cards;
use self::judge::{Judge, Verdict};
use self::leftovers::Leftovers;
use self::readings::{Care, Seen, Thrift};
use crate::allocator;
use crate::app::budgets::Budgets;
use crate::loader::ModelLoader;

/// Anonymous memory of the process.
const WITNESS_BYTES: &str = "roundhouse_memory_witness_bytes";
/// What the ledger expects of it.
const EXPECTED_BYTES: &str = "roundhouse_memory_expected_bytes";
/// By what share of the latter the two differ.
const DIVERGENCE: &str = "roundhouse_memory_divergence_ratio";
/// The process without models.
const BASELINE_BYTES: &str = "roundhouse_memory_baseline_bytes";
/// The budget that was asked for.
const CONFIGURED_BYTES: &str = "roundhouse_memory_configured_bytes";

/// How long after a model came or went it is looked: thrice as long as freeing takes.
const AFTER_CHANGE: Duration = Duration::from_millis(100);

/// Registers the metrics' help.
pub(crate) fn describe() {
    cards::describe();
    describe_gauge!(
        WITNESS_BYTES,
        Unit::Bytes,
        "Anonymous memory of this process, as the system counts it."
    );
    describe_gauge!(
        EXPECTED_BYTES,
        Unit::Bytes,
        "What the ledger expects this process to use between steps."
    );
    describe_gauge!(
        DIVERGENCE,
        Unit::Count,
        "Share of the expected bytes, of 64 MiB at least, by which more (or less) is used than loads, steps and fetches under way explain."
    );
    describe_gauge!(BASELINE_BYTES, Unit::Bytes, "What this process used before the first model.");
    describe_gauge!(
        CONFIGURED_BYTES,
        Unit::Bytes,
        "A device's budget as configured; the current one is lower while others use the memory."
    );
}

/// What the witness is told by the settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WitnessConfig {
    /// How often it looks; zero is never.
    pub(crate) every: Duration,
    /// Of what is expected, in percent: a larger difference is told.
    pub(crate) tolerance: u64,
    /// Whether the budget follows what others leave.
    pub(crate) yields: bool,
    /// What all fetches together may hold in memory.
    pub(crate) in_flight: Bytes,
    /// What all devices in the host's memory and copies there may take together.
    pub(crate) configured: Bytes,
}

/// The last look, as `/admin/v1/residency` shows it.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sighting {
    /// What this process used before the first model: the fixed overhead.
    baseline_bytes: Bytes,
    /// Its anonymous memory.
    witness_bytes: Bytes,
    /// What the ledger expects of it between steps.
    expected_bytes: Bytes,
    /// What is charged for models of this process and was never touched.
    untouched_bytes: Bytes,
    /// What handlers, processes of their own, are charged with.
    elsewhere_bytes: Bytes,
    /// What could still be taken; absent where the system does not say.
    available_bytes: Option<Bytes>,
    /// See the metric.
    divergence_ratio: f64,
}

/// See the module's text. One task looks; others read its last sighting.
pub(crate) struct Witness {
    config: WitnessConfig,
    /// The budgets as they were asked for.
    budgets: Budgets,
    baseline: Bytes,
    last: Mutex<Option<Sighting>>,
}

impl Witness {
    /// Takes the baselines, of these cards too. Call when everything is there but models.
    ///
    /// # Errors
    /// When no thread can be had for it.
    pub(crate) async fn start(
        config: WitnessConfig,
        budgets: Budgets,
        cards: Vec<Card>,
    ) -> Result<(Arc<Self>, Cards), Failure> {
        let seen = blocking(|| {
            allocator::give_back();
            readings::read(Care::Pages, &read_file)
        });
        let baseline = seen.await?.map_or(Bytes::ZERO, |seen| seen.own);
        gauge!(BASELINE_BYTES).set(shown(baseline));
        for (device, budget) in &budgets.devices {
            gauge!(CONFIGURED_BYTES, "device" => device.to_string()).set(shown(*budget));
        }
        info!(%baseline, "memory of the process without models");
        let configured = budgets.clone();
        let cards = blocking(move || Cards::of(cards, config, &configured)).await?;
        Ok((Arc::new(Self { config, budgets, baseline, last: Mutex::default() }), cards))
    }

    /// The budgets that were asked for.
    pub(crate) fn configured(&self) -> &Budgets {
        &self.budgets
    }

    /// What was found last; `None` before the first look, or where it never looks.
    pub(crate) fn last(&self) -> Option<Sighting> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks until residency has ended, at these cards' memories too. Runs as a task of its own.
    pub(crate) async fn watch(
        self: Arc<Self>,
        mut cards: Cards,
        residency: Residency<ServedModel>,
        loader: Arc<ModelLoader>,
    ) {
        if self.config.every.is_zero() {
            return;
        }
        let mut judge = Judge::new(self.baseline, self.config);
        let (mut thrift, mut leftovers) = (Thrift::default(), Leftovers::default());
        let mut decisions = residency.events();
        let mut ticks = tokio::time::interval(self.config.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let care = tokio::select! {
                _ = ticks.tick() => Care::Tally,
                changed = next_change(&mut decisions) => match changed {
                    Some(()) => {
                        // Those that come and go meanwhile are seen by the same look.
                        tokio::time::sleep(AFTER_CHANGE).await;
                        decisions = decisions.resubscribe();
                        thrift.care(Instant::now())
                    }
                    None => return,
                },
            };
            let looked = async {
                let books =
                    self.hand_back(&mut leftovers, &mut thrift, &residency, &loader).await?;
                self.look((care, books), &mut judge, &mut thrift, &residency, &loader).await?;
                cards.look(&residency, &loader).await
            };
            if let Err(failure) = looked.await {
                info!(%failure, "the witness has ended");
                return;
            }
        }
    }

    /// Gives the system what is free, where the server rests and that is much. What the ledger says then.
    async fn hand_back(
        &self,
        leftovers: &mut Leftovers,
        thrift: &mut Thrift,
        residency: &Residency<ServedModel>,
        loader: &Arc<ModelLoader>,
    ) -> Result<Books, Failure> {
        let mut books = self.books(residency, loader).await?;
        let Some(seen) = see(Care::Tally, thrift).await? else { return Ok(books) };
        if leftovers.are_worth_it(&seen, &books, self.baseline) {
            blocking(allocator::give_back).await?;
            books = self.books(residency, loader).await?;
            if let Some(seen) = see(Care::Tally, thrift).await? {
                leftovers.were_handed_back(&seen, &books, self.baseline);
            }
        }
        Ok(books)
    }

    async fn look(
        &self,
        (care, mut books): (Care, Books),
        judge: &mut Judge,
        thrift: &mut Thrift,
        residency: &Residency<ServedModel>,
        loader: &Arc<ModelLoader>,
    ) -> Result<(), Failure> {
        let mut seen = see(care, thrift).await?;
        if seen.is_some_and(|seen| judge.is_grave(&seen, &books, Instant::now())) {
            // What was freed may still be in the allocator's hands.
            blocking(allocator::give_back).await?;
            books = self.books(residency, loader).await?;
            seen = see(thrift.care(Instant::now()), thrift).await?;
        }
        let Some(seen) = seen else { return Ok(()) };
        let verdict = judge.look(&seen, &books, Instant::now());
        self.publish(&seen, &books, &verdict);
        if let Some(budget) = verdict.budget {
            self.change(budget, &seen, &books);
            let (devices, host) = shares::divide(&self.budgets, budget);
            residency.set_host_budget(host).await?;
            for (device, share) in devices {
                residency.set_budget(device, share).await?;
            }
        }
        Ok(())
    }

    async fn books(
        &self,
        residency: &Residency<ServedModel>,
        loader: &Arc<ModelLoader>,
    ) -> Result<Books, Failure> {
        let holdings = residency.holdings().await?;
        let touched = |id: &_, device| loader.touched(id, device);
        Ok(Books::of(&holdings, self.config.in_flight, &touched))
    }

    fn publish(&self, seen: &Seen, books: &Books, verdict: &Verdict) {
        gauge!(WITNESS_BYTES).set(shown(seen.own));
        gauge!(EXPECTED_BYTES).set(shown(verdict.expected));
        gauge!(DIVERGENCE).set(verdict.divergence);
        if verdict.warn {
            warn!(
                witness = %seen.own,
                expected = %verdict.expected,
                baseline = %self.baseline,
                divergence = verdict.divergence,
                "memory in use and the ledger differ"
            );
        }
        let sighting = Sighting {
            baseline_bytes: self.baseline,
            witness_bytes: seen.own,
            expected_bytes: verdict.expected,
            untouched_bytes: books.untouched,
            elsewhere_bytes: books.elsewhere,
            available_bytes: seen.available,
            divergence_ratio: verdict.divergence,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(sighting);
    }

    fn change(&self, budget: Bytes, seen: &Seen, books: &Books) {
        let available = seen.available.unwrap_or_default();
        let configured = self.config.configured;
        let before = books.budget;
        if budget < before && self.budgets.were_never_there(budget) {
            warn!(%before, %budget, %configured, %available, witness = %seen.own, "the budgets are more than this machine has left for models: they are lowered to that");
        } else if budget < before {
            warn!(%before, %budget, %configured, %available, witness = %seen.own, "others use memory that models were to have: the budget is lowered");
        } else {
            info!(%before, %budget, %configured, %available, "memory came back: the budget is raised");
        }
    }
}

/// Waits for a model to come or to go; `None` when nobody decides any more.
async fn next_change(decisions: &mut Receiver<Decision>) -> Option<()> {
    loop {
        match decisions.recv().await {
            Ok(decision) => {
                if matches!(decision.action, Action::Ready { .. } | Action::Unloaded { .. }) {
                    return Some(());
                }
            }
            // Among what was missed there may have been one.
            Err(RecvError::Lagged(_)) => return Some(()),
            Err(RecvError::Closed) => return None,
        }
    }
}

async fn see(care: Care, thrift: &mut Thrift) -> Result<Option<Seen>, Failure> {
    let (seen, took) = blocking(move || {
        let began = Instant::now();
        (readings::read(care, &read_file), began.elapsed())
    })
    .await?;
    if care == Care::Pages {
        thrift.took(Instant::now(), took);
    }
    Ok(seen)
}

fn read_file(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::from_error(ErrorKind::Internal, &error))
}

#[expect(clippy::cast_precision_loss, reason = "exact below 8 PiB")]
fn shown(bytes: Bytes) -> f64 {
    bytes.0 as f64
}
