//! What the command line reads of others' bytes, each as one call: so that a test can hold hostile
//! ones against it.

use std::path::{Path, PathBuf};

use super::invoke::frames::Frames;
use super::simulate::read;
use crate::error::Error;

/// How many messages a whole event stream has, as `invoke` reads one.
///
/// # Errors
/// When it is none.
pub fn event_stream(bytes: &[u8]) -> Result<usize, Error> {
    let mut frames = Frames::default();
    let mut count = 0;
    // In pieces of odd lengths, as a network gives them.
    for piece in bytes.chunks(37) {
        frames.push(piece);
        while frames.next()?.is_some() {
            count += 1;
        }
    }
    Ok(count)
}

/// How many requests a trace has, as `simulate` reads one.
///
/// # Errors
/// When it cannot be read, or holds none.
pub fn trace(path: &Path) -> Result<usize, Error> {
    let read = read::read(&[PathBuf::from(path)])?;
    Ok(read.trace.requests().len())
}
