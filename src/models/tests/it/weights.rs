//! Weight files that are damaged, hostile or incomplete: each is refused by name.

use roundhouse_models::{Cancel, Files, header_bytes, inspect, load, read_local};
use roundhouse_types::{DeviceId, ErrorKind};

use crate::inspection::{files, refusal, with_config};
use crate::support::{dir, settings};

/// A case with its weight file's header replaced, the file's length left as it was.
fn with_header(json: &str) -> Files {
    let mut files = files("llama-mha");
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    files.headers.insert("model.safetensors".into(), header);
    files
}

#[test]
fn hostile_headers_are_refused_and_never_panic() {
    let tensor = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!(
            r#"{{"t": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{from}, {to}]}}}}"#
        )
    };
    let huge = u64::MAX;
    let headers = [
        String::new(),
        "{".into(),
        "[]".into(),
        "null".into(),
        "\u{0}\u{0}".into(),
        r#"{"t": 1}"#.into(),
        tensor("F32", "[4]", 16, 0),
        tensor("F32", "[4]", 8, 24),
        tensor("F32", "[5]", 0, 16),
        tensor("F99", "[4]", 0, 16),
        tensor("F32", "[-4]", 0, 16),
        tensor("F32", &format!("[{huge}, {huge}]"), 0, 16),
        tensor("F32", "[4611686018427387904]", 0, huge),
        tensor("U8", &format!("[{huge}]"), 0, huge),
        tensor("F32", "[1073741824]", 0, 4_294_967_296),
        tensor("F32", "[0]", 0, 0),
        format!(r#"{{"a": {}}}"#, "[".repeat(100_000)),
    ];
    for header in headers {
        refusal(&with_header(&header));
    }
    for first in [&b""[..], b"1234567", &[0; 8], &[255; 8], &200_000_000u64.to_le_bytes()] {
        let error = header_bytes("model.safetensors", first).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ModelInvalid);
        let mut files = files("llama-mha");
        files.headers.insert("model.safetensors".into(), first.to_vec());
        refusal(&files);
    }
    // A header that claims more than was handed over.
    let mut files = files("llama-mha");
    files.headers.get_mut("model.safetensors").unwrap().truncate(100);
    assert!(refusal(&files).contains("truncated"));
}

#[test]
fn a_truncated_file_is_refused_before_and_at_the_load() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir("llama-mha")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let plan = inspect(&read_local(folder.path()).unwrap(), &settings()).unwrap();
    let weights = folder.path().join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    for kept in [whole.len() - 1, whole.len() / 2, 9, 3, 0] {
        std::fs::write(&weights, &whole[..kept]).unwrap();
        let error = load(folder.path(), &plan, DeviceId::Cpu, &Cancel::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ModelInvalid, "{error}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
        let bytes = format!("has {kept} bytes");
        assert!(error.to_string().contains(&bytes), "{error}");
        if let Ok(files) = read_local(folder.path()) {
            assert!(refusal(&files).contains(&bytes));
        }
    }
}

#[test]
fn a_missing_shard_or_tensor_is_named() {
    let mut files = files("llama-sharded");
    let shard = "model-00002-of-00003.safetensors";
    files.sizes.remove(shard);
    files.headers.remove(shard);
    assert!(refusal(&files).contains(shard));

    let untied = with_config("llama-gqa-tied", r#"{"tie_word_embeddings": false}"#);
    let text = refusal(&untied);
    assert!(text.contains("'lm_head.weight' of shape [256, 64]"), "{text}");
    let wider = with_config("llama-mha", r#"{"intermediate_size": 77}"#);
    assert!(refusal(&wider).contains("configuration asks for [77, "));
}
