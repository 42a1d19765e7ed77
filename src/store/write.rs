//! The writing side of a store: whole objects that appear under their names at once.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use roundhouse_types::EndpointName;

use crate::remote::Remote;
use crate::{
    ArtifactStore, Error, FileStore, MountConfig, ObjectMeta, RetryConfig, S3Store, StoreUri,
};

/// Times that a whole object is read again because it changed under the reader.
const CHANGES_MOST: usize = 3;

/// A store that objects can be put into.
///
/// Contract, which `testing::contract_of_writes` checks: an object appears under its name only when
/// it is whole; a later one replaces it as a whole; a name that is no relative path of plain segments
/// is `Refused`. No call retries. A call that was dropped or failed may have written or not, and
/// never half.
#[async_trait]
pub trait WritableStore: ArtifactStore {
    /// Puts an object under a name, in place of the one before.
    async fn put(&self, key: &str, body: Bytes, content_type: Option<&str>) -> Result<(), Error>;
}

/// Reads and writes whole objects of one store, with the patience that [`RetryConfig`] says. Clones
/// are the same.
#[derive(Clone)]
pub struct ObjectWriter {
    store: Arc<dyn WritableStore>,
    remote: Remote,
}

impl ObjectWriter {
    /// Sets up a store as a mount describes it; its bucket is not asked for anything yet.
    /// `endpoint` is what its requests are counted under.
    ///
    /// # Errors
    /// `Config` where the mount cannot be used.
    pub async fn connect(
        mount: &MountConfig,
        endpoint: EndpointName,
        retry: RetryConfig,
    ) -> Result<Self, Error> {
        let store: Arc<dyn WritableStore> = match &mount.uri {
            StoreUri::File { root } => Arc::new(FileStore::new(root)),
            StoreUri::S3 { .. } => Arc::new(S3Store::connect(mount).await?),
        };
        Ok(Self::over(store, endpoint, retry))
    }

    /// The same over a store in hand.
    pub fn over(store: Arc<dyn WritableStore>, endpoint: EndpointName, retry: RetryConfig) -> Self {
        let remote = Remote::new(store.clone(), endpoint, retry);
        Self { store, remote }
    }

    /// What messages call the store, like `s3://bucket/prefix/`.
    pub fn name(&self) -> &str {
        self.store.name()
    }

    /// Puts an object under a name, in place of the one before; it is there for good when this
    /// returns. Dropped before: it may be there or not, and never half.
    ///
    /// # Errors
    /// When the store refuses it, or patience is at its end.
    pub async fn put(
        &self,
        key: &str,
        body: Bytes,
        content_type: Option<&str>,
    ) -> Result<(), Error> {
        let length = body.len() as u64;
        let put = || self.store.put(key, body.clone(), content_type);
        self.remote.put(key, length, put).await
    }

    /// A whole object.
    ///
    /// # Errors
    /// `ObjectTooLarge` where it has more than `most` bytes: nothing of it is read then.
    /// `Changed` where it is replaced again and again.
    pub async fn get(&self, key: &str, most: u64) -> Result<Bytes, Error> {
        let mut changes = 0;
        loop {
            let meta = self.remote.head(key).await?;
            if meta.size > most {
                let (store, key) = (self.name().into(), key.into());
                return Err(Error::ObjectTooLarge { store, key, size: meta.size, most });
            }
            match self.remote.read_whole(key, &meta.etag, meta.size).await {
                Err(Error::Changed { .. }) if changes < CHANGES_MOST => changes += 1,
                outcome => return outcome,
            }
        }
    }

    /// What is known of one object.
    ///
    /// # Errors
    /// `ObjectNotFound`; others when the store cannot say.
    pub async fn head(&self, key: &str) -> Result<ObjectMeta, Error> {
        self.remote.head(key).await
    }
}

/// Whether a key is a relative path of plain segments.
pub(crate) fn check_key(store: &str, key: &str) -> Result<(), Error> {
    let plain = |segment: &str| !segment.is_empty() && segment != "." && segment != "..";
    if key.split('/').all(plain) && !key.chars().any(|it| it.is_control() || it == '\\') {
        return Ok(());
    }
    let cause = "it is no relative path of plain segments".into();
    Err(Error::Refused { store: store.into(), key: key.into(), cause })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{FaultyWrites, MemoryStore, contract_of_writes};

    fn writer(store: Arc<dyn WritableStore>) -> ObjectWriter {
        let retry =
            RetryConfig { attempts: 3, pause: Duration::from_millis(1), ..RetryConfig::default() };
        ObjectWriter::over(store, "ep".parse().unwrap(), retry)
    }

    #[tokio::test]
    async fn a_store_in_memory_keeps_the_contract_of_writes() {
        contract_of_writes(&MemoryStore::new("memory")).await;
    }

    #[tokio::test]
    async fn a_folder_keeps_the_contract_of_writes() {
        let folder = tempfile::tempdir().unwrap();
        // It need not exist.
        contract_of_writes(&FileStore::new(folder.path().join("new"))).await;
    }

    #[tokio::test]
    async fn a_write_leaves_nothing_beside_the_object() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(folder.path());
        for _ in 0..2 {
            store.put("a/b.out", "one".into(), None).await.unwrap();
        }
        let names: Vec<_> = std::fs::read_dir(folder.path().join("a"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, ["b.out"]);
    }

    #[tokio::test]
    async fn a_write_does_not_follow_a_link_out_of_the_folder() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(other.path(), folder.path().join("out")).unwrap();
        let store = FileStore::new(folder.path());
        for key in ["out/a", "out/deeper/a"] {
            let error = store.put(key, "one".into(), None).await.unwrap_err();
            assert!(matches!(error, Error::AccessDenied { .. }), "{error}");
        }
        assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn an_object_beyond_the_limit_is_refused_with_both_sizes() {
        let store = MemoryStore::new("memory");
        store.put("a", vec![1; 11]);
        store.put("none", "");
        let writer = writer(Arc::new(store));
        let error = writer.get("a", 10).await.unwrap_err();
        assert!(matches!(error, Error::ObjectTooLarge { size: 11, most: 10, .. }), "{error}");
        assert_eq!(writer.get("a", 11).await.unwrap().len(), 11);
        assert_eq!(writer.get("none", 0).await.unwrap(), "");
        let error = writer.get("absent", 10).await.unwrap_err();
        assert!(matches!(error, Error::ObjectNotFound { .. }), "{error}");
    }

    #[tokio::test]
    async fn writes_are_tried_again_and_given_up() {
        let faulty = Arc::new(FaultyWrites::new(Arc::new(MemoryStore::new("memory"))));
        let gone = |key: &str| Error::Unavailable {
            store: "memory".into(),
            key: key.into(),
            cause: "it is away".into(),
        };
        faulty.plan("a", gone("a"));
        faulty.plan("a", Error::Throttled { store: "memory".into(), key: "a".into() });
        let writer = writer(faulty.clone());
        writer.put("a", "one".into(), None).await.unwrap();
        assert_eq!(writer.get("a", 10).await.unwrap(), "one");
        assert_eq!(faulty.puts(), ["a", "a", "a"]);
        for _ in 0..3 {
            faulty.plan("b", gone("b"));
        }
        let error = writer.put("b", "two".into(), None).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error}");
        assert!(matches!(writer.head("b").await, Err(Error::ObjectNotFound { .. })));
    }
}
