//! What a model's parameters take, by number format, from their descriptions alone.

use std::collections::{BTreeMap, BTreeSet};

use roundhouse_types::Bytes;
use serde::Serialize;

use crate::Error;
use crate::format::{Formats, Layout};
use crate::reader::Parameter;
use crate::tensors::TensorTable;

/// The weights that the files hold in one number format and memory in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WeightShare {
    /// The format in the files: `f32`, `f16`, `bf16` or a quantised one as `q4_k`.
    pub file_dtype: &'static str,
    /// The format in memory: one of the same.
    pub memory_dtype: &'static str,
    /// Bytes in the files. What the model does not use is not in it.
    pub file_bytes: Bytes,
    /// Bytes in memory. Of quantised parameters the records of their parts are in it.
    pub bytes: Bytes,
}

/// Shares, formats that are not those asked for, and tensors that no parameter has.
type Weighed<'a> = (Vec<WeightShare>, Vec<String>, BTreeSet<&'a str>);

/// Walks a model's parameters as a load would, and adds up their bytes by number format. Tells
/// formats that are not those asked for, and the names of the tensors that no parameter has.
pub(crate) fn weigh<'a>(
    table: &'a TensorTable,
    formats: &Formats,
    gather: impl FnOnce(&mut dyn FnMut(Parameter) -> Result<(), Error>) -> Result<(), Error>,
) -> Result<Weighed<'a>, Error> {
    let mut left: BTreeSet<&str> = table.names().collect();
    let mut shares: Vec<WeightShare> = Vec::new();
    let mut fallbacks = Fallbacks::default();
    gather(&mut |parameter| {
        let overflow = || Error::Overflow { part: "weights" };
        let (parts, layout) = parameter.locate(table, formats)?;
        fallbacks.look(&parameter, formats, &layout);
        for (name, _) in &parameter.parts {
            left.remove(name.as_str());
        }
        // What a parameter has beside its parts' values goes with the first.
        let mut beside = layout.bytes(&parameter);
        for (part, format) in parts.iter().zip(&layout.0) {
            let values: usize = part.shape.iter().product();
            beside = Bytes(beside.0 - format.bytes_of(values) as u64);
        }
        for (part, format) in parts.into_iter().zip(&layout.0) {
            let values: usize = part.shape.iter().product();
            let (file_dtype, memory_dtype) = (part.dtype.name(), format.name());
            let in_file = part.dtype.bytes_of(values as u64).map(Bytes).ok_or_else(overflow)?;
            let in_memory = Bytes(format.bytes_of(values) as u64) + std::mem::take(&mut beside);
            let same = |share: &&mut WeightShare| {
                share.file_dtype == file_dtype && share.memory_dtype == memory_dtype
            };
            match shares.iter_mut().find(same) {
                Some(share) => {
                    share.file_bytes =
                        share.file_bytes.checked_add(in_file).ok_or_else(overflow)?;
                    share.bytes = share.bytes.checked_add(in_memory).ok_or_else(overflow)?;
                }
                None => shares.push(WeightShare {
                    file_dtype,
                    memory_dtype,
                    file_bytes: in_file,
                    bytes: in_memory,
                }),
            }
        }
        Ok(())
    })?;
    shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    Ok((shares, fallbacks.sentences(), left))
}

/// Weights that could not get the format asked for, by module, values per row and format.
#[derive(Default)]
struct Fallbacks(BTreeMap<(String, usize, &'static str), usize>);

impl Fallbacks {
    fn look(&mut self, parameter: &Parameter, formats: &Formats, layout: &Layout) {
        let (Some(wanted), Some(columns)) = (formats.quantize, parameter.columns) else { return };
        if parameter.exact {
            return;
        }
        for ((name, _), format) in parameter.parts.iter().zip(&layout.0) {
            if format.name() == wanted.name() || formats.stored.is_quantised(name) {
                continue;
            }
            // The same module of all layers.
            let module: Vec<&str> =
                name.split('.').filter(|part| part.parse::<usize>().is_err()).collect();
            *self.0.entry((module.join("."), columns, format.name())).or_default() += 1;
        }
    }

    fn sentences(self) -> Vec<String> {
        let sentence = |((module, columns, format), count): ((String, usize, &str), usize)| {
            format!("{module} ({count} of them) has rows of {columns} and gets {format}")
        };
        self.0.into_iter().map(sentence).collect()
    }
}

/// The bytes in memory of all shares.
pub(crate) fn total(shares: &[WeightShare]) -> Result<Bytes, Error> {
    let add = |sum: Bytes, share: &WeightShare| sum.checked_add(share.bytes);
    shares.iter().try_fold(Bytes::ZERO, add).ok_or(Error::Overflow { part: "weights" })
}
