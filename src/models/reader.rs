//! Weights from files into the buffers they stay in.
//!
//! Each buffer is allocated once, in its final size and format, and filled in pieces:
//! the peak of a load is the weights plus one piece. Nothing is mapped, so the pages
//! that a file occupies are the system's to drop, not part of our footprint.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use roundhouse_types::{Bytes, SharedPart};
use safetensors::Dtype;

use crate::Error;
use crate::files::{ModelFiles, io_error};
use crate::pool::{self, Pooled, SHARED_AT_LEAST, Sharing, Taken};
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

/// How a matrix lies in memory. Vectors (norms, biases) are f32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Four bytes a weight.
    F32,
    /// Two bytes a weight; widened as it is used.
    F16,
}

impl Format {
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
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

    /// Finds every part, checks its shape, and counts the bytes the whole will take.
    pub(crate) fn locate<'a>(
        &self,
        table: &'a TensorTable,
        format: Format,
    ) -> Result<(Vec<&'a Located>, Bytes), Error> {
        let mut found = Vec::with_capacity(self.parts.len());
        let mut bytes = 0u64;
        for (name, rows) in &self.parts {
            let shape: &[usize] = match self.columns {
                Some(columns) => &[*rows, columns],
                None => &[*rows],
            };
            let located = table.find(name, shape)?;
            // The header was checked: this many values of at least two bytes lie in a file.
            let values: u64 = located.shape.iter().map(|&size| size as u64).product();
            bytes += values * self.format(format).bytes();
            found.push(located);
        }
        Ok((found, Bytes(bytes)))
    }

    /// Where its last byte lies: in which file, and how far behind. Comes first where a part is
    /// in no file, so that this is told before anything is read.
    pub(crate) fn last_byte<'a>(&self, table: &'a TensorTable) -> Option<(&'a str, u64)> {
        let mut last = Some(("", 0));
        for (name, _) in &self.parts {
            let part = table.get(name)?;
            last = last.max(Some((part.file.as_ref(), part.start)));
        }
        last
    }

    /// The bytes it takes in memory.
    pub(crate) fn bytes(&self, format: Format) -> Bytes {
        let rows: u64 = self.parts.iter().map(|(_, rows)| *rows as u64).sum();
        Bytes(rows * self.columns.unwrap_or(1) as u64 * self.format(format).bytes())
    }

    /// How it lies in memory where matrices lie like this.
    pub(crate) fn format(&self, matrices: Format) -> Format {
        if self.columns.is_some() { matrices } else { Format::F32 }
    }
}

/// Reads parameters from the files of one artefact.
pub(crate) struct Reader<'a> {
    files: &'a dyn ModelFiles,
    table: &'a TensorTable,
    format: Format,
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
        format: Format,
        cancel: &'a Cancel,
        sharing: Option<&'a Sharing>,
    ) -> Self {
        Self {
            files,
            table,
            format,
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
    pub(crate) fn read(&mut self, parameter: &Parameter) -> Result<Tensor, Error> {
        let (parts, bytes) = parameter.locate(self.table, self.format)?;
        let Some(sharing) = self.sharing.filter(|_| bytes >= SHARED_AT_LEAST) else {
            self.own += bytes;
            return self.fill(parameter, &parts, None);
        };
        let format = parameter.format(self.format);
        let mut turn = None;
        if let Some(digest) = sharing.known.get(parameter) {
            let content = sharing.content(digest, parameter, format);
            match sharing.pool.take(content, self.cancel)? {
                Taken::Found(pooled) => {
                    self.found += bytes;
                    return Ok(self.hold(pooled));
                }
                Taken::Absent(mine) => turn = Some(mine),
            }
        }
        let mut hasher = pool::hasher(parameter, &parts);
        let tensor = self.fill(parameter, &parts, Some(&mut hasher))?;
        let digest = hasher.finalize();
        if sharing.known.get(parameter).is_some_and(|known| known != digest.as_bytes()) {
            return Err(Error::Altered { name: pool::name(parameter) });
        }
        let content = sharing.content(digest.as_bytes(), parameter, format);
        let pooled = sharing.pool.add(SharedPart { content, bytes }, tensor);
        drop(turn);
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

    /// Reads a parameter's parts into one new buffer, and the digest of each as it lies in the
    /// files into `hasher`.
    fn fill(
        &mut self,
        parameter: &Parameter,
        parts: &[&Located],
        mut hasher: Option<&mut blake3::Hasher>,
    ) -> Result<Tensor, Error> {
        let rows: usize = parameter.parts.iter().map(|(_, rows)| rows).sum();
        let values = rows * parameter.columns.unwrap_or(1);
        let shape = match parameter.columns {
            Some(columns) => vec![rows, columns],
            None => vec![rows],
        };
        let tensor = match parameter.format(self.format) {
            Format::F32 => {
                let mut buffer = Vec::with_capacity(values);
                for part in parts {
                    self.pieces(part, hasher.as_deref_mut(), |numbers| {
                        buffer.extend_from_slice(numbers);
                        Ok(())
                    })?;
                }
                Tensor::from_vec(buffer, shape, &Device::Cpu)?
            }
            Format::F16 => {
                let mut buffer: Vec<f16> = Vec::with_capacity(values);
                for (part, (name, _)) in parts.iter().zip(&parameter.parts) {
                    self.pieces(part, hasher.as_deref_mut(), |numbers| {
                        narrow(numbers, name, &mut buffer)
                    })?;
                }
                Tensor::from_vec(buffer, shape, &Device::Cpu)?
            }
        };
        Ok(tensor)
    }

    /// Hands a tensor's values to `sink`, widened to f32, piece by piece.
    fn pieces(
        &mut self,
        part: &Located,
        hasher: Option<&mut blake3::Hasher>,
        mut sink: impl FnMut(&[f32]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let width = if part.dtype == Dtype::F32 { 4 } else { 2 };
        let total: usize = part.shape.iter().product();
        let mut widened = Vec::with_capacity(PIECE.min(total));
        let mut tensor = hasher.is_some().then(blake3::Hasher::new);
        let mut done = 0;
        while done < total {
            self.cancel.check()?;
            let count = PIECE.min(total - done);
            self.raw.resize(count * width, 0);
            let offset = part.start + (done * width) as u64;
            self.files
                .read_at(&part.file, offset, &mut self.raw)
                .map_err(|source| io_error(&part.file, source))?;
            if let Some(tensor) = &mut tensor {
                tensor.update(&self.raw);
            }
            widened.clear();
            widen(part.dtype, &self.raw, &mut widened);
            sink(&widened)?;
            done += count;
        }
        if let (Some(hasher), Some(tensor)) = (hasher, tensor) {
            hasher.update(tensor.finalize().as_bytes());
        }
        Ok(())
    }
}

/// Little-endian numbers of `dtype` as f32, exactly.
fn widen(dtype: Dtype, raw: &[u8], out: &mut Vec<f32>) {
    match dtype {
        Dtype::F32 => {
            out.extend(raw.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        Dtype::BF16 => out.extend(
            raw.as_chunks::<2>()
                .0
                .iter()
                .map(|bytes| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16)),
        ),
        _ => {
            let bits: Vec<u16> =
                raw.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
            out.resize(bits.len(), 0.0);
            bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
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
        widen(Dtype::F32, &raw, &mut f32s);
        let mut f16s = Vec::new();
        let raw: Vec<u8> = numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        widen(Dtype::F16, &raw, &mut f16s);
        let mut bf16s = Vec::new();
        let raw: Vec<u8> =
            numbers.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        widen(Dtype::BF16, &raw, &mut bf16s);
        assert_eq!([f32s, f16s, bf16s], [numbers.to_vec(), numbers.to_vec(), numbers.to_vec()]);
    }

    #[test]
    fn narrowing_refuses_what_f16_cannot_hold() {
        let mut out = Vec::new();
        assert!(narrow(&[1.0, -65_504.0], "w", &mut out).is_ok());
        assert!(matches!(narrow(&[70_000.0], "w", &mut out), Err(Error::BeyondRange { .. })));
    }
}
