//! Takes the frames of an AWS event stream apart.
//!
//! A frame: total length and headers' length (4 bytes each), their checksum (4), headers,
//! payload, a checksum over everything (4). TCP guards the bytes on the way; the lengths are
//! checked because a wrong one would make us wait for ever.

use crate::error::Error;

/// Lengths and their checksum.
const PRELUDE: usize = 12;
/// The checksum at the end.
const TRAILER: usize = 4;
/// AWS allows 16 MiB of payload and 128 KiB of headers.
const LONGEST: usize = (16 << 20) + (128 << 10) + PRELUDE + TRAILER;
/// A header's value of the type string.
const STRING: u8 = 7;

/// One frame's meaning.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A part of the answer.
    Part(Vec<u8>),
    /// The answer failed on the way.
    Exception {
        /// Which exception.
        name: String,
        /// Its JSON.
        payload: Vec<u8>,
    },
}

/// Bytes that have come, up to the frame that is still incomplete.
#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// Adds bytes as they come.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Whether nothing of an incomplete frame is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// When the bytes are not an event stream.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, Error> {
        let (Some(total), Some(headers)) = (self.length(0), self.length(4)) else {
            return Ok(None);
        };
        if !(PRELUDE + TRAILER..=LONGEST).contains(&total) || headers > total - PRELUDE - TRAILER {
            return Err(not_a_stream());
        }
        if self.0.len() < total {
            return Ok(None);
        }
        let frame: Vec<u8> = self.0.drain(..total).collect();
        let payload = frame[PRELUDE + headers..total - TRAILER].to_vec();
        let exception = exception_name(&frame[PRELUDE..PRELUDE + headers])?;
        Ok(Some(match exception {
            None => Frame::Part(payload),
            Some(name) => Frame::Exception { name, payload },
        }))
    }

    fn length(&self, at: usize) -> Option<usize> {
        let bytes = self.0.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes) as usize)
    }
}

/// The exception that the headers name, if they name one.
fn exception_name(mut headers: &[u8]) -> Result<Option<String>, Error> {
    let mut found = None;
    while !headers.is_empty() {
        let (name, rest) = header(headers).ok_or_else(not_a_stream)?;
        headers = rest.1;
        if name == b":exception-type" || name == b":error-code" {
            found = Some(String::from_utf8_lossy(rest.0).into_owned());
        }
    }
    Ok(found)
}

type NameAndRest<'a> = (&'a [u8], (&'a [u8], &'a [u8]));

/// A header's name, its value, and the headers after it.
fn header(bytes: &[u8]) -> Option<NameAndRest<'_>> {
    let (length, bytes) = bytes.split_first()?;
    let (name, bytes) = bytes.split_at_checked(usize::from(*length))?;
    let (kind, bytes) = bytes.split_first()?;
    if *kind != STRING {
        return None;
    }
    let (length, bytes) = bytes.split_at_checked(2)?;
    let length = u16::from_be_bytes(length.try_into().ok()?);
    Some((name, bytes.split_at_checked(usize::from(length))?))
}

fn not_a_stream() -> Error {
    let bad = std::io::Error::from(std::io::ErrorKind::InvalidData);
    Error::io("the answer is not a response stream", bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in headers {
            block.push(u8::try_from(name.len()).unwrap());
            block.extend(name.as_bytes());
            block.push(STRING);
            block.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
            block.extend(value.as_bytes());
        }
        let total = u32::try_from(PRELUDE + block.len() + payload.len() + TRAILER).unwrap();
        let mut frame = total.to_be_bytes().to_vec();
        frame.extend(u32::try_from(block.len()).unwrap().to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(block);
        frame.extend(payload);
        frame.extend([0; 4]);
        frame
    }

    #[test]
    fn frames_come_out_whole_however_their_bytes_come_in() {
        let part = [(":message-type", "event"), (":event-type", "PayloadPart")];
        let bytes = [frame(&part, b"one"), frame(&part, b""), frame(&part, b"two")].concat();
        for size in 1..bytes.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(size) {
                frames.push(piece);
                while let Some(frame) = frames.next().unwrap() {
                    found.push(frame);
                }
            }
            let want = [b"one".to_vec(), Vec::new(), b"two".to_vec()].map(Frame::Part);
            assert_eq!(found, want);
            assert!(frames.is_empty());
        }
    }

    #[test]
    fn an_exception_is_told_from_a_part() {
        let headers = [(":message-type", "exception"), (":exception-type", "ModelStreamError")];
        let mut frames = Frames::default();
        frames.push(&frame(&headers, b"{}"));
        let want = Frame::Exception { name: "ModelStreamError".into(), payload: b"{}".to_vec() };
        assert_eq!(frames.next().unwrap(), Some(want));
    }

    #[test]
    fn bytes_that_are_no_stream_are_refused_and_never_waited_for() {
        for bytes in
            [&b"{\"error\": \"no stream\"}"[..], &[0; 16], &[0, 0, 0, 20, 0, 0, 0, 9, 0, 0]]
        {
            let mut frames = Frames::default();
            frames.push(bytes);
            assert!(frames.next().is_err(), "{bytes:?}");
        }
    }
}
