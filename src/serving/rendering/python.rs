//! The parts of Python that chat templates count on: how values print, `json.dumps`, `strftime`.

use std::fmt::{self, Write};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

/// Writes a value as Python's `str` does.
pub(super) fn write_str(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => write_repr(out, value),
    }
}

/// Writes a value as Python's `repr` does.
fn write_repr(out: &mut dyn Write, value: &Value) -> fmt::Result {
    if let Some(text) = value.as_str() {
        return write_quoted(out, text);
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Seq => write_list(out, value, '[', ']', |out, item| write_repr(out, item)),
        ValueKind::Map => write_list(out, value, '{', '}', |out, key| {
            write_repr(out, key)?;
            out.write_str(": ")?;
            write_repr(out, &value.get_item(key).unwrap_or_default())
        }),
        _ => write!(out, "{value}"),
    }
}

fn write_list(
    out: &mut dyn Write,
    value: &Value,
    open: char,
    close: char,
    mut item: impl FnMut(&mut dyn Write, &Value) -> fmt::Result,
) -> fmt::Result {
    out.write_char(open)?;
    for (index, element) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
        if index > 0 {
            out.write_str(", ")?;
        }
        item(out, &element)?;
    }
    out.write_char(close)
}

fn write_quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for character in text.chars() {
        match character {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c))?,
            c => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

/// `json.dumps` with the defaults that `transformers` gives it for templates: nothing is escaped
/// for HTML, text stays as it is, keys keep their order.
pub(super) fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    let invalid = |message| Error::new(ErrorKind::InvalidOperation, message);
    if value.is_undefined() {
        return Err(invalid("tojson: the value is undefined"));
    }
    let failed = |error| invalid("tojson: the value is not JSON serialisable").with_source(error);
    if sort_keys == Some(true) {
        let mut json = serde_json::to_value(value).map_err(failed)?;
        json.sort_all_objects();
        return dumped(&json, (indent, separators, ensure_ascii));
    }
    // Not by way of another tree of values: that takes several times what the text does.
    dumped(value, (indent, separators, ensure_ascii))
}

/// How JSON is written: width of its indentation, separators of items and of keys, ASCII alone.
type Written = (Option<usize>, Option<Vec<String>>, Option<bool>);

fn dumped(
    json: &impl Serialize,
    (indent, separators, ensure_ascii): Written,
) -> Result<Value, Error> {
    let invalid = |message| Error::new(ErrorKind::InvalidOperation, message);
    let failed = |error| invalid("tojson: the value is not JSON serialisable").with_source(error);
    let mut bytes = Vec::new();
    if let Some(width) = indent {
        let indent = " ".repeat(width.min(16));
        let formatter = PrettyFormatter::with_indent(indent.as_bytes());
        write_json(json, &mut bytes, formatter).map_err(failed)?;
    } else {
        let formatter = match separators.as_deref() {
            None => Separated { item: ", ".into(), key: ": ".into() },
            Some([item, key]) => Separated { item: item.clone(), key: key.clone() },
            Some(_) => return Err(invalid("tojson: separators are two strings")),
        };
        write_json(json, &mut bytes, formatter).map_err(failed)?;
    }
    let text = String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    Ok(Value::from(if ensure_ascii == Some(true) { ascii(&text) } else { text }))
}

fn write_json(
    json: &impl Serialize,
    bytes: &mut Vec<u8>,
    formatter: impl Formatter,
) -> Result<(), serde_json::Error> {
    json.serialize(&mut serde_json::Serializer::with_formatter(bytes, formatter))
}

/// One line with chosen separators; Python's default has a space behind each.
struct Separated {
    item: String,
    key: String,
}

impl Separated {
    fn next<W: ?Sized + io::Write>(&self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }
}

impl Formatter for Separated {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        self.next(writer, first)
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        self.next(writer, first)
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        writer.write_all(self.key.as_bytes())
    }
}

/// In JSON, characters beyond ASCII stand in strings only, where `\u` escapes are allowed.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            out.push(character);
            continue;
        }
        for unit in character.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
    out
}

/// `strftime_now`: the time in UTC. Directives that are not known stay as they are.
pub(super) fn strftime_now(format: &str) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(since.as_secs(), format)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

fn strftime(seconds: u64, format: &str) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (time / 3_600, time / 60 % 60, time % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[((days + 4) % 7) as usize]; // 1970-01-01 was a Thursday
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut directive = characters.next();
        let bare = directive == Some('-');
        if bare {
            directive = characters.next();
        }
        let two = |number: u64| {
            if bare { number.to_string() } else { format!("{number:02}") }
        };
        let text = match directive {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H') => two(hour),
            Some('I') => two(hour12),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        };
        out.push_str(&text);
    }
    out
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years that begin in March put the leap day last; eras have 400 of them.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        let cases = [
            (0, "Thursday 01 January 1970"),
            (951_782_400, "Tuesday 29 February 2000"),
            (1_735_689_599, "Tuesday 31 December 2024"),
            (1_795_132_800, "Friday 20 November 2026"),
        ];
        for (seconds, text) in cases {
            assert_eq!(strftime(seconds, "%A %d %B %Y"), text);
        }
        assert_eq!(
            strftime(1_735_689_599, "%-d %b %y %I:%M:%S %p %% %q"),
            "31 Dec 24 11:59:59 PM % %q"
        );
    }

    #[test]
    fn values_print_as_in_python() {
        let value = Value::from_serialize(serde_json::json!(
            {"b": [true, null, 1, 2.5], "a": "it's", "c": "say \"it's\"\n"}
        ));
        let mut out = String::new();
        write_str(&mut out, &value).unwrap();
        assert_eq!(out, r#"{'b': [True, None, 1, 2.5], 'a': "it's", 'c': 'say "it\'s"\n'}"#);
    }
}
