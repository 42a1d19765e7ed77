//! What can be known of a model before it is fetched: its configuration and the headers of
//! its weight files, read from the store by range.

use std::collections::BTreeMap;

use roundhouse_models::{Files, Want, gguf_bytes, header_bytes, wanted, wanted_gguf};
use roundhouse_store::{Artefact, Catalog};
use roundhouse_types::{ErrorKind, Failure};

/// A safetensors file begins with the length of its header: a little-endian `u64`.
const HEADER_LENGTH_BYTES: u64 = 8;

/// Reads from the store what `roundhouse_models::inspect` needs to see.
///
/// # Errors
/// The store's, and `ModelInvalid` for a header that cannot be one.
pub(super) async fn read_remote(catalog: &Catalog, artefact: &Artefact) -> Result<Files, Failure> {
    let sizes: BTreeMap<String, u64> =
        artefact.files.iter().map(|file| (file.path.clone(), file.size)).collect();
    let mut files = Files { sizes, contents: BTreeMap::new(), headers: BTreeMap::new() };
    for (path, want) in wanted(&files.sizes) {
        read(catalog, artefact, path, want, &mut files).await?;
    }
    if let Some((path, want)) = wanted_gguf(&files)? {
        read(catalog, artefact, path, want, &mut files).await?;
    }
    Ok(files)
}

async fn read(
    catalog: &Catalog,
    artefact: &Artefact,
    path: String,
    want: Want,
    files: &mut Files,
) -> Result<(), Failure> {
    match want {
        Want::Whole => {
            let bytes = catalog.read(artefact, &path, None).await?;
            files.contents.insert(path, bytes.to_vec());
        }
        Want::SafetensorsHeader => {
            let size = files.sizes.get(&path).copied().unwrap_or(0);
            let end = HEADER_LENGTH_BYTES.min(size);
            let first = catalog.read(artefact, &path, Some(0..end)).await?;
            let length = header_bytes(&path, &first)?;
            if length > size {
                let message = format!(
                    "{path} of {} has {size} bytes, its header alone wants {length}",
                    artefact.id
                );
                return Err(Failure::new(ErrorKind::ModelInvalid, message));
            }
            let header = catalog.read(artefact, &path, Some(0..length)).await?;
            files.headers.insert(path, header.to_vec());
        }
        Want::GgufHeader => {
            let size = files.sizes.get(&path).copied().unwrap_or(0);
            let mut first = bytes::Bytes::new();
            loop {
                // A header may be megabytes of tokens, and is looked at up to four times.
                let (name, seen) = (path.clone(), first.clone());
                let wanted = super::blocking(move || Ok(gguf_bytes(&name, size, &seen)?));
                let wanted = wanted.await?;
                if wanted <= first.len() as u64 || first.len() as u64 >= size {
                    first.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
                    break;
                }
                first = catalog.read(artefact, &path, Some(0..wanted)).await?;
            }
            files.headers.insert(path, first.to_vec());
        }
    }
    Ok(())
}
