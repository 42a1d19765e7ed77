//! Adapters with labels of their own: of another number than their base's, or where it has none.

use roundhouse_tests::adapters::{headed_adapter, label, labelled_base};
use serde_json::{Value, json};

use super::{hello, place, said, server};

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
