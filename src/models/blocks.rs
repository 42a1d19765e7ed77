//! Quantised parameters: rows of blocks, as they lie in memory and how they are computed with.
//!
//! A parameter that is not all of one float type is one tensor of bytes: a table of its parts,
//! then their rows one behind another, as they lie in files. It describes itself, so whatever
//! carries tensors (the pool, copies in other places) need not know of formats. Nothing is
//! repacked and nothing grows: kernels take blocks as they lie (`integer`), or widen a few at a
//! time into a core's first cache (`widen`).

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::{with_floats, with_numbers};
use crate::format::{Format, Layout};
use crate::linear::{FEW_ROWS, place};
use crate::simd;

mod few;
pub(crate) mod integer;
mod widen;

use integer::Pieces;

/// Bytes of the table before the rows: the widest register's, which keeps the rows aligned.
pub(crate) const TABLE: usize = 64;
/// Bytes of the values per row and of the number of parts.
const HEAD: usize = 8;
/// Bytes of a part in the table: its rows and its format.
const ENTRY: usize = 8;
/// More parts than any projection stacks.
const PARTS_MAX: usize = (TABLE - HEAD) / ENTRY;
/// Weights widened at a time for a large multiplication: 4 MiB of f32.
pub(crate) const PANEL: usize = 1 << 20;

/// The table of a parameter with rows of `columns` values: of each part its rows and format.
pub(crate) fn table(columns: usize, rows: &[usize], layout: &Layout) -> [u8; TABLE] {
    assert!(rows.len() <= PARTS_MAX, "no projection stacks more than {PARTS_MAX} parts");
    let narrow = |number: usize| u32::try_from(number).expect("dimensions fit in 32 bits");
    let mut table = [0; TABLE];
    table[..4].copy_from_slice(&narrow(columns).to_le_bytes());
    table[4..HEAD].copy_from_slice(&narrow(rows.len()).to_le_bytes());
    for (index, (rows, format)) in rows.iter().zip(&layout.0).enumerate() {
        let entry = &mut table[HEAD + index * ENTRY..][..ENTRY];
        entry[..4].copy_from_slice(&narrow(*rows).to_le_bytes());
        entry[4] = format.tag();
    }
    table
}

/// One part of a parameter.
struct Part<'a> {
    format: Format,
    rows: usize,
    /// Bytes of a row.
    stride: usize,
    data: &'a [u8],
}

/// A parameter's bytes, understood.
struct Parts<'a> {
    columns: usize,
    rows: usize,
    parts: Vec<Part<'a>>,
}

impl<'a> Parts<'a> {
    /// Reads the table. The parts are exactly the bytes behind it.
    fn of(bytes: &'a [u8]) -> Result<Self> {
        let Some((table, mut rest)) = bytes.split_first_chunk::<TABLE>() else {
            bail!("a quantised parameter of {} bytes has no table", bytes.len());
        };
        let number = |at: usize| {
            let bytes = table[at..].first_chunk::<4>().expect("entries lie inside the table");
            u32::from_le_bytes(*bytes) as usize
        };
        let (columns, count) = (number(0), number(4));
        if count > PARTS_MAX {
            bail!("a quantised parameter's table has {count} parts");
        }
        let mut parts = Vec::with_capacity(count);
        for entry in (HEAD..).step_by(ENTRY).take(count) {
            let rows = number(entry);
            let Some(format) = Format::tagged(table[entry + 4]) else {
                bail!("a quantised parameter's table has format {}", table[entry + 4]);
            };
            let stride = format.bytes_of(columns);
            let Some((data, behind)) = rest.split_at_checked(rows * stride) else {
                bail!("a quantised parameter ends inside its rows");
            };
            parts.push(Part { format, rows, stride, data });
            rest = behind;
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        Ok(Self { columns, rows, parts })
    }
}

/// The rows of those indices, widened: `[indices, columns]` in f32.
pub(crate) fn rows(parameter: &Tensor, indices: &[u32]) -> Result<Tensor> {
    let (numbers, columns) = with_numbers(parameter, |bytes: &[u8]| {
        let parts = Parts::of(bytes)?;
        let mut numbers = vec![0.0; indices.len() * parts.columns];
        for (index, out) in indices.iter().zip(numbers.chunks_exact_mut(parts.columns)) {
            let mut row = *index as usize;
            let part = parts.parts.iter().find(|part| match row.checked_sub(part.rows) {
                Some(behind) => {
                    row = behind;
                    false
                }
                None => true,
            });
            let Some(part) = part else {
                bail!("row {index} of a parameter of {} rows", parts.rows);
            };
            let bytes = &part.data[row * part.stride..][..part.stride];
            simd::dispatch(widen::Rows { format: part.format, bytes, out });
        }
        Result::Ok((numbers, parts.columns))
    })??;
    Tensor::from_vec(numbers, (indices.len(), columns), parameter.device())
}

/// `x W^T`. Blocks are multiplied as they lie, by inputs rounded to eight bits; float parts as
/// floats: each weight read once for up to [`FEW_ROWS`] rows, widened to f32 a panel of outputs at
/// a time for more.
pub(crate) fn project(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let (numbers, outputs) = with_numbers(weight, |bytes: &[u8]| {
        let parts = Parts::of(bytes)?;
        check(x.elem_count(), rows, &parts)?;
        let mut y = vec![0.0; rows * parts.rows];
        let mut first = 0;
        for part in &parts.parts {
            if !matches!(part.format, Format::Blocks(_)) {
                project_floats(x, part, parts.columns, &mut y, (first, parts.rows))?;
            }
            first += part.rows;
        }
        if parts.parts.iter().any(|part| matches!(part.format, Format::Blocks(_))) {
            with_floats(x, |x| project_blocks(x, &parts, &mut y))?;
        }
        Result::Ok((y, parts.rows))
    })??;
    Tensor::from_vec(numbers, (rows, outputs), x.device())
}

/// The parts that are blocks, into their places in `y` `[rows, outputs]`.
fn project_blocks(x: &[f32], parts: &Parts<'_>, y: &mut [f32]) {
    let some = integer::ROWS;
    for (x, y) in x.chunks(some * parts.columns).zip(y.chunks_mut(some * parts.rows)) {
        let pieces = Pieces::of(x, parts.columns);
        let mut first = 0;
        for part in &parts.parts {
            if let Format::Blocks(format) = part.format {
                integer::multiply(format, part, &pieces, y, (first, parts.rows));
            }
            first += part.rows;
        }
    }
}

/// One part of floats, into its place in `y` `[rows, outputs]`.
fn project_floats(
    x: &Tensor,
    part: &Part<'_>,
    columns: usize,
    y: &mut [f32],
    (mut first, outputs): (usize, usize),
) -> Result<()> {
    let rows = x.dim(0)?;
    if rows <= FEW_ROWS {
        return with_floats(x, |x| few::multiply(x, rows, columns, part, y, (first, outputs)));
    }
    let tall = (PANEL / columns.max(1)).max(1);
    for data in part.data.chunks(tall * part.stride) {
        let count = data.len() / part.stride;
        let panel = widened(part.format, data, count, part.stride, columns);
        let panel = Tensor::from_vec(panel, (count, columns), x.device())?;
        place(&x.matmul(&panel.t()?)?, first, outputs, y)?;
        first += count;
    }
    Ok(())
}

/// All rows of some bytes as f32.
fn widened(format: Format, data: &[u8], rows: usize, stride: usize, columns: usize) -> Vec<f32> {
    let mut panel = vec![0.0; rows * columns];
    panel
        .par_chunks_exact_mut(columns)
        .zip(data.par_chunks_exact(stride))
        .with_min_len(16)
        .for_each(|(out, bytes)| simd::dispatch(widen::Rows { format, bytes, out }));
    panel
}

/// The values of whole rows or blocks in a file, as f32.
pub(crate) fn widen(format: Format, bytes: &[u8], out: &mut Vec<f32>) {
    let (together, size) = format.unit();
    let start = out.len();
    out.resize(start + bytes.len() / size * together, 0.0);
    simd::dispatch(widen::Rows { format, bytes, out: &mut out[start..] });
}

fn check(numbers: usize, rows: usize, parts: &Parts<'_>) -> Result<()> {
    if numbers != rows * parts.columns {
        bail!("{numbers} numbers in {rows} rows for weights of {} inputs", parts.columns);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
