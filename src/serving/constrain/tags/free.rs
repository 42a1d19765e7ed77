//! Any text, up to what ends it or begins a tag in it.

use serde_json::{Map, Value};

use super::spelt::Spelt;
use super::{Place, Rules, texts};
use crate::Error;
use crate::constrain::literal;

/// Any characters. Special tokens are none.
const ANY: &str = "/(.|\\n)*/";

impl Rules {
    /// Any text without what it excludes, up to the first `end`.
    pub(super) fn any_text(
        &mut self,
        at: &Place,
        format: &Map<String, Value>,
        end: &Spelt,
    ) -> Result<String, Error> {
        let mut excluded = Vec::new();
        for name in ["excludes", "excluded_strs", "excluded_str"] {
            match format.get(name) {
                None | Some(Value::Null) => {}
                Some(Value::Array(none)) if none.is_empty() => {}
                Some(list) => {
                    let at = at.field(name);
                    let texts = texts(&at, list)?;
                    if texts.iter().any(|text| text.is_empty()) {
                        return Err(at.wrong("no text is without an empty one"));
                    }
                    excluded.extend(texts);
                }
            }
        }
        Ok(self.before(&without(&excluded), end))
    }

    /// The characters of a lexeme up to the first `end`; all of them where there is none.
    fn before(&mut self, free: &str, end: &Spelt) -> String {
        let (text, rest) = end.split();
        if end.is_empty() || !end.is_plain() {
            return format!("{} {rest}", self.terminal(&format!("({free}) {text}")));
        }
        self.up_to(free, &text)
    }

    /// The characters of a lexeme up to the first `text`.
    fn up_to(&mut self, free: &str, text: &str) -> String {
        let lexeme = self.terminal(&format!("({free}) {text}"));
        let name = format!("part{}", self.names);
        self.named(format!("{name}[lazy]"), &lexeme);
        name
    }
}

/// Any text in which none of these is.
fn without(excluded: &[&str]) -> String {
    if excluded.is_empty() {
        return ANY.to_owned();
    }
    let each: Vec<String> = excluded.iter().map(|text| literal(text)).collect();
    format!("{ANY} & ~({ANY} ({}) {ANY})", each.join(" | "))
}

/// What begins tags in a text.
pub(super) struct Triggers<'a> {
    each: Vec<(&'a str, Spelt)>,
}

impl<'a> Triggers<'a> {
    /// Reads `triggers`.
    ///
    /// # Errors
    /// `InvalidInput` that names them: none, an empty one, or one with a special token behind letters.
    pub(super) fn read(
        at: &Place,
        format: &'a Map<String, Value>,
        special: &[(String, u32)],
    ) -> Result<Self, Error> {
        let at = at.field("triggers");
        let all = texts(&at, format.get("triggers").unwrap_or(&Value::Null))?;
        let each: Vec<_> = all.into_iter().map(|text| (text, Spelt::of(text, special))).collect();
        if let Some((text, _)) = each
            .iter()
            .find(|(_, spelt)| !(spelt.begins_special() || spelt.is_plain()) || spelt.is_empty())
        {
            let message = format!("'{text}' is empty, or has a special token behind other letters");
            return Err(at.wrong(message));
        }
        Ok(Self { each })
    }

    pub(super) fn len(&self) -> usize {
        self.each.len()
    }

    /// Which one a tag begins with.
    ///
    /// # Errors
    /// `InvalidInput` where it is none, or more than one.
    pub(super) fn of(&self, at: &Place, begin: &str) -> Result<(usize, &'a str), Error> {
        let mut found =
            self.each.iter().enumerate().filter(|(_, (text, _))| begin.starts_with(text));
        match (found.next(), found.next()) {
            (Some((which, (text, _))), None) => Ok((which, text)),
            _ => Err(at
                .field("begin")
                .wrong("it begins with one of the triggers, and with one only")),
        }
    }

    /// Any text up to one of them.
    pub(super) fn reached(&self, which: usize, rules: &mut Rules) -> String {
        let spelt = &self.each[which].1;
        match spelt.is_plain() {
            true => rules.up_to(ANY, &spelt.expression()),
            false => rules.before(&self.plain(), spelt),
        }
    }

    /// Any text with none of them, up to `end`.
    pub(super) fn rest(&self, end: &Spelt, rules: &mut Rules) -> String {
        match !end.is_empty() && end.is_plain() {
            // Whichever comes first.
            true => rules.up_to(ANY, &end.expression()),
            false => rules.before(&self.plain(), end),
        }
    }

    /// Text without those that are text.
    fn plain(&self) -> String {
        let texts: Vec<&str> =
            self.each.iter().filter(|(_, spelt)| spelt.is_plain()).map(|(text, _)| *text).collect();
        without(&texts)
    }
}
