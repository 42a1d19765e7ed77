//! The table of metrics, `deploy/observability/metrics.md`: made of what the recorder is told.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
    with_local_recorder,
};

/// Set to have the table written instead of compared.
const WRITE: &str = "ROUNDHOUSE_WRITE_TABLES";

/// What stands before the table.
const HEAD: &str = "# Metrics

Served as `/metrics` by the admin port and by the health port (`--health-listen`), in Prometheus'
text format. A histogram of seconds has buckets from 0.5 ms to 360 s; `roundhouse_engine_step_rows`
is a summary, with quantiles. A series appears when something is counted for the first time.

This file is written by `ROUNDHOUSE_WRITE_TABLES=1 cargo test -p roundhouse --lib described` from what
the server registers, and a test compares the two.

| name | type | unit | labels | meaning |
|---|---|---|---|---|
";

/// The labels of metrics; the longest beginning of a name counts. A test of the whole process holds
/// them against what a server shows.
const LABELS: [(&str, &str); 52] = [
    ("roundhouse_", ""),
    ("roundhouse_async_", "endpoint"),
    ("roundhouse_card_", "device"),
    ("roundhouse_containers_", "container"),
    ("roundhouse_engine_sequences_ended_total", "reason"),
    ("roundhouse_gateway_container_seconds", "container, endpoint"),
    ("roundhouse_gateway_first_byte_seconds", "route"),
    ("roundhouse_gateway_request_seconds", "route, status"),
    ("roundhouse_gateway_sessions_ended_total", "by"),
    ("roundhouse_identity_decisions_total", "method, outcome"),
    ("roundhouse_load_stage_seconds", "stage"),
    ("roundhouse_memory_configured_bytes", "device"),
    ("roundhouse_residency_budget_bytes", "device"),
    ("roundhouse_residency_charged_bytes", "device"),
    ("roundhouse_residency_demotions_total", "endpoint"),
    ("roundhouse_residency_discard_seconds", "endpoint"),
    ("roundhouse_residency_discards_total", "endpoint, reason"),
    ("roundhouse_residency_evictions_total", "endpoint, reason"),
    ("roundhouse_residency_eviction_idle_seconds", "endpoint, reason"),
    ("roundhouse_residency_failures_total", "endpoint, stage"),
    ("roundhouse_residency_fetch_seconds", "endpoint"),
    ("roundhouse_residency_grants_total", "endpoint, tier"),
    ("roundhouse_residency_load_seconds", "device, endpoint"),
    ("roundhouse_residency_loads_total", "endpoint"),
    ("roundhouse_residency_refusals_total", "endpoint, kind"),
    ("roundhouse_residency_regret_optimal_loads", "bound"),
    ("roundhouse_residency_regret_ratio", "bound"),
    ("roundhouse_residency_replications_total", "endpoint"),
    ("roundhouse_residency_reserved_bytes", "device"),
    ("roundhouse_residency_residents", "device"),
    ("roundhouse_residency_resolve_seconds", "endpoint"),
    ("roundhouse_residency_revivals_total", "endpoint"),
    ("roundhouse_residency_unload_seconds", "device, endpoint"),
    ("roundhouse_residency_wait_seconds", "endpoint, tier"),
    ("roundhouse_server_access_records_lost_total", "log"),
    ("roundhouse_server_captures_total", "outcome"),
    ("roundhouse_server_cloudwatch_lines_total", "outcome"),
    ("roundhouse_server_reloads_total", "outcome"),
    ("roundhouse_serving_", "endpoint"),
    ("roundhouse_serving_first_token_seconds", "endpoint, tier"),
    ("roundhouse_serving_form_compile_seconds", ""),
    ("roundhouse_serving_input_tokens_total", "endpoint, kind"),
    ("roundhouse_serving_invocations_total", "endpoint, kind, outcome"),
    ("roundhouse_serving_queue_seconds", "endpoint, kind"),
    ("roundhouse_store_", "endpoint"),
    ("roundhouse_templates_", "reason"),
    ("roundhouse_tenancy_", "tenant"),
    ("roundhouse_traces_spans_dropped_total", "reason"),
    ("roundhouse_workers_calls_total", "outcome"),
    ("roundhouse_workers_ended_total", "reason"),
    ("roundhouse_workers_warm_ended_total", "reason"),
    ("roundhouse_workers_warm_launches_total", "outcome"),
];

/// Labels that differ from those of their area.
const EXCEPTIONS: [(&str, &str); 14] = [
    ("roundhouse_containers_cut_answers_total", "container, why"),
    ("roundhouse_containers_ended_total", "container, reason"),
    ("roundhouse_containers_requests_total", "container, outcome"),
    ("roundhouse_store_disk_budget_bytes", ""),
    ("roundhouse_store_disk_used_bytes", ""),
    ("roundhouse_store_disk_adapters", ""),
    ("roundhouse_store_evictions_total", "what"),
    ("roundhouse_store_fetch_seconds", "endpoint, outcome"),
    ("roundhouse_store_paced_", "tenant"),
    ("roundhouse_store_requests_total", "endpoint, operation, outcome"),
    ("roundhouse_store_tenant_disk_bytes", "tenant"),
    ("roundhouse_tenancy_ledger_", ""),
    ("roundhouse_tenancy_refused_requests_total", "limit, tenant"),
    ("roundhouse_tenancy_compute_microseconds_total", "tenant"),
];

/// Notes what it is told of metrics, and nothing else.
#[derive(Default)]
struct Told(Mutex<BTreeMap<String, Row>>);

struct Row {
    kind: &'static str,
    unit: Option<Unit>,
    help: String,
}

impl Told {
    fn note(&self, kind: &'static str, name: &KeyName, unit: Option<Unit>, help: &SharedString) {
        let row = Row { kind, unit, help: help.to_string() };
        let before = self.0.lock().unwrap().insert(name.as_str().to_owned(), row);
        assert!(before.is_none(), "{} is described twice", name.as_str());
    }
}

impl Recorder for Told {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.note("counter", &name, unit, &help);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.note("gauge", &name, unit, &help);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, help: SharedString) {
        self.note("histogram", &name, unit, &help);
    }

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

fn described() -> BTreeMap<String, Row> {
    let told = Told::default();
    with_local_recorder(&told, super::describe_metrics);
    told.0.into_inner().unwrap()
}

fn labels(name: &str) -> &'static str {
    let all = LABELS.iter().chain(&EXCEPTIONS);
    let fitting = all.filter(|(beginning, _)| name.starts_with(beginning));
    fitting.max_by_key(|(beginning, _)| beginning.len()).map_or("", |(_, labels)| labels)
}

fn unit(name: &str, unit: Option<Unit>) -> &'static str {
    match unit {
        Some(Unit::Count) if name.ends_with("_ratio") => "ratio",
        Some(unit) => unit.as_str(),
        None => panic!("{name} has no unit"),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn the_table_of_metrics_is_what_the_server_registers() {
    let mut table = HEAD.to_owned();
    for (name, row) in described() {
        let help = row.help.trim_end_matches('.').replace('|', "\\|");
        let (kind, unit, labels) = (row.kind, unit(&name, row.unit), labels(&name));
        writeln!(table, "| `{name}` | {kind} | {unit} | {labels} | {help} |").unwrap();
    }
    let path = root().join("deploy/observability/metrics.md");
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, &table).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == table, "{} is not current: set {WRITE}=1 and run this", path.display());
}

#[test]
fn names_say_unit_and_type() {
    for (name, row) in described() {
        assert_eq!(row.kind == "counter", name.ends_with("_total"), "{name} is a {}", row.kind);
        let wanted = match row.unit {
            Some(Unit::Bytes) => "_bytes",
            Some(Unit::Seconds) => "_seconds",
            Some(Unit::Microseconds) => "_microseconds",
            _ => "",
        };
        assert!(name.trim_end_matches("_total").ends_with(wanted), "{name}: {:?}", row.unit);
        assert!(row.help.len() > 8, "{name} has no help");
    }
}

/// Every name that stands in the sources as a text, whoever describes it or does not.
#[test]
fn every_metric_of_the_sources_is_described() {
    let described = described();
    let mut folders = vec![root().join("src")];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|it| it == "rs") && !is_test(&entry) {
                let text = fs::read_to_string(&entry).unwrap();
                for noun in names(&text) {
                    let name = format!("roundhouse_{noun}");
                    assert!(described.contains_key(&name), "{}: {name}", entry.display());
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 100, "only {seen} names were found in the sources");
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("tests"))
}

/// Quoted names of metrics: they end in a type or a unit.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let after = text.split("\"roundhouse_").skip(1);
    let quoted = after.filter_map(|rest| rest.split('"').next());
    quoted.filter(|noun| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let ends = ["_total", "_seconds", "_bytes", "_ratio"];
        noun.chars().all(plain) && ends.iter().any(|end| noun.ends_with(end))
    })
}
