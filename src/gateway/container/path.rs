//! Where a `url` of the container contract may lead.

use std::io::ErrorKind as IoKind;
use std::path::{Component, Path, PathBuf};

use roundhouse_types::{ErrorKind, Failure};

use crate::error::Error;

/// The canonical path of what `field` says: a path below the root, or relative to it, `file://` before
/// it or not. Links are followed and must end below the root too.
///
/// # Errors
/// `InvalidRequest` where it leads elsewhere, `ModelNotFound` where nothing is there.
pub(crate) async fn checked(field: &str, url: &str, root: &Path) -> Result<PathBuf, Error> {
    let outside = || {
        let root = root.display();
        Error::request(format!("{field} must be a path below the models' root folder, {root}"))
    };
    let written = Path::new(url.strip_prefix("file://").unwrap_or(url));
    let climbs = written.components().any(|part| part == Component::ParentDir);
    if url.contains('\0') || climbs {
        return Err(outside());
    }
    let real_root = tokio::fs::canonicalize(root).await.map_err(|error| {
        let message = format!("the models' root folder cannot be read: {error}");
        Error::Failed(Failure::new(ErrorKind::Internal, message))
    })?;
    let joined = root.join(written);
    // Told apart before the disk is asked: what exists elsewhere is nobody's business.
    if !joined.starts_with(root) && !joined.starts_with(&real_root) {
        return Err(outside());
    }
    let real = tokio::fs::canonicalize(&joined).await.map_err(|error| match error.kind() {
        IoKind::NotFound | IoKind::NotADirectory => {
            let message = format!("{field} leads nowhere: there is nothing at {url}");
            Error::Failed(Failure::new(ErrorKind::ModelNotFound, message))
        }
        _ => Error::request(format!("{field} cannot be read: {error}")),
    })?;
    if real.starts_with(&real_root) && real != real_root { Ok(real) } else { Err(outside()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn kind(url: &str, root: &Path) -> ErrorKind {
        checked("url", url, root).await.unwrap_err().kind()
    }

    #[tokio::test]
    async fn a_url_resolves_below_the_root_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("models");
        let model = root.join("abc/model");
        std::fs::create_dir_all(&model).unwrap();
        std::fs::write(folder.path().join("secret"), b"x").unwrap();
        std::os::unix::fs::symlink(folder.path(), root.join("out")).unwrap();
        std::os::unix::fs::symlink(&model, root.join("in")).unwrap();

        let real = model.canonicalize().unwrap();
        let whole = model.to_str().unwrap();
        for good in [whole, &format!("file://{whole}"), "abc/model", "in"] {
            assert_eq!(checked("url", good, &root).await.unwrap(), real, "{good}");
        }
        for bad in ["/etc/passwd", "/nonexistent", "../secret", "abc/../../secret", "out/secret"] {
            assert_eq!(kind(bad, &root).await, ErrorKind::InvalidRequest, "{bad}");
        }
        assert_eq!(kind(root.to_str().unwrap(), &root).await, ErrorKind::InvalidRequest);
        assert_eq!(kind("a\0b", &root).await, ErrorKind::InvalidRequest);
        assert_eq!(kind("abc/none", &root).await, ErrorKind::ModelNotFound);
    }

    #[tokio::test]
    async fn a_root_that_is_a_link_may_be_named_either_way() {
        let folder = tempfile::tempdir().unwrap();
        let real_root = folder.path().join("real");
        std::fs::create_dir_all(real_root.join("m")).unwrap();
        let root = folder.path().join("root");
        std::os::unix::fs::symlink(&real_root, &root).unwrap();
        let real = real_root.join("m").canonicalize().unwrap();
        assert_eq!(checked("url", root.join("m").to_str().unwrap(), &root).await.unwrap(), real);
        assert_eq!(checked("url", real.to_str().unwrap(), &root).await.unwrap(), real);
    }
}
