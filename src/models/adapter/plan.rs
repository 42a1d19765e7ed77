//! What an adapter is and what it will take, from its configuration and its file's header.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roundhouse_types::{Bytes, Footprint, ModelKind};

use super::config::LoraConfig;
use super::fit::{self, Fit};
use super::heads;
use super::layout::Index;
use super::modules::Modules;
use super::names::{self, Pieces};
use super::{ADAPTER_CONFIG, ADAPTER_WEIGHTS};
use crate::Error;
use crate::config::{self, Labels, ToldLabels};
use crate::files::Files;
use crate::inspect::ModelPlan;
use crate::settings::ModelSettings;
use crate::tensors::TensorTable;

/// An adapter that can be loaded.
#[derive(Debug, Clone)]
pub struct AdapterPlan {
    pub(super) config: Arc<LoraConfig>,
    pub(super) tensors: Arc<BTreeMap<String, Pieces>>,
    footprint: Footprint,
    /// What the `config.json` beside it says of labels.
    told: Option<Arc<ToldLabels>>,
    /// On a base, where its answers are not its base's: what it does, and its labels.
    pub answers: Option<(ModelKind, Labels)>,
    /// How long it may be unused, where its own settings say so.
    pub idle_ttl: Option<Duration>,
}

/// What an allocation takes beside its bytes, and a module's entry in a map.
const BLOCK: usize = 128;

impl AdapterPlan {
    /// About what the plan itself takes while it is remembered: mostly its tensors' names and places.
    pub fn remembered_bytes(&self) -> Bytes {
        let module = |(name, pieces): (&String, &Pieces)| BLOCK + name.len() + names::bytes(pieces);
        let tensors: usize = self.tensors.iter().map(module).sum();
        let told = self.told.iter().flat_map(|told| told.names.iter().flatten());
        let told: usize = told.map(|name| BLOCK + name.len()).sum();
        Bytes((tensors + told) as u64 + self.config.patterns_bytes())
    }

    /// Reads an adapter's configuration and the header of its weights, and refuses by name what
    /// is not computed, before a weight is fetched. Reads nothing but what it is given.
    ///
    /// The footprint's weights are exact, but for tensors that the base has no use for; what
    /// finds them again is known with [`on`](Self::on).
    ///
    /// # Errors
    /// When a file is missing or unsound, or asks for what is not computed.
    pub fn read(files: &Files) -> Result<Self, Error> {
        let Some(content) = files.contents.get(ADAPTER_CONFIG) else {
            return Err(Error::config(ADAPTER_CONFIG, "is not there, or too large"));
        };
        let config = LoraConfig::read(content)?;
        let idle_ttl = ModelSettings::of_adapter(files)?;
        if !files.sizes.contains_key(ADAPTER_WEIGHTS) {
            let reason = match files.sizes.contains_key("adapter_model.bin") {
                true => "is not there; adapter_model.bin is not read: convert it to safetensors",
                false => "is not there",
            };
            return Err(Error::config(ADAPTER_WEIGHTS, reason));
        }
        let table = TensorTable::single(files, ADAPTER_WEIGHTS)?;
        let tensors = names::by_module(&table)?;
        if tensors.is_empty() {
            return Err(Error::config(ADAPTER_WEIGHTS, "it has no tensors"));
        }
        for (name, pieces) in &tensors {
            fit::check_module(&config, name, pieces)?;
        }
        let footprint = Footprint { weights: fit::bytes(&tensors)?, ..Footprint::default() };
        let told = config::told_labels(files)?.map(Arc::new);
        let (config, tensors) = (Arc::new(config), Arc::new(tensors));
        Ok(Self { config, tensors, footprint, told, answers: None, idle_ttl })
    }

    /// The same for a base: checked against its modules and shapes, the footprint exact.
    ///
    /// # Errors
    /// When a tensor is for no module of the base, of another shape, or missing.
    pub fn on(&self, base: &ModelPlan) -> Result<Self, Error> {
        if let Some(most) = base.asked.lora_rank {
            self.check_rank(most)?;
        }
        let modules = Modules::of(base);
        let fit = self.fit(&modules)?;
        let footprint = footprint(fit.bytes(), &fit.index);
        Ok(Self { footprint, answers: self.answers(&fit, &modules)?, ..self.clone() })
    }

    /// Holds it against the rank that its base is served with.
    fn check_rank(&self, most: usize) -> Result<(), Error> {
        let ranks = self.tensors.keys().map(|name| self.config.rank(name));
        match ranks.max() {
            Some(rank) if rank > most => {
                let reason = format!(
                    "its rank is {rank}, and its base takes adapters of rank {most} at most \
                     (option.max_lora_rank)"
                );
                Err(Error::config(ADAPTER_CONFIG, reason))
            }
            _ => Ok(()),
        }
    }

    /// The base by the name that the adapter's author had for it, where it says.
    pub fn base_name(&self) -> Option<&str> {
        self.config.base.as_deref()
    }

    /// The bytes that it will take beside its base.
    pub fn footprint(&self) -> Footprint {
        self.footprint
    }

    pub(super) fn fit(&self, base: &Modules) -> Result<Fit, Error> {
        let mut fit = Fit::new(&self.config, &self.tensors, base)?;
        if let Some((_, labels)) = self.answers(&fit, base)? {
            fit.index.beside = labels.bytes();
        }
        Ok(fit)
    }

    /// What it does and with which labels, where that is not what its base does.
    fn answers(&self, fit: &Fit, base: &Modules) -> Result<Option<(ModelKind, Labels)>, Error> {
        let Some(heads) = &base.heads else { return Ok(None) };
        let own = fit.index.head.as_deref();
        let kind = own.map(|own| own.kind).or(heads.base.as_ref().map(|(kind, _)| *kind));
        let of_base = heads.base.as_ref().filter(|(of_base, _)| Some(*of_base) == kind);
        let labels = heads::labels(self.told.as_deref(), own, of_base.map(|(_, labels)| labels))?;
        Ok(kind.zip(labels))
    }
}

/// Of so many bytes of numbers, and of what finds them.
pub(super) fn footprint(numbers: Bytes, index: &Index) -> Footprint {
    let workspace = index.head.as_ref().map_or(Bytes::ZERO, |head| head.workspace);
    let host = Bytes(index.bytes());
    Footprint { weights: numbers, host, workspace, ..Footprint::default() }
}
