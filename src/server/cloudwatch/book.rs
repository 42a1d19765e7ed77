//! What was since the last lines, and the lines that say it.

use std::collections::BTreeMap;
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
/// Whose figures they are: a variant's, or an endpoint's as a whole.
type Whose = (EndpointName, Option<Arc<str>>);

/// Gathers figures from requests that end, and from what the metrics are told. Shared by all who
/// do; held for as long as an addition takes.
#[derive(Debug, Default)]
pub(crate) struct Book(Mutex<Gathered>);

#[derive(Debug, Default)]
struct Gathered {
    told: BTreeMap<Whose, Figures>,
    /// Of what has a level: the last one, which holds until there is another.
    levels: BTreeMap<(EndpointName, Figure), f64>,
}

impl Book {
    /// Takes in a request that has ended.
    pub(super) fn ended(&self, record: &AccessRecord) {
        let Some(endpoint) = record.endpoint.as_ref().filter(|_| is_invocation(record)) else {
            return;
        };
        let variant = record.variant.clone();
        self.with((endpoint.clone(), variant), |figures| {
            let mut add = |figure, value| figures.entry(figure).or_default().add(value);
            let is = |yes: bool| f64::from(u8::from(yes));
            add(Figure::Invocations, 1.0);
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
        if let Ok(endpoint) = endpoint.parse() {
            self.with((endpoint, None), |figures| {
                figures.entry(figure).or_default().add_many(value, count);
            });
        }
    }

    /// Takes in an endpoint's level.
    pub(super) fn level(&self, endpoint: &str, figure: Figure, value: f64) {
        let Ok(name) = endpoint.parse::<EndpointName>() else { return };
        let mut gathered = self.lock();
        if gathered.levels.len() < TOLD_MOST {
            gathered.levels.insert((name, figure), value);
        }
        drop(gathered);
        self.add(endpoint, figure, value, 1);
    }

    /// All that was since the last time, as lines. `machine`: what is the same for all of
    /// `endpoints`, each of which is told with the name of its first variant.
    pub(super) fn lines(
        &self,
        settings: &CloudWatch,
        at: SystemTime,
        endpoints: &[(EndpointName, Arc<str>)],
        machine: &Figures,
    ) -> Vec<String> {
        let gathered = self.take();
        let mut told: BTreeMap<(EndpointName, Arc<str>), Figures> = BTreeMap::new();
        for (endpoint, variant) in endpoints {
            told.insert((endpoint.clone(), variant.clone()), machine.clone());
        }
        for ((endpoint, variant), figures) in gathered {
            let first = || endpoints.iter().find(|(name, _)| *name == endpoint).map(|it| &it.1);
            let variant = variant.or_else(|| first().cloned()).unwrap_or_else(|| ALL.into());
            let sum = told.entry((endpoint, variant)).or_default();
            for (figure, distribution) in figures {
                sum.entry(figure).or_default().merge(&distribution);
            }
        }
        let lines = told.iter().flat_map(|((endpoint, variant), figures)| {
            let figures: Vec<_> = figures.iter().collect();
            let parts = figures
                .chunks(METRICS_MOST)
                .map(|part| document(settings, at, [endpoint.as_str(), &**variant], part));
            parts.collect::<Vec<_>>()
        });
        lines.flatten().collect()
    }

    /// What was, with levels that nothing has changed since.
    fn take(&self) -> BTreeMap<Whose, Figures> {
        let mut gathered = self.lock();
        let mut told = std::mem::take(&mut gathered.told);
        for ((endpoint, figure), level) in &gathered.levels {
            let figures = told.entry((endpoint.clone(), None)).or_default();
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

/// One line of the embedded metric format; `None` where nothing was.
fn document(
    settings: &CloudWatch,
    at: SystemTime,
    [endpoint, variant]: [&str; 2],
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
    let mut about = json!({
        "Timestamp": u64::try_from(millis).unwrap_or(u64::MAX),
        "CloudWatchMetrics": [{
            "Namespace": settings.namespace,
            "Dimensions": [["EndpointName", "VariantName"]],
            "Metrics": metrics,
        }],
    });
    if let Some(group) = &settings.log_group {
        about["LogGroupName"] = json!(group);
    }
    let mut line = Map::new();
    line.insert("_aws".to_owned(), about);
    line.insert("EndpointName".to_owned(), json!(endpoint));
    line.insert("VariantName".to_owned(), json!(variant));
    line.extend(members);
    Some(Value::Object(line).to_string())
}
