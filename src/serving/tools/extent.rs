//! Where the first object of a text ends, found as the text comes.

/// Follows a text that holds JSON to the end of its first object.
#[derive(Debug, Default)]
pub(super) struct FirstObject {
    /// Bytes that were looked at.
    seen: usize,
    /// Braces that are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Whether it was found: it is told once.
    found: bool,
}

impl FirstObject {
    /// Looks at what the text has more than the last time. Gives the place behind the object when
    /// that has come.
    pub(super) fn end(&mut self, text: &str) -> Option<usize> {
        if self.found {
            return None;
        }
        for byte in &text.as_bytes()[self.seen..] {
            self.seen += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' => self.depth += 1,
                b'}' if self.depth <= 1 => {
                    self.found = true;
                    return Some(self.seen);
                }
                b'}' => self.depth -= 1,
                _ => {}
            }
        }
        None
    }
}
