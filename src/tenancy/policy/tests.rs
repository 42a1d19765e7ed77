use super::*;
use crate::routes::Route;

fn model(text: &str) -> ModelId {
    let (endpoint, target) = text.split_once(':').unwrap_or(("e", text));
    ModelId { endpoint: endpoint.parse().unwrap(), target: target.parse().unwrap() }
}

fn caller(name: &str) -> Caller {
    Caller { tenant: Some(name.parse().unwrap()), credential: None }
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn grants(invoke: &[&str]) -> Grants {
    let all = patterns(invoke);
    Grants { invoke: all.clone(), load: all.clone(), see: all, ..Grants::default() }
}

fn policy(tenants: &[(&str, Grants)]) -> Policy {
    let tenants = tenants.iter().map(|(name, grants)| (name.parse().unwrap(), grants.clone()));
    Policy::new(tenants, true)
}

#[test]
fn a_tenant_may_use_what_it_is_granted_and_nothing_else() {
    let acme = Grants { load: patterns(&["acme/**"]), ..grants(&["acme/**", "shared/x"]) };
    let policy = policy(&[("acme", acme)]);
    let verdict = |who: &Caller, name: &str| policy.verdict(who, &model(name));
    assert_eq!(verdict(&caller("acme"), "acme/a/b"), Verdict::Allowed);
    assert_eq!(verdict(&caller("acme"), "shared/x"), Verdict::OnlyLoaded);
    assert_eq!(verdict(&caller("acme"), "acme-evil/a"), Verdict::Hidden);
    assert_eq!(verdict(&caller("acme"), "evil/a"), Verdict::Hidden);
    assert_eq!(verdict(&caller("nobody"), "nobody/a"), Verdict::Hidden);
    assert_eq!(verdict(&Caller::anonymous(), "acme/a"), Verdict::Hidden, "callers are asked");
    let open = Policy::new([("acme".parse().unwrap(), Grants::default())], false);
    assert_eq!(open.verdict(&caller("evil"), &model("acme/a")), Verdict::Allowed);
    assert_eq!(open.verdict(&Caller::anonymous(), &model("acme/a")), Verdict::Allowed);
}

#[test]
fn a_tenant_without_patterns_has_what_lies_below_its_name() {
    let name: TenantName = "acme".parse().unwrap();
    let policy = policy(&[("acme", Grants::own(&name))]);
    assert_eq!(policy.verdict(&caller("acme"), &model("acme/a/b")), Verdict::Allowed);
    assert_eq!(policy.verdict(&caller("acme"), &model("acme2/a")), Verdict::Hidden);
    assert_eq!(policy.standing(&name), Standing { share: 1.0, priority: 5 });
    let none_listed = Policy::new([], true);
    assert_eq!(none_listed.verdict(&caller("acme"), &model("acme/a")), Verdict::Allowed);
    assert_eq!(none_listed.verdict(&caller("acme"), &model("beta/a")), Verdict::Hidden);
    assert_eq!(none_listed.verdict(&Caller::anonymous(), &model("acme/a")), Verdict::Hidden);
}

#[test]
fn an_endpoint_is_reached_by_whoever_has_a_pattern_there() {
    let policy = policy(&[("acme", grants(&["chat:acme/**"])), ("ops", grants(&["**"]))]);
    let reaches = |who: &Caller, name: &str| policy.reaches(who, &name.parse().unwrap());
    assert!(reaches(&caller("acme"), "chat"));
    assert!(!reaches(&caller("acme"), "other"));
    assert!(reaches(&caller("ops"), "other"));
    assert!(!reaches(&caller("nobody"), "chat"));
    assert!(!reaches(&Caller::anonymous(), "other"));
}

#[test]
fn an_endpoint_is_named_by_patterns_and_by_aliases_that_serve() {
    let see = Grants { see: patterns(&["chat:x/**"]), ..grants(&["x/**"]) };
    let tenants = [("acme", grants(&["chat:acme/**"])), ("any", grants(&["**"])), ("see", see)];
    let route = Route { target: model("solo:acme/a"), weight: 1.0 };
    let mut aliases = Aliases::default();
    let name = "name".parse().unwrap();
    assert!(aliases.add(None, "solo".parse().unwrap(), name, Alias::new(vec![route])));
    let policy = policy(&tenants).with_aliases(aliases);
    let names = |who: &str, name: &str| policy.names(&caller(who), &name.parse().unwrap());
    assert!(names("acme", "chat") && names("see", "chat") && !names("any", "chat"));
    assert!(names("any", "solo") && !names("acme", "solo") && !names("see", "solo"));
    assert!(!names("nobody", "chat") && !names("nobody", "solo"));
}

#[test]
fn an_adapter_stands_on_what_everybody_who_may_use_it_may_use() {
    let tenants = [
        ("acme", grants(&["acme/**", "shared/llama"])),
        ("evil", grants(&["evil/**"])),
        ("ops", grants(&["**"])),
    ];
    let bases =
        BTreeMap::from([("e".parse().unwrap(), BTreeSet::from(["vendor/base".parse().unwrap()]))]);
    let policy = policy(&tenants).with_bases(bases.clone());
    let may = |adapter: &str, base: &str| policy.may_build_on(&model(adapter), &model(base));
    assert!(may("acme/lora", "acme/base"));
    assert!(may("acme/lora", "shared/llama"));
    assert!(!may("evil/lora", "shared/llama"));
    assert!(!may("evil/lora", "acme/base"), "though an operator's tenant may use both");
    assert!(may("evil/lora", "vendor/base"), "the operator says so");
    let none_listed = Policy::new([], true);
    assert!(none_listed.may_build_on(&model("acme/lora"), &model("acme/base")));
    assert!(!none_listed.may_build_on(&model("evil/lora"), &model("acme/base")));
    let open = Policy::new(tenants.map(|(name, it)| (name.parse().unwrap(), it)), false);
    assert!(open.may_build_on(&model("evil/lora"), &model("acme/base")), "nobody is asked");
}

#[test]
fn an_adapter_has_nothing_loaded_that_its_users_may_not_have_loaded() {
    let only_loaded = Grants { load: patterns(&["acme/**"]), ..grants(&["acme/**", "shared/big"]) };
    let policy = policy(&[("acme", only_loaded), ("beta", grants(&["beta/**", "shared/big"]))]);
    let may = |adapter: &str, base: &str| policy.may_build_on(&model(adapter), &model(base));
    assert!(!may("acme/lora", "shared/big"), "it may be asked only while it is loaded");
    assert!(may("acme/lora", "acme/base"));
    assert!(may("beta/lora", "shared/big"));
}

#[test]
fn whoever_shows_no_credential_has_what_is_granted_to_it_and_owns_nothing() {
    let stranger = Caller::without_credential();
    let none_listed = Policy::new([], true);
    assert_eq!(none_listed.verdict(&stranger, &model("anonymous/a")), Verdict::Hidden);
    let listed = policy(&[("anonymous", grants(&["open/**"])), ("acme", grants(&["acme/**"]))]);
    assert_eq!(listed.verdict(&stranger, &model("open/a")), Verdict::Allowed);
    assert_eq!(listed.verdict(&stranger, &model("acme/a")), Verdict::Hidden);
}
