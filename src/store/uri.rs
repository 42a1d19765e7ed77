//! Where a mount's models lie, and how to get at them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::Error;

/// A place that holds models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUri {
    /// `s3://bucket/prefix/`
    S3 {
        /// The bucket, or an access point's alias.
        bucket: String,
        /// Empty, or ends in `/`.
        prefix: String,
    },
    /// `file:///folder/`
    File {
        /// An absolute folder.
        root: PathBuf,
    },
}

impl FromStr for StoreUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fault = |why: &str| Error::Config { uri: text.into(), why: why.into() };
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(fault("no bucket is named, write s3://bucket/prefix/"));
            }
            let prefix = prefix.trim_end_matches('/');
            if prefix.starts_with('/') || prefix.contains("//") {
                return Err(fault("the prefix has an empty segment"));
            }
            let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
            return Ok(Self::S3 { bucket: bucket.into(), prefix });
        }
        if let Some(path) = text.strip_prefix("file://") {
            if !Path::new(path).is_absolute() {
                return Err(fault("the folder is not absolute, write file:///folder/"));
            }
            return Ok(Self::File { root: PathBuf::from(path) });
        }
        let instead = match Path::new(text).is_absolute() {
            true => format!("write file://{}/", text.trim_end_matches('/')),
            false => "write s3://bucket/prefix/, or file:///folder/ for a folder here".to_owned(),
        };
        Err(fault(&format!("it begins with neither s3:// nor file://: {instead}")))
    }
}

impl fmt::Display for StoreUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::File { root } => write!(f, "file://{}", root.display()),
        }
    }
}

/// One place of an endpoint's models: a store with its own way in.
///
/// Credentials come from the AWS chain (environment, profiles, SSO, web identity,
/// containers, instances) and never from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountConfig {
    /// The path prefix in target names under which this store is seen; `None` for
    /// the store that every other name belongs to.
    pub name: Option<String>,
    /// The store.
    pub uri: StoreUri,
    /// The bucket's region; by default the environment's or the profile's.
    pub region: Option<String>,
    /// Another S3 than AWS's, like `http://127.0.0.1:9000`.
    pub endpoint_url: Option<String>,
    /// `http://host/bucket/key` instead of `http://bucket.host/key`. By default on
    /// where the endpoint is not AWS's.
    pub path_style: Option<bool>,
    /// A role to assume with the chain's credentials.
    pub role_arn: Option<String>,
    /// The external id that the role's trust policy asks for.
    pub external_id: Option<String>,
    /// We pay for requests to a bucket of somebody else's.
    pub request_payer: bool,
    /// The account that must own the bucket; requests fail otherwise.
    pub expected_bucket_owner: Option<String>,
}

impl MountConfig {
    /// A mount with everything by default.
    pub fn new(uri: StoreUri) -> Self {
        Self {
            name: None,
            uri,
            region: None,
            endpoint_url: None,
            path_style: None,
            role_arn: None,
            external_id: None,
            request_payer: false,
            expected_bucket_owner: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_uris_are_read_with_and_without_a_trailing_slash() {
        for text in ["s3://bucket/a/b", "s3://bucket/a/b/"] {
            let uri: StoreUri = text.parse().unwrap();
            assert_eq!(uri, StoreUri::S3 { bucket: "bucket".into(), prefix: "a/b/".into() });
        }
        for text in ["s3://bucket", "s3://bucket/"] {
            let uri: StoreUri = text.parse().unwrap();
            assert_eq!(uri, StoreUri::S3 { bucket: "bucket".into(), prefix: String::new() });
        }
        assert_eq!(
            "file:///srv/models/".parse::<StoreUri>().unwrap(),
            StoreUri::File { root: "/srv/models/".into() }
        );
    }

    #[test]
    fn other_schemes_and_nameless_buckets_are_refused() {
        for text in ["", "http://x/", "s3://", "s3:///a", "s3://b//a", "file://a/b", "/a"] {
            assert!(text.parse::<StoreUri>().is_err(), "{text}");
        }
        let refused = |text: &str| text.parse::<StoreUri>().unwrap_err().to_string();
        assert!(refused("/srv/models").ends_with(": write file:///srv/models/"));
        assert!(refused("models").contains("file:///folder/ for a folder here"));
    }
}
