//! Which objects an endpoint may read and write.

use roundhouse_store::{MountConfig, ObjectWriter, StoreUri};
use roundhouse_types::TenantName;

use crate::config::PlaceConfig;

/// What stands for the tenant's name in a prefix.
const TENANT: &str = "{tenant}";

impl PlaceConfig {
    /// A place of a store that is described beside its prefix: `mount.uri` may have `{tenant}` among
    /// its folders.
    ///
    /// # Errors
    /// Where it has it in the bucket's name.
    pub fn new(mount: MountConfig) -> Result<Self, &'static str> {
        let (uri, below) = match &mount.uri {
            StoreUri::S3 { bucket, .. } if bucket.contains(TENANT) => {
                return Err("has {tenant} in the bucket's name");
            }
            StoreUri::S3 { bucket, prefix } => {
                let (root, below) = split(prefix);
                (StoreUri::S3 { bucket: bucket.clone(), prefix: root }, below)
            }
            StoreUri::File { root } => {
                let text = root.to_str().ok_or("is not UTF-8")?;
                let whole = format!("{}/", text.trim_end_matches('/'));
                let (root, below) = split(&whole);
                (StoreUri::File { root: root.into() }, below)
            }
        };
        Ok(Self { root: MountConfig { uri, ..mount }, below })
    }

    /// Whether each tenant has its own part of it.
    pub fn is_by_tenant(&self) -> bool {
        self.below.contains(TENANT)
    }
}

/// A prefix before and from the first folder with a tenant in it.
fn split(prefix: &str) -> (String, String) {
    let Some(at) = prefix.find(TENANT) else {
        return (prefix.to_owned(), String::new());
    };
    let folder = prefix[..at].rfind('/').map_or(0, |slash| slash + 1);
    (prefix[..folder].to_owned(), prefix[folder..].to_owned())
}

/// Objects below one prefix of a connected store. Clones are the same.
#[derive(Clone)]
pub(crate) struct Place {
    store: ObjectWriter,
    /// The URI that keys of the store are below; ends in `/`.
    root: String,
    below: String,
}

impl Place {
    pub(crate) fn over(store: ObjectWriter, config: &PlaceConfig) -> Self {
        let root = format!("{}/", config.root.uri.to_string().trim_end_matches('/'));
        Self { store, root, below: config.below.clone() }
    }

    /// The tenant's part, as keys of the store begin; `None` where it needs a tenant's name and there
    /// is none.
    fn prefix(&self, tenant: Option<&TenantName>) -> Option<String> {
        if !self.below.contains(TENANT) {
            return Some(self.below.clone());
        }
        // No name has a slash or is a dot segment.
        Some(self.below.replace(TENANT, tenant?.as_str()))
    }

    /// The URI of an object in the tenant's part.
    pub(crate) fn uri(&self, tenant: Option<&TenantName>, name: &str) -> Option<String> {
        Some(format!("{}{}{name}", self.root, self.prefix(tenant)?))
    }

    /// The object's key, where it is one in the tenant's part.
    pub(crate) fn key(&self, tenant: Option<&TenantName>, uri: &str) -> Option<String> {
        let key = uri.strip_prefix(&self.root)?;
        let name = key.strip_prefix(&self.prefix(tenant)?)?;
        is_plain(name).then(|| key.to_owned())
    }

    pub(crate) fn store(&self) -> &ObjectWriter {
        &self.store
    }
}

/// Whether it is a relative path of plain segments: none leads upwards.
pub(crate) fn is_plain(path: &str) -> bool {
    let plain = |segment: &str| !segment.is_empty() && segment != "." && segment != "..";
    path.split('/').all(plain) && !path.chars().any(|it| it.is_control() || it == '\\')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use roundhouse_store::RetryConfig;
    use roundhouse_store::testing::MemoryStore;

    use super::*;

    fn place(uri: &str) -> Place {
        let config = PlaceConfig::new(MountConfig::new(uri.parse().unwrap())).unwrap();
        let store = Arc::new(MemoryStore::new(uri));
        let writer = ObjectWriter::over(store, "ep".parse().unwrap(), RetryConfig::default());
        Place::over(writer, &config)
    }

    #[tokio::test]
    async fn a_tenant_reaches_its_own_part_and_nothing_else() {
        let tenant: TenantName = "acme".parse().unwrap();
        let acme = Some(&tenant);
        for (uri, own) in [
            ("s3://bucket/in/{tenant}/", "s3://bucket/in/acme/"),
            ("s3://bucket/{tenant}", "s3://bucket/acme/"),
            ("s3://bucket/in/of-{tenant}/now", "s3://bucket/in/of-acme/now/"),
            ("file:///srv/in/{tenant}", "file:///srv/in/acme/"),
        ] {
            let place = place(uri);
            assert_eq!(place.uri(acme, "x/y").unwrap(), format!("{own}x/y"));
            let key = place.key(acme, &format!("{own}x/y")).unwrap();
            assert!(key.ends_with("x/y") && own.ends_with(key.strip_suffix("x/y").unwrap()));
            for other in [
                own.replace("acme", "other") + "x",
                own.replace("acme", "acme2") + "x",
                own.to_owned(),
                format!("{own}../other/x"),
                format!("{own}a//b"),
                format!("{own}./x"),
                own.replace("acme", "{tenant}") + "x",
                "s3://elsewhere/in/acme/x".to_owned(),
                "https://bucket/in/acme/x".to_owned(),
            ] {
                assert_eq!(place.key(acme, &other), None, "{uri}: {other}");
            }
            assert_eq!(place.uri(None, "x"), None);
            assert_eq!(place.key(None, &format!("{own}x")), None);
        }
    }

    #[tokio::test]
    async fn a_shared_part_is_everybodys() {
        let place = place("s3://bucket/in");
        assert_eq!(place.key(None, "s3://bucket/in/x").as_deref(), Some("x"));
        assert_eq!(place.key(None, "s3://bucket/inner/x"), None);
        assert_eq!(place.uri(None, "x").unwrap(), "s3://bucket/in/x");
    }

    #[test]
    fn no_bucket_is_named_by_a_tenant() {
        let mount = MountConfig::new("s3://of-{tenant}/in/".parse().unwrap());
        assert!(PlaceConfig::new(mount).is_err());
    }
}
