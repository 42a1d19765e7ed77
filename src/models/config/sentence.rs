//! `modules.json` of sentence-transformers: how token vectors become one vector.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::parse;
use crate::Error;
use crate::files::Files;

const MODULES: &str = "modules.json";

/// How a sequence's token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// The first token's.
    Cls,
    /// Their mean.
    Mean,
    /// The largest of each dimension.
    Max,
    /// Their sum over the square root of their number.
    MeanSqrtLength,
}

/// What follows the transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sentence {
    pub(crate) pooling: Pooling,
    /// Whether vectors are to be scaled to length 1.
    pub(crate) normalize: bool,
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Sentence {
    /// What a classifier has: its own pooler, no sentence vector.
    pub(crate) const NONE: Self = Self { pooling: Pooling::Cls, normalize: false };

    /// Reads the modules; without the file, the mean as it is.
    pub(crate) fn read(files: &Files) -> Result<Self, Error> {
        if !files.sizes.contains_key(MODULES) {
            return Ok(Self { pooling: Pooling::Mean, normalize: false });
        }
        let modules: Vec<Module> = parse(files, MODULES)?;
        let mut pooling = None;
        let mut normalize = false;
        for (index, module) in modules.iter().enumerate() {
            // Only the class counts: its module path has changed between versions.
            let class = module.kind.rsplit('.').next().unwrap_or_default();
            match class {
                "Transformer" if index == 0 && module.path.is_empty() => {}
                "Transformer" => {
                    let reason = format!(
                        "module {index} is a Transformer in '{}'; one first, in the root, is served",
                        module.path
                    );
                    return Err(Error::config(MODULES, reason));
                }
                "Pooling" if pooling.is_none() && !normalize => {
                    pooling = Some(read_pooling(files, &module.path)?);
                }
                "Normalize" if pooling.is_some() => normalize = true,
                _ => {
                    let reason = format!(
                        "module {index} is {}; Transformer, Pooling and Normalize are served, in that order",
                        module.kind
                    );
                    return Err(Error::config(MODULES, reason));
                }
            }
        }
        match pooling {
            Some(pooling) => Ok(Self { pooling, normalize }),
            None => Err(Error::config(MODULES, "no Pooling module is listed")),
        }
    }
}

/// The pooling module's one mode: older files have a switch per mode, newer ones a name.
fn read_pooling(files: &Files, path: &str) -> Result<Pooling, Error> {
    const SWITCH: &str = "pooling_mode_";
    let file = format!("{path}/config.json");
    let config: Map<String, Value> = parse(files, &file)?;
    let mut modes: Vec<String> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode.clone()],
        Some(Value::Array(modes)) => {
            modes.iter().filter_map(Value::as_str).map(String::from).collect()
        }
        _ => Vec::new(),
    };
    for (key, value) in &config {
        if let (Some(mode), Some(true)) = (key.strip_prefix(SWITCH), value.as_bool()) {
            modes.push(mode.into());
        }
    }
    let [mode] = modes.as_slice() else {
        let reason = format!("one pooling mode is served and it has {modes:?}");
        return Err(Error::config(&file, reason));
    };
    match mode.as_str() {
        "cls" | "cls_token" => Ok(Pooling::Cls),
        "mean" | "mean_tokens" => Ok(Pooling::Mean),
        "max" | "max_tokens" => Ok(Pooling::Max),
        "mean_sqrt_len" | "mean_sqrt_len_tokens" => Ok(Pooling::MeanSqrtLength),
        other => {
            let reason = format!(
                "pooling '{other}' is not computed; cls, mean, max and mean_sqrt_len_tokens are"
            );
            Err(Error::config(&file, reason))
        }
    }
}
