//! What has changed between two states, as a merge patch (RFC 7396): a member that is `null` in it
//! is gone, others replace or, where both are objects, change what was there. Lists are replaced as
//! a whole. States hold no `null`: it could not be told from an absence.

use serde_json::{Map, Value};

/// What makes `new` of `old`; `None` where they are the same.
pub(super) fn diff(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let mut changes = Map::new();
    for (name, value) in after {
        let change = match before.get(name) {
            Some(known) => diff(known, value),
            None => Some(value.clone()),
        };
        changes.extend(change.map(|change| (name.clone(), change)));
    }
    let gone = before.keys().filter(|name| !after.contains_key(*name));
    changes.extend(gone.map(|name| (name.clone(), Value::Null)));
    (!changes.is_empty()).then_some(Value::Object(changes))
}

/// Makes the new state of the old one.
pub(crate) fn apply(state: &mut Value, change: Value) {
    let Value::Object(changes) = change else {
        *state = change;
        return;
    };
    if !state.is_object() {
        *state = Value::Object(Map::new());
    }
    let Value::Object(members) = state else { return };
    for (name, change) in changes {
        match change {
            // Order is kept: what is shown does not jump about.
            Value::Null => drop(members.shift_remove(&name)),
            change => apply(members.entry(name).or_insert(Value::Null), change),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_change_makes_the_new_state_of_the_old_one() {
        let states = [
            json!({}),
            json!({"devices": {"cpu": {"charged": 1, "residents": {"a": {"leases": 0}}}}}),
            json!({"devices": {"cpu": {"charged": 2, "residents": {}}}, "endpoints": ["x"]}),
            json!({"devices": {"cpu": {"charged": 2, "residents": {"b": {"kept": true}}}}}),
            json!({"devices": {}, "endpoints": ["x", "y"], "loads": {"a": {"state": "queued"}}}),
            json!({"devices": 1, "endpoints": {"x": {"deep": {"deeper": [1, {"a": 2}]}}}}),
        ];
        for old in &states {
            for new in &states {
                let change = diff(old, new);
                assert_eq!(change.is_none(), old == new);
                let mut made = old.clone();
                apply(&mut made, change.unwrap_or_else(|| json!({})));
                assert_eq!(&made, new, "from {old}");
            }
        }
    }

    #[test]
    fn only_what_changed_is_told() {
        let old = json!({"a": {"x": 1, "y": [1, 2]}, "b": {"z": 1}, "c": 1});
        let new = json!({"a": {"x": 1, "y": [2]}, "c": 1});
        assert_eq!(diff(&old, &new), Some(json!({"a": {"y": [2]}, "b": null})));
    }
}
