//! Whether a running server's ledger and the memory it really uses agree.

use roundhouse_types::Bytes;
use serde_json::Value;

use super::{Finding, local};
use crate::config::{Listen, Memory};

const CHECK: &str = "ledger";

/// Asks the server that runs with these settings; nothing where none does.
pub(super) async fn look(listen: &Listen, settings: &Memory) -> Option<Finding> {
    let answer = local::ask(listen.admin, "/admin/v1/residency").await?;
    let residency: Value = answer.json().await.ok()?;
    judge(&residency, settings.witness_tolerance)
}

fn judge(residency: &Value, tolerance: u64) -> Option<Finding> {
    let bytes = |value: &Value| value.as_u64().map(Bytes);
    let devices = residency["devices"].as_array()?;
    let sum =
        |field: &str| -> Option<Bytes> { devices.iter().map(|device| bytes(&device[field])).sum() };
    let (budget, configured) = (sum("budget_bytes")?, sum("configured_bytes")?);
    let memory = &residency["memory"];
    let Some(witness) = bytes(&memory["witness_bytes"]) else {
        return Some(Finding::odd(
            CHECK,
            "the server does not look at the memory it really uses",
            "set memory.witness_every",
        ));
    };
    let expected = bytes(&memory["expected_bytes"])?;
    let divergence = memory["divergence_ratio"].as_f64()? * 100.0;
    let seen = format!(
        "the process uses {witness} of memory where the ledger expects {expected} ({divergence:+.1} \
         % of the latter, beside what loads and steps under way explain)"
    );
    if budget < configured {
        let beyond = bytes(&residency["beyond_bytes"]).unwrap_or_default();
        let (why, next) = match beyond > Bytes::ZERO {
            true => (
                format!("they were {beyond} more than could safely be had at the server's start"),
                "lower memory.budget, the devices' budgets or memory.host to what the machine has",
            ),
            false => (
                "others use the memory".to_owned(),
                "see what else runs in the same control group or on the machine, or lower memory.budget",
            ),
        };
        let told = format!("the budgets are {budget} instead of {configured}: {why}; {seen}");
        return Some(Finding::odd(CHECK, told, next));
    }
    #[expect(clippy::cast_precision_loss, reason = "a few percent")]
    if divergence.abs() > tolerance as f64 && witness.0.abs_diff(expected.0) > Bytes::mib(64).0 {
        return Some(Finding::odd(
            CHECK,
            seen,
            "the metric roundhouse_memory_divergence_ratio tells since when; a lasting difference is a fault of ours",
        ));
    }
    Some(Finding::ok(CHECK, seen))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::State;
    use super::*;

    fn residency(budget: u64, witness: u64, ratio: f64) -> Value {
        json!({
            "devices": [{"id": "cpu", "budget_bytes": budget, "configured_bytes": 4000}],
            "memory": {
                "witness_bytes": witness, "expected_bytes": 1_u64 << 30, "divergence_ratio": ratio,
            },
        })
    }

    #[test]
    fn a_shrunken_budget_and_a_divergence_are_odd_and_agreement_is_fine() {
        let state = |value: Value| judge(&value, 10).map(|finding| finding.state);
        assert_eq!(state(residency(4000, 1 << 30, 0.0)), Some(State::Ok));
        assert_eq!(state(residency(3000, 1 << 30, 0.0)), Some(State::Odd));
        assert_eq!(state(residency(4000, 2 << 30, 1.0)), Some(State::Odd));
        let mut beyond = residency(3000, 1 << 30, 0.0);
        beyond["beyond_bytes"] = json!(500);
        let told = judge(&beyond, 10).unwrap();
        assert!(told.message.contains("they were 500 B more than"), "{told:?}");
        // Another program's answer is not ours to judge.
        assert_eq!(state(json!({"devices": 1})), None);
    }
}
