//! How numbers lie in files and in memory, and which parameter lies how.

use std::collections::BTreeMap;
use std::sync::Arc;

use roundhouse_types::Bytes;
use safetensors::Dtype;

use crate::blocks;
use crate::inspect::{DtypeSetting, Quantize};
use crate::reader::Parameter;

/// Quantised numbers: blocks of so many values along a row share their scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BlockFormat {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockFormat {
    /// Values in a block.
    pub(crate) const fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// As reports spell it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q5K => "q5_k",
            Self::Q6K => "q6_k",
        }
    }
}

/// How a tensor lies in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    F16,
    Bf16,
    Blocks(BlockFormat),
    /// In a way that is not read.
    Unread(Dtype),
}

impl Stored {
    pub(crate) fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::Bf16,
            other => Self::Unread(other),
        }
    }

    /// Values that lie together, and their bytes; of what is not read, nothing.
    pub(crate) const fn unit(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Blocks(format) => (format.values(), format.bytes()),
            Self::Unread(_) => (1, 0),
        }
    }

    /// Bytes of so many values, whole blocks.
    pub(crate) const fn bytes_of(self, values: u64) -> Option<u64> {
        let (together, bytes) = self.unit();
        (values / together as u64).checked_mul(bytes as u64)
    }

    /// As reports spell it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Blocks(format) => format.name(),
            Self::Unread(_) => "?",
        }
    }

    /// A number for digests, which must never change its meaning.
    pub(crate) const fn tag(self) -> u8 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 2,
            Self::Blocks(format) => Format::Blocks(format).tag() + 8,
            Self::Unread(_) => u8::MAX,
        }
    }
}

/// How a matrix lies in memory. Vectors (norms, biases) are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Format {
    /// Four bytes a weight.
    F32,
    /// Two bytes a weight; widened as it is used.
    F16,
    /// Quantised; widened as it is used.
    Blocks(BlockFormat),
}

impl Format {
    /// Values that lie together, and their bytes.
    pub(crate) const fn unit(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 => (1, 2),
            Self::Blocks(format) => (format.values(), format.bytes()),
        }
    }

    /// Bytes of so many values, whole blocks.
    pub(crate) const fn bytes_of(self, values: usize) -> usize {
        let (together, bytes) = self.unit();
        values / together * bytes
    }

    /// As reports spell it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Blocks(format) => format.name(),
        }
    }

    /// A number for digests and tables of parts, which must never change its meaning.
    pub(crate) const fn tag(self) -> u8 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Blocks(BlockFormat::Q4_0) => 2,
            Self::Blocks(BlockFormat::Q4_1) => 3,
            Self::Blocks(BlockFormat::Q5_0) => 4,
            Self::Blocks(BlockFormat::Q5_1) => 5,
            Self::Blocks(BlockFormat::Q8_0) => 6,
            Self::Blocks(BlockFormat::Q4K) => 7,
            Self::Blocks(BlockFormat::Q5K) => 8,
            Self::Blocks(BlockFormat::Q6K) => 9,
        }
    }

    /// The format with that number.
    pub(crate) fn tagged(tag: u8) -> Option<Self> {
        let blocks = [
            BlockFormat::Q4_0,
            BlockFormat::Q4_1,
            BlockFormat::Q5_0,
            BlockFormat::Q5_1,
            BlockFormat::Q8_0,
            BlockFormat::Q4K,
            BlockFormat::Q5K,
            BlockFormat::Q6K,
        ];
        let all = [Self::F32, Self::F16].into_iter().chain(blocks.map(Self::Blocks));
        all.into_iter().find(|format| format.tag() == tag)
    }
}

/// How each part of a parameter lies in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout(pub(crate) Vec<Format>);

impl Layout {
    /// The one float format of all parts: such parameters are tensors of that type. All others
    /// are one buffer of bytes, as [`blocks`] has it.
    pub(crate) fn plain(&self) -> Option<Format> {
        let first = *self.0.first()?;
        let is_plain = matches!(first, Format::F32 | Format::F16);
        (is_plain && self.0.iter().all(|format| *format == first)).then_some(first)
    }

    /// The bytes that a parameter takes in memory.
    pub(crate) fn bytes(&self, parameter: &Parameter) -> Bytes {
        let columns = parameter.columns.unwrap_or(1) as u64;
        let parts = parameter.parts.iter().zip(&self.0);
        let values: u64 = parts
            .map(|((_, rows), format)| {
                let (together, bytes) = format.unit();
                // The header was checked: this many values lie in a file.
                *rows as u64 * (columns / together as u64) * bytes as u64
            })
            .sum();
        Bytes(values + if self.plain().is_some() { 0 } else { blocks::TABLE as u64 })
    }
}

/// How the parameters of one model lie in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Formats {
    pub(crate) dtype: DtypeSetting,
    pub(crate) quantize: Option<Quantize>,
    /// The tensors that are quantised in the files.
    pub(crate) stored: Arc<BTreeMap<String, BlockFormat>>,
}

impl Formats {
    /// How a parameter's parts lie.
    pub(crate) fn layout(&self, parameter: &Parameter) -> Layout {
        let part = |(name, _): &(String, usize)| match parameter.columns {
            Some(columns) => self.matrix(name, columns),
            None => Format::F32,
        };
        Layout(parameter.parts.iter().map(part).collect())
    }

    /// Whether any matrix may lie in another format than f32.
    pub(crate) fn are_widened(&self) -> bool {
        self.quantize.is_some()
            || self.dtype == DtypeSetting::F16
            || (self.dtype == DtypeSetting::Auto && !self.stored.is_empty())
    }

    /// How a matrix lies. What is quantised in the files stays as it is, unless the operator
    /// wants floats; what is not is quantised if the model is to be, as far as its shape allows.
    fn matrix(&self, name: &str, columns: usize) -> Format {
        match (self.dtype, self.stored.get(name), self.quantize) {
            (DtypeSetting::Auto, Some(format), _) => Format::Blocks(*format),
            (DtypeSetting::F32, _, None) | (DtypeSetting::Auto, None, None) => Format::F32,
            (DtypeSetting::F16, _, None) => Format::F16,
            (_, _, Some(quantize)) => quantized(quantize, columns),
        }
    }
}

/// The format that was asked for, or the next best that rows of so many values can have.
fn quantized(wanted: Quantize, columns: usize) -> Format {
    let fits = |format: BlockFormat| columns.is_multiple_of(format.values());
    match wanted {
        Quantize::Q4K if fits(BlockFormat::Q4K) => Format::Blocks(BlockFormat::Q4K),
        Quantize::Q4K | Quantize::Q8_0 if fits(BlockFormat::Q8_0) => {
            Format::Blocks(BlockFormat::Q8_0)
        }
        Quantize::Q4K | Quantize::Q8_0 => Format::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shape_forbids_falls_back_to_the_next_best() {
        let formats = |quantize| Formats { quantize: Some(quantize), ..Formats::default() };
        let lies = |quantize, columns| formats(quantize).matrix("w", columns);
        assert_eq!(lies(Quantize::Q4K, 512), Format::Blocks(BlockFormat::Q4K));
        assert_eq!(lies(Quantize::Q4K, 96), Format::Blocks(BlockFormat::Q8_0));
        assert_eq!(lies(Quantize::Q4K, 90), Format::F16);
        assert_eq!(lies(Quantize::Q8_0, 512), Format::Blocks(BlockFormat::Q8_0));
        assert_eq!(lies(Quantize::Q8_0, 33), Format::F16);
    }

    #[test]
    fn tags_are_each_formats_own_and_lead_back_to_it() {
        for tag in 0..10 {
            assert_eq!(Format::tagged(tag).map(Format::tag), Some(tag));
        }
        assert_eq!(Format::tagged(10), None);
    }
}
