//! `[endpoint.async]`: requests whose callers do not wait.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Url;
use roundhouse_asynchronous::{EndpointConfig, Included, PlaceConfig, Topic, Topics, Webhooks};
use roundhouse_types::Bytes;

use super::endpoints::{self, Mount};
use super::keys::{self, ASYNC_KEYS, MOUNT_KEYS};
use super::parse_duration;
use super::{Config, Fault, defaults};

/// Requests of an endpoint that run at once: SageMaker's bounds.
const CONCURRENT: RangeInclusive<usize> = 1..=1000;
const QUEUED: RangeInclusive<usize> = 1..=1_000_000;
const ON_DISK: RangeInclusive<Bytes> = Bytes::mib(1)..=Bytes::gib(1024);
/// SageMaker takes inputs of up to a gigabyte; each is in memory while it runs.
const IN_MEMORY: RangeInclusive<Bytes> = Bytes(1000)..=Bytes::gib(1);

/// The least patience with a store that takes no object.
const GIVE_UP_LEAST: Duration = Duration::from_secs(60);

/// What an endpoint says of its asynchronous requests. Prints without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asynchronous {
    /// Where inputs may lie, with `{tenant}` where that stands for the caller's name.
    pub inputs: Vec<Mount>,
    /// Where answers go.
    pub output: Mount,
    /// Where failures go.
    pub failure: Mount,
    /// Whether tenants share these places.
    pub shared: bool,
    /// Requests that run at once.
    pub max_concurrent: usize,
    /// Requests in the queue.
    pub queue_requests: usize,
    /// What they may take on disk.
    pub queue_bytes: Bytes,
    /// The largest input.
    pub max_input: Bytes,
    /// The largest answer.
    pub max_output: Bytes,
    /// Who is told of answers.
    pub success_url: Option<Url>,
    /// Who is told of failures.
    pub error_url: Option<Url>,
    /// Networks that are no part of the Internet and may be told.
    pub webhook_networks: Vec<IpNet>,
    /// For how long an object that the store does not take is written again; absent: for ever.
    pub give_up_after: Option<Duration>,
    /// Topics of SNS that are told.
    pub topics: Topics,
    /// Whether those who are told get what the object holds, too.
    pub included: Included,
}

impl Asynchronous {
    /// The same as the queue takes it. What comes out prints its secrets.
    ///
    /// # Errors
    /// Where a place cannot be used.
    pub(crate) fn to_queue(&self) -> Result<EndpointConfig, &'static str> {
        let place = |mount: &Mount| PlaceConfig::new(mount.to_store());
        Ok(EndpointConfig {
            inputs: self.inputs.iter().map(place).collect::<Result<_, _>>()?,
            output: place(&self.output)?,
            failure: place(&self.failure)?,
            max_concurrent: self.max_concurrent,
            queue_requests: self.queue_requests,
            queue_bytes: self.queue_bytes,
            max_input: self.max_input,
            max_output: self.max_output,
            webhooks: Webhooks {
                success: self.success_url.clone(),
                error: self.error_url.clone(),
                networks: self.webhook_networks.clone(),
            },
            give_up_after: self.give_up_after,
            topics: self.topics.clone(),
            included: self.included,
        })
    }
}

/// Reads the table below an `[[endpoint]]` that is called `at`, where it has one.
pub(super) fn read(endpoint: &toml::Table, at: &str) -> (Option<Asynchronous>, Vec<Fault>) {
    let at = format!("{at}.async");
    let Some(value) = endpoint.get("async") else { return (None, Vec::new()) };
    let Some(table) = value.as_table() else {
        let why = "is a table: write [endpoint.async] and its keys below";
        return (None, vec![Fault::new(at, why)]);
    };
    let mut reader = Reader { table, faults: keys::unknown_in(table, ASYNC_KEYS, &at), at: &at };
    let read = reader.read();
    let faults = reader.faults;
    (read.filter(|_| faults.is_empty()), faults)
}

struct Reader<'a> {
    table: &'a toml::Table,
    at: &'a str,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn read(&mut self) -> Option<Asynchronous> {
        let inputs = self.texts("inputs");
        let output = self.text("output");
        let failure = self.text("failure");
        if output.is_none() && !self.table.contains_key("output") {
            self.fault("output", "is missing: s3://bucket/prefix/ for the answers");
        }
        let mut all = inputs.iter().chain(&output).chain(&failure);
        let any_on_s3 = all.any(|uri| uri.starts_with("s3://"));
        let inputs: Vec<Option<Mount>> =
            inputs.iter().map(|uri| self.mount("inputs", uri, any_on_s3)).collect();
        let output = output.and_then(|uri| self.mount("output", &uri, any_on_s3));
        let failure = match failure {
            Some(uri) => self.mount("failure", &uri, any_on_s3),
            None => output.clone(),
        };
        let webhook_networks = self.parsed_list::<IpNet>("webhook_networks", "a network");
        let success_url = self.webhook("success_url", &webhook_networks);
        let error_url = self.webhook("error_url", &webhook_networks);
        let topics = self.topics();
        let is_told = [
            success_url.is_some() || topics.success.is_some(),
            error_url.is_some() || topics.error.is_some(),
        ];
        let included = self.included(is_told);
        let give_up_after = self.text("give_up_after").and_then(|text| self.patience(&text));
        Some(Asynchronous {
            shared: self.switch("shared"),
            max_concurrent: self
                .count("max_concurrent", CONCURRENT)
                .unwrap_or(defaults::ASYNC_CONCURRENT),
            queue_requests: self.count("queue_requests", QUEUED).unwrap_or(defaults::ASYNC_QUEUED),
            queue_bytes: self.size("queue_bytes", ON_DISK).unwrap_or(defaults::ASYNC_QUEUE_BYTES),
            max_input: self.size("max_input", IN_MEMORY).unwrap_or(defaults::ASYNC_INPUT),
            max_output: self.size("max_output", IN_MEMORY).unwrap_or(defaults::ASYNC_OUTPUT),
            inputs: inputs.into_iter().collect::<Option<_>>()?,
            output: output?,
            failure: failure?,
            success_url,
            error_url,
            webhook_networks,
            give_up_after,
            topics,
            included,
        })
    }

    fn topics(&mut self) -> Topics {
        let success = self.topic("success_topic");
        let error = self.topic("error_topic");
        let text = self.text("sns_endpoint_url");
        if text.is_some() && success.is_none() && error.is_none() {
            self.fault("sns_endpoint_url", "says where topics are, and there are none");
        }
        let endpoint = text.and_then(|text| match text.parse::<Url>() {
            Ok(url) if ["http", "https"].contains(&url.scheme()) && url.query().is_none() => {
                Some(url)
            }
            _ => {
                self.fault("sns_endpoint_url", "is not http:// or https:// and a host");
                None
            }
        });
        Topics { success, error, endpoint }
    }

    /// Which notices carry what the object holds, by SageMaker's names for them; `is_told` says whether
    /// there is anybody who gets those of answers and those of failures.
    fn included(&mut self, is_told: [bool; 2]) -> Included {
        let key = "include_inference_response_in";
        let mut included = Included::default();
        for text in self.texts(key) {
            let (is_wanted, is_told) = match text.as_str() {
                "SUCCESS_NOTIFICATION_TOPIC" => (&mut included.success, is_told[0]),
                "ERROR_NOTIFICATION_TOPIC" => (&mut included.error, is_told[1]),
                _ => {
                    let expected = "SUCCESS_NOTIFICATION_TOPIC or ERROR_NOTIFICATION_TOPIC";
                    self.fault(key, format!("'{text}' is not {expected}"));
                    continue;
                }
            };
            *is_wanted = true;
            if !is_told {
                self.fault(key, format!("has {text}, and nobody is told of such an end"));
            }
        }
        included
    }

    fn topic(&mut self, key: &str) -> Option<Topic> {
        let text = self.text(key)?;
        let topic = Topic::parse(&text);
        topic.map_err(|why| self.fault(key, format!("'{text}' {why}"))).ok()
    }

    fn patience(&mut self, text: &str) -> Option<Duration> {
        match parse_duration(text) {
            Ok(patience) if patience >= GIVE_UP_LEAST => Some(patience),
            Ok(_) => {
                self.fault("give_up_after", "is less than 1m, in which a store may come back");
                None
            }
            Err(why) => {
                self.fault("give_up_after", why);
                None
            }
        }
    }

    /// A place by its URI, with what the table says of its store.
    fn mount(&mut self, key: &str, uri: &str, any_on_s3: bool) -> Option<Mount> {
        let mut entry = toml::Table::new();
        entry.insert("uri".into(), uri.into());
        // Where none is on S3, the keys are a fault of the first.
        if uri.starts_with("s3://") || !any_on_s3 {
            for name in MOUNT_KEYS.iter().filter(|name| !["prefix", "uri"].contains(name)) {
                if let Some(value) = self.table.get(*name) {
                    entry.insert((*name).into(), value.clone());
                }
            }
        }
        let (mount, faults) = endpoints::read_mount(&entry, self.at);
        let uri_key = format!("{}.uri", self.at);
        for fault in faults {
            let fault = match fault.key == uri_key {
                true => Fault::new(format!("{}.{key}", self.at), fault.message),
                false => fault,
            };
            if !self.faults.contains(&fault) {
                self.faults.push(fault);
            }
        }
        let mount = mount?;
        match PlaceConfig::new(mount.to_store()) {
            Ok(_) => Some(mount),
            Err(why) => {
                let fault = Fault::new(format!("{}.{key}", self.at), why);
                if !self.faults.contains(&fault) {
                    self.faults.push(fault);
                }
                None
            }
        }
    }

    fn webhook(&mut self, key: &str, networks: &[IpNet]) -> Option<Url> {
        let text = self.text(key)?;
        let fault = match text.parse::<Url>() {
            Err(error) => format!("'{text}' is not a URL: {error}"),
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                // Not repeated: it may hold a password.
                "has a user or password in it".into()
            }
            Ok(url) => match url.scheme() {
                "https" => return Some(url),
                "http" if !networks.is_empty() => return Some(url),
                "http" => "is for networks of webhook_networks only; write https://".into(),
                other => format!("'{other}' is not a scheme for it: write https://host/path"),
            },
        };
        self.fault(key, fault);
        None
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.table.get(key)?.as_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                self.fault(key, "expected a string in quotes");
                None
            }
        }
    }

    fn texts(&mut self, key: &str) -> Vec<String> {
        let Some(value) = self.table.get(key) else { return Vec::new() };
        let texts = value.as_array().map(|list| list.iter().map(toml::Value::as_str));
        match texts.map(Iterator::collect::<Option<Vec<_>>>) {
            Some(Some(texts)) => texts.into_iter().map(str::to_owned).collect(),
            _ => {
                self.fault(key, "expected a list of strings in quotes");
                Vec::new()
            }
        }
    }

    fn parsed_list<T: std::str::FromStr<Err: Display>>(&mut self, key: &str, is: &str) -> Vec<T> {
        let mut list = Vec::new();
        for text in self.texts(key) {
            match text.parse() {
                Ok(value) => list.push(value),
                Err(error) => self.fault(key, format!("'{text}' is not {is}: {error}")),
            }
        }
        list
    }

    fn switch(&mut self, key: &str) -> bool {
        match self.table.get(key) {
            None => false,
            Some(toml::Value::Boolean(on)) => *on,
            Some(_) => {
                self.fault(key, "expected true or false");
                false
            }
        }
    }

    fn count(&mut self, key: &str, range: RangeInclusive<usize>) -> Option<usize> {
        let value = self.table.get(key)?.as_integer();
        let Some(count) = value.and_then(|value| usize::try_from(value).ok()) else {
            self.fault(key, "expected a whole number");
            return None;
        };
        self.within(key, count, &range)
    }

    fn size(&mut self, key: &str, range: RangeInclusive<Bytes>) -> Option<Bytes> {
        let value = self.table.get(key)?;
        let text =
            value.as_str().map(str::to_owned).or(value.as_integer().map(|it| it.to_string()));
        let Some(size) = text.and_then(|text| text.parse::<Bytes>().ok()) else {
            self.fault(key, "expected a size with a unit, like \"64MiB\"");
            return None;
        };
        self.within(key, size, &range)
    }

    fn within<T: PartialOrd + Display>(
        &mut self,
        key: &str,
        value: T,
        range: &RangeInclusive<T>,
    ) -> Option<T> {
        if range.contains(&value) {
            return Some(value);
        }
        let (least, most) = (range.start(), range.end());
        self.fault(key, format!("{value} is out of range: {least} to {most}"));
        None
    }

    fn fault(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push(Fault::new(format!("{}.{key}", self.at), message));
    }
}

/// What does not go with who may call: one tenant's objects must be no other's.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    let asks = config.asks_callers();
    for (index, endpoint) in config.endpoints.iter().enumerate() {
        let Some(of) = &endpoint.asynchronous else { continue };
        let inputs = of.inputs.iter().map(|mount| ("inputs", mount));
        let places = inputs.chain([("output", &of.output), ("failure", &of.failure)]);
        for (key, mount) in places {
            if key == "failure" && of.failure == of.output {
                continue;
            }
            let Ok(place) = PlaceConfig::new(mount.to_store()) else { continue };
            let why = match (asks, place.is_by_tenant()) {
                (true, false) if !of.shared => {
                    "has no {tenant} in it, so that all tenants would share it: write \
                     s3://bucket/prefix/{tenant}/, or shared = true if that is meant"
                }
                (false, true) => "has {tenant} in it, and nobody is asked who they are: see [auth]",
                _ => continue,
            };
            faults.push(Fault::new(format!("endpoint[{index}].async.{key}"), why));
        }
    }
    faults.dedup();
    faults
}

#[cfg(test)]
mod tests;
