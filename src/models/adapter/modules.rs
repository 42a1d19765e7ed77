//! What an adapter can be for: the modules of a loaded model by the names that a checkpoint of
//! its architecture has for them.

use std::collections::BTreeMap;

use crate::config::bert::BertConfig;
use crate::config::decoder::{DecoderConfig, NormKind};
use crate::encoder::Names as EncoderNames;
use crate::inspect::{Family, ModelPlan};

/// Places per layer.
const PER_LAYER: u32 = 6;

/// A place in the computation where an adapter can change something: one projection of stacked
/// modules, or one norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

    fn of(layer: usize, place: u32) -> Self {
        Self(u32::try_from(layer).unwrap_or(u32::MAX / PER_LAYER - 1) * PER_LAYER + place)
    }

    /// Its index among all sites.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a module computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
#[derive(Debug, Clone)]
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

/// The modules of one loaded model.
#[derive(Debug)]
pub(crate) struct Modules {
    by_name: BTreeMap<String, Module>,
    /// What stands before the names of the bare model in those of the whole.
    prefix: &'static str,
    pub(crate) layers: usize,
}

impl Modules {
    /// The modules of the model that a plan describes.
    pub(crate) fn of(plan: &ModelPlan) -> Self {
        match &plan.family {
            Family::Decoder { config, prefix, .. } => decoder(config, prefix),
            Family::Encoder { config, names, labels, .. } => encoder(config, *names, *labels),
        }
    }

    /// The module that a file means by a name: as of the whole model or of the bare one.
    pub(crate) fn find(&self, name: &str) -> Option<&Module> {
        let prefixed = || self.by_name.get(&format!("{}{name}", self.prefix));
        self.by_name.get(name).or_else(prefixed)
    }

    /// All of them, under the names of the bare model if `bare`.
    pub(crate) fn all(&self, bare: bool) -> impl Iterator<Item = (&str, &Module)> {
        self.by_name.iter().map(move |(name, module)| match bare {
            true => (name.strip_prefix(self.prefix).unwrap_or(name), module),
            false => (name.as_str(), module),
        })
    }

    /// How many sites there are.
    pub(crate) fn sites(&self) -> usize {
        Site::pooler(self.layers).index() + 1
    }

    /// Whether a name is one of the bare model.
    pub(crate) fn is_bare(&self, name: &str) -> bool {
        !self.prefix.is_empty() && !self.by_name.contains_key(name)
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

fn decoder(config: &DecoderConfig, in_files: &str) -> Modules {
    let (names, heads, layers) = (config.names, config.heads, config.layers);
    let [prefix, _] = names.prefixes;
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
        builder.stacked(Site::up(layer), all(names.up, up_rows), (hidden, config.mlp_bias));
        let down = [(name(names.down), hidden)];
        builder.stacked(Site::down(layer), down, (inner, config.mlp_bias));
        if config.norm == NormKind::Layer {
            let site = Site::attention_norm(layer);
            builder.norm(site, &name(names.attention_norm), hidden, "bias");
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
        false => format!("{}.weight", names.head),
    };
    let mut modules = builder.modules;
    modules.insert(names.head.into(), table(Site::head(layers), Kind::Head, head));
    Modules { by_name: modules, prefix, layers }
}

fn encoder(config: &BertConfig, names: EncoderNames, labels: Option<usize>) -> Modules {
    let (layers, hidden, inner) = (config.layers, config.hidden, config.intermediate);
    let prefix = "bert.";
    let mut builder = Builder { modules: BTreeMap::new(), prefix, in_files: names.prefix() };
    builder.norm(Site::norm(layers), "embeddings.LayerNorm", hidden, names.shift());
    for layer in 0..layers {
        let name = |module: &str| format!("encoder.layer.{layer}.{module}");
        let qkv = ["query", "key", "value"];
        let qkv = qkv.map(|part| (name(&format!("attention.self.{part}")), hidden));
        builder.stacked(Site::qkv(layer), qkv, (hidden, true));
        let out = [(name("attention.output.dense"), hidden)];
        builder.stacked(Site::attention_out(layer), out, (hidden, true));
        let up = [(name("intermediate.dense"), inner)];
        builder.stacked(Site::up(layer), up, (hidden, true));
        builder.stacked(Site::down(layer), [(name("output.dense"), hidden)], (inner, true));
        let norm = name("attention.output.LayerNorm");
        builder.norm(Site::attention_norm(layer), &norm, hidden, names.shift());
        let norm = name("output.LayerNorm");
        builder.norm(Site::feed_forward_norm(layer), &norm, hidden, names.shift());
    }
    builder.stacked(Site::pooler(layers), [("pooler.dense".into(), hidden)], (hidden, true));
    let mut modules = builder.modules;
    match labels {
        Some(labels) => {
            let classifier = Module {
                kind: Kind::Head,
                site: Site::head(layers),
                first: 0,
                outputs: labels,
                inputs: hidden,
                weight: "classifier.weight".into(),
                bias: Some("classifier.bias".into()),
            };
            modules.insert("classifier".into(), classifier);
        }
        // Vectors are pooled from the last layer's, whatever the pooler holds.
        None => modules
            .values_mut()
            .filter(|module| module.site == Site::pooler(layers))
            .for_each(|module| module.kind = Kind::Unused),
    }
    let words = format!("{}embeddings.word_embeddings.weight", names.prefix());
    let table = Module {
        kind: Kind::Embeddings,
        site: Site::head(layers),
        first: 0,
        outputs: config.vocab,
        inputs: hidden,
        weight: words,
        bias: None,
    };
    modules.insert(format!("{prefix}embeddings.word_embeddings"), table);
    Modules { by_name: modules, prefix, layers }
}
