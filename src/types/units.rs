//! Quantities with their units.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

/// A number of bytes. Arithmetic is saturating where it subtracts and checked where
/// it adds: a sum of sizes that overflows is a bug, not a large number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// `n` kibibytes.
    pub const fn kib(n: u64) -> Self {
        Self(n * 1024)
    }

    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n * 1024 * 1024)
    }

    /// `n` gibibytes.
    pub const fn gib(n: u64) -> Self {
        Self(n * 1024 * 1024 * 1024)
    }

    /// As a length for allocation.
    ///
    /// # Panics
    /// Where `usize` is smaller than the value: not on the 64-bit targets we build for.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).expect("64-bit targets only")
    }

    /// What is left after taking `other` away, zero at least.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, or `None` on overflow: for sizes that came from outside.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// The product, or `None` on overflow: for sizes that came from outside.
    pub fn checked_mul(self, factor: u64) -> Option<Self> {
        self.0.checked_mul(factor).map(Self)
    }
}

impl std::ops::Add for Bytes {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0.checked_add(other.0).expect("sums of sizes fit in 64 bits"))
    }
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, |total, next| total + next)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u64); 4] =
            [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        for (unit, size) in UNITS {
            if self.0 >= size {
                #[expect(clippy::cast_precision_loss, reason = "for people, three digits")]
                let value = self.0 as f64 / size as f64;
                return write!(f, "{value:.1} {unit}");
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A size that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' is not a size: write a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB, like 24GiB"
)]
pub struct ParseBytesError(String);

impl FromStr for Bytes {
    type Err = ParseBytesError;

    fn from_str(text: &str) -> Result<Self, ParseBytesError> {
        let fault = || ParseBytesError(text.into());
        let trimmed = text.trim();
        let split =
            trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            _ => return Err(fault()),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(Self).ok_or_else(fault);
        }
        let value: f64 = number.parse().map_err(|_| fault())?;
        #[expect(clippy::cast_precision_loss, reason = "a fraction of a unit is rounded anyway")]
        let bytes = value * factor as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "range checked in the guard"
        )]
        if bytes.is_finite() && bytes >= 0.0 && bytes < u64::MAX as f64 {
            return Ok(Self(bytes as u64));
        }
        Err(fault())
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_with_their_units() {
        let cases = [
            ("24GiB", Some(24 << 30)),
            ("1.5 KiB", Some(1536)),
            ("500MB", Some(500_000_000)),
            ("7", Some(7)),
            ("", None),
            ("-1", None),
            ("1 parsec", None),
            ("99999999999999999999", None),
            ("99999999TiB", None),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse::<Bytes>().ok().map(|b| b.0), want, "{text}");
        }
    }
}
