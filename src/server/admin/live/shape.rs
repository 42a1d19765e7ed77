//! The state as maps by name instead of lists, so that a change names what it is about.

use roundhouse_residency::tenant;
use roundhouse_types::ModelId;
use serde_json::{Map, Value};

/// What `/admin/v1/residency` shows, with devices, residents, copies, loads, failures and containers by name,
/// each model with its tenant, and without what is absent.
pub(super) fn by_name(mut shown: Value) -> Value {
    for device in shown["devices"].as_array_mut().into_iter().flatten() {
        named(device, "residents", version_key);
    }
    named(&mut shown, "devices", |device| text(device, "id").to_owned());
    if shown["host"].is_object() {
        named(&mut shown["host"], "copies", version_key);
    }
    named(&mut shown, "loads", |load| format!("{}@{}", version_key(load), text(load, "device")));
    named(&mut shown, "failed", version_key);
    named(&mut shown, "containers", |it| {
        format!("{}/{}@{}", text(it, "endpoint"), text(it, "name"), text(it, "device"))
    });
    without_nulls(&mut shown);
    shown
}

/// Makes a map of a list.
fn named(parent: &mut Value, list: &str, key: impl Fn(&Value) -> String) {
    let Some(Value::Array(items)) = parent.get_mut(list).map(Value::take) else { return };
    let mut map = Map::with_capacity(items.len());
    for mut item in items {
        let owner = owner(&item);
        if let (Value::Object(item), Some(owner)) = (&mut item, owner) {
            item.insert("tenant".to_owned(), Value::String(owner));
        }
        map.insert(key(&item), item);
    }
    parent[list] = Value::Object(map);
}

fn version_key(item: &Value) -> String {
    let (endpoint, target) = (text(item, "endpoint"), text(item, "target"));
    format!("{endpoint}/{target}@{}", text(item, "version"))
}

fn owner(item: &Value) -> Option<String> {
    let endpoint = text(item, "endpoint").parse().ok()?;
    let target = text(item, "target").parse().ok()?;
    Some(tenant(&ModelId { endpoint, target }).to_owned())
}

fn text<'a>(item: &'a Value, name: &str) -> &'a str {
    item[name].as_str().unwrap_or_default()
}

/// Without members that say nothing: in a change such a one says that it is gone.
pub(super) fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_in_lists_is_found_by_name() {
        let shown = json!({
            "devices": [{"id": "cpu", "residents": [
                {"endpoint": "e", "target": "acme/a", "version": "1", "offered": null}]}],
            "loads": [{"endpoint": "e", "target": "b", "version": "2", "device": null}],
            "containers": [{"endpoint": "e", "name": "c", "pid": null}],
            "failed": [], "disk": null, "waiters": 0,
        });
        let wanted = json!({
            "devices": {"cpu": {"id": "cpu", "residents": {"e/acme/a@1":
                {"endpoint": "e", "target": "acme/a", "version": "1", "tenant": "acme"}}}},
            "loads": {"e/b@2@": {"endpoint": "e", "target": "b", "version": "2", "tenant": ""}},
            "containers": {"e/c@": {"endpoint": "e", "name": "c"}},
            "failed": {}, "waiters": 0,
        });
        assert_eq!(by_name(shown), wanted);
    }
}
