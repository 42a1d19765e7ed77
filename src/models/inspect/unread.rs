//! Tensors of the files that no parameter is read from.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::config::decoder::DecoderConfig;

/// How many are named.
const NAMED: usize = 3;
/// Letters of a name that are shown.
const NAME_MAX: usize = 80;

/// What other versions of transformers write beside parameters, and compute themselves.
const BUFFERS: [&str; 8] = [
    ".inv_freq",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    "position_ids",
    "token_type_ids",
    ".num_batches_tracked",
];

/// Heads that encoders were trained with, and that others of the same family do not have.
const TRAINED_WITH: [&str; 11] = [
    "cls.",
    "lm_head.",
    "predictions.",
    "sop_classifier.",
    "vocab_",
    "generator_",
    "discriminator_predictions.",
    "lm_predictions.",
    "mask_predictions.",
    "head.",
    "decoder.",
];

/// Heads for a task, that what only makes vectors has no use for.
const OF_TASKS: [&str; 4] = ["classifier.", "pre_classifier.", "qa_outputs.", "score."];

/// Of the tensors `left` over by a decoder those that are not known to be harmless, in one
/// sentence. `reads_texts`: it makes vectors or labels, and no tokens.
pub(super) fn of_decoder(
    left: BTreeSet<&str>,
    config: &DecoderConfig,
    prefix: &str,
    reads_texts: bool,
) -> Option<String> {
    let head = config.names.head_under(prefix);
    let is_head = |name: &str| name.strip_prefix(head).is_some_and(|it| it.starts_with('.'));
    // Of one that reads images, too, all else is before other names.
    let is_part = reads_texts || prefix.contains("language_model.");
    told(left, |name| {
        (config.tied && is_head(name))
            || (is_part && !name.starts_with(prefix))
            || (reads_texts && begins(name, &OF_TASKS))
    })
}

/// The same of an encoder, whose names have this `prefix`: its pooler and what it was trained with
/// are harmless, and any head where it has none.
pub(super) fn of_encoder(left: BTreeSet<&str>, prefix: &str, has_head: bool) -> Option<String> {
    told(left, |name| {
        let inside = name.strip_prefix(prefix);
        inside.is_some_and(|it| it.starts_with("pooler."))
            || begins(name, &TRAINED_WITH)
            || (!has_head && (inside.is_none() || begins(name, &OF_TASKS)))
    })
}

fn begins(name: &str, ways: &[&str]) -> bool {
    ways.iter().any(|way| name.starts_with(way))
}

fn told(mut left: BTreeSet<&str>, is_harmless: impl Fn(&str) -> bool) -> Option<String> {
    left.retain(|name| !BUFFERS.iter().any(|end| name.ends_with(end)) && !is_harmless(name));
    let shown = |name: &&str| -> String { name.escape_debug().take(NAME_MAX).collect() };
    let mut names = left.iter().take(NAMED).map(shown).collect::<Vec<_>>().join(", ");
    match left.len() {
        0 => return None,
        count if count > NAMED => names.push_str(&format!(" and {} more", count - NAMED)),
        _ => {}
    }
    Some(format!(
        "its files have tensors that its configuration leaves no use for; its answers may be \
         wrong without them: {names}"
    ))
}
