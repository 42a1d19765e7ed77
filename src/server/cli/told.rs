//! What a command that failed says.

use std::error::Error as _;

use serde_json::{Value, json};

use super::output::{plain_json, printable_lines};
use crate::error::Error;

/// The same for programs that asked for JSON, in the shape in which `check-config` tells faults.
#[must_use]
pub fn told_as_json(error: &Error) -> String {
    let faults = match error {
        Error::Settings(faults) => {
            faults.iter().map(|it| json!({ "key": it.key, "message": it.message })).collect()
        }
        other => vec![json!({ "key": key(other), "message": with_causes(other) })],
    };
    let none: [Value; 0] = [];
    let told = json!({
        "ok": false, "faults": faults, "missing_here": none, "hint": error.hint(),
    });
    let text = serde_json::to_string_pretty(&told).expect("our values have string keys only");
    format!("{}\n", plain_json(&text))
}

/// What kind of failure it is: as the server named it, else as we would.
fn key(error: &Error) -> String {
    match error {
        Error::Refused { kind: Some(kind), .. } => kind.clone(),
        other => other.kind().as_str().to_owned(),
    }
}

/// `error: …` with its causes, one per fault, and a hint; each with a line's end. What comes from a
/// model or another server steers no terminal, and its further lines are set in, so that none of
/// them looks like a hint of ours.
#[must_use]
pub fn told(error: &Error) -> String {
    let mut lines = String::new();
    if let Error::Settings(faults) = error {
        for fault in faults {
            lines.push_str(&line("error", &fault.to_string()));
        }
    }
    lines.push_str(&line("error", &with_causes(error)));
    if let Some(hint) = error.hint() {
        lines.push_str(&line("hint", hint));
    }
    lines
}

fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Some libraries repeat their cause in their own text.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

fn line(kind: &str, text: &str) -> String {
    let text = printable_lines(text.trim_end());
    format!("{kind}: {}\n", text.replace('\n', "\n  "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Fault;

    #[test]
    fn what_a_model_says_steers_no_terminal_and_gives_no_hints() {
        let message = "KeyError: \u{1b}[2J\u{202e}x\nhint: run this".to_owned();
        let refused = Error::Refused { status: 424, kind: None, message };
        let text = told(&refused);
        assert!(text.contains("KeyError: \u{fffd}[2J\u{fffd}x\n  hint: run this"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn programs_are_told_of_one_failure_as_of_faults() {
        let refused = Error::Refused {
            status: 404,
            kind: Some("model_not_found".into()),
            message: "no \u{9b}a".into(),
        };
        let text = told_as_json(&refused);
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&told["ok"], &told["faults"][0]["key"]),
            (&json!(false), &json!("model_not_found"))
        );
        assert_eq!(
            told["faults"][0]["message"],
            "the server answered 404 (model_not_found): no \u{9b}a"
        );
        assert!(!text.contains('\u{9b}'), "{text}");
        let text = told_as_json(&Error::Settings(vec![Fault::new("a", "one")]));
        let told: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(told["faults"], json!([{ "key": "a", "message": "one" }]));
    }

    #[test]
    fn each_fault_has_a_line() {
        let faults = vec![Fault::new("a", "one\u{7}"), Fault::new("b", "two")];
        let text = told(&Error::Settings(faults));
        assert!(text.starts_with("error: a: one\u{fffd}\nerror: b: two\nerror: "), "{text}");
    }
}
