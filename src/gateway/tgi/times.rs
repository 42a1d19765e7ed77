//! The `x-…` headers of text-generation-inference that tell how an answer came about.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use roundhouse_types::TargetName;

use crate::call::Context;
use crate::layers::Taken;

/// Adds what is known of an answer that is whole: times in milliseconds, tokens, characters read. What
/// would show how much others use a model is told as the `x-roundhouse-…` headers are.
pub(crate) fn tell(
    headers: &mut http::HeaderMap,
    context: &Context,
    taken: &Taken,
    characters: usize,
) {
    if !context.gateway.config.served_headers {
        return;
    }
    let mut put = |name: &'static str, value: u128| {
        headers.insert(HeaderName::from_static(name), number(value));
    };
    put("x-compute-characters", characters as u128);
    let known = [("x-prompt-tokens", taken.tokens_in), ("x-generated-tokens", taken.tokens_out)];
    for (name, tokens) in known {
        if let Some(tokens) = tokens {
            put(name, tokens as u128);
        }
    }
    put("x-total-time", taken.total.as_millis());
    let is_told = |target: &TargetName| context.is_told_of(target);
    if !taken.target.as_ref().is_some_and(is_told) {
        return;
    }
    let queue = taken.queue + taken.load;
    let inference = taken.total.saturating_sub(queue);
    put("x-queue-time", queue.as_millis());
    put("x-inference-time", inference.as_millis());
    put("x-compute-time", inference.as_millis());
    put("x-time-per-token", per_token(inference, taken.tokens_out).as_millis());
}

fn per_token(inference: Duration, tokens: Option<usize>) -> Duration {
    let tokens = tokens.and_then(|tokens| u32::try_from(tokens).ok()).unwrap_or(1);
    inference / tokens.max(1)
}

fn number(value: u128) -> HeaderValue {
    HeaderValue::from(u64::try_from(value).unwrap_or(u64::MAX))
}
