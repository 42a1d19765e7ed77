//! S3 and what speaks like it, as a store.

mod answer;
mod connect;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ChecksumMode, ChecksumType, Object, RequestPayer};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use self::answer::Context;
use self::connect::Clock;
use crate::write::check_key;
use crate::{
    ArtifactStore, Checksum, ChecksumAlgorithm, Error, ListPage, ListRequest, MountConfig,
    ObjectMeta, ObjectRead, WritableStore,
};

pub use self::connect::default_credentials;

/// Heads that are under way at once for a listing without tags.
const HEADS: usize = 16;

/// A bucket, seen from a prefix.
pub struct S3Store {
    client: Client,
    name: String,
    /// Where it is spoken to, where that is not AWS: without user and password.
    address: Option<String>,
    bucket: String,
    prefix: String,
    region: String,
    payer: Option<RequestPayer>,
    owner: Option<String>,
    clock: Clock,
}

impl S3Store {
    /// Sets up a client with the AWS chain's credentials and the mount's settings.
    /// The bucket is not asked for anything yet.
    pub async fn connect(mount: &MountConfig) -> Result<Self, Error> {
        connect::connect(mount, None).await
    }

    /// The same with keys of one's own in place of the AWS chain's: for a store that
    /// the caller runs itself.
    pub async fn connect_with_keys(
        mount: &MountConfig,
        access_key: &str,
        secret_key: &str,
    ) -> Result<Self, Error> {
        let keys = Credentials::new(access_key, secret_key, None, None, "given");
        connect::connect(mount, Some(SharedCredentialsProvider::new(keys))).await
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// One object of a listing. Some servers list no tags; those are asked for one by one.
    async fn listed(&self, key: &str, object: &Object) -> Result<Option<ObjectMeta>, Error> {
        let context = self.context(key);
        if object.e_tag().is_none() {
            return match self.head(key).await {
                Err(Error::ObjectNotFound { .. }) => Ok(None),
                head => head.map(|meta| Some(ObjectMeta { checksum: None, ..meta })),
            };
        }
        Ok(Some(ObjectMeta {
            key: key.into(),
            size: context.size(object.size())?,
            etag: context.etag(object.e_tag())?,
            modified: time(object.last_modified()),
            checksum: None,
        }))
    }

    async fn head_object(&self, key: &str) -> Result<ObjectMeta, Error> {
        let context = self.context(key);
        let head = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .checksum_mode(ChecksumMode::Enabled)
            .set_request_payer(self.payer.clone())
            .set_expected_bucket_owner(self.owner.clone())
            .send()
            .await
            .map_err(|error| context.error(&error))?;
        Ok(ObjectMeta {
            key: key.into(),
            size: context.size(head.content_length())?,
            etag: context.etag(head.e_tag())?,
            modified: time(head.last_modified()),
            checksum: checksum(&head),
        })
    }

    /// Whether an object has exactly this key: it would be the first with the prefix.
    async fn is_listed(&self, key: &str) -> Result<bool, Error> {
        let context = self.context(key);
        let wanted = self.key(key);
        let page = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(&wanted)
            .max_keys(1)
            .set_request_payer(self.payer.clone())
            .set_expected_bucket_owner(self.owner.clone())
            .send()
            .await
            .map_err(|error| context.list_error(&error))?;
        Ok(page.contents().first().and_then(Object::key) == Some(wanted.as_str()))
    }

    fn context<'a>(&'a self, key: &'a str) -> Context<'a> {
        Context { store: &self.name, region: &self.region, key }
    }
}

#[async_trait]
impl ArtifactStore for S3Store {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> String {
        let name = self.name.trim_end_matches('/');
        self.address.as_ref().map_or_else(|| format!("{name}/"), |at| format!("{at} {name}/"))
    }

    fn now(&self) -> SystemTime {
        self.clock.now()
    }

    fn writes_are_atomic(&self) -> bool {
        true
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, Error> {
        let context = self.context(&request.prefix);
        let limit = i32::try_from(request.limit.clamp(1, 1000)).unwrap_or(1000);
        let page = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.key(&request.prefix))
            .max_keys(limit)
            .set_continuation_token(request.token.clone())
            .set_request_payer(self.payer.clone())
            .set_expected_bucket_owner(self.owner.clone())
            .send()
            .await
            .map_err(|error| context.list_error(&error))?;
        let mut objects = Vec::with_capacity(page.contents().len());
        for object in page.contents() {
            let key = object.key().unwrap_or_default();
            let Some(key) = key.strip_prefix(self.prefix.as_str()) else {
                continue;
            };
            objects.push(self.listed(key, object));
        }
        let objects = stream::iter(objects).buffered(HEADS).try_collect::<Vec<_>>().await?;
        // An object that went away between its listing and its head.
        let objects = objects.into_iter().flatten().collect();
        let next = page.next_continuation_token().filter(|_| page.is_truncated() == Some(true));
        Ok(ListPage { objects, next: next.map(str::to_owned) })
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, Error> {
        match self.head_object(key).await {
            // Some servers stumble over the name of a folder. Their listing does not.
            Err(error @ Error::Unavailable { .. }) => match self.is_listed(key).await {
                Ok(false) => {
                    Err(Error::ObjectNotFound { store: self.name.clone(), key: key.into() })
                }
                _ => Err(error),
            },
            head => head,
        }
    }

    async fn get(&self, key: &str, etag: &str, range: Range<u64>) -> Result<ObjectRead, Error> {
        let context = self.context(key);
        let wanted = format!("bytes {}-{}/", range.start, range.end.saturating_sub(1));
        let answer = self.ask(key, Some(etag), &range).await?;
        // A server that ignores the range would hand out other bytes under its name.
        if !answer.content_range().is_some_and(|range| range.starts_with(&wanted)) {
            let whole = range.start == 0 && context.size(answer.content_length())? == range.end;
            if !whole {
                return Err(context.refused("it answered with another range than asked for"));
            }
        }
        self.opened(key, answer)
    }

    async fn beginning(&self, key: &str, most: u64) -> Result<Option<ObjectRead>, Error> {
        let answer = self.ask(key, None, &(0..most)).await?;
        if !answer.content_range().is_some_and(|range| range.starts_with("bytes 0-")) {
            return Err(self.context(key).refused("it answered with another range than asked for"));
        }
        self.opened(key, answer).map(Some)
    }
}

impl S3Store {
    /// Asks for a range of an object, of one version where a tag is named.
    async fn ask(
        &self,
        key: &str,
        etag: Option<&str>,
        range: &Range<u64>,
    ) -> Result<GetObjectOutput, Error> {
        let request = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .range(format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))
            .set_if_match(etag.map(|etag| format!("\"{etag}\"")))
            .set_request_payer(self.payer.clone())
            .set_expected_bucket_owner(self.owner.clone());
        request.send().await.map_err(|error| self.context(key).error(&error))
    }

    fn opened(&self, key: &str, answer: GetObjectOutput) -> Result<ObjectRead, Error> {
        let context = self.context(key);
        let etag = context.etag(answer.e_tag())?;
        let (store, key) = (self.name.clone(), key.to_owned());
        let stream = stream::unfold(answer.body, move |mut body| {
            let (store, key) = (store.clone(), key.clone());
            async move {
                let chunk = body.next().await?.map_err(|error| Error::Unavailable {
                    store,
                    key,
                    cause: error.to_string(),
                });
                Some((chunk, body))
            }
        });
        Ok(ObjectRead { etag, stream: stream.boxed() })
    }
}

#[async_trait]
impl WritableStore for S3Store {
    async fn put(&self, key: &str, body: Bytes, content_type: Option<&str>) -> Result<(), Error> {
        check_key(&self.name, key)?;
        let context = self.context(key);
        self.client
            .put_object()
            .bucket(&self.bucket)
            .key(self.key(key))
            .body(body.into())
            .set_content_type(content_type.map(str::to_owned))
            .set_request_payer(self.payer.clone())
            .set_expected_bucket_owner(self.owner.clone())
            .send()
            .await
            .map_err(|error| context.error(&error))?;
        Ok(())
    }
}

fn time(time: Option<&DateTime>) -> Option<SystemTime> {
    SystemTime::try_from(*time?).ok()
}

/// The checksum over the whole object, not one over the parts' checksums.
fn checksum(head: &HeadObjectOutput) -> Option<Checksum> {
    let found = [
        (ChecksumAlgorithm::Crc64Nvme, head.checksum_crc64_nvme()),
        (ChecksumAlgorithm::Crc32c, head.checksum_crc32_c()),
        (ChecksumAlgorithm::Sha256, head.checksum_sha256()),
        (ChecksumAlgorithm::Crc32, head.checksum_crc32()),
    ];
    let (algorithm, base64) = found.into_iter().find_map(|(a, text)| Some((a, text?)))?;
    let full = match head.checksum_type() {
        Some(kind) => *kind == ChecksumType::FullObject,
        // Older servers name no type; a checksum over parts carries their number.
        None => !base64.contains('-') && !head.e_tag().is_some_and(|tag| tag.contains('-')),
    };
    full.then(|| Checksum { algorithm, base64: base64.to_owned() })
}
