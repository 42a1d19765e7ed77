//! Adapters with labels of their own: of another number than their base's, or where it has none.

use roundhouse_tests::adapters::{headed_adapter, label, labelled_base, labelling_adapter};
use roundhouse_tests::models::decoder;
use serde_json::{Value, json};

use super::{hello, place, resident, said, server};

#[tokio::test(flavor = "multi_thread")]
async fn each_adapter_answers_with_its_own_labels_beside_its_base() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = store.path();
    place(at, "base", &labelled_base(4));
    place(at, "seven", &headed_adapter("base", 7, 5, None));
    place(at, "one", &headed_adapter("base", 1, 0, Some("urgent")));
    let mut bare = labelled_base(4);
    let mut config: Value = serde_json::from_slice(&bare[0].1).unwrap();
    config["architectures"] = json!(["BertModel"]);
    bare[0].1 = serde_json::to_vec(&config).unwrap();
    place(at, "bare", &bare);
    place(at, "three", &headed_adapter("bare", 3, 2, Some("mood")));
    let server = server(at, cache.path(), "").await;
    let all = json!({"inputs": "hello", "parameters": {"top_k": null}});
    let ask = |target: &'static str| server.invoke("default", target, all.clone());
    let labels = |answer: &Value| -> Vec<String> {
        let labels = answer.as_array().unwrap().iter();
        labels.map(|it| it["label"].as_str().unwrap().to_owned()).collect()
    };
    let (base, seven, one, three) =
        tokio::join!(ask("base"), ask("seven"), ask("one"), ask("three"));
    for (answer, first, count) in [
        (&base, label(0), 4),
        (&seven, "LABEL_5".into(), 7),
        (&one, "urgent-0".into(), 1),
        (&three, "mood-2".into(), 3),
    ] {
        assert_eq!(answer.status, 200, "{}", answer.body);
        let told = labels(&answer.json());
        assert_eq!((told.first(), told.len()), (Some(&first), count), "{}", answer.body);
    }
    // The bases do what they did.
    assert_eq!(said(&server.invoke("default", "base", hello()).await), label(0));
    let vector = server.invoke("default", "bare", hello()).await;
    assert_eq!(vector.status, 200, "{}", vector.body);
    assert!(!vector.body.contains("label"), "{}", vector.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_names_labels_on_a_base_that_generates_beside_its_answers() {
    let (store, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = store.path();
    place(at, "base", &decoder(2));
    place(at, "mood", &labelling_adapter("base", "mood", false));
    place(at, "turned", &labelling_adapter("base", "mood", true));
    place(at, "classifier", &labelled_base(4));
    let server = server(at, cache.path(), "").await;
    let written = json!({"inputs": "hello", "parameters": {"max_new_tokens": 24}});
    let all = json!({"inputs": "hello", "parameters": {"top_k": null}});
    let (base, mood, turned) = tokio::join!(
        server.invoke("default", "base", written.clone()),
        server.invoke("default", "mood", all.clone()),
        server.invoke("default", "turned", all.clone()),
    );
    for answer in [&base, &mood, &turned] {
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    assert!(base.json()["generated_text"].is_string(), "{}", base.body);
    let (mood, turned) = (mood.json(), turned.json());
    // Both read the same; the heads differ.
    let told = |answer: &Value, place: usize| {
        let label = answer[place]["label"].as_str().unwrap().to_owned();
        (label, answer[place]["score"].as_f64().unwrap())
    };
    let other = |label: &str| if label == "mood-0" { "mood-1" } else { "mood-0" };
    assert_eq!(mood.as_array().unwrap().len(), 2, "{mood}");
    for place in [0, 1] {
        let ((one, score), (two, same)) = (told(&mood, place), told(&turned, place));
        assert_eq!(two, other(&one), "{mood} {turned}");
        assert!((score - same).abs() < 1e-5, "{mood} {turned}");
    }
    // Beside the base's answers, and from what it knows of a text that it read before.
    for _ in 0..2 {
        let (base_again, mood_again) = tokio::join!(
            server.invoke("default", "base", written.clone()),
            server.invoke("default", "mood", all.clone()),
        );
        assert_eq!(base_again.body, base.body);
        assert!((told(&mood_again.json(), 0).1 - told(&mood, 0).1).abs() < 1e-5);
    }
    let texts: Vec<String> = (0..40).map(|text| "hello ".repeat(1 + text * 3)).collect();
    let many = server.invoke("default", "mood", json!({"inputs": texts})).await;
    assert_eq!(many.status, 200, "{}", many.body);
    assert_eq!(many.json().as_array().unwrap().len(), 40, "{}", many.body);
    let each = |adapters: [&str; 2]| {
        let body = json!({"inputs": ["hello", "hello"], "adapters": adapters});
        server.invoke("default", "base", body)
    };
    let both = each(["mood", "turned"]).await.json();
    assert_eq!((&both[0]["label"], &both[1]["label"]), (&mood[0]["label"], &turned[0]["label"]));
    let mixed = each(["mood", ""]).await;
    assert!(mixed.body.contains("adapters that answer alike"), "{}", mixed.body);
    // What is longer than the context is cut, as of every classifier.
    let long = server.invoke("default", "mood", json!({"inputs": "a".repeat(9000)})).await;
    assert!(long.status == 200 && long.body.contains("mood-"), "{}", long.body);
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hello"}]})),
        ("/v1/completions", json!({"prompt": "hello"})),
        ("/v1/embeddings", json!({"input": "hello"})),
    ] {
        let ask = |model: &str| {
            let mut body = body.clone();
            body["model"] = json!(model);
            server.post(path, body)
        };
        let (refused, as_of_any) = (ask("mood").await, ask("classifier").await);
        assert_eq!(refused.status, as_of_any.status, "{path}: {}", refused.body);
        assert!(refused.body.contains("a classification model"), "{path}: {}", refused.body);
    }
    let residency = server.admin_get("/admin/v1/residency").await.json();
    assert_eq!(resident(&residency, "mood")["base"]["model"]["target"], "base");
    let bytes = |target: &str| resident(&residency, target)["bytes"].clone();
    let head = 4 * 2 * 512;
    assert!(bytes("mood")["weights"].as_u64().unwrap() >= head, "{}", bytes("mood"));
}
