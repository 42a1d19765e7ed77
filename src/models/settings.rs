//! What an artefact asks for itself: `[model]` in its `roundhouse.toml`.

use serde::Deserialize;

use crate::Error;
use crate::files::Files;
use crate::inspect::Quantize;

/// The file with an artefact's own settings.
pub(crate) const FILE: &str = "roundhouse.toml";

/// An artefact's own settings. What it does not say is the operator's to decide.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelSettings {
    /// The weight file, where several lie side by side.
    pub(crate) file: Option<String>,
    /// Whether and how to quantise; outer `None` where it does not say.
    pub(crate) quantize: Option<Option<Quantize>>,
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
    quantize: Option<String>,
}

impl ModelSettings {
    /// Reads them; without the file, nothing is asked for.
    pub(crate) fn read(files: &Files) -> Result<Self, Error> {
        let Some(content) = files.contents.get(FILE) else { return Ok(Self::default()) };
        let text =
            str::from_utf8(content).map_err(|error| Error::config(FILE, error.to_string()))?;
        let written: Written =
            toml::from_str(text).map_err(|error| Error::config(FILE, error.message()))?;
        let Section { file, quantize } = written.model;
        let quantize = match quantize {
            None => None,
            Some(name) => Some(Quantize::named(&name).map_err(|expected| {
                Error::config(FILE, format!("model.quantize is '{name}'; {expected}"))
            })?),
        };
        Ok(Self { file, quantize })
    }
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
        let settings = read("[model]\nfile = \"a.gguf\"\nquantize = \"q4_k\"").unwrap();
        assert_eq!(settings.file.as_deref(), Some("a.gguf"));
        assert_eq!(settings.quantize, Some(Some(Quantize::Q4K)));
        assert_eq!(read("[model]\nquantize = \"none\"").unwrap().quantize, Some(None));
        for wrong in ["[model]\nquantize = \"q5\"", "[model]\nquantise = \"q8_0\"", "model = 1"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.starts_with("roundhouse.toml: "), "{error}");
        }
    }
}
