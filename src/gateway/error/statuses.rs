//! Which statuses a face can answer with, for its description.

use std::collections::BTreeMap;

use roundhouse_types::ErrorKind;

use super::denied::Gate;
use super::{Case, Face, row};

/// Everything that the table has rows for.
const CASES: [Case; 27] = [
    Case::Kind(ErrorKind::InvalidRequest),
    Case::Kind(ErrorKind::InvalidInput),
    Case::Kind(ErrorKind::PayloadTooLarge),
    Case::Kind(ErrorKind::UnsupportedMediaType),
    Case::Kind(ErrorKind::EndpointNotFound),
    Case::Kind(ErrorKind::ModelNotFound),
    Case::Kind(ErrorKind::StoreDenied),
    Case::Kind(ErrorKind::ModelInvalid),
    Case::Kind(ErrorKind::TooLarge),
    Case::Kind(ErrorKind::NotReady),
    Case::Kind(ErrorKind::Overloaded),
    Case::Kind(ErrorKind::Throttled),
    Case::Kind(ErrorKind::StoreUnavailable),
    Case::Kind(ErrorKind::ModelFailed),
    Case::Kind(ErrorKind::TimedOut),
    Case::Kind(ErrorKind::Internal),
    Case::Denied(Gate::Missing),
    Case::Denied(Gate::Unknown),
    Case::Denied(Gate::Expired),
    Case::Denied(Gate::Signature),
    Case::Denied(Gate::Incomplete),
    Case::Denied(Gate::Forbidden),
    Case::Denied(Gate::Unavailable),
    Case::UnknownPath,
    Case::WrongMethod,
    Case::SlowBody,
    Case::AlreadyLoaded,
];

/// A face's statuses, each with the types of errors that have it.
pub(crate) fn statuses(face: Face) -> BTreeMap<u16, Vec<&'static str>> {
    let mut found: BTreeMap<u16, Vec<&'static str>> = BTreeMap::new();
    for case in CASES {
        let row = row(face, case);
        let types = found.entry(row.status).or_default();
        if !types.contains(&row.name) {
            types.push(row.name);
        }
    }
    found
}
