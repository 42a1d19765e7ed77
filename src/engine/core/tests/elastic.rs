//! Pools that grow by what a ledger grants and give it back.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use roundhouse_types::{KvOrder, KvReport};

use super::*;
use crate::elastic::KEPT_FOR;
use crate::testing::echo_tokens;

const CHUNK_BYTES: u64 = 100;

/// A pool of chunks of three blocks of four tokens; four of them hold one sequence.
fn kv() -> KvSpec {
    KvSpec { block_tokens: 4, blocks: 36, chunk: 3, floor: 4, chunk_bytes: Bytes(CHUNK_BYTES) }
}

/// The other side of the agreement, as a ledger keeps it.
struct Book {
    heard: Receiver<KvReport>,
    report: KvReport,
    order: KvOrder,
}

impl Book {
    fn engine(runner: EchoRunner, running: usize) -> (Bench, Self) {
        let (said, heard) = channel();
        let mut bench = Bench::new(runner, running);
        let report = Box::new(move |report| _ = said.send(report));
        bench.engine = bench.engine.with_ledger(report);
        (bench, Self { heard, report: KvReport::default(), order: KvOrder::default() })
    }

    fn listen(&mut self) {
        self.report = self.heard.try_iter().last().unwrap_or(self.report);
    }

    /// Chunks beyond the floor that are charged.
    fn charged(&self) -> usize {
        ((self.order.granted.0 - self.report.returned.0) / CHUNK_BYTES) as usize
    }

    /// Chunks that the pool asks for.
    fn wants(&self) -> usize {
        (self.report.wanted.0.saturating_sub(self.order.granted.0) / CHUNK_BYTES) as usize
    }

    fn say(&mut self, bench: &mut Bench, chunks: usize, tight: bool) {
        self.order.granted += Bytes(chunks as u64 * CHUNK_BYTES);
        self.order.tight = tight;
        self.order.number += 1;
        bench.engine.kv_ordered(self.order);
    }

    /// Listens until the pool has carried the latest order out.
    fn wait_until_obeyed(&mut self) {
        self.listen();
        while self.report.obeyed < self.order.number {
            let heard = self.heard.recv_timeout(Duration::from_secs(60));
            self.report = heard.expect("orders are carried out");
        }
    }
}

fn beyond_floor(bench: &Bench) -> usize {
    let blocks = bench.engine.published.kv_blocks.load(Ordering::Relaxed);
    blocks / kv().chunk - kv().floor
}

#[test]
fn a_pool_that_was_granted_room_lets_more_run_and_gives_it_back_when_told() {
    let spec = shapes(40, Some(kv()));
    let (mut bench, mut book) = Book::engine(EchoRunner::new(spec), 8);
    let prompts: Vec<Vec<u32>> = (0..4).map(|first| vec![first; 20]).collect();
    let streams: Vec<_> =
        (0..).zip(&prompts).map(|(id, p)| bench.generate(id, greedy(p, 19))).collect();
    bench.step();
    book.listen();
    assert_eq!(bench.running(), 2, "the floor has twelve blocks, and each needs six");
    assert!(book.wants() >= 4, "it asks for what would let all run");
    book.say(&mut bench, 8, false);
    bench.step();
    bench.step();
    assert_eq!((bench.running(), beyond_floor(&bench)), (4, 8));
    book.say(&mut bench, 0, true);
    book.wait_until_obeyed();
    assert!(book.charged() > 0 && book.charged() < 8, "what sequences use stays");
    assert_eq!(book.charged(), beyond_floor(&bench));
    bench.finish();
    book.say(&mut bench, 0, true);
    book.wait_until_obeyed();
    assert_eq!((book.charged(), beyond_floor(&bench)), (0, 0));
    for (prompt, stream) in prompts.iter().zip(streams) {
        let tokens: Vec<u32> = items(stream).into_iter().map(|token| token.unwrap().id).collect();
        assert_eq!(tokens, echo_tokens(prompt, 19, WIDTH));
    }
}

#[test]
fn what_an_idle_pool_does_not_need_goes_back_after_a_while() {
    let spec = shapes(40, Some(kv()));
    let (mut bench, mut book) = Book::engine(EchoRunner::new(spec), 8);
    book.say(&mut bench, 3, false);
    let now = Instant::now();
    bench.engine.review_room(now);
    assert_eq!(beyond_floor(&bench), 3, "the next burst may want it");
    bench.engine.review_room(now + KEPT_FOR);
    assert_eq!(beyond_floor(&bench), 0);
    while book.report.returned < Bytes(3 * CHUNK_BYTES) {
        book.report = book.heard.recv_timeout(Duration::from_secs(60)).expect("it is told");
    }
    assert_eq!((book.charged(), book.wants()), (0, 0));
}

#[test]
fn a_prefix_is_forgotten_with_its_chunk_and_known_as_long_as_the_chunk_stays() {
    let spec = shapes(40, Some(kv()));
    let (mut bench, mut book) = Book::engine(EchoRunner::new(spec), 8);
    book.say(&mut bench, 8, false);
    let reused = |bench: &mut Bench, id| {
        let stream = bench.generate(id, greedy(&[5; 33], 1));
        bench.finish();
        let token = items(stream).remove(0).unwrap();
        assert_eq!([token.id], *echo_tokens(&[5; 33], 1, WIDTH), "whatever was known of it");
        token.reused
    };
    assert_eq!(reused(&mut bench, 0), 0);
    assert_eq!(reused(&mut bench, 1), 32);
    // It lies in chunks that the pool may close, and in others.
    let others: Vec<_> =
        (10..18).map(|id| bench.generate(id, greedy(&[id as u32; 33], 2))).collect();
    bench.finish();
    drop(others);
    book.say(&mut bench, 0, true);
    book.wait_until_obeyed();
    assert_eq!(beyond_floor(&bench), 0);
    reused(&mut bench, 2);
    assert_eq!(reused(&mut bench, 3), 32);
}

proptest! {
    /// Whatever a ledger grants and wants back, and when: the pool never has more than is charged,
    /// every sequence yields what it yields alone, and in the end all that was granted is back.
    #[test]
    fn a_ledger_never_changes_an_answer_and_is_never_owed_anything(
        requests in prop::collection::vec(request(), 1..10),
        orders in prop::collection::vec((0..30_usize, 0..5_usize, any::<bool>()), 0..12),
        step_tokens in 1..24_usize,
        running in 1..8_usize,
    ) {
        let spec = shapes(step_tokens, Some(kv()));
        let (mut bench, mut book) = Book::engine(EchoRunner::new(spec), running);
        let mut streams: Vec<Option<mpsc::Receiver<TokenResult>>> = requests.iter().map(|_| None).collect();
        for tick in 0.. {
            for (index, request) in requests.iter().enumerate() {
                if request.submitted == tick {
                    let (spec, length) = (request.spec.clone(), request.length);
                    streams[index] = Some(bench.generate_within(index as u64, spec, length));
                }
                if request.aborted == Some(tick) {
                    bench.engine.abort(SequenceId(index as u64));
                }
            }
            for (at, chunks, tight) in &orders {
                if *at == tick {
                    book.listen();
                    let chunks = (*chunks).min(book.wants());
                    book.say(&mut bench, chunks, *tight);
                }
            }
            if bench.engine.has_work() {
                bench.step();
            } else if tick > 30 {
                break;
            }
            // Heard before it is looked at: what comes later only makes it less.
            book.listen();
            prop_assert!(beyond_floor(&bench) <= book.charged());
        }
        for (request, stream) in requests.iter().zip(streams) {
            let mut seen: Vec<_> = items(stream.unwrap()).into_iter().map(Result::unwrap).collect();
            let expected = alone(request.spec.clone(), request.length);
            seen.iter_mut().for_each(|token| token.reused = 0);
            let is_aborted = request.aborted.is_some_and(|tick| tick >= request.submitted);
            prop_assert!(is_aborted || seen.len() == expected.len());
            prop_assert_eq!(&seen[..], &expected[..seen.len()]);
        }
        book.say(&mut bench, 0, true);
        book.wait_until_obeyed();
        prop_assert_eq!((book.charged(), beyond_floor(&bench)), (0, 0));
        prop_assert_eq!(book.wants(), 0);
    }
}
