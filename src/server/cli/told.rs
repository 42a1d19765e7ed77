//! What a command that failed says.

use std::error::Error as _;

use super::output::printable_lines;
use crate::error::Error;

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
    lines.push_str(&line("error", &text));
    if let Some(hint) = error.hint() {
        lines.push_str(&line("hint", hint));
    }
    lines
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
    fn each_fault_has_a_line() {
        let faults = vec![Fault::new("a", "one\u{7}"), Fault::new("b", "two")];
        let text = told(&Error::Settings(faults));
        assert!(text.starts_with("error: a: one\u{fffd}\nerror: b: two\nerror: "), "{text}");
    }
}
