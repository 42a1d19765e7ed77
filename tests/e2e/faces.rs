//! The page of faces and features says the truth about its tests: each row names some, and there they are.

use std::collections::BTreeMap;
use std::path::Path;

use roundhouse_tests::server::root;

/// A row of one of the page's tables.
struct Row {
    feature: String,
    state: String,
    tests: Vec<String>,
}

/// The rows of all tables, without their heads.
fn rows(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [feature, state, tests] = cells[..] else { panic!("a row has three cells: {line}") };
        if state == "state" || state.starts_with("---") {
            continue;
        }
        let tests = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        rows.push(Row { feature: feature.to_owned(), state: state.to_owned(), tests });
    }
    rows
}

/// Test functions below a folder, and whether they run by themselves.
fn tests(folder: &Path, found: &mut BTreeMap<String, bool>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                tests(&path, found);
            }
        } else if path.extension().is_some_and(|it| it == "rs") {
            found.extend(functions(&std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// Test functions of one file, and whether they run by themselves.
fn functions(text: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let mut attributes: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            attributes.push(line);
            continue;
        }
        let of = |line: &str| {
            let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
            Some(rest.split(['(', '<']).next()?.to_owned())
        };
        let is_test = attributes.iter().any(|it| *it == "#[test]" || it.contains("::test"));
        if let Some(name) = of(line).filter(|_| is_test) {
            let is_ignored = attributes.iter().any(|it| it.starts_with("#[ignore"));
            found.push((name, !is_ignored));
        }
        attributes.clear();
    }
    found
}

#[test]
fn every_row_of_the_page_of_faces_names_tests_that_there_are() {
    let page = std::fs::read_to_string(root().join("deploy/faces.md")).unwrap();
    let rows = rows(&page);
    assert!(rows.len() > 100, "only {} rows", rows.len());
    let mut known = BTreeMap::new();
    for folder in ["src", "tests"] {
        tests(&root().join(folder), &mut known);
    }
    let mut faults = Vec::new();
    for Row { feature, state, tests } in &rows {
        if tests.is_empty() {
            faults.push(format!("'{feature}' names no test"));
        }
        for test in tests {
            match known.get(test) {
                Some(true) => {}
                Some(false) => faults.push(format!("'{feature}': {test} does not run by itself")),
                None => faults.push(format!("'{feature}': there is no test {test}")),
            }
        }
        // Whoever is refused is told with a status.
        let has_status = state.chars().any(|it| it.is_ascii_digit());
        let is_told = state.starts_with("refused") && has_status;
        if !(state.starts_with("works") || state.starts_with("not ") || is_told) {
            faults.push(format!("'{feature}' is in no state: {state}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains("deploy/faces.md"), "the README leads there");
}

#[test]
fn tests_and_rows_are_found() {
    let text = "#[test]\nfn one() {\n#[tokio::test(start_paused = true)]\n#[ignore]\nasync fn two() {}\n\
                fn none() {}\n#[expect(x)]\nfn other() {}\n";
    assert_eq!(functions(text), [("one".to_owned(), true), ("two".to_owned(), false)]);
    let found =
        rows("# T\n| feature | state | tests |\n|---|---|---|\n| a `b` | works | `c`, `d` |\n");
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].feature.as_str(), found[0].tests.len()), ("a `b`", 2));
}
