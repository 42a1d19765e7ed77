//! What an operator says of engines, and how a command is made of it.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use roundhouse_types::Bytes;
use thiserror::Error;

/// An engine that is started by command for each target that it serves. All of it is the
/// operator's; nothing in a model's files becomes any of it.
#[derive(Clone, PartialEq, Eq)]
pub struct EngineSpec {
    /// The program and its arguments, with placeholders; never read by a shell.
    pub command: Vec<String>,
    /// Variables beside those of the server, with placeholders.
    pub environment: BTreeMap<String, String>,
    /// What it takes on its device.
    pub memory: Bytes,
    /// Whether what its processes take of the host's memory is measured; on the host's own device
    /// that counts instead. Not where they are none of the command's own, as a container runtime's.
    pub measure: bool,
    /// Whether what listens at its port must be one of the command's own processes.
    pub own_processes: bool,
    /// What its requests call the model, with placeholders.
    pub name: String,
    /// The path that answers with success once it can be asked.
    pub health: String,
    /// How long it may take until then.
    pub start_timeout: Duration,
    /// How long it has to end when it is asked to, before it is killed.
    pub stop_timeout: Duration,
    /// Where it takes the bodies of `/invocations`; absent: each at OpenAI's path for its fields.
    pub invocations: Option<String>,
    /// How it sleeps; absent: it is stopped when it leaves its device.
    pub sleep: Option<SleepLevel>,
    /// How it takes adapters; absent: it takes none.
    pub adapters: Option<Adapters>,
    /// Whether it is told whose prompts it reads, by vLLM's `cache_salt`, where calls say that.
    pub cache_salt: bool,
}

/// What becomes of a sleeping engine's weights, as vLLM numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SleepLevel {
    /// They are kept in the host's memory.
    Keep,
    /// They are dropped; the engine reads them again when it wakes.
    Drop,
}

impl SleepLevel {
    /// vLLM's number for it.
    pub fn number(self) -> u8 {
        match self {
            Self::Keep => 1,
            Self::Drop => 2,
        }
    }
}

/// How an engine takes adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adapters {
    /// By whose routes.
    pub routes: AdapterRoutes,
    /// How many it may hold at a time.
    pub slots: NonZeroUsize,
}

/// Whose routes load and unload adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterRoutes {
    /// vLLM's, below `/v1`; requests call the adapter by its own name.
    Vllm,
    /// SGLang's; requests call it by the model's name, a colon and its own.
    Sglang,
}

/// What stands for the placeholders of one start; for `{port}` the start itself finds one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fill {
    /// The folder with the model's files, or the file where there is but one.
    pub model: String,
    /// The target's name.
    pub target: String,
    /// The device's number among those of its kind.
    pub device: usize,
}

/// A placeholder that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{{{0}}}' is no placeholder: there are {{port}}, {{model}}, {{target}} and {{device}}")]
pub struct UnknownPlaceholder(pub String);

impl Fill {
    /// A text with its placeholders filled in but `{port}`, which stays. Braces around anything but one lower-case word stay as
    /// they are, so that JSON can be an argument.
    ///
    /// # Errors
    /// For a word in braces that is no placeholder.
    pub fn fill(&self, text: &str) -> Result<String, UnknownPlaceholder> {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            filled.push_str(&rest[..open]);
            rest = &rest[open..];
            let word = rest[1..].find('}').map(|end| &rest[1..=end]);
            let is_word = |word: &&str| {
                !word.is_empty() && word.bytes().all(|it| it.is_ascii_lowercase() || it == b'_')
            };
            let Some(word) = word.filter(is_word) else {
                filled.push('{');
                rest = &rest[1..];
                continue;
            };
            match word {
                "port" => filled.push_str("{port}"),
                "model" => filled.push_str(&self.model),
                "target" => filled.push_str(&self.target),
                "device" => filled.push_str(&self.device.to_string()),
                _ => return Err(UnknownPlaceholder(word.to_owned())),
            }
            rest = &rest[word.len() + 2..];
        }
        filled.push_str(rest);
        Ok(filled)
    }
}

/// Without the values of its variables, which may be secrets.
impl fmt::Debug for EngineSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variables: Vec<&String> = self.environment.keys().collect();
        f.debug_struct("EngineSpec")
            .field("command", &self.command)
            .field("environment", &variables)
            .field("name", &self.name)
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

impl EngineSpec {
    /// Whether all placeholders exist.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), UnknownPlaceholder> {
        let fill = Fill { model: String::new(), target: String::new(), device: 0 };
        let texts = self.command.iter().chain(self.environment.values());
        for text in texts.chain([&self.name]) {
            fill.fill(text)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill() -> Fill {
        Fill { model: "/m {port}".into(), target: "a/b".into(), device: 1 }
    }

    #[test]
    fn placeholders_are_filled_once_and_json_stays() {
        for (text, filled) in [
            ("--port={port}", "--port={port}"),
            ("{model}/x", "/m {port}/x"),
            ("{target}{device}", "a/b1"),
            (r#"{"level": {"port": 3}}"#, r#"{"level": {"port": 3}}"#),
            ("{}{", "{}{"),
            ("{{target}}", "{a/b}"),
            ("é{port", "é{port"),
        ] {
            assert_eq!(fill().fill(text).unwrap(), filled, "{text}");
        }
    }

    #[test]
    fn a_word_in_braces_that_is_no_placeholder_is_told() {
        let told = fill().fill("--port {prot}").unwrap_err().to_string();
        assert!(told.starts_with("'{prot}' is no placeholder: there are {port}, "), "{told}");
    }
}
