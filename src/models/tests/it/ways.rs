//! The ways in which a sequence may be computed, each held to the reference.

use roundhouse_engine::{BlockId, ModelRunner, Row};
use roundhouse_models::{DeviceMemory, LoadSettings};

use crate::support::{LlamaCase, Prompt, apart, argmax, open_in, scattered, step, whole};

/// Positions per block.
const BLOCK: usize = 16;

/// How a case's prompts are computed.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    /// All in one step, instead of one after the other.
    together: bool,
    /// The most tokens of one sequence in a step.
    chunk: usize,
    /// Whether the prompt's whole blocks were computed by another sequence, and are used as they are.
    prefix: bool,
    /// After so many tokens of an answer all is forgotten, and computed again in other blocks.
    forgotten: usize,
}

const ALONE: Way =
    Way { name: "alone", together: false, chunk: usize::MAX, prefix: false, forgotten: usize::MAX };

/// All of them. Mixed is what the scheduler really sends: some decode while others are in their prompts.
pub(crate) const WAYS: [Way; 6] = [
    ALONE,
    Way { name: "batched", together: true, ..ALONE },
    Way { name: "chunked", chunk: 3, ..ALONE },
    Way { name: "mixed", together: true, chunk: 5, ..ALONE },
    Way { name: "prefix", together: true, prefix: true, ..ALONE },
    Way { name: "preempted", together: true, forgotten: 3, ..ALONE },
];

/// What came of one way.
#[derive(Default)]
pub(crate) struct Compared {
    /// The largest difference of logits after a prompt.
    pub(crate) logits: f32,
    pub(crate) tokens: usize,
    pub(crate) near_ties: usize,
}

impl Compared {
    /// As a table has it.
    pub(crate) fn cell(&self, of_reference: usize) -> String {
        match self.near_ties {
            0 => format!(" {}/{of_reference} |", self.tokens),
            1 => format!(" {}/{of_reference}, 1 near-tie |", self.tokens),
            ties => format!(" {}/{of_reference}, {ties} near-ties |", self.tokens),
        }
    }
}

/// One prompt on its way through steps.
struct Sequence<'a> {
    prompt: &'a Prompt,
    tokens: Vec<u32>,
    done: usize,
    blocks: Vec<BlockId>,
    /// Tokens since it was last forgotten.
    fresh: usize,
    left: bool,
}

impl<'a> Sequence<'a> {
    fn new(index: usize, prompt: &'a Prompt) -> Self {
        let (tokens, blocks) = (prompt.ids.clone(), scattered(index));
        Self { prompt, tokens, done: 0, blocks, fresh: 0, left: false }
    }

    fn runs(&self) -> bool {
        !self.left && self.tokens.len() < self.prompt.ids.len() + self.prompt.greedy.ids.len()
    }

    /// Lets another sequence compute the prompt's whole blocks, and has them for its own. The last
    /// token is computed in any case: of it logits are wanted.
    fn share(&mut self, runner: &mut dyn ModelRunner, other: usize) {
        let shared = (self.prompt.ids.len() - 1) / BLOCK;
        if shared > 0 {
            let blocks = scattered(other);
            self.blocks[..shared].copy_from_slice(&blocks[..shared]);
            let tokens = &self.prompt.ids[..shared * BLOCK];
            step(runner, vec![Row { blocks, output: false, ..whole(tokens) }]);
            self.done = shared * BLOCK;
        }
    }

    fn forget(&mut self, blocks: Vec<BlockId>) {
        (self.done, self.fresh, self.blocks) = (0, 0, blocks);
    }

    /// Its next tokens.
    fn next(&mut self, chunk: usize) -> Row {
        let until = self.tokens.len().min(self.done.saturating_add(chunk));
        let row = Row {
            position: self.done,
            blocks: self.blocks.clone(),
            output: until == self.tokens.len(),
            ..whole(&self.tokens[self.done..until])
        };
        self.done = until;
        row
    }

    /// Holds an output to the reference and goes on with its token.
    fn take(&mut self, (case, near_tie): (&str, f32), logits: &[f32], compared: &mut Compared) {
        let at = self.tokens.len() - self.prompt.ids.len();
        if at == 0 {
            compared.logits = compared.logits.max(apart(logits, &self.prompt.last_logits));
        }
        let (token, greedy) = (argmax(logits), &self.prompt.greedy);
        if token == greedy.ids[at] {
            compared.tokens += 1;
        } else {
            let margin = greedy.margins[at];
            assert!(margin < near_tie, "{case}: token {at} differs, the lead was {margin}");
            compared.near_ties += 1;
            self.left = true;
        }
        self.tokens.push(token);
        self.fresh += 1;
    }
}

/// Computes a case's prompts and their greedy answers in one way. A token may differ from the
/// reference's where its lead over the runner-up is below `near_tie`.
pub(crate) fn compare(
    (case, want): (&str, &LlamaCase),
    (settings, memory): (&LoadSettings, &DeviceMemory),
    way: Way,
    near_tie: f32,
) -> Compared {
    let mut runner = open_in(memory, case, settings).runner;
    let mut compared = Compared::default();
    let count = want.prompts.len();
    let sequence = |(index, prompt)| Sequence::new(index, prompt);
    let mut sequences: Vec<Sequence<'_>> = want.prompts.iter().enumerate().map(sequence).collect();
    if way.prefix {
        for (index, sequence) in sequences.iter_mut().enumerate() {
            sequence.share(&mut *runner, count + index);
        }
    }
    let all: Vec<usize> = (0..count).collect();
    let members: Vec<&[usize]> = if way.together { vec![&all] } else { all.chunks(1).collect() };
    for members in members {
        while members.iter().any(|index| sequences[*index].runs()) {
            let mut rows = Vec::new();
            let mut owners = Vec::new();
            for &index in members {
                let sequence = &mut sequences[index];
                if !sequence.runs() {
                    continue;
                }
                if sequence.fresh >= way.forgotten {
                    // Each has two places, in turns.
                    let place =
                        if sequence.blocks == scattered(index) { count + index } else { index };
                    sequence.forget(scattered(place));
                }
                let row = sequence.next(way.chunk);
                if row.output {
                    owners.push(index);
                }
                rows.push(row);
            }
            let outputs = step(&mut *runner, rows);
            assert_eq!(outputs.len(), owners.len());
            for (index, logits) in owners.into_iter().zip(outputs) {
                sequences[index].take((case, near_tie), &logits, &mut compared);
            }
        }
    }
    compared
}
