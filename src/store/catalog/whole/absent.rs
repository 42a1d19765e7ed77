//! Whether a folder of transformers has its weights at all, or the index of their shards; and an
//! adapter its own.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::SMALL;
use crate::catalog::reads::Heads;
use crate::remote::Remote;
use crate::{Artefact, Error, RemoteFile};

const CONFIG: &str = "config.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What lies beside weights and holds none.
const BESIDE: [&str; 6] = [".json", ".txt", ".md", ".jinja", ".properties", "tokenizer.model"];

/// What transformers writes into a configuration, one of them at least; and PEFT into an adapter's.
#[derive(Deserialize)]
struct Config {
    model_type: Option<IgnoredAny>,
    architectures: Option<IgnoredAny>,
    peft_type: Option<IgnoredAny>,
}

/// Says which weights, or which index of them, are still to come; `None` if nothing tells of any.
pub(super) async fn weights(
    remote: &Remote,
    heads: &Heads,
    artefact: &Artefact,
) -> Result<Option<String>, Error> {
    // Code that lies beside them knows what it reads.
    if artefact.file("code/inference.py").is_some() {
        return Ok(None);
    }
    let Some((config, why)) = lacking(artefact) else { return Ok(None) };
    // Nobody writes longer ones.
    if config.size > 16 * SMALL {
        return Ok(None);
    }
    let text = heads.read(remote, config, 0..config.size).await?;
    let is_known = serde_json::from_slice(&text).is_ok_and(|config: Config| {
        let Config { model_type, architectures, peft_type } = config;
        model_type.is_some() || architectures.is_some() || peft_type.is_some()
    });
    Ok(is_known.then_some(why))
}

/// What is to come by the names of files, and the configuration that must say so: that of a folder of
/// shards, or of descriptions alone. Those of all others are not read for this.
fn lacking(artefact: &Artefact) -> Option<(&RemoteFile, String)> {
    let describe =
        |but: &str| artefact.files.iter().all(|file| file.path == but || is_beside(&file.path));
    if let Some(config) = artefact.file(ADAPTER_CONFIG) {
        let why =
            "no weights lie beside 'adapter_config.json' (such as 'adapter_model.safetensors')";
        return describe(ADAPTER_CONFIG).then(|| (config, why.to_owned()));
    }
    let config = artefact.file(CONFIG)?;
    if artefact.file(SINGLE).is_some() || artefact.file(INDEX).is_some() {
        return None;
    }
    let why = match artefact.files.iter().find(|file| is_shard(&file.path)) {
        Some(shard) => format!("the index '{INDEX}' of shard '{}' is missing", shard.path),
        None if describe(CONFIG) => {
            format!("no weights lie beside '{CONFIG}' (such as '{SINGLE}')")
        }
        None => return None,
    };
    Some((config, why))
}

/// `model-00001-of-00002.safetensors`.
fn is_shard(path: &str) -> bool {
    let middle = path.strip_prefix("model-").and_then(|path| path.strip_suffix(".safetensors"));
    let numbers = middle.and_then(|middle| middle.split_once("-of-"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    numbers.is_some_and(|(number, count)| is_number(number) && is_number(count))
}

/// Whether a file of that name only describes a model of transformers. Adapters' and pipelines' weights
/// have other names; `model.json` is a model of others.
fn is_beside(path: &str) -> bool {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    let is_other = matches!(name, "adapter_config.json" | "model_index.json" | "model.json");
    let is_plain = matches!(name, "LICENSE" | ".gitattributes");
    !is_other && (is_plain || BESIDE.iter().any(|end| name.ends_with(end)))
}
