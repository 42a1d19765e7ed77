//! W3C trace context: the headers by which servers agree on what belongs to one trace
//! (<https://www.w3.org/TR/trace-context/>).

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Serialize, Serializer};

/// Names the trace, the span that asks, and whether it is recorded.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems say to themselves; passed on as it comes.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The length of a `traceparent` of version 00.
const PARENT_LENGTH: usize = 55;
/// The longest of a later version; what it adds is not passed on.
const PARENT_MOST: usize = 256;
/// The longest `tracestate` and the most members that must be passed on; longer ones are not.
const STATE_MOST: usize = 512;
const MEMBERS_MOST: usize = 32;
/// The longest key and the longest value of a member.
const KEY_MOST: usize = 256;
const VALUE_MOST: usize = 256;
/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

/// A trace: 32 digits in headers and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

impl TraceId {
    /// A new one.
    pub(crate) fn random() -> Self {
        Self(rand::random())
    }

    /// The part that is random in all traces, as W3C has it: the last 56 bits.
    pub(crate) fn random_part(self) -> u64 {
        (self.0.get() & ((1 << 56) - 1)) as u64
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:032x}", self.0)
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A span of a trace: 16 digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

impl SpanId {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{:016x}", self.0)
    }
}

impl Serialize for SpanId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a request says of the trace that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: TraceId,
    /// The span that asks.
    pub span: SpanId,
    /// Whether the trace is recorded.
    pub sampled: bool,
    /// What tracing systems say to themselves.
    pub state: Option<Arc<str>>,
}

impl Context {
    /// What a request's headers say; `None` where they say nothing, or what is no trace context. A
    /// `tracestate` that is none is left out, as is one that is longer than need be passed on.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        let only = values.next().filter(|_| values.next().is_none())?;
        let (trace, span, flags) = parent(only.as_bytes())?;
        let state = state(headers);
        Some(Self { trace, span, sampled: flags & SAMPLED != 0, state })
    }

    /// Has a request say it, in place of what it said.
    pub fn write(&self, headers: &mut HeaderMap) {
        let flags = u8::from(self.sampled);
        let text = format!("00-{}-{}-{flags:02x}", self.trace, self.span);
        headers.insert(TRACEPARENT, HeaderValue::from_str(&text).expect("digits are ASCII"));
        headers.remove(&TRACESTATE);
        if let Some(Ok(state)) = self.state.as_deref().map(HeaderValue::from_str) {
            headers.insert(TRACESTATE, state);
        }
    }

    /// Has a request say nothing of a trace.
    pub fn erase(headers: &mut HeaderMap) {
        headers.remove(&TRACEPARENT);
        headers.remove(&TRACESTATE);
    }
}

/// `version-trace-span-flags` in lower-case digits. Later versions may say more behind another `-`.
fn parent(text: &[u8]) -> Option<(TraceId, SpanId, u8)> {
    let (known, more) = text.split_at_checked(PARENT_LENGTH)?;
    let known = std::str::from_utf8(known).ok()?;
    let mut parts = known.split('-');
    let version = u8::try_from(digits(parts.next()?, 2)?).ok()?;
    let trace = digits(parts.next()?, 32)?;
    let span = u64::try_from(digits(parts.next()?, 16)?).ok()?;
    let flags = u8::try_from(digits(parts.next()?, 2)?).ok()?;
    let is_known = match version {
        0 => more.is_empty(),
        0xff => false,
        _ => text.len() <= PARENT_MOST && more.first().is_none_or(|it| *it == b'-'),
    };
    if !is_known || parts.next().is_some() {
        return None;
    }
    Some((TraceId(NonZeroU128::new(trace)?), SpanId(NonZeroU64::new(span)?), flags))
}

/// So many lower-case hexadecimal digits, and nothing else.
fn digits(text: &str, count: usize) -> Option<u128> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != count || !text.bytes().all(is_digit) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

/// All members, of as many headers as there are.
fn state(headers: &HeaderMap) -> Option<Arc<str>> {
    let mut whole = String::new();
    let mut members = 0;
    for value in headers.get_all(&TRACESTATE) {
        let value = value.to_str().ok()?;
        for member in value.split(',').map(|member| member.trim_matches([' ', '\t'])) {
            if member.is_empty() {
                continue;
            }
            members += 1;
            if !is_member(member)
                || members > MEMBERS_MOST
                || whole.len() + member.len() >= STATE_MOST
            {
                return None;
            }
            if !whole.is_empty() {
                whole.push(',');
            }
            whole.push_str(member);
        }
    }
    (!whole.is_empty()).then(|| whole.into())
}

fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else { return false };
    let begins =
        key.bytes().next().is_some_and(|it| it.is_ascii_lowercase() || it.is_ascii_digit());
    let in_key =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
    let in_value = |byte: u8| (0x20..=0x7e).contains(&byte) && byte != b'=';
    begins
        && key.len() <= KEY_MOST
        && key.bytes().all(in_key)
        && (1..=VALUE_MOST).contains(&value.len())
        && value.bytes().all(in_value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn read(parents: &[&str], states: &[&str]) -> Option<Context> {
        let mut headers = HeaderMap::new();
        for text in parents {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(text.as_bytes()).unwrap());
        }
        for text in states {
            headers.append(TRACESTATE, HeaderValue::from_bytes(text.as_bytes()).unwrap());
        }
        Context::read(&headers)
    }

    #[test]
    fn a_context_is_read_and_written_alike() {
        let text = format!("00-{TRACE}-{SPAN}-01");
        let context = read(&[&text], &["a=1, b@c=x y", "", "d=2"]).unwrap();
        assert_eq!(
            (context.trace.to_string(), context.span.to_string()),
            (TRACE.into(), SPAN.into())
        );
        assert!(context.sampled);
        let mut headers = HeaderMap::new();
        headers.append(TRACESTATE, HeaderValue::from_static("old=1"));
        context.write(&mut headers);
        assert_eq!(headers[TRACEPARENT], text.as_str());
        assert_eq!(headers[TRACESTATE], "a=1,b@c=x y,d=2");
        assert_eq!(Context::read(&headers).as_ref(), Some(&context));
        Context::erase(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn what_is_no_context_is_none() {
        let no_trace = format!("00-{}-{SPAN}-01", "0".repeat(32));
        let no_span = format!("00-{TRACE}-{}-01", "0".repeat(16));
        let upper = format!("00-{}-{SPAN}-01", TRACE.to_uppercase());
        let good = format!("00-{TRACE}-{SPAN}-01");
        for text in [
            "",
            "00",
            "hello",
            &no_trace,
            &no_span,
            &upper,
            &format!("ff-{TRACE}-{SPAN}-01"),
            &format!("0g-{TRACE}-{SPAN}-01"),
            &format!("00-{TRACE}-{SPAN}-0"),
            &format!("00-{TRACE}-{SPAN}-01-more"),
            &format!("00-{TRACE}-{SPAN}-+1"),
            &format!("00_{TRACE}_{SPAN}_01"),
            &format!("01-{TRACE}-{SPAN}-01more"),
            &format!("01-{TRACE}-{SPAN}-01-{}", "x".repeat(PARENT_MOST)),
            &format!("00-{TRACE}-{SPAN}-0é"),
            &format!(" {good}"),
        ] {
            assert_eq!(read(&[text], &[]), None, "{text}");
        }
        assert_eq!(read(&[&good, &good], &[]), None, "two of them");
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = read(&[&format!("cc-{TRACE}-{SPAN}-09-what-comes")], &[]).unwrap();
        assert!(later.sampled);
        let unsampled = read(&[&format!("01-{TRACE}-{SPAN}-02")], &[]).unwrap();
        assert!(!unsampled.sampled);
    }

    #[test]
    fn a_state_that_is_none_or_too_long_is_left_out_alone() {
        let parent = format!("00-{TRACE}-{SPAN}-01");
        let many = vec!["a=1"; MEMBERS_MOST + 1].join(",");
        let long = format!("a={0},b={0}", "x".repeat(VALUE_MOST));
        for state in ["a", "=1", "A=1", "a=", "a=b=c", "a=é", &many, &long] {
            let context = read(&[&parent], &[state]).unwrap();
            assert_eq!(context.state, None, "{state}");
        }
    }
}
