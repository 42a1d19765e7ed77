use roundhouse_tenancy::{Caller, Verdict};
use roundhouse_types::ModelId;

use crate::app::policy_of;
use crate::cli::ServeFlags;
use crate::config::Config;

const TWO: &str = "version = 1\n[[endpoint]]\nname = \"default\"\n[[endpoint.mount]]\n\
                   uri = \"file:///a/\"\n[[endpoint]]\nname = \"chat\"\n[[endpoint.mount]]\n\
                   uri = \"file:///b/\"\n";

fn parse(text: &str) -> Result<Config, Vec<String>> {
    let text = format!("{TWO}{text}\n[auth]\nproxy_networks = \"127.0.0.1/32\"\n");
    let parsed = Config::parse(Some(&text), &|_| None, &ServeFlags::default());
    parsed.map_err(|faults| faults.iter().map(ToString::to_string).collect())
}

fn model(text: &str) -> ModelId {
    let (endpoint, target) = text.split_once(':').unwrap();
    ModelId { endpoint: endpoint.parse().unwrap(), target: target.parse().unwrap() }
}

fn caller(name: &str) -> Caller {
    Caller { tenant: Some(name.parse().unwrap()), credential: None }
}

#[test]
fn a_tenant_has_what_its_patterns_say_and_else_what_lies_below_its_name() {
    let config = parse(
        "[[tenant]]\nname = \"acme\"\npriority = 9\nshare = 2.0\n\
         invoke = [\"acme/**\", \"chat:shared/*\"]\nload = [\"acme/**\"]\n\
         [[tenant]]\nname = \"beta\"\n",
    );
    let policy = policy_of(&config.unwrap());
    let verdict = |who: &str, name: &str| policy.verdict(&caller(who), &model(name));
    assert_eq!(verdict("acme", "default:acme/a/b"), Verdict::Allowed);
    assert_eq!(verdict("acme", "chat:shared/x"), Verdict::OnlyLoaded);
    assert_eq!(verdict("acme", "default:shared/x"), Verdict::Hidden);
    assert_eq!(verdict("beta", "chat:beta/x"), Verdict::Allowed);
    assert_eq!(verdict("beta", "chat:acme/x"), Verdict::Hidden);
    let seen = policy.sees(&caller("acme")).unwrap();
    assert_eq!(seen.len(), 2, "what it may invoke");
    let standing = policy.standing(&"acme".parse().unwrap());
    assert_eq!((standing.share, standing.priority), (2.0, 9));
}

#[test]
fn aliases_stand_for_targets_of_their_endpoint() {
    let config = parse(
        "[[tenant]]\nname = \"acme\"\n\
         [[alias]]\nname = \"m\"\ntarget = \"shared/m-v1/\"\n\
         [[alias]]\nname = \"m\"\nendpoint = \"chat\"\ntenant = \"acme\"\n\
         routes = [{ target = \"acme/v1\", weight = 9 }, { target = \"acme/v2\" }]\n",
    );
    let policy = policy_of(&config.unwrap());
    let targets = |who: &Caller, name: &str| {
        let alias = policy.alias(who, &model(name))?;
        Some(alias.targets().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(targets(&Caller::anonymous(), "default:m").unwrap(), ["default:shared/m-v1"]);
    assert_eq!(targets(&caller("acme"), "chat:m").unwrap(), ["chat:acme/v1", "chat:acme/v2"]);
    assert_eq!(targets(&Caller::anonymous(), "chat:m"), None);
}

#[test]
fn every_fault_of_tenants_and_aliases_is_named() {
    let cases = [
        (
            "[[tenant]]\nname = \"a\"\ninvoke = [\"a/x-*\"]",
            "tenant[0].invoke: 'a/x-*' is no pattern",
        ),
        ("[[tenant]]\nname = \"a\"\ninvoke = \"a/**\"", "tenant[0].invoke: expected a list"),
        (
            "[[tenant]]\nname = \"a\"\nsee = [\"none:a/**\"]",
            "tenant.a.see: 'none:a/**': no endpoint",
        ),
        ("[[tenant]]\nname = \"a\"\npriority = 10", "tenant[0].priority: expected a whole number"),
        ("[[tenant]]\nname = \"a\"\ninvokes = []", "tenant[0].invokes: is not a key; did you mean"),
        ("[alias]\nname = \"a\"", "alias: is a list"),
        ("[[alias]]\ntarget = \"a\"", "alias[0].name: is missing"),
        ("[[alias]]\nname = \"a\"", "alias[0].target: is missing"),
        ("[[alias]]\nname = \"a\"\ntarget = \"../b\"", "alias[0].target: is not a target"),
        (
            "[[alias]]\nname = \"a\"\ntarget = \"b\"\nendpoint = \"x\"",
            "alias[0].endpoint: is the name of no",
        ),
        (
            "[[alias]]\nname = \"a\"\ntarget = \"b\"\ntenant = \"x\"",
            "alias[0].tenant: is the name of no",
        ),
        (
            "[[alias]]\nname = \"a\"\ntarget = \"b\"\nroutes = []",
            "alias[0].routes: stands beside target",
        ),
        ("[[alias]]\nname = \"a\"\nroutes = []", "alias[0].routes: expected a list of 1 to 64"),
        (
            "[[alias]]\nname = \"a\"\nroutes = [{ target = \"b\", weight = 0 }]",
            "alias[0].routes[0].weight: expected a number",
        ),
        (
            "[[alias]]\nname = \"a\"\nroutes = [{ target = \"b\" }, { target = \"b\" }]",
            "alias[0].routes[1].target: 'b' is the target of another",
        ),
        (
            "[[alias]]\nname = \"a\"\ntarget = \"b\"\n[[alias]]\nname = \"b\"\ntarget = \"c\"",
            "alias[0]: 'b' is itself an alias",
        ),
        (
            "[[alias]]\nname = \"a\"\ntarget = \"b\"\n[[alias]]\nname = \"a\"\ntarget = \"c\"",
            "alias[1].name: 'a' is the name of another alias",
        ),
    ];
    for (text, fault) in cases {
        let faults = parse(text).expect_err(text);
        assert!(faults.iter().any(|it| it.starts_with(fault)), "{text}: {faults:?}");
    }
}

#[test]
fn what_needs_a_restart_is_told_from_what_does_not() {
    let of = |text: &str| parse(text).unwrap();
    let before = of("");
    let tenants = of("[[tenant]]\nname = \"a\"\n[[alias]]\nname = \"b\"\ntarget = \"c\"\n");
    assert_eq!(before.fixed_beside(&tenants), Vec::<&str>::new());
    let others = of("[serving]\nmax_queue = 3\n[cache]\ndir = \"/elsewhere\"\n");
    assert_eq!(before.fixed_beside(&others), ["cache", "serving"]);
}

#[test]
fn an_alias_of_what_no_store_can_hold_is_a_fault() {
    let faults = |target: &str| {
        parse(&format!("[[alias]]\nname = \"m\"\ntarget = \"{target}\"\n")).unwrap_err()
    };
    assert!(faults("acme/**")[0].contains("is a pattern"));
    assert!(faults("chat:acme/v1")[0].contains("names an endpoint"));
}
