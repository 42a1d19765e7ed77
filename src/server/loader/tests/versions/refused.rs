//! Which version answers in place of one that cannot, and when that one is tried again.

use super::*;

/// Two versions on disk, of which the first was loaded, and the second was refused.
async fn bench_refused(is_handler: bool) -> (Bench, ArtefactId, ArtefactId) {
    let bench = bench_with(Update::Auto, OnDelete::Serve).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    plan_known(&bench, &first);
    bench.loader.judge(&first, None);
    bench.upload(r#"{"better": true}"#);
    let second = bench.fetched().await;
    if is_handler {
        plan_known(&bench, &second);
    }
    bench.loader.judge(&second, Some(&refused()));
    plan_known(&bench, &second);
    (bench, first, second)
}

#[tokio::test(start_paused = true)]
async fn looks_for_newer_versions_do_not_try_again_what_files_alone_are_to_blame_for() {
    let (bench, first, second) = bench_refused(false).await;
    for _ in 0..100 {
        tokio::time::advance(Duration::from_secs(60)).await;
        let resolution = bench.resolve(true).await.unwrap();
        assert_eq!(resolution.version, first.version);
        assert_eq!(resolution.standing.unfit.unwrap().0, second.version);
    }
    bench.loader.try_again(&model());
    assert_eq!(bench.resolve(true).await.unwrap().version, second.version, "an operator asks");
    bench.loader.judge(&second, Some(&refused()));
    bench.upload(r#"{"better": "still"}"#);
    let third = bench.named().await;
    plan_known(&bench, &third);
    assert_eq!(bench.resolve(true).await.unwrap().version, third.version, "it is another one");
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_by_looks_after_pauses_that_grow() {
    let (bench, first, second) = bench_refused(true).await;
    for pause in [60, 120, 240] {
        tokio::time::advance(Duration::from_secs(pause - 5)).await;
        assert_eq!(bench.resolve(true).await.unwrap().version, first.version, "{pause}");
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(bench.resolve(false).await.unwrap().version, first.version, "no request does");
        assert_eq!(bench.resolve(true).await.unwrap().version, second.version, "{pause}");
        bench.loader.judge(&second, Some(&refused()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_brings_nothing_usable_has_the_version_before_answer() {
    let bench = bench_with(Update::Auto, OnDelete::Serve).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    plan_known(&bench, &first);
    bench.loader.judge(&first, None);
    bench.upload(r#"{"better": true}"#);
    let second = bench.named().await;
    bench.loader.judge_fetch(&second, &down());
    assert!(bench.loader.recall(&second).refused.is_none(), "that is the store's");
    bench.loader.judge_fetch(&second, &refused());
    for refresh in [false, true] {
        assert_eq!(bench.resolve(refresh).await.unwrap().version, first.version);
    }
}

/// A catalogue over this store and a loader, with the same disk as before, as after a restart.
fn restarted(bench: &Bench, memory: Arc<MemoryStore>) -> (Arc<Catalog>, ModelLoader) {
    let stores: Vec<(_, Arc<dyn ArtifactStore>)> = vec![(None, memory)];
    let none = Duration::ZERO;
    let config = CatalogConfig { settle: none, update_settle: none, ..CatalogConfig::default() };
    let endpoint = model().endpoint;
    let catalog = Catalog::over(endpoint.clone(), stores, config).unwrap();
    let catalog = Arc::new(catalog.with_disk(bench.cache.clone()));
    let source = Source::Store(Arc::clone(&catalog), bench.cache.clone());
    let sources = BTreeMap::from([(endpoint, source)]);
    let (settings, engine) = (LoadSettings::default(), EngineConfig::default());
    let loader = ModelLoader::new(sources, BTreeMap::new(), settings, engine, Handlers::default());
    (catalog, loader)
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_version_that_was_loaded_before_answers_for_one_that_is_refused() {
    for is_same_store in [true, false] {
        let (mut bench, first, second) = bench_refused(false).await;
        if !is_same_store {
            bench.memory = Arc::new(MemoryStore::new("other"));
            bench.upload("{}");
            bench.upload(r#"{"better": true}"#);
        }
        (bench.catalog, bench.loader) = restarted(&bench, bench.memory.clone());
        assert_eq!(bench.fetched().await, second, "equal objects are the same version");
        plan_known(&bench, &first);
        bench.loader.judge(&second, Some(&refused()));
        plan_known(&bench, &second);
        let answers = if is_same_store { &first } else { &second };
        assert_eq!(bench.resolve(false).await.unwrap().version, answers.version);
    }
}

#[tokio::test(start_paused = true)]
async fn no_version_of_an_endpoints_former_store_stands_in_where_the_new_one_is_down() {
    let bench = bench_with(Update::Auto, OnDelete::Serve).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    bench.loader.judge(&first, None);
    assert_eq!(bench.stand_in(&down()), Some(first.clone()));
    let before = bench.loader.sources();
    let (other, _) = restarted(&bench, Arc::new(MemoryStore::new("other")));
    let source = Source::Store(Arc::clone(&other), bench.cache.clone());
    let stand_in =
        |catalog: &Catalog| bench.loader.stand_in(catalog, &bench.cache, &model(), &down());
    bench.loader.set_sources(BTreeMap::from([(model().endpoint, source)]));
    assert_eq!(stand_in(&other), None);
    assert_eq!(bench.loader.last_loaded(&model()), None, "nor for one that is refused");
    bench.loader.set_sources(before);
    assert_eq!(stand_in(&bench.catalog), Some(first), "it is back");
}

#[tokio::test(start_paused = true)]
async fn what_a_rule_holds_of_a_former_store_is_served_no_more_and_what_an_operator_chose_is() {
    for by in [ChosenBy::Rule, ChosenBy::Operator] {
        let mut bench = bench_with(Update::Manual, OnDelete::Serve).await;
        let rules = BTreeMap::from([(
            model().endpoint,
            VersionRule { update: Update::Manual, on_delete: OnDelete::Serve },
        )]);
        bench.upload("{}");
        let first = bench.fetched().await;
        plan_known(&bench, &first);
        let (version, since) = (first.version.clone(), SystemTime::UNIX_EPOCH);
        bench.cache.choose(&model(), Choice { version, by, since }).await.unwrap();
        assert_eq!(bench.resolve(false).await.unwrap().version, first.version);
        // The endpoint gets another store, and with it another model of the same name.
        bench.memory = Arc::new(MemoryStore::new("other"));
        (bench.catalog, bench.loader) = restarted(&bench, bench.memory.clone());
        bench.loader = bench.loader.with_rules(rules, Duration::from_secs(10));
        plan_known(&bench, &first);
        let is_pinned = by == ChosenBy::Operator;
        assert_eq!(bench.stand_in(&down()).is_some(), is_pinned, "while it is down");
        bench.upload(r#"{"other": true}"#);
        let second = bench.fetched().await;
        plan_known(&bench, &second);
        let served = if is_pinned { &first } else { &second };
        assert_eq!(bench.resolve(false).await.unwrap().version, served.version, "{by:?}");
        bench.loader.hold_first(&bench.cache, &second).await;
        assert_eq!(bench.held(), Some((served.version.clone(), by)), "held from now on");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_new_store_does_not_have_was_not_deleted_there() {
    let mut bench = bench_with(Update::Auto, OnDelete::Drain).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    let before = (bench.catalog.clone(), bench.cache.clone());
    let (catalog, loader) = restarted(&bench, Arc::new(MemoryStore::new("other")));
    bench.loader = loader.with_rules(BTreeMap::new(), Duration::ZERO);
    for _ in 0..2 {
        tokio::time::advance(Duration::from_secs(1)).await;
        let asked = bench.loader.ask(&catalog, &bench.cache, &model(), true).await;
        assert_eq!(asked.unwrap_err().kind(), ErrorKind::ModelNotFound);
    }
    let stand_in = bench.loader.stand_in(&before.0, &before.1, &model(), &down());
    assert_eq!(stand_in, Some(first), "the former has it still");
}

#[tokio::test(start_paused = true)]
async fn an_upload_under_way_is_told_apart_from_one_that_is_damaged() {
    let bench = bench_settling(Duration::from_secs(2)).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    plan_known(&bench, &first);
    let standing = async || bench.resolve(true).await.unwrap().standing;
    assert!(!standing().await.unsettled);
    for (age, unsettled) in [(Duration::ZERO, true), (LONG_AGO, false)] {
        bench.memory.put_aged("m/model.safetensors", "cut off", age);
        let standing = standing().await;
        assert_eq!((standing.unsettled, standing.unfit.is_some()), (unsettled, !unsettled));
    }
}
