//! Who decodes in a step, and who gives way where places or blocks do not suffice.

use super::parts::{Tenant, Tenants};
use super::{Promised, Scheduler, Sequence, Step, add_chunk};

/// A sequence gives way to other tenants so often; then it keeps what it has, so that whoever has
/// long ones gets on, however many others come and go.
const MOST_OFTEN: u8 = 4;

impl Scheduler {
    /// Lets a sequence of the tenant that has most beyond its part give its place or blocks to the
    /// next in line, if that one's tenant has less than its own. It goes on later. Nobody who has
    /// no more than its part is asked, so that two tenants cannot take turns at it.
    pub(super) fn make_way(&mut self, tenants: &mut Tenants, step: &mut Step) {
        let lacks_place = self.running.len() >= self.limits.running;
        if !tenants.are_several() || !(lacks_place || self.lacks_blocks) {
            return;
        }
        let Some(next) = self.next(&Promised::default(), tenants) else {
            return;
        };
        let next = &self.waiting[next];
        let (whole, has): (usize, fn(&Tenant) -> usize) = match lacks_place {
            true => (self.limits.running, |tenant| tenant.places),
            false => (self.pool.open_blocks(), |tenant| tenant.blocks),
        };
        let needed = match lacks_place {
            true => 1,
            false => self.pool.needed(next.length()),
        };
        // Blocks that came free since then do as well.
        let is_missing = lacks_place || needed > self.pool.available();
        if !is_missing || !tenants.deserves(next, needed, whole, has) {
            return;
        }
        // Whoever gives way is not let in again before the one that it was for.
        let rank = next.turn.rank(&Promised::default());
        let gives = |s: &Sequence| s.turn.rank(&Promised::default()) >= rank;
        let may = |s: &Sequence| gives(s) && s.gave_way < MOST_OFTEN;
        if let Some(index) = self.most_beyond(tenants, whole, has, may) {
            self.running[index].gave_way += 1;
            self.preempt(index, tenants, step);
        }
    }

    /// One row for each sequence that has one token to compute, as far as its tenant's tokens go;
    /// then by turns. It is here that blocks run out; says whether they did.
    pub(super) fn plan_decodes(&mut self, step: &mut Step, tenants: &mut Tenants) -> bool {
        let mut ran_out = false;
        // Where all that had their turn gave way, it is the others'.
        while !self.extend_decodes(step, tenants) {
            ran_out = true;
            let rows = self.running.iter().any(|s| self.decodes(s));
            if rows || !self.running.iter().any(|s| s.remaining() == 1) {
                break;
            }
        }
        for sequence in self.running.iter().filter(|s| self.decodes(s)) {
            add_chunk(step, sequence, &self.pool, 1);
            step.decoded += 1;
            let tenant = tenants.of_it(sequence);
            tenant.allowed = tenant.allowed.saturating_sub(1);
        }
        ran_out
    }

    /// Whether it decodes in the step that is planned.
    fn decodes(&self, sequence: &Sequence) -> bool {
        sequence.remaining() == 1 && sequence.stepped == self.steps
    }

    /// Chooses who decodes and gets them their blocks; says whether there were enough.
    fn extend_decodes(&mut self, step: &mut Step, tenants: &mut Tenants) -> bool {
        self.choose(tenants);
        let (mut index, mut sufficed) = (0, true);
        while index < self.running.len() {
            let is_one = self.decodes(&self.running[index]);
            let sequence = &mut self.running[index];
            if !is_one || self.pool.extend(&mut sequence.blocks, sequence.tokens.len()) {
                index += 1;
                continue;
            }
            sufficed = false;
            let victim = self.gives_way(tenants);
            self.running[victim].gave_way = self.running[victim].gave_way.saturating_add(1);
            self.preempt(victim, tenants, step);
            if victim < index {
                index -= 1;
            }
        }
        sufficed
    }

    /// Those who decode in this step: all, or of each tenant as many as it has tokens, the ones that
    /// waited longest.
    fn choose(&mut self, tenants: &Tenants) {
        self.steps += 1;
        let mut chosen: Vec<_> =
            (0..self.running.len()).filter(|it| self.running[*it].remaining() == 1).collect();
        if tenants.is_limited() {
            // Half of a tenant's tokens are its prompts', so that those get on too.
            let mut left: Vec<_> = tenants.of_decodes().collect();
            chosen.sort_by_key(|it| self.running[*it].stepped);
            chosen.retain(|it| {
                let left = &mut left[tenants.index(&self.running[*it])];
                let is_within = *left > 0;
                *left = left.saturating_sub(1);
                is_within
            });
        }
        for index in chosen {
            self.running[index].stepped = self.steps;
        }
    }

    /// Who gives way for one that runs and has no block: of the lowest priority, the last of
    /// the tenant that has most beyond its part of the pool; the last of all where nobody has, or
    /// gave way too often for that.
    fn gives_way(&self, tenants: &Tenants) -> usize {
        let last = self.running.len() - 1;
        let class = self.running[last].turn.class;
        let lowest = |s: &Sequence| s.turn.class == class && s.gave_way < MOST_OFTEN;
        let most = self.most_beyond(tenants, self.pool.open_blocks(), |it| it.blocks, lowest);
        most.unwrap_or(last)
    }

    /// The last running sequence of the tenant that has most beyond its part of `whole`, among those
    /// that may be asked; `None` where nobody has.
    fn most_beyond(
        &self,
        tenants: &Tenants,
        whole: usize,
        has: fn(&Tenant) -> usize,
        may: impl Fn(&Sequence) -> bool,
    ) -> Option<usize> {
        if !tenants.are_several() {
            return None;
        }
        let excess = |index: usize| tenants.excess(&self.running[index], whole, has);
        (0..self.running.len())
            .filter(|index| may(&self.running[*index]) && excess(*index) > 0.0)
            .max_by(|a, b| excess(*a).total_cmp(&excess(*b)))
    }

    /// Sends a running sequence back, to be computed again from its tokens. No row of it is planned
    /// yet.
    fn preempt(&mut self, index: usize, tenants: &mut Tenants, step: &mut Step) {
        let mut sequence = self.running.remove(index);
        debug_assert!(!step.owners.contains(&sequence.id));
        let tenant = tenants.of_it(&sequence);
        tenant.places -= 1;
        tenant.blocks -= sequence.blocks.len().min(tenant.blocks);
        self.pool.release(&mut sequence.blocks);
        sequence.computed = 0;
        self.waiting.push_front(sequence);
        step.preempted += 1;
    }
}
