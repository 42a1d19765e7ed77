//! What a cache finds in its folder when it is opened.

use std::sync::Arc;
use std::time::SystemTime;

use tracing::warn;

use super::layout::{MANIFEST, entries, measure, remove_tree};
use super::ledger::Ledger;
use super::manifest::Manifest;
use super::recipe::{DONORS, Recipe, holds};
use super::share;
use crate::Error;

/// Admits what is whole and deletes the rest. Blocks.
pub(super) fn find_whole(ledger: &Arc<Ledger>) -> Result<(), Error> {
    for endpoint in entries(&ledger.layout.artefacts())? {
        for folder in entries(&endpoint)? {
            let manifest = Manifest::read(&folder).filter(|manifest| manifest.is_whole(&folder));
            let whole = manifest.and_then(|manifest| {
                let recipe = Recipe::read(&folder, &manifest).ok()?;
                Some((manifest, recipe))
            });
            let Some((manifest, recipe)) = whole else {
                warn!(folder = %folder.display(), "not whole, deleted");
                ledger.layout.remove(&folder)?;
                continue;
            };
            let used_at = folder.join(MANIFEST).metadata().and_then(|found| found.modified());
            let used_at = used_at.unwrap_or(SystemTime::UNIX_EPOCH);
            match &recipe {
                Some(recipe) => share::prune(&folder.join(DONORS), recipe)?,
                None => remove_tree(&folder.join(DONORS))?,
            }
            let holds = holds(&folder, &manifest, recipe.as_ref())?;
            ledger.admit((manifest, recipe), folder, holds, used_at, 0);
        }
    }
    Ok(())
}

/// Lists what can be gone on with and deletes the rest. Blocks.
pub(super) fn find_partial(ledger: &Arc<Ledger>) -> Result<(), Error> {
    for folder in entries(&ledger.layout.partials())? {
        let id = Manifest::read(&folder).map(|manifest| manifest.artefact.id);
        let Some(id) = id.filter(|id| ledger.layout.partial(id) == folder) else {
            ledger.layout.remove(&folder)?;
            continue;
        };
        let bytes = measure(&folder)?;
        ledger.leave(id, folder, bytes, 0);
    }
    Ok(())
}
