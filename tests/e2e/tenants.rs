//! What tenants are promised and may take, seen from outside.

use roundhouse_tests::models::{signature, signed_classifier};
use roundhouse_tests::server::Server;
use roundhouse_tests::site::{Site, until};
use serde_json::{Value, json};

async fn ask(server: &Server, target: &str, version: u32) -> String {
    let answer = server.invoke("default", target, json!({"inputs": "hello"})).await;
    assert_eq!(answer.status, 200, "{target}: {}", answer.body);
    assert_eq!(answer.json()[0]["label"], signature(target, version));
    answer.header("x-roundhouse-tier").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floor_holds_against_a_scan_and_a_ceiling_is_told() {
    let site = Site::default();
    let put = |target: &str, version| site.put(target, &signed_classifier(target, version, 2_000));
    let scan: Vec<String> = (0..6).map(|index| format!("scan/m{index}")).collect();
    for (version, target) in ["calm/a", "calm/b", "small/m"].into_iter().enumerate() {
        put(target, u32::try_from(version).unwrap());
    }
    for target in &scan {
        put(target, 9);
    }
    let memory = "[memory]\nshare_tensors = \"off\"\nbudget = ";
    site.configure(&format!("{memory}\"1GiB\""), "", "");
    let probe = site.start().await;
    ask(&probe, "calm/a", 0).await;
    let one = charged(&probe.admin_get("/admin/v1/residency").await.json());
    drop(probe);

    let (budget, floor, ceiling) = (one * 7 / 2, one * 9 / 4, one / 2);
    let top = format!(
        "{memory}\"{budget}B\"\n[[tenant]]\nname = \"calm\"\nfloor = \"{floor}B\"\n\
         [[tenant]]\nname = \"small\"\nceiling = \"{ceiling}B\""
    );
    site.configure(&top, "", "preload = [\"calm/a\", \"calm/b\"]");
    let server = site.start().await;
    until("the preload list is loaded by itself", || async {
        charged(&server.admin_get("/admin/v1/residency").await.json()) >= 2 * one * 9 / 10
    })
    .await;
    for _ in 0..2 {
        for target in &scan {
            ask(&server, target, 9).await;
        }
    }
    for (version, target) in ["calm/a", "calm/b"].into_iter().enumerate() {
        let tier = ask(&server, target, u32::try_from(version).unwrap()).await;
        assert_eq!(tier, "device", "{target} did not leave for the scan");
    }
    let refused = server.invoke("default", "small/m", json!({"inputs": "hello"})).await;
    assert_eq!(refused.status, 424, "{}", refused.body);
    assert_eq!(refused.json()["OriginalStatusCode"], 507);
    assert!(refused.body.contains("tenant 'small' may take"), "{}", refused.body);
}

fn charged(residency: &Value) -> u64 {
    residency["devices"][0]["charged_bytes"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_scans_is_held_to_its_load_bandwidth_and_others_are_not() {
    let site = Site::default();
    let scan: Vec<String> = (0..8).map(|index| format!("scan/m{index}")).collect();
    for (version, target) in scan.iter().map(String::as_str).chain(["calm/a", "calm/b"]).enumerate()
    {
        let version = u32::try_from(version).unwrap();
        site.put(target, &signed_classifier(target, version, 3_000));
    }
    let bytes = 8 * std::fs::metadata(site.at("store/scan/m0/model.safetensors")).unwrap().len();
    let scarce = "[[tenant]]\nname = \"scan\"\nload_bandwidth = \"64KiB/s\"\n";
    site.configure(scarce, "", "");
    let server = site.start().await;
    let body = json!({"inputs": "hello"});
    let asked = scan.iter().map(|target| server.invoke("default", target, body.clone()));
    let all = futures_util::future::join_all(asked);
    let meanwhile = async {
        let told = |reply: &Value| reply["loads"].as_array().is_some_and(|it| it.len() == 8);
        let loads = server.residency_once(told).await["loads"].clone();
        let begun = loads.as_array().unwrap().iter().filter(|it| it["paced_for"] == "scan");
        assert_eq!(begun.count(), 2, "two at a time: {loads}");
        let mut waits = 0;
        for target in &scan {
            let path = format!("/admin/v1/explain?endpoint=default&target={target}");
            let told = server.admin_get(&path).await.json();
            let now = told["now"].as_str().unwrap();
            waits += usize::from(now.contains("waits for its tenant's load bandwidth"));
        }
        assert!(waits >= 5, "{waits}");
        for (version, target) in [(8, "calm/a"), (9, "calm/b")] {
            ask(&server, target, version).await;
        }
        let paced = "roundhouse_store_paced_bytes_total";
        let brought = server.metric_with(paced, "tenant=\"scan\"").await;
        assert!(brought < (bytes / 2) as f64, "{brought} of {bytes}: others came first");
        let usage = server.admin_get("/admin/v1/usage?tenant=calm").await.json();
        let fetched = usage["usage"][0]["bytes_fetched"].as_u64();
        assert!(fetched > Some(bytes / 8), "{usage}");
        let misspelt = server.admin_get("/admin/v1/usage?tenent=calm").await;
        assert_eq!(misspelt.status, 400, "{}", misspelt.body);
        // The settings are read again: what waits goes on by the new ceiling.
        site.configure(&scarce.replace("64KiB", "1GiB"), "", "");
    };
    let (answers, ()) = tokio::join!(all, meanwhile);
    for (target, answer) in scan.iter().zip(answers) {
        assert_eq!(answer.status, 200, "{target}: {}", answer.body);
    }
    let paced = server.metric_with("roundhouse_store_paced_bytes_total", "tenant=\"scan\"").await;
    assert!(paced >= bytes as f64, "{paced} of {bytes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_leaves_others_versions_on_disk_and_a_ceiling_there_is_told() {
    let site = Site::default();
    let scan: Vec<String> = (0..8).map(|index| format!("scan/m{index}")).collect();
    let named = scan.iter().map(String::as_str).chain(["calm/a", "calm/b", "small/m"]);
    for (version, target) in named.enumerate() {
        let version = u32::try_from(version).unwrap();
        site.put(target, &signed_classifier(target, version, 20_000));
    }
    let one = std::fs::metadata(site.at("store/scan/m0/model.safetensors")).unwrap().len();
    let (size, floor) = (one * 5, one * 2);
    let top = |calm: &str| {
        format!(
            "{calm}[[tenant]]\nname = \"small\"\ndisk_ceiling = \"2MiB\"\n\
             [[tenant]]\nname = \"scan\"\ndisk_ceiling = \"{}B\"\n",
            one * 5 / 2
        )
    };
    let configure = |calm: &str| {
        site.configure(&top(calm), "", "");
        // The section of the cache is the site's own.
        let path = site.at("roundhouse.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, text.replace("[cache]\n", &format!("[cache]\nsize = \"{size}B\"\n")))
            .unwrap();
    };
    configure(&format!("[[tenant]]\nname = \"calm\"\ndisk_floor = \"{floor}B\"\n"));
    let server = site.start().await;
    ask(&server, "calm/a", 8).await;
    ask(&server, "calm/b", 9).await;
    for (version, target) in scan.iter().enumerate() {
        ask(&server, target, u32::try_from(version).unwrap()).await;
    }
    let on_disk = async |target: &str| {
        let path = format!("/admin/v1/explain?endpoint=default&target={target}");
        server.admin_get(&path).await.json()["disk"].clone()
    };
    for target in ["calm/a", "calm/b"] {
        assert_eq!(on_disk(target).await["versions"], 1, "{target} did not leave for the scan");
    }
    let calm = on_disk("calm/a").await["tenant"].clone();
    assert_eq!((&calm["floor_bytes"], &calm["tenant"]), (&json!(floor), &json!("calm")));
    assert!(calm["bytes"].as_u64() >= Some(floor), "{calm}");
    let shown = server.metric_with("roundhouse_store_tenant_disk_bytes", "tenant=\"scan\"").await;
    assert!(shown > 0.0 && shown <= (one * 5 / 2) as f64, "{shown}: two of its own at most");
    assert_eq!(on_disk("scan/m0").await["versions"], 0, "its own left");
    let models = server.admin_get("/admin/v1/models?endpoint=default").await.json();
    let listed = models["models"].as_array().unwrap();
    let of =
        |name: &str| listed.iter().find(|it| it["target"] == name).unwrap()["disk_bytes"].clone();
    assert!(of("calm/a").as_u64() >= Some(one) && of("scan/m0").is_null(), "{models}");
    let tenants = server.admin_get("/admin/v1/residency").await.json()["disk"]["tenants"].clone();
    assert_eq!(tenants.as_array().unwrap().len(), 3, "{tenants}");
    let refused = server.invoke("default", "small/m", json!({"inputs": "hello"})).await;
    assert_eq!(refused.status, 424, "{}", refused.body);
    assert!(refused.body.contains("the tenant 'small' may have 2.0 MiB there"), "{}", refused.body);
    // What is said later holds at once: without its floor its versions are like others'.
    configure("[[tenant]]\nname = \"calm\"\ndisk_ceiling = \"1MiB\"\n");
    until("the ceiling is kept to", || async {
        on_disk("calm/a").await["versions"] == 0 || on_disk("calm/b").await["versions"] == 0
    })
    .await;
}
