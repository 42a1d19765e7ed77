//! Keys and values in sixteen bits: what is counted is what is taken, and it is half.

use std::path::Path;

use roundhouse_engine::Row;
use roundhouse_models::{
    Cancel, KvDtype, LoadSettings, ModelPlan, Quantize, inspect, load, read_local,
};
use roundhouse_types::{Bytes, DeviceId};

use crate::support::{dir, open, plan, scattered, settings, step, whole};

fn with(kv_dtype: Option<KvDtype>) -> LoadSettings {
    LoadSettings { kv_dtype, ..settings() }
}

#[test]
fn a_pool_of_halves_takes_half_and_the_plan_says_so_to_the_byte() {
    for (case, dtype, bytes) in [
        ("llama-mha", KvDtype::F32, 4),
        ("llama-mha", KvDtype::F16, 2),
        ("llama-mha", KvDtype::Bf16, 2),
        ("gemma3-two-ropes", KvDtype::F16, 2),
    ] {
        let settings = with(Some(dtype));
        let planned = plan(case, &settings);
        let wide = plan(case, &with(Some(KvDtype::F32)));
        assert_eq!(planned.kv_dtype, Some(dtype));
        assert_eq!(planned.kv_token_bytes, Bytes(wide.kv_token_bytes.0 / 4 * bytes));
        let spec = planned.kv().unwrap();
        let block = planned.kv_token_bytes.0 * spec.block_tokens as u64;
        assert_eq!(spec.chunk_bytes, Bytes(block * spec.chunk as u64));
        let mut loaded = open(case, &settings);
        assert_eq!(loaded.footprint.kv, planned.footprint.kv, "{case}");
        assert_eq!(loaded.footprint.kv, Bytes(spec.chunk_bytes.0 * spec.floor as u64), "{case}");
        let before = loaded.runner.touched();
        let blocks = scattered(0)[..3].to_vec();
        let row = Row { blocks, ..whole(&[7; 40]) };
        step(&mut *loaded.runner, vec![row]);
        assert_eq!(loaded.runner.touched().0 - before.0, 3 * block, "{case}");
    }
}

#[test]
fn what_is_kept_follows_the_weights_unless_somebody_says_otherwise() {
    let kept = |case: &str, settings: &LoadSettings| plan(case, settings).kv_dtype;
    assert_eq!(kept("llama-mha", &settings()), Some(KvDtype::F32));
    for case in ["llama-bf16", "llama-f16", "gguf-q8_0", "gguf-bf16"] {
        assert_eq!(kept(case, &settings()), Some(KvDtype::F16), "{case}");
    }
    let quantised = LoadSettings { quantize: Some(Quantize::Q8_0), ..settings() };
    assert_eq!(kept("llama-gqa-tied", &quantised), Some(KvDtype::F16));
    assert_eq!(kept("bert-plain", &settings()), None);
    assert_eq!(kept("encoder-llama-mean", &settings()), None);
    assert_eq!(kept("llama-f16", &with(Some(KvDtype::Bf16))), Some(KvDtype::Bf16));
}

#[test]
fn an_artefact_may_say_how_its_keys_and_values_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(dir("llama-mha").join(file), folder.path().join(file)).unwrap();
    }
    let asked = |text: &str| -> ModelPlan {
        std::fs::write(folder.path().join("serving.properties"), text).unwrap();
        planned(folder.path(), &with(Some(KvDtype::Bf16)))
    };
    assert_eq!(asked("option.kv_cache_dtype=fp16").kv_dtype, Some(KvDtype::F16));
    assert_eq!(asked("option.kv_cache_dtype=auto").kv_dtype, Some(KvDtype::F32));
    assert_eq!(asked("").kv_dtype, Some(KvDtype::Bf16));
    let unknown = asked("option.kv_cache_dtype=fp8_e5m2");
    assert_eq!((unknown.kv_dtype, unknown.unheeded.len()), (Some(KvDtype::Bf16), 1));
    let plan = asked("option.kv_cache_dtype=fp16");
    let loaded = load(folder.path(), &plan, DeviceId::Cpu, &Cancel::new()).unwrap();
    assert_eq!(loaded.footprint, plan.footprint);
}

fn planned(dir: &Path, settings: &LoadSettings) -> ModelPlan {
    inspect(&read_local(dir).unwrap(), settings).unwrap()
}
