//! How much of which prompt a step reads.

use super::parts::Tenants;
use super::{Scheduler, Sequence, SequenceId, Step, add_chunk};
use crate::share::shares;

impl Scheduler {
    /// A row for each sequence that has more to compute than it decodes, or has just come.
    pub(super) fn plan_prompts(&self, step: &mut Step, room: usize, tenants: &Tenants) {
        let (readers, mut wants) = self.readers(&step.admitted);
        if tenants.is_limited() {
            self.cut(&readers, &mut wants, tenants);
        }
        for (sequence, chunk) in readers.into_iter().zip(shares(room, &wants)) {
            add_chunk(step, sequence, &self.pool, chunk);
        }
    }

    /// Sequences that read prompts or have just come, and what each still wants of the step.
    pub(super) fn readers(&self, admitted: &[SequenceId]) -> (Vec<&Sequence>, Vec<usize>) {
        let reads = |s: &&Sequence| s.remaining() > 1 || admitted.contains(&s.id);
        let readers: Vec<_> = self.running.iter().filter(reads).collect();
        // The workspace has room for so many vectors; each that runs may have one.
        let vectors = self.limits.running.min(self.limits.kv.blocks);
        let mut spare = vectors.saturating_sub(self.running.len());
        let mut wants = Vec::with_capacity(readers.len());
        for sequence in &readers {
            let mut chunk = sequence.remaining();
            if sequence.scored > 0 {
                chunk = chunk.min(spare + 1);
                spare -= chunk - 1;
            }
            wants.push(chunk);
        }
        (readers, wants)
    }

    /// Cuts what readers want to what is left of their tenants' tokens, which is split as all room is.
    /// A tenant's oldest prompt gets a token in any case.
    fn cut(&self, readers: &[&Sequence], wants: &mut [usize], tenants: &Tenants) {
        for (index, allowed) in tenants.allowed().enumerate() {
            let of_it: Vec<_> =
                (0..readers.len()).filter(|it| tenants.index(readers[*it]) == index).collect();
            let its: Vec<_> = of_it.iter().map(|it| wants[*it]).collect();
            for (it, most) in of_it.into_iter().zip(shares(allowed.max(1), &its)) {
                wants[it] = most;
            }
        }
    }
}
