//! The encoder: packed ragged rows, no padding; sentence vectors, class logits or what each token
//! gets. What it computes is data ([`EncoderConfig`]); families differ in nothing else.

use std::any::Any;

use candle_core::{Result, Tensor};
use candle_nn::ops::layer_norm;
use roundhouse_engine::{
    AdapterId, HeadSpec, ModelRunner, Row, RunnerError, RunnerSpec, StepOutput, StepPlan,
};
use roundhouse_types::Bytes;

use crate::activation::with_floats;
use crate::adapter::{Adapters, Groups, Mix, Site};
use crate::attention::{self, Distances, Places, Scores, Sight};
use crate::config::encoder::{EncoderConfig, HeadConfig, Positions};
use crate::config::sentence::Sentence;
use crate::in_place;
use crate::linear;
use crate::packed::Packed;
use crate::rope::Rope;
use crate::threads;

mod answers;
mod weights;

pub(crate) use weights::{EncoderWeights, Parts, Spelling};

use weights::{Layer, Norm};

/// A loaded encoder.
#[derive(Debug)]
pub(crate) struct Encoder {
    config: EncoderConfig,
    spec: RunnerSpec,
    /// How an embedder makes one vector of a sequence.
    sentence: Sentence,
    /// What stands behind the last layer; embedders have none.
    head: Option<HeadConfig>,
    weights: EncoderWeights<Tensor>,
    /// The rotations of layers that see all and of the others.
    ropes: Vec<Rope>,
    distances: Option<Distances>,
    /// What each layer makes of distances.
    places: Vec<Places>,
    adapters: Adapters,
}

/// What an encoder is built from beside its weights.
#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) config: EncoderConfig,
    pub(crate) head: Option<HeadConfig>,
    pub(crate) sentence: Sentence,
    pub(crate) spec: RunnerSpec,
    pub(crate) adapters: Adapters,
}

impl Encoder {
    pub(crate) fn new(build: Build, weights: EncoderWeights<Tensor>) -> Result<Self> {
        let Build { config, head, sentence, spec, adapters } = build;
        let ropes = match &config.positions {
            Positions::Rotated(rotated) => {
                rotated.ropes.iter().map(|rope| Rope::divided(rope, &[], spec.context)).collect()
            }
            _ => Vec::new(),
        };
        let distances = match (&config.positions, &weights.distances) {
            (Positions::Bucketed(_), Some(table)) => {
                let all: Vec<u32> = (0..attention::BUCKETS as u32).collect();
                Some(Distances::new(&linear::rows(table, &all)?.to_vec2()?))
            }
            _ => None,
        };
        let places = Vec::new();
        let mut encoder =
            Self { config, spec, sentence, head, weights, ropes, distances, places, adapters };
        encoder.places = encoder.learn_places()?;
        Ok(encoder)
    }

    /// What each layer makes of distances: the same in all steps, so it is made once.
    fn learn_places(&self) -> Result<Vec<Places>> {
        let (Positions::Disentangled(_, distances), Some(table)) =
            (&self.config.positions, &self.weights.distances)
        else {
            return Ok(Vec::new());
        };
        let all: Vec<u32> = (0..2 * distances.reach.span as u32).collect();
        let mut table = linear::rows(table, &all)?;
        if let Some(norm) = &self.weights.distance_norm {
            table = self.normed(norm, &table)?;
        }
        let of = |(index, layer): (usize, &Layer<Tensor>)| {
            let qkv = layer.qkv.forward(&table, (&Groups::default(), Site::qkv(index)))?;
            with_floats(&qkv, |qkv| Places::new(self.config.heads, qkv))
        };
        self.weights.layers.iter().enumerate().map(of).collect()
    }

    fn compute(&self, plan: &StepPlan, packed: &Packed<'_>, mix: &Mix) -> Result<StepOutput> {
        let mut x = self.embed(plan, packed, &mix.tokens)?;
        for index in 0..self.weights.layers.len() {
            for _ in 0..self.config.times {
                x = self.layer(index, &x, packed, &mix.tokens)?;
            }
        }
        if packed.outputs.is_empty() {
            return Ok(StepOutput::default());
        }
        if let Some(norm) = &self.weights.final_norm {
            x = self.normed(norm, &x)?;
        }
        Ok(StepOutput { rows: self.answers(plan, packed, &x, mix)? })
    }

    /// Words, positions and token types, summed and normed.
    fn embed(&self, plan: &StepPlan, packed: &Packed<'_>, groups: &Groups) -> Result<Tensor> {
        let weights = &self.weights;
        let x = linear::rows(&weights.words, &packed.tokens)?;
        groups.embed(&packed.tokens, &x)?;
        if let Some(table) = &weights.token_types {
            match self.config.tells_pairs && plan.rows.iter().any(|row| row.second.is_some()) {
                true => in_place::add(&x, &linear::rows(table, &token_types(plan))?)?,
                false => in_place::add(&x, &linear::rows(table, &[0])?.flatten_all()?)?,
            }
        }
        if let Some(table) = &weights.positions {
            in_place::add(&x, &linear::rows(table, &self.positions(packed))?)?;
        }
        let place = (groups, Site::norm(weights.layers.len()));
        let x = self.norm(&weights.embedding_norm, &x, place)?;
        match &weights.projection {
            Some(projection) => {
                projection.forward(&x, (groups, Site::projection(self.config.layers)))
            }
            None => Ok(x),
        }
    }

    /// Each token's row in the table of positions.
    fn positions(&self, packed: &Packed<'_>) -> Vec<u32> {
        let padding = self.config.learned().and_then(|learned| learned.padding);
        let Some(padding) = padding else { return packed.positions() };
        let mut places = Vec::with_capacity(packed.tokens.len());
        for span in &packed.spans {
            let mut next = padding;
            for token in &packed.tokens[span.first..span.first + span.tokens] {
                let is_padding = *token == padding;
                next += u32::from(!is_padding);
                places.push(if is_padding { padding } else { next });
            }
        }
        places
    }

    fn layer(
        &self,
        index: usize,
        x: &Tensor,
        packed: &Packed<'_>,
        groups: &Groups,
    ) -> Result<Tensor> {
        let layer = &self.weights.layers[index];
        let norm = Site::feed_forward_norm(index);
        if self.config.norms_first {
            let mixed = match &layer.attention_norm {
                Some(norm) => {
                    let place = (groups, Site::attention_norm(index));
                    self.attend(index, &self.norm(norm, x, place)?, packed, groups)?
                }
                None => self.attend(index, x, packed, groups)?,
            };
            in_place::add(&mixed, x)?;
            let normed = self.norm(&layer.norm, &mixed, (groups, norm))?;
            let fed = self.feed_forward(layer, index, &normed, groups)?;
            in_place::add(&fed, &mixed)?;
            return Ok(fed);
        }
        let mut mixed = self.attend(index, x, packed, groups)?;
        in_place::add(&mixed, x)?;
        if let Some(norm) = &layer.attention_norm {
            mixed = self.norm(norm, &mixed, (groups, Site::attention_norm(index)))?;
        }
        let fed = self.feed_forward(layer, index, &mixed, groups)?;
        in_place::add(&fed, &mixed)?;
        self.norm(&layer.norm, &fed, (groups, norm))
    }

    fn attend(
        &self,
        index: usize,
        x: &Tensor,
        packed: &Packed<'_>,
        groups: &Groups,
    ) -> Result<Tensor> {
        let layer = &self.weights.layers[index];
        let qkv = layer.qkv.forward(x, (groups, Site::qkv(index)))?;
        let (heads, spans) = (self.config.heads, packed.spans.as_slice());
        let mixed = with_floats(&qkv, |qkv| match (&self.config.positions, &self.distances) {
            (Positions::Rotated(rotated), _) => {
                let reach = rotated.reach[index];
                let rope = &self.ropes[usize::from(reach.is_some())];
                let mut qkv = qkv.to_vec();
                attention::rotate(heads, rope, spans, &mut qkv);
                let sight = reach.map_or(Sight::All, Sight::Around);
                attention::whole_rows((heads, Scores::plain(heads)), sight, spans, &qkv)
            }
            (Positions::Disentangled(_, distances), _) => {
                self.places[index].attend(distances.reach, heads, spans, qkv)
            }
            (_, Some(distances)) => distances.attend(heads, spans, qkv),
            _ => attention::whole_rows((heads, Scores::plain(heads)), Sight::All, spans, qkv),
        })?;
        drop(qkv);
        let mixed = Tensor::from_vec(mixed, (x.dim(0)?, heads.query_width()), x.device())?;
        layer.attention_out.forward(&mixed, (groups, Site::attention_out(index)))
    }

    fn feed_forward(
        &self,
        layer: &Layer<Tensor>,
        index: usize,
        x: &Tensor,
        groups: &Groups,
    ) -> Result<Tensor> {
        let up = layer.up.forward(x, (groups, Site::up(index)))?;
        let inner = match self.config.gated {
            true => self.config.activation.gate(&up)?,
            false => self.config.activation.apply(up)?,
        };
        layer.down.forward(&inner, (groups, Site::down(index)))
    }

    fn norm(
        &self,
        norm: &Norm<Tensor>,
        x: &Tensor,
        (groups, site): (&Groups, Site),
    ) -> Result<Tensor> {
        let y = self.normed(norm, x)?;
        groups.shift(site, &y)?;
        Ok(y)
    }

    /// A norm that no adapter changes.
    fn normed(&self, norm: &Norm<Tensor>, x: &Tensor) -> Result<Tensor> {
        let epsilon = self.config.norm_epsilon;
        match &norm.shift {
            Some(shift) => layer_norm(x, &norm.scale, shift, epsilon),
            None => layer_norm(x, &norm.scale, &norm.scale.zeros_like()?, epsilon),
        }
    }
}

/// Each token's row in the table of token types: the second where its row's second text is.
fn token_types(plan: &StepPlan) -> Vec<u32> {
    let of = |row: &Row| {
        let second = row.second.unwrap_or(usize::MAX);
        (0..row.tokens.len()).map(move |place| u32::from(place >= second)).collect::<Vec<_>>()
    };
    plan.rows.iter().flat_map(of).collect()
}

impl ModelRunner for Encoder {
    fn spec(&self) -> RunnerSpec {
        self.spec
    }

    fn forward(&mut self, plan: &StepPlan) -> std::result::Result<StepOutput, RunnerError> {
        let packed = Packed::check(plan, &self.spec, self.config.vocab)?;
        self.check_wants(plan)?;
        if packed.tokens.is_empty() {
            return Ok(StepOutput::default());
        }
        let mix = self.adapters.mix(plan, &packed)?;
        let computed = threads::step(|| self.compute(plan, &packed, &mix));
        computed.map_err(|error| RunnerError::Device(error.to_string()))
    }

    /// An encoder keeps nothing between steps but its weights.
    fn prepares_shapes(&self) -> bool {
        // Threads and their scratch are the process's, and warm since its start.
        false
    }

    fn touched(&self) -> Bytes {
        let ropes: u64 = self.ropes.iter().map(Rope::bytes).sum();
        Bytes(ropes + self.places.iter().map(Places::bytes).sum::<u64>())
    }

    fn give_back(&mut self, _: usize) -> Option<Box<dyn Any + Send>> {
        None
    }

    fn attach(
        &mut self,
        id: AdapterId,
        weights: Box<dyn Any + Send>,
    ) -> std::result::Result<Option<HeadSpec>, RunnerError> {
        self.adapters.attach(id, weights)
    }

    fn detach(&mut self, id: AdapterId) -> Option<Box<dyn Any + Send>> {
        self.adapters.detach(id)
    }
}
