//! Folders of transformers whose weights, or the index of them, are still to come.

use super::*;

#[tokio::test(start_paused = true)]
async fn weights_and_indexes_that_are_still_to_come_are_named() {
    let f = fixture();
    f.memory.put("m/config.json", r#"{"model_type": "llama"}"#);
    f.memory.put("m/tokenizer.json", "{}");
    let error = f.resolve("m").await.unwrap_err();
    let want = "still being uploaded: no weights lie beside 'config.json'";
    assert!(error.to_string().contains(want), "{error}");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::ModelInvalid, RetryHint::Later));
    f.memory.put("m/model.safetensors", safetensors(10));
    sleep(NEGATIVE_MAX).await;
    assert_eq!(f.resolve("m").await.unwrap().files.len(), 3);

    f.old("s/config.json", r#"{"architectures": ["LlamaForCausalLM"]}"#);
    f.old("s/model-00001-of-00001.safetensors", safetensors(10));
    let error = f.resolve("s").await.unwrap_err().to_string();
    assert!(error.contains("the index 'model.safetensors.index.json' of shard"), "{error}");
    let index = r#"{"weight_map":{"w":"model-00001-of-00001.safetensors"}}"#;
    f.old("s/model.safetensors.index.json", index);
    sleep(NEGATIVE_MAX).await;
    assert_eq!(f.resolve("s").await.unwrap().files.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_has_weights_of_another_kind_lacks_none() {
    let f = fixture();
    let transformers = r#"{"model_type": "bert"}"#;
    let others = ["model.onnx", "pytorch_model.bin", "model.json", "code/inference.py"];
    for (index, other) in others.into_iter().chain(["adapter_config.json"]).enumerate() {
        f.old(&format!("{index}/config.json"), transformers);
        f.old(&format!("{index}/{other}"), "x");
        assert_eq!(f.resolve(&index.to_string()).await.unwrap().files.len(), 2, "{other}");
    }
    f.old("own/config.json", r#"{"threshold": 0.5}"#);
    assert_eq!(f.resolve("own").await.unwrap().files.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_adapter_whose_weights_are_still_to_come_is_being_uploaded() {
    let f = fixture();
    f.memory.put("a/adapter_config.json", r#"{"peft_type": "LORA"}"#);
    f.memory.put("a/README.md", "An adapter.");
    // A configuration of its labels says nothing of weights of its own.
    f.memory.put("a/config.json", r#"{"model_type": "llama", "id2label": {"0": "a"}}"#);
    let error = f.resolve("a").await.unwrap_err();
    let want = "still being uploaded: no weights lie beside 'adapter_config.json'";
    assert!(error.to_string().contains(want), "{error}");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::ModelInvalid, RetryHint::Later));
    f.memory.put("a/adapter_model.safetensors", safetensors(10));
    sleep(NEGATIVE_MAX).await;
    assert_eq!(f.resolve("a").await.unwrap().files.len(), 4);
    // Weights of another kind, or of a whole model, and what only has that name.
    let others = ["adapter_model.bin", "model.safetensors", "code/inference.py"];
    for (index, other) in others.into_iter().enumerate() {
        f.old(&format!("{index}/adapter_config.json"), r#"{"peft_type": "LORA"}"#);
        f.old(&format!("{index}/{other}"), safetensors(10));
        assert_eq!(f.resolve(&index.to_string()).await.unwrap().files.len(), 2, "{other}");
    }
    f.old("own/adapter_config.json", r#"{"threshold": 0.5}"#);
    assert_eq!(f.resolve("own").await.unwrap().files.len(), 1);
}
