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
    Mxfp4,
}

impl BlockFormat {
    /// Values in a block.
    pub(crate) const fn values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Mxfp4 => 32,
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
            Self::Mxfp4 => 17,
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
            Self::Mxfp4 => "mxfp4",
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

    /// As messages about files spell it.
    pub(crate) fn told(self) -> String {
        match self {
            Self::Unread(dtype) => format!("{dtype:?}"),
            other => other.name().to_uppercase(),
        }
    }

    /// The same in memory, of what is read.
    const fn as_format(self) -> Option<Format> {
        match self {
            Self::F32 => Some(Format::F32),
            Self::F16 => Some(Format::F16),
            Self::Bf16 => Some(Format::Bf16),
            Self::Blocks(format) => Some(Format::Blocks(format)),
            Self::Unread(_) => None,
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
    /// The same with the exponents of f32.
    Bf16,
    /// Quantised; widened as it is used.
    Blocks(BlockFormat),
}

impl Format {
    /// Values that lie together, and their bytes.
    pub(crate) const fn unit(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
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
            Self::Bf16 => "bf16",
            Self::Blocks(format) => format.name(),
        }
    }

    /// Whether its values lie one by one.
    pub(crate) const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
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
            Self::Bf16 => 10,
            Self::Blocks(BlockFormat::Mxfp4) => 11,
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
            BlockFormat::Mxfp4,
        ];
        let all = [Self::F32, Self::F16, Self::Bf16].into_iter().chain(blocks.map(Self::Blocks));
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
        (first.is_float() && self.0.iter().all(|format| *format == first)).then_some(first)
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
    /// How the matrices lie in the files.
    pub(crate) stored: Arc<StoredFormats>,
}

/// How matrices lie in files: as most do, or as those that are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredFormats {
    most: Format,
    others: BTreeMap<String, Format>,
}

impl Default for StoredFormats {
    fn default() -> Self {
        Self { most: Format::F32, others: BTreeMap::new() }
    }
}

impl StoredFormats {
    /// Of matrices by their names; what is not read, for its type is refused later, lies anyhow.
    pub(crate) fn of<'a>(matrices: impl Iterator<Item = (&'a str, Stored)> + Clone) -> Self {
        let read = matrices.filter_map(|(name, stored)| Some((name, stored.as_format()?)));
        let mut counts: BTreeMap<Format, usize> = BTreeMap::new();
        for (_, format) in read.clone() {
            *counts.entry(format).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        let most = most.map_or(Format::F32, |(format, _)| format);
        let others = read.filter(|(_, format)| *format != most);
        Self { most, others: others.map(|(name, format)| (name.to_owned(), format)).collect() }
    }

    fn get(&self, name: &str) -> Format {
        self.others.get(name).copied().unwrap_or(self.most)
    }

    /// Whether a matrix is quantised in the files.
    pub(crate) fn is_quantised(&self, name: &str) -> bool {
        !self.get(name).is_float()
    }

    /// Whether some matrix lies in such a format.
    fn any(&self, is: impl Fn(Format) -> bool) -> bool {
        is(self.most) || self.others.values().any(|format| is(*format))
    }

    /// The names that it holds.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.others.keys()
    }
}

impl Formats {
    /// How a parameter's parts lie.
    pub(crate) fn layout(&self, parameter: &Parameter) -> Layout {
        let part = |(name, _): &(String, usize)| match parameter.columns {
            Some(columns) => self.matrix(name, columns, parameter.exact),
            None => Format::F32,
        };
        let mut parts: Vec<Format> = parameter.parts.iter().map(part).collect();
        // Floats of several types: one that holds all, rather than a buffer of parts.
        if parts.iter().all(|format| format.is_float()) && parts.iter().any(|it| *it != parts[0]) {
            parts.fill(Format::F32);
        }
        Layout(parts)
    }

    /// Whether any matrix may be quantised.
    pub(crate) fn have_blocks(&self) -> bool {
        self.quantize.is_some()
            || (self.dtype == DtypeSetting::Auto && self.stored.any(|it| !it.is_float()))
    }

    /// Whether any matrix may be bf16 or f16.
    pub(crate) fn have_halves(&self) -> bool {
        let is_half = |format| matches!(format, Format::F16 | Format::Bf16);
        let become_halves = matches!(self.dtype, DtypeSetting::F16 | DtypeSetting::Bf16);
        become_halves || self.quantize.is_some() || self.stored.any(is_half)
    }

    /// Whether any matrix may be f16.
    pub(crate) fn have_f16(&self) -> bool {
        let is_f16 = |format| format == Format::F16;
        self.dtype == DtypeSetting::F16 || self.quantize.is_some() || self.stored.any(is_f16)
    }

    /// Whether what is multiplied by weights in bf16 is rounded to bf16.
    pub(crate) fn round(&self) -> bool {
        self.dtype == DtypeSetting::Bf16
    }

    /// How a matrix lies. It stays as it is in the files, unless the operator wants floats of
    /// one type; floats are quantised if the model is to be, unless this one is to stay exact, as far as
    /// its shape allows.
    fn matrix(&self, name: &str, columns: usize, exact: bool) -> Format {
        match (self.dtype, self.stored.get(name), self.quantize.filter(|_| !exact)) {
            (DtypeSetting::Auto, stored @ Format::Blocks(_), _) => stored,
            (DtypeSetting::Auto, stored, None) => stored,
            (DtypeSetting::F32, _, None) => Format::F32,
            (DtypeSetting::F16, _, None) => Format::F16,
            (DtypeSetting::Bf16, _, None) => Format::Bf16,
            (_, stored, Some(quantize)) => quantized(quantize, columns, stored),
        }
    }
}

/// The format that was asked for, or the next best that rows of so many values can have.
fn quantized(wanted: Quantize, columns: usize, stored: Format) -> Format {
    let fits = |format: BlockFormat| columns.is_multiple_of(format.values());
    match wanted {
        Quantize::Q4K if fits(BlockFormat::Q4K) => Format::Blocks(BlockFormat::Q4K),
        Quantize::Q4K | Quantize::Q8_0 if fits(BlockFormat::Q8_0) => {
            Format::Blocks(BlockFormat::Q8_0)
        }
        Quantize::Q4K | Quantize::Q8_0 if stored == Format::Bf16 => Format::Bf16,
        Quantize::Q4K | Quantize::Q8_0 => Format::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shape_forbids_falls_back_to_the_next_best() {
        let formats = |quantize| Formats { quantize: Some(quantize), ..Formats::default() };
        let lies = |quantize, columns| formats(quantize).matrix("w", columns, false);
        assert_eq!(lies(Quantize::Q4K, 512), Format::Blocks(BlockFormat::Q4K));
        assert_eq!(lies(Quantize::Q4K, 96), Format::Blocks(BlockFormat::Q8_0));
        assert_eq!(lies(Quantize::Q4K, 90), Format::F16);
        assert_eq!(lies(Quantize::Q8_0, 512), Format::Blocks(BlockFormat::Q8_0));
        assert_eq!(lies(Quantize::Q8_0, 33), Format::F16);
        assert_eq!(formats(Quantize::Q8_0).matrix("router", 512, true), Format::F32);
    }

    #[test]
    fn a_matrix_stays_as_it_is_stored_and_a_stack_of_several_float_types_is_f32() {
        let stored = [
            ("q", Stored::Bf16),
            ("k", Stored::Bf16),
            ("v", Stored::F16),
            ("o", Stored::Blocks(BlockFormat::Q8_0)),
            ("mask", Stored::Unread(Dtype::BOOL)),
        ];
        let stored = StoredFormats::of(stored.into_iter());
        assert_eq!(stored.names().collect::<Vec<_>>(), ["o", "v"]);
        let formats = Formats { stored: stored.into(), ..Formats::default() };
        let lies = |names: &[&str]| {
            let parts = names.iter().map(|name| ((*name).to_owned(), 2)).collect();
            formats
                .layout(&Parameter { parts, columns: Some(32), transposed: false, exact: false })
                .0
        };
        assert_eq!(lies(&["q", "k"]), [Format::Bf16; 2]);
        assert_eq!(lies(&["v"]), [Format::F16]);
        assert_eq!(lies(&["q", "v"]), [Format::F32; 2]);
        assert_eq!(lies(&["q", "o"]), [Format::Bf16, Format::Blocks(BlockFormat::Q8_0)]);
        assert_eq!(formats.layout(&Parameter::vector("norm", 8)).0, [Format::F32]);
    }

    #[test]
    fn tags_are_each_formats_own_and_lead_back_to_it() {
        for tag in 0..12 {
            assert_eq!(Format::tagged(tag).map(Format::tag), Some(tag));
        }
        assert_eq!(Format::tagged(12), None);
    }
}
