//! The encoder families: which reader maps a configuration to the one encoder, what each calls its
//! heads, and which architectures are what.

use serde_json::Value;

use super::{Dense, EncoderConfig, HeadConfig, Selects, Spare, Squash, deberta, keys, modern};
use crate::Error;
use crate::activation::Activation;
use crate::config::raw::keys as read;
use crate::config::{CONFIG, Labels, labels};
use crate::files::Files;

/// A family of encoders.
#[derive(Debug)]
struct Family {
    /// How its architectures begin, each with the type of model that it is.
    names: &'static [(&'static str, &'static str)],
    read: fn(&Value) -> Result<EncoderConfig, Error>,
    classes: Style,
    words: Style,
}

/// What a family calls a head's parts.
#[derive(Debug, Clone, Copy)]
struct Style {
    dense: &'static str,
    /// Whether that is a name of the bare encoder's.
    inside: bool,
    squash: Bends,
    norm: Option<&'static str>,
    last: &'static str,
    bias: &'static [&'static str],
}

/// What bends the numbers behind a head's first projection.
#[derive(Debug, Clone, Copy)]
enum Bends {
    Tanh,
    Relu,
    Gelu,
    /// As the feed-forward blocks.
    Hidden,
    /// As `classifier_activation` says.
    Classifier,
    /// As `pooler_hidden_act` says.
    Pooler,
}

const BERT_CLASSES: Style = Style {
    dense: "pooler.dense",
    inside: true,
    squash: Bends::Tanh,
    norm: None,
    last: "classifier",
    bias: &["classifier.bias"],
};
const BERT_WORDS: Style = Style {
    dense: "cls.predictions.transform.dense",
    inside: false,
    squash: Bends::Hidden,
    norm: Some("cls.predictions.transform.LayerNorm"),
    last: "cls.predictions.decoder",
    bias: &["cls.predictions.bias", "cls.predictions.decoder.bias"],
};
const ROBERTA_CLASSES: Style = Style {
    dense: "classifier.dense",
    inside: false,
    last: "classifier.out_proj",
    bias: &["classifier.out_proj.bias"],
    ..BERT_CLASSES
};
const ROBERTA_WORDS: Style = Style {
    dense: "lm_head.dense",
    inside: false,
    squash: Bends::Gelu,
    norm: Some("lm_head.layer_norm"),
    last: "lm_head.decoder",
    bias: &["lm_head.bias", "lm_head.decoder.bias"],
};
const MODERN_CLASSES: Style = Style {
    dense: "head.dense",
    inside: false,
    squash: Bends::Classifier,
    norm: Some("head.norm"),
    last: "classifier",
    bias: &["classifier.bias"],
};

static FAMILIES: [Family; 8] = [
    Family {
        names: &[("Bert", "bert")],
        read: keys::bert,
        classes: BERT_CLASSES,
        words: BERT_WORDS,
    },
    Family {
        names: &[("Roberta", "roberta"), ("XLMRoberta", "xlm-roberta"), ("Camembert", "camembert")],
        read: keys::roberta,
        classes: ROBERTA_CLASSES,
        words: ROBERTA_WORDS,
    },
    Family {
        names: &[("DistilBert", "distilbert")],
        read: keys::distilbert,
        classes: Style {
            dense: "pre_classifier",
            inside: false,
            squash: Bends::Relu,
            ..BERT_CLASSES
        },
        words: Style {
            dense: "vocab_transform",
            norm: Some("vocab_layer_norm"),
            last: "vocab_projector",
            bias: &["vocab_projector.bias"],
            ..BERT_WORDS
        },
    },
    Family {
        names: &[("MPNet", "mpnet")],
        read: keys::mpnet,
        classes: ROBERTA_CLASSES,
        words: ROBERTA_WORDS,
    },
    Family {
        names: &[("ModernBert", "modernbert")],
        read: modern::modern,
        classes: MODERN_CLASSES,
        words: Style { last: "decoder", bias: &["decoder.bias"], ..MODERN_CLASSES },
    },
    Family {
        names: &[("DebertaV2", "deberta-v2")],
        read: deberta::deberta,
        classes: Style { inside: false, squash: Bends::Pooler, ..BERT_CLASSES },
        words: BERT_WORDS,
    },
    Family {
        names: &[("Electra", "electra")],
        read: keys::electra,
        classes: Style { squash: Bends::Gelu, ..ROBERTA_CLASSES },
        words: Style {
            dense: "generator_predictions.dense",
            norm: Some("generator_predictions.LayerNorm"),
            last: "generator_lm_head",
            bias: &["generator_lm_head.bias"],
            ..ROBERTA_WORDS
        },
    },
    Family {
        names: &[("Albert", "albert")],
        read: keys::albert,
        classes: Style { dense: "pooler", ..BERT_CLASSES },
        words: Style {
            dense: "predictions.dense",
            norm: Some("predictions.LayerNorm"),
            last: "predictions.decoder",
            bias: &["predictions.bias", "predictions.decoder.bias"],
            ..BERT_WORDS
        },
    },
];

/// What an architecture of an encoder answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// One vector for a text.
    Vector,
    /// Labels of a text.
    Classes,
    /// Labels of each token.
    TokenClasses,
    /// Tokens that may stand at a place.
    Words,
    /// Where an answer begins and ends.
    Places,
}

/// How architectures end, and what they then answer with.
const ENDS: [(&str, Answers); 5] = [
    ("Model", Answers::Vector),
    ("ForSequenceClassification", Answers::Classes),
    ("ForTokenClassification", Answers::TokenClasses),
    ("ForMaskedLM", Answers::Words),
    ("ForQuestionAnswering", Answers::Places),
];

/// An architecture that is served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    family: &'static Family,
    pub(crate) answers: Answers,
}

/// The encoder that an architecture names, if it is one that is served. `has_modules`: the
/// artefact says how vectors are pooled.
pub(crate) fn find(architecture: &str, has_modules: bool) -> Option<Found> {
    FAMILIES.iter().find_map(|family| {
        let ends = family.names.iter().filter_map(|(name, _)| architecture.strip_prefix(name));
        let mut answers = ends.filter_map(|end| match end {
            // Encoders fine-tuned from these keep the name; without modules they are no embedders.
            "ForMaskedLM" | "ForPreTraining" if has_modules => Some(Answers::Vector),
            end => ENDS.iter().find(|(name, _)| *name == end).map(|(_, answers)| *answers),
        });
        answers.next().map(|answers| Found { family, answers })
    })
}

/// The bare encoder of models of that type, if it is served.
pub(crate) fn of_type(model_type: &str) -> Option<String> {
    let mut names = FAMILIES.iter().flat_map(|family| family.names);
    names.find(|(_, of)| *of == model_type).map(|(name, _)| format!("{name}Model"))
}

impl Found {
    /// Reads the encoder's shape.
    ///
    /// # Errors
    /// When the file asks for what is not computed.
    pub(crate) fn config(self, json: &Value) -> Result<EncoderConfig, Error> {
        (self.family.read)(json)
    }

    /// Reads the head's shape and a classifier's labels; no head where vectors are pooled.
    ///
    /// # Errors
    /// When the file asks for what is not computed.
    pub(crate) fn head(
        self,
        files: &Files,
        json: &Value,
        config: &EncoderConfig,
    ) -> Result<(Option<HeadConfig>, Option<Labels>), Error> {
        let Family { classes, words, .. } = self.family;
        let is_modern = config.norms_first;
        match self.answers {
            Answers::Vector => Ok((None, None)),
            Answers::Classes => {
                let labels = labels(files)?;
                let head = self.classes(json, config, labels.names.len())?;
                Ok((Some(head), Some(labels)))
            }
            Answers::TokenClasses => {
                let labels = labels(files)?;
                let shape = (labels.names.len(), "classifier", CLASSIFIER_BIAS);
                let head = self.of_tokens(json, config, shape)?;
                Ok((Some(head), Some(labels)))
            }
            Answers::Words => {
                let Tied { tie_word_embeddings, decoder_bias } = read(json)?;
                let has_bias = !is_modern || decoder_bias.unwrap_or(true);
                let bias = if has_bias { words.bias } else { &[] };
                let first = Some(words.dense(json, config, config.embedding)?);
                let tied = tie_word_embeddings.unwrap_or(true);
                Ok((Some(HeadConfig { first, tied, ..bare(config.vocab, words.last, bias) }), None))
            }
            Answers::Places => {
                let count = labels(files)?.names.len();
                if count != PLACES {
                    let reason = format!(
                        "question answering with {count} labels is not computed; with {PLACES} is"
                    );
                    return Err(Error::config(CONFIG, reason));
                }
                let head = match is_modern {
                    true => self.of_tokens(json, config, (PLACES, classes.last, classes.bias))?,
                    false => bare(PLACES, "qa_outputs", &["qa_outputs.bias"]),
                };
                Ok((Some(head), None))
            }
        }
    }
}

/// What most families call the bias of labels.
const CLASSIFIER_BIAS: &[&str] = &["classifier.bias"];

impl Found {
    /// A head for so many labels of a text.
    fn classes(
        self,
        json: &Value,
        config: &EncoderConfig,
        width: usize,
    ) -> Result<HeadConfig, Error> {
        let classes = self.family.classes;
        let selects = if config.norms_first { modern::selects(json)? } else { Selects::First };
        let first = Some(classes.dense(json, config, config.hidden)?);
        Ok(HeadConfig { selects, first, ..bare(width, classes.last, classes.bias) })
    }

    /// A head that reads each token: no more than the last projection, but for ModernBERT.
    fn of_tokens(
        self,
        json: &Value,
        config: &EncoderConfig,
        (width, last, bias): (usize, &'static str, &'static [&'static str]),
    ) -> Result<HeadConfig, Error> {
        let dense = || self.family.classes.dense(json, config, config.hidden);
        let first = config.norms_first.then(dense).transpose()?;
        Ok(HeadConfig { first, ..bare(width, last, bias) })
    }

    /// The heads that adapters may bring; `has_pooler`: the files have one under this name, and no
    /// modules that pool otherwise. `None` where the configuration describes no such heads.
    pub(crate) fn spare(
        self,
        json: &Value,
        config: &EncoderConfig,
        has_pooler: impl Fn(&str) -> bool,
    ) -> Option<Spare> {
        let classes = self.classes(json, config, 0).ok()?;
        let shape = (0, "classifier", CLASSIFIER_BIAS);
        let token_classes = self.of_tokens(json, config, shape).ok()?;
        let is_spare = |dense: &&Dense| {
            let uses_none = matches!(self.answers, Answers::Vector | Answers::Words);
            uses_none && dense.inside && has_pooler(dense.name)
        };
        let pooler = classes.first.as_ref().filter(is_spare).cloned();
        Some(Spare { classes, token_classes, pooler })
    }
}

/// A last projection that reads each token, and nothing before it.
fn bare(width: usize, last: &'static str, bias: &'static [&'static str]) -> HeadConfig {
    HeadConfig { selects: Selects::Tokens, first: None, last, width, tied: false, bias }
}

/// An answer's begin and its end.
const PLACES: usize = 2;

#[derive(serde::Deserialize)]
struct Tied {
    tie_word_embeddings: Option<bool>,
    decoder_bias: Option<bool>,
}

impl Style {
    fn dense(self, json: &Value, config: &EncoderConfig, width: usize) -> Result<Dense, Error> {
        let squash = match self.squash {
            Bends::Tanh => Squash::Tanh,
            Bends::Relu => Squash::By(Activation::Relu),
            Bends::Gelu => Squash::By(Activation::Gelu),
            Bends::Hidden => Squash::By(config.activation),
            Bends::Classifier => Squash::By(modern::classifier_activation(json)?),
            Bends::Pooler => Squash::By(deberta::pooler_activation(json)?),
        };
        let bias = match self.squash {
            Bends::Classifier => modern::classifier_bias(json)?,
            _ => true,
        };
        Ok(Dense { name: self.dense, inside: self.inside, bias, squash, norm: self.norm, width })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::families::SERVED;

    #[test]
    fn refusals_list_every_family() {
        for (name, _) in FAMILIES.iter().flat_map(|family| family.names) {
            assert!(SERVED.contains(name), "{name}");
        }
        assert!(ENDS.iter().all(|(end, _)| SERVED.contains(end)));
    }

    #[test]
    fn architectures_are_found_by_family_and_end() {
        let answers = |name, modules| find(name, modules).map(|found| found.answers);
        assert_eq!(answers("BertModel", false), Some(Answers::Vector));
        assert_eq!(answers("XLMRobertaForMaskedLM", false), Some(Answers::Words));
        assert_eq!(answers("MPNetForMaskedLM", true), Some(Answers::Vector));
        assert_eq!(answers("ElectraForPreTraining", false), None);
        assert_eq!(answers("DistilBertForQuestionAnswering", true), Some(Answers::Places));
        assert_eq!(answers("BertLMHeadModel", false), None);
        assert_eq!(answers("GemmaModel", false), None);
    }
}
