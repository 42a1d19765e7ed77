//! Decoders of every family against transformers: `cargo test -p roundhouse-models --test it
//! parity -- --nocapture` prints the table.
//!
//! Logits may differ by 2e-3. Greedy tokens are identical, but where the reference's own two
//! best logits are less than 1e-3 apart, which kernel computes them decides; such near-ties are
//! counted, and a sequence is followed no further.

use roundhouse_engine::ModelRunner;

use crate::support::{
    LlamaCase, Prompt, apart, argmax, decoders, expected, open, row, served, step,
};

pub(crate) const LOGITS: f32 = 2e-3;
const NEAR_TIE: f32 = 1e-3;

/// How a case's prompts are computed.
#[derive(Clone, Copy)]
struct Way {
    /// All in one step, instead of one after the other.
    together: bool,
    /// The most tokens of one sequence in a step.
    chunk: usize,
}

const ALONE: Way = Way { together: false, chunk: usize::MAX };
const BATCHED: Way = Way { together: true, chunk: usize::MAX };
const CHUNKED: Way = Way { together: false, chunk: 3 };
/// What the scheduler really sends: some decode while others are in their prompts.
const MIXED: Way = Way { together: true, chunk: 5 };

/// What came of one way.
#[derive(Default)]
struct Compared {
    /// The largest difference of logits after a prompt.
    logits: f32,
    tokens: usize,
    near_ties: usize,
}

/// One prompt on its way through steps.
struct Sequence<'a> {
    prompt: &'a Prompt,
    tokens: Vec<u32>,
    done: usize,
    left: bool,
}

impl<'a> Sequence<'a> {
    fn new(prompt: &'a Prompt) -> Self {
        Self { prompt, tokens: prompt.ids.clone(), done: 0, left: false }
    }

    fn runs(&self) -> bool {
        !self.left && self.tokens.len() < self.prompt.ids.len() + self.prompt.greedy.ids.len()
    }

    /// Holds an output to the reference and goes on with its token.
    fn take(&mut self, case: &str, logits: &[f32], compared: &mut Compared) {
        let at = self.tokens.len() - self.prompt.ids.len();
        if at == 0 {
            compared.logits = compared.logits.max(apart(logits, &self.prompt.last_logits));
        }
        let (token, greedy) = (argmax(logits), &self.prompt.greedy);
        if token == greedy.ids[at] {
            compared.tokens += 1;
        } else {
            let margin = greedy.margins[at];
            assert!(margin < NEAR_TIE, "{case}: token {at} differs, the lead was {margin}");
            compared.near_ties += 1;
            self.left = true;
        }
        self.tokens.push(token);
    }
}

fn compare(case: &str, want: &LlamaCase, way: Way) -> Compared {
    let mut runner = open(case, &served(want)).runner;
    let mut compared = Compared::default();
    let mut sequences: Vec<Sequence<'_>> = want.prompts.iter().map(Sequence::new).collect();
    if way.together {
        let all: Vec<usize> = (0..sequences.len()).collect();
        run(case, &mut *runner, &mut sequences, (&all, way.chunk), &mut compared);
    } else {
        for index in 0..sequences.len() {
            run(case, &mut *runner, &mut sequences, (&[index], way.chunk), &mut compared);
        }
    }
    compared
}

/// Runs some of the sequences to their ends, all in each step.
fn run(
    case: &str,
    runner: &mut dyn ModelRunner,
    sequences: &mut [Sequence<'_>],
    (members, chunk): (&[usize], usize),
    compared: &mut Compared,
) {
    while members.iter().any(|index| sequences[*index].runs()) {
        let mut rows = Vec::new();
        let mut owners = Vec::new();
        for &index in members {
            let sequence = &mut sequences[index];
            if !sequence.runs() {
                continue;
            }
            let until = sequence.tokens.len().min(sequence.done.saturating_add(chunk));
            let mut row = row(index, sequence.done, &sequence.tokens[sequence.done..until]);
            row.output = until == sequence.tokens.len();
            sequence.done = until;
            if row.output {
                owners.push(index);
            }
            rows.push(row);
        }
        let outputs = step(runner, rows);
        assert_eq!(outputs.len(), owners.len());
        for (index, logits) in owners.into_iter().zip(outputs) {
            sequences[index].take(case, &logits, compared);
        }
    }
}

/// The largest difference over all positions of one prompt, token by token.
fn every_position(case: &str, want: &LlamaCase) -> f32 {
    let mut runner = open(case, &served(want)).runner;
    let ids = &want.prompts[want.every_position.prompt].ids;
    let mut worst = 0.0f32;
    for (position, logits) in want.every_position.logits.iter().enumerate() {
        let got = step(&mut *runner, vec![row(3, position, &ids[position..=position])]);
        worst = worst.max(apart(&got[0], logits));
    }
    worst
}

/// Each way's greedy tokens, its near-ties if there are any, and the logits of all.
#[test]
fn parity_of_every_family_alone_in_company_and_in_chunks() {
    let ways = [("alone", ALONE), ("batched", BATCHED), ("chunked", CHUNKED), ("mixed", MIXED)];
    let mut table = String::from("| case | logits |");
    ways.iter().for_each(|(name, _)| table += &format!(" {name} |"));
    table += "\n|---|---|---|---|---|---|\n";
    let (mut tokens, mut near_ties) = (0, 0);
    for case in decoders() {
        let want: LlamaCase = expected(&case);
        let of_reference: usize = want.prompts.iter().map(|prompt| prompt.greedy.ids.len()).sum();
        let mut logits = every_position(&case, &want);
        let mut cells = String::new();
        for (name, way) in ways {
            let compared = compare(&case, &want, way);
            let Compared { logits: difference, tokens: same, near_ties: ties } = compared;
            assert!(difference <= LOGITS, "{case}, {name}: {difference}");
            assert!(same == of_reference || ties > 0, "{case}, {name}: {same} tokens");
            logits = logits.max(difference);
            tokens += same;
            near_ties += ties;
            cells += &match ties {
                0 => format!(" {same}/{of_reference} |"),
                _ => format!(" {same}/{of_reference}, {ties} near-tie |"),
            };
        }
        assert!(logits <= LOGITS, "{case}: {logits}");
        table += &format!("| {case} | {logits:.1e} |{cells}\n");
    }
    println!("{table}\n{tokens} tokens equal the reference's, {near_ties} near-ties");
    assert!(near_ties * 1000 <= tokens, "{near_ties} near-ties in {tokens} tokens");
}
