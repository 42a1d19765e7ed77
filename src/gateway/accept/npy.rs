//! Arrays as numpy stores them (format versions 1 to 3).

use bytes::Bytes;
use serde_json::Value;

use crate::error::Error;

const MAGIC: &[u8] = b"\x93NUMPY";
/// Numbers begin at a multiple of this.
const ALIGNMENT: usize = 64;
/// Entries of an array that is read at most: more tokens than any model's step.
const ENTRIES_MAX: usize = 512 * 1024;

/// An array of one or two dimensions that a client sent, row after row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Array {
    /// Token ids.
    Tokens(Vec<Vec<u32>>),
    /// Texts.
    Texts(Vec<String>),
}

/// Reads an array of token ids (one or two dimensions, of any whole numbers) or of texts (one
/// dimension, or none).
///
/// # Errors
/// `InvalidInput` for everything else.
pub(crate) fn read(body: &[u8]) -> Result<Array, Error> {
    let wrong = |what: &str| Error::input(format!("the npy body {what}"));
    let rest = body.strip_prefix(MAGIC).ok_or_else(|| wrong("does not begin as npy does"))?;
    let cut = || wrong("is cut off");
    let (header, data) = match rest {
        [1, _, low, high, rest @ ..] => {
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            rest.split_at_checked(length).ok_or_else(cut)?
        }
        [2 | 3, _, a, b, c, d, rest @ ..] => {
            let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            rest.split_at_checked(length).ok_or_else(cut)?
        }
        _ => return Err(wrong("is of an unknown version")),
    };
    let header = str::from_utf8(header).map_err(|_| wrong("has a header that is not UTF-8"))?;
    let unclear = || wrong("has a header that is not understood");
    let descr = value_of(header, "descr").and_then(quoted).ok_or_else(unclear)?;
    if !value_of(header, "fortran_order").ok_or_else(unclear)?.starts_with("False") {
        return Err(wrong("is in Fortran's order: send it in C's"));
    }
    let shape = value_of(header, "shape").and_then(dimensions).ok_or_else(unclear)?;
    let entries = shape.iter().try_fold(1_usize, |product, side| product.checked_mul(*side));
    let entries = entries
        .filter(|entries| (1..=ENTRIES_MAX).contains(entries))
        .ok_or_else(|| wrong(&format!("must have 1 to {ENTRIES_MAX} entries")))?;
    let kind = kind(descr).ok_or_else(|| {
        wrong(&format!("is of type {descr}: token ids (whole numbers) and texts are taken"))
    })?;
    if kind.size().checked_mul(entries) != Some(data.len()) {
        return Err(wrong("has another length than its shape"));
    }
    match (kind, shape.as_slice()) {
        (Kind::Text(size), [] | [_]) => {
            let texts = data.chunks_exact(size * 4).map(text).collect::<Option<_>>();
            texts.map(Array::Texts).ok_or_else(|| wrong("has a text that is not Unicode"))
        }
        (kind, [] | [_] | [_, _]) if !matches!(kind, Kind::Text(_)) => {
            let ids = data.chunks_exact(kind.size()).map(|bytes| kind.token(bytes));
            let ids: Vec<u32> = ids
                .collect::<Option<_>>()
                .ok_or_else(|| wrong("has a number that is no token id"))?;
            let row = if let [_, row] = shape[..] { row } else { ids.len() };
            Ok(Array::Tokens(ids.chunks(row).map(<[u32]>::to_vec).collect()))
        }
        _ => Err(wrong("must have one dimension, or two of token ids")),
    }
}

/// What an array's entries are.
#[derive(Clone, Copy)]
enum Kind {
    /// Whole numbers of so many bytes, the lowest first.
    Signed(usize),
    Unsigned(usize),
    /// Texts of so many characters at most, each of four bytes.
    Text(usize),
}

impl Kind {
    fn size(self) -> usize {
        match self {
            Self::Signed(size) | Self::Unsigned(size) => size,
            Self::Text(characters) => characters * 4,
        }
    }

    fn token(self, bytes: &[u8]) -> Option<u32> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let number = u64::from_le_bytes(wide);
        let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        match self {
            Self::Signed(_) if is_negative => None,
            _ => u32::try_from(number).ok(),
        }
    }
}

fn kind(descr: &str) -> Option<Kind> {
    let (order, rest) = descr.split_at_checked(1)?;
    let (letter, size) = rest.split_at_checked(1)?;
    let size: usize = size.parse().ok()?;
    let is_ours = order == "<" || size == 1 && order == "|";
    match letter {
        "i" if is_ours && matches!(size, 1 | 2 | 4 | 8) => Some(Kind::Signed(size)),
        "u" if is_ours && matches!(size, 1 | 2 | 4 | 8) => Some(Kind::Unsigned(size)),
        "U" if order == "<" && (1..=ENTRIES_MAX).contains(&size) => Some(Kind::Text(size)),
        _ => None,
    }
}

/// A text of fixed length, without the zeros that fill it up.
fn text(bytes: &[u8]) -> Option<String> {
    let code = |four: &[u8]| u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
    let mut codes: Vec<u32> = bytes.chunks_exact(4).map(code).collect();
    while codes.last() == Some(&0) {
        codes.pop();
    }
    codes.into_iter().map(char::from_u32).collect()
}

/// What stands behind a key of the header's dictionary.
fn value_of<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}'"))?;
    Some(rest.trim_start().strip_prefix(':')?.trim_start())
}

fn quoted(value: &str) -> Option<&str> {
    value.strip_prefix('\'')?.split_once('\'').map(|(text, _)| text)
}

fn dimensions(value: &str) -> Option<Vec<usize>> {
    let (inside, _) = value.strip_prefix('(')?.split_once(')')?;
    let sides = inside.split(',').map(str::trim).filter(|side| !side.is_empty());
    sides.map(|side| side.parse().ok()).collect()
}

/// Writes numbers in lists, of which those of one depth are equally long; `None` for all else.
pub(crate) fn write(value: &Value) -> Option<Bytes> {
    let mut shape = Vec::new();
    let mut first = value;
    while let Value::Array(items) = first {
        shape.push(items.len());
        match items.first() {
            Some(item) => first = item,
            None => break,
        }
    }
    let mut numbers = Vec::new();
    gather(value, &shape, &mut numbers)?;
    (!shape.is_empty()).then(|| array(&shape, numbers.into_iter()))
}

fn gather(value: &Value, shape: &[usize], numbers: &mut Vec<f32>) -> Option<()> {
    match (value, shape.split_first()) {
        (Value::Array(items), Some((side, inner))) if items.len() == *side => {
            items.iter().try_for_each(|item| gather(item, inner, numbers))
        }
        (Value::Number(number), None) => {
            #[expect(clippy::cast_possible_truncation, reason = "answers are in single precision")]
            numbers.push(number.as_f64()? as f32);
            Some(())
        }
        _ => None,
    }
}

/// Vectors of one length; one alone is an array of one dimension.
pub(crate) fn write_vectors(vectors: &[Vec<f32>], single: bool) -> Bytes {
    let size = vectors.first().map_or(0, Vec::len);
    let shape = [vectors.len(), size];
    let shape = if single { &shape[1..] } else { &shape };
    array(shape, vectors.iter().flatten().copied())
}

/// Vectors of tokens; `None` where not all texts have as many.
pub(crate) fn write_tokens(inputs: &[Vec<Vec<f32>>]) -> Option<Bytes> {
    let tokens = inputs.first().map_or(0, Vec::len);
    let size = inputs.first().and_then(|vectors| vectors.first()).map_or(0, Vec::len);
    let is_even = inputs.iter().all(|vectors| vectors.len() == tokens);
    let numbers = inputs.iter().flatten().flatten().copied();
    is_even.then(|| array(&[inputs.len(), tokens, size], numbers))
}

fn array(shape: &[usize], numbers: impl Iterator<Item = f32>) -> Bytes {
    let sides: String = shape.iter().map(|side| format!("{side}, ")).collect();
    let sides = if shape.len() > 1 { sides.trim_end_matches(", ") } else { sides.trim_end() };
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sides}), }}");
    // With magic, version and length before it, and a line's end behind.
    let before = MAGIC.len() + 4;
    let padded = (before + header.len() + 1).next_multiple_of(ALIGNMENT) - before - 1;
    header.push_str(&" ".repeat(padded - header.len()));
    header.push('\n');
    let length = u16::try_from(header.len()).expect("a shape of a few numbers is short");
    let mut out = Vec::with_capacity(before + header.len() + 4 * shape.iter().product::<usize>());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[1, 0]);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    out.extend(numbers.flat_map(f32::to_le_bytes));
    out.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A body of version 1.
    fn body(header: &str, data: &[u8]) -> Vec<u8> {
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        [MAGIC, &[1, 0], &length, header.as_bytes(), data].concat()
    }

    fn described(descr: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n")
    }

    #[test]
    fn token_ids_and_texts_are_read() {
        let data: Vec<u8> = [1_i64, 2, 3, 70_000].iter().flat_map(|id| id.to_le_bytes()).collect();
        let two = read(&body(&described("<i8", "(2, 2)"), &data)).unwrap();
        assert_eq!(two, Array::Tokens(vec![vec![1, 2], vec![3, 70_000]]));
        let one = read(&body(&described("|u1", "(3,)"), &[7, 8, 255])).unwrap();
        assert_eq!(one, Array::Tokens(vec![vec![7, 8, 255]]));
        let letters = "é\0ab".chars().flat_map(|letter| u32::from(letter).to_le_bytes());
        let texts = read(&body(&described("<U2", "(2,)"), &letters.collect::<Vec<u8>>())).unwrap();
        assert_eq!(texts, Array::Texts(vec!["é".into(), "ab".into()]));
    }

    #[test]
    fn other_arrays_are_refused_with_what_is_wrong() {
        let refusal = |body: &[u8]| read(body).unwrap_err().to_string();
        let with =
            |descr: &str, shape: &str, data: &[u8]| refusal(&body(&described(descr, shape), data));
        assert!(refusal(b"PK").contains("does not begin"));
        assert!(refusal(&body(&described("|u1", "(3,)"), &[1])).contains("another length"));
        assert!(with("<f4", "(1,)", &[0; 4]).contains("type <f4"));
        assert!(with("|O", "(1,)", &[0; 4]).contains("type |O"));
        assert!(with("<i8", "(9999999999, 9999999999)", &[]).contains("entries"));
        assert!(with("<i8", "(0,)", &[]).contains("entries"));
        assert!(with("<i8", "(1,)", &(-1_i64).to_le_bytes()).contains("no token id"));
        assert!(with("<i8", "(1, 1, 1)", &[0; 8]).contains("dimension"));
        assert!(with("<U1", "(1,)", &[0, 0xd8, 0, 0]).contains("not Unicode"));
        assert!(refusal(&body("{'descr': '<i8'}", &[])).contains("not understood"));
        assert!(refusal(&[MAGIC, &[1, 0, 255, 255]].concat()).contains("cut off"));
    }

    #[test]
    fn what_is_written_begins_at_a_boundary_and_says_its_shape() {
        let bytes = write_vectors(&[vec![1.0, 2.0], vec![3.0, 4.0]], false);
        assert_eq!((bytes.len() - 16) % ALIGNMENT, 0);
        let header = String::from_utf8_lossy(&bytes[10..bytes.len() - 16]).into_owned();
        assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"));
        assert!(header.ends_with('\n'));
        assert_eq!(bytes[bytes.len() - 4..], 4.0_f32.to_le_bytes());
        let one = String::from_utf8_lossy(&write_vectors(&[vec![1.0]], true)[..80]).into_owned();
        assert!(one.contains("'shape': (1,), }"), "{one}");
    }

    #[test]
    fn only_lists_of_one_length_are_arrays() {
        assert!(write(&json!([[[1.0], [2.0]], [[3.0], [4.0]]])).is_some());
        assert!(write(&json!([0.5, 1])).is_some());
        for other in [json!([[1.0], [2.0, 3.0]]), json!([{"a": 1}]), json!(1), json!([1, [2]])] {
            assert!(write(&other).is_none(), "{other}");
        }
    }
}
