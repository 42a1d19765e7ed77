//! What an artefact asks for itself: `[model]` in its `roundhouse.toml`.

use std::num::NonZeroUsize;
use std::time::Duration;

use roundhouse_types::{ModelKind, parse_duration};
use serde::Deserialize;

use crate::Error;
use crate::config::sentence::Pooling;
use crate::files::Files;
use crate::inspect::{DtypeSetting, Quantize};
use crate::kv::KvDtype;
use crate::properties::Asked;

/// The file with an artefact's own settings.
pub(crate) const FILE: &str = "roundhouse.toml";

/// An artefact's own settings. What it does not say is the operator's to decide.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelSettings {
    /// The weight file, where several lie side by side.
    pub(crate) file: Option<String>,
    /// How a text's vector is made of those of its tokens.
    pub(crate) pooling: Option<Pooling>,
    /// The rest, which `serving.properties` may say as well.
    pub(crate) asked: Asked,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    model: Section,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    file: Option<String>,
    context: Option<NonZeroUsize>,
    dtype: Option<String>,
    quantize: Option<String>,
    kv_cache_dtype: Option<String>,
    max_running: Option<NonZeroUsize>,
    max_queue: Option<NonZeroUsize>,
    pooling: Option<String>,
    idle_ttl: Option<String>,
}

impl ModelSettings {
    /// Reads them; without the file, nothing is asked for.
    pub(crate) fn read(files: &Files) -> Result<Self, Error> {
        let Some(content) = files.contents.get(FILE) else { return Ok(Self::default()) };
        let text =
            str::from_utf8(content).map_err(|error| Error::config(FILE, error.to_string()))?;
        let written: Written =
            toml::from_str(text).map_err(|error| Error::config(FILE, error.message()))?;
        let section = written.model;
        let asked = Asked {
            context: section.context.map(NonZeroUsize::get),
            dtype: named("dtype", section.dtype, DtypeSetting::named)?,
            quantize: named("quantize", section.quantize, Quantize::named)?,
            kv_dtype: named("kv_cache_dtype", section.kv_cache_dtype, KvDtype::named)?,
            running: section.max_running.map(NonZeroUsize::get),
            waiting: section.max_queue.map(NonZeroUsize::get),
            idle_ttl: named("idle_ttl", section.idle_ttl, idle_ttl)?,
            ..Asked::default()
        };
        let pooling = named("pooling", section.pooling, pooling)?;
        Ok(Self { file: section.file, pooling, asked })
    }

    /// How long an adapter may be unused. Whatever else is asked for is its base's to say.
    pub(crate) fn of_adapter(files: &Files) -> Result<Option<Duration>, Error> {
        let mut settings = Self::read(files)?;
        let idle_ttl = settings.asked.idle_ttl.take();
        if settings != Self::default() {
            let reason = "of [model], an adapter takes idle_ttl alone; the rest is its base's";
            return Err(Error::config(FILE, reason));
        }
        Ok(idle_ttl)
    }

    /// Refuses what is asked of a model of another kind.
    pub(crate) fn check(&self, kind: ModelKind) -> Result<(), Error> {
        match self.pooling {
            Some(_) if kind != ModelKind::Embedding => {
                let reason = "model.pooling is for models that answer with a text's vector";
                Err(Error::config(FILE, reason))
            }
            _ => Ok(()),
        }
    }
}

/// What a setting's value stands for.
fn named<T, E: std::fmt::Display>(
    key: &str,
    value: Option<String>,
    read: impl Fn(&str) -> Result<T, E>,
) -> Result<Option<T>, Error> {
    let Some(value) = value else { return Ok(None) };
    let fault = |why: E| Error::config(FILE, format!("model.{key} is '{value}'; {why}"));
    read(&value).map(Some).map_err(fault)
}

/// Within what operators may set.
fn idle_ttl(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(30 * 24 * 3600);
    match parse_duration(text)? {
        duration if (LEAST..=MOST).contains(&duration) => Ok(duration),
        _ => Err("1s to 720h is possible".into()),
    }
}

fn pooling(name: &str) -> Result<Pooling, &'static str> {
    Pooling::named(name).ok_or("cls, lasttoken, mean, max and mean_sqrt_len are known")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ModelSettings, Error> {
        let contents = [(FILE.to_owned(), text.into())].into();
        ModelSettings::read(&Files { contents, ..Files::default() })
    }

    #[test]
    fn settings_are_read_and_what_is_wrong_in_them_is_named() {
        assert_eq!(read("").unwrap(), ModelSettings::default());
        let settings = read(
            "[model]\nfile = \"a.gguf\"\ncontext = 512\ndtype = \"f32\"\nquantize = \"q4_k\"\n\
             kv_cache_dtype = \"bf16\"\nmax_running = 4\nmax_queue = 9\npooling = \"cls\"\n\
             idle_ttl = \"5m\"",
        )
        .unwrap();
        let asked = Asked {
            context: Some(512),
            dtype: Some(DtypeSetting::F32),
            quantize: Some(Some(Quantize::Q4K)),
            kv_dtype: Some(Some(KvDtype::Bf16)),
            running: Some(4),
            waiting: Some(9),
            idle_ttl: Some(Duration::from_secs(300)),
            ..Asked::default()
        };
        let (file, pooling) = (Some("a.gguf".into()), Some(Pooling::Cls));
        assert_eq!(settings, ModelSettings { file, pooling, asked });
        assert!(settings.check(ModelKind::Embedding).is_ok());
        let of_adapter = |text: &str| {
            let contents = [(FILE.to_owned(), text.into())].into();
            ModelSettings::of_adapter(&Files { contents, ..Files::default() })
        };
        let ttl = of_adapter("[model]\nidle_ttl = \"5m\"").unwrap();
        assert_eq!((ttl, of_adapter("").unwrap()), (Some(Duration::from_secs(300)), None));
        let refused = of_adapter("[model]\nidle_ttl = \"5m\"\ncontext = 512").unwrap_err();
        assert!(refused.to_string().contains("an adapter takes idle_ttl alone"), "{refused}");
        assert!(settings.check(ModelKind::Generative).is_err());
        let none = read("[model]\nquantize = \"none\"").unwrap();
        assert_eq!(none.asked.quantize, Some(None));
        for wrong in [
            "quantize = \"q5\"",
            "quantise = \"q8_0\"",
            "dtype = \"int8\"",
            "context = 0",
            "context = \"long\"",
            "max_running = -1",
            "pooling = \"sum\"",
            "idle_ttl = \"soon\"",
            "idle_ttl = \"0s\"",
            "idle_ttl = \"18446744073709551615s\"",
            "kv_cache_dtype = \"fp8\"",
        ] {
            let error = read(&format!("[model]\n{wrong}")).unwrap_err().to_string();
            assert!(error.starts_with("roundhouse.toml: "), "{error}");
        }
        assert!(read("model = 1").is_err());
    }
}
