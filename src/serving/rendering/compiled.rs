//! Chat templates, compiled: Jinja as `transformers` runs it, with limits, as artefacts are not ours.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use minijinja::{AutoEscape, Environment, ErrorKind};
use serde_json::{Map, Number, Value};

use super::python;
use crate::Error;

/// Instructions a template may execute: thousands of messages, and less than a second.
const FUEL: u64 = 5_000_000;
/// The longest prompt a template may write, in bytes; several times the largest body we take.
pub const OUTPUT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The longest message of an error, in bytes: twice what is told of one.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024;
/// What is kept compiled: so many artefacts' templates, and so many bytes of their sources. Compiled
/// they are some ten times as large.
const KEPT: usize = 64;
const KEPT_BYTES: usize = 1024 * 1024;

/// An artefact's templates, ready to be rendered.
#[derive(Debug)]
pub struct Compiled {
    environment: Environment<'static>,
    /// Templates that cannot be parsed: line and message.
    broken: BTreeMap<String, (usize, String)>,
    /// Of all sources.
    bytes: usize,
}

impl Compiled {
    /// Parses templates by name. What is wrong with one is told when it is rendered.
    pub fn new(sources: &BTreeMap<String, String>) -> Self {
        let mut environment = environment();
        let mut broken = BTreeMap::new();
        for (name, source) in sources {
            let source = without_generation_tags(source);
            if let Err(error) = environment.add_template_owned(name.clone(), source) {
                broken.insert(name.clone(), place(&error));
            }
        }
        let bytes = sources.iter().map(|(name, source)| name.len() + source.len()).sum();
        Self { environment, broken, bytes }
    }

    /// Renders one of them.
    ///
    /// # Errors
    /// `InvalidInput` for what it raises, with its line, and where it goes beyond its steps or output.
    pub fn render(&self, name: &str, context: Map<String, Value>) -> Result<String, Error> {
        if let Some((line, message)) = self.broken.get(name) {
            return Err(Error::Template { line: *line, message: message.clone() });
        }
        let failed = |error: &minijinja::Error| {
            let (line, message) = place(error);
            Error::Template { line, message }
        };
        let template = self.environment.get_template(name).map_err(|error| failed(&error))?;
        let mut output = Limited { bytes: Vec::new(), full: false };
        let context = of_object(context);
        let rendered = template.render_captured_to(context, &mut output).map(drop);
        if output.full {
            return Err(Error::TemplateOutput(OUTPUT_BYTES_MAX));
        }
        rendered.map_err(|error| failed(&error))?;
        Ok(String::from_utf8(output.bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }
}

/// What was rendered last, compiled, by its sources' digest.
#[derive(Debug)]
pub struct CompiledCache {
    /// Those asked for last are last.
    kept: VecDeque<([u8; 32], Arc<Compiled>)>,
    /// Bytes of all their sources at most.
    most: usize,
}

impl Default for CompiledCache {
    fn default() -> Self {
        Self::within(KEPT_BYTES)
    }
}

impl CompiledCache {
    /// Keeps templates whose sources are of so many bytes together, and never of more than a mebibyte.
    pub fn within(bytes: usize) -> Self {
        Self { kept: VecDeque::new(), most: bytes.min(KEPT_BYTES) }
    }

    /// Templates that are kept.
    pub fn get(&mut self, digest: &[u8; 32]) -> Option<Arc<Compiled>> {
        let at = self.kept.iter().rposition(|(kept, _)| kept == digest)?;
        let found = self.kept.remove(at)?;
        let compiled = Arc::clone(&found.1);
        self.kept.push_back(found);
        Some(compiled)
    }

    /// Keeps templates, and leaves out what would take all room: it is compiled again, and takes nothing
    /// from other renderings meanwhile.
    pub fn put(&mut self, digest: [u8; 32], compiled: &Arc<Compiled>) {
        self.kept.retain(|(kept, _)| *kept != digest);
        if compiled.bytes > self.most {
            return;
        }
        self.kept.push_back((digest, Arc::clone(compiled)));
        let mut bytes: usize = self.kept.iter().map(|(_, compiled)| compiled.bytes).sum();
        while self.kept.len() > KEPT || bytes > self.most {
            let oldest = self.kept.pop_front();
            bytes -= oldest.map_or(0, |(_, compiled)| compiled.bytes);
        }
    }
}

/// The same as templates see it. Each value is gone when it is made into another: both at once would take
/// twice the memory.
fn of_object(object: Map<String, Value>) -> minijinja::Value {
    object.into_iter().map(|(name, value)| (name, of_value(value))).collect()
}

fn of_value(value: Value) -> minijinja::Value {
    match value {
        Value::Null => ().into(),
        Value::Bool(is) => is.into(),
        Value::Number(number) => of_number(&number),
        Value::String(text) => text.into(),
        Value::Array(list) => list.into_iter().map(of_value).collect(),
        Value::Object(object) => of_object(object),
    }
}

fn of_number(number: &Number) -> minijinja::Value {
    match (number.as_u64(), number.as_i64()) {
        (Some(number), _) => number.into(),
        (None, Some(number)) => number.into(),
        (None, None) => number.as_f64().unwrap_or_default().into(),
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, _, value| python::write_str(out, value).map_err(Into::into));
    environment.add_filter("tojson", python::tojson);
    environment.add_filter(
        "string",
        |value: &minijinja::Value| -> Result<String, minijinja::Error> {
            let mut out = String::new();
            python::write_str(&mut out, value)?;
            Ok(out)
        },
    );
    // As in Jinja, where `None` cannot be looped over.
    environment.add_test("iterable", |value: &minijinja::Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    environment.add_function("strftime_now", |format: &str| python::strftime_now(format));
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment
}

/// `{% generation %}` marks the assistant's words for training; for prompts it is a block that
/// does nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        // Behind the opening: of `{%}` the percent sign is not the end's, too.
        let Some(end) = tag[2..].find("%}").map(|at| at + 2) else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end);
        match tag[2..].trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn place(error: &minijinja::Error) -> (usize, String) {
    let mut message = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("it took more than {FUEL} steps"),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    };
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    (error.line().unwrap_or(0), message)
}

/// A buffer that refuses to grow past the limit.
struct Limited {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX {
            self.full = true;
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_last_is_kept_within_its_bounds() {
        let compiled = |bytes: usize| {
            let source = "x".repeat(bytes.saturating_sub("default".len()));
            Arc::new(Compiled::new(&[("default".to_owned(), source)].into()))
        };
        let (small, mut cache) = (compiled(10), CompiledCache::default());
        let digest = |number: usize| [u8::try_from(number).unwrap(); 32];
        for number in 0..KEPT {
            cache.put(digest(number), &small);
        }
        assert!(cache.get(&digest(0)).is_some());
        cache.put(digest(KEPT), &small);
        assert!(cache.get(&digest(1)).is_none(), "it was asked for before all others");
        assert!(cache.get(&digest(0)).is_some() && cache.get(&digest(KEPT)).is_some());
        cache.put(digest(99), &compiled(KEPT_BYTES - 25));
        assert_eq!(cache.kept.len(), 3, "it leaves room for two more");
        cache.put(digest(100), &compiled(KEPT_BYTES + 1));
        assert!(cache.get(&digest(100)).is_none(), "one that is larger than all of it");
        assert_eq!(cache.kept.len(), 3, "and costs none of the others its place");
        cache.put(digest(101), &compiled(KEPT_BYTES));
        assert_eq!(cache.kept.len(), 1);
        let mut narrow = CompiledCache::within(100);
        narrow.put(digest(0), &compiled(101));
        narrow.put(digest(1), &compiled(60));
        narrow.put(digest(2), &compiled(60));
        assert_eq!(narrow.kept.iter().map(|(kept, _)| *kept).collect::<Vec<_>>(), [digest(2)]);
    }

    #[test]
    fn templates_see_values_as_they_were_sent() {
        let Value::Object(context) = serde_json::json!({
            "z": [0, 3, u64::MAX, i64::MIN, -1, 0.1, 1e300, 5e-324, -0.0, 1.0, null, true, ""],
            "a": {"é🚂\u{0}": {"b": [], "a": {}}, "1": "a text that is longer than a few letters"},
        }) else {
            panic!("it is an object")
        };
        let (here, known) =
            (of_object(context.clone()), minijinja::Value::from_serialize(context.clone()));
        assert_eq!(here, known);
        assert_eq!(format!("{here:?}"), format!("{known:?}"));
        assert_eq!(serde_json::to_value(&here).unwrap(), Value::Object(context));
    }

    #[test]
    fn an_errors_message_is_bounded() {
        let raises = "{{ raise_exception('é' * 100000) }}".to_owned();
        let compiled = Compiled::new(&[("default".to_owned(), raises)].into());
        let Err(Error::Template { line: 1, message }) = compiled.render("default", Map::new())
        else {
            panic!("it does not raise");
        };
        assert_eq!(message, "é".repeat(MESSAGE_BYTES_MAX / 2));
    }
}
