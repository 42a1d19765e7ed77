//! Whether a folder's weight files are all there and as long as they say.

mod absent;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::reads::Heads;
use crate::remote::Remote;
use crate::{Artefact, Error, RemoteFile};

/// The largest header that the safetensors format allows.
const HEADER_MAX: u64 = 100 << 20;
/// The largest index that we read.
const INDEX_MAX: u64 = 64 << 20;
/// Headers that are read at the same time.
const READS: usize = 8;
/// A file of at most this many bytes is read before anybody asks for it.
const SMALL: u64 = 64 << 10;
/// Files of one version that are asked for before anybody wants them, at most.
const AHEAD: usize = 8;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum HeaderEntry {
    Tensor { data_offsets: (u64, u64) },
    Metadata(IgnoredAny),
}

/// Says what is missing or too short, or `None` if nothing is.
///
/// While it looks, it asks for what a load will want next, so that a small version in a store far
/// away costs two round trips: one that lists it, and one that brings all of it.
pub(crate) async fn missing(
    remote: &Remote,
    heads: &Heads,
    artefact: &Artefact,
) -> Result<Option<String>, Error> {
    let (missing, ()) =
        futures_util::join!(fault(remote, heads, artefact), ahead(remote, heads, artefact));
    missing
}

/// Asks for small files and for checksums. What fails is asked for again by who needs it.
async fn ahead(remote: &Remote, heads: &Heads, artefact: &Artefact) {
    let is_small = |file: &&RemoteFile| file.size <= SMALL;
    let small = artefact.files.iter().filter(is_small).take(AHEAD);
    let small = small.map(|file| async {
        let _ = heads.read(remote, file, 0..file.size).await;
    });
    let checksums = artefact.files.iter().take(AHEAD).map(|file| async {
        let _ = heads.checksum(remote, file).await;
    });
    let (small, checksums) = (join_all(small), join_all(checksums));
    futures_util::join!(small, checksums);
}

async fn fault(
    remote: &Remote,
    heads: &Heads,
    artefact: &Artefact,
) -> Result<Option<String>, Error> {
    let indexes = artefact.files.iter().filter(|f| f.path.ends_with(".safetensors.index.json"));
    for file in indexes {
        if let Some(why) = missing_shard(remote, heads, artefact, file).await? {
            return Ok(Some(why));
        }
    }
    if let Some(why) = absent::weights(remote, heads, artefact).await? {
        return Ok(Some(why));
    }
    let weights = artefact.files.iter().filter(|f| f.path.ends_with(".safetensors"));
    let checks: Vec<_> = weights.map(|file| length_fault(remote, heads, file)).collect();
    let faults: Vec<Option<String>> = stream::iter(checks).buffered(READS).try_collect().await?;
    Ok(faults.into_iter().flatten().next())
}

async fn missing_shard(
    remote: &Remote,
    heads: &Heads,
    artefact: &Artefact,
    file: &RemoteFile,
) -> Result<Option<String>, Error> {
    if file.size > INDEX_MAX {
        return Ok(Some(format!("index '{}' is larger than 64 MiB", file.path)));
    }
    let text = heads.read(remote, file, 0..file.size).await?;
    let index: Index = match serde_json::from_slice(&text) {
        Ok(index) => index,
        Err(error) => {
            return Ok(Some(format!("index '{}' cannot be read: {error}", file.path)));
        }
    };
    let folder =
        file.path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    for shard in index.weight_map.values() {
        if artefact.file(&format!("{folder}{shard}")).is_none() {
            return Ok(Some(format!("shard '{shard}' named by '{}' is missing", file.path)));
        }
    }
    Ok(None)
}

/// Compares a safetensors file's size with what its header says.
async fn length_fault(
    remote: &Remote,
    heads: &Heads,
    file: &RemoteFile,
) -> Result<Option<String>, Error> {
    if let Some(fault) = heads.judged(file).await {
        return Ok(fault);
    }
    let short = |wanted: u64| format!("file '{}' has {} of {wanted} bytes", file.path, file.size);
    if file.size < 8 {
        return Ok(Some(short(8)));
    }
    let prefix = heads.read(remote, file, 0..8).await?;
    // A Git LFS pointer is whole, and never grows to what it stands for: whoever reads it refuses it.
    if prefix.as_ref() == b"version " {
        return Ok(None);
    }
    let length = u64::from_le_bytes(prefix.as_ref().try_into().expect("eight bytes were read"));
    if length > HEADER_MAX {
        return Ok(Some(format!("file '{}' has no safetensors header", file.path)));
    }
    if file.size < 8 + length {
        return Ok(Some(short(8 + length)));
    }
    let text = heads.read(remote, file, 8..8 + length).await?;
    let fault = match data_length(&text) {
        None => Some(format!("file '{}' has no safetensors header", file.path)),
        Some(data) if 8 + length + data > file.size => Some(short(8 + length + data)),
        Some(data) if 8 + length + data < file.size => Some(format!(
            "file '{}' has {} bytes and its header describes {}",
            file.path,
            file.size,
            8 + length + data
        )),
        Some(_) => None,
    };
    heads.judge(file, fault.clone()).await;
    Ok(fault)
}

/// The end of the last tensor.
fn data_length(text: &Bytes) -> Option<u64> {
    let header: BTreeMap<Arc<str>, HeaderEntry> = serde_json::from_slice(text).ok()?;
    let mut end = 0;
    for (name, entry) in &header {
        match entry {
            HeaderEntry::Tensor { data_offsets } if data_offsets.1 < u64::MAX / 2 => {
                end = end.max(data_offsets.1);
            }
            HeaderEntry::Metadata(_) if name.as_ref() == "__metadata__" => {}
            _ => return None,
        }
    }
    Some(end)
}
