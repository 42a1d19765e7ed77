//! What can go wrong while one invocation is answered.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use roundhouse_types::{Bytes, Detail, ErrorKind, Failure, ModelId, RetryHint, count, count_that};
use thiserror::Error;

/// A fault of the artefact's text files, of the request, or of the queue in front of a model.
#[derive(Debug, Error)]
pub enum Error {
    /// The artefact has no `tokenizer.json`.
    #[error("tokenizer.json not found; files seen: {seen}")]
    NoTokenizer {
        /// The names in the artefact's folder.
        seen: String,
    },
    /// A file of the artefact could not be read from disk.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the artefact is not the JSON it should be.
    #[error("{file} is not valid")]
    Json {
        /// The file's name.
        file: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// The tokenizer's definition was refused.
    #[error("tokenizer.json is not valid")]
    Tokenizer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A GGUF file's tokenizer is of a kind that is not known, or contradicts itself.
    #[error("the GGUF file's tokenizer: {0}")]
    Vocabulary(String),
    /// The tokenizer could not encode or decode.
    #[error("the artefact's tokenizer failed")]
    Tokenise(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An encoder's length limit leaves no room for its special tokens.
    #[error("a sequence limit of {limit} tokens leaves no room beside {special} special tokens")]
    Truncation {
        /// The limit.
        limit: usize,
        /// How many special tokens the post-processor adds.
        special: usize,
    },
    /// An adapter's own tokenizer has tokens that its base does not know.
    #[error("tokenizer.json has token {largest}, and the base knows {vocabulary} tokens")]
    Tokens {
        /// The largest id.
        largest: u32,
        /// How many tokens the base's embeddings have.
        vocabulary: usize,
    },
    /// The model was named as an adapter of another model than its base. Which those are is for whoever
    /// knows what the caller may: names may have stood for targets that are not its to know.
    #[error("{model} is {}", if *is_adapter { "an adapter of another model than was named" } else { "no adapter" })]
    OtherBase {
        /// Which model.
        model: ModelId,
        /// Whether it is an adapter at all.
        is_adapter: bool,
    },
    /// A chat was sent to an artefact without a chat template.
    #[error("the artefact has no chat template; send a prompt to continue instead of messages")]
    NoTemplate,
    /// The chat template cannot be parsed, refused the messages or ran too long.
    #[error("chat template, line {line}: {message}")]
    Template {
        /// Where in the template.
        line: usize,
        /// What it says.
        message: String,
    },
    /// The rendered chat is longer than the limit.
    #[error("the chat template's output is longer than {0} bytes")]
    TemplateOutput(usize),
    /// The process in which the chat template was rendered has ended, or was ended.
    #[error("the chat template could not be rendered: its process {how}")]
    TemplateEnded {
        /// How, as the rest of a sentence.
        how: String,
    },
    /// The chat template ended processes before, or took long, one time after the other.
    #[error(
        "the chat template is not rendered now: it ended its process or took long {} in a row, and is tried again in {} s",
        count(*.times, "time"),
        .wait.as_secs_f64().ceil()
    )]
    TemplatePaused {
        /// How many.
        times: u32,
        /// What is left of the pause.
        wait: Duration,
    },
    /// There is no process in which templates could be rendered.
    #[error("no process can be started to render chat templates in")]
    NoRenderer(#[source] io::Error),
    /// A field of the request is missing or outside its range.
    #[error("{field}: {message}")]
    Field {
        /// The field as a client would name it.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// The prompt, alone or with the tokens asked for, is longer than the context.
    #[error("{field}: {message}")]
    Context {
        /// The field as a client would name it.
        field: &'static str,
        /// By how much.
        message: String,
    },
    /// The model is not loaded, and the caller may not have it loaded.
    #[error("{model} is not loaded now, and this caller may not have it loaded")]
    NotLoaded {
        /// Which model.
        model: ModelId,
    },
    /// The model does not do what was asked.
    #[error("{model} is {is}, {use_instead}")]
    WrongKind {
        /// Which model.
        model: ModelId,
        /// What it is.
        is: &'static str,
        /// What may be asked of it.
        use_instead: &'static str,
    },
    /// The queue in front of all models, or of this one, is full.
    #[error("{} in flight {scope}, which is the limit", count_that(*.in_flight, "request", ["is", "are"]))]
    QueueFull {
        /// For this model or in all.
        scope: String,
        /// How many.
        in_flight: usize,
        /// When a place is likely to be free.
        retry: RetryHint,
    },
    /// Answers that tell of texts' tokens, and are being made or sent, take too much memory together.
    #[error(
        "what is told of tokens takes {needed} beside {taken} of others' answers, more than the limit of {all}"
    )]
    TokensFull {
        /// What this one would take at most.
        needed: Bytes,
        /// What the others do.
        taken: Bytes,
        /// What all may take.
        all: Bytes,
    },
    /// The deadline passed before the answer was complete.
    #[error("{model} did not finish its answer before the request's deadline")]
    Deadline {
        /// Which model.
        model: ModelId,
    },
    /// The model broke its contract: a stream without an end, numbers that are none.
    #[error("{model} failed: {message}")]
    Broken {
        /// Which model.
        model: ModelId,
        /// What it did.
        message: &'static str,
    },
    /// Preparing the request ended without a result.
    #[error("preparing the request was cut short")]
    Interrupted,
}

impl Error {
    /// A fault of one field.
    pub(crate) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field { field: field.into(), message: message.into() }
    }

    /// The same of a field that stands inside another; `prefix` goes before its name.
    pub(crate) fn within(self, prefix: &str) -> Self {
        match self {
            Self::Field { field, message } => Self::field(format!("{prefix}{field}"), message),
            other => other,
        }
    }

    /// What the client is told.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoTokenizer { .. }
            | Self::Json { .. }
            | Self::Tokenizer(_)
            | Self::Vocabulary(_)
            | Self::Tokenise(_)
            | Self::Tokens { .. }
            | Self::Truncation { .. } => ErrorKind::ModelInvalid,
            Self::NoTemplate
            | Self::Template { .. }
            | Self::TemplateOutput(_)
            | Self::TemplateEnded { .. }
            | Self::Field { .. }
            | Self::Context { .. }
            | Self::OtherBase { .. }
            | Self::WrongKind { .. } => ErrorKind::InvalidInput,
            // It passes, and another request may have been at fault.
            Self::QueueFull { .. } | Self::TokensFull { .. } | Self::TemplatePaused { .. } => {
                ErrorKind::Overloaded
            }
            Self::NotLoaded { .. } => ErrorKind::NotReady,
            Self::Deadline { .. } => ErrorKind::TimedOut,
            Self::Broken { .. } => ErrorKind::ModelFailed,
            Self::Read { .. } | Self::NoRenderer(_) | Self::Interrupted => ErrorKind::Internal,
        }
    }

    /// Whether the same call may succeed later.
    pub fn retry(&self) -> RetryHint {
        match self {
            Self::QueueFull { retry, .. } => *retry,
            Self::TemplatePaused { wait, .. } => RetryHint::After(*wait),
            Self::NotLoaded { .. }
            | Self::Deadline { .. }
            | Self::Broken { .. }
            | Self::TokensFull { .. }
            | Self::Read { .. }
            | Self::NoRenderer(_)
            | Self::Interrupted => RetryHint::Later,
            _ => RetryHint::Never,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let failure = Self::from_error(error.kind(), &error).with_retry(error.retry());
        match error {
            Error::Context { field, .. } => failure.with_detail(Detail::ContextExceeded { field }),
            Error::Field { field, .. } => failure.with_detail(Detail::Field { name: field.into() }),
            Error::OtherBase { is_adapter, .. } => {
                failure.with_detail(Detail::OtherBase { is_adapter })
            }
            _ => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_a_field_has_its_name() {
        let error = Error::field("grammar", "it does not end").within("parameters.");
        let failure = Failure::from(error);
        assert_eq!(failure.message(), "parameters.grammar: it does not end");
        assert_eq!(failure.detail(), Some(&Detail::Field { name: "parameters.grammar".into() }));
    }
}
