//! Publishes notices to topics of SNS: one signed request each, by its query protocol.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use futures_util::future::BoxFuture;
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Url};
use roundhouse_store::default_credentials;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;

use crate::config::Topics;
use crate::error::Error;
use crate::notice::Notice;
use crate::sending::{Places, Refusal, TIMEOUT, chain};
use crate::webhook::ClientFn;

/// The service that requests are signed for.
const SERVICE: &str = "sns";
const VERSION: &str = "2010-03-31";
const FORM: &str = "application/x-www-form-urlencoded";
/// Credentials are asked for anew so long before they end.
const AHEAD: Duration = Duration::from_secs(300);
/// The longest ARN that SageMaker takes.
const ARN_MOST: usize = 2048;
/// Of an error so many bytes are looked at for its code.
const ERROR_MOST: usize = 4096;

/// Gets credentials, or why there are none.
pub type CredentialsFn =
    Arc<dyn Fn() -> BoxFuture<'static, Result<Credentials, String>> + Send + Sync>;

/// The machine's own, by the usual chain, which is set up when they are first needed.
pub fn machine_credentials() -> CredentialsFn {
    let source = Arc::new(OnceCell::new());
    Arc::new(move || {
        let source = source.clone();
        Box::pin(async move {
            let source = source.get_or_init(default_credentials).await;
            let found = source.provide_credentials().await;
            found.map_err(|error| format!("there are no AWS credentials: {}", chain(&error)))
        })
    })
}

/// These keys.
pub fn given_credentials(access_key: &str, secret_key: &str) -> CredentialsFn {
    let given = Credentials::new(access_key, secret_key, None, None, "given");
    Arc::new(move || {
        let given = given.clone();
        Box::pin(async move { Ok(given) })
    })
}

/// A topic of SNS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    arn: String,
    region: String,
    /// Of its partition.
    domain: &'static str,
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
        let domain = match partition {
            "aws" | "aws-us-gov" => "amazonaws.com",
            "aws-cn" => "amazonaws.com.cn",
            _ => return Err("is of a partition that is not aws, aws-cn or aws-us-gov"),
        };
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
        Ok(Self { arn: arn.to_owned(), region: region.to_owned(), domain })
    }

    /// Its name to AWS.
    pub fn arn(&self) -> &str {
        &self.arn
    }
}

/// Publishes the notices of one endpoint.
pub(crate) struct Publisher {
    topics: Topics,
    client: Client,
    credentials: CredentialsFn,
    /// Those that hold for a while.
    held: Mutex<Option<Credentials>>,
    places: Places,
}

impl Publisher {
    /// # Errors
    /// `Client` where no TLS can be had.
    pub(crate) fn new(
        topics: &Topics,
        client: &ClientFn,
        credentials: &CredentialsFn,
    ) -> Result<Self, Error> {
        let client = client().map_err(Error::Client)?;
        let client = client.redirect(Policy::none()).referer(false).timeout(TIMEOUT);
        Ok(Self {
            topics: topics.clone(),
            client: client.build().map_err(|error| Error::Client(chain(&error)))?,
            credentials: credentials.clone(),
            held: Mutex::default(),
            places: Places::default(),
        })
    }

    /// Which topic is told of an end of this kind.
    pub(crate) fn told_of(&self, is_failure: bool) -> Option<&Topic> {
        match is_failure {
            true => self.topics.error.as_ref(),
            false => self.topics.success.as_ref(),
        }
    }

    /// Publishes a notice, in a few attempts.
    ///
    /// # Errors
    /// With why the last attempt failed; where no place is free for a minute.
    pub(crate) async fn publish(&self, topic: &Topic, notice: &Notice) -> Result<(), String> {
        self.places.insist(|| self.attempt(topic, notice)).await
    }

    async fn attempt(&self, topic: &Topic, notice: &Notice) -> Result<(), Refusal> {
        let request = self.request(topic, notice).await;
        let request = request.map_err(|why| Refusal { why, is_final: false })?;
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Err(Refusal { why: chain(&error), is_final: false }),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let mut said = Vec::new();
        while said.len() < ERROR_MOST
            && let Ok(Some(piece)) = answer.chunk().await
        {
            said.extend_from_slice(&piece);
        }
        let code = code(&String::from_utf8_lossy(&said));
        let is_busy = code.starts_with("Throttl");
        let refusal = Refusal::of(status, format!("SNS answered {status} {code}"));
        Err(Refusal { is_final: refusal.is_final && !is_busy, ..refusal })
    }

    /// A request that says who we are and what we publish.
    async fn request(&self, topic: &Topic, notice: &Notice) -> Result<RequestBuilder, String> {
        let url = match &self.topics.endpoint {
            Some(url) => url.clone(),
            None => {
                let text = format!("https://{SERVICE}.{}.{}/", topic.region, topic.domain);
                text.parse::<Url>().map_err(|error| error.to_string())?
            }
        };
        let body = form(&url, topic, notice);
        let identity = self.credentials().await?.into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&topic.region)
            .name(SERVICE)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| error.to_string())?
            .into();
        let typed = [("content-type", FORM)].into_iter();
        let signable =
            SignableRequest::new("POST", url.as_str(), typed, SignableBody::Bytes(body.as_bytes()));
        let signable = signable.map_err(|error| error.to_string())?;
        let signed = sign(signable, &parameters).map_err(|error| error.to_string())?;
        let (instructions, _) = signed.into_parts();
        let request = self.client.post(url).header("content-type", FORM);
        let headers = instructions.headers();
        Ok(headers.fold(request, |request, (name, value)| request.header(name, value)).body(body))
    }

    /// Credentials that hold for some minutes more.
    async fn credentials(&self) -> Result<Credentials, String> {
        let mut held = self.held.lock().await;
        let lasts = |it: &&Credentials| {
            it.expiry().is_some_and(|expiry| expiry > SystemTime::now() + AHEAD)
        };
        if let Some(credentials) = held.as_ref().filter(lasts) {
            return Ok(credentials.clone());
        }
        let fresh = timeout(TIMEOUT, (self.credentials)()).await;
        let fresh = fresh.map_err(|_| "AWS credentials did not come in time".to_owned())??;
        *held = Some(fresh.clone());
        Ok(fresh)
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("topics", &self.topics).finish_non_exhaustive()
    }
}

/// The body of a request that publishes.
fn form(url: &Url, topic: &Topic, notice: &Notice) -> String {
    let mut url = url.clone();
    // A query is encoded as a form is.
    url.query_pairs_mut().clear().extend_pairs([
        ("Action", "Publish"),
        ("Version", VERSION),
        ("TopicArn", topic.arn()),
        ("Message", &notice.message),
    ]);
    url.query().unwrap_or_default().to_owned()
}

/// The code of an error, as far as it is one.
fn code(xml: &str) -> String {
    let inner = xml.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let (code, _) = inner.unwrap_or_default();
    code.chars().filter(char::is_ascii_alphanumeric).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_what_sagemaker_takes_for_one() {
        let topic = Topic::parse("arn:aws:sns:eu-central-1:123456789012:done_2").unwrap();
        assert_eq!((topic.region.as_str(), topic.domain), ("eu-central-1", "amazonaws.com"));
        let china = Topic::parse("arn:aws-cn:sns:cn-north-1:123456789012:done").unwrap();
        assert_eq!(china.domain, "amazonaws.com.cn");
        for wrong in [
            "done",
            "arn:aws:sqs:eu-central-1:123456789012:done",
            "arn:aws:sns:eu.evil/x:123456789012:done",
            "arn:aws:sns:eu-central-1:1234:done",
            "arn:aws:sns:eu-central-1:123456789012:",
            "arn:aws:sns:eu-central-1:123456789012:done:more",
            "arn:aws:sns:eu-central-1:123456789012:done.fifo",
            "arn:moon:sns:eu-central-1:123456789012:done",
        ] {
            assert!(Topic::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_errors_code_is_letters_alone() {
        let xml = "<ErrorResponse><Error><Code>AuthorizationError</Code></Error></ErrorResponse>";
        assert_eq!(code(xml), "AuthorizationError");
        assert_eq!(code("<Code>a\nb</Code>"), "ab");
        assert_eq!(code("busy"), "");
    }
}
