//! Digests and checksums of what is on disk.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crc_fast::CrcAlgorithm;
use sha2::{Digest as _, Sha256};

use super::digest::FileDigester;
use super::manifest::DiskFile;
use crate::artefact::hex;
use crate::{Checksum, ChecksumAlgorithm, Error};

/// What is read at once.
const CHUNK: usize = 1 << 20;

/// Our digest and the store's checksum, computed in one pass.
pub(super) struct Hasher {
    sha256: Sha256,
    crc: Option<crc_fast::Digest>,
    expected: Option<Checksum>,
    length: u64,
}

impl Hasher {
    /// Takes the store's checksum to compare with, if there is one.
    pub(super) fn new(expected: Option<Checksum>) -> Self {
        let crc = expected.as_ref().and_then(|checksum| match checksum.algorithm {
            ChecksumAlgorithm::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            ChecksumAlgorithm::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            ChecksumAlgorithm::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            ChecksumAlgorithm::Sha256 => None,
        });
        Self { sha256: Sha256::new(), crc: crc.map(crc_fast::Digest::new), expected, length: 0 }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(crc) = &mut self.crc {
            crc.update(bytes);
        }
        self.length += bytes.len() as u64;
    }

    /// The number of bytes seen so far.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Our digest in hexadecimal, or which checksum does not match.
    pub(super) fn finish(self) -> Result<String, String> {
        let sha256 = self.sha256.finalize();
        let Some(expected) = self.expected else {
            return Ok(hex(&sha256));
        };
        let crc = self.crc.map(|crc| crc.finalize().to_be_bytes());
        let (name, computed): (_, &[u8]) = match (expected.algorithm, &crc) {
            (ChecksumAlgorithm::Sha256, _) => ("SHA-256", &sha256),
            (ChecksumAlgorithm::Crc64Nvme, Some(crc)) => ("CRC-64/NVME", crc),
            (ChecksumAlgorithm::Crc32, Some(crc)) => ("CRC-32", &crc[4..]),
            (ChecksumAlgorithm::Crc32c, Some(crc)) => ("CRC-32C", &crc[4..]),
            (_, None) => return Err("a checksum that was not computed".into()),
        };
        let computed = base64(computed);
        if computed == expected.base64 {
            return Ok(hex(&sha256));
        }
        Err(format!("{name} of the store is {}, of the bytes on disk {computed}", expected.base64))
    }
}

/// Reads a file once; the inner result is the outcome of [`FileDigester::finish`]. Blocks.
pub(super) fn digest(
    path: &Path,
    mut digester: FileDigester,
) -> Result<Result<DiskFile, String>, Error> {
    let fault = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(fault)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = file.read(&mut buffer).map_err(fault)?;
        if count == 0 {
            break;
        }
        digester.update(&buffer[..count]);
    }
    Ok(digester.finish())
}

/// Standard base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = (0..3).fold(0_usize, |bits, at| {
            bits << 8 | usize::from(group.get(at).copied().unwrap_or_default())
        });
        for at in 0..4 {
            let digit = DIGITS[bits >> (18 - 6 * at) & 63];
            text.push(if at <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(algorithm: ChecksumAlgorithm, base64: &str) -> Result<String, String> {
        let mut hasher = Hasher::new(Some(Checksum { algorithm, base64: base64.into() }));
        hasher.update(b"1234");
        hasher.update(b"56789");
        hasher.finish()
    }

    #[test]
    fn the_checksums_of_the_standard_vector_match() {
        // The check values of the CRC catalogue for "123456789", in base64.
        let vectors = [
            (ChecksumAlgorithm::Crc32, "y/Q5Jg=="),
            (ChecksumAlgorithm::Crc32c, "4waSgw=="),
            (ChecksumAlgorithm::Crc64Nvme, "rosUhgp5mIg="),
            (ChecksumAlgorithm::Sha256, "FeKw08M4keuw8e9gnsQZQgwg4yDOlMZfvIwzEkSOsiU="),
        ];
        for (algorithm, good) in vectors {
            let outcome = check(algorithm, good);
            let digest = "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225";
            assert_eq!(outcome.as_deref(), Ok(digest), "{algorithm:?}");
            assert!(check(algorithm, "AAAAAA==").is_err(), "{algorithm:?}");
        }
    }

    #[test]
    fn base64_is_padded() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (plain, coded) in cases {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
