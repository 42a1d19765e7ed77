//! What a newcomer sees: the models, and things to try that work as printed.

use crate::logging;

/// Prints it. `python` is the version that runs the handlers, or why there are none.
pub(super) fn print(data: &str, admin: &str, python: &Result<String, String>) {
    logging::say(&format!("{}\n", text(data, admin, python)));
}

fn text(data: &str, admin: &str, python: &Result<String, String>) -> String {
    let handlers = match python {
        Ok(version) => HANDLERS.replace("VERSION", version),
        Err(reason) => NO_HANDLERS.replace("REASON", reason),
    };
    TEXT.replace("HANDLERS\n", &handlers).replace("DATA", data).replace("ADMIN", admin)
}

const TEXT: &str = include_str!("welcome.txt");
const HANDLERS: &str = include_str!("handlers.txt");
const NO_HANDLERS: &str = include_str!("no_handlers.txt");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_offered_where_python_is_and_their_absence_is_explained() {
        let with = text("http://d", "http://a", &Ok("3.11.7".into()));
        assert!(with.contains("Target-Model: forecast/churn") && with.contains("3.11.7"), "{with}");
        let without = text("http://d", "http://a", &Err("python3 lacks pip".into()));
        assert!(without.contains("off: python3 lacks pip"), "{without}");
        assert!(!without.contains("Target-Model: forecast"), "{without}");
        for shown in [with, without] {
            for placeholder in ["DATA", "ADMIN", "HANDLERS", "VERSION", "REASON"] {
                assert!(!shown.contains(placeholder), "{placeholder} in {shown}");
            }
        }
    }
}
