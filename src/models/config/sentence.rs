//! `modules.json` of sentence-transformers: how token vectors become one vector.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{parse, positive};
use crate::Error;
use crate::files::Files;
use crate::settings::ModelSettings;

const MODULES: &str = "modules.json";
/// How many times as wide as the transformer projections behind it may be: their workspace is the
/// layers'.
const DENSE_MAX: usize = 4;

/// How a sequence's token vectors become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
    /// Their mean.
    Mean,
    /// The largest of each dimension.
    Max,
    /// Their sum over the square root of their number.
    MeanSqrtLength,
}

impl Pooling {
    /// As Sentence Transformers call it; `None` where it is not computed.
    pub(crate) fn named(mode: &str) -> Option<Self> {
        Some(match mode {
            "cls" | "cls_token" => Self::Cls,
            "lasttoken" => Self::Last,
            "mean" | "mean_tokens" => Self::Mean,
            "max" | "max_tokens" => Self::Max,
            "mean_sqrt_len" | "mean_sqrt_len_tokens" => Self::MeanSqrtLength,
            _ => return None,
        })
    }
}

/// A projection of the pooled vector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dense {
    /// The folder that it is in.
    pub(crate) folder: String,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) bias: bool,
    /// Whether a hyperbolic tangent follows.
    pub(crate) tanh: bool,
}

/// What follows the transformer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sentence {
    pub(crate) pooling: Pooling,
    /// Projections of the pooled vector, one after another.
    pub(crate) dense: Vec<Dense>,
    /// Whether vectors are to be scaled to length 1.
    pub(crate) normalize: bool,
    /// Whether the tokens of a prompt before the input are pooled with it.
    pub(crate) pools_prompts: bool,
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
    pub(crate) const NONE: Self =
        Self { pooling: Pooling::Cls, dense: Vec::new(), normalize: false, pools_prompts: true };

    /// Numbers of the vector that comes out where `hidden` are pooled.
    ///
    /// # Errors
    /// When a projection takes another number than there are.
    pub(crate) fn width(&self, hidden: usize) -> Result<usize, Error> {
        self.dense.iter().try_fold(hidden, |width, dense| {
            let Dense { folder, inputs, outputs, .. } = dense;
            let reason = match dense.inputs == width {
                true if *outputs <= DENSE_MAX * hidden => return Ok(*outputs),
                true => format!("'{folder}' makes {outputs} numbers of {hidden}"),
                false => format!("'{folder}' takes {inputs} numbers and gets {width}"),
            };
            Err(Error::config(MODULES, reason))
        })
    }

    /// Reads the modules; without the file, the mean as it is. The artefact's own settings may name
    /// another pooling.
    pub(crate) fn read(files: &Files) -> Result<Self, Error> {
        let own = ModelSettings::read(files)?.pooling;
        let read = Self::modules(files)?;
        Ok(Self { pooling: own.unwrap_or(read.pooling), ..read })
    }

    fn modules(files: &Files) -> Result<Self, Error> {
        if !files.sizes.contains_key(MODULES) {
            return Ok(Self { pooling: Pooling::Mean, ..Self::NONE });
        }
        let modules: Vec<Module> = parse(files, MODULES)?;
        let (mut pooling, mut pools_prompts) = (None, true);
        let (mut dense, mut normalize) = (Vec::new(), false);
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
                    let (mode, with_prompts) = read_pooling(files, &module.path)?;
                    (pooling, pools_prompts) = (Some(mode), with_prompts);
                }
                "Dense" if pooling.is_some() && !normalize => {
                    dense.push(read_dense(files, &module.path)?);
                }
                "Normalize" if pooling.is_some() => normalize = true,
                _ => {
                    let reason = format!(
                        "module {index} is {}; Transformer, Pooling, Dense and Normalize are served, in that order",
                        module.kind
                    );
                    return Err(Error::config(MODULES, reason));
                }
            }
        }
        match pooling {
            Some(pooling) => Ok(Self { pooling, dense, normalize, pools_prompts }),
            None => Err(Error::config(MODULES, "no Pooling module is listed")),
        }
    }
}

/// A projection's shape.
fn read_dense(files: &Files, path: &str) -> Result<Dense, Error> {
    #[derive(Deserialize)]
    struct Raw {
        in_features: usize,
        out_features: usize,
        bias: Option<bool>,
        activation_function: Option<String>,
        module_input_name: Option<String>,
        module_output_name: Option<String>,
    }
    let file = format!("{path}/config.json");
    let raw: Raw = parse(files, &file)?;
    for name in [raw.module_input_name, raw.module_output_name].into_iter().flatten() {
        if name != "sentence_embedding" {
            return Err(Error::config(&file, format!("a projection of '{name}' is not computed")));
        }
    }
    positive(&[("in_features", raw.in_features), ("out_features", raw.out_features)])?;
    // Only the class counts: its module path has changed between versions.
    let function = raw.activation_function.as_deref().and_then(|name| name.rsplit('.').next());
    let tanh = match function {
        None | Some("Tanh") => true,
        Some("Identity") => false,
        Some(other) => {
            let reason = format!("activation_function '{other}' is not computed");
            return Err(Error::config(&file, reason));
        }
    };
    let (inputs, outputs) = (raw.in_features, raw.out_features);
    let bias = raw.bias.unwrap_or(true);
    Ok(Dense { folder: path.to_owned(), inputs, outputs, bias, tanh })
}

/// The pooling module's one mode (older files have a switch per mode, newer ones a name), and whether
/// it takes prompts in.
fn read_pooling(files: &Files, path: &str) -> Result<(Pooling, bool), Error> {
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
    let Some(pooling) = Pooling::named(mode) else {
        let reason = format!(
            "pooling '{mode}' is not computed; cls, lasttoken, mean, max and mean_sqrt_len_tokens are"
        );
        return Err(Error::config(&file, reason));
    };
    let pools_prompts = config.get("include_prompt").and_then(Value::as_bool).unwrap_or(true);
    Ok((pooling, pools_prompts))
}
