//! What an endpoint says of its asynchronous requests.

use std::time::Duration;

use ipnet::IpNet;
use roundhouse_store::MountConfig;
use roundhouse_types::Bytes;

use crate::sns::Topic;

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
    /// For how long an object that the store does not take is written again; absent: for ever.
    pub give_up_after: Option<Duration>,
    /// Who is told, by HTTP.
    pub webhooks: Webhooks,
    /// Who is told, by SNS.
    pub topics: Topics,
    /// Whether they are told what the object holds, too.
    pub included: Included,
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

/// Notices that carry what the request's object holds, where it is small.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Included {
    /// Those of answers.
    pub success: bool,
    /// Those of failures.
    pub error: bool,
}

/// Topics of SNS that are told what became of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topics {
    /// Told of answers.
    pub success: Option<Topic>,
    /// Told of failures.
    pub error: Option<Topic>,
    /// Where SNS answers; absent: where AWS has it for the topic's region.
    pub endpoint: Option<reqwest::Url>,
}
