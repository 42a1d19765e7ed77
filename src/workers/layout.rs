//! Which artefacts are handlers, and what they say about themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use roundhouse_types::Bytes;
use serde::Deserialize;

use crate::{Config, Error};

/// The artefact's own settings.
pub const SETTINGS_FILE: &str = "roundhouse.toml";
/// Larger settings are none.
pub const SETTINGS_MAX: u64 = 64 * 1024;
/// An interpreter does not start with less.
const MEMORY_MIN: Bytes = Bytes::mib(16);
/// Environment variables that an artefact may set.
const VARIABLES_MAX: usize = 64;

/// Where a handler's script and requirements lie in its artefact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The script's folder, relative to the artefact; `None` without a script.
    pub code: Option<&'static str>,
    /// The script's name, where it is not `inference.py`.
    pub script: Option<String>,
    /// `requirements.txt` beside the script.
    pub requirements: Option<&'static str>,
}

impl Layout {
    /// What the files are, by name; `None` where they are no handler.
    pub fn of(sizes: &BTreeMap<String, u64>) -> Option<Self> {
        let has = |name: &str| sizes.contains_key(name);
        let script = if has("code/inference.py") { None } else { only_script(sizes) };
        let code = if has("code/inference.py") || script.is_some() {
            Some("code")
        } else if has("inference.py") {
            Some("")
        } else {
            None
        };
        if code.is_none() && !is_plain(sizes) {
            return None;
        }
        Some(Self { code, script, requirements: requirements(sizes) })
    }

    /// Of code that is entered by a script of the folder `code`, which the operator names.
    pub fn entered_by(script: &str, sizes: &BTreeMap<String, u64>) -> Self {
        let script = (script != "inference.py").then(|| script.to_owned());
        Self { code: Some("code"), script, requirements: requirements(sizes) }
    }
}

fn requirements(sizes: &BTreeMap<String, u64>) -> Option<&'static str> {
    let places = ["code/requirements.txt", "requirements.txt"];
    places.into_iter().find(|place| sizes.contains_key(*place))
}

/// The only script of the folder `code`, whatever it is called: what an estimator was given as
/// its entry point.
fn only_script(sizes: &BTreeMap<String, u64>) -> Option<String> {
    let mut scripts = sizes.keys().filter_map(|path| {
        path.strip_prefix("code/").filter(|name| name.ends_with(".py") && !name.contains('/'))
    });
    let first = scripts.next()?;
    (scripts.next().is_none() && first != "__init__.py").then(|| first.to_owned())
}

/// Models of frameworks whose containers serve them without a script.
fn is_plain(sizes: &BTreeMap<String, u64>) -> bool {
    let has = |name: &str| sizes.contains_key(name);
    if has("config.json") || has("modules.json") || has("adapter_config.json") {
        return false;
    }
    if has("xgboost-model") || has("model.joblib") || has("model.pkl") {
        return true;
    }
    let is_torch =
        |name: &&String| !name.contains('/') && (name.ends_with(".pt") || name.ends_with(".pth"));
    sizes.keys().filter(is_torch).count() == 1
}

/// What an artefact asks for, clamped by what the operator allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What it declares to need, all its workers together.
    pub memory: Option<Bytes>,
    /// How many workers.
    pub workers: usize,
    /// How long a call may run.
    pub time_limit: Duration,
    /// Whose defaults fill in for functions that the script does not have; `auto`: by the files.
    pub framework: Framework,
    /// Environment variables for the script.
    pub variables: BTreeMap<String, String>,
}

/// Whose conventions a handler follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Framework {
    /// Decided by the files.
    #[default]
    Auto,
    /// The scikit-learn container's.
    Sklearn,
    /// The XGBoost container's.
    Xgboost,
    /// The PyTorch toolkit's.
    Pytorch,
    /// The Hugging Face toolkit's.
    Huggingface,
    /// The base toolkit's alone.
    Plain,
}

impl Framework {
    /// As settings and workers spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Sklearn => "sklearn",
            Self::Xgboost => "xgboost",
            Self::Pytorch => "pytorch",
            Self::Huggingface => "huggingface",
            Self::Plain => "plain",
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    handler: Section,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    memory: Option<Bytes>,
    workers: Option<usize>,
    timeout: Option<String>,
    #[serde(default)]
    framework: Framework,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

impl Settings {
    /// Reads `roundhouse.toml`; without one all is as the operator has it.
    ///
    /// # Errors
    /// `Settings`, with the line or key, where it cannot be read.
    pub fn read(text: Option<&str>, config: &Config) -> Result<Self, Error> {
        let file: File = match text {
            Some(text) => toml::from_str(text).map_err(|error| settings_fault(text, &error))?,
            None => File::default(),
        };
        let section = file.handler;
        let time_limit = match &section.timeout {
            Some(text) => seconds(text)?,
            None => config.time_limit,
        };
        within("memory", section.memory, MEMORY_MIN, config.max_memory)?;
        let workers = section.workers.unwrap_or(config.workers);
        if !(1..=config.max_workers).contains(&workers) {
            let most = config.max_workers;
            return Err(Error::Settings(format!(
                "handler.workers: {workers} is not between 1 and the operator's limit, {most}"
            )));
        }
        check_variables(&section.env)?;
        Ok(Self {
            memory: section.memory,
            workers,
            time_limit: time_limit.min(config.time_limit),
            framework: section.framework,
            variables: section.env,
        })
    }
}

fn settings_fault(text: &str, error: &toml::de::Error) -> Error {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    Error::Settings(format!("line {line}: {}", error.message()))
}

/// A declaration beyond what can be had is a mistake: cut silently it would evict everybody else.
fn within(key: &str, size: Option<Bytes>, least: Bytes, most: Bytes) -> Result<(), Error> {
    match size {
        Some(size) if size < least => Err(Error::Settings(format!(
            "handler.{key}: {size} is less than {least}; is the unit missing, as in \"512MiB\"?"
        ))),
        Some(size) if size > most => Err(Error::Settings(format!(
            "handler.{key}: {size} is more than the operator's limit, {most} (handlers.max_{key})"
        ))),
        _ => Ok(()),
    }
}

fn seconds(text: &str) -> Result<Duration, Error> {
    let number = text.trim().strip_suffix('s').and_then(|digits| digits.parse::<u64>().ok());
    match number {
        Some(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err(Error::Settings(format!("handler.timeout: '{text}' is not like \"30s\""))),
    }
}

/// What decides how the interpreter and the loader of libraries work is not the artefact's.
fn check_variables(variables: &BTreeMap<String, String>) -> Result<(), Error> {
    if variables.len() > VARIABLES_MAX {
        return Err(Error::Settings(format!("handler.env: more than {VARIABLES_MAX} variables")));
    }
    for (name, value) in variables {
        let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let ours = ["LD_", "PYTHON", "ROUNDHOUSE_"].iter().any(|prefix| name.starts_with(prefix))
            || ["PATH", "HOME", "TMPDIR"].contains(&name.as_str());
        if !plain || ours || value.contains('\0') {
            return Err(Error::Settings(format!("handler.env.{name} cannot be set")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
