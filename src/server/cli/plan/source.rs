//! Where a target's files are, and what is read of them: never its weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use roundhouse_models::{Files, Want, gguf_bytes, header_bytes, read_file, wanted, wanted_gguf};
use roundhouse_store::{ArchiveKind, Artefact, Freshness, StoreUri, remembered, skim};
use roundhouse_types::{Bytes, ErrorKind, Failure, TargetName};
use roundhouse_workers::{Layout, SETTINGS_FILE, SETTINGS_MAX, Settings};

use crate::app::settings;
use crate::cli::survey;
use crate::config::Config;
use crate::loader::{
    HandlerPlan, Plan, model_folder, plan_files, plan_folder, plan_stored, settings_file,
};

/// What was found of a target.
pub(super) struct Found {
    /// `folder`, `archive` or `file`.
    pub(super) form: &'static str,
    /// What it is; `None` where only its content tells and that is not at hand.
    pub(super) plan: Option<Plan>,
    /// The most that a server saw this version of a handler use.
    pub(super) peak: Option<Bytes>,
    /// Whether a server's cache had it.
    pub(super) is_remembered: bool,
}

/// Looks at a target, here or in its store. Of what is none but holds some, the failure says how to look
/// at those.
pub(super) async fn find(target: &str, config: &Config, budget: Bytes) -> Result<Found, Failure> {
    if target.contains("://") {
        return stored(target, config, budget).await;
    }
    let (path, config) = (PathBuf::from(target), config.clone());
    let folder = std::fs::canonicalize(&path);
    match blocking(move || local(&path, &config, budget)).await {
        Ok(found) => Ok(found),
        Err(failure) => match folder {
            Ok(folder) if !folder.join(MODEL_CONFIG).exists() => {
                Err(or_below(&format!("file://{}", folder.display()), failure).await)
            }
            _ => Err(failure),
        },
    }
}

/// What has this is a model, whatever lies below it.
const MODEL_CONFIG: &str = "config.json";

/// A failure of a folder, with how to look at the models below it where there are some, as in a store.
async fn or_below(folder: &str, failure: Failure) -> Failure {
    let below = async {
        let uri: StoreUri = format!("{}/", folder.trim_end_matches('/')).parse().ok()?;
        let page = survey::connect(uri.clone()).await.ok()?.list(None, 1).await.ok()?;
        Some((page.targets.into_iter().next()?.name, uri))
    };
    let Some((first, uri)) = below.await else { return failure };
    let message = format!(
        "{}; it holds models, such as {first}: `roundhouse survey {uri}` looks at each of them",
        failure.message()
    );
    Failure::new(failure.kind(), message).with_retry(failure.retry())
}

fn nothing_usable(what: String) -> Failure {
    let expected = "expected a model's folder, an archive (.tar.gz, .tgz, .tar, .tar.zst) or a \
                    file here, or one target as s3://bucket/prefix/TARGET or file:///folder/TARGET";
    Failure::new(ErrorKind::ModelNotFound, format!("{what}; {expected}"))
}

/// What lies on this machine. Blocking.
fn local(path: &Path, config: &Config, budget: Bytes) -> Result<Found, Failure> {
    let load = settings::load(config);
    let found = std::fs::metadata(path)
        .map_err(|error| nothing_usable(format!("it cannot be looked at: {error}")))?;
    let handler = |layout, text: Option<&str>| handler(layout, text, config, budget);
    let (form, plan) = if found.is_dir() {
        ("folder", plan_folder(&model_folder(path), &load, &handler)?)
    } else if ArchiveKind::of(&path.to_string_lossy()).is_some() {
        let (files, text) = skimmed(path)?;
        let plan = match Layout::of(&files.sizes) {
            Some(layout) => handler(layout, text.as_deref())?,
            None => plan_files(&files, &load)?,
        };
        ("archive", plan)
    } else {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = Files { sizes: [(name, found.len())].into(), ..Files::default() };
        let plan = match Layout::of(&files.sizes) {
            Some(layout) => handler(layout, None)?,
            None => plan_files(&read_file(path)?, &load)?,
        };
        ("file", plan)
    };
    Ok(Found { form, plan: Some(plan), peak: None, is_remembered: false })
}

/// What an archive holds, its weight files' headers and its configuration.
fn skimmed(path: &Path) -> Result<(Files, Option<String>), Failure> {
    let skimmed = skim(path, &head)?;
    let text = settings_file(&skimmed.sizes)
        .and_then(|file| skimmed.heads.get(file))
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let mut files = Files { sizes: skimmed.sizes, ..Files::default() };
    let mut heads = skimmed.heads;
    for (path, want) in wanted(&files.sizes) {
        let Some(head) = heads.remove(&path) else { continue };
        match want {
            Want::Whole => files.contents.insert(path, head),
            Want::SafetensorsHeader | Want::GgufHeader => files.headers.insert(path, head),
        };
    }
    // Which of several files holds the model is known when the archive has been read.
    if let Some((path, _)) = wanted_gguf(&files)?
        && let Some(head) = heads.remove(&path)
    {
        files.headers.insert(path, head);
    }
    Ok((files, text))
}

/// How much of an archive's file is looked at, of which `kept` is there.
fn head(path: &str, size: u64, kept: &[u8]) -> u64 {
    // Whether a folder lies around everything is known when the archive has been read.
    let inner = path.split_once('/').map(|(_, inner)| inner);
    let names = || std::iter::once(path).chain(inner);
    if names().any(|name| name == SETTINGS_FILE) {
        return if size <= SETTINGS_MAX { size } else { 0 };
    }
    let want = |name: &str| wanted(&[(name.to_owned(), size)].into()).pop();
    if inner.unwrap_or(path).ends_with(".gguf") && path.matches('/').count() < 2 {
        // What is no header is told when the whole is looked at.
        return gguf_bytes(path, size, kept).unwrap_or(0);
    }
    match names().find_map(want) {
        Some((_, Want::Whole)) => size,
        // Its eight bytes first. What is no header is told when the whole is looked at.
        Some((_, Want::SafetensorsHeader)) => header_bytes(path, kept).unwrap_or(8),
        Some((_, Want::GgufHeader)) => gguf_bytes(path, size, kept).unwrap_or(0),
        None => 0,
    }
}

/// What a store holds under a name.
async fn stored(target: &str, config: &Config, budget: Bytes) -> Result<Found, Failure> {
    let (parent, name) = target.trim_end_matches('/').rsplit_once('/').unwrap_or((target, ""));
    let uri: StoreUri = format!("{parent}/")
        .parse()
        .map_err(|error: roundhouse_store::Error| nothing_usable(error.to_string()))?;
    let name: TargetName = name
        .parse()
        .map_err(|why| nothing_usable(format!("'{name}' cannot be a target's name: {why}")))?;
    let catalog = survey::connect(uri.clone()).await?;
    let resolved = catalog.resolve(&name, Freshness::Cached).await.map_err(Failure::from);
    let artefact = resolved.map_err(|failure| match failure.kind() {
        ErrorKind::ModelNotFound => {
            let message = format!(
                "no target of that name is in {uri}, where `roundhouse survey {uri}` lists what is"
            );
            Failure::new(failure.kind(), message)
        }
        _ => failure,
    })?;
    let (cache, version) = (config.cache.dir.clone(), artefact.id.version.clone());
    let (folder, peak) = blocking(move || {
        let peak = roundhouse_workers::remembered(&cache.join("handlers"), version.as_str());
        Ok((remembered(&cache, &version), peak))
    })
    .await?;
    let form = form(&artefact);
    let (load, of) = (settings::load(config), config.clone());
    let handler = move |layout, text: Option<&str>| handler(layout, text, &of, budget);
    if artefact.archive.is_none() {
        return match plan_stored(&catalog, &artefact, load, &handler).await {
            Ok(plan) => Ok(Found { form, plan: Some(plan), peak, is_remembered: false }),
            Err(failure) if artefact.files.iter().any(|file| file.path == MODEL_CONFIG) => {
                Err(failure)
            }
            Err(failure) => Err(or_below(target, failure).await),
        };
    }
    let plan = match folder {
        Some(folder) => Some(blocking(move || plan_folder(&folder, &load, &handler)).await?),
        None => None,
    };
    let is_remembered = plan.is_some();
    Ok(Found { form, plan, peak, is_remembered })
}

fn form(artefact: &Artefact) -> &'static str {
    match (&artefact.archive, artefact.files.as_slice()) {
        (Some(_), _) => "archive",
        (None, [only]) if !only.path.contains('/') => "file",
        (None, _) => "folder",
    }
}

fn handler(
    layout: Layout,
    text: Option<&str>,
    config: &Config,
    budget: Bytes,
) -> Result<Plan, Failure> {
    let settings = Settings::read(text, &settings::handlers(config, budget))?;
    Ok(Plan::Handler(Arc::new(HandlerPlan { layout, settings })))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::from_error(ErrorKind::Internal, &error))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_of_models_is_sent_to_survey_and_a_models_own_parts_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().canonicalize().unwrap();
        for model in ["team/one", "team/two", "broken/1_Pooling", "empty"] {
            std::fs::create_dir_all(here.join(model)).unwrap();
        }
        for model in ["team/one", "team/two", "broken", "broken/1_Pooling"] {
            std::fs::write(here.join(model).join("config.json"), "{}").unwrap();
        }
        let store = vec!["file:///".to_owned()];
        let flags = crate::cli::ServeFlags { store, ..Default::default() };
        let config = Config::parse(None, &|_| None, &flags).unwrap();
        let told = async |target: String| match find(&target, &config, Bytes::gib(1)).await {
            Ok(_) => panic!("{target} is a model"),
            Err(failure) => failure.message().to_owned(),
        };
        let here = here.display();
        for target in [format!("{here}/team"), format!("file://{here}/team")] {
            let told = told(target).await;
            let hint = format!("such as one: `roundhouse survey file://{here}/team/` looks at");
            assert!(told.starts_with("not a model") && told.contains(&hint), "{told}");
        }
        for name in ["broken", "empty"] {
            for target in [format!("{here}/{name}"), format!("file://{here}/{name}")] {
                let told = told(target).await;
                assert!(!told.contains("it holds models"), "{told}");
            }
        }
    }

    #[test]
    fn only_what_inspection_wants_by_name_is_kept_of_an_archive() {
        let whole = ["config.json", "m/config.json", "m/1_Pooling/config.json", "roundhouse.toml"];
        for path in whole {
            assert_eq!(head(path, 100, &[]), 100, "{path}");
        }
        let passed_over =
            ["f1.json", "m/tokenizer.json", "a/b/config.json", "m/code/inference.py", "a/b/c.toml"];
        for path in passed_over {
            assert_eq!(head(path, 16 << 20, &[]), 0, "{path}");
        }
        assert_eq!(head("config.json", 17 << 20, &[]), 0, "no configuration is so large");
        assert_eq!(head("roundhouse.toml", SETTINGS_MAX + 1, &[]), 0, "no settings are so large");
    }

    #[test]
    fn of_weights_the_header_is_kept() {
        assert_eq!(head("m/model.safetensors", 1 << 40, &[]), 8);
        assert_eq!(head("m/model.safetensors", 1 << 40, &500_u64.to_le_bytes()), 508);
        assert_eq!(head("model.safetensors", 1 << 40, &u64::MAX.to_le_bytes()), 8);
    }
}
