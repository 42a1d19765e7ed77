//! What a submission must satisfy before it may wait: what can never run is refused at once.

use crate::error::Error;
use crate::plan::{HeadSpec, RunnerSpec, Want};
use crate::request::{EncodeSpec, GenerateSpec, Sampling};

/// Bytes of all vectors that one encoder call is answered with at most, and a step's at most: some
/// sixty tokens' logits over the largest vocabularies. They lie in memory until the last is there.
pub const RESULT_BYTES: usize = 64 << 20;

/// The longest sequence, prompt and completion together, that context and pool allow.
pub(crate) fn longest_sequence(spec: &RunnerSpec) -> usize {
    let pool = spec.kv.map_or(usize::MAX, |kv| kv.blocks.saturating_mul(kv.block_tokens));
    spec.context.min(pool)
}

/// Refuses a runner whose shapes leave nothing to serve; says why.
pub(crate) fn check_runner(spec: &RunnerSpec) -> Result<(), String> {
    if spec.output_width == 0 || spec.step_tokens == 0 || spec.context == 0 {
        return Err(format!("a shape of {spec:?} is zero"));
    }
    if u32::try_from(spec.kv.map_or(0, |kv| kv.blocks)).is_err() {
        return Err(format!("the KV pool of {spec:?} has more than 2^32 blocks"));
    }
    if let Some(kv) = spec.kv
        && (kv.chunk == 0
            || !kv.blocks.is_multiple_of(kv.chunk)
            || kv.floor > kv.chunks()
            || kv.floor_blocks() * kv.block_tokens < longest_sequence(spec))
    {
        return Err(format!("the chunks of the KV pool of {spec:?} do not hold what they have to"));
    }
    // A prompt of one token and one new one.
    if spec.kv.is_some_and(|kv| kv.block_tokens == 0)
        || (spec.kv.is_some() && longest_sequence(spec) < 2)
    {
        return Err(format!("the KV pool or context of {spec:?} holds no sequence of two tokens"));
    }
    Ok(())
}

/// Checks a sequence against the runner's shapes.
pub(crate) fn check_generate(request: &GenerateSpec, spec: &RunnerSpec) -> Result<(), Error> {
    if spec.kv.is_none() {
        return Err(Error::NotGenerative);
    }
    if request.prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let context = longest_sequence(spec);
    if request.prompt.len() >= context {
        return Err(Error::PromptTooLong {
            tokens: request.prompt.len(),
            most: context - 1,
            context,
        });
    }
    let within = |good: bool, name, value: String, range| {
        if good { Ok(()) } else { Err(Error::Parameter { name, value, range }) }
    };
    within(request.max_tokens > 0, "max_tokens", request.max_tokens.to_string(), "at least 1")?;
    let asked = [("logprobs", request.top_logprobs)].into_iter();
    for (name, top) in asked.chain(request.prompt_logprobs.map(|top| ("prompt_logprobs", top))) {
        let fits = top <= spec.output_width;
        within(fits, name, top.to_string(), "no more than the vocabulary")?;
    }
    if request.prompt_logprobs.is_some() {
        let strange = request.prompt.iter().find(|id| **id as usize >= spec.output_width);
        let value = strange.map(|id| format!("token {id}")).unwrap_or_default();
        within(strange.is_none(), "prompt", value, "tokens of the vocabulary, where it is scored")?;
    }
    for (id, bias) in &request.logit_bias {
        let known = usize::try_from(*id).is_ok_and(|id| id < spec.output_width);
        within(known, "logit_bias", format!("for token {id}"), "for tokens of the vocabulary")?;
        within(bias.is_finite(), "logit_bias", bias.to_string(), "a number")?;
    }
    check_sampling(&request.sampling)
}

fn check_sampling(sampling: &Sampling) -> Result<(), Error> {
    let finite = f32::MIN..=f32::MAX;
    let positive = f32::MIN_POSITIVE..=f32::MAX;
    let rules = [
        ("temperature", sampling.temperature, 0.0..=f32::MAX, "a number from 0 on"),
        ("top_p", sampling.top_p, f32::MIN_POSITIVE..=1.0, "above 0 and at most 1"),
        ("min_p", sampling.min_p, 0.0..=1.0, "between 0 and 1"),
        ("repetition_penalty", sampling.repetition_penalty, positive, "a number above 0"),
        ("presence_penalty", sampling.presence_penalty, finite.clone(), "a number"),
        ("frequency_penalty", sampling.frequency_penalty, finite, "a number"),
    ];
    for (name, value, allowed, range) in rules {
        if !allowed.contains(&value) {
            return Err(Error::Parameter { name, value: value.to_string(), range });
        }
    }
    Ok(())
}

/// Checks encoder inputs against the runner's shapes: each is one whole row of one step; or, where
/// sequences are kept, a sequence that an adapter's own head answers.
pub(crate) fn check_encode(
    inputs: &[EncodeSpec],
    spec: &RunnerSpec,
    head: Option<HeadSpec>,
) -> Result<(), Error> {
    let of_texts = || inputs.iter().all(|input| input.want == Want::Pooled);
    if spec.kv.is_some() && !(head.is_some() && of_texts()) {
        return Err(Error::NotEncoder);
    }
    let most = match spec.kv {
        Some(_) => longest_sequence(spec),
        None => spec.context.min(spec.step_tokens),
    };
    let mut bytes = 0usize;
    for (index, input) in inputs.iter().enumerate() {
        let tokens = input.tokens.len();
        if tokens == 0 {
            return Err(Error::EmptyInput { index });
        }
        if tokens > most {
            return Err(Error::InputTooLong { index, tokens, most });
        }
        let places = match &input.want {
            Want::At(places) => places.as_slice(),
            Want::Pooled | Want::Each => &[],
        };
        // A second text may be empty: it then begins behind the last token.
        let beyond = places.iter().find(|place| **place >= tokens);
        if let Some(place) = beyond.or(input.second.as_ref().filter(|second| **second > tokens)) {
            return Err(Error::NoSuchPlace { index, place: *place, tokens });
        }
        let vectors = input.want.vectors(tokens);
        bytes = bytes.saturating_add(answer_bytes(vectors, spec));
    }
    if bytes > RESULT_BYTES {
        return Err(Error::ResultTooLarge { bytes, most: RESULT_BYTES });
    }
    Ok(())
}

/// Bytes of so many vectors of a runner's.
pub(crate) fn answer_bytes(vectors: usize, spec: &RunnerSpec) -> usize {
    vectors.saturating_mul(spec.output_width).saturating_mul(size_of::<f32>())
}
