//! `adapter_config.json` as PEFT writes it: what it asks for is computed, or refused by name.

use regex::Regex;
use roundhouse_types::ModelKind;
use serde_json::{Map, Value};

use super::matching::{Pattern, Targets, regex};
use super::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::Error;

/// Larger than any rank in use; no shape makes sense beyond.
const RANK_MAX: u64 = 1 << 16;
/// More names than any model has modules of one kind in all its layers.
const NAMES_MAX: usize = 1 << 12;
/// Characters of what a file says that a message repeats.
const SHOWN: usize = 80;
/// More patterns that are no plain names than anybody writes; each takes memory and time.
const PATTERNS_MAX: usize = 16;

/// Which biases of the base are trained with the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Biases {
    None,
    /// Of every module that has one.
    All,
    /// Of the modules that have adapter matrices.
    Targets,
}

/// What adapters with heads of their own do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Labels of a text.
    Classes,
    /// Labels of each token.
    TokenClasses,
}

impl Task {
    /// What a model with such a head is.
    pub(super) fn kind(self) -> ModelKind {
        match self {
            Self::Classes => ModelKind::Classification,
            Self::TokenClasses => ModelKind::TokenClassification,
        }
    }
}

/// What an adapter's configuration says.
#[derive(Debug, Clone)]
pub(super) struct LoraConfig {
    /// As it is written.
    pub(super) base: Option<String>,
    rank: usize,
    alpha: f64,
    rank_pattern: Vec<(Pattern, usize)>,
    alpha_pattern: Vec<(Pattern, f64)>,
    /// Whether the scale is over the root of the rank.
    rslora: bool,
    pub(super) dora: bool,
    /// Whether the second matrices have biases.
    pub(super) lora_bias: bool,
    pub(super) bias: Biases,
    pub(super) targets: Targets,
    /// Modules that the adapter brings whole.
    pub(super) saved: Vec<String>,
    /// Where it has labels.
    pub(super) task: Option<Task>,
}

/// Keys that change nothing about what is computed, or whose values are looked at elsewhere.
const KNOWN: [&str; 26] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];
/// Keys of ways to begin a training. They leave an adapter as any other; those that change the base are
/// told by `init_lora_weights`, and the key stays where the adapter was made one for the base as it was.
const OF_TRAINING: [&str; 4] = ["corda_config", "eva_config", "loftq_config", "lora_ga_config"];

/// The keys of one file, asked for by name and kind.
struct Keys<'a>(&'a Map<String, Value>);

impl<'a> Keys<'a> {
    /// The value, where it is neither absent nor null.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn flag(&self, key: &str) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => wrong(key, other, "true or false"),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => wrong(key, other, "text"),
        }
    }

    /// One name or several.
    fn names(&self, key: &str) -> Result<Vec<String>, Error> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::String(name)) => Ok(vec![name.clone()]),
            Some(Value::Array(names)) if names.len() > NAMES_MAX => {
                refuse(too_many(key, names.len(), NAMES_MAX))
            }
            Some(Value::Array(names)) => names
                .iter()
                .map(|name| match name {
                    Value::String(name) => Ok(name.clone()),
                    other => wrong(key, other, "a list of names"),
                })
                .collect(),
            Some(other) => wrong(key, other, "a list of names"),
        }
    }

    fn patterns<T>(
        &self,
        key: &str,
        read: impl Fn(&str, &Value) -> Result<T, Error>,
    ) -> Result<Vec<(Pattern, T)>, Error> {
        let entries = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Object(entries)) if entries.len() <= NAMES_MAX => entries,
            Some(Value::Object(entries)) => {
                return refuse(too_many(key, entries.len(), NAMES_MAX));
            }
            Some(other) => return wrong(key, other, "an object"),
        };
        let entry = |(name, value): (&String, &Value)| {
            let pattern = Pattern::new(name)
                .map_err(|error| config(format!("{key} has the pattern '{name}': {error}")))?;
            Ok((pattern, read(&format!("{key}.{name}"), value)?))
        };
        match entries.keys().filter(|name| !Pattern::is_plain(name)).count() {
            0..=PATTERNS_MAX => entries.iter().map(entry).collect(),
            count => refuse(format!(
                "{key} has {count} patterns that are no plain names, and may have {PATTERNS_MAX}"
            )),
        }
    }

    fn layers(&self, key: &str) -> Result<Vec<u64>, Error> {
        let number = |value: &Value| match value.as_u64() {
            Some(number) => Ok(number),
            None => wrong(key, value, "the number of a layer, or a list of such"),
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(numbers)) => numbers.iter().map(number).collect(),
            Some(one) => Ok(vec![number(one)?]),
        }
    }
}

impl LoraConfig {
    /// About what its compiled patterns may take.
    pub(super) fn patterns_bytes(&self) -> u64 {
        let ranks = self.rank_pattern.iter().map(|(pattern, _)| pattern);
        let alphas = self.alpha_pattern.iter().map(|(pattern, _)| pattern);
        let patterns: u64 = ranks.chain(alphas).map(Pattern::bytes).sum();
        patterns + self.targets.patterns_bytes()
    }

    /// Reads the file and refuses by name what is not computed.
    pub(super) fn read(content: &[u8]) -> Result<Self, Error> {
        let json: Value =
            serde_json::from_slice(content).map_err(|error| config(error.to_string()))?;
        let Value::Object(map) = &json else {
            return refuse("it is JSON, and must be a JSON object".into());
        };
        let keys = Keys(map);
        match keys.text("peft_type")? {
            Some("LORA") => {}
            Some(other) => {
                let what = format!("an adapter of peft_type {} is", shown(other));
                return Err(Error::NotServed { what, advice: "; LORA is" });
            }
            None => return refuse("it has no peft_type, which must be LORA".into()),
        }
        unserved(&keys)?;
        initialised(&keys)?;
        let rank = match keys.get("r") {
            Some(value) => number_of("r", value)?,
            None => 8,
        };
        let alpha = match keys.get("lora_alpha") {
            Some(value) => scale_of("lora_alpha", value)?,
            None => 8.0,
        };
        let bias = match keys.text("bias")? {
            None | Some("none") => Biases::None,
            Some("all") => Biases::All,
            Some("lora_only") => Biases::Targets,
            Some(other) => {
                let shown = shown(other);
                return refuse(format!("bias is '{shown}', and must be none, all or lora_only"));
            }
        };
        let mut saved = keys.names("modules_to_save")?;
        let task = match keys.text("task_type")? {
            Some("SEQ_CLS") => Some(Task::Classes),
            Some("TOKEN_CLS") => Some(Task::TokenClasses),
            _ => None,
        };
        if task.is_some() {
            saved.extend(["classifier".to_owned(), "score".to_owned()]);
        }
        let (dora, lora_bias) = (keys.flag("use_dora")?, keys.flag("lora_bias")?);
        if dora && lora_bias {
            let what = "a LoRA adapter with use_dora and lora_bias together is".into();
            return Err(Error::NotServed { what, advice: "" });
        }
        Ok(Self {
            base: keys.text("base_model_name_or_path")?.map(str::to_owned),
            rank,
            alpha,
            rank_pattern: keys.patterns("rank_pattern", number_of)?,
            alpha_pattern: keys.patterns("alpha_pattern", scale_of)?,
            rslora: keys.flag("use_rslora")?,
            dora,
            lora_bias,
            bias,
            targets: targets(&keys, &saved)?,
            saved,
            task,
        })
    }

    /// A module's rank.
    pub(super) fn rank(&self, module: &str) -> usize {
        let found = self.rank_pattern.iter().find(|(pattern, _)| pattern.matches(module));
        found.map_or(self.rank, |(_, rank)| *rank)
    }

    /// What a module's product is multiplied by.
    pub(super) fn scale(&self, module: &str) -> f32 {
        let found = self.alpha_pattern.iter().find(|(pattern, _)| pattern.matches(module));
        let alpha = found.map_or(self.alpha, |(_, alpha)| *alpha);
        let rank = self.rank(module) as f64;
        (if self.rslora { alpha / rank.sqrt() } else { alpha / rank }) as f32
    }

    /// Whether the adapter brings a module whole, or one that it is a part of.
    pub(super) fn saves(&self, module: &str) -> bool {
        let ends = module.match_indices('.').map(|(at, _)| at).chain([module.len()]);
        let mut wholes = ends.map(|end| &module[..end]);
        wholes.any(|whole| self.saved.iter().any(|name| whole.ends_with(name.as_str())))
    }
}

fn targets(keys: &Keys<'_>, saved: &[String]) -> Result<Targets, Error> {
    let pattern = |key: &str, text: &str| {
        regex(&format!("^(?:{text})$"))
            .map_err(|error| config(format!("{key} is '{text}': {error}")))
    };
    let mut targets = match keys.get("target_modules") {
        None => Targets::unsaid(),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("all-linear") => {
            Targets::all_linear()
        }
        Some(Value::String(text)) => Targets::pattern(pattern("target_modules", text)?),
        Some(_) => Targets::list(keys.names("target_modules")?),
    };
    match keys.get("exclude_modules") {
        Some(Value::String(text)) if !text.is_empty() => {
            targets.exclude_pattern(pattern("exclude_modules", text)?);
        }
        _ => targets.exclude_list(keys.names("exclude_modules")?),
    }
    let saved_pattern = |name: &String| {
        regex(&format!(r"^(?:(?:^|.*\.)(?:{name})(?:$|\..*))"))
            .map_err(|error| config(format!("modules_to_save has '{name}': {error}")))
    };
    if saved.len() > PATTERNS_MAX {
        return refuse(too_many("modules_to_save", saved.len(), PATTERNS_MAX));
    }
    targets.exclude_saved(saved.iter().map(saved_pattern).collect::<Result<_, Error>>()?);
    let layer_pattern = |name: &String| {
        regex(&format!(r"^(?:^|.*?\.)(?:{name})\.(?P<index>\d+)\."))
            .map_err(|error| config(format!("layers_pattern has '{name}': {error}")))
    };
    let names: Vec<String> =
        keys.names("layers_pattern")?.into_iter().filter(|name| !name.is_empty()).collect();
    let layers = keys.layers("layers_to_transform")?;
    let mut patterns = match names.is_empty() {
        _ if names.len() > PATTERNS_MAX => {
            return refuse(too_many("layers_pattern", names.len(), PATTERNS_MAX));
        }
        true if layers.is_empty() => Vec::new(),
        true => vec![Regex::new(r"^.*?\.[^.]*\.(?P<index>\d+)\.").expect("it is a pattern")],
        false => names.iter().map(layer_pattern).collect::<Result<_, Error>>()?,
    };
    if layers.is_empty() {
        // Nobody asks for a layer's number, and a pattern takes tens of kilobytes.
        patterns.clear();
    }
    targets.only_layers(layers, patterns);
    Ok(targets)
}

/// Refuses keys that ask for what is not computed, those that nobody knows included: whatever
/// says something may change the result. Newer versions of PEFT write more keys, which say nothing
/// where they are not used.
fn unserved(keys: &Keys<'_>) -> Result<(), Error> {
    for (key, value) in keys.0 {
        let says_nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        let is_known = KNOWN.contains(&key.as_str()) || OF_TRAINING.contains(&key.as_str());
        if !says_nothing && !is_known {
            let what = format!("a LoRA adapter with {} is", shown(key));
            let advice = ": adapter_config.json sets it; remove it where it changes nothing";
            return Err(Error::NotServed { what, advice });
        }
    }
    Ok(())
}

/// Refuses ways to begin that change the base's own weights.
fn initialised(keys: &Keys<'_>) -> Result<(), Error> {
    match keys.get("init_lora_weights") {
        None | Some(Value::Bool(_)) => Ok(()),
        Some(Value::String(way)) => match way.to_lowercase().as_str() {
            "gaussian" | "eva" | "orthogonal" | "mica" => Ok(()),
            other => Err(Error::NotServed {
                what: format!("an adapter with init_lora_weights {} is", shown(other)),
                advice: ": its base is not the one that is served; saved with \
                         path_initial_model_for_weight_conversion it is an adapter as any other",
            }),
        },
        Some(other) => wrong("init_lora_weights", other, "true, false or a name"),
    }
}

fn number_of(key: &str, value: &Value) -> Result<usize, Error> {
    match value.as_u64() {
        Some(number @ 1..=RANK_MAX) => Ok(number as usize),
        _ => wrong(key, value, &format!("a rank: a whole number from 1 to {RANK_MAX}")),
    }
}

fn scale_of(key: &str, value: &Value) -> Result<f64, Error> {
    match value.as_f64() {
        Some(number) if number.is_finite() && number.abs() < f64::from(f32::MAX) => Ok(number),
        _ => wrong(key, value, "a number"),
    }
}

fn wrong<T>(key: &str, value: &Value, wanted: &str) -> Result<T, Error> {
    // As JSON it is escaped already.
    let value: String = value.to_string().chars().take(SHOWN).collect();
    refuse(format!("{} is {value}, and must be {wanted}", shown(key)))
}

/// What a file says, as messages repeat it.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_debug).collect()
}

fn too_many(key: &str, count: usize, most: usize) -> String {
    format!("{key} has {count} entries, and may have {most}")
}

fn refuse<T>(reason: String) -> Result<T, Error> {
    Err(config(reason))
}

fn config(reason: String) -> Error {
    Error::config(ADAPTER_CONFIG, reason)
}

/// A fault of the weight file.
pub(super) fn weights(reason: String) -> Error {
    Error::config(ADAPTER_WEIGHTS, reason)
}
