//! The header of a GGUF file: what it says of the model, and where its tensors lie.
//!
//! Nothing in it is believed: counts and lengths are held against the bytes that are there
//! before anything is done with them, and arrays stay as they lie until somebody asks.

use std::collections::{BTreeMap, BTreeSet};

use crate::Error;
use crate::files::{HEADER_MAX, refuse_pointer};
use crate::format::{BlockFormat, Stored};

/// The first read of a file; the next ones are four times as long each.
const FIRST: u64 = 256 << 10;
/// The largest dimension count that the format allows.
const DIMENSIONS_MAX: u32 = 4;
/// Where data is aligned to if the file does not say.
const ALIGNMENT: u64 = 32;
/// No file needs more; it only bounds what is skipped.
const ALIGNMENT_MAX: u64 = 1 << 20;

/// One value of the metadata.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(&'a [u8]),
    Array(Array<'a>),
}

/// An array that was walked to its end once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Array<'a> {
    kind: Kind,
    count: u64,
    bytes: &'a [u8],
}

/// The types of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn of(number: u32) -> Option<Self> {
        let kinds = [
            Self::U8,
            Self::I8,
            Self::U16,
            Self::I16,
            Self::U32,
            Self::I32,
            Self::F32,
            Self::Bool,
            Self::Text,
            Self::Array,
            Self::U64,
            Self::I64,
            Self::F64,
        ];
        kinds.get(number as usize).copied()
    }

    /// Bytes of each, or of the least that one takes.
    fn bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Array => 12,
        }
    }
}

/// A tensor as the header describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Info<'a> {
    pub(crate) name: &'a str,
    /// Outermost first, as everywhere else; the file has them the other way round.
    pub(crate) shape: Vec<usize>,
    pub(crate) stored: Stored,
    /// The first byte of its data in the file.
    pub(crate) start: u64,
}

/// A whole header.
#[derive(Debug, Clone)]
pub(crate) struct Header<'a> {
    pub(crate) metadata: BTreeMap<&'a str, Value<'a>>,
    pub(crate) tensors: Vec<Info<'a>>,
    /// Bytes of the header, what fills it up to its data not included.
    pub(crate) length: u64,
    /// Bytes of the metadata alone.
    pub(crate) metadata_bytes: u64,
}

/// How many of a file's first bytes are needed to go on: those of its header, once `first`
/// holds it all; else more than `first` has.
///
/// # Errors
/// When it is no GGUF file of a version that is read, or its header is unsound.
pub fn gguf_bytes(file: &str, size: u64, first: &[u8]) -> Result<u64, Error> {
    if first.is_empty() {
        return Ok(FIRST.min(size).max(1));
    }
    refuse_pointer(file, first)?;
    match Header::parse(file, size, first)? {
        Some(header) => Ok(header.length),
        None => Ok((first.len() as u64 * 4).clamp(FIRST, HEADER_MAX).min(size)),
    }
}

/// Why a header could not be read to its end.
enum Stop {
    /// More of the file is needed.
    Short,
    Fault(String),
}

type Read<T> = Result<T, Stop>;

fn fault<T>(reason: impl Into<String>) -> Read<T> {
    Err(Stop::Fault(reason.into()))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// What a header of this file may reach to.
    limit: u64,
}

impl<'a> Cursor<'a> {
    /// Refuses what cannot lie in the rest of the file, before any of it is looked at.
    fn room(&self, what: &str, count: u64, each: u64) -> Read<()> {
        let rest = self.limit.saturating_sub(self.at as u64);
        match count.checked_mul(each) {
            Some(bytes) if bytes <= rest => Ok(()),
            _ => fault(format!("it claims {count} {what}, and {rest} bytes are left for them")),
        }
    }

    fn take(&mut self, count: u64, what: &str) -> Read<&'a [u8]> {
        self.room(what, count, 1)?;
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        let bytes = end.and_then(|end| self.bytes.get(self.at..end)).ok_or(Stop::Short)?;
        self.at += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let bytes = self.take(N as u64, "bytes of a number")?;
        Ok(*bytes.first_chunk().expect("as many were taken"))
    }

    fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Read<&'a [u8]> {
        let length = self.u64()?;
        self.take(length, "bytes of a text")
    }

    fn name(&mut self) -> Read<&'a str> {
        match str::from_utf8(self.text()?) {
            Ok(name) => Ok(name),
            Err(_) => fault("a name in it is not UTF-8"),
        }
    }

    fn kind(&mut self) -> Read<Kind> {
        let number = self.u32()?;
        Kind::of(number).map_or_else(|| fault(format!("it has a value of type {number}")), Ok)
    }

    fn value(&mut self) -> Read<Value<'a>> {
        let kind = self.kind()?;
        if kind != Kind::Array {
            return self.scalar(kind);
        }
        let (kind, count) = (self.kind()?, self.u64()?);
        self.room("array elements", count, kind.bytes())?;
        let start = self.at;
        match kind {
            Kind::Array => return fault("it has an array of arrays"),
            Kind::Text => {
                for _ in 0..count {
                    self.text()?;
                }
            }
            _ => {
                self.take(count * kind.bytes(), "bytes of an array")?;
            }
        }
        Ok(Value::Array(Array { kind, count, bytes: &self.bytes[start..self.at] }))
    }

    fn scalar(&mut self, kind: Kind) -> Read<Value<'a>> {
        Ok(match kind {
            Kind::U8 => Value::Unsigned(self.array().map(u8::from_le_bytes)?.into()),
            Kind::I8 => Value::Signed(self.array().map(i8::from_le_bytes)?.into()),
            Kind::U16 => Value::Unsigned(self.array().map(u16::from_le_bytes)?.into()),
            Kind::I16 => Value::Signed(self.array().map(i16::from_le_bytes)?.into()),
            Kind::U32 => Value::Unsigned(self.u32()?.into()),
            Kind::I32 => Value::Signed(self.array().map(i32::from_le_bytes)?.into()),
            Kind::F32 => Value::Float(self.array().map(f32::from_le_bytes)?.into()),
            Kind::Bool => Value::Bool(self.array::<1>()? != [0]),
            Kind::Text => Value::Text(self.text()?),
            Kind::U64 => Value::Unsigned(self.u64()?),
            Kind::I64 => Value::Signed(self.array().map(i64::from_le_bytes)?),
            Kind::F64 => Value::Float(self.array().map(f64::from_le_bytes)?),
            Kind::Array => return fault("it has an array of arrays"),
        })
    }
}

impl<'a> Header<'a> {
    /// Reads a header from a file's first bytes; `None` if it goes on behind them.
    ///
    /// # Errors
    /// When it is unsound, whatever may follow, or its tensors do not fit the file.
    pub(crate) fn parse(file: &str, size: u64, first: &'a [u8]) -> Result<Option<Self>, Error> {
        let limit = size.min(HEADER_MAX);
        match parse(&mut Cursor { bytes: first, at: 0, limit }, size) {
            Ok(header) => Ok(Some(header)),
            Err(Stop::Short) if (first.len() as u64) < limit => Ok(None),
            Err(Stop::Short) => Err(Error::header(file, "it ends inside its header")),
            Err(Stop::Fault(reason)) => Err(Error::header(file, reason)),
        }
    }
}

fn parse<'a>(cursor: &mut Cursor<'a>, size: u64) -> Read<Header<'a>> {
    if cursor.array::<4>()? != *b"GGUF" {
        return fault("it does not begin with GGUF");
    }
    let version = cursor.u32()?;
    if !matches!(version, 2 | 3) {
        return fault(format!("it is of version {version}; 2 and 3, little-endian, are read"));
    }
    let (tensors, pairs) = (cursor.u64()?, cursor.u64()?);
    cursor.room("metadata entries", pairs, 13)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..pairs {
        let key = cursor.name()?;
        if metadata.insert(key, cursor.value()?).is_some() {
            return fault(format!("it has {} twice", shown(key)));
        }
    }
    let metadata_bytes = cursor.at as u64;
    cursor.room("tensors", tensors, 24)?;
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT,
        Some(Value::Unsigned(number)) if number.is_power_of_two() && *number <= ALIGNMENT_MAX => {
            *number
        }
        Some(other) => return fault(format!("its general.alignment is {other:?}")),
    };
    let mut found: Vec<(Info<'a>, u64, u64)> = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..tensors {
        let (info, offset, bytes) = tensor(cursor)?;
        if !names.insert(info.name) {
            return fault(format!("tensor {} is in it twice", shown(info.name)));
        }
        if !offset.is_multiple_of(alignment) {
            let name = shown(info.name);
            return fault(format!("tensor {name} is at {offset}, not aligned to {alignment}"));
        }
        found.push((info, offset, bytes));
    }
    let length = cursor.at as u64;
    let data = length.next_multiple_of(alignment);
    found.sort_by_key(|(_, offset, _)| *offset);
    let mut end = 0;
    for (info, offset, bytes) in &mut found {
        let name = shown(info.name);
        if *offset < end {
            return fault(format!("tensor {name} lies where another one does"));
        }
        end = offset.saturating_add(*bytes);
        info.start = data.saturating_add(*offset);
        if data.saturating_add(end) > size {
            let reason = format!(
                "tensor {name} ends at byte {} and the file at {size}",
                data.saturating_add(end)
            );
            return fault(format!("{reason}: truncated or damaged"));
        }
    }
    let tensors = found.into_iter().map(|(info, ..)| info).collect();
    Ok(Header { metadata, tensors, length, metadata_bytes })
}

/// A tensor's description, the offset of its data and their bytes.
fn tensor<'a>(cursor: &mut Cursor<'a>) -> Read<(Info<'a>, u64, u64)> {
    let name = cursor.name()?;
    let dimensions = cursor.u32()?;
    if dimensions > DIMENSIONS_MAX {
        return fault(format!("tensor {} has {dimensions} dimensions", shown(name)));
    }
    let mut shape = Vec::new();
    let mut values = 1u64;
    for _ in 0..dimensions {
        let size = cursor.u64()?;
        let counted = values.checked_mul(size).filter(|_| size > 0 && size <= u32::MAX.into());
        let (Some(counted), Ok(size)) = (counted, usize::try_from(size)) else {
            return fault(format!("tensor {} has a dimension of {size}", shown(name)));
        };
        values = counted;
        shape.push(size);
    }
    shape.reverse();
    let number = cursor.u32()?;
    let Some(stored) = stored(number) else {
        let kind = type_name(number);
        let name = shown(name);
        return fault(format!("tensor {name} is of type {kind}; {READ} are read"));
    };
    let (together, _) = stored.unit();
    let row = shape.last().copied().unwrap_or(1);
    let (true, Some(bytes)) = (row.is_multiple_of(together), stored.bytes_of(values)) else {
        let kind = type_name(number);
        return fault(format!("tensor {} has rows of {row} in {kind}", shown(name)));
    };
    let offset = cursor.u64()?;
    Ok((Info { name, shape, stored, start: 0 }, offset, bytes))
}

/// A name from a file, of a length that can be shown.
fn shown(name: &str) -> String {
    let cut: String = name.chars().take(80).collect();
    format!("'{}'", cut.escape_debug())
}

/// The types that are read.
const READ: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K and MXFP4";

fn stored(number: u32) -> Option<Stored> {
    Some(match number {
        0 => Stored::F32,
        1 => Stored::F16,
        30 => Stored::Bf16,
        2 => Stored::Blocks(BlockFormat::Q4_0),
        3 => Stored::Blocks(BlockFormat::Q4_1),
        6 => Stored::Blocks(BlockFormat::Q5_0),
        7 => Stored::Blocks(BlockFormat::Q5_1),
        8 => Stored::Blocks(BlockFormat::Q8_0),
        12 => Stored::Blocks(BlockFormat::Q4K),
        13 => Stored::Blocks(BlockFormat::Q5K),
        14 => Stored::Blocks(BlockFormat::Q6K),
        39 => Stored::Blocks(BlockFormat::Mxfp4),
        _ => return None,
    })
}

/// The types of the format by their names, for those who have to say which one is not read.
fn type_name(number: u32) -> String {
    let name = match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        6 => "Q5_0",
        7 => "Q5_1",
        8 => "Q8_0",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        30 => "BF16",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {number}"),
    };
    name.into()
}

impl<'a> Array<'a> {
    /// Its texts; of an array of something else, none.
    pub(crate) fn texts(self) -> impl Iterator<Item = String> {
        let mut cursor = Cursor { bytes: self.bytes, at: 0, limit: self.bytes.len() as u64 };
        let count = if self.kind == Kind::Text { self.count } else { 0 };
        (0..count).map_while(move |_| {
            cursor.text().ok().map(|text| String::from_utf8_lossy(text).into_owned())
        })
    }

    /// Its numbers; of an array of something else, none.
    pub(crate) fn numbers(self) -> impl Iterator<Item = f64> {
        let mut cursor = Cursor { bytes: self.bytes, at: 0, limit: self.bytes.len() as u64 };
        let count = if self.kind == Kind::Text { 0 } else { self.count };
        (0..count).map_while(move |_| match cursor.scalar(self.kind).ok()? {
            Value::Unsigned(number) => Some(number as f64),
            Value::Signed(number) => Some(number as f64),
            Value::Float(number) => Some(number),
            Value::Bool(_) | Value::Text(_) | Value::Array(_) => None,
        })
    }

    /// Its switches; of an array of something else, none.
    pub(crate) fn switches(self) -> impl Iterator<Item = bool> {
        let mut cursor = Cursor { bytes: self.bytes, at: 0, limit: self.bytes.len() as u64 };
        let count = if self.kind == Kind::Bool { self.count } else { 0 };
        (0..count).map_while(move |_| match cursor.scalar(self.kind).ok()? {
            Value::Bool(is_on) => Some(is_on),
            _ => None,
        })
    }

    /// How many elements it has.
    pub(crate) fn count(self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests;
