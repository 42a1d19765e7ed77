//! Weights from files into the buffers they stay in.
//!
//! Each buffer is allocated once, in its final size and format, and filled in pieces:
//! the peak of a load is the weights plus one piece, or one matrix that lies by columns. Nothing is mapped, so the pages
//! that a file occupies are the system's to drop, not part of our footprint.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use roundhouse_types::{Bytes, SharedPart};

use crate::Error;
use crate::blocks;
use crate::convert::{are_finite, narrow, quantize, unpair, widen, widen_to};
use crate::device::DeviceMemory;
use crate::files::{ModelFiles, io_error};
use crate::format::{Format, Formats, Layout, Stored};
use crate::pool::{self, Pooled, SHARED_AT_LEAST, Sharing, Taken};
use crate::tensors::{Located, TensorTable};

mod woven;

use woven::{check_scales, woven};

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
    /// Whether a matrix's parts lie in the files by columns.
    pub(crate) transposed: bool,
    /// Whether it stays as it is where a model is quantised as it is read.
    pub(crate) exact: bool,
}

impl Parameter {
    pub(crate) fn matrix(name: impl Into<String>, rows: usize, columns: usize) -> Self {
        let parts = vec![(name.into(), rows)];
        Self { parts, columns: Some(columns), transposed: false, exact: false }
    }

    pub(crate) fn vector(name: impl Into<String>, length: usize) -> Self {
        let parts = vec![(name.into(), length)];
        Self { parts, columns: None, transposed: false, exact: true }
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
                Some(columns) if self.transposed => &[columns, *rows],
                Some(columns) => &[*rows, columns],
                None => &[*rows],
            };
            found.push(table.find(name, shape)?);
        }
        Ok((found, formats.layout(self)))
    }

    /// Where its last byte lies: in which file, and how far behind. Comes first where a part is
    /// in no file, so that this is told before anything is read.
    pub(crate) fn last_byte<'a>(&self, table: &'a TensorTable) -> Option<(&'a str, u64)> {
        let mut last = Some(("", 0));
        for (name, _) in &self.parts {
            let part = table.get(name)?;
            last = last.max(Some((part.file.as_ref(), part.start)));
            let scales = part.scales.as_ref();
            last = last.max(scales.map(|scales| (scales.file.as_ref(), scales.start)));
        }
        last
    }

    /// Its rows in memory.
    pub(crate) fn rows(&self) -> usize {
        self.parts.iter().map(|(_, rows)| rows).sum()
    }

    /// Its shape in memory.
    pub(crate) fn shape(&self) -> Vec<usize> {
        std::iter::once(self.rows()).chain(self.columns).collect()
    }
}

/// Reads parameters from the files of one artefact.
pub(crate) struct Reader<'a> {
    files: &'a dyn ModelFiles,
    table: &'a TensorTable,
    formats: &'a Formats,
    cancel: &'a Cancel,
    sharing: Option<&'a Sharing>,
    raw: Vec<u8>,
    /// Bytes of all buffers allocated for parameters that are shared with nobody.
    pub(crate) own: Bytes,
    /// The shared buffers, each once.
    pub(crate) held: Vec<Arc<Pooled>>,
    /// Bytes that others had read.
    pub(crate) found: Bytes,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(
        files: &'a dyn ModelFiles,
        table: &'a TensorTable,
        formats: &'a Formats,
        cancel: &'a Cancel,
        sharing: Option<&'a Sharing>,
    ) -> Self {
        Self {
            files,
            table,
            formats,
            cancel,
            sharing,
            raw: Vec::new(),
            own: Bytes::ZERO,
            held: Vec::new(),
            found: Bytes::ZERO,
        }
    }

    /// Reads one parameter into a tensor of `[rows, columns]`, or `[length]` for a vector,
    /// or takes the buffer of a model that has the same content.
    fn read(&mut self, device: &DeviceMemory, parameter: &Parameter) -> Result<Tensor, Error> {
        let (parts, layout) = parameter.locate(self.table, self.formats)?;
        let bytes = layout.bytes(parameter);
        let Some(sharing) = self.sharing.filter(|_| bytes >= SHARED_AT_LEAST) else {
            self.own += bytes;
            return device.settle(self.fill(parameter, &parts, &layout, None)?);
        };
        let mut turn = None;
        if let Some(digest) = sharing.known.get(parameter) {
            let content = sharing.content(digest, parameter, &layout);
            match sharing.pool.take(content, self.cancel)? {
                Taken::Found(pooled) => {
                    self.found += bytes;
                    return Ok(self.hold(pooled));
                }
                Taken::Absent(mine) => turn = Some(mine),
            }
        }
        let mut hasher = pool::hasher(parameter, &parts);
        let tensor = self.fill(parameter, &parts, &layout, Some(&mut hasher))?;
        let digest = hasher.finalize();
        if sharing.known.get(parameter).is_some_and(|known| known != digest.as_bytes()) {
            return Err(Error::Altered { name: pool::name(parameter) });
        }
        let content = sharing.content(digest.as_bytes(), parameter, &layout);
        let tensor = device.settle(tensor)?;
        let pooled = sharing.pool.add(SharedPart { content, bytes }, tensor);
        drop(turn);
        Ok(self.hold(pooled))
    }

    /// Reads one parameter for a device's own memory: its buffers are filled piece by piece, and what was
    /// read has passed the device's link when this returns.
    pub(crate) fn read_to(
        &mut self,
        device: &DeviceMemory,
        parameter: &Parameter,
    ) -> Result<Tensor, Error> {
        let found = self.found;
        let tensor = self.read(device, parameter)?;
        if self.found == found {
            device.was_filled(self.formats.layout(parameter).bytes(parameter));
        }
        Ok(tensor)
    }

    fn hold(&mut self, pooled: Arc<Pooled>) -> Tensor {
        let tensor = pooled.tensor.clone();
        // Two parameters of one model may be equal, too.
        if !self.held.iter().any(|held| Arc::ptr_eq(held, &pooled)) {
            self.held.push(pooled);
        }
        tensor
    }

    /// Reads a parameter's parts into one new buffer, and the digest of each as it lies in the
    /// files into `hasher`.
    fn fill(
        &mut self,
        parameter: &Parameter,
        parts: &[&Located],
        layout: &Layout,
        mut hasher: Option<&mut blake3::Hasher>,
    ) -> Result<Tensor, Error> {
        let columns = parameter.columns.unwrap_or(1);
        let shape = parameter.shape();
        let tensor = match layout.plain() {
            Some(Format::F16) => {
                let halves = self.halves(parameter, parts, Format::F16, hasher)?;
                Tensor::from_vec(halves.reinterpret_into::<f16>(), shape, &Device::Cpu)?
            }
            Some(Format::Bf16) => {
                let halves = self.halves(parameter, parts, Format::Bf16, hasher)?;
                Tensor::from_vec(halves.reinterpret_into::<bf16>(), shape, &Device::Cpu)?
            }
            Some(_) => {
                Tensor::from_vec(self.floats(parameter, parts, hasher)?, shape, &Device::Cpu)?
            }
            None => {
                let size = layout.bytes(parameter).as_usize();
                let mut buffer = Vec::with_capacity(size);
                let heights: Vec<usize> = parameter.parts.iter().map(|(_, rows)| *rows).collect();
                buffer.extend(blocks::table(columns, &heights, layout));
                for ((part, (name, _)), format) in parts.iter().zip(&parameter.parts).zip(&layout.0)
                {
                    let start = buffer.len();
                    let kind = (*format, parameter.transposed);
                    self.blocks(part, name, kind, hasher.as_deref_mut(), &mut buffer)?;
                    unpair(part.paired, format.bytes_of(columns), &mut buffer[start..]);
                }
                debug_assert_eq!(buffer.len(), size, "a buffer is what was counted");
                Tensor::from_vec(buffer, size, &Device::Cpu)?
            }
        };
        Ok(tensor)
    }

    /// Reads a parameter's parts as f32 to where they stay.
    fn floats(
        &mut self,
        parameter: &Parameter,
        parts: &[&Located],
        mut hasher: Option<&mut blake3::Hasher>,
    ) -> Result<Vec<f32>, Error> {
        let columns = parameter.columns.unwrap_or(1);
        // Zeros cost nothing: the system's pages are fresh until they are filled.
        let mut buffer = vec![0.0; parameter.rows() * columns];
        let mut rest = buffer.as_mut_slice();
        for (part, (_, rows)) in parts.iter().zip(&parameter.parts) {
            let (mine, others) = rest.split_at_mut(rows * columns);
            rest = others;
            let hasher = hasher.as_deref_mut();
            let mut left = &mut *mine;
            match part.dtype {
                Stored::F32 if !parameter.transposed && cfg!(target_endian = "little") => {
                    self.straight(part, hasher, bytemuck::cast_slice_mut(left))?;
                }
                Stored::F32 | Stored::F16 | Stored::Bf16 if !parameter.transposed => {
                    let (dtype, (_, width)) = (part.dtype, part.dtype.unit());
                    self.pieces(part, hasher, |raw| {
                        let count = raw.len() / width;
                        let (next, others) = std::mem::take(&mut left).split_at_mut(count);
                        widen_to(dtype, raw, next);
                        left = others;
                        Ok(())
                    })?;
                }
                _ => self.by_rows(part, parameter.transposed, hasher, |numbers| {
                    let (next, others) = std::mem::take(&mut left).split_at_mut(numbers.len());
                    next.copy_from_slice(numbers);
                    left = others;
                    Ok(())
                })?,
            }
            unpair(part.paired, columns, mine);
        }
        Ok(buffer)
    }

    /// Reads a parameter's parts as f16 or bf16, in bits, to where they stay.
    fn halves(
        &mut self,
        parameter: &Parameter,
        parts: &[&Located],
        format: Format,
        mut hasher: Option<&mut blake3::Hasher>,
    ) -> Result<Vec<u16>, Error> {
        let columns = parameter.columns.unwrap_or(1);
        let mut buffer = vec![0u16; parameter.rows() * columns];
        let mut rest = buffer.as_mut_slice();
        for (part, (name, rows)) in parts.iter().zip(&parameter.parts) {
            let (mine, others) = rest.split_at_mut(rows * columns);
            rest = others;
            let hasher = hasher.as_deref_mut();
            let is_there = matches!(
                (part.dtype, format),
                (Stored::F16, Format::F16) | (Stored::Bf16, Format::Bf16)
            );
            if is_there && !parameter.transposed && cfg!(target_endian = "little") {
                self.straight(part, hasher, bytemuck::cast_slice_mut(mine))?;
                if format == Format::F16 && !are_finite(mine) {
                    return Err(Error::NotFinite { name: name.clone() });
                }
            } else {
                let mut left = &mut *mine;
                self.by_rows(part, parameter.transposed, hasher, |numbers| {
                    let (next, others) = std::mem::take(&mut left).split_at_mut(numbers.len());
                    left = others;
                    narrow(numbers, name, format, next)
                })?;
            }
            unpair(part.paired, columns, mine);
        }
        Ok(buffer)
    }

    /// Appends a tensor's rows in `format`: as they lie in the file if that is theirs already.
    fn blocks(
        &mut self,
        part: &Located,
        name: &str,
        (format, transposed): (Format, bool),
        hasher: Option<&mut blake3::Hasher>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let is_there = match (part.dtype, format) {
            (Stored::F32, Format::F32)
            | (Stored::F16, Format::F16)
            | (Stored::Bf16, Format::Bf16) => true,
            (Stored::Blocks(stored), Format::Blocks(wanted)) => stored == wanted,
            _ => false,
        };
        if is_there && !transposed {
            return self.pieces(part, hasher, |raw| {
                buffer.extend_from_slice(raw);
                Ok(())
            });
        }
        self.by_rows(part, transposed, hasher, |numbers| match format {
            Format::F32 => {
                buffer.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
                Ok(())
            }
            Format::F16 | Format::Bf16 => {
                let mut halves = vec![0; numbers.len()];
                narrow(numbers, name, format, &mut halves)?;
                buffer.extend(halves.iter().flat_map(|number| number.to_le_bytes()));
                Ok(())
            }
            Format::Blocks(format) => quantize(numbers, name, format, buffer),
        })
    }

    /// Hands a part's values to `sink` row after row, widened to f32: piece by piece as they lie
    /// in the file, or all at once where they lie there by columns.
    fn by_rows(
        &mut self,
        part: &Located,
        transposed: bool,
        hasher: Option<&mut blake3::Hasher>,
        mut sink: impl FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (true, [columns, rows]) = (transposed, part.shape.as_slice()) else {
            return self.numbers(part, hasher, sink);
        };
        let mut whole = vec![0.0; rows * columns];
        let (mut row, mut column) = (0, 0);
        self.numbers(part, hasher, |numbers| {
            for number in numbers {
                whole[row * columns + column] = *number;
                row += 1;
                if row == *rows {
                    (row, column) = (0, column + 1);
                }
            }
            Ok(())
        })?;
        sink(&whole)
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

    /// Reads a tensor's bytes to where they stay.
    fn straight(
        &mut self,
        part: &Located,
        hasher: Option<&mut blake3::Hasher>,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let mut tensor = hasher.is_some().then(blake3::Hasher::new);
        for (piece, offset) in buffer.chunks_mut(PIECE).zip((part.start..).step_by(PIECE)) {
            self.cancel.check()?;
            read_at(self.files, &part.file, offset, piece)?;
            if let Some(tensor) = &mut tensor {
                tensor.update(piece);
            }
        }
        if let (Some(hasher), Some(tensor)) = (hasher, tensor) {
            hasher.update(tensor.finalize().as_bytes());
        }
        Ok(())
    }

    /// Hands a tensor's bytes to `sink`, piece by piece, each of whole blocks.
    fn pieces(
        &mut self,
        part: &Located,
        hasher: Option<&mut blake3::Hasher>,
        mut sink: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (together, width) = part.dtype.unit();
        let total: usize = part.shape.iter().product();
        let mut tensor = hasher.is_some().then(blake3::Hasher::new);
        let mut done = 0;
        while done < total {
            self.cancel.check()?;
            let count = PIECE.min(total - done);
            match &part.scales {
                None => {
                    let offset = part.start + (done / together * width) as u64;
                    self.raw.resize(count / together * width, 0);
                    read_at(self.files, &part.file, offset, &mut self.raw)?;
                    check_scales(part, offset, &self.raw)?;
                }
                Some(scales) => {
                    let blocks = done / together..(done + count) / together;
                    self.raw.clear();
                    woven(self.files, (part, scales), blocks, &mut self.raw)?;
                }
            }
            if let Some(tensor) = &mut tensor {
                tensor.update(&self.raw);
            }
            sink(&self.raw)?;
            done += count;
        }
        if let (Some(hasher), Some(tensor)) = (hasher, tensor) {
            hasher.update(tensor.finalize().as_bytes());
        }
        Ok(())
    }
}

fn read_at(
    files: &dyn ModelFiles,
    file: &str,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), Error> {
    files.read_at(file, offset, buffer).map_err(|source| io_error(file, source))
}
