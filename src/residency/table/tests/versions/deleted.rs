//! Models that the store holds no more.

use super::*;
use crate::decision::Departure;

#[test]
fn a_model_deleted_in_the_store_serves_on_unless_its_endpoint_says_otherwise() {
    for drains in [false, true] {
        let mut bench = bench();
        if drains {
            bench.table.config.drain_deleted.insert(model("a").endpoint);
        }
        bench.resident("a", 30);
        refresh(&mut bench);
        let effects = bench.on(Event::Resolved { model: model("a"), result: Err(gone()) });
        assert_eq!(refusal(&effects), Some(ErrorKind::ModelNotFound));
        assert!(decided(&effects).contains(&Action::Deleted { drains }));
        assert_eq!(unloads(&effects, &key_of("a", 1)), drains);
        assert_eq!(granted(&bench.acquire("a")).len(), usize::from(!drains));
    }
}

#[test]
fn a_name_that_the_store_never_held_is_not_said_to_be_deleted() {
    let mut bench = bench();
    refresh(&mut bench);
    let effects = bench.on(Event::Resolved { model: model("a"), result: Err(gone()) });
    assert_eq!(refusal(&effects), Some(ErrorKind::ModelNotFound));
    assert!(!decided(&effects).iter().any(|it| matches!(it, Action::Deleted { .. })));
}

#[test]
fn requests_do_not_wait_for_the_leases_of_a_deleted_model_and_it_serves_when_it_is_back() {
    let mut bench = bench();
    bench.table.config.drain_deleted.insert(model("a").endpoint);
    bench.resident("a", 30);
    bench.acquire("a");
    refresh(&mut bench);
    let effects = bench.on(Event::Resolved { model: model("a"), result: Err(gone()) });
    let left = |it: &Action| matches!(it, Action::Draining { why: Departure::Deleted, .. });
    assert!(decided(&effects).iter().any(left));
    let effects = bench.acquire("a");
    assert!(effects.iter().any(|it| matches!(it, Effect::Resolve { refresh: false, .. })));
    let effects = bench.on(Event::Resolved { model: model("a"), result: Err(gone()) });
    assert!(effects.iter().any(|it| matches!(it, Effect::Refuse { .. })));
    bench.now += Duration::from_secs(5);
    bench.acquire("a");
    assert_eq!(granted(&names(&mut bench, 1)).len(), 1, "it was put back");
}

#[test]
fn a_store_that_fails_drains_nothing() {
    for kind in [ErrorKind::StoreUnavailable, ErrorKind::StoreDenied, ErrorKind::NotReady] {
        let mut bench = bench();
        bench.table.config.drain_deleted.insert(model("a").endpoint);
        bench.resident("a", 30);
        refresh(&mut bench);
        let result = Err(Failure::new(kind, "not now"));
        bench.on(Event::Resolved { model: model("a"), result });
        assert_eq!(granted(&bench.acquire("a")).len(), 1, "{kind:?}");
    }
}
