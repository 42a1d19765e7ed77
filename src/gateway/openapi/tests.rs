use std::collections::BTreeSet;

use super::*;

/// The router's own text: axum does not tell which routes it has.
const ROUTER: &str = include_str!("../router.rs");

/// Methods and paths that the router's text names.
fn routed() -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for call in ROUTER.split(".route(").skip(1) {
        let (path, rest) = call.split_once('"').unwrap().1.split_once('"').unwrap();
        let path = path.replace("{*", "{");
        let end = rest.find(".route(").unwrap_or(rest.len());
        // Up to the end of the call: the next statement begins after its `)`.
        let mut depth = 1;
        let end = rest[..end]
            .char_indices()
            .find(|(_, letter)| {
                depth += match letter {
                    '(' => 1,
                    ')' => -1,
                    _ => 0,
                };
                depth == 0
            })
            .map_or(end, |(at, _)| at);
        for method in ["get", "post", "delete", "put"] {
            let starts = [format!(" {method}("), format!(".{method}("), format!("({method}(")];
            if starts.iter().any(|start| rest[..end].contains(start.as_str())) {
                found.insert((method.to_owned(), path.clone()));
            }
        }
    }
    found
}

#[test]
fn every_route_is_described_and_every_description_routed() {
    let described: BTreeSet<(String, String)> =
        operations::all().map(|it| (it.method.to_owned(), it.path.to_owned())).collect();
    let routed = routed();
    assert!(routed.len() > 20, "{routed:?}");
    assert_eq!(described, routed);
}

#[test]
fn ids_are_unique_and_every_reference_leads_somewhere() {
    let ids: BTreeSet<&str> = operations::all().map(|it| it.id).collect();
    assert_eq!(ids.len(), operations::all().count());
    let document = describe(|_| true);
    let text = document.to_string();
    for (at, _) in text.match_indices("\"$ref\":\"#") {
        let reference = text[at + 9..].split('"').next().unwrap();
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
    let used: BTreeSet<&str> = operations::all().flat_map(|it| it.parameters).copied().collect();
    assert_eq!(used, schemas::parameter_names().collect());
}

#[test]
fn names_in_paths_are_parameters_of_their_operations() {
    let document = describe(|_| true);
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let in_path: BTreeSet<String> = operation["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| document.pointer(&it["$ref"].as_str().unwrap()[1..]).unwrap())
                .filter(|it| it["in"] == "path")
                .map(|it| format!("{{{}}}", it["name"].as_str().unwrap()))
                .collect();
            let named: BTreeSet<String> = path
                .split('/')
                .filter(|segment| segment.starts_with('{'))
                .map(str::to_owned)
                .collect();
            assert_eq!(in_path, named, "{method} {path}");
        }
    }
}

#[test]
fn bounds_of_counts_are_those_that_the_server_has() {
    let document = describe(|_| true);
    let of = |request: &str, field: &str| {
        let at = format!("/components/schemas/{request}/properties/{field}");
        document.pointer(&at).unwrap_or_else(|| panic!("no {at}")).clone()
    };
    assert_eq!(of("ChatRequest", "max_tokens")["minimum"], 1);
    assert_eq!(of("CompletionRequest", "max_tokens")["minimum"], 0);
    for request in ["ChatRequest", "CompletionRequest"] {
        assert_eq!(of(request, "n")["maximum"], roundhouse_serving::ANSWERS_MAX);
    }
}

#[test]
fn a_document_is_built_once_for_all_that_serve_the_same() {
    let plain = Serving { contract: false, adapters: false, platform: false };
    let first = plain.written();
    let others = [
        Serving { contract: true, ..plain },
        Serving { adapters: true, ..plain },
        Serving { platform: true, ..plain },
    ];
    for other in others {
        assert_ne!(other.written(), first, "{other:?}");
    }
    assert_eq!(plain.written().as_ptr(), first.as_ptr());
}

#[test]
fn what_is_not_served_is_not_described() {
    let paths = |served: fn(Where) -> bool| {
        let document = describe(served);
        document["paths"].as_object().unwrap().keys().cloned().collect::<BTreeSet<String>>()
    };
    let plain = paths(|served| served == Where::Always);
    assert!(plain.contains("/ping") && !plain.contains("/models") && !plain.contains("/metrics"));
    assert!(paths(|_| true).contains("/models/{name}/invoke"));
}
