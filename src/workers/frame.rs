//! What the server and a worker process say to each other.
//!
//! A frame is a little-endian `u32` (the length of what follows), one byte for its type,
//! and the rest. Nothing in it is code: a worker cannot make the server run anything.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Deserialize;

/// The length and the type.
const HEAD: usize = 5;
/// Beside the body, an answer has a header, a content type and a few response headers.
const ENVELOPE: usize = 256 * 1024;
/// Chunks are cut by the worker's side of the protocol.
const CHUNK_MAX: usize = 1024 * 1024;

/// Response headers of one answer, in bytes and in number.
const META_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// Smaller frames are copied: a piece of the buffer would keep all of it from being used again.
const COPIED_BELOW: usize = 4096;

const INVOKE: u8 = 1;
const CANCEL: u8 = 2;

const READY: u8 = 1;
const FAILED: u8 = 2;
const ANSWER: u8 = 3;
const BEGIN: u8 = 4;
const CHUNK: u8 = 5;
const END: u8 = 6;
const ERROR: u8 = 7;

/// One call as it goes to a worker. Absent texts are empty.
pub(crate) struct Invoke<'a> {
    pub(crate) id: u64,
    pub(crate) stream: bool,
    pub(crate) content_type: &'a str,
    pub(crate) accept: &'a str,
    /// A JSON object, or empty.
    pub(crate) meta: &'a str,
    pub(crate) body: &'a [u8],
}

impl Invoke<'_> {
    /// Appends the frame. Texts beyond 64 KiB do not occur: HTTP headers are shorter.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        let content_type = clipped(self.content_type);
        let accept = clipped(self.accept);
        let rest = 1 + 8 + 1 + 2 + 2 + 4;
        let length = rest + content_type.len() + accept.len() + self.meta.len() + self.body.len();
        out.reserve(4 + length);
        out.put_u32_le(u32::try_from(length).expect("bodies are bounded far below 4 GiB"));
        out.put_u8(INVOKE);
        out.put_u64_le(self.id);
        out.put_u8(u8::from(self.stream));
        out.put_u16_le(content_type.len() as u16);
        out.put_u16_le(accept.len() as u16);
        out.put_u32_le(u32::try_from(self.meta.len()).expect("headers are bounded"));
        out.put_slice(content_type.as_bytes());
        out.put_slice(accept.as_bytes());
        out.put_slice(self.meta.as_bytes());
        out.put_slice(self.body);
    }
}

/// Appends "nobody wants this answer any more".
pub(crate) fn write_cancel(id: u64, out: &mut BytesMut) {
    out.put_u32_le(9);
    out.put_u8(CANCEL);
    out.put_u64_le(id);
}

fn clipped(text: &str) -> &str {
    if text.len() <= usize::from(u16::MAX) { text } else { "" }
}

/// What a worker says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// The handler is loaded.
    Ready(Ready),
    /// It cannot be loaded.
    Failed(Trace),
    /// A whole answer.
    Answer { id: u64, head: Head, body: Bytes },
    /// An answer begins that comes in chunks.
    Begin { id: u64, head: Head },
    /// A part of it.
    Chunk { id: u64, body: Bytes },
    /// It is complete.
    End { id: u64 },
    /// The call failed.
    Error { id: u64, status: u16, trace: Trace },
}

/// What a worker found in the handler.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Ready {
    /// The interpreter's version.
    pub(crate) python: String,
    /// Whose defaults fill in for functions that the script does not have.
    pub(crate) framework: String,
    /// Packages that it has imported.
    #[serde(default)]
    pub(crate) imported: Vec<String>,
}

/// Why something failed, as Python says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Trace {
    /// One line.
    pub(crate) message: String,
    /// Where, for the log.
    pub(crate) traceback: Option<String>,
}

/// What stands before an answer's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) headers: Vec<(String, String)>,
}

/// The worker does not keep to the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Garbled(pub(crate) &'static str);

/// Takes the next whole frame out of what was read; `None` until it is there.
///
/// # Errors
/// A frame that is none, or whose body is larger than `body_max`.
pub(crate) fn next(read: &mut BytesMut, body_max: usize) -> Result<Option<Frame>, Garbled> {
    let Some(length) = read.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 || length > body_max.max(CHUNK_MAX) + ENVELOPE {
        return Err(Garbled("a frame of a length that is not allowed"));
    }
    if read.len() < 4 + length {
        // Room for all of it at once: large answers arrive in many reads.
        read.reserve(4 + length - read.len());
        return Ok(None);
    }
    let mut frame = if length < COPIED_BELOW {
        let copy = Bytes::copy_from_slice(&read[..4 + length]);
        read.advance(4 + length);
        copy
    } else {
        read.split_to(4 + length).freeze()
    };
    let kind = frame[HEAD - 1];
    frame.advance(HEAD);
    Ok(Some(parse(kind, frame)?))
}

fn parse(kind: u8, mut rest: Bytes) -> Result<Frame, Garbled> {
    Ok(match kind {
        READY => Frame::Ready(json(&rest)?),
        FAILED => Frame::Failed(json(&rest)?),
        ANSWER => {
            let (id, head) = (number(&mut rest)?, head(&mut rest)?);
            Frame::Answer { id, head, body: rest }
        }
        BEGIN => Frame::Begin { id: number(&mut rest)?, head: head(&mut rest)? },
        CHUNK => Frame::Chunk { id: number(&mut rest)?, body: rest },
        END => Frame::End { id: number(&mut rest)? },
        ERROR => {
            let id = number(&mut rest)?;
            let status = rest.try_get_u16_le().map_err(|_| CUT)?;
            Frame::Error { id, status, trace: json(&rest)? }
        }
        _ => return Err(Garbled("a frame of an unknown type")),
    })
}

const CUT: Garbled = Garbled("a frame that is too short");

fn number(rest: &mut Bytes) -> Result<u64, Garbled> {
    rest.try_get_u64_le().map_err(|_| CUT)
}

fn head(rest: &mut Bytes) -> Result<Head, Garbled> {
    let status = rest.try_get_u16_le().map_err(|_| CUT)?;
    let content_type = usize::from(rest.try_get_u16_le().map_err(|_| CUT)?);
    let meta = rest.try_get_u32_le().map_err(|_| CUT)? as usize;
    if rest.len() < content_type.saturating_add(meta) {
        return Err(CUT);
    }
    if meta > META_MAX {
        return Err(Garbled("response headers beyond their limit"));
    }
    let content_type = text(&rest.split_to(content_type))?;
    let meta = rest.split_to(meta);
    let headers = if meta.is_empty() { Vec::new() } else { json::<Meta>(&meta)?.list() };
    if headers.len() > HEADERS_MAX {
        return Err(Garbled("more response headers than are taken"));
    }
    Ok(Head { status, content_type, headers })
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    headers: serde_json::Map<String, serde_json::Value>,
}

impl Meta {
    fn list(self) -> Vec<(String, String)> {
        let text = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        self.headers.into_iter().map(|(name, value)| (name, text(value))).collect()
    }
}

fn text(bytes: &[u8]) -> Result<String, Garbled> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Garbled("a content type that is not UTF-8"))
}

fn json<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, Garbled> {
    serde_json::from_slice(bytes).map_err(|_| Garbled("a frame whose JSON is not as expected"))
}

#[cfg(test)]
mod tests;
