//! Checkpoints of halves stay halves in memory and compute what they compute widened to f32.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, safetensors};
use roundhouse_models::{
    Cancel, DtypeSetting, KvDtype, LoadSettings, LoadedRunner, inspect, load, read_local,
};
use roundhouse_types::{DeviceId, ModelKind};
use tempfile::TempDir;

use crate::support::{apart, dir, row, settings, step, whole};

/// Between the same numbers in two formats: the order of sums alone differs.
const APART: f32 = 1e-4;

/// A case with its weights rounded to another type.
pub(crate) fn narrowed(case: &str, dtype: DType) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir(case)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let weights = folder.path().join("model.safetensors");
    let tensors = safetensors::load(&weights, &Device::Cpu).unwrap();
    let narrow = |(name, tensor): (String, Tensor)| {
        (name, if tensor.dtype().is_float() { tensor.to_dtype(dtype).unwrap() } else { tensor })
    };
    let tensors: HashMap<String, Tensor> = tensors.into_iter().map(narrow).collect();
    safetensors::save(&tensors, &weights).unwrap();
    folder
}

fn open(folder: &TempDir, dtype: DtypeSetting) -> (LoadedRunner, ModelKind) {
    // What is kept is rounded by neither: the weights alone are compared.
    let settings = LoadSettings { dtype, kv_dtype: Some(KvDtype::F32), ..settings() };
    let plan = inspect(&read_local(folder.path()).unwrap(), &settings).unwrap();
    let loaded = load(folder.path(), &plan, DeviceId::Cpu, &Cancel::new()).unwrap();
    assert_eq!(loaded.footprint, plan.footprint);
    (loaded, plan.kind)
}

/// Stacked, fused, interleaved and transposed weights, tied and untied heads, tables of
/// positions; one row, few and many.
#[test]
fn halves_compute_what_they_do_in_f32_in_half_the_memory() {
    let decoders = [
        "llama-mha",
        "llama-gqa-tied",
        "qwen2-biases",
        "phi3-window-partial",
        "gpt2",
        "gpt-neox-parallel",
        "gemma3-two-ropes",
        "opt",
        "phi",
        "olmo-limits",
        "cohere",
        "falcon-grouped",
        "qwen2-moe-shared",
    ];
    for case in decoders.into_iter().chain(["bert-plain", "bert-single-label"]) {
        for dtype in [DType::BF16, DType::F16] {
            let folder = narrowed(case, dtype);
            let (mut halves, kind) = open(&folder, DtypeSetting::Auto);
            let (mut wide, _) = open(&folder, DtypeSetting::F32);
            let bytes = [&halves, &wide].map(|loaded| loaded.footprint.weights.0);
            assert!(bytes[0] * 100 < bytes[1] * 60, "{case}: {bytes:?}");
            for length in [1, 7, 40] {
                let tokens: Vec<u32> = (2..length + 2).collect();
                let row = || match kind {
                    ModelKind::Generative => row(0, 0, &tokens),
                    _ => whole(&tokens),
                };
                let [got, want] =
                    [&mut halves, &mut wide].map(|it| step(&mut *it.runner, vec![row()]));
                let difference = apart(&got[0], &want[0]);
                assert!(difference <= APART, "{case} {dtype:?} {length}: {difference}");
            }
        }
    }
}

/// Kernels that widen f16 rely on finite numbers; bf16 widens whatever it is.
#[test]
fn an_infinite_weight_in_f16_is_refused_by_its_name() {
    let folder = narrowed("llama-mha", DType::F16);
    let weights = folder.path().join("model.safetensors");
    let mut tensors = safetensors::load(&weights, &Device::Cpu).unwrap();
    let name = "model.layers.1.mlp.down_proj.weight";
    let infinite = (tensors[name].to_dtype(DType::F32).unwrap() * 1e9).unwrap();
    tensors.insert(name.into(), infinite.to_dtype(DType::F16).unwrap());
    safetensors::save(&tensors, &weights).unwrap();
    let plan = inspect(&read_local(folder.path()).unwrap(), &settings()).unwrap();
    let error = load(folder.path(), &plan, DeviceId::Cpu, &Cancel::new()).unwrap_err();
    assert_eq!(error.to_string(), format!("tensor '{name}' has values that are not finite"));
}
