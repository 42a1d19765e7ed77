//! Texts that an embedding model wants before its inputs.

use std::collections::BTreeMap;

use crate::Error;

/// What sentence-transformers calls the prompts of queries and of documents, the likeliest first.
const QUERY: [&str; 1] = ["query"];
const DOCUMENT: [&str; 3] = ["document", "passage", "corpus"];
/// Names of prompts that an error tells at most.
const SHOWN: usize = 16;

/// Texts that an embedding model wants before its inputs, by name, as sentence-transformers keeps
/// them in `config_sentence_transformers.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmbeddingPrompts {
    /// By name.
    pub texts: BTreeMap<String, String>,
    /// Which one goes before an input where a request names none.
    pub default: Option<String>,
}

impl EmbeddingPrompts {
    /// What goes before an input; empty where nothing does.
    ///
    /// # Errors
    /// `InvalidInput` where there is none of that name.
    pub(crate) fn named(&self, name: Option<&str>) -> Result<&str, Error> {
        let Some(name) = name else { return Ok(self.usual()) };
        self.texts.get(name).map(String::as_str).ok_or_else(|| {
            let names: Vec<&str> = self.texts.keys().map(String::as_str).take(SHOWN).collect();
            let message = match names.is_empty() {
                true => "the model has no prompts".to_owned(),
                false => format!("'{name}' is none of the model's prompts: {}", names.join(", ")),
            };
            Error::field("prompt_name", message)
        })
    }

    /// What goes before a query where documents are looked for.
    pub(crate) fn of_query(&self) -> &str {
        self.first(&QUERY)
    }

    /// What goes before a document that is looked for.
    pub(crate) fn of_document(&self) -> &str {
        self.first(&DOCUMENT)
    }

    /// What goes before a text where nothing else is said.
    pub(crate) fn usual(&self) -> &str {
        self.default.as_ref().and_then(|name| self.texts.get(name)).map_or("", String::as_str)
    }

    fn first(&self, names: &[&str]) -> &str {
        let found = names.iter().find_map(|name| self.texts.get(*name));
        found.map_or_else(|| self.usual(), String::as_str)
    }
}

/// The text with what goes before it.
pub(crate) fn before(prompt: &str, text: String) -> String {
    if prompt.is_empty() { text } else { format!("{prompt}{text}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(texts: &[(&str, &str)], default: Option<&str>) -> EmbeddingPrompts {
        let texts = texts.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
        EmbeddingPrompts { texts, default: default.map(Into::into) }
    }

    #[test]
    fn queries_and_documents_have_their_own_or_the_usual_prompt() {
        let none = EmbeddingPrompts::default();
        assert_eq!((none.usual(), none.of_query(), none.of_document()), ("", "", ""));
        let texts = [("query", "Q: "), ("passage", "P: "), ("corpus", "C: "), ("sts", "S: ")];
        let several = prompts(&texts, Some("sts"));
        assert_eq!((several.usual(), several.of_query()), ("S: ", "Q: "));
        assert_eq!(several.of_document(), "P: ");
        let only = prompts(&[("sts", "S: ")], Some("sts"));
        assert_eq!((only.of_query(), only.of_document()), ("S: ", "S: "));
    }

    #[test]
    fn a_prompt_that_is_not_there_is_told_with_those_that_are() {
        let some = prompts(&[("query", "Q: "), ("sts", "S: ")], None);
        assert_eq!(some.named(Some("query")).unwrap(), "Q: ");
        assert_eq!(some.named(None).unwrap(), "");
        let said = some.named(Some("Query")).unwrap_err().to_string();
        assert!(said.contains("prompt_name") && said.contains("query, sts"), "{said}");
        let said = EmbeddingPrompts::default().named(Some("query")).unwrap_err().to_string();
        assert!(said.contains("no prompts"), "{said}");
    }
}
