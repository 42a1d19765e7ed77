//! What was since the last lines, and the lines that say it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use roundhouse_gateway::AccessRecord;
use roundhouse_types::{EndpointName, Tier};
use serde_json::{Map, Value, json};

use super::figures::{Distribution, Figure};
use crate::config::CloudWatch;

/// Endpoints and variants that are told of: both are configured, so that nobody makes up more.
const TOLD_MOST: usize = 1000;
/// Metrics in one line: CloudWatch takes a hundred, an agent's datagram holds a tenth of them.
const METRICS_MOST: usize = 10;
/// Below this period CloudWatch is told to keep each second.
const FINE_BELOW: Duration = Duration::from_secs(60);

/// What a period's figures are, by name.
pub(super) type Figures = BTreeMap<Figure, Distribution>;
/// Whose figures they are: an endpoint's, and of which part of it.
type Whose = (EndpointName, Part);
/// Names and values of CloudWatch's dimensions.
type Dimensions = Vec<(&'static str, Arc<str>)>;

/// A part of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// All of it; where a variant is asked for, its first.
    Whole,
    Variant(Arc<str>),
    /// A container behind it.
    Container(Arc<str>),
}

/// What is known of a card.
#[derive(Debug, Clone, Copy, Default)]
struct Card {
    /// The last level of its memory in bytes, and what it has.
    taken: f64,
    whole: f64,
    /// Parts of its time in which it computed, added up, and how many were told in this period.
    busy: f64,
    told_busy: u32,
}

/// Gathers figures from requests that end, and from what the metrics are told. Shared by all who
/// do; held for as long as an addition takes.
#[derive(Debug, Default)]
pub(crate) struct Book(Mutex<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    told: BTreeMap<Whose, Figures>,
    /// Of what has a level: the last one, which holds until there is another.
    levels: BTreeMap<(EndpointName, Figure), f64>,
    /// Endpoints of which a model or container was asked for an answer at once.
    invoked: BTreeSet<EndpointName>,
    /// By device.
    cards: BTreeMap<String, Card>,
}

impl Book {
    /// Takes in a request that has ended.
    pub(super) fn ended(&self, record: &AccessRecord) {
        let Some(endpoint) = record.endpoint.as_ref().filter(|_| is_invocation(record)) else {
            return;
        };
        // What was deferred was no invocation when it came, and is none when it is answered.
        let is_at_once = record.route != DEFERRED;
        if is_at_once {
            self.invoked(endpoint);
        }
        let part = record.variant.clone().map_or(Part::Whole, Part::Variant);
        self.with((endpoint.clone(), part), |figures| {
            let mut add = |figure, value| figures.entry(figure).or_default().add(value);
            let is = |yes: bool| f64::from(u8::from(yes));
            if is_at_once {
                add(Figure::Invocations, 1.0);
            }
            add(Figure::Invocation4xxErrors, is((400..500).contains(&record.status)));
            add(Figure::Invocation5xxErrors, is(record.status >= 500));
            add(Figure::InvocationModelErrors, is(record.status == MODEL_ERROR));
            if let Some(tier) = record.tier {
                add(Figure::ModelCacheHit, is(tier == Tier::Device));
            }
            let waited = record.load.filter(|load| !load.is_zero());
            if let Some(load) = waited {
                add(Figure::ModelLoadingWaitTime, microseconds(load));
            }
            let is_answered = record.version.is_some() || record.container.is_some();
            if let Some(total) = record.total.filter(|_| is_answered) {
                let overhead = record.queue.unwrap_or_default() + record.load.unwrap_or_default();
                add(Figure::ModelLatency, microseconds(total.saturating_sub(overhead)));
                add(Figure::OverheadLatency, microseconds(overhead.min(total)));
            }
        });
    }

    /// Takes in a value of an endpoint.
    pub(super) fn add(&self, endpoint: &str, figure: Figure, value: f64, count: u64) {
        self.add_to(endpoint, Part::Whole, figure, (value, count));
    }

    /// Takes in a value of a container behind an endpoint.
    pub(super) fn of_container(&self, endpoint: &str, name: &str, figure: Figure, value: f64) {
        self.add_to(endpoint, Part::Container(name.into()), figure, (value, 1));
    }

    fn add_to(&self, endpoint: &str, part: Part, figure: Figure, (value, count): (f64, u64)) {
        if let Ok(endpoint) = endpoint.parse() {
            self.with((endpoint, part), |figures| {
                figures.entry(figure).or_default().add_many(value, count);
            });
        }
    }

    /// Takes in how many bytes of a card's memory are taken.
    pub(super) fn card_taken(&self, device: &str, bytes: f64) {
        self.lock().cards.entry(device.to_owned()).or_default().taken = bytes;
    }

    /// Takes in how many bytes a card has.
    pub(super) fn card_whole(&self, device: &str, bytes: f64) {
        self.lock().cards.entry(device.to_owned()).or_default().whole = bytes;
    }

    /// Takes in the part of its last moments in which a card computed; what is no number says nothing.
    pub(super) fn card_busy(&self, device: &str, part: f64) {
        if part.is_finite() {
            let mut gathered = self.lock();
            let card = gathered.cards.entry(device.to_owned()).or_default();
            card.busy += part;
            card.told_busy += 1;
        }
    }

    /// Takes in an endpoint's level.
    pub(super) fn level(&self, endpoint: &str, figure: Figure, value: f64) {
        let Ok(name) = endpoint.parse::<EndpointName>() else { return };
        let mut gathered = self.lock();
        let key = (name, figure);
        if gathered.levels.len() < TOLD_MOST || gathered.levels.contains_key(&key) {
            gathered.levels.insert(key, value);
        }
        drop(gathered);
        self.add(endpoint, figure, value, 1);
    }

    /// All that was since the last time, as lines. `machine`: what is the same for all of
    /// `endpoints`, each of which has the names of its variants and is told with the first.
    pub(super) fn lines(
        &self,
        settings: &CloudWatch,
        at: SystemTime,
        endpoints: &[(EndpointName, Vec<Arc<str>>)],
        machine: &Figures,
    ) -> Vec<String> {
        let mut machine = machine.clone();
        let cards = [
            (Figure::GpuMemoryUtilization, self.cards_taken()),
            (Figure::GpuUtilization, self.cards_busy()),
        ];
        for (figure, percent) in cards {
            if let Some(percent) = percent {
                machine.entry(figure).or_default().add(percent);
            }
        }
        let mut told: BTreeMap<Dimensions, Figures> = BTreeMap::new();
        for (endpoint, variants) in endpoints {
            let is_asked = !self.is_deferred_alone(endpoint);
            for (variant, at) in variants.iter().zip(0..) {
                let mut figures = if at == 0 { machine.clone() } else { Figures::new() };
                // A server that nobody asked counts among those over which an average is taken.
                if is_asked {
                    figures.insert(Figure::Invocations, Distribution::default());
                }
                told.insert(dimensions(endpoint, Some(variant), None), figures);
            }
        }
        for ((endpoint, part), figures) in self.take() {
            let first = || endpoints.iter().find(|(name, _)| *name == endpoint)?.1.first();
            let (variant, container) = match part {
                Part::Variant(variant) => (variant, None),
                Part::Whole => (first().cloned().unwrap_or_else(|| ALL.into()), None),
                Part::Container(name) => {
                    (first().cloned().unwrap_or_else(|| ALL.into()), Some(name))
                }
            };
            for (figure, distribution) in figures {
                let variant = (!figure.is_of_endpoint()).then_some(&variant);
                let row = dimensions(&endpoint, variant, container.as_ref());
                told.entry(row).or_default().entry(figure).or_default().merge(&distribution);
            }
        }
        let lines = told.into_iter().flat_map(|(dimensions, mut figures)| {
            for_one_instance(&mut figures);
            let figures: Vec<_> = figures.iter().collect();
            let parts =
                figures.chunks(METRICS_MOST).map(|part| document(settings, at, &dimensions, part));
            parts.collect::<Vec<_>>()
        });
        lines.flatten().collect()
    }

    /// Remembers that an endpoint was asked for an answer at once.
    fn invoked(&self, endpoint: &EndpointName) {
        let mut gathered = self.lock();
        if gathered.invoked.len() < TOLD_MOST && !gathered.invoked.contains(endpoint) {
            gathered.invoked.insert(endpoint.clone());
        }
    }

    /// Whether an endpoint has a queue, and nobody has asked it for an answer at once: SageMaker tells no
    /// invocations of its asynchronous endpoints.
    fn is_deferred_alone(&self, endpoint: &EndpointName) -> bool {
        let gathered = self.lock();
        let backlog = (endpoint.clone(), Figure::ApproximateBacklogSize);
        gathered.levels.contains_key(&backlog) && !gathered.invoked.contains(endpoint)
    }

    /// What of all cards' memory is taken: a hundred for each that is full.
    fn cards_taken(&self) -> Option<f64> {
        let gathered = self.lock();
        let told = gathered.cards.values().filter(|card| card.whole > 0.0);
        told.map(|card| 100.0 * card.taken / card.whole).reduce(|sum, percent| sum + percent)
    }

    /// How busy all cards were in this period: a hundred for each that computed all the time.
    fn cards_busy(&self) -> Option<f64> {
        let mut gathered = self.lock();
        let told = gathered.cards.values_mut().filter(|card| card.told_busy > 0);
        let percents = told.map(|card| {
            let (sum, count) =
                (std::mem::take(&mut card.busy), std::mem::take(&mut card.told_busy));
            100.0 * sum / f64::from(count)
        });
        percents.reduce(|sum, percent| sum + percent)
    }

    /// What was, with levels that nothing has changed since.
    fn take(&self) -> BTreeMap<Whose, Figures> {
        let mut gathered = self.lock();
        let mut told = std::mem::take(&mut gathered.told);
        for ((endpoint, figure), level) in &gathered.levels {
            let figures = told.entry((endpoint.clone(), Part::Whole)).or_default();
            figures.entry(*figure).or_insert_with(|| {
                let mut distribution = Distribution::default();
                distribution.add(*level);
                distribution
            });
        }
        told
    }

    fn with(&self, whose: Whose, add: impl FnOnce(&mut Figures)) {
        let mut gathered = self.lock();
        let told = &mut gathered.told;
        if told.len() < TOLD_MOST || told.contains_key(&whose) {
            add(told.entry(whose).or_default());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        // A panic while it was held leaves plain sums behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What clients are told where the model is at fault.
const MODEL_ERROR: u16 = 424;
/// The route of requests that the queue answers.
const DEFERRED: &str = "invoke_deferred";
/// What SageMaker calls the variant of an endpoint that has only one.
const ALL: &str = "AllTraffic";

/// Whether a model was asked for an answer: not a list, a load, or a request that is answered later.
fn is_invocation(record: &AccessRecord) -> bool {
    let route = record.route;
    let manages = (route.starts_with("container_") && route != "container_invoke")
        || route.starts_with("model_adapter")
        || route == "invoke_endpoint_async";
    record.method == "POST" && !manages
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn dimensions(
    endpoint: &EndpointName,
    variant: Option<&Arc<str>>,
    container: Option<&Arc<str>>,
) -> Dimensions {
    let endpoint: Arc<str> = endpoint.as_str().into();
    let named =
        [("EndpointName", Some(&endpoint)), ("VariantName", variant), ("ContainerName", container)];
    named.into_iter().filter_map(|(name, value)| Some((name, value?.clone()))).collect()
}

/// Adds what SageMaker tells by instance, of which this server is one: its average over all servers is
/// what SageMaker means. What waits on a server's disk has that server.
fn for_one_instance(figures: &mut Figures) {
    if let Some(invocations) = figures.get(&Figure::Invocations) {
        let mut whole = Distribution::default();
        whole.add(invocations.sum());
        figures.insert(Figure::InvocationsPerInstance, whole);
    }
    if let Some(backlog) = figures.get(&Figure::ApproximateBacklogSize).cloned() {
        let mut without = Distribution::default();
        without.add_many(0.0, backlog.count());
        figures.insert(Figure::HasBacklogWithoutCapacity, without);
        figures.insert(Figure::ApproximateBacklogSizePerInstance, backlog);
    }
}

/// One line of the embedded metric format; `None` where nothing was.
fn document(
    settings: &CloudWatch,
    at: SystemTime,
    dimensions: &Dimensions,
    figures: &[(&Figure, &Distribution)],
) -> Option<String> {
    let resolution = if settings.period < FINE_BELOW { 1 } else { 60 };
    let (mut metrics, mut members) = (Vec::new(), Map::new());
    for (figure, distribution) in figures {
        if let Some(shown) = distribution.shown() {
            let (name, unit) = (figure.name(), figure.unit());
            metrics.push(json!({"Name": name, "Unit": unit, "StorageResolution": resolution}));
            members.insert(name.to_owned(), shown);
        }
    }
    if metrics.is_empty() {
        return None;
    }
    let millis = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let names: Vec<_> = dimensions.iter().map(|(name, _)| name).collect();
    let mut about = json!({
        "Timestamp": u64::try_from(millis).unwrap_or(u64::MAX),
        "CloudWatchMetrics": [{
            "Namespace": settings.namespace,
            "Dimensions": [names],
            "Metrics": metrics,
        }],
    });
    if let Some(group) = &settings.log_group {
        about["LogGroupName"] = json!(group);
    }
    let mut line = Map::new();
    line.insert("_aws".to_owned(), about);
    line.extend(dimensions.iter().map(|(name, value)| ((*name).to_owned(), json!(**value))));
    line.extend(members);
    Some(Value::Object(line).to_string())
}
