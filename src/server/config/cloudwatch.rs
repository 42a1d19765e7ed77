//! Where SageMaker's figures go as CloudWatch embedded metrics: `[cloudwatch]`, and the variables of
//! AWS' own embedded-metrics libraries, which stand between ours and the file.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::raw::Sources;
use super::units::parse_file;

const TO: &str = "cloudwatch.to";
const NAMESPACE: &str = "cloudwatch.namespace";
const LOG_GROUP: &str = "cloudwatch.log_group";

/// What those libraries read.
const AGENT: &str = "AWS_EMF_AGENT_ENDPOINT";
const THEIR_NAMESPACE: &str = "AWS_EMF_NAMESPACE";
const THEIR_LOG_GROUP: &str = "AWS_EMF_LOG_GROUP_NAME";

/// CloudWatch keeps names that begin with `AWS/` for itself.
const NAMESPACE_BY_DEFAULT: &str = "Roundhouse";
/// SageMaker's own metrics have a figure for each minute.
const PERIOD_BY_DEFAULT: Duration = Duration::from_secs(60);
/// CloudWatch has nothing finer than a second; beyond an hour alarms see nothing.
const PERIODS: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// `[cloudwatch]`: what is told as embedded metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudWatch {
    /// Where the lines go.
    pub to: EmbeddedTo,
    /// What CloudWatch lists the metrics under.
    pub namespace: String,
    /// How long a line's figures are gathered.
    pub period: Duration,
    /// The log group that an agent puts the lines into; absent: the agent's own.
    pub log_group: Option<String>,
}

/// Where lines of embedded metrics go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbeddedTo {
    /// Standard output: what SageMaker, ECS and Lambda send to CloudWatch Logs.
    Stdout,
    /// A file that grows, opened again for each period.
    File(PathBuf),
    /// An agent's `host:port`, a connection that is kept.
    Tcp(String),
    /// An agent's `host:port`, a datagram for each line.
    Udp(String),
}

/// `[cloudwatch]`; `None` where nothing is told.
pub(super) fn resolve(sources: &mut Sources<'_>) -> Option<CloudWatch> {
    for (key, variable) in [(TO, AGENT), (NAMESPACE, THEIR_NAMESPACE), (LOG_GROUP, THEIR_LOG_GROUP)]
    {
        if let Some(text) = sources.variable(variable) {
            sources.platform(key, text, variable);
        }
    }
    let to = sources.optional(TO, destination).flatten();
    let namespace = sources.optional(NAMESPACE, namespace);
    let period = sources.duration("cloudwatch.period", PERIODS).unwrap_or(PERIOD_BY_DEFAULT);
    let log_group = sources.optional(LOG_GROUP, log_group);
    let namespace = namespace.unwrap_or_else(|| NAMESPACE_BY_DEFAULT.to_owned());
    Some(CloudWatch { to: to?, namespace, period, log_group })
}

fn destination(text: &str) -> Result<Option<EmbeddedTo>, String> {
    let agent = |address: &str| {
        let address = address.trim_end_matches('/');
        let is_whole = address.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|it| it > 0)
        });
        is_whole
            .then(|| address.to_owned())
            .ok_or_else(|| format!("'{text}' is no agent's address, like tcp://127.0.0.1:25888"))
    };
    Ok(Some(match text.trim() {
        "off" => return Ok(None),
        "stdout" => EmbeddedTo::Stdout,
        text if text.contains(char::is_control) => {
            return Err("holds control characters".to_owned());
        }
        "" => {
            return Err("is empty: off, stdout, a file, tcp://host:port or udp://host:port".into());
        }
        text => match (text.strip_prefix("tcp://"), text.strip_prefix("udp://")) {
            (Some(address), _) => EmbeddedTo::Tcp(agent(address)?),
            (_, Some(address)) => EmbeddedTo::Udp(agent(address)?),
            _ if text.contains("://") => {
                return Err(format!("'{text}' is neither tcp:// nor udp://"));
            }
            _ => EmbeddedTo::File(parse_file(text, "off, stdout, an agent")?),
        },
    }))
}

fn namespace(text: &str) -> Result<String, String> {
    let text = text.trim();
    let may_be = |it: char| it.is_ascii_alphanumeric() || ".-_/#: ".contains(it);
    if text.is_empty() || text.len() > 255 || !text.chars().all(may_be) {
        return Err("is no namespace: 1 to 255 of letters, digits and . - _ / # :".to_owned());
    }
    if text.starts_with("AWS/") {
        return Err(format!("'{text}': CloudWatch keeps names that begin with AWS/ for itself"));
    }
    Ok(text.to_owned())
}

fn log_group(text: &str) -> Result<String, String> {
    let may_be = |it: char| it.is_ascii_alphanumeric() || ".-_/#".contains(it);
    let is_name = !text.is_empty() && text.len() <= 512 && text.chars().all(may_be);
    is_name.then(|| text.to_owned()).ok_or_else(|| format!("'{text}' is no name of a log group"))
}
