//! What readers know of the state, and what has changed in it since.
//!
//! The table is looked at in parts, so that requests are served in between; what is in a part is
//! compared as it is, and only what has changed is put into words. A look at ten thousand
//! residents that rest costs their comparison.

use std::collections::HashMap;
use std::pin::Pin;

use roundhouse_residency::{AfterResident, CopySnapshot, ResidentSnapshot, tenant};
use roundhouse_types::{ArtefactId, DeviceId, Failure, ModelId};
use serde_json::{Map, Value, json};

use super::super::unsayable;
use super::{patch, shape};
use crate::loader::Facts;

/// An answer that is on its way.
type Coming<T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send>>;
/// Looks at the state without residents and copies, as `/admin/v1/residency` shows it.
pub(crate) type OutlineFn = Box<dyn Fn() -> Coming<Value> + Send + Sync>;
/// Looks at a part of the residents and copies.
pub(crate) type PartFn = Box<dyn Fn(Begin) -> Coming<Part> + Send + Sync>;

/// Where a part begins: residents come first, then copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Begin {
    Residents(Option<AfterResident>),
    Copies(Option<ArtefactId>),
}

/// A part of what is held.
pub(crate) struct Part {
    pub(crate) rows: Vec<Row>,
    /// Where the next one begins; `None` behind the last.
    pub(crate) rest: Option<Begin>,
}

/// One resident or copy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Row {
    Resident(DeviceId, Box<ResidentSnapshot>, Option<Facts>),
    Copy(Box<CopySnapshot>),
}

/// Where a row stands in the state: on a device or in the host's memory, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    device: Option<DeviceId>,
    artefact: ArtefactId,
}

impl Row {
    fn place(&self) -> Place {
        let (device, endpoint, target, version) = match self {
            Self::Resident(device, it, _) => (Some(*device), &it.endpoint, &it.target, &it.version),
            Self::Copy(it) => (None, &it.endpoint, &it.target, &it.version),
        };
        let model = ModelId { endpoint: endpoint.clone(), target: target.clone() };
        Place { device, artefact: ArtefactId { model, version: version.clone() } }
    }

    /// As readers are told it: with its tenant, and without what is absent.
    fn shown(&self) -> Result<Value, serde_json::Error> {
        let (mut shown, facts) = match self {
            Self::Resident(_, it, facts) => (serde_json::to_value(it)?, facts.as_ref()),
            Self::Copy(it) => (serde_json::to_value(it)?, None),
        };
        if let Some(facts) = facts {
            shown["serves"] = serde_json::to_value(facts)?;
        }
        shown["tenant"] = json!(tenant(&self.place().artefact.model));
        shape::without_nulls(&mut shown);
        Ok(shown)
    }
}

impl Place {
    /// The rows that it is among; `None` where the state has no such place.
    fn rows<'a>(&self, state: &'a Value) -> Option<&'a Map<String, Value>> {
        let rows = match self.device {
            Some(device) => state.get("devices")?.get(device.to_string())?.get("residents"),
            None => state.get("host")?.get("copies"),
        };
        rows?.as_object()
    }

    /// Where a change of the state says what becomes of it.
    fn told<'a>(&self, change: &'a mut Value) -> &'a mut Value {
        let rows = match self.device {
            Some(device) => &mut change["devices"][device.to_string()]["residents"],
            None => &mut change["host"]["copies"],
        };
        &mut rows[self.name()]
    }

    fn name(&self) -> String {
        let ArtefactId { model, version } = &self.artefact;
        format!("{}/{}@{version}", model.endpoint, model.target)
    }
}

/// Looks, and knows what every reader knows by now.
pub(super) struct View {
    outline: OutlineFn,
    part: PartFn,
    /// The state without rows as it was last seen; absent before the first look.
    seen: Option<Value>,
    /// The rows that were last seen.
    rows: HashMap<Place, Row>,
    /// All of it, as readers are told it.
    state: Value,
}

impl View {
    pub(super) fn new(outline: OutlineFn, part: PartFn) -> Self {
        Self { outline, part, seen: None, rows: HashMap::new(), state: Value::Null }
    }

    /// Whether it was ever looked at.
    pub(super) fn is_known(&self) -> bool {
        self.seen.is_some()
    }

    /// The state as of the last look.
    pub(super) fn state(&self) -> &Value {
        &self.state
    }

    /// Looks again. Returns what makes the new state of the old one; nothing has changed where
    /// it fails.
    pub(super) async fn look(&mut self) -> Result<Value, Failure> {
        let outline = shape::by_name((self.outline)().await?);
        let known = self.seen.as_ref().unwrap_or(&Value::Null);
        let mut change = patch::diff(known, &outline).unwrap_or_else(|| json!({}));
        let mut rows = HashMap::with_capacity(self.rows.len());
        let mut next = Some(Begin::Residents(None));
        while let Some(from) = next {
            let part = (self.part)(from).await?;
            for row in part.rows {
                let place = row.place();
                // What has come since the outline was drawn is seen the next time.
                if place.rows(&outline).is_none() {
                    continue;
                }
                if self.rows.get(&place) != Some(&row) {
                    self.changed(&mut change, &place, &row).map_err(unsayable)?;
                }
                rows.insert(place, row);
            }
            next = part.rest;
        }
        // A device that is gone takes its rows with it.
        let gone = self.rows.keys().filter(|place| !rows.contains_key(*place));
        for place in gone.filter(|place| place.rows(&outline).is_some()) {
            *place.told(&mut change) = Value::Null;
        }
        patch::apply(&mut self.state, change.clone());
        (self.seen, self.rows) = (Some(outline), rows);
        Ok(change)
    }

    /// Says what has changed in a row, or all of it where it is new.
    fn changed(
        &self,
        change: &mut Value,
        place: &Place,
        row: &Row,
    ) -> Result<(), serde_json::Error> {
        let shown = row.shown()?;
        let known = place.rows(&self.state).and_then(|rows| rows.get(&place.name()));
        if let Some(changed) = patch::diff(known.unwrap_or(&Value::Null), &shown) {
            *place.told(change) = changed;
        }
        Ok(())
    }
}
