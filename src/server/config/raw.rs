//! The settings as written: file, environment and flags behind one question, "what does
//! this key say, and who said it".

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use roundhouse_types::Bytes;

use super::Fault;
use super::keys::{self, Written};
use super::{parse_duration, show_duration};
use crate::cli::ServeFlags;

/// The version of the file's format that we read.
const VERSION: i64 = 1;

/// A setting as text, with who said it for the fault that may follow.
#[derive(Debug, Clone)]
pub(super) struct Said {
    /// The value as text.
    pub(super) text: String,
    /// ` (set by --listen)`; empty for the file, where the key says it.
    by: String,
}

/// All sources of settings, and the faults found so far.
pub(super) struct Sources<'a> {
    /// The file's content; empty without one.
    pub(super) file: toml::Table,
    pub(super) flags: &'a ServeFlags,
    flag_values: BTreeMap<&'static str, String>,
    env: &'a dyn Fn(&str) -> Option<String>,
    /// What the platform's own variables say.
    platform: BTreeMap<&'static str, Said>,
    /// Tells whether the machine has a file or folder.
    exists: fn(&Path) -> bool,
    faults: Vec<Fault>,
}

impl<'a> Sources<'a> {
    /// Takes the file's text (if there is one), the environment and flags; faults of the
    /// file as a whole are kept for [`Sources::into_faults`].
    pub(super) fn new(
        text: Option<&str>,
        env: &'a dyn Fn(&str) -> Option<String>,
        flags: &'a ServeFlags,
    ) -> Self {
        let mut faults = Vec::new();
        let file = match text.map(str::parse::<toml::Table>) {
            None => toml::Table::new(),
            Some(Ok(table)) => {
                check_version(&table, &mut faults);
                faults.extend(keys::unknown(&table));
                table
            }
            Some(Err(error)) => {
                faults.push(Fault::new("config", syntax(text.unwrap_or_default(), &error)));
                toml::Table::new()
            }
        };
        let (flag_values, platform) = (flags.values(), BTreeMap::new());
        Self { file, flags, flag_values, env, platform, exists: |_| false, faults }
    }

    /// The same on a machine that can be looked at.
    pub(super) fn on(self, exists: fn(&Path) -> bool) -> Self {
        Self { exists, ..self }
    }

    /// Whether the machine has this file or folder.
    pub(super) fn exists(&self, path: &Path) -> bool {
        (self.exists)(path)
    }

    /// Takes what a variable of the platform says about a key.
    pub(super) fn platform(&mut self, name: &'static str, text: String, variable: &str) {
        self.platform.insert(name, Said { text, by: format!(" (set by {variable})") });
    }

    /// Records a fault.
    pub(super) fn fault(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.faults.push(Fault::new(key, message));
    }

    /// Records several faults.
    pub(super) fn faults(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.extend(faults);
    }

    /// Everything that was wrong.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        self.faults
    }

    /// One environment variable; an empty one counts as absent.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    /// What a flag or the environment says about a key, the flag first.
    pub(super) fn outside_file(&mut self, name: &'static str) -> Option<Said> {
        let key = keys::find(name);
        if let (Some(text), Some(flag)) = (self.flag_values.get(name), key.flag) {
            return Some(Said { text: text.clone(), by: format!(" (set by --{flag})") });
        }
        let said: Vec<(String, String)> = key
            .variables()
            .into_iter()
            .filter_map(|variable| Some((self.variable(&variable)?, variable)))
            .collect();
        let (text, by) = said.first()?.clone();
        if let Some((_, other)) = said.iter().find(|(other, _)| *other != text) {
            self.fault(name, format!("{by} and {other} both set it and differ; keep one"));
        }
        Some(Said { text, by: format!(" (set by {by})") })
    }

    /// What the file says about a key.
    pub(super) fn in_file(&mut self, name: &'static str) -> Option<Said> {
        let (section, leaf) = name.split_once('.').expect("keys are section.leaf");
        let value = self.file.get(section)?.as_table()?.get(leaf)?.clone();
        let written = keys::find(name).written;
        let text = match (written, value) {
            (Written::Text | Written::Size, toml::Value::String(text)) => text,
            (Written::Size | Written::Count, toml::Value::Integer(number)) => number.to_string(),
            (Written::Switch, toml::Value::Boolean(on)) => on.to_string(),
            (_, other) => {
                let found = other.type_str();
                self.fault(name, format!("expected {}, found {found}", written.expected()));
                return None;
            }
        };
        Some(Said { text, by: String::new() })
    }

    /// What the first source that knows says about a key: flags, our own variables, the platform's,
    /// the file.
    pub(super) fn said(&mut self, name: &'static str) -> Option<Said> {
        let told = self.outside_file(name).or_else(|| self.platform.get(name).cloned());
        told.or_else(|| self.in_file(name))
    }

    /// Reads a value that somebody wrote; what cannot be read is a fault.
    pub(super) fn read<T>(
        &mut self,
        name: &'static str,
        said: Said,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match parse(&said.text) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(name, format!("{message}{}", said.by));
                None
            }
        }
    }

    /// A value of a key, if anyone wrote one.
    pub(super) fn optional<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let said = self.said(name)?;
        self.read(name, said, parse)
    }

    /// A size within a range, if anyone wrote one.
    pub(super) fn size(
        &mut self,
        name: &'static str,
        range: RangeInclusive<Bytes>,
    ) -> Option<Bytes> {
        self.optional(name, |text| {
            let size = text.parse::<Bytes>().map_err(|error| error.to_string())?;
            within(size, &range, |size| size.to_string())
        })
    }

    /// A duration within a range, if anyone wrote one.
    pub(super) fn duration(
        &mut self,
        name: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.optional(name, |text| within(parse_duration(text)?, &range, |it| show_duration(*it)))
    }

    /// A whole number within a range, if anyone wrote one.
    pub(super) fn count(
        &mut self,
        name: &'static str,
        range: RangeInclusive<usize>,
    ) -> Option<usize> {
        self.optional(name, |text| {
            let number =
                text.trim().parse().map_err(|_| format!("'{text}' is not a whole number"))?;
            within(number, &range, ToString::to_string)
        })
    }

    /// A switch; off where nobody wrote it is up to the caller.
    pub(super) fn switch(&mut self, name: &'static str) -> Option<bool> {
        self.optional(name, |text| match text.trim() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(format!("'{text}' is neither true nor false")),
        })
    }
}

fn within<T: PartialOrd>(
    value: T,
    range: &RangeInclusive<T>,
    show: impl Fn(&T) -> String,
) -> Result<T, String> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(format!(
        "{} is out of range: {} to {}",
        show(&value),
        show(range.start()),
        show(range.end())
    ))
}

/// Where and what; the line itself is left out, as it may hold a secret.
fn syntax(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    format!("is not TOML, line {line}: {}", error.message())
}

fn check_version(table: &toml::Table, faults: &mut Vec<Fault>) {
    match table.get("version") {
        Some(toml::Value::Integer(VERSION)) => {}
        Some(other) => faults.push(Fault::new(
            "version",
            format!("{other} is not a version we read; write version = {VERSION}"),
        )),
        None => faults.push(Fault::new(
            "version",
            format!("is missing; begin the file with version = {VERSION}"),
        )),
    }
}
