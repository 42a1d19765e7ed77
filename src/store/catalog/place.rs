//! In which store a target lies, and under which key.

use roundhouse_types::TargetName;

use super::reads::Heads;
use super::siblings::Siblings;
use super::{Catalog, Inner};
use crate::remote::Remote;
use crate::{Error, Origin};

/// A store under its name.
pub(super) struct Mount {
    pub(super) name: Option<String>,
    pub(super) remote: Remote,
    /// Of this mount alone: keys and tags of others may be the same.
    pub(super) heads: Heads,
    pub(super) siblings: Siblings,
}

impl Mount {
    /// Where a key lies.
    pub(super) fn origin(&self, key: &str) -> Origin {
        Origin(format!("{}{key}", self.remote.store.identity()))
    }
}

impl Catalog {
    /// Where a target lies; `None` for a name that belongs to no mount.
    pub fn origin(&self, target: &TargetName) -> Option<Origin> {
        self.inner.place(target).ok().map(|(mount, key)| mount.origin(key))
    }
}

impl Inner {
    /// The mount that a target belongs to, and its key there.
    pub(super) fn place<'a>(
        &'a self,
        target: &'a TargetName,
    ) -> Result<(&'a Mount, &'a str), Error> {
        let text = target.as_str();
        for mount in &self.mounts {
            let key = match &mount.name {
                None => Some(text),
                Some(name) => text.strip_prefix(name.as_str()).and_then(|k| k.strip_prefix('/')),
            };
            if let Some(key) = key.filter(|key| !key.is_empty()) {
                return Ok((mount, key));
            }
        }
        let names: Vec<_> = self.mounts.iter().filter_map(|m| m.name.as_deref()).collect();
        Err(Error::ModelNotFound {
            model: self.model(target).to_string(),
            store: format!("any mount (there are: {})", names.join(", ")),
        })
    }
}
