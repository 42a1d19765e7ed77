//! Texts of structural tags, with the special tokens that they name.

use crate::constrain::literal;

/// A text, cut where it names special tokens. Models write those as tokens and never as letters.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Spelt(Vec<Unit>);

#[derive(Debug, Clone, PartialEq)]
enum Unit {
    Text(String),
    Token(u32),
}

impl Spelt {
    /// Cuts a text: at each place the first of these special tokens that is named there.
    pub(super) fn of(text: &str, special: &[(String, u32)]) -> Self {
        let mut units = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            if let Some((name, id)) =
                special.iter().find(|(name, _)| rest.starts_with(name.as_str()))
            {
                if !plain.is_empty() {
                    units.push(Unit::Text(std::mem::take(&mut plain)));
                }
                units.push(Unit::Token(*id));
                rest = &rest[name.len()..];
            } else {
                plain.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
        if !plain.is_empty() {
            units.push(Unit::Text(plain));
        }
        Self(units)
    }

    /// This text and another behind it.
    pub(super) fn then(mut self, next: &Self) -> Self {
        self.0.extend(next.0.iter().cloned());
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a special token is the first of it.
    pub(super) fn begins_special(&self) -> bool {
        matches!(self.0.first(), Some(Unit::Token(_)))
    }

    /// Whether there is none in it.
    pub(super) fn is_plain(&self) -> bool {
        !self.0.iter().any(|unit| matches!(unit, Unit::Token(_)))
    }

    /// As rules write it; an empty text is one, too.
    pub(super) fn expression(&self) -> String {
        if self.0.is_empty() {
            return "\"\"".to_owned();
        }
        let units = self.0.iter().map(|unit| match unit {
            Unit::Text(text) => literal(text),
            Unit::Token(id) => format!("<[{id}]>"),
        });
        units.collect::<Vec<_>>().join(" ")
    }

    /// The text before the first special token, as a lexeme may have it, and the rest.
    pub(super) fn split(&self) -> (String, String) {
        let at = self.0.iter().position(|unit| matches!(unit, Unit::Token(_)));
        let (text, rest) = self.0.split_at(at.unwrap_or(self.0.len()));
        (Self(text.to_vec()).expression(), Self(rest.to_vec()).expression())
    }
}
