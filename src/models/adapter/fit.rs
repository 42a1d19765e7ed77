//! An adapter's tensors against a base's modules: where each will lie, and what is refused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use roundhouse_types::Bytes;

use super::config::{Biases, LoraConfig, weights as fault};
use super::heads;
use super::layout::{Embeddings, Index, Lies, NONE, Part, Saved, lines};
use super::modules::{Kind, Module, Modules, Site};
use super::names::{Named, Piece, Pieces};
use crate::Error;

/// How a tensor gets from the file to its place.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// As it lies.
    Straight,
    /// `[outputs, rank]` in panels of outputs.
    Panels { outputs: usize, rank: usize },
    /// `[rank, vocab]` by columns.
    Turned { rank: usize, columns: usize },
    /// Widened to f32 and added, multiplied.
    Added { scale: f32 },
}

/// A tensor to be read.
#[derive(Debug, Clone)]
pub(super) struct Read {
    pub(super) from: Named,
    /// The first line of its place.
    pub(super) line: u32,
    pub(super) way: Way,
}

/// What is computed from the base's weights when all is read.
#[derive(Debug, Clone)]
pub(super) enum Finish {
    /// The magnitudes at `line` become factors: divided by the lengths of the rows of the
    /// weights `weight` with `part` added.
    Factors { line: u32, weight: String, part: usize },
    /// The base's bias is taken off what stands at `line`.
    Shift { line: u32, bias: String },
    /// A tensor must hold what the base's weight does.
    Same { tensor: Named, weight: String },
}

/// An adapter as it will lie in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Fit {
    /// Lines of the one buffer.
    pub(super) lines: u32,
    pub(super) index: Index,
    pub(super) reads: Vec<Read>,
    pub(super) finishes: Vec<Finish>,
}

impl Fit {
    /// Puts an adapter on a base.
    pub(super) fn new(
        config: &LoraConfig,
        tensors: &BTreeMap<String, Pieces>,
        base: &Modules,
    ) -> Result<Self, Error> {
        let mut found = Vec::new();
        let own = match &base.heads {
            Some(heads) => heads.of(config.task, tensors, base)?,
            None => None,
        };
        for (name, pieces) in tensors {
            let of_head = own.as_ref().and_then(|own| own.module(name, base));
            let of_base = base.find(name);
            if let Some(own) = own.as_ref().filter(|_| of_head.is_none())
                && of_base
                    .as_ref()
                    .is_some_and(|it| it.kind != Kind::Unused && own.replaces(it, base))
            {
                return Err(fault(format!(
                    "'{name}' is for its base's head, and the adapter has a head of its own"
                )));
            }
            match of_head.map(Cow::Borrowed).or(of_base) {
                Some(module) if module.kind == Kind::Unused => {}
                Some(module) => found.push((name.as_str(), module, pieces)),
                None => return Err(unmatched(name, pieces)),
            }
        }
        if config.targets.are_said() {
            missing(config, tensors, base, own.as_ref())?;
        }
        // In the order of the computation, so that a step reads the buffer once through.
        found.sort_by_key(|(_, module, _)| {
            (module.kind == Kind::Embeddings, module.site, module.first)
        });
        let mut fit = Self::default();
        for (name, module, pieces) in found {
            fit.add(config, name, &module, pieces)?;
        }
        fit.index.close(base.sites());
        fit.index.head = own.as_ref().map(|own| Arc::new(own.head.clone()));
        Ok(fit)
    }

    /// The bytes of its numbers.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes(u64::from(self.lines) * 64)
    }

    fn add(
        &mut self,
        config: &LoraConfig,
        name: &str,
        module: &Module,
        pieces: &Pieces,
    ) -> Result<(), Error> {
        if let Some(piece) = unfit(module.kind, pieces) {
            let reason = format!("tensor '{}' is not computed for '{name}'", piece.name);
            return Err(fault(reason));
        }
        if let Some(same) = pieces.get(&Piece::BaseWeight) {
            check(same, &[module.outputs, module.inputs])?;
            let (tensor, weight) = (same.clone(), module.weight.clone());
            self.finishes.push(Finish::Same { tensor, weight });
        }
        match module.kind {
            Kind::Embeddings => self.embeddings(config, name, module, pieces),
            _ => self.module(config, name, module, pieces),
        }
    }

    fn embeddings(
        &mut self,
        config: &LoraConfig,
        name: &str,
        module: &Module,
        pieces: &Pieces,
    ) -> Result<(), Error> {
        let (vocab, hidden) = (module.outputs, module.inputs);
        if let Some(table) = pieces.get(&Piece::Weight) {
            check(table, &[vocab, hidden])?;
            let lies = lies(table)?;
            let line = self.read(table, vocab * hidden, Way::Straight)?;
            self.index.embeddings = Some(Embeddings::Table { line, lies });
        }
        if let [Some(a), Some(b)] = [Piece::EmbeddingA, Piece::EmbeddingB].map(|it| pieces.get(&it))
        {
            let rank = config.rank(name);
            check(a, &[rank, vocab])?;
            check(b, &[hidden, rank])?;
            let [lies_a, lies_b] = [lies(a)?, lies(b)?];
            let turned = Way::Turned { rank, columns: vocab };
            let a = self.read(a, rank * vocab, turned)?;
            let b = self.panels(b, hidden, rank)?;
            let part = Part {
                outputs: narrow(hidden)?,
                rank: narrow(rank)?,
                scale: config.scale(name),
                a,
                b,
                lies: [lies_a, lies_b],
                ..Part::NOTHING
            };
            self.index.embeddings = Some(Embeddings::Low(part));
        }
        Ok(())
    }

    fn module(
        &mut self,
        config: &LoraConfig,
        name: &str,
        module: &Module,
        pieces: &Pieces,
    ) -> Result<(), Error> {
        let &Module { site, first, outputs, inputs, .. } = module;
        let (mut part, scale) = (Part::NOTHING, config.scale(name));
        (part.first, part.outputs) = (narrow(first)?, narrow(outputs)?);
        if let Some(whole) = pieces.get(&Piece::Weight) {
            check_classes(name, module, whole)?;
        }
        if let [Some(a), Some(b)] = [Piece::A, Piece::B].map(|piece| pieces.get(&piece)) {
            let rank = config.rank(name);
            check(a, &[rank, inputs])?;
            check(b, &[outputs, rank])?;
            (part.rank, part.scale) = (narrow(rank)?, scale);
            part.lies = [lies(a)?, lies(b)?];
            part.a = self.read(a, rank * inputs, Way::Straight)?;
            part.b = self.panels(b, outputs, rank)?;
        }
        if let Some(magnitude) = pieces.get(&Piece::Magnitude) {
            check(magnitude, &[outputs])?;
            part.factors = self.vector(magnitude, outputs)?;
            let (line, weight) = (part.factors, module.weight.clone());
            self.finishes.push(Finish::Factors { line, weight, part: self.index.parts() });
        }
        for (piece, scale) in [(Piece::BBias, scale), (Piece::Bias, 1.0)] {
            let Some(vector) = pieces.get(&piece) else { continue };
            check(vector, &[outputs])?;
            if part.shift == NONE {
                part.shift = self.reserve(outputs * 4)?;
            }
            let (from, line, way) = (vector.clone(), part.shift, Way::Added { scale });
            self.reads.push(Read { from, line, way });
            if let (Piece::Bias, Some(bias)) = (piece, &module.bias) {
                self.finishes.push(Finish::Shift { line, bias: bias.clone() });
            }
        }
        if let Some(whole) = pieces.get(&Piece::Weight) {
            check(whole, &[outputs, inputs])?;
            let lies = lies(whole)?;
            let line = self.read(whole, outputs * inputs, Way::Straight)?;
            self.index.saved.push(Saved { site, outputs: part.outputs, line, lies });
        }
        if part.rank > 0 || part.shift != NONE {
            self.index.push(site, part);
        }
        Ok(())
    }

    /// Takes room for so many bytes.
    fn reserve(&mut self, bytes: usize) -> Result<u32, Error> {
        let line = self.lines;
        let after = lines(bytes).and_then(|lines| line.checked_add(lines)).filter(|at| *at < NONE);
        self.lines = after.ok_or(Error::Overflow { part: "adapter" })?;
        Ok(line)
    }

    fn read(&mut self, from: &Named, values: usize, way: Way) -> Result<u32, Error> {
        let bytes = values.checked_mul(lies(from)?.bytes());
        let line = self.reserve(bytes.ok_or(Error::Overflow { part: "adapter" })?)?;
        self.reads.push(Read { from: from.clone(), line, way });
        Ok(line)
    }

    fn panels(&mut self, from: &Named, outputs: usize, rank: usize) -> Result<u32, Error> {
        let way = Way::Panels { outputs, rank };
        self.read(from, outputs.next_multiple_of(super::layout::NARROW) * rank, way)
    }

    fn vector(&mut self, from: &Named, length: usize) -> Result<u32, Error> {
        let line = self.reserve(length * 4)?;
        self.reads.push(Read { from: from.clone(), line, way: Way::Added { scale: 1.0 } });
        Ok(line)
    }
}

/// The bytes that an adapter's numbers take on any base that has all of its modules.
pub(super) fn bytes(tensors: &BTreeMap<String, Pieces>) -> Result<Bytes, Error> {
    let overflow = || Error::Overflow { part: "adapter" };
    let mut total = 0u64;
    for pieces in tensors.values() {
        let mut shift = None;
        for (piece, named) in pieces {
            let values = |shape: &[usize]| {
                shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))
            };
            let shape = &named.located.shape;
            let bytes = match piece {
                Piece::BaseWeight | Piece::Original => Some(0),
                Piece::Magnitude => values(shape).and_then(|count| count.checked_mul(4)),
                Piece::Bias | Piece::BBias if shift.is_some() => Some(0),
                Piece::Bias | Piece::BBias => {
                    shift = Some(());
                    values(shape).and_then(|count| count.checked_mul(4))
                }
                Piece::B | Piece::EmbeddingB => match shape.as_slice() {
                    [outputs, rank] => {
                        let padded = outputs.checked_next_multiple_of(super::layout::NARROW);
                        padded.and_then(|outputs| {
                            outputs.checked_mul(rank * lies(named).ok()?.bytes())
                        })
                    }
                    _ => values(shape),
                },
                Piece::A | Piece::EmbeddingA | Piece::Weight => {
                    let size = lies(named)?.bytes();
                    values(shape).and_then(|count| count.checked_mul(size))
                }
            };
            let lines = bytes.and_then(lines).ok_or_else(overflow)?;
            total = total.checked_add(u64::from(lines) * 64).ok_or_else(overflow)?;
        }
    }
    Ok(Bytes(total))
}

/// Checks what can be said of a module without its base.
pub(super) fn check_module(config: &LoraConfig, name: &str, pieces: &Pieces) -> Result<(), Error> {
    let get = |piece: Piece| pieces.get(&piece);
    let refuse = |reason: String| Err(fault(reason));
    for (one, other) in [(Piece::A, Piece::B), (Piece::EmbeddingA, Piece::EmbeddingB)] {
        match (get(one), get(other)) {
            (Some(found), None) => {
                return refuse(format!("'{name}' has '{}' and no B to it", found.name));
            }
            (None, Some(found)) => {
                return refuse(format!("'{name}' has '{}' and no A to it", found.name));
            }
            (Some(a), Some(b)) => check_rank(config.rank(name), a, b)?,
            (None, None) => {}
        }
    }
    for named in pieces.values() {
        lies(named)?;
    }
    let is_low = get(Piece::A).is_some() || get(Piece::EmbeddingA).is_some();
    let saves = config.saves(name);
    if is_low && !config.targets.has(name, true) {
        return refuse(format!("'{name}' has matrices, and target_modules does not name it"));
    }
    if config.dora && get(Piece::EmbeddingA).is_some() {
        let what = format!("a LoRA adapter with use_dora for the embeddings '{name}' is");
        return Err(Error::NotServed { what, advice: "" });
    }
    match (config.dora && is_low, get(Piece::Magnitude)) {
        (true, None) => return refuse(format!("'{name}' has no lora_magnitude_vector")),
        (false, Some(found)) => {
            return refuse(format!("tensor '{}' is there, and use_dora is not set", found.name));
        }
        _ => {}
    }
    match (config.lora_bias && is_low, get(Piece::BBias)) {
        (true, None) => return refuse(format!("'{name}' has no bias of its B")),
        (false, Some(found)) => {
            return refuse(format!("tensor '{}' is there, and lora_bias is not set", found.name));
        }
        _ => {}
    }
    if let Some(found) = get(Piece::Weight).filter(|_| !saves || is_low) {
        let reason =
            format!("tensor '{}' is there, and modules_to_save does not name it", found.name);
        return refuse(reason);
    }
    let may_have_bias = match config.bias {
        _ if saves => true,
        Biases::All => true,
        Biases::Targets => is_low,
        Biases::None => false,
    };
    if let Some(found) = get(Piece::Bias).filter(|_| !may_have_bias) {
        return refuse(format!("tensor '{}' is there, and bias does not say so", found.name));
    }
    Ok(())
}

/// Holds two matrices against the rank that the configuration has for their module.
fn check_rank(rank: usize, a: &Named, b: &Named) -> Result<(), Error> {
    let [inputs, outputs] = [a.located.shape.last(), b.located.shape.first()]
        .map(|size| size.copied().unwrap_or_default());
    check(a, &[rank, inputs])?;
    check(b, &[outputs, rank])
}

/// A piece that a module of this kind cannot have.
fn unfit(kind: Kind, pieces: &Pieces) -> Option<&Named> {
    let allowed = |piece: Piece| match kind {
        Kind::Inner => !matches!(
            piece,
            Piece::Weight | Piece::BaseWeight | Piece::EmbeddingA | Piece::EmbeddingB
        ),
        Kind::Head => !matches!(piece, Piece::EmbeddingA | Piece::EmbeddingB),
        Kind::Embeddings => matches!(
            piece,
            Piece::EmbeddingA
                | Piece::EmbeddingB
                | Piece::Weight
                | Piece::BaseWeight
                | Piece::Original
        ),
        Kind::Norm => matches!(piece, Piece::Bias | Piece::Original),
        Kind::Unused => true,
    };
    pieces.iter().find(|(piece, _)| !allowed(**piece)).map(|(_, named)| named)
}

/// Refuses an adapter without matrices for a module that it says it is for.
fn missing(
    config: &LoraConfig,
    tensors: &BTreeMap<String, Pieces>,
    base: &Modules,
    own: Option<&heads::Found>,
) -> Result<(), Error> {
    let first =
        tensors.keys().find(|name| base.find(name).is_some_and(|it| it.kind == Kind::Inner));
    let bare = first.is_some_and(|name| base.is_bare(name));
    // Where all experts of a layer are one tensor, as in other versions of transformers, they and their
    // router were no modules to be trained.
    let experts = tensors.keys().any(|name| base.is_of_expert(name));
    for (name, module) in base.all(bare, experts) {
        // Whether there was a pooler to be trained, the base's class decided.
        let is_certain = match module.kind {
            Kind::Inner => module.site != Site::pooler(base.layers),
            Kind::Head | Kind::Embeddings => true,
            Kind::Norm | Kind::Unused => false,
        };
        // The model that it was trained with did not have the base's head.
        let is_certain = is_certain && !own.is_some_and(|own| own.replaces(&module, base));
        let is_inner = module.kind == Kind::Inner;
        if is_certain && !tensors.contains_key(&*name) && config.targets.has(&name, is_inner) {
            return Err(fault(format!("target_modules names '{name}', and no tensor is for it")));
        }
    }
    Ok(())
}

/// The last modules of models that name classes.
const CLASSIFIERS: [&str; 4] = ["classifier", "score", "classifier.out_proj", "qa_outputs"];
/// What to do about one that the base cannot carry.
const OWN_HEAD: &str = "a base carries one where task_type is SEQ_CLS, an encoder where it is TOKEN_CLS, too; \
     otherwise have the adapter build on a base that was saved with a head of as many (num_labels), or \
     merge the two";

/// A head of the adapter's own must be of its base's classes.
fn check_classes(name: &str, module: &Module, whole: &Named) -> Result<(), Error> {
    match whole.located.shape.as_slice() {
        [found, _] if CLASSIFIERS.contains(&name) && *found != module.outputs => {
            Err(fault(format!(
                "tensor '{}' is a head of {found} classes, and its base's has {}; {OWN_HEAD}",
                whole.name, module.outputs
            )))
        }
        _ => Ok(()),
    }
}

fn unmatched(name: &str, pieces: &Pieces) -> Error {
    let tensor = pieces.values().next().map_or(name, |named| named.name.as_str());
    if CLASSIFIERS.contains(&name) {
        return fault(format!(
            "tensor '{tensor}' is of a head of the adapter's own, and its base has none; {OWN_HEAD}"
        ));
    }
    fault(format!(
        "tensor '{tensor}' is for '{name}', and the base has no such module that an adapter can change"
    ))
}

/// How a tensor lies, which must be in a format that is read.
fn lies(named: &Named) -> Result<Lies, Error> {
    Lies::of(named.located.dtype).ok_or_else(|| Error::WrongType {
        name: named.name.clone(),
        found: named.located.dtype.told(),
    })
}

fn check(named: &Named, expected: &[usize]) -> Result<(), Error> {
    if named.located.shape == expected {
        return Ok(());
    }
    Err(Error::WrongShape {
        name: named.name.clone(),
        expected: expected.to_vec(),
        found: named.located.shape.clone(),
    })
}

fn narrow(number: usize) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| Error::Overflow { part: "adapter" })
}
