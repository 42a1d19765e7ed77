//! The latest requests, for the regret meter: what each asked for and what came and left meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use roundhouse_types::{ArtefactId, Bytes};

use crate::regret::{Numbered, Window};

/// Requests remembered.
const REQUESTS: usize = 10_000;
/// Loads and departures remembered, as a multiple of requests: those of operators come on top.
const MARKS_PER_REQUEST: usize = 4;

/// The place of a request in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u64);

/// Why a model was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// A request waited for it.
    Asked,
    /// No request did: an operator, a preload list or a new version wanted it.
    Unasked,
}

/// What happened, in order.
#[derive(Debug, Clone, Copy)]
enum Mark {
    /// A request that has not been answered.
    Asked,
    Answered(Numbered),
    Came(Numbered, Cause),
    Left(u32),
}

/// Owned by the residency owner. Each call costs the same however much is remembered, but for
/// the names of models, which are tidied up once in as many loads as there may be marks.
#[derive(Debug)]
pub(super) struct Ring {
    marks: VecDeque<Mark>,
    /// The place of the first mark.
    first: u64,
    /// Marks that are requests, and how many may be.
    requests: usize,
    capacity: usize,
    /// What was there before the first mark.
    residents: BTreeMap<u32, Bytes>,
    numbers: HashMap<ArtefactId, u32>,
    next_number: u32,
}

impl Ring {
    pub(super) fn new() -> Self {
        Self::of(REQUESTS)
    }

    fn of(capacity: usize) -> Self {
        Self {
            marks: VecDeque::new(),
            first: 0,
            requests: 0,
            capacity,
            residents: BTreeMap::new(),
            numbers: HashMap::new(),
            next_number: 0,
        }
    }

    /// A request came.
    pub(super) fn asked(&mut self) -> Place {
        self.requests += 1;
        self.push(Mark::Asked)
    }

    /// It was answered by a model that takes this much.
    pub(super) fn answered(&mut self, place: Place, by: Numbered) {
        // One that waited for so long that it fell out is left out.
        let at = place.0.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(mark) = at.and_then(|at| self.marks.get_mut(at)) {
            *mark = Mark::Answered(by);
        }
    }

    /// An artefact was loaded; says by which number it goes.
    pub(super) fn came(&mut self, artefact: &ArtefactId, bytes: Bytes, cause: Cause) -> u32 {
        let number = match self.numbers.get(artefact) {
            Some(number) => *number,
            None => {
                self.tidy();
                self.next_number = self.next_number.wrapping_add(1);
                self.numbers.insert(artefact.clone(), self.next_number);
                self.next_number
            }
        };
        self.push(Mark::Came((number, bytes), cause));
        number
    }

    /// It leaves.
    pub(super) fn left(&mut self, number: u32) {
        self.push(Mark::Left(number));
    }

    /// A copy for the regret meter.
    pub(super) fn window(&self, budget: Bytes) -> Window {
        let answered = |mark: &Mark| match mark {
            Mark::Answered(by) => Some(*by),
            _ => None,
        };
        let loads = |wanted: Cause| {
            let came = |mark: &&Mark| matches!(mark, Mark::Came(_, cause) if *cause == wanted);
            self.marks.iter().filter(came).count() as u64
        };
        Window {
            answered: self.marks.iter().filter_map(answered).collect(),
            residents_before: self.residents.iter().map(|(n, bytes)| (*n, *bytes)).collect(),
            loads: loads(Cause::Asked),
            unasked_loads: loads(Cause::Unasked),
            budget,
        }
    }

    fn push(&mut self, mark: Mark) -> Place {
        self.marks.push_back(mark);
        // The oldest mark is a request: what came and left before it is what was there.
        while self.requests > self.capacity
            || self.marks.len() > self.most_marks()
            || matches!(self.marks.front(), Some(Mark::Came(..) | Mark::Left(_)))
        {
            match self.marks.pop_front() {
                Some(Mark::Asked | Mark::Answered(_)) => self.requests -= 1,
                Some(Mark::Came((number, bytes), _)) => {
                    self.residents.insert(number, bytes);
                }
                Some(Mark::Left(number)) => {
                    self.residents.remove(&number);
                }
                None => break,
            }
            self.first += 1;
        }
        Place(self.first + self.marks.len() as u64 - 1)
    }

    fn most_marks(&self) -> usize {
        self.capacity * MARKS_PER_REQUEST
    }

    /// Forgets the names of what neither is remembered nor was there before.
    fn tidy(&mut self) {
        if self.numbers.len() < self.most_marks() {
            return;
        }
        let mut known: HashSet<u32> = self.residents.keys().copied().collect();
        known.extend(self.marks.iter().filter_map(|mark| match mark {
            Mark::Answered((number, _)) | Mark::Came((number, _), _) | Mark::Left(number) => {
                Some(*number)
            }
            Mark::Asked => None,
        }));
        self.numbers.retain(|_, number| known.contains(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::artefact;

    const SIZE: Bytes = Bytes(10);

    #[test]
    fn what_falls_out_of_the_ring_is_what_was_there_before() {
        let mut ring = Ring::of(2);
        let a = ring.came(&artefact("a", 1), SIZE, Cause::Asked);
        let b = ring.came(&artefact("b", 1), SIZE, Cause::Asked);
        for number in [a, b, a] {
            let place = ring.asked();
            ring.answered(place, (number, SIZE));
        }
        ring.left(b);
        let window = ring.window(Bytes(20));
        assert_eq!(window.answered, vec![(b, SIZE), (a, SIZE)]);
        assert_eq!(window.residents_before, vec![(a, SIZE), (b, SIZE)]);
        assert_eq!(window.loads, 0, "both loads are older than the window");
        ring.asked();
        assert_eq!(ring.came(&artefact("b", 1), SIZE, Cause::Asked), b, "a model keeps its number");
        assert_eq!(ring.window(Bytes(20)).loads, 1);
        ring.asked();
        let window = ring.window(Bytes(20));
        assert_eq!(window.residents_before, vec![(a, SIZE)], "b left before the oldest request");
        assert_eq!(window.loads, 1, "b came back after it");
        ring.asked();
        assert_eq!(ring.window(Bytes(20)).loads, 0, "what came before the oldest is there");
    }

    #[test]
    fn requests_stand_in_the_order_of_arrival_and_the_unanswered_are_left_out() {
        let mut ring = Ring::of(3);
        let a = ring.came(&artefact("a", 1), SIZE, Cause::Asked);
        let (first, _second, third) = (ring.asked(), ring.asked(), ring.asked());
        ring.answered(third, (a, Bytes(2)));
        ring.answered(first, (a, Bytes(1)));
        let sizes = |ring: &Ring| -> Vec<u64> {
            ring.window(SIZE).answered.iter().map(|(_, bytes)| bytes.0).collect()
        };
        assert_eq!(sizes(&ring), vec![1, 2]);
        ring.asked();
        ring.answered(first, (a, Bytes(7)));
        assert_eq!(sizes(&ring), vec![2], "one that fell out is nobody's");
    }

    #[test]
    fn names_and_marks_have_a_bound_without_requests() {
        let mut ring = Ring::of(4);
        for version in 0..200 {
            if version == 100 {
                ring.asked();
            }
            let number = ring.came(&artefact("a", version), SIZE, Cause::Asked);
            ring.left(number);
        }
        assert!(ring.marks.len() <= 16 && ring.numbers.len() <= 17, "{ring:?}");
        assert_eq!(ring.residents.len(), 0);
    }
}
