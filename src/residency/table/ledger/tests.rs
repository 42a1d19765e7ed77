//! The accounts by sentences.

use super::*;
use crate::testing::artefact;

const CPU: DeviceId = DeviceId::Cpu;

fn ledger() -> Ledger {
    Ledger::new(vec![(CPU, Bytes(100))])
}

fn holding(id: u64, bytes: u64) -> Holding {
    Holding { id: HoldingId::Own(id), part: Part::Weights, bytes: Bytes(bytes) }
}

#[test]
fn a_shared_holding_is_charged_once_and_freed_with_its_last_holder() {
    let (a, b) = (artefact("a", 1), artefact("b", 1));
    let mut ledger = ledger();
    ledger.charge(CPU, &a, vec![holding(1, 40), holding(2, 5)]);
    ledger.charge(CPU, &b, vec![holding(1, 40), holding(3, 7)]);
    assert_eq!(ledger.charged(CPU), Bytes(52));
    assert_eq!(ledger.freed_by(CPU, [&a]), Bytes(5));
    assert_eq!(ledger.freed_by(CPU, [&a, &b]), Bytes(52));
    assert_eq!(ledger.discharge(CPU, &a), Bytes(5));
    assert_eq!(ledger.freed_by(CPU, [&b]), Bytes(47));
    assert_eq!(ledger.discharge(CPU, &b), Bytes(47));
    assert_eq!(ledger.charged(CPU), Bytes::ZERO);
}

#[test]
fn promises_and_charges_leave_the_rest_free_and_show_what_is_over() {
    let (a, b) = (artefact("a", 1), artefact("b", 1));
    let mut ledger = ledger();
    ledger.promise(CPU, &a, Bytes(30));
    ledger.promise(CPU, &a, Bytes(10));
    ledger.charge(CPU, &b, vec![holding(1, 50)]);
    assert_eq!((ledger.free(CPU), ledger.promised(CPU, &a)), (Bytes(10), Bytes(40)));
    ledger.set_budget(CPU, Bytes(70));
    assert_eq!((ledger.free(CPU), ledger.over(CPU)), (Bytes::ZERO, Bytes(20)));
    ledger.withdraw(CPU, &a);
    assert_eq!((ledger.free(CPU), ledger.reserved(CPU)), (Bytes(20), Bytes::ZERO));
}

fn part(number: u8, bytes: u64) -> SharedPart {
    SharedPart { content: ContentId::from_digest([number; 32]), bytes: Bytes(bytes) }
}

#[test]
fn what_a_load_counts_on_is_freed_by_nobody_and_stays_charged_until_it_ends() {
    let (a, b) = (artefact("a", 1), artefact("b", 1));
    let mut ledger = ledger();
    let footprint = Footprint { weights: Bytes(40), kv: Bytes(5), ..Footprint::default() };
    let holdings = ledger.holdings(&footprint, &[part(1, 30)]);
    ledger.charge(CPU, &a, holdings);
    ledger.count_on(CPU, &b, &[part(1, 30), part(2, 9)], &BTreeSet::new());
    assert_eq!((ledger.counted(CPU, &b), ledger.shared(CPU, &a)), (Bytes(30), Bytes(30)));
    assert_eq!(ledger.freed_by(CPU, [&a]), Bytes(15));
    assert_eq!(ledger.discharge(CPU, &a), Bytes(15));
    assert_eq!(ledger.charged(CPU), Bytes(30));
    ledger.withdraw(CPU, &b);
    assert_eq!((ledger.charged(CPU), ledger.counted(CPU, &b)), (Bytes::ZERO, Bytes::ZERO));
}

#[test]
fn what_is_spoken_for_is_not_counted_on() {
    let (a, b) = (artefact("a", 1), artefact("b", 1));
    let mut ledger = ledger();
    let footprint = Footprint { weights: Bytes(40), ..Footprint::default() };
    let holdings = ledger.holdings(&footprint, &[part(1, 30), part(2, 9)]);
    ledger.charge(CPU, &a, holdings);
    let spoken_for = BTreeSet::from([part(1, 30).content]);
    ledger.count_on(CPU, &b, &[part(1, 30), part(2, 9)], &spoken_for);
    assert_eq!(ledger.counted(CPU, &b), Bytes(9));
    assert_eq!(ledger.content_freed_by(CPU, [&a]).collect::<Vec<_>>(), [part(1, 30).content]);
}

#[test]
#[should_panic(expected = "invariant 1")]
fn more_than_is_free_cannot_be_promised() {
    ledger().promise(CPU, &artefact("a", 1), Bytes(101));
}
