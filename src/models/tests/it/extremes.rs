//! Configurations with numbers that no model has: they are refused, or served without a fault of
//! the device, which would end every other model with them.

use roundhouse_engine::{RunnerError, StepPlan};
use roundhouse_models::{Cancel, Files, inspect, load};
use roundhouse_types::{Bytes, DeviceId, ModelKind};
use serde_json::{Value, json};

use crate::inspection::{files, refusal, with_config};
use crate::support::{cases, dir, row, settings, whole};

/// The places of all numbers in a configuration, as pointers.
fn numbers(json: &Value, at: &str, found: &mut Vec<String>) {
    match json {
        Value::Number(_) => found.push(at.to_owned()),
        Value::Object(keys) => {
            for (key, value) in keys {
                numbers(value, &format!("{at}/{key}"), found);
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate().take(2) {
                numbers(value, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// Plans, loads and computes a little where the plan is made. Panics and faults of the device are
/// what must not be.
fn survives(case: &str, files: &Files, what: &str) -> bool {
    let Ok(plan) = inspect(files, &settings()) else { return false };
    if plan.footprint.total() > Bytes::mib(256) {
        // Residency would refuse it as any other large model.
        return false;
    }
    let Ok(loaded) = load(&dir(case), &plan, DeviceId::Cpu, &Cancel::new()) else { return false };
    let mut runner = loaded.runner;
    let rows = match plan.kind {
        ModelKind::Generative => vec![row(0, 0, &[1, 2, 3, 4, 5]), row(0, 5, &[6])],
        _ => vec![whole(&[1, 2, 3]), whole(&[4])],
    };
    for row in rows {
        let outcome = runner.forward(&StepPlan { rows: vec![row] });
        assert!(!matches!(outcome, Err(RunnerError::Device(_))), "{case}, {what}: {outcome:?}");
    }
    true
}

#[test]
fn no_number_of_a_configuration_is_a_fault_of_the_device() {
    let extremes = [
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(-1),
        json!(0.5),
        json!(1e-300),
        json!(1e300),
        json!(u32::MAX),
        json!(u32::MAX - 1),
        json!(1_u64 << 32),
        json!(i64::MAX),
        json!(u64::MAX),
        Value::Null,
    ];
    let mut served = 0;
    for case in cases("").into_iter().filter(|case| !case.starts_with("gguf")) {
        let original = files(&case);
        let json: Value = serde_json::from_slice(&original.contents["config.json"]).unwrap();
        let mut places = Vec::new();
        numbers(&json, "", &mut places);
        for at in ["/head_dim", "/partial_rotary_factor", "/sliding_window", "/rope_theta"] {
            if json.pointer(at).is_none() {
                places.push(at.to_owned());
            }
        }
        for at in places {
            for extreme in &extremes {
                let mut json = json.clone();
                match json.pointer_mut(&at) {
                    Some(place) => *place = extreme.clone(),
                    None => json[&at[1..]] = extreme.clone(),
                }
                let mut changed = original.clone();
                changed.contents.insert("config.json".into(), serde_json::to_vec(&json).unwrap());
                served += usize::from(survives(&case, &changed, &format!("{at} is {extreme}")));
            }
        }
    }
    assert!(served > 100, "{served} were served");
}

#[test]
fn heads_that_no_row_could_hold_are_refused() {
    for (case, heads) in [
        ("gpt2", "n_head"),
        ("phi3-window-partial", "num_attention_heads"),
        ("gpt-neox-parallel", "num_attention_heads"),
    ] {
        let most = u32::MAX - 1;
        let change = json!({heads: most, "num_key_value_heads": most, "head_dim": most});
        let text = refusal(&with_config(case, &change.to_string()));
        assert!(text.contains("heads of"), "{case}: {text}");
    }
}

#[test]
fn a_changed_byte_of_a_gguf_header_is_no_fault_of_the_device() {
    let (mut state, mut served) = (7_u64, 0);
    let mut next = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for case in cases("gguf") {
        let original = files(&case);
        let path = original.headers.keys().next().unwrap();
        for _ in 0..400 {
            let mut changed = original.clone();
            let header = changed.headers.get_mut(path).unwrap();
            let at = next(header.len());
            header[at] = [0, 1, 0x7f, 0xff, next(256) as u8][next(5)];
            served += usize::from(survives(&case, &changed, &format!("byte {at}")));
        }
    }
    assert!(served > 100, "{served} were served");
}
