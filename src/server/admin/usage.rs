//! What tenants have used since the server began.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use roundhouse_tenancy::{Key, Totals};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Admin;

/// Whose usage.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    tenant: Option<String>,
}

/// Sums per tenant and model.
pub(super) async fn usage(
    State(admin): State<Arc<Admin>>,
    Query(whose): Query<Whose>,
) -> Json<Value> {
    let wanted = |key: &Key| {
        let tenant = key.tenant.as_ref().map_or("", |tenant| tenant.as_str());
        whose.tenant.as_deref().is_none_or(|wanted| wanted == tenant)
    };
    let sums = admin.accounts.totals();
    let rows: Vec<_> =
        sums.iter().filter(|(key, _)| wanted(key)).map(|(key, totals)| row(key, totals)).collect();
    Json(json!({ "usage": rows }))
}

/// One row, as the ledger's lines have it.
pub(crate) fn row(key: &Key, totals: &Totals) -> Value {
    let model = key.model.as_ref();
    let mut row = json!({
        "tenant": key.tenant,
        "endpoint": model.map(|model| &model.endpoint),
        "target": model.map(|model| &model.target),
    });
    if let (Some(row), Ok(Value::Object(totals))) =
        (row.as_object_mut(), serde_json::to_value(totals))
    {
        row.extend(totals);
    }
    row
}
