//! The modules of sparse layers. A model may have tens of thousands of them, and few adapters are for
//! any: so each is made when its name is asked for.

use std::hash::{Hash, Hasher};

use super::modules::{Kind, Module, Site};
use crate::config::decoder::{DecoderConfig, ExpertNames};

/// The places of one sparse layer, behind those that all models have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpertSites {
    first: usize,
}

impl ExpertSites {
    /// Of a model of so many `layers` with so many experts in each that is sparse.
    pub(crate) fn of(layers: usize, experts: usize, layer: usize) -> Self {
        let before = Site::projection(layers).index() + 1;
        Self { first: before.saturating_add(layer.saturating_mul(4 + 2 * experts)) }
    }

    /// What says which experts a token uses.
    pub(crate) fn router(self) -> Site {
        Site::at(self.first)
    }

    /// What says how much a token gets of the expert of all tokens.
    pub(crate) fn shared_gate(self) -> Site {
        Site::at(self.first + 1)
    }

    /// The first projection and the last of the expert of all tokens.
    pub(crate) fn shared(self) -> [Site; 2] {
        [2, 3].map(|place| Site::at(self.first + place))
    }

    /// Those of another.
    pub(crate) fn expert(self, index: usize) -> [Site; 2] {
        [4, 5].map(|place| Site::at(self.first + 2 * index + place))
    }
}

/// The modules of one model's sparse layers, each projection of each expert by itself.
#[derive(Debug)]
pub(super) struct ExpertModules {
    /// What stands before a layer's number in the names of the whole model, and in the base's files.
    before: [String; 2],
    /// Of each layer, whether it is one.
    sparse: Vec<bool>,
    hidden: usize,
    count: usize,
    intermediate: usize,
    shared: Option<usize>,
    names: &'static ExpertNames,
}

impl Hash for ExpertModules {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let widths = (self.hidden, self.count, self.intermediate, self.shared);
        (&self.before, &self.sparse, widths, self.names.experts).hash(state);
    }
}

impl ExpertModules {
    /// Of a decoder whose checkpoints have a tensor for each projection of each expert, as then its
    /// modules have.
    pub(super) fn of(config: &DecoderConfig, prefix: &str, in_files: &str) -> Option<Self> {
        let experts = config.experts.as_ref().filter(|it| it.names.stacked.is_none())?;
        let before = [prefix, in_files].map(|prefix| format!("{prefix}{}.", config.names.layers));
        Some(Self {
            before,
            sparse: (0..config.layers).map(|layer| config.experts(layer).is_some()).collect(),
            hidden: config.hidden,
            count: experts.count,
            intermediate: experts.intermediate,
            shared: experts.shared,
            names: experts.names,
        })
    }

    /// The module of that name in the whole model.
    pub(super) fn find(&self, name: &str) -> Option<Module> {
        let (layer, name) = name.strip_prefix(&self.before[0])?.split_once('.')?;
        let layer = self.sparse_layer(layer)?;
        let sites = ExpertSites::of(self.sparse.len(), self.count, layer);
        let module = |site: Site, first: usize, (outputs, inputs): (usize, usize)| {
            let weight = format!("{}{layer}.{name}.weight", self.before[1]);
            Module { kind: Kind::Inner, site, first, outputs, inputs, weight, bias: None }
        };
        if name == self.names.router {
            return Some(module(sites.router(), 0, (self.count, self.hidden)));
        }
        let (within, width, of) = match self.names.shared.zip(self.shared) {
            Some(((_, Some(gate)), _)) if name == gate => {
                return Some(module(sites.shared_gate(), 0, (1, self.hidden)));
            }
            Some(((shared, _), width)) if under(name, shared).is_some() => {
                (under(name, shared)?, width, sites.shared())
            }
            _ => {
                let (index, within) = under(name, self.names.experts)?.split_once('.')?;
                let index = number(index).filter(|index| *index < self.count)?;
                (within, self.intermediate, sites.expert(index))
            }
        };
        if within == self.names.down {
            return Some(module(of[1], 0, (self.hidden, width)));
        }
        let place = self.names.up.iter().position(|up| *up == within)?;
        Some(module(of[0], place * width, (width, self.hidden)))
    }

    fn sparse_layer(&self, name: &str) -> Option<usize> {
        number(name).filter(|layer| self.sparse.get(*layer) == Some(&true))
    }

    /// Whether a name is of a part of an expert that only some tokens use, if of a module at all.
    pub(super) fn is_of_one(&self, name: &str) -> bool {
        name.match_indices(self.names.experts).any(|(at, found)| {
            name[..at].ends_with('.') && name[at + found.len()..].starts_with('.')
        })
    }

    /// The names of all of them in the whole model.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        let names = self.names;
        let parts = || names.up.iter().copied().chain([names.down]);
        let shared = names.shared.filter(|_| self.shared.is_some());
        let of_all = shared.into_iter().flat_map(move |(shared, gate)| {
            let each = parts().map(move |part| format!("{shared}.{part}"));
            gate.map(str::to_owned).into_iter().chain(each)
        });
        let of_each = (0..self.count).flat_map(move |index| {
            parts().map(move |part| format!("{}.{index}.{part}", names.experts))
        });
        let of_layer: Vec<String> =
            [names.router.to_owned()].into_iter().chain(of_all).chain(of_each).collect();
        let sparse = self.sparse.iter().enumerate().filter(|(_, is_sparse)| **is_sparse);
        sparse.flat_map(move |(layer, _)| {
            let before = format!("{}{layer}.", self.before[0]);
            of_layer.iter().map(|it| format!("{before}{it}")).collect::<Vec<String>>()
        })
    }
}

/// What follows a module's name and a dot.
fn under<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    name.strip_prefix(module)?.strip_prefix('.')
}

/// A number as names have it, so that no two names mean one module.
fn number(text: &str) -> Option<usize> {
    text.parse().ok().filter(|number: &usize| number.to_string() == text)
}
