//! The next input out of earlier ones.

/// Bytes of an input at most.
const LONGEST: usize = 64 << 10;
/// Numbers at which readers stumble.
const ODD: [u64; 12] =
    [0, 1, 7, 8, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 62, u64::MAX];
/// Pieces that mean something to some reader.
const PIECES: [&str; 24] = [
    "../",
    "%2e%2e%2f",
    "\0",
    "\u{feff}",
    "\u{202e}",
    "{{",
    "{%",
    "[[",
    "\"\\ud800\"",
    "-0",
    "1e999",
    "null",
    "NaN",
    "9223372036854775808",
    ": ",
    "\r\n",
    "\n\n",
    "/",
    "*",
    "=",
    "\\",
    "data: ",
    "é",
    "\u{10ffff}",
];

/// A small generator of the kind that Marsaglia described: the same seed, the same inputs.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap_or_default() % bound.max(1)
    }
}

/// One of `pool`, changed in one to six places.
pub(crate) fn mutated(pool: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = pool[random.below(pool.len())].clone();
    for _ in 0..=random.below(6) {
        step(&mut input, pool, random);
    }
    input.truncate(LONGEST);
    input
}

fn step(input: &mut Vec<u8>, pool: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    match random.below(11) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.next().to_le_bytes()[0],
        2 => {
            let byte = random.next().to_le_bytes()[0];
            input.insert(at, byte);
        }
        3 => {
            let piece = PIECES[random.below(PIECES.len())];
            drop(input.splice(at..at, piece.bytes()));
        }
        4 => {
            // A number, over what is there or as digits.
            let number = ODD[random.below(ODD.len())];
            let width = 1 << random.below(4);
            let bytes = match random.below(3) {
                0 => number.to_le_bytes()[..width].to_vec(),
                1 => number.to_be_bytes()[8 - width..].to_vec(),
                _ => number.to_string().into_bytes(),
            };
            let end = input.len().min(at + bytes.len());
            drop(input.splice(at..end, bytes));
        }
        5 => {
            let end = input.len().min(at + 1 + random.below(16));
            drop(input.drain(at..end));
        }
        6 => input.truncate(at),
        7 => {
            // Something that is there, again and again.
            let end = input.len().min(at + 1 + random.below(32));
            let piece = input[at..end].repeat(1 + random.below(64));
            drop(input.splice(at..at, piece));
        }
        8 | 9 => {
            // A piece of another input.
            let other = &pool[random.below(pool.len())];
            let from = random.below(other.len() + 1);
            let to = other.len().min(from + 1 + random.below(256));
            drop(input.splice(at..at, other[from..to].iter().copied()));
        }
        _ => {
            // The beginning of this one, the end of another.
            let other = &pool[random.below(pool.len())];
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}
