//! Looks at what lies on this machine without taking the cache's lock or writing anything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use roundhouse_types::{Bytes, Version};

use super::layout::{FILES, entries};
use super::manifest::Manifest;
use super::unpack::{self, Fault};
use crate::{ArchiveKind, Error};

/// The most that is kept of one archive: its beginnings together.
const KEPT_MAX: Bytes = Bytes::mib(256);

/// What is kept of an archive's files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Skimmed {
    /// Every file with its size.
    pub sizes: BTreeMap<String, u64>,
    /// The beginnings that were asked for.
    pub heads: BTreeMap<String, Vec<u8>>,
}

/// Reads through an archive on this machine and keeps the beginnings of files that `head`
/// asks for: it is given a file's path, its size and what is there of it already (nothing at
/// first), and answers how many bytes it wants of it; asked again until it has them. A folder
/// around everything is taken away. Blocks for as long as the archive takes to decompress.
///
/// # Errors
/// When it cannot be read or is not sound, by the same rules as when it is unpacked, and when more
/// than 256 MiB of it would be kept.
pub fn skim(archive: &Path, head: &dyn Fn(&str, u64, &[u8]) -> u64) -> Result<Skimmed, Error> {
    skim_within(archive, head, KEPT_MAX)
}

fn skim_within(
    archive: &Path,
    head: &dyn Fn(&str, u64, &[u8]) -> u64,
    most: Bytes,
) -> Result<Skimmed, Error> {
    let kind = ArchiveKind::of(&archive.to_string_lossy());
    let unsound = |why: String| Error::LocalArchive { path: archive.to_owned(), why };
    let kind = kind.ok_or_else(|| unsound("its name does not end as an archive's".into()))?;
    let source = File::open(archive).map_err(|error| Error::io("open", archive, error))?;
    let mut found = Skimmed::default();
    let mut left = most.0;
    unpack::visit(source, kind, &mut |path, size, reader| {
        let mut kept: Vec<u8> = Vec::new();
        loop {
            let wanted = head(path, size, &kept).min(size);
            let more = wanted.saturating_sub(kept.len() as u64);
            if more == 0 {
                break;
            }
            if more > left {
                let why = format!(
                    "what describes its models is larger than {most}: '{path}' has {more} bytes \
                     more"
                );
                return Err(io::Error::other(why));
            }
            left -= more;
            if reader.take(more).read_to_end(&mut kept)? as u64 != more {
                break;
            }
        }
        if !kept.is_empty() {
            // Reading to an end leaves up to as much again unused behind it.
            kept.shrink_to_fit();
            found.heads.insert(path.to_owned(), kept);
        }
        Ok(found.sizes.insert(path.to_owned(), size).is_none())
    })
    .map_err(|fault| match fault {
        Fault::Archive(why) => unsound(why),
        Fault::Ours(error) => error,
    })?;
    if let Some(top) = unpack::wrapper(found.sizes.keys().map(String::as_str)) {
        let top = top.to_owned();
        let strip = |path: String| path.get(top.len()..).unwrap_or_default().to_owned();
        found.sizes = found.sizes.into_iter().map(|(path, size)| (strip(path), size)).collect();
        found.heads = found.heads.into_iter().map(|(path, head)| (strip(path), head)).collect();
    }
    Ok(found)
}

/// The folder with the files of a version that a cache holds whole, whoever uses the cache.
/// It may vanish while one looks at it. Blocks on the disk.
pub fn remembered(cache: &Path, version: &Version) -> Option<PathBuf> {
    let endpoints = entries(&cache.join("artefacts")).ok()?;
    let folders = endpoints.iter().filter_map(|endpoint| entries(endpoint).ok()).flatten();
    for folder in folders {
        let Some(manifest) = Manifest::read(&folder) else { continue };
        if manifest.artefact.id.version == *version && manifest.is_whole(&folder) {
            return Some(folder.join(FILES));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, body) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(body.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, *body).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn an_archive_is_read_for_names_and_beginnings_only() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("m.tar");
        let mut weights = b"\x02headers and more".to_vec();
        weights.resize(3 << 20, 7);
        let files: [(&str, &[u8]); 2] =
            [("m/config.json", b"{}"), ("m/model.safetensors", &weights)];
        std::fs::write(&archive, packed(&files)).unwrap();
        // The first byte says how many follow.
        let skimmed = skim(&archive, &|path, size, kept| match (path, kept.first()) {
            ("m/config.json", _) => size,
            (_, None) => 1,
            (_, Some(more)) => 1 + u64::from(*more),
        })
        .unwrap();
        let sizes = [("config.json".to_owned(), 2), ("model.safetensors".to_owned(), 3 << 20)];
        assert_eq!(skimmed.sizes, sizes.into());
        assert_eq!(skimmed.heads["config.json"], b"{}");
        assert_eq!(skimmed.heads["model.safetensors"], b"\x02he");
    }

    #[test]
    fn no_more_is_kept_of_an_archive_than_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("m.tar");
        let files: [(&str, &[u8]); 3] = [("a", &[0; 400]), ("b", &[0; 400]), ("c", &[0; 400])];
        std::fs::write(&archive, packed(&files)).unwrap();
        let error = skim_within(&archive, &|_, size, _| size, Bytes(1000)).unwrap_err();
        let told = error.to_string();
        assert!(told.contains("larger than 1000 B: 'c' has 400 bytes more"), "{told}");
        let not_b = |path: &str, size: u64, _: &[u8]| if path == "b" { 0 } else { size };
        let skimmed = skim_within(&archive, &not_b, Bytes(800)).unwrap();
        assert_eq!(skimmed.heads.keys().collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn what_is_unsound_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("m.tar");
        let whole = packed(&[("a", &[7; 4000])]);
        std::fs::write(&archive, &whole[..1500]).unwrap();
        let error = skim(&archive, &|_, _, _| 0).unwrap_err().to_string();
        assert!(error.contains("m.tar"), "{error}");
        std::fs::write(&archive, packed(&[("a", b"1"), ("a", b"2")])).unwrap();
        let error = skim(&archive, &|_, _, _| 0).unwrap_err().to_string();
        assert!(error.contains("twice"), "{error}");
    }
}
