//! CloudWatch's embedded metrics against what clients did.

use std::collections::BTreeMap;
use std::time::Duration;

use roundhouse_tests::models::signed_classifier;
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};

/// A metric's sum, count and most over all lines of the endpoint.
#[derive(Debug, Default, Clone, PartialEq)]
struct Sum {
    sum: f64,
    count: f64,
    most: f64,
}

/// All that a file of lines says: each has to be whole.
fn told(text: &str) -> BTreeMap<String, Sum> {
    let mut sums = BTreeMap::<String, Sum>::new();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is cut");
    for line in text.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"));
        assert_eq!(
            (&value["EndpointName"], &value["VariantName"]),
            (&json!("default"), &json!("AllTraffic"))
        );
        let directive = &value["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(directive["Namespace"], "Checks");
        assert_eq!(directive["Dimensions"], json!([["EndpointName", "VariantName"]]));
        for metric in directive["Metrics"].as_array().unwrap() {
            assert_eq!(metric["StorageResolution"], 1);
            let target = &value[metric["Name"].as_str().unwrap()];
            let number = |member: &str| target[member].as_f64().unwrap();
            let sum = sums.entry(metric["Name"].as_str().unwrap().to_owned()).or_default();
            sum.sum += number("Sum");
            sum.count += number("Count");
            sum.most = sum.most.max(number("Max"));
        }
    }
    sums
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_metrics_say_what_clients_did() {
    let site = Site::default();
    for name in ["a", "b"] {
        site.put(name, &signed_classifier(name, 1, 0));
    }
    let file = site.at("emf.jsonl");
    let section = format!(
        "[cloudwatch]\nto = \"{}\"\nnamespace = \"Checks\"\nperiod = \"1s\"\n",
        file.display()
    );
    site.configure(&section, "", "");
    let mut server = site.start().await;
    let (mut cold, mut warm, mut took) = (0.0, 0.0, Duration::ZERO);
    for (name, count) in [("a", 5), ("b", 3), ("a", 4)] {
        for _ in 0..count {
            let began = std::time::Instant::now();
            let answer = server.invoke("default", name, json!({"inputs": "hello"})).await;
            took += began.elapsed();
            assert_eq!(answer.status, 200, "{}", answer.body);
            *if answer.header("x-roundhouse-tier") == "device" { &mut warm } else { &mut cold } +=
                1.0;
        }
    }
    for _ in 0..2 {
        let answer = server.invoke("default", "missing", json!({"inputs": "hello"})).await;
        assert!((400..500).contains(&answer.status), "{}", answer.body);
    }
    assert_eq!(server.admin_post("unload", "default", "b").await.status, 200);
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    // A period after the unload: then one model is loaded.
    until("the unload is told", || async { read().contains("\"ModelUnloadingTime\"") }).await;
    let seconds = "roundhouse_gateway_request_seconds_sum";
    let answered = server.metric_with(seconds, "status=\"2xx\"").await;
    server.terminate();
    let status = server.wait(Duration::from_secs(30)).await.expect("it drains");
    assert!(status.success());
    let told = told(&read());
    let of = |name: &str| told.get(name).unwrap_or_else(|| panic!("{name}: {told:?}")).clone();
    assert_eq!((of("Invocations").sum, of("Invocations").count), (14.0, 14.0));
    assert_eq!((of("Invocation4XXErrors").sum, of("Invocation4XXErrors").count), (2.0, 14.0));
    assert_eq!((of("Invocation5XXErrors").sum, of("InvocationModelErrors").sum), (0.0, 0.0));
    assert_eq!((of("ModelCacheHit").sum, of("ModelCacheHit").count), (warm, warm + cold));
    assert!(cold >= 2.0, "{cold}");
    assert_eq!(of("ModelLoadingTime").count, 2.0, "two models were loaded");
    assert!(of("ModelUnloadingTime").count >= 1.0);
    assert_eq!(of("ModelLoadingWaitTime").count, cold);
    assert!(of("LoadedModelCount").most <= 2.0);
    // In microseconds, and all of it within what clients waited.
    let (model, overhead) = (of("ModelLatency"), of("OverheadLatency"));
    assert_eq!((model.count, overhead.count), (12.0, 12.0));
    let inside = Duration::from_secs_f64((model.sum + overhead.sum) / 1e6);
    assert!(inside <= took, "{inside:?} of {took:?}");
    let apart = (inside.as_secs_f64() - answered).abs();
    assert!(answered > 0.0 && apart <= answered / 100.0, "{inside:?}, and {answered} s elsewhere");
    assert!(of("ModelLoadingWaitTime").sum <= overhead.sum + 1.0);
    for name in ["CPUUtilization", "MemoryUtilization", "DiskUtilization"] {
        assert!(of(name).count >= 1.0 && of(name).sum >= 0.0, "{name}");
    }
    assert!(of("MemoryUtilization").most <= 100.0 && of("DiskUtilization").most <= 100.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_away_loses_lines_and_holds_up_nobody() {
    let site = Site::default();
    site.put("a", &signed_classifier("a", 1, 0));
    // Nobody listens there yet, and nobody else will.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let section = format!("[cloudwatch]\nto = \"tcp://127.0.0.1:{port}\"\nperiod = \"1s\"\n");
    site.configure(&section, "", "");
    let server = site.start().await;
    assert_eq!(server.invoke("default", "a", json!({"inputs": "hello"})).await.status, 200);
    let lost = || async {
        let name = "roundhouse_server_cloudwatch_lines_total";
        server.metric_with(name, "outcome=\"lost\"").await > 0.0
    };
    until("lost lines are counted", lost).await;
    let listener = socket.listen(16).unwrap();
    let (mut agent, _) = listener.accept().await.unwrap();
    let mut text = String::new();
    while !text.contains("LoadedModelCount") || !text.ends_with('\n') {
        let mut taken = vec![0; 65536];
        let count = tokio::io::AsyncReadExt::read(&mut agent, &mut taken).await.unwrap();
        assert!(count > 0, "the connection is kept");
        text.push_str(&String::from_utf8_lossy(&taken[..count]));
    }
    for line in text.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|why| panic!("{why}: {line}"));
    }
}
