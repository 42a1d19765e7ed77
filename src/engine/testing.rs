//! A scripted runner for tests, here and in the crates above.
//!
//! [`EchoRunner`] has no weights: what it computes is a function of a sequence's tokens,
//! which it reads back from the KV slots it wrote them to. So a block that is shared, lost
//! or read too early changes the answer or fails the step, and batched, chunked and
//! preempted runs must agree with [`echo_logits`] to the bit.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, PoisonError};

use roundhouse_types::Bytes;

use crate::constraint::{Allowed, Constraint, Progress, Unmet};
use crate::plan::{
    AdapterId, HeadSpec, ModelRunner, Row, RunnerError, RunnerSpec, StepOutput, StepPlan, Want,
};

/// An adapter's weights for an [`EchoRunner`]: other numbers make other logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EchoAdapter(pub u64);

/// The same with a head of its own, which answers with the first of those numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EchoHead(pub EchoAdapter, pub HeadSpec);

/// The logits that follow `tokens`: spread over [-4, 4), different for every sequence.
pub fn echo_logits(tokens: &[u32], width: usize) -> Vec<f32> {
    echo_logits_with(None, tokens, width)
}

/// The same computed with an adapter: different for every one.
pub fn echo_logits_with(adapter: Option<EchoAdapter>, tokens: &[u32], width: usize) -> Vec<f32> {
    let start = tokens.len() as u64 ^ adapter.map_or(0, |EchoAdapter(number)| mix(number));
    let sequence = tokens.iter().fold(start, |hash, token| mix(hash ^ u64::from(*token)));
    (0..width as u64)
        .map(|id| {
            #[expect(clippy::cast_precision_loss, reason = "24 bits are exact in single precision")]
            let fraction = (mix(sequence ^ (id << 32)) >> 40) as f32 / (1_u32 << 24) as f32;
            fraction * 8.0 - 4.0
        })
        .collect()
}

/// What an encoder's logits are made of where a second text begins at `second`: all tokens, and one
/// between the texts that no vocabulary has.
pub fn echo_pair(tokens: &[u32], second: usize) -> Vec<u32> {
    let (first, second) = tokens.split_at(second);
    [first, &[u32::MAX], second].concat()
}

/// The tokens that follow `prompt` when the likeliest is chosen each time.
pub fn echo_tokens(prompt: &[u32], count: usize, width: usize) -> Vec<u32> {
    echo_tokens_with(None, prompt, count, width)
}

/// The same computed with an adapter.
pub fn echo_tokens_with(
    adapter: Option<EchoAdapter>,
    prompt: &[u32],
    count: usize,
    width: usize,
) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let logits = echo_logits_with(adapter, &tokens, width);
        let mut best = 0;
        for (id, logit) in logits.iter().enumerate() {
            if *logit > logits[best] {
                best = id;
            }
        }
        tokens.push(u32::try_from(best).expect("a test's vocabulary is small"));
    }
    tokens.split_off(prompt.len())
}

/// Splitmix64's finaliser: every bit of the input moves every bit of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What an [`EchoRunner`] has seen. It outlives the runner, which holds the only other
/// reference: a strong count of 1 means that the runner is gone.
#[derive(Debug, Default)]
pub struct EchoLog {
    forwards: AtomicUsize,
    most_rows: AtomicUsize,
    tokens: Mutex<HashSet<u32>>,
}

impl EchoLog {
    /// Forwards so far, the warm-up's included.
    pub fn forwards(&self) -> usize {
        self.forwards.load(Ordering::SeqCst)
    }

    /// Rows of the largest step so far.
    pub fn most_rows(&self) -> usize {
        self.most_rows.load(Ordering::SeqCst)
    }

    /// Whether `token` was in any step.
    pub fn saw(&self, token: u32) -> bool {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).contains(&token)
    }
}

/// Allows the token after the last one and the one after that, modulo the vocabulary; may end
/// after every third token and must after `length`. A token that it did not allow, or one that it
/// is shown twice, makes it fail.
#[derive(Debug)]
pub struct CountingConstraint {
    mask: Vec<u32>,
    width: u32,
    last: u32,
    accepted: usize,
    length: usize,
}

impl CountingConstraint {
    /// Begins after `first`.
    pub fn new(first: u32, width: u32, length: usize) -> Self {
        let mask = vec![0; width.div_ceil(u32::BITS) as usize];
        Self { mask, width, last: first, accepted: 0, length }
    }

    fn next(&self) -> [u32; 2] {
        [1, 2].map(|step| (self.last + step) % self.width)
    }
}

impl Constraint for CountingConstraint {
    fn allowed(&mut self) -> Result<Allowed<'_>, Unmet> {
        self.mask.fill(0);
        for token in self.next() {
            self.mask[(token / u32::BITS) as usize] |= 1 << (token % u32::BITS);
        }
        Ok(Allowed { tokens: &self.mask, may_end: self.accepted.is_multiple_of(3) })
    }

    fn accept(&mut self, token: u32) -> Result<Progress, Unmet> {
        if !self.next().contains(&token) {
            return Err(Unmet(format!("{token} does not follow {}", self.last)));
        }
        (self.last, self.accepted) = (token, self.accepted + 1);
        let complete = self.accepted == self.length;
        Ok(if complete { Progress::Complete } else { Progress::Open })
    }
}

/// Holds an [`EchoRunner`] inside its forward.
#[derive(Debug)]
pub struct Gate {
    /// Yields once for each forward that is held.
    pub entered: Receiver<()>,
    /// Lets one go on per item; dropped, it lets all go on.
    pub release: Sender<()>,
}

/// What to do about a step that carries a certain token.
#[derive(Debug)]
enum Reaction {
    Refuse,
    RunOut { rows: usize },
    FailDevice,
    Panic,
    Garble,
    Hold { entered: Sender<()>, release: Receiver<()> },
}

/// A runner whose output depends on the tokens alone; see the module's documentation.
#[derive(Debug)]
pub struct EchoRunner {
    spec: RunnerSpec,
    /// Position, token and what it was computed with by slot; `None` was never written.
    slots: Vec<Option<(usize, u32, Option<EchoAdapter>)>>,
    adapters: HashMap<AdapterId, Box<EchoAdapter>>,
    heads: HashMap<AdapterId, HeadSpec>,
    reactions: Vec<(u32, Reaction)>,
    log: Arc<EchoLog>,
}

impl EchoRunner {
    /// A runner of these shapes; an encoder where `spec.kv` is `None`.
    pub fn new(spec: RunnerSpec) -> Self {
        let slots = spec.kv.map_or(0, |kv| kv.blocks * kv.block_tokens);
        Self {
            spec,
            slots: vec![None; slots],
            adapters: HashMap::new(),
            heads: HashMap::new(),
            reactions: Vec::new(),
            log: Arc::default(),
        }
    }

    /// Its log, to keep.
    pub fn log(&self) -> Arc<EchoLog> {
        Arc::clone(&self.log)
    }

    /// Refuses steps that carry `token`.
    #[must_use]
    pub fn refusing(self, token: u32) -> Self {
        self.reacting(token, Reaction::Refuse)
    }

    /// Says at `token` that the device has no room, to plans of more rows than `rows`.
    #[must_use]
    pub fn cramped(self, token: u32, rows: usize) -> Self {
        self.reacting(token, Reaction::RunOut { rows })
    }

    /// Reports a device failure at `token`.
    #[must_use]
    pub fn failing(self, token: u32) -> Self {
        self.reacting(token, Reaction::FailDevice)
    }

    /// Panics at `token`.
    #[must_use]
    pub fn panicking(self, token: u32) -> Self {
        self.reacting(token, Reaction::Panic)
    }

    /// Puts a NaN in the output of rows that carry `token`.
    #[must_use]
    pub fn garbling(self, token: u32) -> Self {
        self.reacting(token, Reaction::Garble)
    }

    /// Holds steps that carry `token` at the gate.
    #[must_use]
    pub fn held_at(self, token: u32) -> (Self, Gate) {
        let (entered_sender, entered) = channel();
        let (release, release_receiver) = channel();
        let hold = Reaction::Hold { entered: entered_sender, release: release_receiver };
        (self.reacting(token, hold), Gate { entered, release })
    }

    fn reacting(mut self, token: u32, reaction: Reaction) -> Self {
        self.reactions.push((token, reaction));
        self
    }

    /// Acts on the script.
    fn react(&self, plan: &StepPlan) -> Result<(), RunnerError> {
        for (token, reaction) in &self.reactions {
            if !plan.rows.iter().any(|row| row.tokens.contains(token)) {
                continue;
            }
            match reaction {
                Reaction::Refuse => return Err(RunnerError::Input(format!("token {token}"))),
                Reaction::RunOut { rows } if plan.rows.len() > *rows => {
                    return Err(RunnerError::Room(format!("token {token}")));
                }
                Reaction::RunOut { .. } => {}
                Reaction::FailDevice => return Err(RunnerError::Device(format!("token {token}"))),
                Reaction::Panic => panic!("token {token}"),
                Reaction::Garble => {}
                Reaction::Hold { entered, release } => {
                    // Without anybody at the gate it stands open.
                    if entered.send(()).is_ok() {
                        let _ = release.recv();
                    }
                }
            }
        }
        Ok(())
    }

    fn garbles(&self, row: &Row) -> bool {
        self.reactions.iter().any(|(token, reaction)| {
            matches!(reaction, Reaction::Garble) && row.tokens.contains(token)
        })
    }

    /// Fails the device, loudly, for a plan that breaks the scheduler's promises.
    fn check(&self, plan: &StepPlan) -> Result<(), RunnerError> {
        let broken = |what: String| Err(RunnerError::Device(format!("plan broken: {what}")));
        if plan.rows.is_empty() || plan.tokens() > self.spec.step_tokens {
            return broken(format!("{} rows, {} tokens", plan.rows.len(), plan.tokens()));
        }
        let mut written = HashSet::new();
        let mut read = HashSet::new();
        for row in &plan.rows {
            let end = row.position + row.tokens.len();
            if row.tokens.is_empty() || end > self.spec.context {
                return broken(format!("a row ends at {end}"));
            }
            let Some(kv) = self.spec.kv else { continue };
            if row.blocks.len() != end.div_ceil(kv.block_tokens) {
                return broken(format!("{} blocks for {end} positions", row.blocks.len()));
            }
            let (before, from) = row.blocks.split_at(row.position / kv.block_tokens);
            read.extend(before);
            for block in from {
                if block.0 as usize >= kv.blocks || !written.insert(*block) {
                    return broken(format!("{block:?} is written by two or outside the pool"));
                }
            }
        }
        if let Some(block) = written.intersection(&read).next() {
            return broken(format!("{block:?} is written while another sequence reads it"));
        }
        Ok(())
    }

    /// The adapter that a row is computed with.
    fn adapter(&self, row: &Row) -> Result<Option<EchoAdapter>, RunnerError> {
        let Some(id) = row.adapter else { return Ok(None) };
        match self.adapters.get(&id) {
            Some(adapter) => Ok(Some(**adapter)),
            None => Err(RunnerError::Device(format!("plan broken: {id:?} is not attached"))),
        }
    }

    /// What a row wants: a token's vector is that of the sequence up to it.
    fn vectors(&self, row: &Row, adapter: Option<EchoAdapter>, sequence: &[u32]) -> Vec<f32> {
        let of = |tokens: usize| {
            let pair = row.second.filter(|second| *second <= tokens);
            let pair = pair.map(|second| echo_pair(&sequence[..tokens], second));
            let tokens = pair.as_deref().unwrap_or(&sequence[..tokens]);
            echo_logits_with(adapter, tokens, self.spec.output_width)
        };
        match &row.want {
            Want::Pooled => of(sequence.len()),
            Want::Each => (row.position + 1..=sequence.len()).flat_map(of).collect(),
            Want::At(places) => places.iter().flat_map(|place| of(place + 1)).collect(),
        }
    }

    /// Writes a row's tokens to its blocks and reads its whole sequence back.
    fn sequence(
        &mut self,
        row: &Row,
        adapter: Option<EchoAdapter>,
    ) -> Result<Vec<u32>, RunnerError> {
        let Some(kv) = self.spec.kv else {
            return Ok(row.tokens.clone());
        };
        let slot = |position: usize| {
            let block = row.blocks[position / kv.block_tokens].0 as usize;
            block * kv.block_tokens + position % kv.block_tokens
        };
        for (position, token) in (row.position..).zip(&row.tokens) {
            self.slots[slot(position)] = Some((position, *token, adapter));
        }
        (0..row.position + row.tokens.len())
            .map(|position| match self.slots[slot(position)] {
                Some((written, token, with)) if (written, with) == (position, adapter) => Ok(token),
                other => Err(RunnerError::Device(format!("position {position} reads {other:?}"))),
            })
            .collect()
    }
}

impl ModelRunner for EchoRunner {
    fn spec(&self) -> RunnerSpec {
        self.spec
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<StepOutput, RunnerError> {
        self.log.forwards.fetch_add(1, Ordering::SeqCst);
        self.log.most_rows.fetch_max(plan.rows.len(), Ordering::SeqCst);
        let tokens = plan.rows.iter().flat_map(|row| &row.tokens);
        self.log.tokens.lock().unwrap_or_else(PoisonError::into_inner).extend(tokens);
        self.check(plan)?;
        self.react(plan)?;
        let mut output = StepOutput::default();
        for row in &plan.rows {
            let adapter = self.adapter(row)?;
            let sequence = self.sequence(row, adapter)?;
            if row.output {
                let mut vectors = self.vectors(row, adapter, &sequence);
                if let Some(head) = row.adapter.and_then(|id| self.heads.get(&id)) {
                    vectors.truncate(head.width);
                }
                if self.garbles(row) {
                    vectors[0] = f32::NAN;
                }
                output.rows.push(vectors);
            }
        }
        Ok(output)
    }

    /// One byte for each slot that was written.
    fn touched(&self) -> Bytes {
        Bytes(self.slots.iter().flatten().count() as u64)
    }

    /// The chunk's slots were never written from now on.
    fn give_back(&mut self, chunk: usize) -> Option<Box<dyn Any + Send>> {
        let kv = self.spec.kv?;
        let slots = kv.chunk * kv.block_tokens;
        self.slots[chunk * slots..(chunk + 1) * slots].fill(None);
        Some(Box::new(chunk))
    }

    fn attach(
        &mut self,
        id: AdapterId,
        weights: Box<dyn Any + Send>,
    ) -> Result<Option<HeadSpec>, RunnerError> {
        let (adapter, head) = match weights.downcast::<EchoHead>() {
            Ok(headed) => (Box::new(headed.0), Some(headed.1)),
            Err(weights) => match weights.downcast::<EchoAdapter>() {
                Ok(adapter) => (adapter, None),
                Err(_) => return Err(RunnerError::Input("not an echo's adapter".to_owned())),
            },
        };
        self.adapters.insert(id, adapter);
        self.heads.extend(head.map(|head| (id, head)));
        Ok(head)
    }

    fn detach(&mut self, id: AdapterId) -> Option<Box<dyn Any + Send>> {
        self.heads.remove(&id);
        self.adapters.remove(&id).map(|adapter| adapter as Box<dyn Any + Send>)
    }
}
