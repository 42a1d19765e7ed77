//! What an endpoint says of its asynchronous requests.

use ipnet::IpNet;
use roundhouse_store::MountConfig;
use roundhouse_types::Bytes;

/// `[endpoint.async]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Where inputs may lie; none is: only inputs that are sent along are taken.
    pub inputs: Vec<PlaceConfig>,
    /// Where answers go.
    pub output: PlaceConfig,
    /// Where failures go.
    pub failure: PlaceConfig,
    /// Requests that run at once, at least 1.
    pub max_concurrent: usize,
    /// Requests in the queue, those that run and those whose object cannot be written included.
    pub queue_requests: usize,
    /// What they may take on disk.
    pub queue_bytes: Bytes,
    /// The largest input.
    pub max_input: Bytes,
    /// The largest answer.
    pub max_output: Bytes,
    /// Who is told.
    pub webhooks: Webhooks,
}

/// Objects below one prefix of one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceConfig {
    /// The store, at the last folder above `{tenant}`.
    pub root: MountConfig,
    /// The rest of the prefix: empty, or with `{tenant}` in it and a `/` at its end.
    pub below: String,
}

/// Who is told what became of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Webhooks {
    /// Told of answers.
    pub success: Option<reqwest::Url>,
    /// Told of failures.
    pub error: Option<reqwest::Url>,
    /// Networks that are no part of the Internet and may be told all the same; only these over plain
    /// HTTP.
    pub networks: Vec<IpNet>,
}
