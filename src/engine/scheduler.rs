//! Which tokens of which sequences run in the next step. Pure: no clock, no channel.

mod elastic;
mod parts;
mod prompts;
mod turn;
mod way;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use self::parts::{StepCost, Tenants};
pub(crate) use self::turn::{Promised, Turn};
use crate::account::{self, Account, DECODED};
use crate::kv::{BlockPool, Prefix, Root, root_of};
use crate::plan::{AdapterId, BlockId, KvSpec, Row, StepPlan, Want};

/// Names one sequence (or one encoder call) of an engine; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId(pub(crate) u64);

/// An adapter that sequences are computed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Adapter {
    pub(crate) id: AdapterId,
    /// What the names of its prefixes begin with: the same for all adapters of equal version.
    pub(crate) root: Root,
}

/// What bounds the scheduler.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) kv: KvSpec,
    /// Tokens in one step.
    pub(crate) step_tokens: usize,
    /// Sequences that hold blocks.
    pub(crate) running: usize,
    /// Whether KV of a prefix that was computed before is used again.
    pub(crate) reuse: bool,
}

/// What bounds the prompts of one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PromptLimit {
    /// Their tokens while nobody waits for the step's end.
    pub(crate) alone: usize,
    /// Their tokens while somebody does.
    pub(crate) beside: usize,
    /// Whether it is other engines that wait. Sequences that decode wait in any case.
    pub(crate) others_wait: bool,
}

impl PromptLimit {
    /// As many as the step holds.
    #[cfg(test)]
    pub(crate) const NONE: Self =
        Self { alone: usize::MAX, beside: usize::MAX, others_wait: false };
}

/// So many prompts are read side by side even if the step has no room for the last of them
/// yet, so that a short one need not wait until a few long ones are done; ...
const READERS: usize = 4;

/// ... as long as there is about this much room in the step for each.
const LEAST_CHUNK: usize = 16;

/// The sequences of one generative engine. Let in are those of the highest priority, among them
/// whose tenant had the least of the device by its share, among a tenant's the first that came;
/// among prompts that are read side by side, a short one may end before an older long one
/// ([`crate::share::shares`]). While several tenants have work, none has more of a step than leaves the others'
/// steps as short as their shares promise ([`Tenants`]).
///
/// 1. A block that is written belongs to one sequence; several may read one that is full.
/// 2. A step carries at most `step_tokens` tokens and one row per sequence.
/// 3. Running sequences are ordered by priority, then by age; of the lowest priority, the last of the
///    tenant that has most beyond its part gives way.
/// 4. While there is a sequence, a plan has a row: nobody waits on an idle device.
/// 5. A row's blocks cover its tokens.
/// 6. What one adapter's version computed, or the base alone, is never read by another's sequences.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    /// At most `limits.running`, hence at most `step_tokens`, so that each of them can decode in
    /// every step.
    running: Vec<Sequence>,
    /// By age but for those that had to give way, which are before the others.
    waiting: VecDeque<Sequence>,
    arrivals: u64,
    /// Nanoseconds of the device per token of the last step that read prompts.
    pace: u64,
    /// What steps take.
    cost: StepCost,
    /// Steps that were planned.
    steps: u64,
    /// The next in line had a place and no blocks.
    lacks_blocks: bool,
    /// Others need the pool's chunks: nobody is let in who would keep more than its floor from them.
    is_tight: bool,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    arrival: u64,
    turn: Turn,
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    /// How many of them have their KV in `blocks`.
    computed: usize,
    blocks: Vec<BlockId>,
    /// Names of the full blocks of `tokens`, as far as they were needed.
    names: Vec<Prefix>,
    /// What it is computed with beside the base.
    adapter: Option<AdapterId>,
    /// What `names` begin with.
    root: Root,
    /// The length of its prompt while all of it is to be scored, else 0.
    scored: usize,
    /// Whether nothing follows its prompt.
    is_whole: bool,
    /// The last step that it decoded in.
    stepped: u64,
    /// How often it gave its place or blocks to another tenant's.
    gave_way: u8,
}

/// One step and what making it changed.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) plan: StepPlan,
    /// Whose the plan's rows are, in their order.
    pub(crate) owners: Vec<SequenceId>,
    /// Who left the waiting queue, some for the second time.
    pub(crate) admitted: Vec<SequenceId>,
    /// Of each of those, how many tokens had their KV in the pool.
    pub(crate) found: Vec<usize>,
    /// How many went back to it.
    pub(crate) preempted: usize,
    /// Tokens of admitted sequences whose KV was there.
    pub(crate) reused: usize,
    /// Tokens of rows that compute the last sampled token alone.
    pub(crate) decoded: usize,
}

impl Sequence {
    fn remaining(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The tokens that it has blocks for from the beginning: one more than it has, where one follows.
    fn length(&self) -> usize {
        self.tokens.len() + usize::from(!self.is_whole)
    }

    /// Whether, of the two, the other gives way.
    fn precedes(&self, other: &Self) -> bool {
        (Reverse(self.turn.class), self.arrival) < (Reverse(other.turn.class), other.arrival)
    }
}

impl Scheduler {
    /// A scheduler over a whole free pool.
    pub(crate) fn new(limits: Limits) -> Self {
        let running = limits.running.min(limits.step_tokens);
        Self {
            limits: Limits { running, ..limits },
            pool: BlockPool::new(limits.kv),
            running: Vec::new(),
            waiting: VecDeque::new(),
            arrivals: 0,
            pace: 0,
            cost: StepCost::default(),
            steps: 0,
            lacks_blocks: false,
            is_tight: false,
        }
    }

    /// Queues a sequence of the base alone.
    #[cfg(test)]
    pub(crate) fn submit(&mut self, id: SequenceId, prompt: Vec<u32>) {
        self.submit_with(id, prompt, None, Turn::new(Account::idle(), 0));
    }

    /// Queues a sequence. It and one token more must fit the pool, at every length it will
    /// reach: the caller ends it before. What [ends with its prompt](Self::ends_with_prompt) needs
    /// no room for another.
    pub(crate) fn submit_with(
        &mut self,
        id: SequenceId,
        prompt: Vec<u32>,
        adapter: Option<Adapter>,
        turn: Turn,
    ) {
        debug_assert!(
            !prompt.is_empty() && self.pool.needed(prompt.len()) <= self.limits.kv.blocks
        );
        let arrival = self.arrivals;
        self.arrivals += 1;
        let (blocks, names) = (Vec::new(), Vec::new());
        let root = adapter.map_or(Root::default(), |adapter| adapter.root);
        let root = turn.prefixes_of.as_ref().map_or(root, |tenant| root_of(&root, tenant));
        let adapter = adapter.map(|adapter| adapter.id);
        self.waiting.push_back(Sequence {
            id,
            arrival,
            turn,
            tokens: prompt,
            computed: 0,
            blocks,
            names,
            adapter,
            root,
            scored: 0,
            is_whole: false,
            stepped: 0,
            gave_way: 0,
        });
    }

    /// The prompt of one that was just queued is to be scored: it is computed whole, with logits for
    /// each token.
    pub(crate) fn score(&mut self, id: SequenceId) {
        if let Some(sequence) = self.waiting.iter_mut().rfind(|s| s.id == id) {
            sequence.scored = sequence.tokens.len();
        }
    }

    /// Nothing will follow the prompt of one that was just queued.
    pub(crate) fn ends_with_prompt(&mut self, id: SequenceId) {
        if let Some(sequence) = self.waiting.iter_mut().rfind(|s| s.id == id) {
            sequence.is_whole = true;
        }
    }

    /// Whether all tokens of a running sequence are computed.
    pub(crate) fn is_computed(&self, id: SequenceId) -> bool {
        self.running.iter().any(|s| s.id == id && s.remaining() == 0)
    }

    /// Takes a sequence out and its blocks back; false if there is none.
    pub(crate) fn remove(&mut self, id: SequenceId) -> bool {
        if let Some(index) = self.running.iter().position(|s| s.id == id) {
            let mut sequence = self.running.remove(index);
            self.pool.release(&mut sequence.blocks);
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|s| s.id != id);
        self.waiting.len() < before
    }

    /// The KV of the next `tokens` tokens of a running sequence has been written.
    pub(crate) fn computed(&mut self, id: SequenceId, tokens: usize) {
        if let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) {
            let before = sequence.computed / self.limits.kv.block_tokens;
            sequence.computed += tokens;
            debug_assert!(sequence.computed <= sequence.tokens.len());
            if sequence.computed >= sequence.scored {
                sequence.scored = 0;
            }
            if self.limits.reuse {
                let Sequence { tokens, computed, blocks, names, root, .. } = sequence;
                self.pool.name(root, &tokens[..*computed], names);
                let full = *computed / self.limits.kv.block_tokens;
                for (id, name) in blocks.iter().zip(names).take(full).skip(before) {
                    self.pool.filled(*id, *name);
                }
            }
        }
    }

    /// Appends a sampled token to a running sequence.
    pub(crate) fn append(&mut self, id: SequenceId, token: u32) {
        if let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) {
            debug_assert_eq!(sequence.remaining(), 0, "sampled before all was computed");
            sequence.tokens.push(token);
        }
    }

    /// Sequences that hold blocks.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Blocks in use.
    pub(crate) fn blocks(&self) -> usize {
        self.pool.used()
    }

    /// A step's time goes to those whose rows it had, by what each row counts.
    pub(crate) fn charge(
        &mut self,
        owners: &[SequenceId],
        counts: impl Iterator<Item = u64>,
        elapsed: Duration,
    ) {
        let of = |id: &SequenceId| self.running.iter().find(|s| s.id == *id);
        let rows: Vec<_> = owners
            .iter()
            .zip(counts)
            .filter_map(|(id, count)| Some((&of(id)?.turn, count)))
            .collect();
        account::split(elapsed, &rows);
        if rows.iter().any(|(_, count)| *count > DECODED) {
            let tokens: u128 = rows.iter().map(|(_, count)| u128::from(*count)).sum();
            self.pace = u64::try_from(elapsed.as_nanos() / tokens).unwrap_or(u64::MAX);
        }
    }

    /// A step of so many tokens took so long.
    pub(crate) fn measured(&mut self, tokens: usize, elapsed: Duration) {
        self.cost.measured(tokens, elapsed);
    }

    /// Adds those whose sequences it has.
    pub(crate) fn accounts(&self, known: &mut Vec<Arc<Account>>) {
        for sequence in self.running.iter().chain(&self.waiting) {
            account::add(known, &sequence.turn.account);
        }
    }

    /// Plans the next step: who decodes, who is let in, who gets how much of a prompt read.
    pub(crate) fn plan(&mut self, limit: PromptLimit) -> Step {
        let mut step = Step::default();
        let decodes = self.running.iter().any(|s| s.remaining() == 1);
        let most = match decodes || limit.others_wait {
            true => limit.beside,
            false => limit.alone,
        };
        let most = most.clamp(1, self.limits.step_tokens);
        let mut tenants = Tenants::of(&self.running, self.waiting.iter(), most, &self.cost);
        self.make_way(&mut tenants, &mut step);
        let ran_out = self.plan_decodes(&mut step, &mut tenants);
        let room = (self.limits.step_tokens - step.decoded).min(most);
        // Blocks that a preemption freed belong to those who grow, not to the next in line.
        if !ran_out || self.running.is_empty() {
            self.admit(&mut step, room, &tenants);
        }
        self.plan_prompts(&mut step, room, &tenants);
        self.check(&step);
        step
    }

    /// Lets sequences in, by turns, while the prompts' `room`, places and blocks last. The
    /// blocks of all its tokens and one more are taken at once, so that two half-read prompts
    /// cannot starve each other.
    fn admit(&mut self, step: &mut Step, room: usize, tenants: &Tenants) {
        let mut promised = Promised::default();
        self.lacks_blocks = false;
        while self.running.len() < self.limits.running
            && has_room(room, &self.readers(&step.admitted).1)
        {
            let Some(next) = self.next(&promised, tenants) else {
                return;
            };
            let sequence = &mut self.waiting[next];
            if self.limits.reuse && sequence.scored == 0 {
                // Its last token is computed in any case: somebody waits for what follows it.
                let Sequence { tokens, names, root, .. } = sequence;
                self.pool.name(root, &tokens[..tokens.len() - 1], names);
                self.pool.find(&sequence.names, &mut sequence.blocks);
                // A reader whose tenant has had its part of the step may be slow.
                if !tenants.is_limited() && self.waits_for_prefix(next) {
                    return;
                }
            }
            let is_beyond = self.is_beyond_floor(next);
            let sequence = &mut self.waiting[next];
            let found = sequence.blocks.len() * self.limits.kv.block_tokens;
            let length = sequence.length();
            if is_beyond || !self.pool.extend(&mut sequence.blocks, length) {
                self.pool.release(&mut sequence.blocks);
                self.lacks_blocks = !is_beyond;
                return;
            }
            sequence.computed = found;
            step.reused += found;
            let Some(sequence) = self.waiting.remove(next) else { return };
            step.admitted.push(sequence.id);
            step.found.push(found);
            promised.add(&sequence.turn, self.pace.saturating_mul(sequence.remaining() as u64));
            self.let_in(sequence);
        }
    }

    /// Whose turn it is, as an index of those that wait. Of tenants that had as much, it is whose
    /// has fewest places: one that comes back begins where the others are.
    fn next(&self, promised: &Promised, tenants: &Tenants) -> Option<usize> {
        let rank = |waiting: &Sequence| (waiting.turn.rank(promised), tenants.places(waiting));
        (0..self.waiting.len()).min_by_key(|index| rank(&self.waiting[*index]))
    }

    /// Puts a sequence in its place among the running.
    fn let_in(&mut self, sequence: Sequence) {
        for other in &mut self.waiting {
            other.turn.passed_by(sequence.turn.class);
        }
        let place = self.running.partition_point(|other| other.precedes(&sequence));
        self.running.insert(place, sequence);
    }

    /// Whether the next in line, which holds what was found of its prefix, lets go of it again
    /// because a running sequence is about to compute more: so several answers to one prompt
    /// read it once. Only while all others in line want the same: nobody waits for a prefix that
    /// is not his.
    fn waits_for_prefix(&mut self, next: usize) -> bool {
        let found = self.waiting[next].blocks.len();
        let Some(wanted) = self.waiting[next].names.get(found).copied() else {
            return false;
        };
        let wants_it = |other: &mut Sequence| {
            let before_last = other.tokens.len() - 1;
            let Sequence { tokens, names, root, .. } = other;
            self.pool.name(root, &tokens[..before_last], names);
            other.names.get(found) == Some(&wanted)
        };
        let waits =
            being_computed(&self.running, found, wanted) && self.waiting.iter_mut().all(wants_it);
        if waits {
            self.pool.release(&mut self.waiting[next].blocks);
        }
        waits
    }

    fn check(&self, step: &Step) {
        debug_assert!(step.plan.tokens() <= self.limits.step_tokens, "2");
        debug_assert!(self.running.is_sorted_by(Sequence::precedes), "3");
        debug_assert!(
            !step.plan.rows.is_empty() || self.running.len() + self.waiting.len() == 0,
            "4"
        );
    }
}

/// Whether a step with so much room for prompts takes one more beside those that want so much.
fn has_room(room: usize, wants: &[usize]) -> bool {
    let Some((oldest, others)) = wants.split_first() else {
        return room > 0;
    };
    let is_left = others.iter().sum::<usize>() < room - room.div_ceil(2).min(*oldest);
    is_left || (wants.len() < READERS && (wants.len() + 1) * LEAST_CHUNK <= room)
}

/// Whether a running sequence is about to compute the block that a prefix lacks after `found`
/// of them.
fn being_computed(running: &[Sequence], found: usize, wanted: Prefix) -> bool {
    running.iter().any(|s| s.remaining() > 1 && s.names.get(found) == Some(&wanted))
}

/// Adds the next `chunk` tokens of a sequence to a step.
fn add_chunk(step: &mut Step, sequence: &Sequence, pool: &BlockPool, chunk: usize) {
    if chunk == 0 {
        return;
    }
    let end = sequence.computed + chunk;
    let want = if sequence.scored > 0 { Want::Each } else { Want::Pooled };
    step.plan.rows.push(Row {
        tokens: sequence.tokens[sequence.computed..end].to_vec(),
        position: sequence.computed,
        blocks: sequence.blocks[..pool.needed(end)].to_vec(),
        adapter: sequence.adapter,
        output: end == sequence.tokens.len() || want == Want::Each,
        want,
        ..Row::default()
    });
    step.owners.push(sequence.id);
}

#[cfg(test)]
mod tests;
