//! The lines as CloudWatch reads them, and whether they say what was.

use metrics::{Recorder, with_local_recorder};
use metrics_exporter_prometheus::PrometheusBuilder;
use roundhouse_types::Tier;
use serde_json::Value;
use uuid::Uuid;

use super::book::Figures;
use super::*;
use crate::config::EmbeddedTo;

fn settings(period: u64, log_group: Option<&str>) -> config::CloudWatch {
    config::CloudWatch {
        to: EmbeddedTo::Stdout,
        namespace: "Roundhouse".into(),
        period: Duration::from_secs(period),
        log_group: log_group.map(Into::into),
    }
}

/// A request that was answered after 5 ms, having waited for one of them.
fn answered(endpoint: &str) -> AccessRecord {
    AccessRecord {
        time: SystemTime::now(),
        request_id: Uuid::nil(),
        trace: None,
        method: http::Method::POST,
        route: "invoke_endpoint",
        tenant: None,
        credential: None,
        endpoint: Some(endpoint.parse().unwrap()),
        target: None,
        alias: None,
        variant: Some("AllTraffic".into()),
        component: None,
        container: None,
        inference_id: None,
        version: Some(roundhouse_types::Version::from_digest("1")),
        tier: Some(Tier::Device),
        queue: Some(Duration::from_millis(1)),
        load: Some(Duration::ZERO),
        first_token: None,
        total: Some(Duration::from_millis(5)),
        tokens_in: None,
        tokens_out: None,
        bytes_in: 0,
        bytes_out: 0,
        status: 200,
        complete: true,
        steps: None,
    }
}

fn named(names: &[&str]) -> Vec<(EndpointName, Vec<Arc<str>>)> {
    names.iter().map(|name| (name.parse().unwrap(), vec!["AllTraffic".into()])).collect()
}

fn lines(book: &Book, names: &[&str]) -> Vec<Value> {
    let (at, machine) = (SystemTime::now(), Figures::new());
    let lines = book.lines(&settings(60, None), at, &named(names), &machine);
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// One metric of an endpoint: its values and how many of each, from whatever line it is in.
fn told(lines: &[Value], endpoint: &str, metric: &str) -> Option<Vec<(f64, u64)>> {
    let line =
        lines.iter().find(|it| it["EndpointName"] == endpoint && it.get(metric).is_some())?;
    let values = line[metric]["Values"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap());
    let counts = line[metric]["Counts"].as_array().unwrap().iter().map(|it| it.as_u64().unwrap());
    Some(values.zip(counts).collect())
}

#[test]
fn requests_are_told_in_sagemakers_names_and_units() {
    let book = Book::default();
    book.ended(&answered("e"));
    let cold = Duration::from_millis(3);
    book.ended(&AccessRecord { tier: Some(Tier::Store), load: Some(cold), ..answered("e") });
    book.ended(&AccessRecord { status: 424, ..answered("e") });
    book.ended(&AccessRecord { status: 404, version: None, tier: None, ..answered("e") });
    book.ended(&AccessRecord { status: 503, version: None, tier: None, ..answered("e") });
    let lines = lines(&book, &["e"]);
    let told = |metric| told(&lines, "e", metric).unwrap_or_else(|| panic!("{metric}: {lines:?}"));
    assert_eq!(told("Invocations"), [(1.0, 5)]);
    assert_eq!(told("InvocationsPerInstance"), [(5.0, 1)], "a server's, once a period");
    assert_eq!(told("Invocation4XXErrors"), [(0.0, 3), (1.0, 2)]);
    assert_eq!(told("Invocation5XXErrors"), [(0.0, 4), (1.0, 1)]);
    assert_eq!(told("InvocationModelErrors"), [(0.0, 4), (1.0, 1)]);
    assert_eq!(told("ModelCacheHit"), [(0.0, 1), (1.0, 2)]);
    assert_eq!(told("ModelLoadingWaitTime"), [(3000.0, 1)]);
    assert_eq!(told("OverheadLatency"), [(1000.0, 2), (4000.0, 1)]);
    assert_eq!(told("ModelLatency"), [(1000.0, 1), (4000.0, 2)]);
}

#[test]
fn only_what_asks_a_model_is_an_invocation() {
    let book = Book::default();
    for (method, route) in [
        ("GET", "model"),
        ("POST", "container_models"),
        ("POST", "model_adapters"),
        ("POST", "invoke_endpoint_async"),
    ] {
        book.ended(&AccessRecord { method: method.parse().unwrap(), route, ..answered("e") });
    }
    book.ended(&AccessRecord { endpoint: None, ..answered("e") });
    let quiet = lines(&book, &["e"]);
    assert_eq!(told(&quiet, "e", "Invocations"), None);
    assert_eq!(told(&quiet, "e", "InvocationsPerInstance"), Some(vec![(0.0, 1)]));
    book.ended(&AccessRecord { route: "container_invoke", ..answered("e") });
    assert_eq!(told(&lines(&book, &["e"]), "e", "Invocations"), Some(vec![(1.0, 1)]));
}

#[test]
fn each_variant_that_nobody_asked_counts_and_what_is_asynchronous_alone_has_none() {
    let book = Arc::new(Book::default());
    let inner = PrometheusBuilder::new().build_recorder();
    let hearing = Hearing { inner, book: book.clone() };
    with_local_recorder(&hearing as &dyn Recorder, || {
        for name in ["later", "both"] {
            metrics::gauge!("roundhouse_async_backlog_requests", "endpoint" => name).set(0.0);
        }
    });
    book.ended(&answered("both"));
    book.ended(&AccessRecord { route: "invoke_deferred", ..answered("later") });
    let two = vec!["a".into(), "b".into()];
    let endpoints = [&named(&["later", "both"])[..], &[("e".parse().unwrap(), two)]].concat();
    let of = || {
        let machine = Figures::new();
        let lines = book.lines(&settings(60, None), SystemTime::now(), &endpoints, &machine);
        let lines = lines.into_iter().filter(|line| line.contains("InvocationsPerInstance"));
        let told = |line: String| {
            let line: Value = serde_json::from_str(&line).unwrap();
            let name = |key: &str| line[key].as_str().unwrap().to_owned();
            let sum = line["InvocationsPerInstance"]["Sum"].as_f64().unwrap();
            (name("EndpointName") + "/" + &name("VariantName"), sum)
        };
        lines.map(told).collect::<Vec<_>>()
    };
    let told = |both: f64| {
        [("both/AllTraffic", both), ("e/a", 0.0), ("e/b", 0.0)]
            .map(|(name, sum): (&str, f64)| (name.to_owned(), sum))
    };
    assert_eq!(of(), told(1.0));
    assert_eq!(of(), told(0.0), "it was asked otherwise before");
}

#[test]
fn what_prometheus_is_told_of_loads_cloudwatch_is_told_as_well() {
    let book = Arc::new(Book::default());
    let inner = PrometheusBuilder::new().build_recorder();
    let handle = inner.handle();
    let hearing = Hearing { inner, book: book.clone() };
    with_local_recorder(&hearing as &dyn Recorder, || {
        let load = "roundhouse_residency_load_seconds";
        metrics::histogram!(load, "endpoint" => "e", "device" => "cpu").record(0.25);
        metrics::counter!("roundhouse_async_processed_total", "endpoint" => "a").increment(2);
        metrics::gauge!("roundhouse_async_backlog_requests", "endpoint" => "a").set(7.0);
        metrics::counter!("roundhouse_residency_loads_total", "endpoint" => "e").increment(1);
    });
    let first = lines(&book, &["e", "a"]);
    assert_eq!(told(&first, "e", "ModelLoadingTime"), Some(vec![(250_000.0, 1)]));
    assert_eq!(told(&first, "a", "InvocationsProcessed"), Some(vec![(1.0, 2)]));
    assert_eq!(told(&first, "a", "ApproximateBacklogSize"), Some(vec![(7.0, 1)]));
    let second = lines(&book, &["e", "a"]);
    assert_eq!(told(&second, "e", "ModelLoadingTime"), None, "each period has its own");
    assert_eq!(told(&second, "a", "ApproximateBacklogSize"), Some(vec![(7.0, 1)]), "a level stays");
    let text = handle.render();
    for series in ["roundhouse_residency_load_seconds", "roundhouse_async_processed_total", "7"] {
        assert!(text.contains(series), "{series} in {text}");
    }
}

#[test]
fn each_figure_has_sagemakers_dimensions() {
    let book = Arc::new(Book::default());
    let inner = PrometheusBuilder::new().build_recorder();
    let hearing = Hearing { inner, book: book.clone() };
    with_local_recorder(&hearing as &dyn Recorder, || {
        metrics::gauge!("roundhouse_async_backlog_requests", "endpoint" => "e").set(7.0);
        metrics::gauge!("roundhouse_async_oldest_seconds", "endpoint" => "e").set(2.0);
        metrics::counter!("roundhouse_async_processed_total", "endpoint" => "e").increment(2);
        let seconds = "roundhouse_gateway_container_seconds";
        metrics::histogram!(seconds, "endpoint" => "e", "container" => "c").record(0.5);
        for (device, used) in [("cuda:0", 30.0), ("cuda:1", 10.0)] {
            metrics::gauge!("roundhouse_card_used_bytes", "device" => device).set(used);
            metrics::gauge!("roundhouse_card_memory_bytes", "device" => device).set(40.0);
        }
    });
    let lines = lines(&book, &["e"]);
    let of = |metric: &str, names: &[&str]| {
        let mut found = lines.iter().filter(|it| it.get(metric).is_some());
        let line = found.next().unwrap_or_else(|| panic!("{metric}: {lines:?}"));
        assert!(found.next().is_none(), "{metric} is told twice");
        let about = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(about["Dimensions"], serde_json::json!([names]), "{metric}");
        told(&lines, "e", metric).unwrap()
    };
    let whole = ["EndpointName"];
    assert_eq!(of("ApproximateBacklogSize", &whole), [(7.0, 1)]);
    assert_eq!(of("ApproximateBacklogSizePerInstance", &whole), [(7.0, 1)]);
    assert_eq!(of("ApproximateAgeOfOldestRequest", &whole), [(2.0, 1)]);
    assert_eq!(of("HasBacklogWithoutCapacity", &whole), [(0.0, 1)]);
    let variant = ["EndpointName", "VariantName"];
    assert_eq!(of("InvocationsProcessed", &variant), [(1.0, 2)]);
    assert_eq!(of("GPUMemoryUtilization", &variant), [(100.0, 1)], "75 % and 25 %");
    let container = ["EndpointName", "VariantName", "ContainerName"];
    assert_eq!(of("ContainerLatency", &container), [(500_000.0, 1)]);
}

#[test]
fn how_busy_cards_were_is_the_mean_of_a_period_added_up_over_cards() {
    let book = Arc::new(Book::default());
    let inner = PrometheusBuilder::new().build_recorder();
    let hearing = Hearing { inner, book: book.clone() };
    let busy = |device: &'static str, part: f64| {
        with_local_recorder(&hearing as &dyn Recorder, || {
            metrics::gauge!("roundhouse_card_busy_ratio", "device" => device).set(part);
        });
    };
    let percent = || told(&lines(&book, &["e"]), "e", "GPUUtilization");
    assert_eq!(percent(), None, "no card has told anything");
    for (device, part) in [("cuda:0", 1.0), ("cuda:0", 0.5), ("cuda:1", 0.75)] {
        busy(device, part);
    }
    assert_eq!(percent(), Some(vec![(150.0, 1)]), "75 % of each");
    assert_eq!(percent(), None, "each period has its own");
    busy("cuda:0", 0.25);
    busy("cuda:1", f64::NAN);
    assert_eq!(percent(), Some(vec![(25.0, 1)]), "the other has ceased to tell");
}

/// What the specification of the format demands of a line.
fn check(line: &str, period: u64) {
    assert!(line.len() < 64 << 10 && !line.contains('\n'), "{} bytes", line.len());
    assert!(!line.contains("-0.0"), "{line}");
    let value: Value = serde_json::from_str(line).unwrap();
    let about = &value["_aws"];
    assert!(about["Timestamp"].as_u64().unwrap() > 1_700_000_000_000, "milliseconds");
    let directives = about["CloudWatchMetrics"].as_array().unwrap();
    for directive in directives {
        assert_eq!(directive["Namespace"], "Roundhouse");
        for name in directive["Dimensions"].as_array().unwrap().iter().flat_map(|it| {
            let set = it.as_array().unwrap();
            assert!(set.len() <= 30);
            set
        }) {
            let dimension = value[name.as_str().unwrap()].as_str().unwrap();
            assert!(!dimension.is_empty() && dimension.len() <= 1024);
        }
        let metrics = directive["Metrics"].as_array().unwrap();
        assert!((1..=100).contains(&metrics.len()));
        for metric in metrics {
            let resolution = if period < 60 { 1 } else { 60 };
            assert_eq!(metric["StorageResolution"], resolution);
            let units = ["None", "Count", "Percent", "Seconds", "Milliseconds", "Microseconds"];
            assert!(units.contains(&metric["Unit"].as_str().unwrap()));
            let target = &value[metric["Name"].as_str().unwrap()];
            let count = |member: &str| target[member].as_array().unwrap().len();
            assert!((1..=100).contains(&count("Values")) && count("Values") == count("Counts"));
        }
    }
}

#[test]
fn every_line_is_one_that_the_format_allows_however_much_there_was() {
    let book = Book::default();
    for number in 0..20_000_u64 {
        let total = Duration::from_micros(number * number * 9);
        let (queue, load) = (Some(total / 3), Some(total / 5));
        let tier = Some(if number % 2 == 0 { Tier::Device } else { Tier::Disk });
        book.ended(&AccessRecord { total: Some(total), queue, load, tier, ..answered("e") });
        for figure in [Figure::ModelLoadingTime, Figure::TimeInBacklog, Figure::ExpiredRequests] {
            book.add("e", figure, f64::from(u32::try_from(number).unwrap()).exp2().sqrt(), 1);
        }
    }
    let machine = Machine::new(Disk::default(), ".".into()).figures();
    for (period, group) in [(60, None), (1, Some("/a/group"))] {
        book.ended(&answered("e"));
        let settings = settings(period, group);
        let lines = book.lines(&settings, SystemTime::now(), &named(&["e", "quiet"]), &machine);
        assert!(lines.len() >= 2);
        for line in &lines {
            check(line, period);
            let value: Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["_aws"]["LogGroupName"].as_str(), group);
        }
        let quiet = lines.iter().find(|line| line.contains("\"quiet\"")).unwrap();
        assert!(quiet.contains("MemoryUtilization") && !quiet.contains("\"Invocations\""));
    }
}

#[test]
fn nobody_makes_up_more_than_is_told() {
    let book = Book::default();
    for number in 0..5000 {
        book.ended(&answered(&format!("e{number}")));
    }
    assert!(lines(&book, &[]).len() <= 1000);
}
