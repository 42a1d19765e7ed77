//! Whose turn it is: the requests of one endpoint that do not run. Plain data: its owner locks it.
//!
//! 1. Those that are decided go first: they hold disk, and cost no model anything. Those of them whose
//!    object could not be written take turns with what is new.
//! 2. Tenants take turns, each in its own order; what is done again goes to the end of its tenant's.
//! 3. Nothing is taken before its time.

use std::collections::VecDeque;

use roundhouse_types::TenantName;
use tokio::time::Instant;

use crate::spool::Ticket;

/// The requests of one endpoint that wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    decided: VecDeque<Ticket>,
    /// Tenants that have requests which may be taken, the next one first.
    tenants: VecDeque<(Option<TenantName>, VecDeque<Ticket>)>,
    /// Those that may not be taken yet.
    later: Vec<(Instant, Ticket)>,
    /// Whether one whose object could not be written has its turn.
    again_next: bool,
}

impl Waiting {
    pub(crate) fn push(&mut self, ticket: Ticket) {
        if ticket.is_decided {
            return self.decided.push_back(ticket);
        }
        match self.tenants.iter_mut().find(|(tenant, _)| *tenant == ticket.tenant) {
            Some((_, tickets)) => tickets.push_back(ticket),
            None => self.tenants.push_back((ticket.tenant.clone(), VecDeque::from([ticket]))),
        }
    }

    pub(crate) fn push_later(&mut self, ticket: Ticket, at: Instant) {
        self.later.push((at, ticket));
    }

    /// Takes the next; only one that is decided where `only_decided`.
    pub(crate) fn pop(&mut self, now: Instant, only_decided: bool) -> Option<Ticket> {
        for (_, ticket) in self.later.extract_if(.., |(at, _)| *at <= now).collect::<Vec<_>>() {
            self.push(ticket);
        }
        self.again_next = !self.again_next;
        let is_fresh = self.decided.front().is_some_and(|ticket| ticket.tries == 0);
        let is_next = only_decided || is_fresh || self.again_next || self.tenants.is_empty();
        if is_next && let Some(ticket) = self.decided.pop_front() {
            return Some(ticket);
        }
        if only_decided {
            return None;
        }
        let (tenant, mut tickets) = self.tenants.pop_front()?;
        let ticket = tickets.pop_front();
        if !tickets.is_empty() {
            self.tenants.push_back((tenant, tickets));
        }
        ticket
    }

    /// Whether any is decided.
    pub(crate) fn has_decided(&self) -> bool {
        !self.decided.is_empty() || self.later.iter().any(|(_, ticket)| ticket.is_decided)
    }

    /// When the next may be taken that may not be now.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        self.later.iter().map(|(at, _)| *at).min()
    }

    pub(crate) fn len(&self) -> usize {
        let of_tenants: usize = self.tenants.iter().map(|(_, tickets)| tickets.len()).sum();
        self.decided.len() + of_tenants + self.later.len()
    }

    /// When the oldest was accepted, in milliseconds since 1970.
    pub(crate) fn oldest(&self) -> Option<u64> {
        let of_tenants = self.tenants.iter().flat_map(|(_, tickets)| tickets);
        let later = self.later.iter().map(|(_, ticket)| ticket);
        let all = self.decided.iter().chain(of_tenants).chain(later);
        all.map(|ticket| ticket.accepted_at).min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tests::ticket;

    fn order(waiting: &mut Waiting, only_decided: bool) -> Vec<u64> {
        let now = Instant::now();
        std::iter::from_fn(|| waiting.pop(now, only_decided)).map(|it| it.number).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_take_turns_and_what_is_decided_goes_first() {
        let mut waiting = Waiting::default();
        for (number, tenant) in [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "c")] {
            waiting.push(ticket(number, Some(tenant)));
        }
        waiting.push(Ticket { is_decided: true, ..ticket(7, Some("a")) });
        assert_eq!((waiting.len(), waiting.oldest()), (7, Some(1)));
        assert_eq!(order(&mut waiting, true), [7]);
        assert_eq!(order(&mut waiting, false), [1, 4, 6, 2, 5, 3]);
        assert_eq!((waiting.len(), waiting.oldest()), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn objects_that_cannot_be_written_take_turns_with_what_is_new() {
        let mut waiting = Waiting::default();
        for number in 1..4 {
            waiting.push(Ticket { is_decided: true, tries: 1, ..ticket(number, Some("a")) });
            waiting.push(ticket(10 + number, Some("b")));
        }
        let order = order(&mut waiting, false);
        let new = order.iter().position(|number| *number == 12).unwrap();
        assert!(new < 5, "{order:?}");
        assert_eq!(order.len(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_taken_before_its_time() {
        let mut waiting = Waiting::default();
        let at = Instant::now() + Duration::from_secs(5);
        waiting.push_later(ticket(1, None), at);
        waiting.push_later(ticket(2, None), at + Duration::from_secs(5));
        assert_eq!(order(&mut waiting, false), [0_u64; 0]);
        assert_eq!((waiting.len(), waiting.next_at()), (2, Some(at)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(order(&mut waiting, false), [1]);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(order(&mut waiting, false), [2]);
    }
}
