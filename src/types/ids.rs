//! Names of endpoints, targets, versions and devices.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest endpoint name SageMaker allows.
const ENDPOINT_NAME_MAX: usize = 63;
/// The longest target model the `X-Amzn-SageMaker-Target-Model` header may carry.
const TARGET_MAX: usize = 1024;

/// Why a name was refused. The text says which rule was broken, never the whole name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidName {
    /// Nothing was given.
    #[error("it is empty")]
    Empty,
    /// Longer than the limit, in bytes.
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    /// An endpoint name with a character outside `[a-zA-Z0-9-]`, or a hyphen at an end.
    #[error("an endpoint name has letters, digits and inner hyphens only")]
    EndpointCharacter,
    /// A target that begins with `/`.
    #[error("it begins with '/'")]
    Absolute,
    /// A target with a `..` or `.` segment.
    #[error("it has a '.' or '..' segment")]
    DotSegment,
    /// A target with `//`.
    #[error("it has an empty segment")]
    EmptySegment,
    /// A tenant with a `/`.
    #[error("it has a '/'")]
    Segments,
    /// A control character, a backslash, or bytes that are not UTF-8.
    #[error("it has a control character, a backslash or bytes that are not UTF-8")]
    Character,
}

macro_rules! text_newtype {
    ($name:ident) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

/// The name of a configured endpoint: at most 63 of `[a-zA-Z0-9-]`, no hyphen at either end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EndpointName(Arc<str>);
text_newtype!(EndpointName);

impl FromStr for EndpointName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() {
            return Err(InvalidName::Empty);
        }
        if text.len() > ENDPOINT_NAME_MAX {
            return Err(InvalidName::TooLong(ENDPOINT_NAME_MAX));
        }
        let allowed = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !allowed || text.starts_with('-') || text.ends_with('-') {
            return Err(InvalidName::EndpointCharacter);
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for EndpointName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<EndpointName> for String {
    fn from(name: EndpointName) -> Self {
        name.0.as_ref().into()
    }
}

/// A target model as a client wrote it: bytes that nobody has looked at yet.
///
/// It is never percent-decoded and never normalised beyond [`TargetModel::check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetModel(Vec<u8>);

impl TargetModel {
    /// Takes the bytes of a header or a JSON string.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Checks the text and yields the name it stands for.
    ///
    /// Refused: empty, over 1,024 bytes, not UTF-8, a leading `/`, empty or dot
    /// segments, control characters, backslashes. One trailing `/` is dropped: a
    /// folder may be named with or without it.
    pub fn check(&self) -> Result<TargetName, InvalidName> {
        if self.0.is_empty() {
            return Err(InvalidName::Empty);
        }
        if self.0.len() > TARGET_MAX {
            return Err(InvalidName::TooLong(TARGET_MAX));
        }
        let text = std::str::from_utf8(&self.0).map_err(|_| InvalidName::Character)?;
        if text.chars().any(|c| c.is_control() || c == '\\') {
            return Err(InvalidName::Character);
        }
        if text.starts_with('/') {
            return Err(InvalidName::Absolute);
        }
        let name = text.strip_suffix('/').unwrap_or(text);
        for segment in name.split('/') {
            match segment {
                "" => return Err(InvalidName::EmptySegment),
                "." | ".." => return Err(InvalidName::DotSegment),
                _ => {}
            }
        }
        Ok(TargetName(name.into()))
    }
}

/// A checked target: a relative key without a trailing slash, safe to join to a prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetName(Arc<str>);
text_newtype!(TargetName);

impl TargetName {
    /// Whose target it is: the first of its segments. Those of one segment are one tenant's, whose
    /// name is empty.
    pub fn tenant(&self) -> &str {
        self.as_str().split_once('/').map_or("", |(first, _)| first)
    }
}

impl FromStr for TargetName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        TargetModel::new(text).check()
    }
}

impl TryFrom<String> for TargetName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<TargetName> for String {
    fn from(name: TargetName) -> Self {
        name.0.as_ref().into()
    }
}

/// The name of a tenant: one segment of a target, so that a target's first one can be it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantName(Arc<str>);
text_newtype!(TenantName);

impl FromStr for TenantName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let target: TargetName = text.parse()?;
        if text.contains('/') {
            return Err(InvalidName::Segments);
        }
        Ok(Self(target.0))
    }
}

impl TryFrom<String> for TenantName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<&TenantName> for TenantName {
    fn from(name: &TenantName) -> Self {
        name.clone()
    }
}

impl From<TenantName> for String {
    fn from(name: TenantName) -> Self {
        name.0.as_ref().into()
    }
}

/// A checked target at an endpoint. Prints as `endpoint:target`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ModelId {
    /// The endpoint whose mounts hold it.
    pub endpoint: EndpointName,
    /// Its key relative to the endpoint.
    pub target: TargetName,
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.endpoint, self.target)
    }
}

/// One immutable version of a target's files: a digest over every object's key, ETag and size.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(Arc<str>);
text_newtype!(Version);

impl Version {
    /// Takes a digest in lower-case hexadecimal.
    pub fn from_digest(hex: &str) -> Self {
        debug_assert!(hex.bytes().all(|b| b.is_ascii_hexdigit()), "a version is a hex digest");
        Self(hex.into())
    }
}

/// One version of one model: what caches of files and residents are keyed by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ArtefactId {
    /// Which model.
    pub model: ModelId,
    /// Which version of it.
    pub version: Version,
}

impl fmt::Display for ArtefactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = self.version.as_str().get(..12).unwrap_or(self.version.as_str());
        write!(f, "{}@{short}", self.model)
    }
}

/// A device that holds loaded models. Prints as `cpu` or `cuda:0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String")]
pub enum DeviceId {
    /// The host's processor and memory.
    Cpu,
    /// A CUDA device by ordinal.
    Cuda(u16),
    /// A device that computes on the host's processor but has a memory of its own, which is
    /// filled through a copy of bounded bandwidth: a rehearsal of an accelerator.
    Simulated(u16),
}

impl DeviceId {
    /// Whether its memory is the host's. What leaves any other device may stay in the host's
    /// memory.
    pub fn is_host(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda(_) | Self::Simulated(_) => false,
        }
    }

    /// Whether its memory is a card's own, of which the host has nothing.
    pub fn is_card(self) -> bool {
        match self {
            Self::Cuda(_) => true,
            Self::Cpu | Self::Simulated(_) => false,
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Simulated(ordinal) => write!(f, "simulated:{ordinal}"),
        }
    }
}

impl From<DeviceId> for String {
    fn from(device: DeviceId) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_refused_for_every_way_out_of_its_prefix() {
        let cases: [(&[u8], InvalidName); 12] = [
            (b"", InvalidName::Empty),
            (b"/a", InvalidName::Absolute),
            (b"/", InvalidName::Absolute),
            (b"../a", InvalidName::DotSegment),
            (b"a/../b", InvalidName::DotSegment),
            (b"a/..", InvalidName::DotSegment),
            (b"./a", InvalidName::DotSegment),
            (b"a//b", InvalidName::EmptySegment),
            (b"a//", InvalidName::EmptySegment),
            (b"a\\b", InvalidName::Character),
            (b"a\x00b", InvalidName::Character),
            (b"a\xffb", InvalidName::Character),
        ];
        for (bytes, why) in cases {
            assert_eq!(TargetModel::new(bytes).check(), Err(why), "{bytes:?}");
        }
        let long = vec![b'a'; 1025];
        assert_eq!(TargetModel::new(long).check(), Err(InvalidName::TooLong(1024)));
    }

    #[test]
    fn a_target_keeps_its_text_and_loses_one_trailing_slash() {
        for text in ["t/a+b%20c#d?.tar.gz", "tenant/a b.tar.gz", "é/…", "a..b/.c", "%2e%2e/a"] {
            assert_eq!(TargetModel::new(text).check().unwrap().as_str(), text);
        }
        assert_eq!(TargetModel::new("a/b/").check().unwrap().as_str(), "a/b");
    }

    #[test]
    fn endpoint_names_follow_sagemaker() {
        for good in ["a", "my-ep", "A1--b"] {
            assert!(good.parse::<EndpointName>().is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "a_b", "a/b", "é", long.as_str()] {
            assert!(bad.parse::<EndpointName>().is_err(), "{bad}");
        }
    }
}
