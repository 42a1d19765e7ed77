//! Versions through the owner task: what operators are told, and who said so.

use super::*;
use crate::{Authority, Standing};

#[tokio::test(start_paused = true)]
async fn a_refresh_to_a_version_that_still_unloads_is_answered_when_it_serves_again() {
    let slow = Script { unload: Duration::from_secs(20), ..Script::of(40) };
    let loader = ScriptedLoader::new([("a", slow)]);
    let residency = start(100, &loader, Config::default());
    drop(residency.acquire(&model("a"), soon()).await.unwrap());
    for number in [2, 1] {
        loader.change("a", |script| {
            script.version = number;
            script.standing = Standing { by: Authority::Operator, ..Standing::default() };
        });
        let report = residency.refresh(&model("a")).await.unwrap();
        assert_eq!(report.serving, Some(version(number)));
        let lease = residency.acquire(&model("a"), soon()).await.unwrap();
        assert_eq!(lease.version(), &version(number), "a request after the answer gets it");
    }
    let decisions = residency.explain(&model("a")).await.unwrap().decisions;
    let by_operator = |from: u64| {
        let action = Action::Switched { from: version(from), by: Authority::Operator };
        decisions.iter().any(|decision| decision.action == action)
    };
    assert!(by_operator(1) && by_operator(2), "{decisions:?}");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_fails_leaves_the_old_one_and_is_told_to_who_asked() {
    let loader = ScriptedLoader::new([("a", Script::of(40))]);
    let residency = start(100, &loader, Config::default());
    drop(residency.acquire(&model("a"), soon()).await.unwrap());
    loader.change("a", |script| {
        script.version = 2;
        script.load_fails = Some(Failure::new(ErrorKind::ModelInvalid, "a bad tensor"));
    });
    let failure = residency.refresh(&model("a")).await.unwrap_err();
    assert_eq!(failure.kind(), ErrorKind::ModelInvalid);
    let lease = residency.acquire(&model("a"), soon()).await.unwrap();
    assert_eq!(lease.version(), &version(1));
    drop(lease);
    // Asked to go back, the table forgets the failure: the old one can be loaded at once.
    loader.change("a", |script| (script.version, script.load_fails) = (1, None));
    assert!(!residency.refresh(&model("a")).await.unwrap().updated);
    residency.unload(&model("a")).await.unwrap();
    residency.acquire(&model("a"), soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_model_is_known_while_it_is_kept_loaded_or_on_its_way() {
    let loader = ScriptedLoader::new([("a", Script::of(40)), ("b", Script::of(40))]);
    let residency = start(100, &loader, Config::default());
    assert!(!residency.is_known(&model("a")).await.unwrap());
    residency.keep(&model("a")).await.unwrap();
    assert!(residency.is_known(&model("a")).await.unwrap());
    residency.release(&model("a")).await.unwrap();
    assert!(!residency.is_known(&model("a")).await.unwrap());
    drop(residency.acquire(&model("b"), soon()).await.unwrap());
    assert!(residency.is_known(&model("b")).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_choice_is_explained_with_its_version() {
    let loader = ScriptedLoader::new([("a", Script::of(40))]);
    let residency = start(100, &loader, Config::default());
    residency.note_choice(&model("a"), Some(version(2))).await.unwrap();
    residency.note_choice(&model("a"), None).await.unwrap();
    let decisions = residency.explain(&model("a")).await.unwrap().decisions;
    let seen: Vec<_> = decisions.iter().map(|it| (it.version.clone(), it.action.clone())).collect();
    let chosen = (Some(version(2)), Action::Chosen { held: true });
    assert_eq!(seen, [chosen, (None, Action::Chosen { held: false })]);
}
