//! Adapters beside quantised and narrow bases, against the base's own numbers with the adapter
//! merged into them.

use std::collections::BTreeMap;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use roundhouse_models::DtypeSetting;

use super::*;
use crate::support::dir;

/// The weights as a runner with these settings computes with them.
fn rounded(weight: &Tensor, settings: &LoadSettings) -> Tensor {
    let columns = weight.dims().last().copied().unwrap();
    match settings.quantize {
        None => weight.to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap(),
        Some(_) if columns % 32 == 0 => {
            let blocks = QTensor::quantize(weight, GgmlDType::Q8_0).unwrap();
            blocks.dequantize(&Device::Cpu).unwrap()
        }
        Some(_) => weight.to_dtype(DType::F16).unwrap().to_dtype(DType::F32).unwrap(),
    }
}

/// The base as it is computed with, and the adapter on top if `scale` is not zero, as an f32
/// checkpoint.
fn merged(case: &str, base: &str, settings: &LoadSettings, scale: f64) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    std::fs::copy(dir(base).join("config.json"), out.path().join("config.json")).unwrap();
    let load = |path: PathBuf| -> BTreeMap<String, Tensor> {
        candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
    };
    let adapter = load(folder(case).join("adapter_model.safetensors"));
    let adapter =
        |name: String| adapter.get(&name).map(|tensor| tensor.to_dtype(DType::F32).unwrap());
    let tensors = load(dir(base).join("model.safetensors")).into_iter().map(|(name, weight)| {
        if weight.dims().len() < 2 {
            return (name, weight);
        }
        let weight = rounded(&weight, settings);
        let module = name.trim_end_matches(".weight");
        let piece = |which: &str| adapter(format!("base_model.model.{module}.{which}.weight"));
        let weight = match (piece("lora_A"), piece("lora_B")) {
            (Some(a), Some(b)) => (weight + (b.matmul(&a).unwrap() * scale).unwrap()).unwrap(),
            _ => weight,
        };
        (name, weight)
    });
    let tensors = tensors.collect();
    candle_core::safetensors::save(&tensors, out.path().join("model.safetensors")).unwrap();
    out
}

fn open_wide(folder: &tempfile::TempDir) -> Box<dyn ModelRunner> {
    let wide = LoadSettings { dtype: DtypeSetting::F32, ..served() };
    let plan = roundhouse_models::inspect(&read_local(folder.path()).unwrap(), &wide).unwrap();
    let cpu = roundhouse_types::DeviceId::Cpu;
    roundhouse_models::load(folder.path(), &plan, cpu, &Cancel::new()).unwrap().runner
}

/// A narrow base's inputs stay as they are. A quantised one's are rounded to eight bits, so it is
/// itself some way from its own numbers widened: with an adapter it may be no more than three times as far from
/// them with the adapter merged, and the adapter must move logits by more than that.
#[test]
fn adapters_beside_a_quantised_or_narrow_base_equal_merging_into_its_numbers() {
    let q8 = LoadSettings { quantize: Some(Quantize::Q8_0), ..served() };
    let half = LoadSettings { dtype: DtypeSetting::F16, ..served() };
    for (case, scale) in [("llama-bf16", 2.0), ("llama-f16", 1.6)] {
        for settings in [q8, half] {
            let base = "llama-gqa-tied";
            let mut merged_wide = open_wide(&merged(case, base, &settings, scale));
            let mut plain_wide = open_wide(&merged(case, base, &settings, 0.0));
            let mut beside = with(base, &[case.to_owned()], &settings);
            // One row and many: each way of multiplying by narrow weights.
            for length in [1, 7, 40] {
                let tokens: Vec<u32> = (0..length).map(|at| at * 37 % 250).collect();
                let rows = |adapter| vec![named(row(0, 0, &tokens), adapter)];
                let want = step(&mut *merged_wide, rows(None));
                let got = step(&mut *beside.runner, rows(Some(1)));
                let plain = step(&mut *beside.runner, rows(None));
                let plain_want = step(&mut *plain_wide, rows(None));
                let (difference, rounding) =
                    (apart(&got[0], &want[0]), apart(&plain[0], &plain_want[0]));
                let moved = apart(&want[0], &plain_want[0]);
                println!(
                    "{case} {:?} {length}: {difference:.1e}, base {rounding:.1e}, moved {moved:.1e}",
                    settings.quantize
                );
                let bound = LOGITS + settings.quantize.map_or(0.0, |_| 3.0 * rounding);
                assert!(difference <= bound && moved > bound, "{case} {length}: {difference}");
            }
        }
    }
}

#[test]
fn magnitudes_beside_a_quantised_base_are_of_its_own_numbers() {
    let q8 = LoadSettings { quantize: Some(Quantize::Q8_0), ..served() };
    let mut wide = with("llama-mha", &["llama-dora".to_owned()], &served());
    let mut narrow = with("llama-mha", &["llama-dora".to_owned()], &q8);
    let row = || vec![named(row(0, 0, &[7, 8, 9]), Some(1))];
    let [wide, narrow] = [&mut wide, &mut narrow].map(|loaded| step(&mut *loaded.runner, row()));
    // Rounding to eight bits moves logits, but no more than that.
    let difference = apart(&wide[0], &narrow[0]);
    assert!(difference > 1e-4 && difference < 0.5, "{difference}");
}

/// The same base in halves, exactly, computes the same with an adapter that reads its weights.
#[test]
fn magnitudes_beside_halves_are_those_beside_the_same_numbers_in_f32() {
    let base = crate::halves::narrowed("llama-mha", DType::BF16);
    let wide = LoadSettings { dtype: DtypeSetting::F32, ..served() };
    let [halves, wide] = [served(), wide].map(|settings| {
        let plan = roundhouse_models::inspect(&read_local(base.path()).unwrap(), &settings);
        let cpu = roundhouse_types::DeviceId::Cpu;
        let mut loaded =
            roundhouse_models::load(base.path(), &plan.unwrap(), cpu, &Cancel::new()).unwrap();
        for (id, case) in (1..).zip(["llama-dora", "llama-head-saved"]) {
            let adapter = load(case, &loaded);
            loaded.runner.attach(AdapterId(id), adapter.weights).unwrap();
        }
        let row = |index, adapter| named(row(index, 0, &[7, 8, 9]), adapter);
        step(&mut *loaded.runner, vec![row(0, Some(1)), row(1, Some(2)), row(2, None)])
    });
    for (halves, wide) in halves.iter().zip(&wide) {
        assert!(apart(halves, wide) <= LOGITS, "{}", apart(halves, wide));
    }
    assert!(apart(&halves[0], &halves[2]) > LOGITS);
}
