//! Content that several models may hold together.

use std::fmt;

use crate::Bytes;

/// Names what one buffer of a device's memory holds: equal for equal content in equal
/// layout, and a digest that nobody can make two contents of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId([u8; 32]);

impl ContentId {
    /// The name with this digest.
    pub fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell contents apart in a log.
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A part of a model's weights that other models may hold as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedPart {
    /// What it holds.
    pub content: ContentId,
    /// What it takes in memory.
    pub bytes: Bytes,
}
