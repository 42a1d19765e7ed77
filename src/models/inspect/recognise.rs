//! Whether files are a model at all, and what else they are.

use crate::Error;
use crate::config::encoder::families as encoders;
use crate::config::{CONFIG, Head, families};
use crate::files::{Files, SHARD_INDEX, SINGLE, refuse_pointer};
use crate::gguf;

/// What would have been recognised.
const EXPECTED: &str = "config.json with safetensors weights of a decoder or of an encoder such \
     as BertModel or BertForSequenceClassification, or a GGUF file of a Llama, or a Python handler's code/inference.py, model.joblib, \
     model.pkl, xgboost-model or one .pt or .pth";

/// Refuses folders that are something else, by what they are.
pub(super) fn recognise(files: &Files) -> Result<(), Error> {
    for (path, first) in files.headers.iter().chain(&files.contents) {
        refuse_pointer(path, first)?;
    }
    let has = |name: &str| files.sizes.contains_key(name);
    let ending = |ending: &str| files.sizes.keys().find(|path| path.ends_with(ending));
    let refuse = |what: String, advice| Err(Error::NotServed { what, advice });
    if has("adapter_config.json") {
        return refuse("a LoRA adapter (adapter_config.json) is".into(), "");
    }
    if has("model_index.json") {
        return refuse("an image pipeline (model_index.json) is".into(), "");
    }
    if has("code/inference.py") {
        return refuse("a Python handler (code/inference.py) is".into(), "");
    }
    if gguf::chosen(files)?.is_some() {
        return Ok(());
    }
    if !has(CONFIG) {
        if let Some(path) = ending(".gguf") {
            return refuse(
                format!("a GGUF file inside a folder ({path}) is"),
                "; put it at the top",
            );
        }
        return Err(Error::UnknownKind { expected: EXPECTED, found: found(files) });
    }
    if has(SINGLE) || has(SHARD_INDEX) {
        return Ok(());
    }
    for suffix in [".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"] {
        if let Some(path) = ending(suffix) {
            let what = format!("a checkpoint without safetensors (it has {path}) is");
            return refuse(what, "; convert it to safetensors");
        }
    }
    Err(Error::UnknownKind { expected: EXPECTED, found: found(files) })
}

/// The one architecture that the configuration names; where it names none, what transformers would
/// take for the type of model.
pub(super) fn architecture(head: &Head) -> Result<String, Error> {
    let names = head.architectures.as_deref().unwrap_or_default();
    let model_type = head.model_type.as_deref();
    let usual = |of| families::of_type(of).map(String::from).or_else(|| encoders::of_type(of));
    match (names, model_type.and_then(usual)) {
        ([name], _) => Ok(name.clone()),
        ([], Some(usual)) => Ok(usual),
        _ => {
            let reason = format!(
                "it names {} architectures (model_type {}); one is expected",
                names.len(),
                model_type.unwrap_or("absent")
            );
            Err(Error::config(CONFIG, reason))
        }
    }
}

/// The first few names, and how many more there are.
fn found(files: &Files) -> String {
    const SHOWN: usize = 12;
    const LENGTH: usize = 80;
    let cut = |name: &String| -> String { name.chars().take(LENGTH).collect() };
    let names: Vec<String> = files.sizes.keys().take(SHOWN).map(cut).collect();
    match files.sizes.len() {
        0 => "no files".into(),
        count if count > SHOWN => format!("{} and {} more", names.join(", "), count - SHOWN),
        _ => names.join(", "),
    }
}
