//! The keys of `config.json` that encoders share, under BERT's names, and the plain encoder they
//! describe; families change what is different with them.

use serde::Deserialize;
use serde_json::Value;

use super::{ALBERT, BERT, Biases, DISTILBERT, ELECTRA, EncoderConfig, Learned, MPNET, Positions};
use super::{Names, ROBERTA};
use crate::Error;
use crate::activation::Activation;
use crate::attention::{BUCKETS, Heads};
use crate::config::raw::{LAYERS_MAX, keys, renamed, sound};
use crate::config::{CONFIG, positive};

/// As written; absent keys mean what transformers takes them for.
#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    embedding_size: Option<usize>,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
    pad_token_id: Option<i64>,
}

/// BERT: learned positions and token types.
pub(super) fn bert(json: &Value) -> Result<EncoderConfig, Error> {
    plain(json, &BERT, None)
}

/// RoBERTa, XLM-RoBERTa and CamemBERT: positions are counted from behind the padding's.
pub(super) fn roberta(json: &Value) -> Result<EncoderConfig, Error> {
    let padding = keys::<Raw>(json)?.pad_token_id.unwrap_or(1);
    let padding = u32::try_from(padding)
        .map_err(|_| Error::config(CONFIG, format!("pad_token_id is {padding}")))?;
    // Their tokenizers give both texts of a pair the first type.
    Ok(EncoderConfig { tells_pairs: false, ..plain(json, &ROBERTA, Some(padding))? })
}

/// ELECTRA: BERT, with embeddings of a width of their own.
pub(super) fn electra(json: &Value) -> Result<EncoderConfig, Error> {
    let embedding = keys::<Raw>(json)?.embedding_size.unwrap_or(128);
    positive(&[("embedding_size", embedding)])?;
    let config = plain(json, &ELECTRA, None)?;
    // Workspace is charged by what is as wide as the layers.
    if embedding > config.hidden {
        let reason =
            format!("embedding_size {embedding} is more than hidden_size {}", config.hidden);
        return Err(Error::config(CONFIG, reason));
    }
    Ok(EncoderConfig { embedding, ..config })
}

/// ALBERT: ELECTRA, with groups of layers that have the same weights.
pub(super) fn albert(json: &Value) -> Result<EncoderConfig, Error> {
    #[derive(Deserialize)]
    struct Groups {
        num_hidden_groups: Option<usize>,
        inner_group_num: Option<usize>,
    }
    let mut json = json.clone();
    if let Some(keys) = json.as_object_mut() {
        keys.entry("hidden_act").or_insert_with(|| "gelu_new".into());
    }
    let Groups { num_hidden_groups, inner_group_num } = keys(&json)?;
    if inner_group_num.unwrap_or(1) != 1 {
        return Err(Error::config(CONFIG, "inner_group_num other than 1 is not computed"));
    }
    let groups = num_hidden_groups.unwrap_or(1);
    positive(&[("num_hidden_groups", groups)])?;
    let config = EncoderConfig { names: &ALBERT, ..electra(&json)? };
    if !config.layers.is_multiple_of(groups) {
        let reason = format!("{} layers are not divided among {groups} groups", config.layers);
        return Err(Error::config(CONFIG, reason));
    }
    if config.embedding == config.hidden {
        let reason = "embedding_size as large as hidden_size is not computed for ALBERT";
        return Err(Error::config(CONFIG, reason));
    }
    Ok(EncoderConfig { layers: groups, times: config.layers / groups, ..config })
}

/// DistilBERT: no token types, names of its own.
pub(super) fn distilbert(json: &Value) -> Result<EncoderConfig, Error> {
    let json = renamed(
        json,
        &[
            ("dim", "hidden_size"),
            ("hidden_dim", "intermediate_size"),
            ("n_layers", "num_hidden_layers"),
            ("n_heads", "num_attention_heads"),
            ("activation", "hidden_act"),
        ],
    );
    plain(&json, &DISTILBERT, None)
}

/// MPNet: positions as RoBERTa's, and numbers for distances; no token types.
pub(super) fn mpnet(json: &Value) -> Result<EncoderConfig, Error> {
    #[derive(Deserialize)]
    struct Distances {
        relative_attention_num_buckets: Option<usize>,
    }
    // The padding's place is a constant of the architecture, whatever the token.
    let config = plain(json, &MPNET, Some(1))?;
    let count = keys::<Distances>(json)?.relative_attention_num_buckets.unwrap_or(BUCKETS);
    // Whatever the file says, transformers computes with as many.
    if count != BUCKETS {
        let reason = format!("relative_attention_num_buckets is {count}; {BUCKETS} are computed");
        return Err(Error::config(CONFIG, reason));
    }
    let Positions::Learned(learned) = config.positions else {
        return Err(Error::config(CONFIG, "MPNet has learned positions"));
    };
    Ok(EncoderConfig { positions: Positions::Bucketed(learned), ..config })
}

/// The encoder that the shared keys describe.
pub(super) fn plain(
    json: &Value,
    names: &'static Names,
    padding: Option<u32>,
) -> Result<EncoderConfig, Error> {
    let raw: Raw = keys(json)?;
    let hidden = raw.hidden_size;
    let token_types = match names.token_types {
        Some(_) => raw.type_vocab_size.unwrap_or(2),
        None => 0,
    };
    positive(&[
        ("hidden_size", hidden),
        ("intermediate_size", raw.intermediate_size),
        ("vocab_size", raw.vocab_size),
        ("max_position_embeddings", raw.max_position_embeddings),
    ])?;
    if names.token_types.is_some() {
        positive(&[("type_vocab_size", token_types)])?;
    }
    if let Some(kind) = raw.position_embedding_type.filter(|kind| kind != "absolute") {
        let reason = format!("position_embedding_type '{kind}' is not computed; absolute is");
        return Err(Error::config(CONFIG, reason));
    }
    if raw.is_decoder == Some(true) {
        return Err(Error::config(CONFIG, "an encoder as a decoder is not computed"));
    }
    let rows = raw.max_position_embeddings;
    let before = padding.map_or(0, |padding| padding as usize + 1);
    let context = rows.checked_sub(before).filter(|context| *context > 0).ok_or_else(|| {
        let reason = format!("max_position_embeddings {rows} leaves none behind the padding's");
        Error::config(CONFIG, reason)
    })?;
    Ok(EncoderConfig {
        hidden,
        embedding: hidden,
        intermediate: raw.intermediate_size,
        layers: layers(raw.num_hidden_layers)?,
        times: 1,
        heads: heads(hidden, raw.num_attention_heads)?,
        vocab: raw.vocab_size,
        context,
        positions: Positions::Learned(Learned { rows, padding }),
        token_types,
        tells_pairs: token_types > 1,
        norm_epsilon: sound("layer_norm_eps", raw.layer_norm_eps.unwrap_or(1e-12))?,
        activation: Activation::named(raw.hidden_act.as_deref().unwrap_or("gelu"))?,
        gated: false,
        norms_first: false,
        biases: Biases::ALL,
        names,
    })
}

/// The layers, as many as any model has.
pub(super) fn layers(count: usize) -> Result<usize, Error> {
    match (1..=LAYERS_MAX).contains(&count) {
        true => Ok(count),
        false => Err(Error::config(CONFIG, format!("num_hidden_layers is {count}"))),
    }
}

/// The hidden size shared among the heads.
pub(super) fn heads(hidden: usize, heads: usize) -> Result<Heads, Error> {
    positive(&[("num_attention_heads", heads)])?;
    if !hidden.is_multiple_of(heads) {
        let reason = format!("hidden_size {hidden} is not a multiple of {heads} heads");
        return Err(Error::config(CONFIG, reason));
    }
    let found = Heads { heads, kv_heads: heads, head_dim: hidden / heads };
    match found.fit() {
        true => Ok(found),
        false => {
            Err(Error::config(CONFIG, format!("{heads} heads of a width {hidden} are no model's")))
        }
    }
}
