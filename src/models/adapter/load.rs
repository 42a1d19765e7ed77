//! From an adapter's files to weights that a runner takes in.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use roundhouse_types::Footprint;

use super::fit::{Finish, Fit, Read, Way};
use super::kept::AdapterWeights;
use super::layout::{Lies, Numbers, in_panels};
use super::modules::Modules;
use super::names::Named;
use super::plan::AdapterPlan;
use super::{ADAPTER_WEIGHTS, dora};
use crate::Error;
use crate::files::{ModelFiles, io_error};
use crate::linear::Weight;
use crate::reader::{Cancel, Parameter};

/// Values read at a time.
const PIECE: usize = 1 << 19;

/// A loaded model, as adapters are made for it. It keeps none of its weights: when the model is
/// gone, nothing can be loaded for it any more.
#[derive(Debug, Clone)]
pub struct AdapterBase {
    pub(super) modules: Arc<Modules>,
    weights: Weak<BaseWeights>,
}

/// What a loaded model computes with, by the tensors' names in its files.
#[derive(Debug)]
pub(crate) struct BaseWeights(HashMap<String, BasePart>);

/// Some rows of a parameter.
#[derive(Debug, Clone)]
pub(super) struct BasePart {
    pub(super) parameter: Tensor,
    pub(super) first: usize,
    pub(super) rows: usize,
}

impl BaseWeights {
    /// Of what a load took. Scales of norms are left out: some are changed before use.
    pub(crate) fn of(taken: &[(Parameter, Tensor)]) -> Self {
        let mut parts = HashMap::new();
        for (parameter, tensor) in taken {
            let mut first = 0;
            for (name, rows) in &parameter.parts {
                let part = BasePart { parameter: tensor.clone(), first, rows: *rows };
                first += rows;
                let is_bias = name.ends_with(".bias") || name.ends_with(".beta");
                if parameter.columns.is_some() || is_bias {
                    parts.insert(name.clone(), part);
                }
            }
        }
        Self(parts)
    }

    pub(super) fn get(&self, name: &str) -> Result<&BasePart, Error> {
        let missing = || Error::MissingTensor { name: name.to_owned(), expected: Vec::new() };
        self.0.get(name).ok_or_else(missing)
    }
}

impl AdapterBase {
    pub(crate) fn new(modules: Arc<Modules>, weights: &Arc<BaseWeights>) -> Self {
        Self { modules, weights: Arc::downgrade(weights) }
    }
}

/// An adapter ready to be attached to its base.
pub struct LoadedAdapter {
    /// What the base's engine takes.
    pub weights: Box<dyn Any + Send>,
    /// The bytes as they were really allocated: those of the plan for this base.
    pub footprint: Footprint,
    /// The same weights, for copies of them. Whoever keeps it keeps them from being freed.
    pub kept: AdapterWeights,
    /// Time spent reading and converting.
    pub read: Duration,
}

impl std::fmt::Debug for LoadedAdapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { footprint, read, .. } = self;
        f.debug_struct("LoadedAdapter")
            .field("footprint", footprint)
            .field("read", read)
            .finish_non_exhaustive()
    }
}

/// Loads an adapter for a loaded model. Blocking: its file is read once, from the first tensor to
/// the last as they lie, so it can follow one that arrives. One thread is used, whatever is to be
/// computed, so that steps that run meanwhile lose no more than that. `cancel` ends it within one
/// piece of a tensor.
///
/// # Errors
/// When the adapter does not fit the base, has numbers that are not finite, the files cannot be
/// read, or the load was cancelled.
pub fn load_adapter(
    files: &dyn ModelFiles,
    plan: &AdapterPlan,
    base: &AdapterBase,
    cancel: &Cancel,
) -> Result<LoadedAdapter, Error> {
    let started = Instant::now();
    let mut fit = plan.fit(&base.modules)?;
    let mut loading = Loading { files, cancel, numbers: Numbers::new(fit.lines), raw: Vec::new() };
    fit.reads.sort_by_key(|read| read.from.located.start);
    for read in &fit.reads {
        loading.read(read)?;
    }
    if !fit.finishes.is_empty() {
        let weights = base.weights.upgrade().ok_or_else(|| {
            super::config::weights("its base was unloaded while it was loaded".into())
        })?;
        for finish in &fit.finishes {
            cancel.check()?;
            loading.finish(finish, &fit, &weights)?;
        }
    }
    let Fit { index, .. } = fit;
    let loaded = LoadedAdapter::of(index, loading.numbers, &base.modules, started);
    let (bytes, read) = (loaded.footprint.total(), loaded.read);
    tracing::debug!(%bytes, elapsed = ?read, "adapter in place");
    Ok(loaded)
}

struct Loading<'a> {
    files: &'a dyn ModelFiles,
    cancel: &'a Cancel,
    numbers: Numbers,
    raw: Vec<u8>,
}

impl Loading<'_> {
    fn read(&mut self, read: &Read) -> Result<(), Error> {
        match Lies::of(read.from.located.dtype) {
            Some(Lies::F32) => self.place::<f32>(read),
            Some(Lies::F16) => self.place::<half::f16>(read),
            Some(Lies::Bf16) => self.place::<half::bf16>(read),
            None => Err(Error::WrongType {
                name: read.from.name.clone(),
                found: read.from.located.dtype.told(),
            }),
        }
    }

    /// Puts a tensor where it belongs.
    fn place<W: Weight>(&mut self, read: &Read) -> Result<(), Error> {
        let mut numbers = std::mem::replace(&mut self.numbers, Numbers::new(0));
        let line = read.line;
        let outcome = self.pieces(&read.from, |start, piece: &[W]| match read.way {
            Way::Straight => {
                numbers.fill(line, start + piece.len())[start..].copy_from_slice(piece);
            }
            Way::Panels { outputs, rank } => {
                let room = outputs.next_multiple_of(super::layout::NARROW) * rank;
                let to = numbers.fill(line, room);
                for (at, number) in (start..).zip(piece) {
                    to[in_panels(outputs, rank, at / rank, at % rank)] = *number;
                }
            }
            Way::Turned { rank, columns } => {
                let to = numbers.fill(line, rank * columns);
                for (at, number) in (start..).zip(piece) {
                    to[at % columns * rank + at / columns] = *number;
                }
            }
            Way::Added { scale } => {
                let to: &mut [f32] = numbers.fill(line, start + piece.len());
                for (to, number) in to[start..].iter_mut().zip(piece) {
                    *to += scale * number.widen();
                }
            }
        });
        self.numbers = numbers;
        outcome
    }

    /// Hands a tensor's numbers to `sink` piece by piece, with the place of the first of each.
    fn pieces<W: Weight>(
        &mut self,
        from: &Named,
        mut sink: impl FnMut(usize, &[W]),
    ) -> Result<(), Error> {
        let located = &from.located;
        let total: usize = located.shape.iter().product();
        let mut numbers: Vec<W> = Vec::new();
        for start in (0..total).step_by(PIECE) {
            self.cancel.check()?;
            let count = PIECE.min(total - start);
            self.raw.resize(count * size_of::<W>(), 0);
            let offset = located.start + (start * size_of::<W>()) as u64;
            let read = self.files.read_at(&located.file, offset, &mut self.raw);
            read.map_err(|source| io_error(ADAPTER_WEIGHTS, source))?;
            numbers.clear();
            numbers.extend(self.raw.chunks_exact(size_of::<W>()).map(W::from_file));
            if numbers.iter().any(|number| !number.is_number()) {
                return Err(super::config::weights(format!(
                    "tensor '{}' has values that are not finite",
                    from.name
                )));
            }
            sink(start, &numbers);
        }
        Ok(())
    }

    fn finish(&mut self, finish: &Finish, fit: &Fit, base: &BaseWeights) -> Result<(), Error> {
        match finish {
            Finish::Factors { line, weight, part } => {
                let part = fit.index.part(*part);
                dora::factors(&mut self.numbers, part, *line, base.get(weight)?)
            }
            Finish::Shift { line, bias } => {
                let BasePart { parameter, first, rows } = base.get(bias)?;
                let bias: Vec<f32> = parameter.narrow(0, *first, *rows)?.to_vec1()?;
                let shift: &mut [f32] = self.numbers.fill(*line, *rows);
                shift.iter_mut().zip(bias).for_each(|(shift, bias)| *shift -= bias);
                Ok(())
            }
            Finish::Same { tensor, weight } => self.same(tensor, base.get(weight)?),
        }
    }

    /// A copy of the base's embeddings must be one: otherwise the adapter was trained on others.
    fn same(&mut self, tensor: &Named, base: &BasePart) -> Result<(), Error> {
        let mut compared = dora::Compared::new(base, tensor.located.shape[1]);
        let outcome = match Lies::of(tensor.located.dtype) {
            Some(Lies::F16) => {
                self.pieces(tensor, |start, piece: &[half::f16]| compared.take(start, piece))
            }
            Some(Lies::Bf16) => {
                self.pieces(tensor, |start, piece: &[half::bf16]| compared.take(start, piece))
            }
            _ => self.pieces(tensor, |start, piece: &[f32]| compared.take(start, piece)),
        };
        outcome?;
        match compared.are_same()? {
            true => Ok(()),
            false => Err(super::config::weights(format!(
                "tensor '{}' holds other weights than the base; modules_to_save is how an adapter \
                 brings its own",
                tensor.name
            ))),
        }
    }
}
