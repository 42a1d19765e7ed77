//! Whose turn it is: as many renderings at a time as there are processes, fair among tenants.
//!
//! 1. No more turns are given than there are places, and where there are several no tenant has all of
//!    them: nobody waits for the templates of one other tenant.
//! 2. Who waits is let in by turns of tenants, and of one tenant in the order of arrival.
//! 3. Nobody waits while there is a place that is not kept from its tenant by 1.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roundhouse_types::TenantName;
use tokio::sync::oneshot;

/// Whose; nobody's where nobody is asked who they are.
pub(super) type Who = Option<TenantName>;

/// Who has a turn and who waits. `T`: how one that waits is told.
#[derive(Debug)]
struct Line<T> {
    free: usize,
    /// Turns of one tenant at most.
    each: usize,
    held: HashMap<Who, usize>,
    /// Tenants that wait, by turns; none without anybody.
    waiting: VecDeque<(Who, VecDeque<T>)>,
    /// Whether one that waited is gone.
    is_gone: fn(&T) -> bool,
}

impl<T> Line<T> {
    fn new(places: usize, is_gone: fn(&T) -> bool) -> Self {
        let each = places.saturating_sub(1).max(1);
        let (held, waiting) = (HashMap::new(), VecDeque::new());
        Self { free: places.max(1), each, held, waiting, is_gone }
    }

    /// Takes a turn, or leaves word of where it is waited for.
    fn ask(&mut self, who: &Who, waits: impl FnOnce() -> T) -> bool {
        if self.free > 0 && self.has_room(who) {
            self.take(who);
            return true;
        }
        // Who waits no more takes no room: as many are left as requests are under way.
        self.waiting.retain_mut(|(_, line)| {
            line.retain(|told| !(self.is_gone)(told));
            !line.is_empty()
        });
        match self.waiting.iter_mut().find(|(waiting, _)| waiting == who) {
            Some((_, line)) => line.push_back(waits()),
            None => self.waiting.push_back((who.clone(), [waits()].into())),
        }
        false
    }

    /// A turn has ended; who has the next.
    fn done(&mut self, who: &Who) -> Option<(Who, T)> {
        self.free += 1;
        if let Some(held) = self.held.get_mut(who) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(who);
            }
        }
        let at = self.waiting.iter().position(|(waiting, _)| self.has_room(waiting))?;
        let (next, mut line) = self.waiting.remove(at)?;
        let told = line.pop_front()?;
        self.take(&next);
        if !line.is_empty() {
            self.waiting.push_back((next.clone(), line));
        }
        Some((next, told))
    }

    fn has_room(&self, who: &Who) -> bool {
        self.held.get(who).is_none_or(|held| *held < self.each)
    }

    fn take(&mut self, who: &Who) {
        self.free -= 1;
        *self.held.entry(who.clone()).or_default() += 1;
    }
}

/// Gives turns. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Turns(Arc<Mutex<Line<oneshot::Sender<Turn>>>>);

/// A turn; dropped, it is the next one's.
#[derive(Debug)]
pub(super) struct Turn {
    /// Taken where nobody is to be let in after it.
    of: Option<(Turns, Who)>,
}

impl Turns {
    /// So many at a time.
    pub(super) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(Line::new(places, oneshot::Sender::is_closed))))
    }

    /// Whether nobody has a turn.
    pub(super) fn are_all_free(&self) -> bool {
        self.line().held.is_empty()
    }

    /// Waits for a turn; dropped, it waits no more.
    pub(super) async fn wait(&self, who: Who) -> Turn {
        let mut told = None;
        let waits = || {
            let (tell, waiting) = oneshot::channel();
            told = Some(waiting);
            tell
        };
        self.line().ask(&who, waits);
        match told {
            // Nobody drops what tells it.
            Some(told) => told.await.unwrap_or(Turn { of: None }),
            None => Turn { of: Some((self.clone(), who)) },
        }
    }

    fn line(&self) -> MutexGuard<'_, Line<oneshot::Sender<Turn>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some((turns, mut who)) = self.of.take() else { return };
        loop {
            let next = turns.line().done(&who);
            let Some((of, tell)) = next else { return };
            let turn = Turn { of: Some((turns.clone(), of.clone())) };
            // One that waits no more gives it on.
            let Err(mut turn) = tell.send(turn) else { return };
            turn.of = None;
            who = of;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn tenant(name: &str) -> Who {
        Some(name.parse().unwrap())
    }

    async fn waits(turns: &Turns, who: &str) -> bool {
        timeout(Duration::from_millis(1), turns.wait(tenant(who))).await.is_err()
    }

    #[test]
    fn tenants_are_let_in_by_turns_and_none_has_all_places() {
        let mut line = Line::new(3, |_| false);
        let (flood, calm, late) = (tenant("flood"), tenant("calm"), tenant("late"));
        let asked: Vec<bool> = (0..5).map(|number| line.ask(&flood, || number)).collect();
        assert_eq!(asked, [true, true, false, false, false], "a place is left");
        assert!(line.ask(&calm, || 10));
        assert!(!line.ask(&calm, || 11) && !line.ask(&late, || 20));
        let mut order = Vec::new();
        let mut ends = vec![flood.clone(), flood, calm];
        while let Some(ended) = ends.pop() {
            if let Some((who, number)) = line.done(&ended) {
                order.push(number);
                ends.insert(0, who);
            }
        }
        assert_eq!(order, [11, 2, 20, 3, 4], "calm's own, then by turns");
        assert_eq!((line.free, line.held.len(), line.waiting.len()), (3, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_no_more_holds_up_nobody() {
        let turns = Turns::new(1);
        let first = turns.wait(tenant("a")).await;
        let mut left = Box::pin(turns.wait(tenant("b")));
        assert!(timeout(Duration::from_millis(1), &mut left).await.is_err());
        let next = tokio::spawn({
            let turns = turns.clone();
            async move { turns.wait(tenant("c")).await }
        });
        tokio::task::yield_now().await;
        drop(left);
        drop(first);
        let next = next.await.unwrap();
        assert!(waits(&turns, "d").await);
        drop(next);
        assert!(!waits(&turns, "d").await);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_no_more_are_not_kept_in_line() {
        let turns = Turns::new(1);
        let held = turns.wait(tenant("a")).await;
        for number in 0..100 {
            assert!(waits(&turns, if number % 2 == 0 { "a" } else { "b" }).await);
        }
        let left: usize = turns.line().waiting.iter().map(|(_, line)| line.len()).sum();
        assert_eq!(left, 1, "the one that came last");
        drop(held);
        assert!(turns.are_all_free() && turns.line().waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenants_long_renderings_keep_no_other_tenant_waiting() {
        let turns = Turns::new(2);
        let held = turns.wait(tenant("flood")).await;
        assert!(waits(&turns, "flood").await);
        for _ in 0..3 {
            assert!(!waits(&turns, "calm").await);
        }
        drop(held);
        assert!(!waits(&turns, "flood").await);
    }
}
