//! Which engine of a lane runs next: weighted fair queueing over measured step time.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

/// Names one engine on its lane; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EngineId(pub(crate) u64);

/// Keeps each engine's virtual time: measured step time over weight. The one with the
/// least goes next, so over any busy stretch engines get device time by their weights,
/// however long their steps are. Owned by the lane's thread.
#[derive(Debug, Default)]
pub(crate) struct FairPicker {
    clocks: BTreeMap<EngineId, Clock>,
    /// Virtual time at which the step picked last began: where one that comes back from
    /// idling starts.
    now: u128,
}

#[derive(Debug)]
struct Clock {
    weight: NonZeroU32,
    virtual_time: u128,
    busy: bool,
}

/// Keeps the division by weights exact enough: virtual time counts 1/4096 ns.
const SCALE: u128 = 4096;

/// What an engine's weight counts that works for one tenant alone which works nowhere else.
pub(crate) const ONE: u64 = 1000;

impl FairPicker {
    /// Adds an engine, or lets it begin anew: at the present, with neither credit nor debt.
    pub(crate) fn add(&mut self, id: EngineId, weight: NonZeroU32) {
        self.clocks.insert(id, Clock { weight, virtual_time: self.now, busy: false });
    }

    /// Forgets an engine.
    pub(crate) fn remove(&mut self, id: EngineId) {
        self.clocks.remove(&id);
    }

    /// Picks among the engines that have work; `None` if none has.
    pub(crate) fn pick(&mut self, has_work: impl Fn(EngineId) -> bool) -> Option<EngineId> {
        for (id, clock) in &mut self.clocks {
            let busy = has_work(*id);
            if busy && !clock.busy {
                // Idling earns nothing: else a long idle engine would own the lane for as long.
                // But it goes before the next step of the one that ran meanwhile.
                clock.virtual_time = clock.virtual_time.max(self.now);
            }
            clock.busy = busy;
        }
        let (id, clock) = self
            .clocks
            .iter()
            .filter(|(_, clock)| clock.busy)
            .min_by_key(|(_, clock)| clock.virtual_time)?;
        self.now = self.now.max(clock.virtual_time);
        Some(*id)
    }

    /// Whether, at the last pick, another engine than this one had work.
    pub(crate) fn others_work(&self, id: EngineId) -> bool {
        self.clocks.iter().any(|(other, clock)| *other != id && clock.busy)
    }

    /// Charges a step to its engine, whose weight counts `tenants` thousandths this time: what
    /// those it works for may have.
    pub(crate) fn charge(&mut self, id: EngineId, elapsed: Duration, tenants: u64) {
        if let Some(clock) = self.clocks.get_mut(&id) {
            // A step below the clock's resolution still costs something, or it would be
            // picked for ever.
            let nanoseconds = elapsed.as_nanos().max(1);
            let weight = u128::from(clock.weight.get()) * u128::from(tenants.max(1));
            clock.virtual_time += nanoseconds * SCALE * u128::from(ONE) / weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: EngineId = EngineId(0);
    const B: EngineId = EngineId(1);
    const C: EngineId = EngineId(2);

    fn weight(weight: u32) -> NonZeroU32 {
        NonZeroU32::new(weight).unwrap()
    }

    /// Runs steps of the given lengths (ms, by engine) until `total` ms are used; returns each one's share.
    fn run(picker: &mut FairPicker, busy: &[(EngineId, u64)], total: u64) -> Vec<u64> {
        let mut used = vec![0; busy.len()];
        while used.iter().sum::<u64>() < total {
            let id = picker.pick(|id| busy.iter().any(|(b, _)| *b == id)).unwrap();
            let index = busy.iter().position(|(b, _)| *b == id).unwrap();
            picker.charge(id, Duration::from_millis(busy[index].1), ONE);
            used[index] += busy[index].1;
        }
        used
    }

    #[test]
    fn a_slow_engine_does_not_starve_a_fast_one() {
        let mut picker = FairPicker::default();
        picker.add(A, weight(1));
        picker.add(B, weight(1));
        let used = run(&mut picker, &[(A, 500), (B, 5)], 10_000);
        assert!(used[0].abs_diff(used[1]) <= 500, "{used:?}");
    }

    #[test]
    fn time_is_shared_by_weight() {
        let mut picker = FairPicker::default();
        picker.add(A, weight(3));
        picker.add(B, weight(1));
        let used = run(&mut picker, &[(A, 10), (B, 10)], 4_000);
        assert_eq!(used, [3_000, 1_000]);
    }

    #[test]
    fn idling_earns_no_credit() {
        let mut picker = FairPicker::default();
        picker.add(A, weight(1));
        picker.add(B, weight(1));
        run(&mut picker, &[(A, 10)], 60_000);
        let used = run(&mut picker, &[(A, 10), (B, 10)], 200);
        assert_eq!(used, [100, 100]);
    }

    #[test]
    fn an_engine_that_wakes_during_a_long_step_goes_next() {
        let mut picker = FairPicker::default();
        picker.add(A, weight(1));
        picker.add(B, weight(1));
        run(&mut picker, &[(A, 500)], 5_000);
        assert_eq!(picker.pick(|_| true), Some(B));
    }

    #[test]
    fn a_new_engine_starts_with_the_others() {
        let mut picker = FairPicker::default();
        picker.add(A, weight(1));
        run(&mut picker, &[(A, 10)], 60_000);
        picker.add(C, weight(1));
        let used = run(&mut picker, &[(A, 10), (C, 10)], 200);
        assert_eq!(used, [100, 100]);
    }

    #[test]
    fn steps_too_short_to_measure_take_turns() {
        let mut picker = FairPicker::default();
        picker.add(A, weight(1));
        picker.add(B, weight(1));
        let picks: Vec<_> = (0..4)
            .map(|_| {
                let id = picker.pick(|_| true).unwrap();
                picker.charge(id, Duration::ZERO, ONE);
                id
            })
            .collect();
        assert_eq!(picks, [A, B, A, B]);
    }

    #[test]
    fn without_work_nobody_is_picked() {
        let mut picker = FairPicker::default();
        picker.add(A, weight(1));
        assert_eq!(picker.pick(|_| false), None);
    }
}
