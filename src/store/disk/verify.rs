//! Digests and checksums of what is on disk.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crc_fast::CrcAlgorithm;
use sha2::{Digest as _, Sha256};

use super::digest::FileDigester;
use super::held::Held;
use super::layout::FILES;
use super::manifest::DiskFile;
use crate::{Checksum, ChecksumAlgorithm, Error};

/// What is read at once.
const CHUNK: usize = 1 << 20;

/// The store's checksum, computed of the bytes on disk.
pub(super) struct Check {
    computing: Computing,
    expected: Checksum,
}

enum Computing {
    Sha256(Sha256),
    Crc(crc_fast::Digest),
}

impl Check {
    pub(super) fn new(expected: Checksum) -> Self {
        let crc = |algorithm| Computing::Crc(crc_fast::Digest::new(algorithm));
        let computing = match expected.algorithm {
            ChecksumAlgorithm::Crc32 => crc(CrcAlgorithm::Crc32IsoHdlc),
            ChecksumAlgorithm::Crc32c => crc(CrcAlgorithm::Crc32Iscsi),
            ChecksumAlgorithm::Crc64Nvme => crc(CrcAlgorithm::Crc64Nvme),
            ChecksumAlgorithm::Sha256 => Computing::Sha256(Sha256::new()),
        };
        Self { computing, expected }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.computing {
            Computing::Sha256(sha256) => sha256.update(bytes),
            Computing::Crc(crc) => crc.update(bytes),
        }
    }

    /// Says which checksum does not match.
    pub(super) fn finish(self) -> Result<(), String> {
        let (name, length) = match self.expected.algorithm {
            ChecksumAlgorithm::Sha256 => ("SHA-256", 32),
            ChecksumAlgorithm::Crc64Nvme => ("CRC-64/NVME", 8),
            ChecksumAlgorithm::Crc32 => ("CRC-32", 4),
            ChecksumAlgorithm::Crc32c => ("CRC-32C", 4),
        };
        let computed = match self.computing {
            Computing::Sha256(sha256) => sha256.finalize().to_vec(),
            Computing::Crc(crc) => crc.finalize().to_be_bytes()[8 - length..].to_vec(),
        };
        let (computed, expected) = (base64(&computed), self.expected.base64);
        if computed == expected {
            return Ok(());
        }
        Err(format!("{name} of the store is {expected}, of the bytes on disk {computed}"))
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

/// Compares our digests of an artefact's files again, wherever their bytes lie. Blocks.
pub(super) fn verify(held: &Held) -> Result<(), Error> {
    let mut buffer = vec![0; CHUNK];
    for file in &held.manifest.files {
        let corrupt = |what: String| Error::Corrupt {
            model: held.manifest.artefact.id.model.to_string(),
            path: file.path.clone(),
            what,
        };
        let mut digester = FileDigester::new(&file.path, file.size, None);
        let mut at = 0;
        while at < file.size {
            let count = usize::try_from(file.size - at).unwrap_or(usize::MAX).min(CHUNK);
            match held.read_at(&file.path, at, &mut buffer[..count]) {
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                    return Err(corrupt(format!("it has fewer than {} bytes", file.size)));
                }
                outcome => outcome.map_err(|error| {
                    Error::io("read", &held.folder.join(FILES).join(&file.path), error)
                })?,
            }
            digester.update(&buffer[..count]);
            at += count as u64;
        }
        let found = digester.finish().map_err(corrupt)?.digest;
        if found != file.digest {
            return Err(corrupt(format!("its digest was {} and is {found}", file.digest)));
        }
    }
    Ok(())
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

    fn check(algorithm: ChecksumAlgorithm, base64: &str) -> Result<(), String> {
        let mut check = Check::new(Checksum { algorithm, base64: base64.into() });
        check.update(b"1234");
        check.update(b"56789");
        check.finish()
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
            assert_eq!(check(algorithm, good), Ok(()), "{algorithm:?}");
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
