//! More adapters than there is memory for.

use roundhouse_tests::adapters::{label, labelled_base, signed_of_rank};

use super::{LABELS, hello, place, resident, said, server};

/// Adapters that take turns.
const ADAPTERS: usize = 200;
/// How many of them fit beside the base.
const FIT: u64 = 20;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_adapters_take_turns_beside_one_base_and_none_is_refused() {
    let _alone = crate::HEAVY.lock().await;
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    place(store.path(), "base", &labelled_base(LABELS));
    for at in 1..=ADAPTERS {
        place(store.path(), &format!("a/{at}"), &signed_of_rank("base", LABELS, at, 64));
    }
    let probe = server(store.path(), cache.path(), "").await;
    let answer = probe.invoke("default", "a/1", hello()).await;
    assert_eq!(said(&answer), label(1), "{}", answer.body);
    let residency = probe.admin_get("/admin/v1/residency").await.json();
    let total = |target: &str| -> u64 {
        let parts = resident(&residency, target)["bytes"].as_object().unwrap();
        parts.values().map(|part| part.as_u64().unwrap()).sum()
    };
    let (base, one) = (total("base"), total("a/1"));
    drop(probe);
    // Before a base is measured its tokenizer is promised more than it takes.
    let slack = 512 * 1024;
    assert!(slack < 4 * one, "{one} bytes are too few to tell");
    let budget = base + slack + FIT * one;
    let settings = format!("[memory]\nbudget = \"{budget}B\"");
    let server = server(store.path(), cache.path(), &settings).await;
    for round in 0..3 {
        let asked = (1..=ADAPTERS).map(|at| {
            // Another order each time, and not all at once.
            let at = (at * 7 + round * 31) % ADAPTERS + 1;
            let server = &server;
            async move { (at, server.invoke("default", &format!("a/{at}"), hello()).await) }
        });
        let asked: Vec<_> = asked.collect();
        let mut asked = asked.into_iter();
        loop {
            let batch: Vec<_> = asked.by_ref().take(32).collect();
            if batch.is_empty() {
                break;
            }
            for (at, answer) in futures_util::future::join_all(batch).await {
                assert_eq!((answer.status, said(&answer)), (200, &*label(at)), "{}", answer.body);
            }
        }
    }
    let residency = server.admin_get("/admin/v1/residency").await.json();
    let device = &residency["devices"][0];
    assert!(device["charged_bytes"].as_u64().unwrap() <= budget, "{residency}");
    let residents = device["residents"].as_array().unwrap().len() as u64;
    assert!(residents > FIT / 2 && residents <= FIT + 5, "{residency}");
    // The base was loaded once: nothing made it leave.
    let explained = server.admin_get("/admin/v1/explain?target=base").await.json();
    assert!(!explained["decisions"].to_string().contains("evicted"), "{explained}");
    assert_eq!(server.metric("roundhouse_residency_refusals_total").await, 0.0);
    assert_eq!(server.metric("roundhouse_adapters_resident").await, (residents - 1) as f64);
    assert_eq!(server.metric("roundhouse_store_disk_adapters").await, ADAPTERS as f64);
    // Paged: no page is larger than asked for, and together they have everything once.
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/v1/models?limit=50&after={after}")).await.json();
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 50, "{page}");
        names.extend(data.iter().map(|it| it["id"].as_str().unwrap().to_owned()));
        if page["has_more"] != true {
            break;
        }
        after = page["last_id"].as_str().unwrap().to_owned();
    }
    let different: std::collections::BTreeSet<&String> = names.iter().collect();
    assert_eq!((names.len(), different.len()), (ADAPTERS + 1, ADAPTERS + 1));
}
