//! What the server and a process that renders say to each other.
//!
//! A frame is a little-endian `u64` (the length of what follows), one byte for its kind, and the rest.
//! Texts and lists go with their length before them. Values are written as they are in memory, not as
//! JSON: numbers come back to the bit, and there is nothing to escape.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use roundhouse_serving::{Error, MESSAGE_BYTES_MAX, OUTPUT_BYTES_MAX};
use serde_json::{Map, Number, Value};

/// What a template is known by.
pub(super) type Digest = [u8; 32];

/// The longest that a process says.
pub(super) const ANSWER_BYTES_MAX: u64 = (OUTPUT_BYTES_MAX + MESSAGE_BYTES_MAX) as u64;

/// What is read of a frame before there is room for more.
const FIRST_PART: usize = 64 * 1024;

const RENDER: u8 = 1;
const SOURCES: u8 = 2;

const READY: u8 = 1;
const UNSEALED: u8 = 2;
const TEXT: u8 = 3;
const REFUSED: u8 = 4;
const TOO_LONG: u8 = 5;
const UNKNOWN: u8 = 6;

/// What the server says.
#[derive(Debug, PartialEq)]
pub(super) enum Order {
    /// Render one of the templates of this digest.
    Render { digest: Digest, name: String, context: Map<String, Value> },
    /// The templates that were not known.
    Sources(BTreeMap<String, String>),
}

/// What the process says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is sealed, as far as the machine offers it; this is missing.
    Ready(String),
    /// It could not be sealed, and ends.
    Unsealed(String),
    /// What was rendered.
    Text(String),
    /// What the template raised.
    Refused { line: u64, message: String },
    /// It wrote more than it may.
    TooLong,
    /// The templates of that digest are not known; the order waits for them.
    Unknown,
}

impl Answer {
    /// What a rendering came to.
    pub(super) fn of(rendered: Result<String, Error>) -> Self {
        match rendered {
            Ok(text) => Self::Text(text),
            Err(Error::Template { line, message }) => Self::Refused { line: line as u64, message },
            Err(Error::TemplateOutput(_)) => Self::TooLong,
            // Of rendering alone there are no others.
            Err(other) => Self::Refused { line: 0, message: other.to_string() },
        }
    }

    /// The same, back; `None` for what is no end of a rendering.
    pub(super) fn outcome(self) -> Option<Result<String, Error>> {
        match self {
            Self::Text(text) => Some(Ok(text)),
            Self::Refused { line, message } => {
                let line = usize::try_from(line).unwrap_or(usize::MAX);
                Some(Err(Error::Template { line, message }))
            }
            Self::TooLong => Some(Err(Error::TemplateOutput(OUTPUT_BYTES_MAX))),
            Self::Ready(_) | Self::Unsealed(_) | Self::Unknown => None,
        }
    }

    /// The frame.
    pub(super) fn frame(&self) -> Vec<u8> {
        match self {
            Self::Ready(missing) => frame(READY, |out| out.text(missing)),
            Self::Unsealed(why) => frame(UNSEALED, |out| out.text(why)),
            Self::Text(text) => frame(TEXT, |out| out.text(text)),
            Self::Refused { line, message } => frame(REFUSED, |out| {
                out.bytes(&line.to_le_bytes());
                out.text(message);
            }),
            Self::TooLong => frame(TOO_LONG, |_| {}),
            Self::Unknown => frame(UNKNOWN, |_| {}),
        }
    }

    /// Reads what a frame says.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let (kind, mut rest) = frame.split_first()?;
        let rest = &mut rest;
        let answer = match *kind {
            READY => Self::Ready(take_text(rest)?),
            UNSEALED => Self::Unsealed(take_text(rest)?),
            TEXT => Self::Text(take_text(rest)?),
            REFUSED => Self::Refused { line: take_number(rest)?, message: take_text(rest)? },
            TOO_LONG => Self::TooLong,
            UNKNOWN => Self::Unknown,
            _ => return None,
        };
        rest.is_empty().then_some(answer)
    }
}

/// The frame that asks for a rendering.
pub(super) fn render(digest: &Digest, name: &str, context: &Map<String, Value>) -> Vec<u8> {
    frame(RENDER, |out| {
        out.bytes(digest);
        out.text(name);
        out.object(context);
    })
}

/// The frame that tells of templates.
pub(super) fn sources(by_name: &BTreeMap<String, String>) -> Vec<u8> {
    frame(SOURCES, |out| {
        out.length(by_name.len());
        for text in by_name.iter().flat_map(|(name, source)| [name, source]) {
            out.text(text);
        }
    })
}

impl Order {
    /// Reads what a frame says.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let (kind, mut rest) = frame.split_first()?;
        let rest = &mut rest;
        let order = match *kind {
            RENDER => Self::Render {
                digest: *take_array(rest)?,
                name: take_text(rest)?,
                context: take_object(rest)?,
            },
            SOURCES => {
                let count = take_number(rest)?;
                let one = |_| Some((take_text(rest)?, take_text(rest)?));
                Self::Sources((0..count).map(one).collect::<Option<_>>()?)
            }
            _ => return None,
        };
        rest.is_empty().then_some(order)
    }
}

/// Counts first: one that grew would for a moment take three times what it needs.
fn frame(kind: u8, fill: impl Fn(&mut Out)) -> Vec<u8> {
    let mut counted = Out { bytes: None, length: 1 };
    fill(&mut counted);
    let mut bytes = Vec::with_capacity(8 + counted.length);
    bytes.extend((counted.length as u64).to_le_bytes());
    bytes.push(kind);
    let mut out = Out { bytes: Some(bytes), length: 1 };
    fill(&mut out);
    debug_assert_eq!(out.length, counted.length);
    out.bytes.unwrap_or_default()
}

/// The next frame without its length, of `most` bytes; `None` where the other end was closed before it.
///
/// # Errors
/// What reading says, and `InvalidData` for one that is longer.
pub(super) fn next(from: &mut impl Read, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 8];
    if from.read(&mut length[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..])?;
    let length = u64::from_le_bytes(length);
    if length == 0 || length > most {
        let message = "a frame of a length that is not allowed";
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut frame = Vec::new();
    while frame.len() < length {
        // A length that is a lie takes no memory, and one that is true no more than it says.
        let part = frame.len().max(FIRST_PART).min(length - frame.len());
        frame.reserve_exact(part);
        if from.by_ref().take(part as u64).read_to_end(&mut frame)? != part {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some(frame))
}

/// Writes a frame.
///
/// # Errors
/// What writing says.
pub(super) fn send(to: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    to.write_all(frame)?;
    to.flush()
}

/// How values are told apart.
mod kind {
    pub(super) const NULL: u8 = 0;
    pub(super) const FALSE: u8 = 1;
    pub(super) const TRUE: u8 = 2;
    pub(super) const POSITIVE: u8 = 3;
    pub(super) const NEGATIVE: u8 = 4;
    pub(super) const FLOAT: u8 = 5;
    pub(super) const TEXT: u8 = 6;
    pub(super) const LIST: u8 = 7;
    pub(super) const OBJECT: u8 = 8;
}

/// A frame that is written, or counted where nothing is written.
struct Out {
    bytes: Option<Vec<u8>>,
    length: usize,
}

impl Out {
    fn bytes(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        if let Some(out) = &mut self.bytes {
            out.extend_from_slice(bytes);
        }
    }

    fn length(&mut self, length: usize) {
        self.bytes(&(length as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.length(text.len());
        self.bytes(text.as_bytes());
    }

    fn object(&mut self, object: &Map<String, Value>) {
        self.length(object.len());
        for (name, value) in object {
            self.text(name);
            self.value(value);
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.bytes(&[kind::NULL]),
            Value::Bool(false) => self.bytes(&[kind::FALSE]),
            Value::Bool(true) => self.bytes(&[kind::TRUE]),
            Value::Number(number) => {
                let (kind, bytes) = match (number.as_u64(), number.as_i64()) {
                    (Some(number), _) => (kind::POSITIVE, number.to_le_bytes()),
                    (None, Some(number)) => (kind::NEGATIVE, number.to_le_bytes()),
                    (None, None) => (kind::FLOAT, number.as_f64().unwrap_or(0.0).to_le_bytes()),
                };
                self.bytes(&[kind]);
                self.bytes(&bytes);
            }
            Value::String(text) => {
                self.bytes(&[kind::TEXT]);
                self.text(text);
            }
            Value::Array(list) => {
                self.bytes(&[kind::LIST]);
                self.length(list.len());
                list.iter().for_each(|value| self.value(value));
            }
            Value::Object(object) => {
                self.bytes(&[kind::OBJECT]);
                self.object(object);
            }
        }
    }
}

fn take_array<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (array, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(array)
}

fn take_number(rest: &mut &[u8]) -> Option<u64> {
    take_array(rest).map(|bytes| u64::from_le_bytes(*bytes))
}

fn take_text(rest: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(take_number(rest)?).ok()?;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(str::from_utf8(text).ok()?.to_owned())
}

fn take_object(rest: &mut &[u8]) -> Option<Map<String, Value>> {
    let count = take_count(rest)?;
    let mut object = Map::with_capacity(count);
    for _ in 0..count {
        object.insert(take_text(rest)?, take_value(rest)?);
    }
    Some(object)
}

/// How many values follow: each is a byte at least. Room is made for so many, as one that grows has room
/// for several from the first on.
fn take_count(rest: &mut &[u8]) -> Option<usize> {
    let count = usize::try_from(take_number(rest)?).ok()?;
    (count <= rest.len()).then_some(count)
}

fn take_value(rest: &mut &[u8]) -> Option<Value> {
    let [kind] = *take_array(rest)?;
    Some(match kind {
        kind::NULL => Value::Null,
        kind::FALSE => Value::Bool(false),
        kind::TRUE => Value::Bool(true),
        kind::POSITIVE => take_number(rest)?.into(),
        kind::NEGATIVE => i64::from_le_bytes(*take_array(rest)?).into(),
        kind::FLOAT => Value::Number(Number::from_f64(f64::from_le_bytes(*take_array(rest)?))?),
        kind::TEXT => Value::String(take_text(rest)?),
        kind::LIST => {
            let count = take_count(rest)?;
            let mut list = Vec::with_capacity(count);
            for _ in 0..count {
                list.push(take_value(rest)?);
            }
            Value::Array(list)
        }
        kind::OBJECT => Value::Object(take_object(rest)?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn unframed(frame: &[u8]) -> Vec<u8> {
        next(&mut &*frame, 1 << 20).unwrap().unwrap()
    }

    #[test]
    fn orders_come_as_they_were_sent_with_their_numbers_to_the_bit_and_their_keys_in_order() {
        let mut deep = json!("end");
        for _ in 0..300 {
            deep = json!([deep]);
        }
        let Value::Object(context) = json!({
            "z": [0, u64::MAX, i64::MIN, -1, 0.1, 1e300, 5e-324, -0.0, 1.0, 0.30000000000000004],
            "a": {"é🚂\u{0}": null, "": [true, false, [], {}, ""]}, "deep": deep,
        }) else {
            panic!("it is an object");
        };
        let told = render(&[7; 32], "default", &context);
        assert_eq!(told.capacity(), told.len(), "it was made as large as it is");
        assert_eq!(unframed(&told).capacity(), told.len() - 8, "and read so");
        let Some(Order::Render { digest, name, context: read }) = Order::read(&unframed(&told))
        else {
            panic!("it is no order");
        };
        assert_eq!((digest, name.as_str(), &read), ([7; 32], "default", &context));
        assert_eq!(serde_json::to_string(&read).unwrap(), serde_json::to_string(&context).unwrap());
        let named = BTreeMap::from([("default".to_owned(), "{{ a }}".to_owned())]);
        assert_eq!(Order::read(&unframed(&sources(&named))), Some(Order::Sources(named)));
    }

    #[test]
    fn answers_come_as_they_were_sent() {
        let message = || "no\nsystem".to_owned();
        for answer in [
            Answer::Ready(message()),
            Answer::Unsealed(message()),
            Answer::Text("é🚂".to_owned()),
            Answer::Refused { line: 3, message: message() },
            Answer::TooLong,
            Answer::Unknown,
        ] {
            assert_eq!(Answer::read(&unframed(&answer.frame())), Some(answer));
        }
        let refused = Answer::of(Err(Error::Template { line: 3, message: message() }));
        let told = refused.outcome().unwrap().unwrap_err().to_string();
        assert_eq!(told, "chat template, line 3: no\nsystem");
    }

    #[test]
    fn what_is_cut_garbled_or_too_long_is_no_frame() {
        let Value::Object(context) = json!({"a": ["b", 1.5, -3]}) else { panic!("an object") };
        let whole = render(&[7; 32], "default", &context);
        for end in 1..whole.len() {
            assert!(next(&mut &whole[..end], 1 << 20).is_err(), "{end}");
            let Some(body) = whole[..end].get(8..) else { continue };
            assert_eq!(Order::read(body), None, "{end}");
            assert_eq!(Answer::read(body), None, "{end}");
        }
        assert!(next(&mut &[][..], 1 << 20).unwrap().is_none());
        assert!(next(&mut &whole[..], 8).is_err());
        let mut lie = u64::MAX.to_le_bytes().to_vec();
        lie.push(TEXT);
        assert!(next(&mut &lie[..], u64::MAX).is_err());
        assert_eq!(Answer::read(&[&[TEXT][..], &1_u64.to_le_bytes(), &[0xff]].concat()), None);
    }
}
