//! A step's rows laid end to end, after the plan was found sound.

use roundhouse_engine::{Row, RunnerError, RunnerSpec, StepPlan, Want};

use crate::attention::Span;

/// All rows' tokens as one list, and where each row lies in it.
#[derive(Debug)]
pub(crate) struct Packed<'a> {
    /// The tokens of all rows.
    pub(crate) tokens: Vec<u32>,
    /// Each row's place; blocks are those it needs and no more.
    pub(crate) spans: Vec<Span<'a>>,
    /// The places of rows that want an output, in order.
    pub(crate) outputs: Vec<Span<'a>>,
}

impl Span<'_> {
    /// Its rows of some `width` among all.
    pub(crate) fn of(self, rows: &[f32], width: usize) -> &[f32] {
        &rows[self.first * width..(self.first + self.tokens) * width]
    }

    /// The packed index of the span's last token.
    pub(crate) fn last_row(&self) -> u32 {
        u32::try_from(self.first + self.tokens - 1).expect("a step's tokens fit in 32 bits")
    }
}

impl<'a> Packed<'a> {
    /// Checks everything that a computation relies on.
    pub(crate) fn check(
        plan: &'a StepPlan,
        spec: &RunnerSpec,
        vocab: usize,
    ) -> Result<Self, RunnerError> {
        let total = plan.tokens();
        if total > spec.step_tokens || u32::try_from(total).is_err() {
            let limit = spec.step_tokens;
            return refuse(format!("{total} tokens in one step; its workspace is for {limit}"));
        }
        let mut packed = Self { tokens: Vec::with_capacity(total), spans: vec![], outputs: vec![] };
        for (index, row) in plan.rows.iter().enumerate() {
            let blocks = check_row(index, row, spec, vocab)?;
            let span = Span {
                first: packed.tokens.len(),
                tokens: row.tokens.len(),
                position: row.position,
                blocks: &row.blocks[..blocks],
            };
            packed.tokens.extend_from_slice(&row.tokens);
            packed.spans.push(span);
            if row.output {
                packed.outputs.push(span);
            }
        }
        Ok(packed)
    }

    /// The packed indices of the tokens whose vectors the rows of a decoder want, in their order, of
    /// those outputs that are `wanted`.
    pub(crate) fn places(&self, plan: &StepPlan, wanted: impl Fn(usize) -> bool) -> Vec<u32> {
        let wants = plan.rows.iter().filter(|row| row.output).map(|row| &row.want);
        let mut places = Vec::with_capacity(self.outputs.len());
        let outputs = self.outputs.iter().zip(wants).enumerate();
        for (_, (span, want)) in outputs.filter(|(output, _)| wanted(*output)) {
            let last = span.last_row();
            let first = last + 1 - u32::try_from(span.tokens).expect("it is below the last");
            match want {
                Want::Pooled => places.push(last),
                Want::Each => places.extend(first..=last),
                Want::At(chosen) => places.extend(chosen.iter().map(|place| first + *place as u32)),
            }
        }
        places
    }

    /// The position of each token.
    pub(crate) fn positions(&self) -> Vec<u32> {
        let of = |span: &Span<'_>| span.position as u32..(span.position + span.tokens) as u32;
        self.spans.iter().flat_map(of).collect()
    }
}

/// Checks one row and says how many blocks it needs.
fn check_row(
    index: usize,
    row: &Row,
    spec: &RunnerSpec,
    vocab: usize,
) -> Result<usize, RunnerError> {
    if row.tokens.is_empty() {
        return refuse(format!("row {index} has no tokens"));
    }
    if let Some(token) = row.tokens.iter().find(|token| **token as usize >= vocab) {
        return refuse(format!("row {index} has token {token}; the vocabulary has {vocab}"));
    }
    if let Want::At(places) = &row.want
        && let Some(place) = places.iter().find(|place| **place >= row.tokens.len())
    {
        return refuse(format!("row {index} has no token at place {place}"));
    }
    let end = row.position.saturating_add(row.tokens.len());
    if end > spec.context {
        let context = spec.context;
        return refuse(format!("row {index} ends at position {end}; the context is {context}"));
    }
    let Some(kv) = spec.kv else {
        if row.position != 0 || !row.blocks.is_empty() {
            return refuse(format!("row {index} continues a sequence; encoders take whole ones"));
        }
        return Ok(0);
    };
    let needed = end.div_ceil(kv.block_tokens);
    if row.blocks.len() < needed {
        let blocks = row.blocks.len();
        return refuse(format!("row {index} has {blocks} blocks and needs {needed}"));
    }
    if let Some(block) = row.blocks[..needed].iter().find(|block| block.0 as usize >= kv.blocks) {
        return refuse(format!("row {index} has block {}; the pool has {}", block.0, kv.blocks));
    }
    Ok(needed)
}

fn refuse<T>(reason: String) -> Result<T, RunnerError> {
    Err(RunnerError::Input(reason))
}
