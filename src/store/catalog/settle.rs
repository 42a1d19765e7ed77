//! Whether a folder that was just listed is a version, or still being written.
//!
//! What can be known from listings alone has a limit: an uploader that pauses
//! between two files for longer than the settling time looks finished. Indexes and
//! safetensors lengths (see [`super::whole`]) catch that where there are any; a
//! change of a version that is already known must be quiet for longer, and longer
//! still while some of its weight files are new and some are old.

use std::time::{Duration, SystemTime};

use roundhouse_types::Version;
use tokio::time::Instant;

use super::CatalogConfig;
use crate::{Artefact, RemoteFile};

/// S3 dates a multi-part upload from its beginning; this long after it, it is over.
const MULTIPART_MAX: Duration = Duration::from_secs(3600);
/// Replacing some of several weight files gets this many times the update's time.
const MIXED_WEIGHTS_FACTOR: u32 = 3;

/// Since when a target's listing has looked like this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) version: Version,
    pub(crate) since: Instant,
}

/// How long the listing must still stay as it is; zero when it is a version.
pub(crate) fn still_to_wait(
    listed: &Artefact,
    known: Option<&Artefact>,
    seen_for: Duration,
    store_now: SystemTime,
    config: &CatalogConfig,
) -> Duration {
    let wanted = match known.filter(|known| known.id.version != listed.id.version) {
        None => config.settle,
        Some(known) if mixed_weights(known, listed) => config.update_settle * MIXED_WEIGHTS_FACTOR,
        Some(_) => config.update_settle,
    };
    let quiet = seen_for.max(quiet_for(listed, store_now));
    wanted.saturating_sub(quiet)
}

/// For how long the store's own dates say that nothing was written.
pub(crate) fn quiet_for(listed: &Artefact, store_now: SystemTime) -> Duration {
    let quiet = |file: &RemoteFile| {
        let age = file.modified.and_then(|at| store_now.duration_since(at).ok());
        let age = age.unwrap_or_default();
        // A multi-part tag ends in the number of parts.
        if file.etag.contains('-') && is_md5_like(&file.etag) {
            age.saturating_sub(MULTIPART_MAX)
        } else {
            age
        }
    };
    listed.files.iter().map(quiet).min().unwrap_or_default()
}

/// `<32 hex digits>-<parts>`, as S3 tags multi-part objects.
fn is_md5_like(etag: &str) -> bool {
    etag.split_once('-').is_some_and(|(digest, parts)| {
        digest.len() == 32
            && digest.bytes().all(|b| b.is_ascii_hexdigit())
            && parts.bytes().all(|b| b.is_ascii_digit())
    })
}

/// Whether some weight files are those of the known version and some are not.
fn mixed_weights(known: &Artefact, listed: &Artefact) -> bool {
    let mut weights = listed.files.iter().filter(|file| is_weight(&file.path)).peekable();
    let same = |file: &RemoteFile| {
        known.file(&file.path).is_some_and(|old| old.etag == file.etag && old.size == file.size)
    };
    let Some(first) = weights.next().map(same) else {
        return false;
    };
    weights.any(|file| same(file) != first)
}

fn is_weight(path: &str) -> bool {
    [".safetensors", ".gguf", ".bin", ".pt", ".onnx"].iter().any(|ending| path.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use roundhouse_types::ModelId;

    use super::*;
    use crate::ObjectMeta;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn listing(files: &[(&str, &str, u64)]) -> Artefact {
        let model = ModelId { endpoint: "ep".parse().unwrap(), target: "m".parse().unwrap() };
        let objects: Vec<_> = files
            .iter()
            .map(|(path, etag, age)| ObjectMeta {
                key: format!("m/{path}"),
                size: 1,
                etag: (*etag).into(),
                modified: Some(now() - Duration::from_secs(*age)),
                checksum: None,
            })
            .collect();
        Artefact::new(model, "m/", &objects, None).unwrap()
    }

    fn now() -> SystemTime {
        NOW + Duration::from_secs(1_000_000)
    }

    fn wait(listed: &Artefact, known: Option<&Artefact>, seen: u64) -> u64 {
        let config = CatalogConfig::default();
        still_to_wait(listed, known, Duration::from_secs(seen), now(), &config).as_secs()
    }

    #[test]
    fn a_folder_that_has_long_been_there_needs_one_listing() {
        assert_eq!(wait(&listing(&[("a", "x", 60), ("b", "y", 3)]), None, 0), 0);
        assert_eq!(wait(&listing(&[("a", "x", 60), ("b", "y", 0)]), None, 0), 2);
        assert_eq!(wait(&listing(&[("a", "x", 60), ("b", "y", 0)]), None, 2), 0);
    }

    #[test]
    fn the_date_of_a_multipart_upload_is_its_beginning_and_is_not_trusted() {
        let tag = "0123456789abcdef0123456789abcdef-12";
        assert_eq!(wait(&listing(&[("a", tag, 600)]), None, 0), 2);
        assert_eq!(wait(&listing(&[("a", tag, 600)]), None, 2), 0);
        assert_eq!(wait(&listing(&[("a", tag, 3700)]), None, 0), 0);
    }

    #[test]
    fn a_change_of_a_known_version_must_be_quiet_for_longer() {
        let old = listing(&[("a", "x", 600), ("b", "y", 600)]);
        let new = listing(&[("a", "z", 3), ("b", "y", 600)]);
        assert_eq!(wait(&new, Some(&old), 0), 7);
        assert_eq!(wait(&new, Some(&old), 10), 0);
        assert_eq!(wait(&old, Some(&old), 0), 0);
    }

    #[test]
    fn weights_half_old_and_half_new_wait_longest() {
        let old = listing(&[("1.safetensors", "x", 600), ("2.safetensors", "y", 600)]);
        let half = listing(&[("1.safetensors", "z", 0), ("2.safetensors", "y", 600)]);
        let whole = listing(&[("1.safetensors", "z", 0), ("2.safetensors", "z", 0)]);
        assert_eq!(wait(&half, Some(&old), 0), 30);
        assert_eq!(wait(&whole, Some(&old), 0), 10);
    }
}
