//! Weights from files into the buffers they stay in.
//!
//! Each buffer is allocated once, in its final size and format, and filled in pieces:
//! the peak of a load is the weights plus one piece. Nothing is mapped, so the pages
//! that a file occupies are the system's to drop, not part of our footprint.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use rayon::prelude::*;
use roundhouse_types::{Bytes, SharedPart};

use crate::Error;
use crate::blocks;
use crate::files::io_error;
use crate::format::{BlockFormat, Format, Formats, Layout, Stored};
use crate::pool::{self, Digests, Pooled, SHARED_AT_LEAST, Sharing, Taken};
use crate::tensors::{Located, TensorTable};

/// Values per piece: 2 MiB of f32, small enough to stay in a core's cache.
const PIECE: usize = 1 << 19;

/// Cancels a load that another thread runs. Clones cancel the same load.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the load at its next piece of a tensor, with [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// One parameter of a model: tensors of equal width, stacked by rows into one.
///
/// Stacking is how `q_proj`, `k_proj` and `v_proj` become one projection.
#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    /// The tensors' names in the files, with their rows.
    pub(crate) parts: Vec<(String, usize)>,
    /// Numbers per row, or `None` for a vector.
    pub(crate) columns: Option<usize>,
}

impl Parameter {
    pub(crate) fn matrix(name: impl Into<String>, rows: usize, columns: usize) -> Self {
        Self { parts: vec![(name.into(), rows)], columns: Some(columns) }
    }

    pub(crate) fn vector(name: impl Into<String>, length: usize) -> Self {
        Self { parts: vec![(name.into(), length)], columns: None }
    }

    /// Finds every part, checks its shape, and says how each will lie in memory.
    pub(crate) fn locate<'a>(
        &self,
        table: &'a TensorTable,
        formats: &Formats,
    ) -> Result<(Vec<&'a Located>, Layout), Error> {
        let mut found = Vec::with_capacity(self.parts.len());
        for (name, rows) in &self.parts {
            let shape: &[usize] = match self.columns {
                Some(columns) => &[*rows, columns],
                None => &[*rows],
            };
            found.push(table.find(name, shape)?);
        }
        Ok((found, formats.layout(self)))
    }

    /// Its rows in memory.
    pub(crate) fn rows(&self) -> usize {
        self.parts.iter().map(|(_, rows)| rows).sum()
    }
}

/// Reads parameters from the files of one artefact.
pub(crate) struct Reader<'a> {
    dir: PathBuf,
    table: &'a TensorTable,
    formats: &'a Formats,
    cancel: &'a Cancel,
    sharing: Option<&'a Sharing>,
    files: HashMap<Arc<str>, File>,
    raw: Vec<u8>,
    /// Bytes of all buffers allocated for parameters that are shared with nobody.
    pub(crate) own: Bytes,
    /// The shared buffers, each once.
    pub(crate) held: Vec<Arc<Pooled>>,
    /// Digests of what could be shared.
    pub(crate) digests: Digests,
    /// Bytes that others had read.
    pub(crate) found: Bytes,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        dir: &Path,
        table: &'a TensorTable,
        formats: &'a Formats,
        cancel: &'a Cancel,
        sharing: Option<&'a Sharing>,
    ) -> Self {
        Self {
            dir: dir.into(),
            table,
            formats,
            cancel,
            sharing,
            files: HashMap::new(),
            raw: Vec::new(),
            own: Bytes::ZERO,
            held: Vec::new(),
            digests: Digests::default(),
            found: Bytes::ZERO,
        }
    }

    /// Reads one parameter into a tensor of `[rows, columns]`, or `[length]` for a vector,
    /// or takes the buffer of a model that has the same content.
    pub(crate) fn read(&mut self, parameter: &Parameter) -> Result<Tensor, Error> {
        let (parts, layout) = parameter.locate(self.table, self.formats)?;
        let bytes = layout.bytes(parameter);
        let Some(sharing) = self.sharing.filter(|_| bytes >= SHARED_AT_LEAST) else {
            self.own += bytes;
            return self.fill(parameter, &parts, &layout, None);
        };
        let mut turn = None;
        if let Some(digest) = sharing.known.get(parameter) {
            let content = sharing.content(digest, parameter, &layout);
            match sharing.pool.take(content, self.cancel)? {
                Taken::Found(pooled) => {
                    self.digests.insert(parameter, blake3::Hash::from_bytes(*digest));
                    self.found += bytes;
                    return Ok(self.hold(pooled));
                }
                Taken::Absent(mine) => turn = Some(mine),
            }
        }
        let mut hasher = pool::hasher(parameter, &parts);
        let tensor = self.fill(parameter, &parts, &layout, Some(&mut hasher))?;
        let digest = hasher.finalize();
        let content = sharing.content(digest.as_bytes(), parameter, &layout);
        let pooled = sharing.pool.add(SharedPart { content, bytes }, tensor);
        drop(turn);
        self.digests.insert(parameter, digest);
        Ok(self.hold(pooled))
    }

    fn hold(&mut self, pooled: Arc<Pooled>) -> Tensor {
        let tensor = pooled.tensor.clone();
        // Two parameters of one model may be equal, too.
        if !self.held.iter().any(|held| Arc::ptr_eq(held, &pooled)) {
            self.held.push(pooled);
        }
        tensor
    }

    /// Reads a parameter's parts into one new buffer, and the bytes as they lie in the files
    /// into `hasher`.
    fn fill(
        &mut self,
        parameter: &Parameter,
        parts: &[&Located],
        layout: &Layout,
        mut hasher: Option<&mut blake3::Hasher>,
    ) -> Result<Tensor, Error> {
        let (rows, columns) = (parameter.rows(), parameter.columns.unwrap_or(1));
        let shape = match parameter.columns {
            Some(columns) => vec![rows, columns],
            None => vec![rows],
        };
        let tensor = match layout.plain() {
            Some(Format::F16) => {
                let mut buffer: Vec<f16> = Vec::with_capacity(rows * columns);
                for (part, (name, _)) in parts.iter().zip(&parameter.parts) {
                    let start = buffer.len();
                    self.numbers(part, hasher.as_deref_mut(), |numbers| {
                        narrow(numbers, name, &mut buffer)
                    })?;
                    unpair(part.paired, columns, &mut buffer[start..]);
                }
                Tensor::from_vec(buffer, shape, &Device::Cpu)?
            }
            Some(_) => {
                let mut buffer = Vec::with_capacity(rows * columns);
                for part in parts {
                    let start = buffer.len();
                    self.numbers(part, hasher.as_deref_mut(), |numbers| {
                        buffer.extend_from_slice(numbers);
                        Ok(())
                    })?;
                    unpair(part.paired, columns, &mut buffer[start..]);
                }
                Tensor::from_vec(buffer, shape, &Device::Cpu)?
            }
            None => {
                let size = layout.bytes(parameter).as_usize();
                let mut buffer = Vec::with_capacity(size);
                let heights: Vec<usize> = parameter.parts.iter().map(|(_, rows)| *rows).collect();
                buffer.extend(blocks::table(columns, &heights, layout));
                for ((part, (name, _)), format) in parts.iter().zip(&parameter.parts).zip(&layout.0)
                {
                    let start = buffer.len();
                    self.blocks(part, name, *format, hasher.as_deref_mut(), &mut buffer)?;
                    unpair(part.paired, format.bytes_of(columns), &mut buffer[start..]);
                }
                debug_assert_eq!(buffer.len(), size, "a buffer is what was counted");
                Tensor::from_vec(buffer, size, &Device::Cpu)?
            }
        };
        Ok(tensor)
    }

    /// Appends a tensor's rows in `format`: as they lie in the file if that is theirs already.
    fn blocks(
        &mut self,
        part: &Located,
        name: &str,
        format: Format,
        hasher: Option<&mut blake3::Hasher>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let is_there = match (part.dtype, format) {
            (Stored::F32, Format::F32) | (Stored::F16, Format::F16) => true,
            (Stored::Blocks(stored), Format::Blocks(wanted)) => stored == wanted,
            _ => false,
        };
        if is_there {
            return self.pieces(part, hasher, |raw| {
                buffer.extend_from_slice(raw);
                Ok(())
            });
        }
        self.numbers(part, hasher, |numbers| match format {
            Format::F32 => {
                buffer.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
                Ok(())
            }
            Format::F16 => {
                let mut halves = Vec::with_capacity(numbers.len());
                narrow(numbers, name, &mut halves)?;
                buffer.extend(halves.iter().flat_map(|number| number.to_le_bytes()));
                Ok(())
            }
            Format::Blocks(format) => quantize(numbers, name, format, buffer),
        })
    }

    /// Hands a tensor's values to `sink`, widened to f32, piece by piece.
    fn numbers(
        &mut self,
        part: &Located,
        hasher: Option<&mut blake3::Hasher>,
        mut sink: impl FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let dtype = part.dtype;
        let mut widened = Vec::new();
        self.pieces(part, hasher, |raw| {
            widened.clear();
            widen(dtype, raw, &mut widened);
            sink(&widened)
        })
    }

    /// Hands a tensor's bytes to `sink`, piece by piece, each of whole blocks.
    fn pieces(
        &mut self,
        part: &Located,
        mut hasher: Option<&mut blake3::Hasher>,
        mut sink: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let file = match self.files.entry(Arc::clone(&part.file)) {
            std::collections::hash_map::Entry::Occupied(open) => open.into_mut(),
            std::collections::hash_map::Entry::Vacant(empty) => {
                let opened = File::open(self.dir.join(part.file.as_ref()))
                    .map_err(|source| io_error(&part.file, source))?;
                empty.insert(opened)
            }
        };
        let (together, width) = part.dtype.unit();
        let total: usize = part.shape.iter().product();
        let mut done = 0;
        while done < total {
            self.cancel.check()?;
            let count = PIECE.min(total - done);
            self.raw.resize(count / together * width, 0);
            let offset = part.start + (done / together * width) as u64;
            file.read_exact_at(&mut self.raw, offset)
                .map_err(|source| io_error(&part.file, source))?;
            if let Some(hasher) = hasher.as_deref_mut() {
                hasher.update(&self.raw);
            }
            sink(&self.raw)?;
            done += count;
        }
        Ok(())
    }
}

/// Little-endian numbers of `dtype` as f32, exactly.
fn widen(dtype: Stored, raw: &[u8], out: &mut Vec<f32>) {
    match dtype {
        Stored::F32 => {
            out.extend(raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        Stored::Bf16 => out.extend(
            raw.as_chunks::<2>()
                .0
                .iter()
                .map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16)),
        ),
        Stored::F16 => {
            let bits: Vec<u16> =
                raw.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
            out.resize(bits.len(), 0.0);
            bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
        }
        Stored::Blocks(format) => blocks::widen(Format::Blocks(format), raw, out),
        Stored::Unread(_) => {}
    }
}

/// Values per quantising task.
const TASK: usize = 1 << 15;

/// Quantises whole blocks, and refuses what is not finite: one such value would spoil its block.
fn quantize(
    numbers: &[f32],
    name: &str,
    format: BlockFormat,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    if numbers.iter().any(|number| !number.is_finite()) {
        return Err(Error::NotFinite { name: name.into() });
    }
    let done: Result<Vec<Vec<u8>>, candle_core::Error> = numbers
        .par_chunks(TASK)
        .map(|numbers| {
            let tensor = Tensor::from_slice(numbers, numbers.len(), &Device::Cpu)?;
            Ok(QTensor::quantize(&tensor, quantizer(format))?.data()?.into_owned())
        })
        .collect();
    for bytes in done? {
        out.extend_from_slice(&bytes);
    }
    Ok(())
}

fn quantizer(format: BlockFormat) -> GgmlDType {
    match format {
        BlockFormat::Q4_0 => GgmlDType::Q4_0,
        BlockFormat::Q4_1 => GgmlDType::Q4_1,
        BlockFormat::Q5_0 => GgmlDType::Q5_0,
        BlockFormat::Q5_1 => GgmlDType::Q5_1,
        BlockFormat::Q8_0 => GgmlDType::Q8_0,
        BlockFormat::Q4K => GgmlDType::Q4K,
        BlockFormat::Q5K => GgmlDType::Q5K,
        BlockFormat::Q6K => GgmlDType::Q6K,
    }
}

/// Brings rows that lie in pairs into halves, head by head: of each head of `head` rows, the
/// even ones come first.
fn unpair<T: Copy>(head: Option<usize>, row: usize, values: &mut [T]) {
    let Some(head) = head else { return };
    let mut pairs = Vec::new();
    for rows in values.chunks_exact_mut(head * row) {
        pairs.clear();
        pairs.extend_from_slice(rows);
        for (index, to) in rows.chunks_exact_mut(row).enumerate() {
            let half = head / 2;
            let from = if index < half { 2 * index } else { 2 * (index - half) + 1 };
            to.copy_from_slice(&pairs[from * row..][..row]);
        }
    }
}

/// Rounds to f16, and refuses what is or would become infinite: kernels that widen f16
/// rely on finite numbers.
fn narrow(numbers: &[f32], name: &str, out: &mut Vec<f16>) -> Result<(), Error> {
    let start = out.len();
    out.resize(start + numbers.len(), f16::ZERO);
    out[start..].convert_from_f32_slice(numbers);
    if out[start..].iter().any(|number| !number.is_finite()) {
        return Err(Error::BeyondRange { name: name.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_widens_to_the_same_numbers() {
        let numbers = [0.0f32, -1.5, 0.15625, 1024.0];
        let mut f32s = Vec::new();
        let raw: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        widen(Stored::F32, &raw, &mut f32s);
        let mut f16s = Vec::new();
        let raw: Vec<u8> = numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        widen(Stored::F16, &raw, &mut f16s);
        let mut bf16s = Vec::new();
        let raw: Vec<u8> =
            numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        widen(Stored::Bf16, &raw, &mut bf16s);
        assert_eq!([f32s, f16s, bf16s], [numbers.to_vec(), numbers.to_vec(), numbers.to_vec()]);
    }

    #[test]
    fn rows_in_pairs_come_to_lie_in_halves_head_by_head() {
        let mut rows = [0, 0, 10, 10, 1, 1, 11, 11, 5, 5, 15, 15, 6, 6, 16, 16];
        unpair(Some(4), 2, &mut rows);
        assert_eq!(rows, [0, 0, 1, 1, 10, 10, 11, 11, 5, 5, 6, 6, 15, 15, 16, 16]);
        unpair(None, 2, &mut rows);
        assert_eq!(rows[..4], [0, 0, 1, 1]);
    }

    #[test]
    fn quantising_refuses_what_is_not_finite() {
        let mut numbers = vec![0.5; 64];
        let mut out = Vec::new();
        quantize(&numbers, "w", BlockFormat::Q8_0, &mut out).unwrap();
        assert_eq!(out.len(), 2 * BlockFormat::Q8_0.bytes());
        numbers[40] = f32::NAN;
        let refused = quantize(&numbers, "w", BlockFormat::Q8_0, &mut out);
        assert!(matches!(refused, Err(Error::NotFinite { .. })));
    }

    #[test]
    fn narrowing_refuses_what_f16_cannot_hold() {
        let mut out = Vec::new();
        assert!(narrow(&[1.0, -65_504.0], "w", &mut out).is_ok());
        assert!(matches!(narrow(&[70_000.0], "w", &mut out), Err(Error::BeyondRange { .. })));
    }
}
