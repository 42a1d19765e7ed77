//! Where each tensor lies: the weight files' headers, checked, as one table.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use crate::Error;
use crate::files::{Files, SHARD_INDEX, SINGLE, header_bytes};
use crate::format::{Stored, StoredFormats};
use crate::gguf;

mod stacked;

pub(crate) use stacked::{Left, unstacked};

/// One tensor's place in a file.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    /// The file's path in the artefact.
    pub(crate) file: Arc<str>,
    /// The number format in the file.
    pub(crate) dtype: Stored,
    /// Its shape.
    pub(crate) shape: Vec<usize>,
    /// The first byte of its data in the file.
    pub(crate) start: u64,
    /// The rows of each head of so many lie in pairs (0, 1), (2, 3) and so on, where we
    /// rotate the first half of a head against its second.
    pub(crate) paired: Option<usize>,
    /// Where the scales of its blocks lie, if beside them.
    pub(crate) scales: Option<Scales>,
}

/// Scales of blocks that lie in a tensor of their own: a byte for each block, in the same order.
#[derive(Debug, Clone)]
pub(crate) struct Scales {
    pub(crate) file: Arc<str>,
    /// The first byte.
    pub(crate) start: u64,
}

impl Located {
    /// The bytes of its data, in a format that we read, scales included.
    pub(crate) fn bytes(&self) -> u64 {
        let values = self.shape.iter().map(|&size| size as u64).product();
        self.dtype.bytes_of(values).unwrap_or(u64::MAX)
    }
}

/// All tensors of an artefact by name.
#[derive(Debug, Default)]
pub(crate) struct TensorTable {
    tensors: BTreeMap<String, Located>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl TensorTable {
    /// Reads the headers of one file or of all shards that the index names.
    ///
    /// # Errors
    /// When a header is unsound, a file's size is not what its header says, or a shard is missing.
    pub(crate) fn new(files: &Files) -> Result<Self, Error> {
        let mut table = Self::default();
        let folder = |path: &String| path.strip_suffix("/model.safetensors").map(String::from);
        for folder in files.headers.keys().filter_map(folder) {
            table.add_module(files, &folder)?;
        }
        if files.sizes.contains_key(SINGLE) {
            table.add(files, SINGLE)?;
            return Ok(table);
        }
        if let Some(path) = gguf::chosen(files)? {
            return gguf::table(files, &path);
        }
        let Some(index) = files.contents.get(SHARD_INDEX) else {
            return Err(Error::config("config.json", "no model.safetensors lies beside it"));
        };
        let index: ShardIndex = serde_json::from_slice(index)
            .map_err(|error| Error::config(SHARD_INDEX, error.to_string()))?;
        let mut shards: Vec<&String> = index.weight_map.values().collect();
        shards.sort();
        shards.dedup();
        for shard in shards {
            table.add(files, shard)?;
        }
        Ok(table)
    }

    /// The tensors of one file.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub(crate) fn single(files: &Files, path: &str) -> Result<Self, Error> {
        let mut table = Self::default();
        table.add(files, path)?;
        Ok(table)
    }

    /// Adds the tensors of a module of sentence-transformers, under its folder's name.
    fn add_module(&mut self, files: &Files, folder: &str) -> Result<(), Error> {
        let module = Self::single(files, &format!("{folder}/{SINGLE}"))?;
        let named = module.tensors.into_iter().map(|(name, it)| (format!("{folder}/{name}"), it));
        self.tensors.extend(named);
        Ok(())
    }

    fn add(&mut self, files: &Files, path: &str) -> Result<(), Error> {
        let (Some(size), Some(header)) = (files.sizes.get(path), files.headers.get(path)) else {
            return Err(Error::config(SHARD_INDEX, format!("shard '{path}' is not there")));
        };
        let bytes = header_bytes(path, header)?;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let Some(json) = header.get(8..length) else {
            return Err(Error::Truncated { file: path.into(), expected: bytes, found: *size });
        };
        let metadata: Metadata =
            serde_json::from_slice(json).map_err(|error| Error::header(path, error.to_string()))?;
        let expected = bytes.saturating_add(metadata.data_len() as u64);
        if expected != *size {
            return Err(Error::Truncated { file: path.into(), expected, found: *size });
        }
        let file: Arc<str> = path.into();
        for (name, info) in metadata.tensors() {
            let located = Located {
                file: Arc::clone(&file),
                dtype: Stored::of(info.dtype),
                shape: info.shape.clone(),
                start: bytes + info.data_offsets.0 as u64,
                paired: None,
                scales: None,
            };
            if self.tensors.insert(name.clone(), located).is_some() {
                return Err(Error::header(path, format!("tensor '{name}' is in two shards")));
            }
        }
        Ok(())
    }

    /// A table of tensors that were found otherwise.
    pub(crate) fn of(tensors: BTreeMap<String, Located>) -> Self {
        Self { tensors }
    }

    /// How the matrices lie in the files.
    pub(crate) fn formats(&self) -> StoredFormats {
        let matrices = self.tensors.iter().filter(|(_, located)| located.shape.len() > 1);
        StoredFormats::of(matrices.map(|(name, located)| (name.as_str(), located.dtype)))
    }

    /// All names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor of that name, if any file holds it.
    pub(crate) fn get(&self, name: &str) -> Option<&Located> {
        self.tensors.get(name)
    }

    /// The tensor of that name, which must have that shape and a format we read.
    pub(crate) fn find(&self, name: &str, shape: &[usize]) -> Result<&Located, Error> {
        let located = self.shaped(name, shape)?;
        if let Stored::Unread(dtype) = located.dtype {
            let found = format!("{dtype:?}");
            return Err(Error::WrongType { name: name.into(), found });
        }
        Ok(located)
    }

    /// The same of bytes that are no numbers of their own.
    fn find_bytes(&self, name: &str, shape: &[usize]) -> Result<&Located, Error> {
        let located = self.shaped(name, shape)?;
        match located.dtype {
            Stored::Unread(Dtype::U8) => Ok(located),
            other => {
                let reason = format!("tensor '{name}' has type {}, not U8", other.told());
                Err(Error::config(&located.file, reason))
            }
        }
    }

    fn shaped(&self, name: &str, shape: &[usize]) -> Result<&Located, Error> {
        let Some(located) = self.tensors.get(name) else {
            return Err(Error::MissingTensor { name: name.into(), expected: shape.to_vec() });
        };
        if located.shape != shape {
            return Err(Error::WrongShape {
                name: name.into(),
                expected: shape.to_vec(),
                found: located.shape.clone(),
            });
        }
        Ok(located)
    }
}
