//! Publishes notices to topics of SNS, by AWS' own client for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Providing;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_sns::Client;
use aws_sdk_sns::config::retry::RetryConfig;
use aws_sdk_sns::config::timeout::TimeoutConfig;
use aws_sdk_sns::config::{BehaviorVersion, Config, Region};
use aws_sdk_sns::error::{ProvideErrorMetadata, SdkError};
use reqwest::{StatusCode, Url};
use roundhouse_store::default_credentials;
use tokio::sync::OnceCell;

use crate::config::Topics;
use crate::notice::Notice;
use crate::sending::{Places, Refusal, TIMEOUT, chain};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest ARN that SageMaker takes.
const ARN_MOST: usize = 2048;

/// The machine's own credentials, by the usual chain, which is set up when they are first needed.
pub fn machine_credentials() -> SharedCredentialsProvider {
    SharedCredentialsProvider::new(Machine::default())
}

/// These keys.
pub fn given_credentials(access_key: &str, secret_key: &str) -> SharedCredentialsProvider {
    SharedCredentialsProvider::new(Credentials::new(access_key, secret_key, None, None, "given"))
}

/// The chain, once somebody asked.
#[derive(Clone, Default)]
struct Machine(Arc<OnceCell<SharedCredentialsProvider>>);

impl Machine {
    async fn credentials(&self) -> Result<Credentials, CredentialsError> {
        self.0.get_or_init(default_credentials).await.provide_credentials().await
    }
}

impl ProvideCredentials for Machine {
    fn provide_credentials<'a>(&'a self) -> Providing<'a>
    where
        Self: 'a,
    {
        Providing::new(self.credentials())
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

/// A topic of SNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    arn: String,
    region: String,
}

impl Topic {
    /// A topic by its ARN, like `arn:aws:sns:eu-central-1:123456789012:done`.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn parse(arn: &str) -> Result<Self, &'static str> {
        let parts: Vec<&str> = arn.split(':').collect();
        let ["arn", partition, "sns", region, account, name] = parts[..] else {
            return Err("is not arn:aws:sns:region:account:name");
        };
        if partition != "aws" && !partition.starts_with("aws-") {
            return Err("is of a partition that is none of AWS'");
        }
        let is_plain = |text: &str, more: &str| {
            let legal = |it: char| it.is_ascii_alphanumeric() || more.contains(it);
            !text.is_empty() && text.chars().all(legal)
        };
        let is_account = account.len() == 12 && account.bytes().all(|it| it.is_ascii_digit());
        if !is_plain(region, "-") || !is_account || !is_plain(name, "_.-") || arn.len() > ARN_MOST {
            return Err("has an illegal region, account or name");
        }
        if name.ends_with(".fifo") {
            return Err("is a FIFO topic, whose messages need a group");
        }
        Ok(Self { arn: arn.to_owned(), region: region.to_owned() })
    }

    /// Its name to AWS.
    pub fn arn(&self) -> &str {
        &self.arn
    }
}

/// Publishes the notices of one endpoint.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Told of answers.
    success: Option<Told>,
    /// Told of failures.
    error: Option<Told>,
    places: Places,
}

/// A topic and the client that reaches it.
#[derive(Debug)]
pub(crate) struct Told {
    topic: Topic,
    client: Client,
}

impl Told {
    /// The topic's name to AWS.
    pub(crate) fn arn(&self) -> &str {
        self.topic.arn()
    }
}

impl Publisher {
    pub(crate) fn new(topics: &Topics, credentials: &SharedCredentialsProvider) -> Self {
        let told = |topic: &Option<Topic>| {
            let topic = topic.clone()?;
            let client = client(&topic, topics.endpoint.as_ref(), credentials);
            Some(Told { topic, client })
        };
        let (success, error) = (told(&topics.success), told(&topics.error));
        Self { success, error, places: Places::default() }
    }

    /// Which topic is told of an end of this kind.
    pub(crate) fn told_of(&self, is_failure: bool) -> Option<&Told> {
        match is_failure {
            true => self.error.as_ref(),
            false => self.success.as_ref(),
        }
    }

    /// Publishes a notice, in a few attempts.
    ///
    /// # Errors
    /// With why the last attempt failed; where no place is free for a minute.
    pub(crate) async fn publish(&self, told: &Told, notice: &Notice) -> Result<(), String> {
        self.places.insist(|| attempt(told, notice)).await
    }
}

/// One for the topic's region. It makes one attempt: places have the patience.
fn client(topic: &Topic, endpoint: Option<&Url>, keys: &SharedCredentialsProvider) -> Client {
    let timeouts =
        TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_timeout(TIMEOUT);
    let mut config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(topic.region.clone()))
        .credentials_provider(keys.clone())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts.build());
    if let Some(url) = endpoint {
        config = config.endpoint_url(url.as_str());
    }
    Client::from_conf(config.build())
}

async fn attempt(told: &Told, notice: &Notice) -> Result<(), Refusal> {
    let publish = told.client.publish().topic_arn(told.arn()).message(&notice.message);
    let Err(error) = publish.send().await else { return Ok(()) };
    let SdkError::ServiceError(said) = &error else {
        return Err(Refusal { why: chain(&error), is_final: false });
    };
    let status = StatusCode::from_u16(said.raw().status().as_u16());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let code = letters(said.err().code().unwrap_or_default());
    let is_busy = code.contains("Throttl");
    let refusal = Refusal::of(status, format!("SNS answered {status} {code}"));
    Err(Refusal { is_final: refusal.is_final && !is_busy, ..refusal })
}

/// The code of an error, as far as it is one: it comes to stand in the log.
fn letters(code: &str) -> String {
    code.chars().filter(char::is_ascii_alphanumeric).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_what_sagemaker_takes_for_one() {
        let topic = Topic::parse("arn:aws:sns:eu-central-1:123456789012:done_2").unwrap();
        assert_eq!(topic.region, "eu-central-1");
        assert!(Topic::parse("arn:aws-cn:sns:cn-north-1:123456789012:done").is_ok());
        for wrong in [
            "done",
            "arn:aws:sqs:eu-central-1:123456789012:done",
            "arn:aws:sns:eu.evil/x:123456789012:done",
            "arn:aws:sns:eu-central-1:1234:done",
            "arn:aws:sns:eu-central-1:123456789012:",
            "arn:aws:sns:eu-central-1:123456789012:done:more",
            "arn:aws:sns:eu-central-1:123456789012:done.fifo",
            "arn:moon:sns:eu-central-1:123456789012:done",
            "arn:awsome:sns:eu-central-1:123456789012:done",
        ] {
            assert!(Topic::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_errors_code_is_letters_alone() {
        assert_eq!(letters("AuthorizationError"), "AuthorizationError");
        assert_eq!(letters("a\nb"), "ab");
    }
}
