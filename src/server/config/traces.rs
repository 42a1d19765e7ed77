//! Where traces are sent: `[tracing]`, and OpenTelemetry's own variables
//! (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>), which stand
//! between our own and the file.

use http::{HeaderName, HeaderValue};
use reqwest::Url;

use super::Secret;
use super::raw::Sources;

const OTLP: &str = "tracing.otlp";
const SAMPLED: &str = "tracing.sampled";
const SERVICE: &str = "tracing.service";

/// The whole address, and the address of all signals.
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// What the collector is told beside, as `name=value,…`.
const TRACES_HEADERS: &str = "OTEL_EXPORTER_OTLP_TRACES_HEADERS";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
const DISABLED: &str = "OTEL_SDK_DISABLED";

/// Where OTLP's receivers take traces.
const PATH: &str = "v1/traces";
/// Traces are few where requests are; what is too much is lowered by who sees the bill.
const SAMPLED_BY_DEFAULT: f64 = 1.0;
/// What dashboards call us where nobody named us.
const SERVICE_BY_DEFAULT: &str = "roundhouse";

/// `[tracing]`: where traces are sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Traces {
    /// Where the collector takes them.
    pub url: Url,
    /// The part of the traces that begin here which is recorded, from 0 to 1.
    pub sampled: f64,
    /// What the collector calls us.
    pub service: String,
    /// Whether tenants, endpoints and models are told.
    pub names: bool,
    /// What the collector is told beside: its keys.
    pub headers: Vec<(HeaderName, Secret)>,
}

/// `[tracing]`; `None` where nothing is sent.
pub(super) fn resolve(sources: &mut Sources<'_>) -> Option<Traces> {
    let is_disabled =
        sources.variable(DISABLED).is_some_and(|text| text.trim().eq_ignore_ascii_case("true"));
    platform(sources);
    let url = sources.optional(OTLP, |text| collector(text, PATH));
    let sampled = sources.optional(SAMPLED, part).unwrap_or(SAMPLED_BY_DEFAULT);
    let service = sources.optional(SERVICE, |text| match text.trim() {
        "" => Err("is empty: what the collector calls this server".to_owned()),
        name if name.contains(char::is_control) => Err("holds control characters".to_owned()),
        name => Ok(name.to_owned()),
    });
    let names = sources.switch("tracing.names").unwrap_or(true);
    let headers = headers(sources);
    let whole = whole_address(sources);
    let url = url.map(|url| whole.unwrap_or(url)).filter(|_| !is_disabled)?;
    let service = service.unwrap_or_else(|| SERVICE_BY_DEFAULT.to_owned());
    Some(Traces { url, sampled, service, names, headers })
}

/// Takes what OpenTelemetry's variables say of our keys.
fn platform(sources: &mut Sources<'_>) {
    let by_name = [(OTLP, ENDPOINT), (OTLP, TRACES_ENDPOINT), (SERVICE, SERVICE_NAME)];
    for (key, variable) in by_name {
        if let Some(text) = sources.variable(variable) {
            sources.platform(key, text, variable);
        }
    }
    let sampler = sources.variable(SAMPLER).unwrap_or_default();
    match sampler.strip_prefix("parentbased_").unwrap_or(&sampler) {
        "always_on" => sources.platform(SAMPLED, "1".to_owned(), SAMPLER),
        "always_off" => sources.platform(SAMPLED, "0".to_owned(), SAMPLER),
        _ => {
            if let Some(text) = sources.variable(SAMPLER_ARG) {
                sources.platform(SAMPLED, text, SAMPLER_ARG);
            }
        }
    }
}

/// The variable that has traces sent to an address as it stands, where nothing of ours goes before it.
fn whole_address(sources: &mut Sources<'_>) -> Option<Url> {
    let text = sources.variable(TRACES_ENDPOINT)?;
    if sources.outside_file(OTLP).is_some() {
        return None;
    }
    collector(&text, "").ok()
}

/// An address below which the collector takes traces at `path`.
fn collector(text: &str, path: &str) -> Result<Url, String> {
    // Not shown: an address may hold a password.
    let fault =
        |why: &str| format!("is no address of a collector: {why}, like http://127.0.0.1:4318");
    let mut url = Url::parse(text.trim()).map_err(|error| fault(&error.to_string()))?;
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
        return Err(fault("it has to begin with http:// or https:// and a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(fault(&format!("keys of a collector are in {HEADERS}")));
    }
    if !path.is_empty() {
        let whole = format!("{}/{path}", url.path().trim_end_matches('/'));
        url.set_path(&whole);
    }
    Ok(url)
}

fn part(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim().parse().map_err(|_| format!("'{text}' is not a number"))?;
    let is_part = (0.0..=1.0).contains(&number);
    is_part.then_some(number).ok_or_else(|| format!("{number} is out of range: 0 to 1"))
}

/// `name=value,name=value`, values percent-encoded.
fn headers(sources: &mut Sources<'_>) -> Vec<(HeaderName, Secret)> {
    let named = [TRACES_HEADERS, HEADERS].into_iter();
    let said = named.filter_map(|variable| Some((sources.variable(variable)?, variable))).next();
    let Some((text, variable)) = said else { return Vec::new() };
    let mut found = Vec::new();
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let header = pair.split_once('=').and_then(|(name, value)| {
            let name: HeaderName = name.trim().parse().ok()?;
            let value = decoded(value.trim())?;
            HeaderValue::from_str(&value).ok()?;
            Some((name, Secret::new(value)))
        });
        match header {
            Some(header) => found.push(header),
            // Not shown: it may be a key.
            None => sources.fault(
                OTLP,
                format!("{variable} is no list of headers: name=value, between commas"),
            ),
        }
    }
    found
}

/// A text whose `%41` stand for characters.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text.as_bytes();
    while let Some((first, rest)) = left.split_first() {
        left = rest;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        left = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}
