//! The tensors of an adapter's file by the module that they are for.

use std::collections::BTreeMap;

use super::config::weights as fault;
use crate::Error;
use crate::tensors::{Located, TensorTable};

/// What a tensor is to its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Piece {
    /// `[rank, inputs]`.
    A,
    /// `[outputs, rank]`.
    B,
    /// `[outputs]`: the second matrix's bias.
    BBias,
    /// `[rank, vocab]`.
    EmbeddingA,
    /// `[hidden, rank]`.
    EmbeddingB,
    /// `[outputs]`: the length of each row of weights.
    Magnitude,
    /// The module's own weight, in place of the base's.
    Weight,
    /// The module's own bias, in place of the base's.
    Bias,
    /// A copy of the base's weight.
    BaseWeight,
    /// What the module was before it was trained; nobody needs it.
    Original,
}

/// Endings with their pieces, the longest first where one ends another. `@` is where an
/// adapter's name may stand, which is `default` in what PEFT saves itself.
const ENDINGS: [(&str, Piece); 15] = [
    (".lora_A@.weight", Piece::A),
    (".lora_B@.weight", Piece::B),
    (".lora_B@.bias", Piece::BBias),
    (".lora_embedding_A@", Piece::EmbeddingA),
    (".lora_embedding_B@", Piece::EmbeddingB),
    (".lora_magnitude_vector@.weight", Piece::Magnitude),
    (".lora_magnitude_vector@", Piece::Magnitude),
    (".base_layer.weight", Piece::BaseWeight),
    (".base_layer.bias", Piece::Bias),
    (".modules_to_save@.weight", Piece::Weight),
    (".modules_to_save@.bias", Piece::Bias),
    (".original_module.weight", Piece::Original),
    (".original_module.bias", Piece::Original),
    (".weight", Piece::Weight),
    (".bias", Piece::Bias),
];

/// The prefix under which PEFT wraps a model.
const WRAPPED: &str = "base_model.model.";

/// A tensor's module and what it is to it.
pub(super) fn parse(name: &str) -> Option<(&str, Piece)> {
    let name = name.strip_prefix(WRAPPED).unwrap_or(name);
    ENDINGS.iter().find_map(|(ending, piece)| {
        let module = match ending.split_once('@') {
            None => name.strip_suffix(ending)?,
            Some((before, after)) => {
                let name = name.strip_suffix(after)?;
                name.strip_suffix(".default").unwrap_or(name).strip_suffix(before)?
            }
        };
        let is_inner = ["lora_", "modules_to_save", "base_layer"]
            .iter()
            .any(|part| module.split('.').any(|inner| inner.starts_with(part)));
        (!module.is_empty() && !is_inner).then_some((module, *piece))
    })
}

/// A tensor with the name that the file has for it.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) located: Located,
}

/// The tensors of one module.
pub(super) type Pieces = BTreeMap<Piece, Named>;

/// About what they take: a node of a map has room for eleven, however few there are.
pub(super) fn bytes(pieces: &Pieces) -> usize {
    const NODE: usize = 11 * (size_of::<Piece>() + size_of::<Named>()) + 32;
    let named = |it: &Named| it.name.len() + 8 * it.located.shape.len() + 48;
    NODE * pieces.len().div_ceil(6).max(1) + pieces.values().map(named).sum::<usize>()
}

/// Longer names than any module has, in bytes: patterns are matched against each.
const NAME_MAX: usize = 512;

/// More tensors than any adapter has.
const TENSORS_MAX: usize = 1 << 16;

/// All tensors of a file by module. What is of no kind that is known is refused.
pub(super) fn by_module(table: &TensorTable) -> Result<BTreeMap<String, Pieces>, Error> {
    let mut modules: BTreeMap<String, Pieces> = BTreeMap::new();
    let count = table.names().count();
    if count > TENSORS_MAX {
        return Err(fault(format!("it has {count} tensors")));
    }
    for name in table.names() {
        if name.len() > NAME_MAX {
            return Err(fault(format!("it has a tensor whose name has {} bytes", name.len())));
        }
        let Some((module, piece)) = parse(name) else {
            return Err(fault(format!("tensor '{name}' is of no kind that an adapter has")));
        };
        let Some(located) = table.get(name) else { continue };
        if located.shape.len() > 2 {
            let dims = located.shape.len();
            return Err(fault(format!("tensor '{name}' has {dims} dimensions; two are the most")));
        }
        let named = Named { name: name.to_owned(), located: located.clone() };
        let pieces = modules.entry(module.to_owned()).or_default();
        let Some(before) = pieces.insert(piece, named) else { continue };
        // A saved module's bias is written twice where all biases are saved, too.
        if !matches!(piece, Piece::Bias | Piece::Original) {
            return Err(fault(format!("tensors '{}' and '{name}' are the same", before.name)));
        }
    }
    Ok(modules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_prefix_and_adapter_name() {
        let q = "model.layers.0.self_attn.q_proj";
        for prefix in ["base_model.model.", ""] {
            for (ending, piece) in [
                ("lora_A.weight", Piece::A),
                ("lora_A.default.weight", Piece::A),
                ("lora_B.default.weight", Piece::B),
                ("lora_B.bias", Piece::BBias),
                ("lora_magnitude_vector", Piece::Magnitude),
                ("lora_magnitude_vector.default.weight", Piece::Magnitude),
                ("lora_embedding_A", Piece::EmbeddingA),
                ("lora_embedding_B.default", Piece::EmbeddingB),
                ("base_layer.bias", Piece::Bias),
                ("base_layer.weight", Piece::BaseWeight),
                ("modules_to_save.default.weight", Piece::Weight),
                ("modules_to_save.bias", Piece::Bias),
                ("original_module.bias", Piece::Original),
                ("weight", Piece::Weight),
                ("bias", Piece::Bias),
            ] {
                assert_eq!(parse(&format!("{prefix}{q}.{ending}")), Some((q, piece)), "{ending}");
            }
        }
        for odd in ["weight", "x.lora_C.weight", "x.lora_A.weight.y", "x.lora_A.second.weight"] {
            assert_eq!(parse(odd), None, "{odd}");
        }
    }
}
