//! How many columns of a terminal a text takes.

/// What of a line fits so many columns: one that wraps would push the page off the screen.
pub(super) fn fitting(line: &str, columns: usize) -> &str {
    let mut left = columns;
    let end = line.char_indices().find_map(|(at, c)| match left.checked_sub(columns_of(c)) {
        Some(rest) => {
            left = rest;
            None
        }
        None => Some(at),
    });
    &line[..end.unwrap_or(line.len())]
}

/// A letter's columns, rather one too many than one too few: two for what East Asian Width
/// (UAX 11) calls wide, in blocks, and for pictures.
pub(super) fn columns_of(c: char) -> usize {
    match u32::from(c) {
        0x1100..=0x115f
        | 0x231a..=0x23ff
        | 0x2600..=0x27bf
        | 0x2b00..=0x2bff
        | 0x2e80..=0xa4cf
        | 0xa960..=0xa97f
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe10..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x16fe0..=0x18dff
        | 0x1aff0..=0x1b2ff
        | 0x1f000..=0x1faff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    }
}
