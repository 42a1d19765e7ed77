//! A client as a mount describes it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::imds;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{
    ConfigBag, Intercept, RequestChecksumCalculation, ResponseChecksumValidation, RuntimeComponents,
};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::RequestPayer;
use aws_types::service_config::ServiceConfigKey;

use super::S3Store;
use crate::{Error, MountConfig, StoreUri};

/// Where no instance metadata service answers, it must not hold up anybody.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// S3-compatible servers mostly do not care; SigV4 needs some region.
const REGION_OF_OTHERS: &str = "us-east-1";

pub(super) async fn connect(
    mount: &MountConfig,
    keys: Option<SharedCredentialsProvider>,
) -> Result<S3Store, Error> {
    let StoreUri::S3 { bucket, prefix } = &mount.uri else {
        return Err(Error::Config { uri: mount.uri.to_string(), why: "it is not on S3".into() });
    };
    let custom_endpoint = mount.endpoint_url.is_some() || environment_names_endpoint();
    let Some(region) = region(mount, custom_endpoint).await else {
        let why = "no region is known: set the mount's region or AWS_REGION";
        return Err(Error::Config { uri: mount.uri.to_string(), why: why.into() });
    };
    let shared = shared_config(region.clone(), keys).await;
    let clock = Clock::default();
    let mut config = aws_sdk_s3::config::Builder::from(&shared)
        .force_path_style(mount.path_style.unwrap_or(custom_endpoint))
        // `Remote` owns the patience.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Checksums are over whole objects and we read ranges.
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .interceptor(clock.clone());
    if let Some(url) = &mount.endpoint_url {
        config = config.endpoint_url(url);
    }
    if let Some(role) = &mount.role_arn {
        let mut builder = AssumeRoleProvider::builder(role)
            .session_name("roundhouse")
            .region(region.clone())
            .configure(&shared);
        if let Some(id) = &mount.external_id {
            builder = builder.external_id(id);
        }
        config = config.credentials_provider(SharedCredentialsProvider::new(builder.build().await));
    }
    Ok(S3Store {
        client: Client::from_conf(config.build()),
        name: mount.uri.to_string(),
        address: address(mount, &shared),
        bucket: bucket.clone(),
        prefix: prefix.clone(),
        region: region.to_string(),
        payer: mount.request_payer.then_some(RequestPayer::Requester),
        owner: mount.expected_bucket_owner.clone(),
        clock,
    })
}

/// The chain's environment, read for the default of the path style only.
fn environment_names_endpoint() -> bool {
    ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// Where requests go, where that is not AWS, as the client finds it: `scheme://host:port/path`, without
/// the port that the scheme has anyway.
pub(super) fn address(mount: &MountConfig, shared: &SdkConfig) -> Option<String> {
    // What the client asks: the variables, and the profile's services.
    let key = ServiceConfigKey::builder().service_id("S3");
    let key = key.env("AWS_ENDPOINT_URL").profile("endpoint_url").build();
    let of_service = || shared.service_config()?.load_config(key.ok()?);
    let found = mount.endpoint_url.clone().or_else(of_service);
    let found = found.or_else(|| shared.endpoint_url().map(str::to_owned))?;
    let (scheme, rest) = found.split_once("://").unwrap_or(("", &found));
    let end = rest.find('/').unwrap_or(rest.len());
    let (scheme, host) = (scheme.to_lowercase(), rest[..end].to_lowercase());
    let host = host.rsplit('@').next().unwrap_or_default();
    let port = match scheme.as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let host = host.strip_suffix(port).unwrap_or(host);
    let path = rest[end..].trim_end_matches('/');
    Some(format!("{scheme}://{host}{path}"))
}

async fn region(mount: &MountConfig, custom_endpoint: bool) -> Option<Region> {
    let chain = RegionProviderChain::first_try(mount.region.clone().map(Region::new))
        .or_else(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new());
    if custom_endpoint {
        return chain.or_else(Region::new(REGION_OF_OTHERS)).region().await;
    }
    if let Some(region) = chain.region().await {
        return Some(region);
    }
    let metadata = ImdsRegionProvider::builder().imds_client(metadata_client()).build();
    metadata.region().await
}

fn metadata_client() -> imds::Client {
    imds::Client::builder()
        .max_attempts(1)
        .connect_timeout(METADATA_TIMEOUT)
        .read_timeout(METADATA_TIMEOUT)
        .build()
}

/// The machine's own credentials, by the usual chain: environment, profiles, the platform's metadata.
/// They are asked for anew each time.
pub async fn default_credentials() -> SharedCredentialsProvider {
    let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
        .or_else(ProfileFileRegionProvider::new());
    let chain = DefaultCredentialsChain::builder()
        .region(region)
        .imds_client(metadata_client())
        .build()
        .await;
    SharedCredentialsProvider::new(chain)
}

async fn shared_config(region: Region, keys: Option<SharedCredentialsProvider>) -> SdkConfig {
    let config = aws_config::defaults(BehaviorVersion::latest()).region(region.clone());
    if let Some(keys) = keys {
        return config.credentials_provider(keys).load().await;
    }
    let chain = DefaultCredentialsChain::builder()
        .region(region)
        .imds_client(metadata_client())
        .build()
        .await;
    config.credentials_provider(chain).load().await
}

/// The store's clock, from the `Date` of its answers, as an offset to ours.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    ahead_seconds: Arc<AtomicI64>,
}

impl Clock {
    pub(super) fn now(&self) -> SystemTime {
        let ahead = self.ahead_seconds.load(Ordering::Relaxed);
        let offset = Duration::from_secs(ahead.unsigned_abs());
        let now = SystemTime::now();
        let shifted = if ahead < 0 { now.checked_sub(offset) } else { now.checked_add(offset) };
        shifted.unwrap_or(now)
    }

    fn heard(&self, date: &str) {
        let Ok(date) = DateTime::from_str(date, DateTimeFormat::HttpDate) else {
            return;
        };
        let Ok(ours) = SystemTime::now().duration_since(UNIX_EPOCH) else {
            return;
        };
        let ours = i64::try_from(ours.as_secs()).unwrap_or(i64::MAX);
        self.ahead_seconds.store(date.secs().saturating_sub(ours), Ordering::Relaxed);
    }
}

impl Intercept for Clock {
    fn name(&self) -> &'static str {
        "StoreClock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(date) = context.response().headers().get("date") {
            self.heard(date);
        }
        Ok(())
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("name", &self.name).finish_non_exhaustive()
    }
}
