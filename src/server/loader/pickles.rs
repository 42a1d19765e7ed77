//! Weights that are programs: engines and containers unpickle them with the server's own rights.

use std::path::Path;

use roundhouse_models::{ADAPTER_CONFIG, list_local};
use roundhouse_types::{ArtefactId, ErrorKind, Failure, ModelId};

use super::{ModelLoader, blocking, named};

/// What names of pickled weights end in.
const ENDINGS: [&str; 4] = [".bin", ".pt", ".pth", ".ckpt"];
/// What else an adapter may bring beside its settings.
const OF_ADAPTERS: [&str; 2] = ["adapter_model", "new_embeddings"];

impl ModelLoader {
    /// Refuses files of a version that would be unpickled, unless the rule of the target whose engine
    /// gets them allows it.
    pub(super) async fn refuse_pickles(
        &self,
        id: &ArtefactId,
        of: &ModelId,
        dir: &Path,
    ) -> Result<(), Failure> {
        if self.allows_pickles(of) {
            return Ok(());
        }
        let dir = dir.to_owned();
        let files = blocking(move || Ok(list_local(&dir)?)).await.map_err(|why| named(id, &why))?;
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        refuse(&names).map_err(|failure| named(id, &failure))
    }

    /// The same of files that are still in the store.
    pub(super) fn refuse_listed_pickles(
        &self,
        id: &ArtefactId,
        names: &[&str],
    ) -> Result<(), Failure> {
        match self.allows_pickles(&id.model) {
            true => Ok(()),
            false => refuse(names).map_err(|failure| named(id, &failure)),
        }
    }

    fn allows_pickles(&self, model: &ModelId) -> bool {
        self.engines.rule(model).is_some_and(|rule| rule.pickles)
    }
}

fn refuse(names: &[&str]) -> Result<(), Failure> {
    let Some(name) = unpickled(names) else { return Ok(()) };
    let what = format!(
        "{name} may be a pickle, which runs whatever code is in it: convert it to safetensors or GGUF, \
         or have the target's [[endpoint.engine]] say pickles = true"
    );
    Err(Failure::new(ErrorKind::ModelInvalid, what))
}

/// The file among these that would be unpickled. Engines read safetensors first, where these have the
/// names that they look for; GGUF is read by those that read nothing else.
fn unpickled<'a>(names: &[&'a str]) -> Option<&'a str> {
    let has = |name: &str| names.contains(&name);
    let at_root = |ending: &str| names.iter().any(|it| !it.contains('/') && it.ends_with(ending));
    if has(ADAPTER_CONFIG) {
        return names.iter().copied().find(|name| {
            let stem = is_pickle(name).then(|| name.rsplit_once('.')).flatten();
            stem.is_some_and(|(stem, _)| {
                OF_ADAPTERS.contains(&stem) && !has(&format!("{stem}.safetensors"))
            })
        });
    }
    let in_parts = has("model.safetensors.index.json") && at_root(".safetensors");
    let is_gguf = at_root(".gguf") && !has("config.json");
    if has("model.safetensors") || in_parts || is_gguf {
        return None;
    }
    names.iter().copied().find(|name| is_pickle(name))
}

fn is_pickle(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_engine_would_unpickle_is_refused_by_its_name() {
        for (names, refused) in [
            (&["config.json", "pytorch_model.bin"][..], Some("pytorch_model.bin")),
            (&["config.json", "sub/weights.PT"], Some("sub/weights.PT")),
            (&["a.ckpt"], Some("a.ckpt")),
            (&["config.json", "model.safetensors", "pytorch_model.bin"], None),
            // Neither is what transformers looks for.
            (&["config.json", "pytorch_model.bin", "x.safetensors"], Some("pytorch_model.bin")),
            (
                &["config.json", "model.safetensors.index.json", "pytorch_model.bin"],
                Some("pytorch_model.bin"),
            ),
            (
                &["model-1-of-1.safetensors", "model.safetensors.index.json", "training_args.bin"],
                None,
            ),
            (&["a.gguf", "imatrix.bin"], None),
            (&["a.gguf", "config.json", "pytorch_model.bin"], Some("pytorch_model.bin")),
            (&["config.json", "weights"], None),
            (&["adapter_config.json", "adapter_model.safetensors", "training_args.bin"], None),
            (&["adapter_config.json", "adapter_model.pt"], Some("adapter_model.pt")),
            (
                &["adapter_config.json", "adapter_model.safetensors", "new_embeddings.bin"],
                Some("new_embeddings.bin"),
            ),
        ] {
            assert_eq!(unpickled(names), refused, "{names:?}");
            let told = refuse(names).map_err(|failure| failure.message().to_owned());
            assert_eq!(told.is_err(), refused.is_some());
            assert!(told.err().is_none_or(|told| told.contains("pickles = true")));
        }
    }
}
