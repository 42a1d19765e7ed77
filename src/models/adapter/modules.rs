//! What an adapter can be for: the modules of a loaded model by the names that a checkpoint of
//! its architecture has for them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use roundhouse_types::ModelKind;

use super::experts::ExpertModules;
use super::heads::{First, Heads, Possible};
use crate::config::decoder::{DecoderConfig, LABELS_HEAD, NormKind};
use crate::config::encoder::{EncoderConfig, HeadConfig, Positions, Spare};
use crate::encoder::Spelling;
use crate::footprint::HeadRoom;
use crate::inspect::{Family, ModelPlan};

/// Places per layer.
const PER_LAYER: u32 = 6;

/// A place in the computation where an adapter can change something: one projection of stacked
/// modules, or one norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Site(u32);

impl Site {
    /// Queries, keys and values.
    pub(crate) fn qkv(layer: usize) -> Self {
        Self::of(layer, 0)
    }

    /// What the attention gives.
    pub(crate) fn attention_out(layer: usize) -> Self {
        Self::of(layer, 1)
    }

    /// The feed-forward block's first projection.
    pub(crate) fn up(layer: usize) -> Self {
        Self::of(layer, 2)
    }

    /// Its last.
    pub(crate) fn down(layer: usize) -> Self {
        Self::of(layer, 3)
    }

    /// The attention's norm.
    pub(crate) fn attention_norm(layer: usize) -> Self {
        Self::of(layer, 4)
    }

    /// The feed-forward block's norm.
    pub(crate) fn feed_forward_norm(layer: usize) -> Self {
        Self::of(layer, 5)
    }

    /// The norm outside all layers: before a decoder's head, behind an encoder's embeddings.
    pub(crate) fn norm(layers: usize) -> Self {
        Self::of(layers, 0)
    }

    /// A decoder's head, or a classifier's classes.
    pub(crate) fn head(layers: usize) -> Self {
        Self::of(layers, 1)
    }

    /// A classifier's projection of the first token.
    pub(crate) fn pooler(layers: usize) -> Self {
        Self::of(layers, 2)
    }

    /// From the embeddings' width to the layers'.
    pub(crate) fn projection(layers: usize) -> Self {
        Self::of(layers, 3)
    }

    fn of(layer: usize, place: u32) -> Self {
        Self(u32::try_from(layer).unwrap_or(u32::MAX / PER_LAYER - 1) * PER_LAYER + place)
    }

    /// The site of an index.
    pub(super) fn at(index: usize) -> Self {
        Self(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// Its index among all sites.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a module computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A projection inside the model.
    Inner,
    /// A projection at its end, which an adapter may bring whole.
    Head,
    /// The table of the tokens' vectors.
    Embeddings,
    /// Of which only the bias is anybody's.
    Norm,
    /// Part of the architecture, but of nothing that is computed.
    Unused,
}

/// One module.
#[derive(Debug, Clone, Hash)]
pub(crate) struct Module {
    pub(crate) kind: Kind,
    pub(crate) site: Site,
    /// Its first output among those of the site.
    pub(crate) first: usize,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// Its weight's name in the base's files, and its bias's if it has one.
    pub(crate) weight: String,
    pub(crate) bias: Option<String>,
}

impl Module {
    /// Whether it is a part of a head.
    pub(super) fn is_of_head(&self, layers: usize) -> bool {
        let sites = [Site::head(layers), Site::pooler(layers)];
        self.kind != Kind::Embeddings && sites.contains(&self.site)
    }
}

/// The modules of one loaded model.
#[derive(Debug)]
pub(crate) struct Modules {
    by_name: BTreeMap<String, Module>,
    /// Those of sparse layers.
    experts: Option<ExpertModules>,
    /// What stands before the names of the bare model in those of the whole.
    prefix: &'static str,
    /// The same of the bare model itself.
    bare: &'static str,
    pub(crate) layers: usize,
    /// The heads that adapters may bring.
    pub(super) heads: Option<Heads>,
}

impl Hash for Modules {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.by_name, &self.experts, self.prefix, self.layers).hash(state);
    }
}

impl Modules {
    /// The modules of the model that a plan describes.
    pub(crate) fn of(plan: &ModelPlan) -> Self {
        match &plan.family {
            Family::Decoder { config, prefix, answers } => {
                let modules = decoder(config, prefix, answers.kv().is_some());
                let heads = config.texts.dense.is_empty().then(|| Heads {
                    possible: vec![Possible {
                        kind: ModelKind::Classification,
                        config: HeadConfig::labels(LABELS_HEAD),
                        first: First::Own,
                        pooler: None,
                    }],
                    base: plan.labels.clone().map(|labels| (plan.kind, labels)),
                    generates: answers.kv().is_some(),
                    padding: config.texts.padding,
                    hidden: config.hidden,
                    room: HeadRoom::of_decoder(config, plan.step_tokens),
                });
                Self { heads, ..modules }
            }
            Family::Encoder { config, spelling, head, spare, .. } => {
                let modules = encoder(config, *spelling, head.as_ref());
                let labelled = plan.labels.clone().map(|labels| (plan.kind, labels));
                let room = HeadRoom::of_encoder(config, head.as_ref(), plan.step_tokens);
                let heads = spare.as_ref().map(|spare| Heads {
                    possible: possible(spare, head.as_ref(), *spelling),
                    base: labelled,
                    generates: false,
                    padding: None,
                    hidden: config.hidden,
                    room,
                });
                Self { heads, ..modules }
            }
        }
    }

    /// A name of the bare model's as the whole one's.
    pub(super) fn whole(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Of a model without any.
    #[cfg(test)]
    pub(super) fn none(layers: usize) -> Self {
        let (by_name, experts) = (BTreeMap::new(), None);
        Self { by_name, experts, prefix: "", bare: "", layers, heads: None }
    }

    /// Equal where all modules are, in this process.
    pub(super) fn print(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// The module that a file means by a name: as of the whole model or of the bare one.
    pub(crate) fn find(&self, name: &str) -> Option<Cow<'_, Module>> {
        let rest = name.strip_prefix(self.bare).unwrap_or(name);
        self.named(name).or_else(|| self.named(&self.whole(rest)))
    }

    /// The module of that name in the whole model.
    fn named(&self, name: &str) -> Option<Cow<'_, Module>> {
        let of_expert = || self.experts.as_ref()?.find(name).map(Cow::Owned);
        self.by_name.get(name).map(Cow::Borrowed).or_else(of_expert)
    }

    /// Whether a name is that of a part of one of several experts.
    pub(super) fn is_of_expert(&self, name: &str) -> bool {
        let of_expert = |experts: &ExpertModules| experts.is_of_one(name);
        self.experts.as_ref().is_some_and(of_expert) && self.find(name).is_some()
    }

    /// All of them, under the names of the bare model if `bare`; those of sparse layers if `experts`.
    pub(super) fn all(
        &self,
        bare: bool,
        experts: bool,
    ) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, Module>)> {
        let experts = self.experts.iter().filter(move |_| experts).flat_map(|experts| {
            experts.names().filter_map(move |name| Some((experts.find(&name)?, name)))
        });
        let experts = experts.map(|(module, name)| (Cow::Owned(name), Cow::Owned(module)));
        let others = self.by_name.iter();
        let others =
            others.map(|(name, module)| (Cow::Borrowed(name.as_str()), Cow::Borrowed(module)));
        let all = others.chain(experts);
        all.map(move |(name, module): (Cow<'_, str>, Cow<'_, Module>)| {
            match name.strip_prefix(self.prefix).filter(|_| bare) {
                Some(rest) => (format!("{}{rest}", self.bare).into(), module),
                None => (name, module),
            }
        })
    }

    /// How many sites there are but for those of experts.
    pub(crate) fn sites(&self) -> usize {
        Site::projection(self.layers).index() + 1
    }

    /// Whether a name is one of the bare model.
    pub(crate) fn is_bare(&self, name: &str) -> bool {
        !self.prefix.is_empty() && self.named(name).is_none()
    }
}

/// Adds modules under the names of the whole model.
struct Builder<'a> {
    modules: BTreeMap<String, Module>,
    /// Before names in adapters, and in the base's files.
    prefix: &'static str,
    in_files: &'a str,
}

impl Builder<'_> {
    fn add(&mut self, name: &str, module: impl FnOnce(String) -> Module) {
        self.modules
            .insert(format!("{}{name}", self.prefix), module(format!("{}{name}", self.in_files)));
    }

    /// Projections stacked at one site.
    fn stacked(
        &mut self,
        site: Site,
        parts: impl IntoIterator<Item = (String, usize)>,
        (inputs, bias): (usize, bool),
    ) {
        let mut first = 0;
        for (name, outputs) in parts {
            self.add(&name, |file| Module {
                kind: Kind::Inner,
                site,
                first,
                outputs,
                inputs,
                weight: format!("{file}.weight"),
                bias: bias.then(|| format!("{file}.bias")),
            });
            first += outputs;
        }
    }

    /// A norm's `shift` is its bias.
    fn norm(&mut self, site: Site, name: &str, width: usize, shift: &str) {
        self.add(name, |file| Module {
            kind: Kind::Norm,
            site,
            first: 0,
            outputs: width,
            inputs: width,
            weight: format!("{file}.weight"),
            bias: Some(format!("{file}.{shift}")),
        });
    }
}

fn decoder(config: &DecoderConfig, in_files: &str, has_head: bool) -> Modules {
    let (names, heads, layers) = (config.names, config.heads, config.layers);
    let [prefix, bare] = names.prefixes;
    let mut builder = Builder { modules: BTreeMap::new(), prefix, in_files };
    for layer in 0..layers {
        let name = |module: &str| format!("{}.{layer}.{module}", names.layers);
        let all = |modules: &[&str], rows: Vec<usize>| -> Vec<(String, usize)> {
            modules.iter().map(|module| name(module)).zip(rows).collect()
        };
        let qkv_rows = match names.qkv.len() {
            1 => vec![heads.packed_width()],
            _ => vec![heads.query_width(), heads.kv_width(), heads.kv_width()],
        };
        let up_rows = vec![config.up_width() / names.up.len(); names.up.len()];
        let (hidden, inner) = (config.hidden, config.intermediate);
        let qkv = all(names.qkv, qkv_rows);
        builder.stacked(Site::qkv(layer), qkv, (hidden, config.qkv_bias));
        let out = [(name(names.attention_out), hidden)];
        let attended = (heads.query_width(), config.attention_out_bias);
        builder.stacked(Site::attention_out(layer), out, attended);
        // Experts and their routers are found by name.
        if config.experts(layer).is_none() {
            let up = all(names.up, up_rows);
            builder.stacked(Site::up(layer), up, (hidden, config.mlp_bias));
            let down = [(name(names.down), hidden)];
            builder.stacked(Site::down(layer), down, (inner, config.mlp_bias));
        }
        if config.norm == NormKind::Layer {
            if let Some(norm) = names.attention_norm {
                builder.norm(Site::attention_norm(layer), &name(norm), hidden, "bias");
            }
            if let Some(norm) = names.feed_forward_norm {
                builder.norm(Site::feed_forward_norm(layer), &name(norm), hidden, "bias");
            }
        }
    }
    if config.norm == NormKind::Layer {
        builder.norm(Site::norm(layers), names.norm, config.hidden, "bias");
    }
    let table = |site: Site, kind: Kind, weight: String| Module {
        kind,
        site,
        first: 0,
        outputs: config.vocab,
        inputs: config.hidden,
        weight,
        bias: None,
    };
    let embeddings = format!("{in_files}{}.weight", names.embeddings);
    // Embeddings are no site: they are looked up.
    let none = Site::head(layers);
    builder.add(names.embeddings, |_| table(none, Kind::Embeddings, embeddings.clone()));
    let head = match config.tied {
        true => embeddings,
        false => format!("{}.weight", names.head_under(in_files)),
    };
    let mut modules = builder.modules;
    if let Some(labels) = config.texts.labels {
        let weight = format!("{LABELS_HEAD}.weight");
        let head = table(Site::head(layers), Kind::Head, weight);
        modules.insert(LABELS_HEAD.into(), Module { outputs: labels, ..head });
    } else if has_head {
        let bias = config.head_bias.then(|| format!("{}.bias", names.head_under(in_files)));
        let module = Module { bias, ..table(Site::head(layers), Kind::Head, head) };
        modules.insert(names.head.into(), module);
    }
    let experts = ExpertModules::of(config, prefix, in_files);
    Modules { by_name: modules, experts, prefix, bare, layers, heads: None }
}

/// The heads that adapters of an encoder may bring.
fn possible(spare: &Spare, head: Option<&HeadConfig>, spelling: Spelling) -> Vec<Possible> {
    let possible = |(kind, config): (ModelKind, &HeadConfig)| {
        let (mut first, mut pooler) = (First::Own, None);
        if let Some(dense) = &config.first {
            let of_head = head.and_then(|head| head.first.as_ref());
            if of_head.is_some_and(|it| it.name == dense.name && it.width == dense.width) {
                first = First::Head;
            } else if spare.pooler.as_ref().is_some_and(|it| it.name == dense.name) {
                first = First::Pooler;
                let name = format!("{}{}", spelling.prefix, dense.name);
                pooler = Some([format!("{name}.weight"), format!("{name}.bias")]);
            }
        }
        Possible { kind, config: config.clone(), first, pooler }
    };
    let kinds = [ModelKind::Classification, ModelKind::TokenClassification];
    kinds.into_iter().zip([&spare.classes, &spare.token_classes]).map(possible).collect()
}

fn encoder(config: &EncoderConfig, spelling: Spelling, head: Option<&HeadConfig>) -> Modules {
    let (layers, hidden, inner) = (config.layers, config.hidden, config.intermediate);
    let (names, biases) = (config.names, config.biases);
    let [bare, prefix] = names.prefixes;
    let mut builder = Builder { modules: BTreeMap::new(), prefix, in_files: spelling.prefix };
    let norm = |builder: &mut Builder<'_>, site: Site, name: &str, width: usize| {
        if biases.norms {
            builder.norm(site, name, width, spelling.shift);
        }
    };
    norm(&mut builder, Site::norm(layers), names.embedding_norm, config.embedding);
    if let Some(name) = names.projection.filter(|_| config.embedding != hidden) {
        let part = [(name.to_owned(), hidden)];
        builder.stacked(Site::projection(layers), part, (config.embedding, true));
    }
    for layer in 0..layers {
        let name = |module: &str| format!("{}.{layer}.{module}", names.layers);
        let each = config.heads.packed_width() / names.qkv.len();
        let qkv: Vec<_> = names.qkv.iter().map(|part| (name(part), each)).collect();
        // What layers make of distances is made once, without an adapter.
        if !matches!(config.positions, Positions::Disentangled(..)) {
            builder.stacked(Site::qkv(layer), qkv, (hidden, biases.attention));
        }
        let out = [(name(names.attention_out), hidden)];
        builder.stacked(Site::attention_out(layer), out, (hidden, biases.attention));
        let up = [(name(names.up), config.up_width())];
        builder.stacked(Site::up(layer), up, (hidden, biases.feed_forward));
        let down = [(name(names.down), hidden)];
        builder.stacked(Site::down(layer), down, (inner, biases.feed_forward));
        if !(names.first_unnormed && layer == 0) {
            norm(&mut builder, Site::attention_norm(layer), &name(names.attention_norm), hidden);
        }
        let site = Site::feed_forward_norm(layer);
        norm(&mut builder, site, &name(names.feed_forward_norm), hidden);
    }
    let pooler = Site::pooler(layers);
    let dense = head.and_then(|head| head.first.as_ref());
    match dense {
        Some(dense) if dense.inside => {
            builder.stacked(pooler, [(dense.name.into(), dense.width)], (hidden, dense.bias));
        }
        // Vectors are pooled from the last layer's, whatever the pooler holds.
        _ => ["pooler.dense", "pooler"].into_iter().for_each(|name| {
            builder.stacked(pooler, [(name.to_owned(), hidden)], (hidden, true));
        }),
    }
    let mut modules = builder.modules;
    if !dense.is_some_and(|dense| dense.inside) {
        let unused = modules.values_mut().filter(|module| module.site == pooler);
        unused.for_each(|module| module.kind = Kind::Unused);
    }
    let module = |kind: Kind, site: Site, (outputs, inputs): (usize, usize), name: &str| Module {
        kind,
        site,
        first: 0,
        outputs,
        inputs,
        weight: format!("{name}.weight"),
        bias: None,
    };
    if let Some(head) = head {
        let mut inputs = hidden;
        if let Some(dense) = &head.first {
            inputs = dense.width;
            if !dense.inside {
                let shape = (dense.width, hidden);
                let bias = dense.bias.then(|| format!("{}.bias", dense.name));
                let module = Module { bias, ..module(Kind::Head, pooler, shape, dense.name) };
                modules.insert(dense.name.into(), module);
            }
        }
        let last = module(Kind::Head, Site::head(layers), (head.width, inputs), head.last);
        let words = format!("{}{}.weight", spelling.prefix, names.words);
        let weight = if head.tied { words } else { last.weight.clone() };
        let bias = spelling.head_bias.map(String::from);
        modules.insert(head.last.into(), Module { weight, bias, ..last });
    }
    let words = format!("{}{}", spelling.prefix, names.words);
    let shape = (config.vocab, config.embedding);
    // Embeddings are no site: they are looked up.
    let table = module(Kind::Embeddings, Site::head(layers), shape, &words);
    modules.insert(format!("{prefix}{}", names.words), table);
    Modules { by_name: modules, experts: None, prefix, bare, layers, heads: None }
}
