//! Which version a model is held at, and when a deletion is believed.

use std::time::SystemTime;

use roundhouse_store::{Choice, ChosenBy};
use roundhouse_types::Version;
use roundhouse_workers::{Layout, Settings};

use super::*;
use crate::config::{OnDelete, Update, VersionRule};
use crate::loader::Wish;

mod refused;

async fn bench_with(update: Update, on_delete: OnDelete) -> Bench {
    let mut bench = bench().await;
    let rules = BTreeMap::from([(model().endpoint, VersionRule { update, on_delete })]);
    bench.loader = bench.loader.with_rules(rules, Duration::from_secs(10));
    bench
}

impl Bench {
    fn held(&self) -> Option<(Version, ChosenBy)> {
        self.loader.choice(&model()).map(|choice| (choice.version, choice.by))
    }

    async fn resolve(&self, refresh: bool) -> Result<Resolution, Failure> {
        tokio::time::advance(Duration::from_secs(1)).await;
        self.loader.resolve(&model(), refresh).await
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_loaded_first_is_held_where_the_rule_holds_and_forgotten_where_it_does_not() {
    let bench = bench_with(Update::Manual, OnDelete::Serve).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    bench.loader.hold_first(&bench.cache, &first).await;
    bench.upload(r#"{"better": true}"#);
    let second = bench.fetched().await;
    bench.loader.hold_first(&bench.cache, &second).await;
    assert_eq!(bench.held(), Some((first.version.clone(), ChosenBy::Rule)));
    let loader = bench.loader.with_rules(BTreeMap::new(), Duration::ZERO);
    assert_eq!(loader.choice(&model()), None, "the endpoint holds nothing any more");
    loader.hold_first(&bench.cache, &second).await;
    assert_eq!(bench.cache.choice(&model()), None, "nor when it holds again");
}

#[tokio::test(start_paused = true)]
async fn a_held_version_that_is_nowhere_names_itself_and_what_the_store_holds() {
    let bench = bench_with(Update::Manual, OnDelete::Serve).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    bench.loader.hold_first(&bench.cache, &first).await;
    bench.upload(r#"{"better": true}"#);
    let second = bench.fetched().await;
    bench.loader.purge(&model()).await.unwrap();
    let failure = bench.resolve(false).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::ModelInvalid);
    for version in [&first.version, &second.version] {
        assert!(failure.message().contains(&version.as_str()[..12]), "{failure}");
    }
    let tried = bench.loader.begin_trial(&model(), Wish::Latest);
    assert!(bench.loader.commit(tried, &second.version, None).await.unwrap().is_none());
    assert_eq!(bench.held(), Some((second.version, ChosenBy::Rule)));
}

#[tokio::test(start_paused = true)]
async fn a_trial_counts_until_it_is_dropped_and_a_later_one_takes_its_place() {
    let bench = bench_with(Update::Auto, OnDelete::Serve).await;
    bench.upload("{}");
    let id = bench.fetched().await;
    let wish = || Wish::Version(id.version.clone());
    let first = bench.loader.begin_trial(&model(), wish());
    let second = bench.loader.begin_trial(&model(), wish());
    assert!(!first.counts() && second.counts());
    let failure = bench.loader.commit(first, &id.version, None).await.unwrap_err();
    assert_eq!((failure.kind(), bench.held()), (ErrorKind::NotReady, None));
    assert!(second.counts(), "the end of the first is not its end");
    drop(second);
    assert_eq!(bench.loader.versions.tried(&model()), None);
    let third = bench.loader.begin_trial(&model(), wish());
    let held = bench.loader.commit(third, &id.version, None).await.unwrap();
    assert_eq!(held, Some(id.version.clone()));
    assert_eq!(bench.held(), Some((id.version, ChosenBy::Operator)));
    assert_eq!(bench.loader.versions.tried(&model()), None);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_believed_when_the_store_has_not_found_the_model_for_long_enough() {
    let bench = bench_with(Update::Auto, OnDelete::Drain).await;
    let unknown = bench.resolve(true).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::ModelNotFound, "it never was there");
    bench.upload("{}");
    bench.fetched().await;
    let looks = [(0, ErrorKind::NotReady), (5, ErrorKind::NotReady), (6, ErrorKind::ModelNotFound)];
    for round in 0..2 {
        bench.memory.remove("m/config.json");
        for (later, kind) in looks {
            tokio::time::advance(Duration::from_secs(later)).await;
            let failure = bench.resolve(true).await.unwrap_err();
            assert_eq!(failure.kind(), kind, "{round}: {failure}");
        }
        // Found again, the time begins anew.
        bench.upload("{}");
        bench.fetched().await;
    }
}

#[tokio::test(start_paused = true)]
async fn with_the_store_down_what_is_held_comes_before_what_was_named_last() {
    let bench = bench_with(Update::Auto, OnDelete::Serve).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    bench.upload(r#"{"better": true}"#);
    bench.fetched().await;
    let choice = Choice {
        version: first.version.clone(),
        by: ChosenBy::Operator,
        since: SystemTime::UNIX_EPOCH,
    };
    bench.cache.choose(&model(), choice).await.unwrap();
    assert_eq!(bench.stand_in(&down()), Some(first));
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_in_the_store_does_not_return_with_the_store_down() {
    let bench = bench_with(Update::Auto, OnDelete::Serve).await;
    bench.upload("{}");
    let id = bench.fetched().await;
    bench.memory.remove("m/config.json");
    let stand_in = || bench.stand_in(&down());
    bench.resolve(true).await.unwrap_err();
    assert_eq!(stand_in(), Some(id.clone()), "it may be replaced just now");
    tokio::time::advance(Duration::from_secs(11)).await;
    bench.resolve(true).await.unwrap_err();
    assert_eq!(stand_in(), None);
    bench.upload("{}");
    let again = bench.fetched().await;
    assert_eq!(stand_in(), Some(again));
}

#[tokio::test(start_paused = true)]
async fn an_upload_under_way_is_not_ready_to_a_refresh_and_a_fault_when_it_never_ends() {
    let bench = bench_settling(Duration::from_secs(2)).await;
    let header = r#"{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}"#;
    let mut short = (header.len() as u64).to_le_bytes().to_vec();
    short.extend(header.as_bytes());
    for (age, kind) in [(Duration::ZERO, ErrorKind::NotReady), (LONG_AGO, ErrorKind::ModelInvalid)]
    {
        bench.memory.put_aged("m/model.safetensors", short.clone(), age);
        let failure = bench.resolve(true).await.unwrap_err();
        assert_eq!(failure.kind(), kind, "{failure}");
    }
}

/// A version whose files were seen to be a handler's.
fn plan_known(bench: &Bench, id: &ArtefactId) {
    let layout = Layout { code: Some("code"), script: None, requirements: None };
    let settings = Settings {
        memory: None,
        workers: 1,
        time_limit: Duration::from_secs(1),
        framework: Default::default(),
        variables: BTreeMap::new(),
    };
    let plan = HandlerPlan { layout, settings };
    let mut known = bench.loader.recall(id);
    known.plan = Some(Plan::Handler(Arc::new(plan)));
    bench.loader.remember(id, known);
}

fn refused() -> Failure {
    Failure::new(ErrorKind::ModelInvalid, "no tensor 'x'")
}

#[tokio::test(start_paused = true)]
async fn where_the_newest_is_refused_the_version_that_was_loaded_before_answers_and_that_is_told() {
    let bench = bench_with(Update::Auto, OnDelete::Serve).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    plan_known(&bench, &first);
    bench.loader.judge(&first, None);
    bench.upload(r#"{"better": true}"#);
    let second = bench.fetched().await;
    plan_known(&bench, &second);
    // It was not tried yet.
    assert_eq!(bench.resolve(false).await.unwrap().version, second.version);
    bench.loader.judge(&second, Some(&down()));
    assert_eq!(bench.resolve(false).await.unwrap().version, second.version, "not of its files");
    bench.loader.judge(&second, Some(&refused()));
    let resolution = bench.resolve(false).await.unwrap();
    assert_eq!(resolution.version, first.version);
    let (unfit, why) = resolution.standing.unfit.expect("it is told");
    assert_eq!((unfit, why.kind()), (second.version.clone(), ErrorKind::ModelInvalid));
    assert!(why.message().starts_with("no tensor 'x'; "), "{why}");
    // An operator's trial tries it again.
    let tried = bench.loader.begin_trial(&model(), Wish::Latest);
    assert_eq!(bench.resolve(false).await.unwrap().version, second.version);
    drop(tried);
    bench.loader.judge(&second, None);
    assert_eq!(bench.resolve(false).await.unwrap().version, second.version, "it has served");
    bench.loader.judge(&second, Some(&refused()));
    assert_eq!(bench.resolve(false).await.unwrap().version, second.version, "and is not refused");
}

#[tokio::test(start_paused = true)]
async fn no_version_from_before_a_deletion_answers_for_one_that_is_refused() {
    for is_deleted in [false, true] {
        let bench = bench_with(Update::Auto, OnDelete::Serve).await;
        bench.upload("{}");
        let first = bench.fetched().await;
        plan_known(&bench, &first);
        bench.loader.judge(&first, None);
        if is_deleted {
            bench.memory.remove("m/config.json");
            for _ in 0..2 {
                bench.resolve(true).await.unwrap_err();
                tokio::time::advance(Duration::from_secs(11)).await;
            }
        }
        bench.upload(r#"{"better": true}"#);
        let second = bench.fetched().await;
        plan_known(&bench, &second);
        bench.loader.judge(&second, Some(&refused()));
        // Where nothing else can answer, it is tried again.
        let answers = if is_deleted { &second } else { &first };
        assert_eq!(bench.resolve(false).await.unwrap().version, answers.version);
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_were_not_verified_refuse_no_version() {
    let bench = bench_with(Update::Auto, OnDelete::Serve).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    plan_known(&bench, &first);
    bench.loader.judge(&first, None);
    bench.upload(r#"{"better": true}"#);
    let second = bench.named().await;
    let failure = bench.loader.failed_behind(&bench.cache, &second, refused());
    bench.loader.judge(&second, Some(&failure));
    assert!(bench.loader.recall(&second).refused.is_none());
    let known = bench.loader.recall(&second);
    assert_eq!(bench.fetched().await, second);
    // Its fetch ended by itself, after that load.
    bench.loader.remember(&second, known);
    bench.loader.bring(&bench.catalog, &bench.cache, &second).await.unwrap();
    bench.loader.judge(&second, Some(&refused()));
    assert!(bench.loader.recall(&second).refused.is_some(), "they were verified");
}

#[tokio::test(start_paused = true)]
async fn a_version_whose_load_comes_late_or_is_only_tried_is_not_the_one_before_the_next() {
    let bench = bench_with(Update::Auto, OnDelete::Serve).await;
    bench.upload("{}");
    let first = bench.fetched().await;
    bench.loader.judge(&first, None);
    bench.upload(r#"{"better": true}"#);
    let second = bench.fetched().await;
    bench.loader.judge(&second, None);
    let last = || bench.loader.last_loaded(&model());
    assert_eq!(last().as_ref(), Some(&second));
    let tried = bench.loader.begin_trial(&model(), Wish::Version(first.version.clone()));
    bench.loader.judge(&first, None);
    assert_eq!(last().as_ref(), Some(&second));
    bench.loader.commit(tried, &first.version, None).await.unwrap();
    assert_eq!(last().as_ref(), Some(&second), "it was chosen, and not loaded");
    let tried = bench.loader.begin_trial(&model(), Wish::Version(first.version.clone()));
    bench.loader.commit(tried, &first.version, Some(&first.version)).await.unwrap();
    assert_eq!(last().as_ref(), Some(&first), "an operator chose it");
    bench.loader.judge(&first, None);
    assert_eq!(last(), Some(first));
}
