//! One request, from its input to its object in the store.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rand::Rng;
use roundhouse_types::ErrorKind;
use serde_json::json;
use tokio::time::{Instant, timeout};
use tracing::{debug, error, warn};

use crate::error::Error;
use crate::metrics::Of;
use crate::notice::{INCLUDED_MOST, notice};
use crate::queue::{Endpoint, Shared, blocking, now};
use crate::request::{Ran, Run, RunFn};
use crate::spool::{Decided, Entry, Ticket, size_of};

/// The first pause before something is tried again; it doubles.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const PAUSE_MOST: Duration = Duration::from_secs(60);
/// What its caller calls a request.
const INFERENCE_ID: &str = "x-amzn-sagemaker-inference-id";

/// How a turn ended.
pub(crate) enum End {
    /// The request's object is in the store. It holds these bytes, where they are to be told.
    Written(Box<Entry>, Decided, Option<Bytes>),
    /// The store has not taken it for as long as the operator has patience. What is told of it is
    /// that it failed, and nothing of what it held.
    GivenUp(Box<Entry>, Decided),
    /// The request waits so long for another turn.
    Later(Duration),
}

/// An object that is decided on.
struct Made {
    decided: Decided,
    body: Bytes,
}

/// Goes as far as it can; where the ticket says so in the end, it is decided how the request ends.
pub(crate) async fn process(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    ticket: &mut Ticket,
    run: &RunFn,
) -> End {
    match processed(shared, endpoint, ticket, run).await {
        Ok(end) => end,
        Err(error) => {
            warn!(%error, endpoint = %endpoint.name, id = %ticket.id, "a request is tried again");
            End::Later(pause(ticket.tries))
        }
    }
}

async fn processed(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    ticket: &mut Ticket,
    run: &RunFn,
) -> Result<End, Error> {
    let of = Of(endpoint.name.as_str());
    let (spool, reading) = (shared.clone(), ticket.clone());
    let (entry, inline) = blocking(move || spool.spool.entry(&reading)).await?;
    // The disk knows: a task that ended early may have decided and not said so.
    let (spool, reading) = (shared.clone(), ticket.clone());
    let made = match blocking(move || spool.spool.decided(&reading)).await? {
        Some((decided, body)) => {
            ticket.is_decided = true;
            Made { decided, body }
        }
        None => {
            if ticket.tries == 0 {
                of.begun(Duration::from_millis(now().saturating_sub(entry.accepted_at)));
            }
            let made = match attempt(endpoint, ticket, &entry, inline, run).await {
                Ok(made) => made,
                Err(after) => {
                    of.postponed();
                    let left = ticket.expires_at.saturating_sub(now());
                    return Ok(End::Later(after.min(Duration::from_millis(left))));
                }
            };
            let (spool, deciding) = (shared.clone(), ticket.clone());
            let (decided, body) = (made.decided.clone(), made.body.clone());
            blocking(move || spool.spool.decide(&deciding, &decided, &body)).await?;
            ticket.is_decided = true;
            // What comes now is tried as often as it takes, beginning soon.
            ticket.tries = 0;
            ticket.bytes = ticket.bytes.saturating_add(size_of(&made.decided, &made.body)?);
            made
        }
    };
    if let Err(why) = write(endpoint, &entry, &made).await {
        let patience = endpoint.config.give_up_after;
        let waited = Duration::from_millis(now().saturating_sub(made.decided.at));
        // The first failure of this process may be of a machine that has just come up.
        if ticket.tries == 0 || patience.is_none_or(|most| waited < most) {
            return Err(why);
        }
        of.given_up();
        let (endpoint, id) = (&endpoint.name, entry.id);
        error!(%why, %endpoint, %id, ?waited, "an object that cannot be written is given up");
        let reason = "the object could not be written to the store, and was given up".to_owned();
        return Ok(End::GivenUp(
            Box::new(entry),
            Decided { failure: Some(reason), at: now(), ..made.decided },
        ));
    }
    let took = Duration::from_millis(now().saturating_sub(entry.accepted_at));
    of.processed(made.decided.failure.is_some(), made.decided.expired, took);
    // Telling takes as long as those have who listen: what is not told is let go before.
    let object = included(endpoint, &made.decided, made.body);
    Ok(End::Written(Box::new(entry), made.decided, object))
}

/// Puts the object in the store.
async fn write(endpoint: &Endpoint, entry: &Entry, made: &Made) -> Result<(), Error> {
    let (place, uri) = match made.decided.failure {
        None => (&endpoint.output, &entry.output),
        Some(_) => (&endpoint.failure, &entry.failure),
    };
    let tenant = entry.tenant.as_ref();
    let Some(key) = place.key(tenant, uri) else {
        let why = format!("{uri} is no more under a prefix that the endpoint writes to");
        return Err(Error::Invalid(why));
    };
    let since = Instant::now();
    let content_type = made.decided.content_type.as_deref();
    let put = place.store().put(&key, made.body.clone(), content_type).await;
    Of(endpoint.name.as_str()).uploaded(put.is_ok(), since.elapsed());
    Ok(put?)
}

/// Asks the model; where it is not the request's turn yet, how long to wait for another.
async fn attempt(
    endpoint: &Endpoint,
    ticket: &Ticket,
    entry: &Entry,
    inline: Bytes,
    run: &RunFn,
) -> Result<Made, Duration> {
    if now() >= ticket.expires_at {
        let waited = format!("the request expired: it waited for {} s", entry.ttl_seconds);
        let made = failed(408, "RequestExpired", &waited);
        return Ok(Made { decided: Decided { expired: true, ..made.decided }, ..made });
    }
    if endpoint.output.key(entry.tenant.as_ref(), &entry.output).is_none() {
        let why = "the output location is no more under the endpoint's prefix";
        return Ok(failed(500, "OutputException", why));
    }
    let body = match &entry.input {
        None => inline,
        Some(uri) => match input(endpoint, entry, uri).await {
            Ok(body) => body,
            Err(Some(made)) => return Ok(*made),
            Err(None) => return Err(pause(ticket.tries)),
        },
    };
    let mut headers = entry.headers.clone();
    if !headers.iter().any(|(name, _)| name == INFERENCE_ID) {
        // The one that was told its caller, for the model, the log and what is captured.
        headers.push((INFERENCE_ID.into(), entry.inference_id.clone().into_bytes()));
    }
    let asked = Run {
        endpoint: entry.endpoint.clone(),
        tenant: entry.tenant.clone(),
        credential: entry.credential.clone(),
        headers,
        body,
        most: endpoint.config.max_output.0,
    };
    let within = Duration::from_secs(entry.timeout_seconds);
    match timeout(within, run(asked)).await {
        Err(_) => {
            let late = format!("the model did not answer within {} s", entry.timeout_seconds);
            Ok(failed(504, "TimeoutException", &late))
        }
        Ok(Ran::Answered { content_type, body }) => {
            let decided = Decided { failure: None, expired: false, content_type, at: now() };
            Ok(Made { decided, body })
        }
        Ok(Ran::Failed { status, content_type, body }) => {
            Ok(Made { decided: failure(status, content_type), body })
        }
        Ok(Ran::NotNow { why, after }) => {
            debug!(%why, endpoint = %endpoint.name, id = %ticket.id, "a request is put back");
            Err(after.unwrap_or_else(|| pause(ticket.tries)).max(PAUSE / 2))
        }
    }
}

/// The input's bytes; where it cannot be had, the failure, or `None` where it may be later.
async fn input(endpoint: &Endpoint, entry: &Entry, uri: &str) -> Result<Bytes, Option<Box<Made>>> {
    let tenant = entry.tenant.as_ref();
    let mut places = endpoint.inputs.iter();
    let found = places.find_map(|place| Some((place, place.key(tenant, uri)?)));
    let Some((place, key)) = found else {
        let why = format!("the input location {uri} is not under a prefix of the endpoint");
        return Err(Some(Box::new(failed(400, "InputException", &why))));
    };
    let since = Instant::now();
    let got = place.store().get(&key, endpoint.config.max_input.0).await;
    Of(endpoint.name.as_str()).downloaded(got.is_ok(), since.elapsed());
    let error = match got {
        Ok(body) => return Ok(body),
        Err(error) => error,
    };
    debug!(%error, endpoint = %endpoint.name, id = %entry.id, "an input cannot be read");
    if matches!(error, roundhouse_store::Error::NoCredentials { .. }) {
        return Err(None);
    }
    // What is said of stores, buckets and keys is the operator's to know.
    let (status, why) = match error.kind() {
        ErrorKind::ModelNotFound => (400, format!("there is no object at {uri}")),
        ErrorKind::StoreDenied => (400, format!("the store denies access to {uri}")),
        ErrorKind::PayloadTooLarge => {
            let most = endpoint.config.max_input;
            (413, format!("the object at {uri} is larger than {most}"))
        }
        ErrorKind::NotReady => (409, format!("the object at {uri} changes while it is read")),
        _ => return Err(None),
    };
    Err(Some(Box::new(failed(status, "InputException", &why))))
}

/// A failure in our own words, as a container would say it.
fn failed(status: u16, kind: &str, message: &str) -> Made {
    let body = json!({"code": status, "type": kind, "message": message}).to_string();
    let json = Some("application/json".to_owned());
    let decided = Decided { failure: Some(message.to_owned()), ..failure(status, json) };
    Made { decided, body: body.into() }
}

/// A failure in the model's words.
fn failure(status: u16, content_type: Option<String>) -> Decided {
    let side = match status {
        400..500 => "ClientError: Received client error",
        _ => "ModelError: Received server error",
    };
    let reason = format!("{side} ({status}) from model. See the failure object for more.");
    Decided { failure: Some(reason), expired: false, content_type, at: now() }
}

/// What an object holds, where it is to be told to somebody and is not too much for that.
fn included(endpoint: &Endpoint, decided: &Decided, body: Bytes) -> Option<Bytes> {
    let is_failure = decided.failure.is_some();
    let is_told = endpoint.sender.told_of(is_failure).is_some()
        || endpoint.publisher.told_of(is_failure).is_some();
    let included = endpoint.config.included;
    let is_included = if is_failure { included.error } else { included.success };
    told(is_told && is_included, body)
}

/// The bytes on their own: a part of something larger would keep all of that.
fn told(is_wanted: bool, body: Bytes) -> Option<Bytes> {
    (is_wanted && body.len() <= INCLUDED_MOST).then(|| Bytes::copy_from_slice(&body))
}

/// Tells whom the endpoint names, if anybody; of what the object holds, too, where that is given.
pub(crate) async fn tell(
    endpoint: &Endpoint,
    entry: &Entry,
    decided: &Decided,
    object: Option<&Bytes>,
) {
    let is_failure = decided.failure.is_some();
    let (url, topic) =
        (endpoint.sender.told_of(is_failure), endpoint.publisher.told_of(is_failure));
    if url.is_none() && topic.is_none() {
        return;
    }
    let notice = notice(entry, decided, object.map(Bytes::as_ref), SystemTime::now());
    let by_webhook = async {
        let Some(url) = url else { return };
        if let Err(why) = endpoint.sender.send(url, &notice).await {
            let host = url.host_str().unwrap_or_default();
            untold(endpoint, entry, host, &why);
        }
    };
    let by_topic = async {
        let Some(topic) = topic else { return };
        if let Err(why) = endpoint.publisher.publish(topic, &notice).await {
            untold(endpoint, entry, topic.arn(), &why);
        }
    };
    tokio::join!(by_webhook, by_topic);
}

fn untold(endpoint: &Endpoint, entry: &Entry, whom: &str, why: &str) {
    Of(endpoint.name.as_str()).not_told();
    warn!(%why, endpoint = %endpoint.name, whom, id = %entry.id, "nobody took a notice");
}

/// Doubling, with the upper half random so that requests spread.
fn pause(tries: u32) -> Duration {
    let pause = PAUSE.saturating_mul(1 << tries.min(16)).min(PAUSE_MOST);
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_kept_only_where_it_is_told_and_not_larger_than_a_notice_takes() {
        let large = Bytes::from(vec![7; INCLUDED_MOST + 1]);
        let most = large.slice(1..);
        assert_eq!(told(true, large.clone()), None);
        assert_eq!(told(false, most.clone()), None);
        let kept = told(true, most.clone()).unwrap();
        assert_eq!(kept, most);
        assert_ne!(kept.as_ptr(), most.as_ptr(), "a slice would keep what it was cut from");
    }
}
