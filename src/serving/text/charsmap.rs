//! Whether a SentencePiece character map can be walked: the library that does walk it trusts it.
//!
//! It is a double-array trie (as darts-clone writes it) behind its length in bytes, and then the texts
//! that its values point into, each up to a zero.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A unit's flag that a value hangs on it.
const HAS_LEAF: u32 = 1 << 8;
/// The bits of a unit's letter; the highest is set in values alone.
const LABEL: u32 = (1 << 31) | 0xff;
const VALUE: u32 = (1 << 31) - 1;

/// Checks all that a text can lead to, whatever the text is.
///
/// # Errors
/// What leads out of the map.
pub(super) fn check(written: &str) -> Result<(), &'static str> {
    let bytes = STANDARD.decode(written).map_err(|_| "it is not base64")?;
    let (length, rest) = bytes.split_first_chunk().ok_or("it has no length")?;
    // As the library counts: in whole units.
    let length = u32::from_le_bytes(*length) as usize / 4 * 4;
    let (units, texts) = rest.split_at_checked(length).ok_or("it is shorter than it says")?;
    let (units, _) = units.as_chunks::<4>();
    let units: Vec<u32> = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let texts = std::str::from_utf8(texts).map_err(|_| "its texts are not UTF-8")?;
    let root = *units.first().ok_or("it is empty")?;

    let mut seen = vec![false; units.len()];
    let mut open = vec![offset(root)];
    while let Some(base) = open.pop() {
        for letter in 1..=255_usize {
            let at = base ^ letter;
            let unit = *units.get(at).ok_or("a letter leads out of it")?;
            if unit & LABEL != u32::try_from(letter).unwrap_or_default() {
                continue;
            }
            let next = at ^ offset(unit);
            if unit & HAS_LEAF != 0 {
                let value = *units.get(next).ok_or("a value is out of it")? & VALUE;
                let is_text = usize::try_from(value).is_ok_and(|it| texts.is_char_boundary(it));
                if !is_text {
                    return Err("a value is no place in its texts");
                }
            }
            if !std::mem::replace(&mut seen[at], true) {
                open.push(next);
            }
        }
    }
    Ok(())
}

/// What a unit adds to its place to get to where its letters are counted from.
fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & (1 << 9)) >> 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map of these units, with these texts.
    fn map(units: &[u32], texts: &str) -> String {
        let mut bytes = u32::try_from(units.len() * 4).unwrap().to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(texts.as_bytes());
        STANDARD.encode(bytes)
    }

    #[test]
    fn a_map_is_walked_to_its_ends() {
        let mut units = vec![0_u32; 768];
        // From 256 on: the letter a, whose own letters are counted from 512 on, with a value there.
        units[0] = 256 << 10;
        let a = 256 ^ usize::from(b'a');
        units[a] = u32::from(b'a') | HAS_LEAF | (u32::try_from(a ^ 512).unwrap() << 10);
        units[512] = 2 | (1 << 31);
        assert_eq!(check(&map(&units, "b\0c\0")), Ok(()));
        assert_eq!(check(&map(&units, "b")), Err("a value is no place in its texts"));
        assert_eq!(check(&map(&units[..700], "b\0c\0")), Err("a letter leads out of it"));
        assert_eq!(check(&map(&units[..300], "b\0c\0")), Err("a letter leads out of it"));
        assert_eq!(check("AAAAAA=="), Err("it is empty"));
        assert_eq!(check("AAAA"), Err("it has no length"));
        assert_eq!(check("/////w=="), Err("it is shorter than it says"));
    }
}
