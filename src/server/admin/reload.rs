//! The settings: read again when asked, and how the last reading ended.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use roundhouse_types::{ErrorKind, Failure};

use super::asked::{Bare, Nothing};
use super::{Admin, Refusal};
use crate::app::{Reading, Reload};

/// `GET /admin/v1/reload`: the last reading.
pub(super) async fn last(
    State(admin): State<Arc<Admin>>,
    Query(_): Query<Nothing>,
) -> Result<Json<Reading>, Refusal> {
    Ok(Json((*watch(&admin)?.last()).clone()))
}

/// `POST /admin/v1/reload`: reads the file now. Faults are in the answer, which is no error: the
/// server goes on with what it had.
pub(super) async fn reload(
    State(admin): State<Arc<Admin>>,
    _: Bare,
) -> Result<Json<Reading>, Refusal> {
    Ok(Json(watch(&admin)?.now().await?))
}

fn watch(admin: &Admin) -> Result<&Reload, Failure> {
    admin.reload.as_ref().ok_or_else(|| {
        let message = "the settings come from no file: start the server with --config";
        Failure::new(ErrorKind::InvalidRequest, message)
    })
}
