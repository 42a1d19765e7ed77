//! What every metric of the process means: its type, unit and help.

use super::{capture, reload};
use crate::cloudwatch;
use crate::loader::Stages;
use crate::logging;
use crate::{templates, witness};

#[cfg(test)]
mod tests;

/// Registers units and help with the installed recorder, before anything counts.
pub(super) fn describe_metrics() {
    Stages::describe();
    capture::describe();
    logging::describe();
    reload::describe();
    cloudwatch::describe();
    templates::describe();
    witness::describe();
    roundhouse_asynchronous::describe_metrics();
    roundhouse_containers::describe_metrics();
    roundhouse_engine::describe_metrics();
    roundhouse_gateway::describe_metrics();
    roundhouse_residency::describe_metrics();
    roundhouse_serving::describe_metrics();
    roundhouse_store::metrics::describe_metrics();
    roundhouse_tenancy::describe_metrics();
    roundhouse_traces::describe_metrics();
    roundhouse_workers::describe_metrics();
}
