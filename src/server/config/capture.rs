//! What an endpoint keeps of requests and answers: `[endpoint.capture]`.

use std::time::Duration;

use roundhouse_store::StoreUri;
use roundhouse_types::Bytes;

use super::Fault;
use super::keys::{self, CAPTURE_KEYS};
use super::parse_duration;

/// Content types of one list, as SageMaker has it.
const TYPES_MAX: usize = 10;

/// `[endpoint.capture]`.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptureConfig {
    /// Where the files go.
    pub destination: StoreUri,
    /// Of a hundred requests, so many.
    pub sampling: f64,
    /// Whether requests are kept.
    pub input: bool,
    /// Whether answers are.
    pub output: bool,
    /// Whether what they hold is left out.
    pub redact: bool,
    /// Content types that are written as text called CSV.
    pub csv_content_types: Vec<String>,
    /// Content types that are written as text called JSON.
    pub json_content_types: Vec<String>,
    /// Bytes that are kept of a request or an answer at most.
    pub max_payload: Bytes,
    /// Bytes that wait to be written at most.
    pub buffer: Bytes,
    /// A file is written when it has as much,
    pub flush_size: Bytes,
    /// or when its first line has waited for so long.
    pub flush_every: Duration,
}

/// Reads what an `[[endpoint]]` says of it.
pub(super) fn read(entry: &toml::Table, at: &str) -> (Option<CaptureConfig>, Vec<Fault>) {
    let Some(value) = entry.get("capture") else { return (None, Vec::new()) };
    let at = format!("{at}.capture");
    let Some(entry) = value.as_table() else {
        let expected = "is a table: write [endpoint.capture] and its keys below";
        return (None, vec![Fault::new(at, expected)]);
    };
    let faults = keys::unknown_in(entry, CAPTURE_KEYS, &at);
    let mut reader = Reader { entry, at, faults };
    (reader.read(), reader.faults)
}

struct Reader<'a> {
    entry: &'a toml::Table,
    at: String,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn read(&mut self) -> Option<CaptureConfig> {
        let destination = self.destination();
        let sampling = self.sampling();
        let (input, output) = (self.switch("input", true), self.switch("output", true));
        if !input && !output {
            self.fault("output", "nothing would be captured: leave the section out");
        }
        let json = ["application/json", "application/jsonlines"];
        let max_payload = self.size("max_payload", Bytes::mib(1), Bytes(1)..=Bytes::gib(1));
        let buffer = self.size("buffer", Bytes::mib(16), Bytes(1 << 14)..=Bytes::gib(64));
        if max_payload > buffer {
            self.fault("buffer", "is less than max_payload: nothing that large would be captured");
        }
        Some(CaptureConfig {
            destination: destination?,
            sampling,
            input,
            output,
            redact: self.switch("redact", false),
            csv_content_types: self.types("csv_content_types", &["text/csv"]),
            json_content_types: self.types("json_content_types", &json),
            max_payload,
            buffer,
            flush_size: self.size("flush_size", Bytes::mib(1), Bytes(1)..=Bytes::gib(1)),
            flush_every: self.flush_every(),
        })
    }

    fn destination(&mut self) -> Option<StoreUri> {
        let Some(value) = self.entry.get("destination") else {
            self.fault("destination", "is missing: s3://bucket/prefix/ or file:///folder/");
            return None;
        };
        let Some(text) = value.as_str() else {
            self.fault("destination", "expected a string in quotes");
            return None;
        };
        match text.parse() {
            Ok(uri) => Some(uri),
            Err(error) => {
                let error: roundhouse_store::Error = error;
                let example = "write s3://bucket/prefix/ or file:///folder/";
                self.fault("destination", format!("{error}; {example}"));
                None
            }
        }
    }

    fn sampling(&mut self) -> f64 {
        let Some(value) = self.entry.get("sampling") else { return 100.0 };
        let number = value.as_float().or_else(|| value.as_integer().map(super::tenants::whole));
        number.filter(|number| (0.0..=100.0).contains(number)).unwrap_or_else(|| {
            self.fault("sampling", "expected a number of per cent, 0 to 100");
            100.0
        })
    }

    fn switch(&mut self, key: &str, default: bool) -> bool {
        let Some(value) = self.entry.get(key) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.fault(key, "expected true or false");
            default
        })
    }

    fn types(&mut self, key: &str, default: &[&str]) -> Vec<String> {
        let Some(value) = self.entry.get(key) else {
            return default.iter().map(|it| (*it).to_owned()).collect();
        };
        let texts = value.as_array().and_then(|list| {
            let text = |it: &toml::Value| it.as_str().map(str::to_ascii_lowercase);
            list.iter().map(text).collect::<Option<Vec<String>>>()
        });
        texts.filter(|it| it.len() <= TYPES_MAX).unwrap_or_else(|| {
            let expected = format!("expected a list of {TYPES_MAX} content types at most");
            self.fault(key, expected);
            Vec::new()
        })
    }

    fn size(&mut self, key: &str, default: Bytes, range: std::ops::RangeInclusive<Bytes>) -> Bytes {
        let Some(value) = self.entry.get(key) else { return default };
        let read = match value {
            toml::Value::String(text) => text.parse::<Bytes>().map_err(|error| error.to_string()),
            toml::Value::Integer(number) => {
                u64::try_from(*number).map(Bytes).map_err(|_| "is below zero".to_owned())
            }
            _ => Err("expected a string with a unit, like \"1MiB\"".to_owned()),
        };
        match read {
            Ok(size) if range.contains(&size) => size,
            Ok(size) => {
                let (least, most) = range.into_inner();
                self.fault(key, format!("{size} is out of range: {least} to {most}"));
                default
            }
            Err(message) => {
                self.fault(key, message);
                default
            }
        }
    }

    fn flush_every(&mut self) -> Duration {
        const KEY: &str = "flush_every";
        const DEFAULT: Duration = Duration::from_secs(60);
        let Some(value) = self.entry.get(KEY) else { return DEFAULT };
        let range = Duration::from_secs(1)..=Duration::from_secs(3600);
        match value.as_str().map(parse_duration) {
            Some(Ok(duration)) if range.contains(&duration) => duration,
            Some(Err(message)) => {
                self.fault(KEY, message);
                DEFAULT
            }
            Some(Ok(_)) | None => {
                self.fault(KEY, "expected a duration in quotes, 1s to 1h");
                DEFAULT
            }
        }
    }

    fn fault(&mut self, key: &str, message: impl Into<String>) {
        self.faults.push(Fault::new(format!("{}.{key}", self.at), message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Option<CaptureConfig>, Vec<String>) {
        let text = format!("[capture]\n{text}");
        let (capture, faults) = read(&text.parse().unwrap(), "endpoint[0]");
        (capture, faults.into_iter().map(|fault| fault.key).collect())
    }

    #[test]
    fn a_destination_is_enough() {
        let (capture, faults) = parsed("destination = \"s3://b/kept/\"");
        let capture = capture.unwrap();
        assert!(faults.is_empty() && capture.input && capture.output && !capture.redact);
        assert_eq!((capture.sampling, capture.buffer), (100.0, Bytes::mib(16)));
        assert_eq!(read(&toml::Table::new(), "endpoint[0]"), (None, Vec::new()));
    }

    #[test]
    fn each_fault_is_told_with_its_key() {
        for (text, key) in [
            ("", "destination"),
            ("destination = \"http://x/\"", "destination"),
            ("destination = 1", "destination"),
            ("destination = \"s3://b/\"\nsampling = 101", "sampling"),
            ("destination = \"s3://b/\"\ninput = false\noutput = false", "output"),
            ("destination = \"s3://b/\"\nredact = 1", "redact"),
            ("destination = \"s3://b/\"\njson_content_types = \"a\"", "json_content_types"),
            ("destination = \"s3://b/\"\nmax_payload = \"0B\"", "max_payload"),
            ("destination = \"s3://b/\"\nbuffer = \"1KiB\"", "buffer"),
            ("destination = \"s3://b/\"\nflush_size = true", "flush_size"),
            ("destination = \"s3://b/\"\nflush_every = \"2h\"", "flush_every"),
            ("destination = \"s3://b/\"\nflush_evry = \"2m\"", "flush_evry"),
        ] {
            assert_eq!(parsed(text).1, [format!("endpoint[0].capture.{key}")], "{text}");
        }
    }
}
