//! Heads that adapters bring of their own: of another number of labels than their base's, or where
//! their base has none. Rows of such an adapter are answered by its head alone.

use std::collections::BTreeMap;

use roundhouse_types::{Bytes, ModelKind};

use super::ADAPTER_CONFIG;
use super::config::{Task, weights as fault};
use super::modules::{Kind, Module, Modules, Site};
use super::names::{Piece, Pieces};
use crate::Error;
use crate::config::Labels;
use crate::config::encoder::HeadConfig;
use crate::footprint::HeadRoom;

/// Whose weights a head's first projection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// Those of the base's head.
    Head,
    /// Those of the base's pooler, which nothing else uses.
    Pooler,
    /// The adapter's, or nobody's: there is no such projection.
    Own,
}

/// An adapter's head.
#[derive(Debug, Clone)]
pub(crate) struct OwnHead {
    pub(crate) config: HeadConfig,
    pub(crate) first: First,
    /// What it computes is charged with beyond the base's workspace.
    pub(super) workspace: Bytes,
    /// The token that only fills: what a decoder's head reads is the last that is another.
    pub(super) padding: Option<u32>,
    /// What it does for a text.
    pub(super) kind: ModelKind,
}

/// A head that adapters of a base may bring; its width is theirs.
#[derive(Debug, Clone)]
pub(crate) struct Possible {
    pub(crate) kind: ModelKind,
    pub(crate) config: HeadConfig,
    pub(crate) first: First,
    /// Where its first projection lies in the base's files, and its bias: a pooler's.
    pub(crate) pooler: Option<[String; 2]>,
}

/// What there is of them for a base.
#[derive(Debug, Clone)]
pub(crate) struct Heads {
    pub(crate) possible: Vec<Possible>,
    /// The labels of the base's own head: adapters then do what it does.
    pub(crate) base: Option<(ModelKind, Labels)>,
    /// Whether the base generates text: what names labels then brings its head.
    pub(crate) generates: bool,
    pub(crate) padding: Option<u32>,
    pub(crate) hidden: usize,
    pub(crate) room: HeadRoom,
}

/// An adapter's own head with the modules that it has beside the base's.
pub(super) struct Found {
    pub(super) head: OwnHead,
    modules: BTreeMap<String, Module>,
}

/// What to do about a head that cannot be computed.
const ADVICE: &str = "have the adapter bring it (modules_to_save), or build on a base that was saved \
     with such a head";

impl Heads {
    /// The head that an adapter brings, where it is another than its base's.
    ///
    /// # Errors
    /// Where its head cannot be computed on this base.
    pub(super) fn of(
        &self,
        task: Option<Task>,
        tensors: &BTreeMap<String, Pieces>,
        base: &Modules,
    ) -> Result<Option<Found>, Error> {
        let of_base = self.base.as_ref().map(|(kind, _)| *kind);
        let asked = task.map(Task::kind);
        let Some(kind) = asked.or(of_base) else { return Ok(None) };
        let Some(possible) = self.possible.iter().find(|possible| possible.kind == kind) else {
            return match of_base {
                Some(of_base) if of_base != kind => Err(fault(format!(
                    "it names labels of each token (task_type), and its base those of a text; {ADVICE}"
                ))),
                None if self.generates => Err(fault(format!(
                    "it names labels of each token (task_type), and its base generates text; {ADVICE}"
                ))),
                _ => Ok(None),
            };
        };
        // A head of another kind is replaced, whatever its width.
        let base_labels = self.base.as_ref().filter(|(of_base, _)| *of_base == kind);
        let last = possible.config.last;
        let whole = tensors.get(last).and_then(|pieces| pieces.get(&Piece::Weight));
        let Some([width, _]) = whole.map(|whole| whole.located.shape.as_slice()) else {
            let is_needed = of_base.is_some() && base_labels.is_none();
            return match is_needed || self.generates {
                true => complete(tensors, last, false).map(|()| None),
                false => Ok(None),
            };
        };
        if *width == 0 || base_labels.is_some_and(|(_, it)| it.names.len() == *width) {
            return Ok(None);
        }
        let config = HeadConfig { width: *width, ..possible.config.clone() };
        let has_bias = !config.bias.is_empty();
        complete(tensors, last, has_bias)?;
        let mut modules = BTreeMap::new();
        let site = Site::head(base.layers);
        let inputs = config.first.as_ref().map_or(self.hidden, |dense| dense.width);
        modules.insert(last.to_owned(), own(site, (*width, inputs)));
        modules.extend(self.first(possible, tensors, base)?);
        let workspace = self.room.beyond(&config)?;
        let (first, padding) = (possible.first, self.padding);
        let head = OwnHead { config, first, workspace, padding, kind };
        Ok(Some(Found { head, modules }))
    }

    /// The module of a head's first projection, where it is none of the base's head.
    fn first(
        &self,
        possible: &Possible,
        tensors: &BTreeMap<String, Pieces>,
        base: &Modules,
    ) -> Result<Option<(String, Module)>, Error> {
        let Some(dense) = &possible.config.first else { return Ok(None) };
        let module = own(Site::pooler(base.layers), (dense.width, self.hidden));
        let name = if dense.inside { base.whole(dense.name) } else { dense.name.into() };
        match possible.first {
            First::Head => Ok(None),
            First::Pooler => {
                let [weight, bias] = possible.pooler.clone().unwrap_or_default();
                let bias = dense.bias.then_some(bias);
                Ok(Some((name, Module { kind: Kind::Inner, weight, bias, ..module })))
            }
            First::Own => {
                complete(tensors, &name, dense.bias)?;
                match dense.norm {
                    Some(norm) => Err(fault(format!("its head needs the norm '{norm}'; {ADVICE}"))),
                    None => Ok(Some((name, module))),
                }
            }
        }
    }
}

/// A module that the adapter brings whole, to which the base has nothing.
fn own(site: Site, (outputs, inputs): (usize, usize)) -> Module {
    let (weight, bias) = (String::new(), None);
    Module { kind: Kind::Head, site, first: 0, outputs, inputs, weight, bias }
}

/// Refuses a part of the head that the adapter does not bring whole.
fn complete(tensors: &BTreeMap<String, Pieces>, name: &str, bias: bool) -> Result<(), Error> {
    let has = |piece: Piece| tensors.get(name).is_some_and(|pieces| pieces.contains_key(&piece));
    match (has(Piece::Weight), bias && !has(Piece::Bias)) {
        (true, false) => Ok(()),
        (false, _) => {
            let reason = format!("its head needs '{name}', which its base does not have; {ADVICE}");
            Err(fault(reason))
        }
        (true, true) => Err(fault(format!("'{name}' is a head of its own, and has no bias"))),
    }
}

impl Found {
    /// A module of the head's, by its name.
    pub(super) fn module(&self, name: &str, base: &Modules) -> Option<&Module> {
        self.modules.get(name).or_else(|| self.modules.get(&base.whole(name)))
    }

    /// Whether a module of the base's is none of this adapter's: part of the head that it replaces.
    pub(super) fn replaces(&self, module: &Module, base: &Modules) -> bool {
        let is_kept = self.head.first == First::Head && module.site == Site::pooler(base.layers);
        module.is_of_head(base.layers) && !is_kept
    }
}

/// The labels of an adapter: as its own folder has them, or numbered where its head is its own.
///
/// # Errors
/// When the folder names another number of labels than the head has.
pub(super) fn labels(
    told: Option<&crate::config::ToldLabels>,
    head: Option<&OwnHead>,
    base: Option<&Labels>,
) -> Result<Option<Labels>, Error> {
    let Some(width) = head.map(|head| head.config.width).or(base.map(|it| it.names.len())) else {
        return Ok(None);
    };
    match told {
        None if head.is_none() => Ok(None),
        _ => {
            let names = told.and_then(|told| told.names.clone());
            if let Some(found) = names.as_ref().map(Vec::len).filter(|found| *found != width) {
                let reason = format!(
                    "the config.json beside it has {found} labels in id2label, and its head {width}"
                );
                return Err(Error::config(ADAPTER_CONFIG, reason));
            }
            let numbered = || match base.filter(|_| head.is_none()) {
                Some(base) => base.names.clone(),
                None => (0..width).map(|id| format!("LABEL_{id}")).collect(),
            };
            let problem = told.and_then(|told| told.problem.clone());
            let problem = problem.or_else(|| base.and_then(Labels::problem).map(String::from));
            Ok(Some(Labels::of(names.unwrap_or_else(numbered), problem.as_deref())))
        }
    }
}
