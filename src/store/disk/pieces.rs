//! What a file consists of: a weight file of its header and its tensors, found from its
//! beginning as it streams by; any other file of itself.
//!
//! The header is a stranger's. One that is large, unsound or lies about the file's size says
//! nothing: then the file is one piece.

use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::artefact::hex;

/// The most of a file's beginning that is kept in memory to be understood.
const HEAD_MAX: u64 = 8 << 20;
/// The most pieces of one file that are told apart.
const PIECES_MAX: usize = 1 << 16;
/// The version of what files' digests are made of.
const FILE_CONTEXT: &str = "roundhouse 2026-11-21 file of pieces 1";

/// The digest of some bytes: BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0[..6]))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digest = blake3::Hash::from_hex(text).map_err(D::Error::custom)?;
        Ok(Self(*digest.as_bytes()))
    }
}

/// Some bytes of a file that follow those of the piece before. Of a weight file whose header
/// was understood, the first is the header and each other one a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// How many.
    pub bytes: u64,
    /// What they are.
    pub digest: Digest,
}

/// The digest of a file that consists of these pieces.
pub(super) fn digest_of(pieces: &[Piece]) -> Digest {
    let mut hasher = blake3::Hasher::new_derive_key(FILE_CONTEXT);
    for piece in pieces {
        hasher.update(&piece.bytes.to_le_bytes());
        hasher.update(&piece.digest.0);
    }
    Digest(*hasher.finalize().as_bytes())
}

/// What a file's beginning tells of where its pieces end.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// So many bytes, counted from the file's first, tell more.
    Wants(u64),
    /// Where each piece ends, ascending; the last at the file's end.
    Ends(Vec<u64>),
    /// Nothing: the file is one piece.
    Opaque,
}

/// Reads a format's beginning: given what is there of it and the file's size.
type ReadHead = fn(&[u8], u64) -> Head;

/// Splits one file's bytes, given in order, into digested pieces.
pub(super) struct Pieces {
    size: u64,
    /// Until the beginning is understood.
    read_head: Option<ReadHead>,
    head: Vec<u8>,
    wanted: u64,
    /// Where the pieces end that have not ended yet, the next one last.
    ends: Vec<u64>,
    at: u64,
    hasher: blake3::Hasher,
    begun_at: u64,
    done: Vec<Piece>,
}

impl Pieces {
    pub(super) fn new(path: &str, size: u64) -> Self {
        let read_head = path.ends_with(".safetensors").then_some(safetensors as ReadHead);
        let mut pieces = Self {
            size,
            read_head,
            head: Vec::new(),
            wanted: 0,
            ends: Vec::new(),
            at: 0,
            hasher: blake3::Hasher::new(),
            begun_at: 0,
            done: Vec::new(),
        };
        pieces.understand();
        pieces
    }

    /// Takes in the bytes that follow.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let until = match self.read_head {
                Some(_) => self.wanted,
                None => self.ends.last().copied().unwrap_or(u64::MAX),
            };
            let count = usize::try_from(until - self.at).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(count);
            self.hasher.update(now);
            self.at += count as u64;
            if self.read_head.is_some() {
                self.head.extend_from_slice(now);
            }
            bytes = later;
            if self.at == until {
                self.reached();
            }
        }
    }

    fn reached(&mut self) {
        if self.read_head.is_some() {
            self.understand();
        }
        while self.ends.last() == Some(&self.at) {
            self.ends.pop();
            self.end_piece();
        }
    }

    /// Asks the format what the beginning says by now.
    fn understand(&mut self) {
        let Some(read_head) = self.read_head else { return };
        match read_head(&self.head, self.size) {
            Head::Wants(bytes) if bytes > self.at && bytes <= self.size.min(HEAD_MAX) => {
                self.wanted = bytes;
                return;
            }
            Head::Ends(ends) if ends.first().is_some_and(|first| *first >= self.at) => {
                self.ends = ends;
                self.ends.reverse();
            }
            Head::Wants(_) | Head::Ends(_) | Head::Opaque => {}
        }
        self.read_head = None;
        self.head = Vec::new();
    }

    fn end_piece(&mut self) {
        let hasher = std::mem::replace(&mut self.hasher, blake3::Hasher::new());
        let digest = Digest(*hasher.finalize().as_bytes());
        self.done.push(Piece { bytes: self.at - self.begun_at, digest });
        self.begun_at = self.at;
    }

    /// The bytes so far.
    pub(super) fn length(&self) -> u64 {
        self.at
    }

    /// The pieces of what was given; none of an empty file.
    pub(super) fn finish(mut self) -> Vec<Piece> {
        if self.at > self.begun_at {
            self.end_piece();
        }
        self.done
    }
}

/// Eight bytes of length, as many of JSON, then the tensors without a gap.
fn safetensors(head: &[u8], size: u64) -> Head {
    let Some((length, json)) = head.split_first_chunk::<8>() else {
        return Head::Wants(8);
    };
    let Some(begin) = u64::from_le_bytes(*length).checked_add(8) else { return Head::Opaque };
    if (head.len() as u64) < begin {
        return Head::Wants(begin);
    }
    let Ok(Tensors(mut ranges)) = serde_json::from_slice(json) else { return Head::Opaque };
    ranges.sort_unstable();
    let mut ends = vec![begin];
    for [first, behind] in ranges {
        let at = ends.last().copied().unwrap_or(begin);
        match begin.checked_add(behind) {
            Some(end) if begin.checked_add(first) == Some(at) && end >= at => {
                // An empty tensor is no piece.
                if end > at {
                    ends.push(end);
                }
            }
            _ => return Head::Opaque,
        }
    }
    if ends.last() == Some(&size) { Head::Ends(ends) } else { Head::Opaque }
}

/// The ranges of a header's tensors. What else it says is passed over unread.
struct Tensors(Vec<[u64; 2]>);

#[derive(Deserialize)]
struct Tensor {
    /// What is no tensor, as the file's own notes, has none.
    data_offsets: Option<[u64; 2]>,
}

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Tensors(Vec::new()))
    }
}

impl<'de> Visitor<'de> for Tensors {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensors by name")
    }

    fn visit_map<M: MapAccess<'de>>(mut self, mut map: M) -> Result<Self, M::Error> {
        while let Some((_, tensor)) = map.next_entry::<serde::de::IgnoredAny, Tensor>()? {
            if self.0.len() == PIECES_MAX {
                return Err(M::Error::custom("more tensors than are told apart"));
            }
            self.0.extend(tensor.data_offsets);
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A weight file with this header and so many bytes behind it.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend((0..data).map(|at| at as u8));
        file
    }

    fn split(path: &str, file: &[u8], at_once: usize) -> Vec<Piece> {
        let mut pieces = Pieces::new(path, file.len() as u64);
        file.chunks(at_once).for_each(|bytes| pieces.update(bytes));
        assert_eq!(pieces.length(), file.len() as u64);
        pieces.finish()
    }

    fn piece(bytes: &[u8]) -> Piece {
        Piece { bytes: bytes.len() as u64, digest: Digest(*blake3::hash(bytes).as_bytes()) }
    }

    #[test]
    fn a_weight_file_is_its_header_and_its_tensors_however_it_arrives() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"U8","shape":[5],"data_offsets":[10,15]},
            "empty":{"dtype":"U8","shape":[0],"data_offsets":[10,10]},
            "a":{"dtype":"U8","shape":[10],"data_offsets":[0,10]}}"#;
        let file = file(header, 15);
        let begin = 8 + header.len();
        let expected =
            [&file[..begin], &file[begin..begin + 10], &file[begin + 10..]].map(piece).to_vec();
        for at_once in [1, 7, 64, 10_000] {
            assert_eq!(split("w.safetensors", &file, at_once), expected);
        }
        assert_eq!(split("w.bin", &file, 7), [piece(&file)]);
        assert_ne!(digest_of(&expected), digest_of(&[piece(&file)]));
        let other = split("w.safetensors", &[&file[..file.len() - 1], b"?"].concat(), 7);
        assert_ne!(digest_of(&expected), digest_of(&other));
    }

    #[test]
    fn a_header_that_lies_or_is_unsound_makes_no_pieces() {
        let tensor = |a: &str, b: &str| {
            format!(r#"{{"a":{{"data_offsets":{a}}},"b":{{"data_offsets":{b}}}}}"#)
        };
        let headers = [
            tensor("[0,10]", "[5,15]"),
            tensor("[0,10]", "[11,15]"),
            tensor("[0,10]", "[10,16]"),
            tensor("[0,10]", "[10,14]"),
            tensor("[5,10]", "[10,15]"),
            tensor("[10,0]", "[0,15]"),
            tensor("[0,10]", "[10,18446744073709551615]"),
            tensor("[0,10]", "[10,-1]"),
            tensor("[0,10]", "\"x\""),
            "{".into(),
            "[]".into(),
            "[".repeat(10_000),
        ];
        for header in headers {
            let file = file(&header, 15);
            assert_eq!(split("w.safetensors", &file, 9), [piece(&file)], "{header}");
        }
    }

    #[test]
    fn a_length_beyond_the_file_or_the_limit_keeps_nothing_in_memory() {
        for length in [u64::MAX, u64::MAX - 8, HEAD_MAX, 100] {
            let file = [&length.to_le_bytes()[..], &[b' '; 50]].concat();
            let size = if length == HEAD_MAX { length * 2 } else { file.len() as u64 };
            let mut pieces = Pieces::new("w.safetensors", size);
            pieces.update(&file);
            assert!(pieces.read_head.is_none() && pieces.head.is_empty(), "{length}");
            assert_eq!(pieces.finish(), [piece(&file)]);
        }
        for short in [&b""[..], b"1234567"] {
            let whole: Vec<Piece> =
                [short].iter().filter(|f| !f.is_empty()).map(|f| piece(f)).collect();
            assert_eq!(split("w.safetensors", short, 3), whole);
        }
    }

    #[test]
    fn more_tensors_than_are_told_apart_make_one_piece() {
        let tensors: Vec<String> = (0..=PIECES_MAX)
            .map(|at| format!(r#""{at}":{{"data_offsets":[{at},{}]}}"#, at + 1))
            .collect();
        let file = file(&format!("{{{}}}", tensors.join(",")), PIECES_MAX + 1);
        assert_eq!(split("w.safetensors", &file, 1 << 16).len(), 1);
    }
}
