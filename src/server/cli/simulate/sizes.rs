//! What models take.

use std::collections::HashMap;
use std::path::Path;

use roundhouse_types::{Bytes, ModelId};

use super::lines::{self, Lines};
use super::read::Read;
use crate::error::{Error, count};

/// What every model takes where nothing is known of any.
const ASSUMED: Bytes = Bytes::gib(1);
/// The most that all requests of a trace may want together, and a budget may be: sums of such sizes
/// can be counted, and so can the time that they take.
pub(super) const COUNTED: Bytes = Bytes(1 << 62);

/// Gives each model its size: as named in a file, else as the trace says, else the one for all.
pub(super) fn apply(
    read: &mut Read,
    given: &[String],
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    let (mut for_all, mut named) = (None, HashMap::new());
    for given in given {
        match given.parse::<Bytes>() {
            Ok(size) => for_all = Some(size),
            Err(_) => file(Path::new(given), &mut named)?,
        }
    }
    if for_all.is_none() && named.is_empty() && read.sizes.is_empty() {
        notes.push(format!(
            "the trace does not say what models take: each counts as {ASSUMED}; --sizes tells it"
        ));
        for_all = Some(ASSUMED);
    }
    let size = |model: &ModelId| {
        let named = named.get(model.target.as_str()).or_else(|| named.get(&model.to_string()));
        named.or_else(|| read.sizes.get(model)).copied().or(for_all)
    };
    let models = read.trace.models();
    let unknown: Vec<&ModelId> =
        models.iter().map(|model| &model.id).filter(|model| size(model).is_none()).collect();
    if let Some(first) = unknown.first() {
        let models = count(unknown.len(), "model");
        let why = format!(
            "the sizes of {models} are not known, of {} first; give --sizes SIZE for those that are \
             not named",
            first.target
        );
        return Err(Error::Usage(why));
    }
    let empty = models.iter().find(|model| size(&model.id) == Some(Bytes::ZERO));
    if let Some(empty) = empty {
        return Err(Error::Usage(format!("{} cannot take zero bytes", empty.id.target)));
    }
    let sizes: HashMap<ModelId, Bytes> =
        models.iter().filter_map(|model| Some((model.id.clone(), size(&model.id)?))).collect();
    read.trace.size(|model| sizes.get(model).copied().unwrap_or_default());
    let models = read.trace.models();
    let mut wanted =
        read.trace.requests().iter().map(|request| models[request.model as usize].bytes);
    let sum = wanted.try_fold(Bytes::ZERO, |sum, bytes| sum.checked_add(bytes));
    match sum.filter(|sum| *sum <= COUNTED) {
        Some(_) => Ok(()),
        None => {
            let largest = models.iter().max_by_key(|model| model.bytes);
            let (target, bytes) =
                largest.map(|it| (it.id.target.to_string(), it.bytes)).unwrap_or_default();
            Err(Error::Usage(format!(
                "--sizes: all requests together want more than {COUNTED}, which is too much to \
                 count; the largest model is {target} with {bytes}"
            )))
        }
    }
}

/// Lines of `model=size`; empty ones and those that begin with `#` say nothing.
fn file(path: &Path, named: &mut HashMap<String, Bytes>) -> Result<(), Error> {
    let mut lines = Lines::of(path).map_err(|source| {
        let what = format!("--sizes {} is no size, and no file that can be read", path.display());
        Error::io(what, source)
    })?;
    while let Some(line) = lines.next()? {
        let fault = |why: String| lines::fault(path, line.number, &why);
        let text = line.text.map_err(|why| fault(why.to_owned()))?;
        let line = text.trim();
        if line.starts_with('#') {
            continue;
        }
        // A target may hold `=`, a size does not.
        let (model, size) =
            line.rsplit_once('=').ok_or_else(|| fault(format!("'{line}' is not model=size")))?;
        let size = size.parse::<Bytes>().map_err(|error| fault(error.to_string()))?;
        named.insert(model.trim().to_owned(), size);
    }
    Ok(())
}
