//! All metrics of this crate. Endpoints are configured, so their label is bounded; models are not.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use roundhouse_types::{EndpointName, ErrorKind, ModelKind, Spent, Tier};
use tokio::time::Instant;

use crate::Piece;

/// Invocations that have ended. Labels: `endpoint`, `kind` (`unknown` where none was reached),
/// `outcome` (`ok`, `cancelled`, or the error's kind).
const INVOCATIONS: &str = "roundhouse_serving_invocations_total";
/// From arrival until the model has the request, loads aside, in seconds. Labels: `endpoint`,
/// `kind`.
const QUEUE_SECONDS: &str = "roundhouse_serving_queue_seconds";
/// Tokens of prompts and encoder inputs. Labels: `endpoint`, `kind`.
const TOKENS_IN: &str = "roundhouse_serving_input_tokens_total";
/// Tokens generated. Label: `endpoint`.
const TOKENS_OUT: &str = "roundhouse_serving_output_tokens_total";
/// From arrival to the first token, loads included, in seconds. Labels: `endpoint`, `tier`
/// (where the model was found).
const FIRST_TOKEN_SECONDS: &str = "roundhouse_serving_first_token_seconds";
/// Between the tokens of one sequence, on average over it, in seconds. Label: `endpoint`.
const OUTPUT_TOKEN_SECONDS: &str = "roundhouse_serving_output_token_seconds";

/// Compiling what answers must look like, the wait for a turn included, in seconds.
const FORM_SECONDS: &str = "roundhouse_serving_form_compile_seconds";

/// Tells the installed recorder what the metrics mean. Call once at start-up.
pub fn describe_metrics() {
    describe_counter!(INVOCATIONS, Unit::Count, "Invocations that have ended");
    describe_histogram!(QUEUE_SECONDS, Unit::Seconds, "Wait before the model, loads aside");
    describe_counter!(TOKENS_IN, Unit::Count, "Tokens of prompts and encoder inputs");
    describe_counter!(TOKENS_OUT, Unit::Count, "Tokens generated");
    describe_histogram!(FIRST_TOKEN_SECONDS, Unit::Seconds, "Arrival to first token");
    describe_histogram!(
        OUTPUT_TOKEN_SECONDS,
        Unit::Seconds,
        "Mean time between a sequence's tokens"
    );
    describe_histogram!(
        FORM_SECONDS,
        Unit::Seconds,
        "Compiling what answers must look like, the wait for a turn included"
    );
}

/// A form was compiled, or refused, in this time.
pub(crate) fn compiled_form(elapsed: Duration) {
    histogram!(FORM_SECONDS).record(elapsed.as_secs_f64());
}

/// What one invocation adds to the metrics. Dropped before its end was told, it counts as
/// cancelled.
#[derive(Debug)]
pub(crate) struct Record {
    endpoint: EndpointName,
    /// What the invocation takes is added here too, for whoever accounts for it.
    spent: Spent,
    started: Instant,
    kind: Option<ModelKind>,
    tier: Tier,
    outcome: &'static str,
    /// Per choice: when its first token came.
    first_tokens: Vec<Option<Instant>>,
}

impl Record {
    pub(crate) fn start(endpoint: EndpointName, spent: Spent) -> Self {
        Self {
            endpoint,
            spent,
            started: Instant::now(),
            kind: None,
            tier: Tier::Device,
            outcome: "cancelled",
            first_tokens: Vec::new(),
        }
    }

    /// Where what it takes is added.
    pub(crate) fn spent(&self) -> &Spent {
        &self.spent
    }

    /// The model is leased.
    pub(crate) fn leased(&mut self, kind: ModelKind, tier: Tier) {
        self.kind = Some(kind);
        self.tier = tier;
    }

    /// The model has the request; `load` of the time until now went into its load. Returns how
    /// long the request waited for anything else.
    pub(crate) fn submitted(&mut self, load: Duration, tokens: usize, choices: usize) -> Duration {
        let queue = self.started.elapsed().saturating_sub(load);
        self.spent.read(tokens);
        let (endpoint, kind) = (self.endpoint.to_string(), self.kind_label());
        histogram!(QUEUE_SECONDS, "endpoint" => endpoint.clone(), "kind" => kind)
            .record(queue.as_secs_f64());
        counter!(TOKENS_IN, "endpoint" => endpoint, "kind" => kind).increment(tokens as u64);
        self.first_tokens = vec![None; choices];
        queue
    }

    /// A piece of a completion goes out.
    pub(crate) fn piece(&mut self, piece: &Piece) {
        let Some(first) = self.first_tokens.get_mut(piece.choice) else {
            return;
        };
        let now = Instant::now();
        let endpoint = || self.endpoint.to_string();
        if !piece.tokens.is_empty() {
            counter!(TOKENS_OUT, "endpoint" => endpoint()).increment(piece.tokens.len() as u64);
        }
        if first.is_none() && !piece.tokens.is_empty() {
            *first = Some(now);
            let elapsed = now.duration_since(self.started).as_secs_f64();
            let tier = self.tier.as_str();
            histogram!(FIRST_TOKEN_SECONDS, "endpoint" => endpoint(), "tier" => tier)
                .record(elapsed);
        }
        if let (Some(first), Some(finished)) = (*first, piece.finished)
            && finished.generated_tokens > 1
        {
            #[expect(clippy::cast_precision_loss, reason = "contexts are far below 2^52")]
            let gaps = (finished.generated_tokens - 1) as f64;
            let mean = now.duration_since(first).as_secs_f64() / gaps;
            histogram!(OUTPUT_TOKEN_SECONDS, "endpoint" => endpoint()).record(mean);
        }
    }

    /// The answer is complete.
    pub(crate) fn completed(&mut self) {
        self.outcome = "ok";
    }

    /// The invocation failed.
    pub(crate) fn failed(&mut self, kind: ErrorKind) {
        self.outcome = kind.as_str();
    }

    fn kind_label(&self) -> &'static str {
        self.kind.map_or("unknown", ModelKind::as_str)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        counter!(
            INVOCATIONS,
            "endpoint" => self.endpoint.to_string(),
            "kind" => self.kind_label(),
            "outcome" => self.outcome,
        )
        .increment(1);
    }
}
