//! SageMaker's figures as CloudWatch embedded metrics: one JSON line for each endpoint, variant and
//! period, in SageMaker's names and units, for dashboards and alarms that are there already.
//!
//! Requests are counted as they end, loads and deferred requests as Prometheus is told of them.
//! A period's values are gathered into bins, so that what is held and sent has a bound.
//!
//! Reading order: `figures` (names, units, bins), `book` (what was, and the lines), `recorder`
//! (what the metrics are told), `machine` (how busy it is), `way` (where lines go), this file (the
//! task that sends them).

mod book;
mod figures;
mod machine;
mod recorder;
#[cfg(test)]
mod tests;
mod way;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use metrics::{Unit, counter, describe_counter};
use roundhouse_gateway::{AccessRecord, Offered};
use roundhouse_residency::{Residency, ResidentState};
use roundhouse_serving::ServedModel;
use roundhouse_tenancy::Current;
use roundhouse_types::{EndpointName, Failure};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{info, warn};

pub(crate) use self::book::Book;
use self::figures::Figure;
use self::machine::Machine;
pub(crate) use self::recorder::Hearing;
use self::way::Way;
use crate::app::Disk;
use crate::config;

/// What takes the record of a request that has ended.
type AccessFn = Arc<dyn Fn(AccessRecord) + Send + Sync>;

/// How long the last lines may take when the server ends.
const LAST_WITHIN: Duration = Duration::from_secs(3);

const LINES: &str = "roundhouse_server_cloudwatch_lines_total";

/// Registers the metric's help.
pub(crate) fn describe() {
    let help = "Lines of CloudWatch embedded metrics, by outcome: sent, lost";
    describe_counter!(LINES, Unit::Count, help);
}

/// Gathers figures; does nothing where none are wanted.
#[derive(Default)]
pub(crate) struct CloudWatch {
    wanted: Option<(config::CloudWatch, Arc<Book>)>,
}

/// Sends them, until it is closed.
#[derive(Default)]
pub(crate) struct Sending(Option<(oneshot::Sender<()>, JoinHandle<()>)>);

/// What is told beside what is gathered.
pub(crate) struct Told {
    pub(crate) offered: Arc<Current<Offered>>,
    pub(crate) residency: Residency<ServedModel>,
    /// Where models' files are kept, and the folder of those who keep none.
    pub(crate) disk: Disk,
    pub(crate) folder: PathBuf,
}

impl CloudWatch {
    pub(crate) fn of(config: Option<&config::CloudWatch>) -> Self {
        Self { wanted: config.map(|config| (config.clone(), Arc::default())) }
    }

    /// What hears the metrics.
    pub(crate) fn book(&self) -> Option<Arc<Book>> {
        self.wanted.as_ref().map(|(_, book)| book.clone())
    }

    /// Has requests that ended counted before their lines are logged.
    pub(crate) fn before(&self, log: AccessFn) -> AccessFn {
        let Some(book) = self.book() else { return log };
        Arc::new(move |record| {
            book.ended(&record);
            log(record);
        })
    }

    /// Sends what was gathered after each period. Call inside a runtime.
    pub(crate) fn send(self, told: Told) -> Sending {
        let Some((config, book)) = self.wanted else { return Sending::default() };
        info!(to = ?config.to, namespace = config.namespace, "embedded metrics are written");
        let sender = Sender {
            machine: Machine::new(told.disk, told.folder),
            offered: told.offered,
            residency: told.residency,
            way: Some(Way::new(config.to.clone())),
            is_lost: false,
            config,
            book,
        };
        let (close, closed) = oneshot::channel();
        Sending(Some((close, tokio::spawn(sender.run(closed)))))
    }
}

impl Sending {
    /// Sends what was gathered since the last period.
    pub(crate) async fn close(self) {
        if let Some((close, task)) = self.0 {
            drop(close);
            if tokio::time::timeout(LAST_WITHIN, task).await.is_err() {
                warn!("the last embedded metrics were not taken in time");
            }
        }
    }
}

struct Sender {
    config: config::CloudWatch,
    book: Arc<Book>,
    machine: Machine,
    offered: Arc<Current<Offered>>,
    residency: Residency<ServedModel>,
    /// Lent to the thread that writes.
    way: Option<Way>,
    /// Whether the last lines were lost: it is said once.
    is_lost: bool,
}

impl Sender {
    async fn run(mut self, mut closed: oneshot::Receiver<()>) {
        let mut periods = tokio::time::interval(self.config.period);
        // The first is over at once, and nothing was.
        periods.tick().await;
        loop {
            tokio::select! {
                _ = periods.tick() => {
                    self.count_loaded().await;
                    self.tell().await;
                }
                _ = &mut closed => return self.tell().await,
            }
        }
    }

    async fn count_loaded(&self) {
        let names = self.endpoints();
        match loaded(&self.residency).await {
            Ok(counts) => {
                for (name, _) in &names {
                    let count = counts.get(name).copied().unwrap_or_default();
                    self.book.add(name.as_str(), Figure::LoadedModelCount, f64::from(count), 1);
                }
            }
            Err(error) => warn!(%error, "models are not counted any more"),
        }
    }

    /// Configured endpoints, each with its variants.
    fn endpoints(&self) -> Vec<(EndpointName, Vec<Arc<str>>)> {
        let offered = self.offered.get();
        let faces = offered.endpoints.iter();
        let named = faces.map(|face| {
            let variants = face.naming.variants.iter().map(|it| it.name.clone());
            (face.name.clone(), variants.collect())
        });
        named.collect()
    }

    async fn tell(&mut self) {
        let machine = self.machine.figures();
        let at = SystemTime::now();
        let lines = self.book.lines(&self.config, at, &self.endpoints(), &machine);
        if lines.is_empty() {
            return;
        }
        let Some(mut way) = self.way.take() else { return };
        let count = lines.len() as u64;
        let sent = tokio::task::spawn_blocking(move || (way.send(&lines), way)).await;
        let outcome = match sent {
            Ok((outcome, way)) => {
                self.way = Some(way);
                outcome
            }
            Err(panic) => {
                self.way = Some(Way::new(self.config.to.clone()));
                Err(std::io::Error::other(panic))
            }
        };
        let was_lost = std::mem::replace(&mut self.is_lost, outcome.is_err());
        match outcome {
            Ok(()) => counter!(LINES, "outcome" => "sent").increment(count),
            Err(error) => {
                counter!(LINES, "outcome" => "lost").increment(count);
                if !was_lost {
                    warn!(%error, to = ?self.config.to, "embedded metrics could not be written");
                }
            }
        }
    }
}

/// How many models of each endpoint serve, however many devices they are on.
async fn loaded(
    residency: &Residency<ServedModel>,
) -> Result<BTreeMap<EndpointName, u32>, Failure> {
    let (mut counts, mut rest, mut last) = (BTreeMap::new(), None, None);
    loop {
        let part = residency.residents(rest).await?;
        for (_, resident) in part.rows {
            // They come in the order of names: one on several devices comes in a row.
            let name = (resident.endpoint, resident.target);
            if resident.state == ResidentState::Ready && last.as_ref() != Some(&name) {
                *counts.entry(name.0.clone()).or_default() += 1;
                last = Some(name);
            }
        }
        match part.rest {
            Some(next) => rest = Some(next),
            None => return Ok(counts),
        }
    }
}
